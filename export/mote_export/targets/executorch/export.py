"""Checkpoint -> model.pte: passes, torch.export of every method, XNNPACK for what is stock, one program."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from mote_export.checkpoint import Checkpoint
from mote_export.manifest import num_image_tokens
from mote_export.model import MoteForConditionalGeneration, MoteModel
from mote_export.passes import apply_passes
from mote_export.passes.cached_sdpa import cached_sdpa
from mote_export.passes.explicit_gelu_tanh import EXPLICIT_GELU_TANH
from mote_export.passes.portable import PORTABLE_TERNARY_MATMUL, PORTABLE_TERNARY_MOE
from mote_export.passes.xnnpack_quantized import LOOKED_UP_EMBEDDING, XNNPACK_LINEAR, XnnpackLinear
from mote_export.scratch import Scratch
from mote_export.targets.base import ExportSettings
from mote_export.targets.executorch.methods import TextDecoder, TextForward
from mote_export.tokens import special_tokens
from mote_export.vision import ImageEncoder
from mote_export.weights import shared_copy
from mote_runtime.backends.base import PREFILL_CHUNK

logger = logging.getLogger(__name__)

PROGRAM = "model.pte"
DECODER_METHODS = ("text_decoder", "forward")
DELEGATED_METHODS = ("vision_encoder", *DECODER_METHODS)
PORTABLE = (PORTABLE_TERNARY_MOE, PORTABLE_TERNARY_MATMUL)
EXAMPLE_SEQUENCE = 5  # above 1, or torch.export takes the length for a constant
TENSOR_ALIGNMENT = 64  # a line of the packed layout
SEGMENT_ALIGNMENT = 16 * 1024  # pages of recent phones


def write(checkpoint: Checkpoint, settings: ExportSettings, folder: Path) -> None:
    """Writes model.pte."""
    from mote_export.targets.executorch.constants import take_constants, write_program  # they need ExecuTorch

    model: MoteModel = shared_copy(checkpoint.model)  # the passes work in place
    with Scratch(folder) as scratch:
        apply_passes(model.model, (EXPLICIT_GELU_TANH,))
        if isinstance(model, MoteForConditionalGeneration):
            # ExecuTorch's form of sdpa looks for rows without any key, in five operators that XNNPACK does not take.
            model.vision_tower.set_attn_implementation("eager")
        portable = PORTABLE if settings.portable else ()
        apply_passes(model.get_decoder(), (cached_sdpa(settings.context_length), *portable), scratch)
        apply_passes(model, (XNNPACK_LINEAR, LOOKED_UP_EMBEDDING), scratch)
    constants = take_constants(model)
    with torch.no_grad():
        programs = export_methods(model, settings, longest_call(checkpoint, settings))
    delegated = [name for name in DELEGATED_METHODS if name in programs]
    if not has_stock_linear(model):
        # What is left of the decoder is small: hundreds of delegates, each of which takes time to export and to call.
        delegated = [name for name in delegated if name not in DECODER_METHODS]
    # XNNPACK's share of a portable layer does not give the layer's numbers (seen in 1.5): the decoder is left to portable kernels.
    integers_only = DECODER_METHODS if settings.portable else ()
    program = lower(programs, metadata(checkpoint, settings), delegated, integers_only)
    with (folder / PROGRAM).open("wb") as file:
        write_program(program, constants, backend_config(), file)
    logger.info("wrote %s", PROGRAM)


def export_methods(model: MoteModel, settings: ExportSettings, longest: int) -> dict[str, ExportedProgram]:
    """torch.export of each method with a dynamic sequence of 1 to `longest`."""
    sequence = Dim("sequence_length", min=1, max=longest)
    embedding = model.get_input_embeddings()
    ids = torch.zeros(1, EXAMPLE_SEQUENCE, dtype=torch.int64)
    embeds = torch.zeros(1, EXAMPLE_SEQUENCE, model.config.text_config.hidden_size)
    positions = torch.arange(EXAMPLE_SEQUENCE)
    text_decoder = TextDecoder(model, settings.context_length)
    with_positions = ({1: sequence}, {0: sequence})
    examples: dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...], Any]] = {
        "token_embedding": (embedding, (ids,), ({1: sequence},)),
        "text_decoder": (text_decoder, (embeds, positions), with_positions),
        "forward": (TextForward(embedding, text_decoder), (ids, positions), with_positions),
    }
    if isinstance(model, MoteForConditionalGeneration):
        vision = model.config.vision_config
        pixels = torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size)
        examples["vision_encoder"] = (ImageEncoder(model), (pixels,), None)
    return {
        name: multiply_squares(torch.export.export(module.eval(), example, dynamic_shapes=shapes, strict=False))
        for name, (module, example, shapes) in examples.items()
    }


def multiply_squares(program: ExportedProgram) -> ExportedProgram:
    """x * x for the x ** 2 of norms, in place: ExecuTorch's kernel calls powf for each number, a tenth of a long prompt's time."""
    for node in program.graph.nodes:
        if node.target == torch.ops.aten.pow.Tensor_Scalar and node.args[1] == 2:
            node.target = torch.ops.aten.mul.Tensor
            node.args = (node.args[0], node.args[0])
    program.graph_module.recompile()
    return program


def has_stock_linear(model: MoteModel) -> bool:
    """Whether the decoder has linear layers, with its output layer, that no operator of mote's runs."""
    parts = (model.get_decoder(), model.get_output_embeddings())
    return any(isinstance(module, nn.Linear | XnnpackLinear) for part in parts for module in part.modules())


def longest_call(checkpoint: Checkpoint, settings: ExportSettings) -> int:
    """Positions of one call: memory is planned for them. ExecuTorch's runner passes the features of a picture in one."""
    return min(settings.context_length, max(PREFILL_CHUNK, num_image_tokens(checkpoint) or 0))


def metadata(checkpoint: Checkpoint, settings: ExportSettings) -> dict[str, Any]:
    """Constant methods, under the names that ExecuTorch's LLM runners look for."""
    tokens = special_tokens(checkpoint)
    config = checkpoint.model.config.text_config
    begin = {} if tokens.bos_token_id is None else {"get_bos_id": tokens.bos_token_id}
    return {
        "get_max_seq_len": longest_call(checkpoint, settings),
        "get_max_context_len": settings.context_length,
        "get_vocab_size": config.vocab_size,
        **begin,
        "get_eos_ids": list(tokens.eos_token_ids),
        "get_n_layers": config.num_hidden_layers,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def lower(
    programs: dict[str, ExportedProgram],
    constant_methods: dict[str, Any],
    delegated: Sequence[str] = DELEGATED_METHODS,
    integers_only: Sequence[str] = (),
) -> Any:
    """Edge dialect, XNNPACK delegates in the methods `delegated`, memory plan. Returns executorch's program manager.

    In the methods `integers_only` XNNPACK gets linear layers with integer weights, which nothing else runs, and nothing more.
    """
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    def partitioner(method: str) -> XnnpackPartitioner:
        if method in integers_only:
            return XnnpackPartitioner(config_precisions=ConfigPrecisionType.DYNAMIC_QUANT, per_op_mode=True)
        return XnnpackPartitioner()

    edge = to_edge_transform_and_lower(
        programs,
        partitioner={name: [partitioner(name)] for name in delegated},
        constant_methods=constant_methods,
        compile_config=EdgeCompileConfig(_check_ir_validity=False),  # it knows no custom operators
    )
    return edge.to_executorch(backend_config())


def backend_config() -> Any:
    """ExecuTorch's settings of memory plan and file."""
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    return ExecutorchBackendConfig(
        memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        extract_delegate_segments=True,
        segment_alignment=SEGMENT_ALIGNMENT,
        constant_tensor_alignment=TENSOR_ALIGNMENT,
    )
