"""`mote_export.export`: what `mote-export` does, as one function for scripts and notebooks."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from mote_export import exporter
from mote_export.budget import Budget
from mote_export.checkpoint import Checkpoint, check_files
from mote_export.checkpoint.base import COMPANION_FILES
from mote_export.defaults import (
    DEFAULT_EMBEDDING,
    DEFAULT_FULL_EXPERTS,
    DEFAULT_KV_CACHE,
    DEFAULT_LINEAR,
    DEFAULT_OPSET,
    DEFAULT_PACKING,
    DEFAULT_QUANTIZER,
    DEFAULT_RTOL,
    DEFAULT_SHARED_EXPERT,
    DEFAULT_SHARED_GROUP_SIZE,
    DEFAULT_VISION,
    OPSETS,
)
from mote_export.exporter import ExportResult
from mote_export.model import MoteForCausalLM, MoteModel
from mote_export.passes import PackOptions
from mote_export.quiet import quiet_libraries
from mote_export.targets import TARGETS
from mote_export.verify import Sample
from mote_runtime.errors import MoteError

ALL = "all"
Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase


def export(
    model: str | os.PathLike[str] | MoteModel,
    output: str | os.PathLike[str],
    *,
    target: Literal["onnx", "executorch", "all"] = "all",
    processor: Processor | None = None,
    context_length: int | None = None,
    packing: str = DEFAULT_PACKING,
    shared_expert: str = DEFAULT_SHARED_EXPERT,
    shared_group_size: int = DEFAULT_SHARED_GROUP_SIZE,
    quantizer: str = DEFAULT_QUANTIZER,
    linear: str = DEFAULT_LINEAR,
    embedding: str = DEFAULT_EMBEDDING,
    vision: str = DEFAULT_VISION,
    full_experts: str = DEFAULT_FULL_EXPERTS,
    linear_group_size: int = DEFAULT_SHARED_GROUP_SIZE,
    kv_cache: str = DEFAULT_KV_CACHE,
    memory_budget: int | None = None,
    opset: int = DEFAULT_OPSET,
    portable: bool = False,
    verify: bool = True,
    rtol: float = DEFAULT_RTOL,
    samples: Sequence[Sample] = (),
    vision_tower: str | os.PathLike[str] | None = None,
    ternarize: bool = False,
) -> list[ExportResult]:
    """Exports a MoTE model; the folder appears complete and verified, or not at all.

    Args:
        model: model.pt, a folder of save_pretrained, of MoE-LLaVA or of BitNet, or a model in memory, which stays as it is.
        output: an absent or empty folder. It gets the subfolders onnx/ and executorch/ with target "all", and is the export itself
            with a single target.
        processor: of a model in memory: the transformers processor (image processor and tokenizer) that belongs to it; of a
            text model its tokenizer.
        context_length: positions in the KV cache; default: the model's own limit, at most 4096.
        packing: of the ternary experts, "2bit" or "1.6bit".
        shared_expert: how the shared expert is stored, "float32", "bf16", "int8" or "int4".
        shared_group_size: weights that share a scale, 32, 64, 128 or 256, for "int4".
        quantizer: how the scales of integer weights are chosen, "rtn" (round to nearest) or "hqq".
        linear: how the linear layers outside of the experts are stored, "float32", "bf16", "int8" or "int4".
        embedding: how the embedding of tokens is stored, in one of these.
        vision: how the linear layers of the vision tower are stored, in one of these.
        full_experts: how routed experts in full precision are stored (MoE-LLaVA's), "float32", "int8", "int4" or "int3".
        linear_group_size: weights that share a scale in the "int4" and "int3" of these four, 32, 64, 128 or 256.
        kv_cache: how keys and values of the whole context are stored, "float32" or, for target "onnx", "int8" with scales that are
            calibrated on the samples.
        memory_budget: bytes for weights and KV cache; the most exact of `mote_export.defaults.PRESETS` that fits replaces the
            formats above. One of them by name is `export(model, output, **PRESETS["mobile"])`.
        opset: ONNX operator set, 18 to 23.
        portable: the runtime's own operators compute the experts: slower and larger in memory, but without the plugin.
        verify: run the export and compare it with torch.
        rtol: see `mote_export.verify.relative_difference`.
        samples: questions to compare on, and to calibrate on, beside built-in ones.
        vision_tower: of a MoE-LLaVA checkpoint without its tower: the tower's own folder.
        ternarize: round the weights of BitNet layers that should be ternary and are not, instead of refusing them.

    Returns:
        One result for each target: its folder, the sizes of its files, the memory of its experts and what verification found.

    Raises:
        MoteError: one sentence; nothing was written.
    """
    if target not in (*TARGETS, ALL):
        raise MoteError(f"target is {target!r}, expected {', '.join(map(repr, TARGETS))} or {ALL!r}.")
    if opset not in OPSETS:
        raise MoteError(f"opset is {opset}, expected {OPSETS[0]} to {OPSETS[-1]}.")
    source = _source(model, processor)
    pack = PackOptions(
        packing,
        shared_expert,
        shared_group_size,
        quantizer=quantizer,
        linear=linear,
        embedding=embedding,
        vision=vision,
        full_experts=full_experts,
        linear_group_size=linear_group_size,
        kv_cache=kv_cache,
        ternarize=ternarize,
    )
    budget = None if memory_budget is None else Budget.of(memory_budget, pack)
    with quiet_libraries():
        return exporter.export(
            source,
            Path(output),
            tuple(TARGETS) if target == ALL else (target,),
            context_length=context_length,
            opset=opset,
            portable=portable,
            rtol=rtol,
            verify=verify,
            samples=samples,
            pack=budget or pack,
            vision_tower=None if vision_tower is None else Path(vision_tower),
        )


def _source(model: str | os.PathLike[str] | MoteModel, processor: Processor | None) -> Path | Checkpoint:
    if isinstance(model, MoteModel):
        return checkpoint_of(model, processor)
    if isinstance(model, torch.nn.Module):
        raise MoteError(
            f"the model is a {type(model).__name__}, expected a MoteForConditionalGeneration or a MoteForCausalLM: see "
            "mote_export.model.upcycle."
        )
    if not isinstance(model, str | os.PathLike):
        raise MoteError(
            f"the model is a {type(model).__name__}, expected a path of a checkpoint, a MoteForConditionalGeneration or a "
            "MoteForCausalLM."
        )
    if processor is not None:
        raise MoteError(f"a processor was given beside {os.fspath(model)}, which brings its own: leave it out.")
    return Path(model)


def checkpoint_of(model: MoteModel, processor: Processor | None) -> Checkpoint:
    """A model in memory with the files of its processor, of a text model its tokenizer, as if it had been read from a folder."""
    is_text = isinstance(model, MoteForCausalLM)
    if processor is None:
        what, kind = ("tokenizer", "AutoTokenizer") if is_text else ("processor", "AutoProcessor")
        raise MoteError(f"a model in memory needs its {what} as well: pass processor={kind}.from_pretrained(...).")
    if not isinstance(processor, PreTrainedTokenizerBase if is_text else ProcessorMixin):
        expected = (
            "the tokenizer of a text model"
            if is_text
            else "one of image processor and tokenizer, such as LlavaProcessor"
        )
        raise MoteError(f"the processor is a {type(processor).__name__}, expected {expected}.")
    _check_model(model)
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        found = (Path(folder) / name for name in COMPANION_FILES)
        files = {path.name: path.read_text(encoding="utf-8") for path in found if path.is_file()}
    name = Path(model.config.name_or_path).name or "model"
    return Checkpoint(name, model, check_files(Path(name), files))


def _check_model(model: MoteModel) -> None:
    """What a checkpoint is refused for when it is read from a file, and a model in memory may be as well."""
    if model.config.moe_settings is None:
        raise MoteError("the model has no MoTE layer (its config has no 'moe'): see mote_export.model.upcycle.")
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise MoteError(f"{name} is on torch's meta device, which holds no values: load the model's weights first.")
        if not torch.isfinite(tensor).all():
            raise MoteError(
                f"{name} contains NaN or infinity: the model's training diverged, or it was not loaded wholly."
            )
