"""What optimum knows of a MoTE model: tasks, and names and dynamic axes of the graph `model.onnx`."""

from typing import Any

from optimum.exporters.onnx import OnnxConfigWithPast
from optimum.utils import NormalizedTextConfig

from mote_runtime.errors import MoteError

IMAGE_TEXT_TO_TEXT, TEXT_GENERATION = "image-text-to-text", "text-generation"
WITH_PAST = "-with-past"
TASKS = (IMAGE_TEXT_TO_TEXT + WITH_PAST, TEXT_GENERATION + WITH_PAST)
TEXT_TASKS = TASKS[1:]  # of a text model

Axes = dict[str, dict[int, str]]


class MoteOnnxConfig(OnnxConfigWithPast):
    """Describes graphs that mote's exporter writes; optimum's cannot."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig.with_args(num_layers="text_config.num_hidden_layers")

    @property
    def inputs(self) -> Axes:
        first = "input_ids" if self.task == TEXT_GENERATION else "inputs_embeds"
        return {
            first: {1: "sequence_length"},
            "attention_mask": {1: "total_sequence_length"},
            **self._cache("past_key_values", "past_sequence_length"),
        }

    @property
    def outputs(self) -> Axes:
        return {"logits": {}, **self._cache("present", "total_sequence_length")}

    def _cache(self, prefix: str, axis: str) -> Axes:
        layers = self._config.text_config.num_hidden_layers
        return {f"{prefix}.{layer}.{part}": {2: axis} for layer in range(layers) for part in ("key", "value")}

    def generate_dummy_inputs(self, framework: str = "pt", **kwargs: Any) -> dict[str, Any]:
        raise MoteError(
            "optimum's functions for single graphs cannot trace a MoTE model: use main_export, optimum-cli or mote_export.export."
        )
