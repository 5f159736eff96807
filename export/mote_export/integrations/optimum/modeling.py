"""`ORTModelForImageTextToText`: an export of `mote-export` or optimum-cli behind transformers' `generate`, with pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from mote_export.integrations.optimum.sessions import plugin_options
from mote_export.model import MoteConfig
from mote_runtime.errors import MoteError

Past = tuple[tuple[torch.Tensor, torch.Tensor], ...]


class ORTModelForImageTextToText(ORTModelForCausalLM):
    """optimum's class for decoders, whose input is what an embedding graph makes of token ids and a vision graph of pictures.

    The batch size is 1, as in the graphs. `from_pretrained(folder)` opens an export with target onnx and `from_pretrained(folder,
    export=True)` makes one first; `session_options` needs mote's operators, and without it gets them.
    """

    auto_model_class = AutoModelForImageTextToText

    def __init__(
        self,
        *,
        config: MoteConfig,
        session: onnxruntime.InferenceSession,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> None:
        # Not ORTModelForCausalLM's own, which looks for the sizes of the cache in the configuration of known model types.
        super(ORTModelForCausalLM, self).__init__(config=config, session=session, **kwargs)
        self.generation_config = generation_config
        self.key_value_input_names = [name for name in self.input_names if name.startswith("past_key_values.")]
        self.key_value_output_names = [name for name in self.output_names if name.startswith("present.")]
        self.can_use_cache = True
        self.vision: onnxruntime.InferenceSession | None = None
        self.embedding: onnxruntime.InferenceSession | None = None

    @classmethod
    def _from_pretrained(
        cls,
        model_id: str | Path,
        config: MoteConfig,
        *,
        session_options: onnxruntime.SessionOptions | None = None,
        **kwargs: Any,
    ) -> "ORTModelForImageTextToText":
        if not isinstance(config, MoteConfig):
            raise MoteError(f"{model_id} holds a {config.model_type!r} model, expected an export of a MoTE checkpoint.")
        session_options = session_options or plugin_options()
        model: ORTModelForImageTextToText = super()._from_pretrained(
            model_id, config, session_options=session_options, **kwargs
        )
        folder, providers = Path(model.session._model_path).parent, model.session.get_providers()
        model.vision, model.embedding = (
            onnxruntime.InferenceSession(folder / name, session_options, providers)
            for name in ("vision.onnx", "embedding.onnx")
        )
        return model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Past | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One step.

        Args:
            input_ids: int64 [1, s], the tokens that are new.
            attention_mask: int64 [1, past + s]; None: all ones.
            past_key_values: what the step before returned; None at the first one.
            pixel_values: float32 [n, 3, height, width], used at the first step.

        Returns:
            logits float32 [1, 1, vocab] of the last position, and the past of the next step.

        Raises:
            MoteError: several prompts, padding, or pictures that do not fit the prompt.
        """
        if len(input_ids) != 1:
            raise MoteError(
                f"the batch holds {len(input_ids)} prompts or beams, the graphs take 1: ask one after the other."
            )
        # The decoder counts the ones and takes the last ones of the cache for them, wherever the zeros are.
        if attention_mask is not None and not attention_mask.all():
            raise MoteError(
                "the attention mask hides tokens, the graphs take a prompt without padding: leave padding out."
            )
        past = (
            self._no_past()
            if past_key_values is None
            else [part.numpy() for layer in past_key_values for part in layer]
        )
        if attention_mask is None:
            attention_mask = torch.ones(1, past[0].shape[2] + input_ids.shape[1], dtype=torch.int64)
        pixels = pixel_values if past_key_values is None else None
        inputs = {
            "inputs_embeds": self._embed(input_ids, pixels),
            "attention_mask": attention_mask.numpy(),
            **dict(zip(self.key_value_input_names, past, strict=True)),
        }
        logits, *present = self.session.run(["logits", *self.key_value_output_names], inputs)
        parts = [torch.from_numpy(part) for part in present]
        return CausalLMOutputWithPast(
            logits=torch.from_numpy(logits), past_key_values=tuple(zip(parts[::2], parts[1::2], strict=True))
        )

    def _no_past(self) -> list[np.ndarray]:
        _, heads, _, head_dim = self.input_shapes[self.key_value_input_names[0]]
        shape = (1, heads, 0, head_dim)
        return [np.zeros(shape, np.float32) for _ in self.key_value_input_names]

    def _embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> np.ndarray:
        assert self.vision is not None
        assert self.embedding is not None
        if pixel_values is None:
            features = np.zeros((0, self.config.text_config.hidden_size), np.float32)
        else:
            [features] = self.vision.run(None, {"pixel_values": pixel_values.float().numpy()[None]})
        expected, found = int((input_ids == self.config.image_token_id).sum()), len(features)
        if expected != found:
            raise MoteError(
                f"the prompt has {expected} image tokens, the pictures have {found} features: prepare both with the export's own "
                "AutoProcessor."
            )
        [embeds] = self.embedding.run(None, {"input_ids": input_ids.numpy(), "image_features": features})
        return embeds

    def _save_pretrained(self, save_directory: str | Path) -> None:
        raise MoteError(f"an export is complete as it is: copy its folder to {save_directory}.")
