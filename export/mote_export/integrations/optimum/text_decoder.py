"""A folder for optimum's own ORTModelForCausalLM: one graph from token ids to logits, under the decoder's own model type."""

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mote_export.atomic import atomic_folder, check_output
from mote_export.checkpoint import Checkpoint
from mote_export.checkpoint.stock_files import CHAT_TEMPLATE_FILE, generation_config
from mote_export.exporter import choose_context
from mote_export.model import MoteModel
from mote_export.passes import PackOptions, apply_passes, pack_ternary_experts, pack_ternary_linear
from mote_export.quiet import quiet_libraries
from mote_export.targets.base import ExportSettings
from mote_export.targets.onnx.export import PASSES, decoder_program
from mote_export.targets.onnx.external_data import save_with_external_data
from mote_export.tokens import chat_template, load_tokenizer, prompt_spec, tokenizer_files
from mote_export.verify import (
    STEPS,
    VerificationError,
    default_samples,
    reference_greedy,
    relative_difference,
    tie_margin,
)
from mote_runtime.errors import MoteError

logger = logging.getLogger(__name__)


def export_text_decoder(
    checkpoint: Checkpoint,
    output: Path,
    *,
    context_length: int | None,
    opset: int,
    pack: PackOptions,
    verify: bool,
    rtol: float,
) -> None:
    """Writes `output`, complete and verified or not at all; the checkpoint's model stays as it is.

    Args:
        output: an absent or empty folder.
        context_length, opset, pack, rtol: see `mote_export.export`.

    Raises:
        MoteError: one sentence; nothing was written.
    """
    check_output(output)
    settings = ExportSettings(choose_context(checkpoint, context_length), opset)
    config = _text_config(checkpoint.model, settings.context_length)
    reference = copy.deepcopy(checkpoint.model).eval()
    with quiet_libraries(), atomic_folder(output) as temporary:
        apply_passes(reference.get_decoder(), (pack_ternary_experts(pack), pack_ternary_linear(pack.packing)))
        model = copy.deepcopy(reference)
        apply_passes(model.get_decoder(), PASSES)
        save_with_external_data(decoder_program(model, settings, from_ids=True), temporary / "model.onnx")
        del model
        config.save_pretrained(temporary)
        generation_config(checkpoint).save_pretrained(temporary)
        for name, text in {**tokenizer_files(checkpoint), CHAT_TEMPLATE_FILE: chat_template(checkpoint)}.items():
            (temporary / name).write_text(text, encoding="utf-8")
        if verify:
            verify_text_decoder(temporary, checkpoint, reference, rtol)


def _text_config(model: MoteModel, context_length: int) -> PretrainedConfig:
    """Of the decoder alone, as the client takes the sizes of the cache from it."""
    config = copy.deepcopy(model.config.text_config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        raise MoteError(
            f"the decoder has {config.num_attention_heads} heads of {head_dim}, which optimum's ORTModelForCausalLM takes for "
            f"{config.hidden_size // config.num_attention_heads}: export with --task image-text-to-text-with-past."
        )
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.max_position_embeddings = context_length
    return config


def verify_text_decoder(folder: Path, checkpoint: Checkpoint, reference: MoteModel, rtol: float) -> None:
    """Compares greedy answers and their logits, through the client that the folder is for, with torch's.

    Args:
        reference: the model after the pack-ternary-experts pass.
        rtol: greatest `relative_difference` of a step.

    Raises:
        VerificationError: a step differs by more, or the comparison tells nothing.
    """
    compared = 0
    client = _open(folder)
    tokenizer, prompt = load_tokenizer(checkpoint), prompt_spec(checkpoint)
    for sample in default_samples(checkpoint.has_vision):
        ids = tokenizer.encode(f"{prompt.user_prefix}{sample.prompt}{prompt.user_suffix}", add_special_tokens=False).ids
        room = client.config.max_position_embeddings - len(ids) + 1
        if room < 1:
            logger.warning("%r does not fit the context", sample.prompt)
            continue
        tokens, logits = reference_greedy(reference, ids, None, min(STEPS, room))
        output = client.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=min(STEPS, room),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found = output.sequences[0, len(ids) :].tolist()
        for step, (token, wanted) in enumerate(zip(found, tokens, strict=False)):
            expected = logits[step]
            relative = relative_difference(output.logits[step][0].numpy(), expected)
            if not relative <= rtol:
                raise VerificationError(
                    f"onnxruntime differs from torch by {relative:.2g} of the logits' standard deviation (step {step} of "
                    f"{sample.prompt!r}), more than the tolerance of {rtol:.2g}."
                )
            if token != wanted and expected[wanted] - expected[token] > tie_margin(expected, rtol):
                raise VerificationError(
                    f"onnxruntime chose token {token} where torch chose {wanted} ({sample.prompt!r})."
                )
            if token != wanted:
                break  # as good as the other, but answers are not comparable from here on
            compared += 1
    if compared == 0:
        raise VerificationError("no greedy token could be compared with torch's; this tells nothing about the model.")


def _open(folder: Path) -> Any:
    from optimum.onnxruntime import ORTModelForCausalLM  # it imports optimum's exporter, which imports us

    from mote_export.integrations.optimum.sessions import plugin_options

    return ORTModelForCausalLM.from_pretrained(folder, session_options=plugin_options())
