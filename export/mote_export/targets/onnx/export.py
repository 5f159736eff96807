"""Checkpoint -> folder of ONNX graphs: passes, torch.onnx.export, external data that can be mapped, client configurations."""

import inspect
import logging
import shutil
from pathlib import Path

import onnx_ir as ir
import torch

from mote_export.checkpoint import Checkpoint
from mote_export.manifest import image_spec, model_spec
from mote_export.model import MoteForConditionalGeneration, MoteModel
from mote_export.passes import apply_passes
from mote_export.passes.attention import attention_head_dim
from mote_export.passes.group_query_attention import GROUP_QUERY_ATTENTION
from mote_export.passes.onnx_linear import ONNX_LINEAR
from mote_export.passes.onnx_packed_linear import ONNX_PACKED_LINEAR
from mote_export.passes.onnx_quantized import ONNX_QUANTIZED_EMBEDDING, ONNX_QUANTIZED_LINEAR
from mote_export.passes.onnx_ternary_matmul import ONNX_TERNARY_MATMUL
from mote_export.passes.onnx_ternary_moe import ONNX_TERNARY_MOE
from mote_export.scratch import Scratch
from mote_export.targets.base import ExportSettings
from mote_export.targets.onnx.description import describe
from mote_export.targets.onnx.external_data import save_with_external_data
from mote_export.targets.onnx.functions import add_functions
from mote_export.targets.onnx.genai import write_genai_config, write_processor_config
from mote_export.targets.onnx.graphs import (
    DecoderGraph,
    EmbeddingGraph,
    TextDecoderGraph,
    TextEmbeddingGraph,
    VisionGraph,
)
from mote_export.targets.onnx.transformers_files import write_transformers_files
from mote_export.weights import shared_copy
from mote_runtime.library import get_library_path

logger = logging.getLogger(__name__)

PLUGIN = "libmote_ort.so"
PASSES = (GROUP_QUERY_ATTENTION, ONNX_TERNARY_MOE, ONNX_TERNARY_MATMUL)
OF_THE_WHOLE_MODEL = (ONNX_PACKED_LINEAR, ONNX_QUANTIZED_LINEAR, ONNX_QUANTIZED_EMBEDDING, ONNX_LINEAR)
# Lengths of the traced example: different from each other and above 1, so that no dimension is taken for a constant.
EXAMPLE_IMAGES, EXAMPLE_SEQUENCE, EXAMPLE_PAST = 2, 7, 11


def write(checkpoint: Checkpoint, settings: ExportSettings, folder: Path) -> None:
    """Writes the graphs, what onnxruntime-genai and transformers read beside them, and a copy of the plugin for genai."""
    write_graphs(checkpoint, settings, folder)
    if settings.needs_plugin:
        shutil.copyfile(get_library_path("onnxruntime"), folder / PLUGIN)
    plugin = PLUGIN if settings.needs_plugin else None
    write_genai_config(folder, model_spec(checkpoint, settings.context_length), plugin)
    image = image_spec(checkpoint)
    if image is not None:
        write_processor_config(folder, image)
    write_transformers_files(checkpoint, folder)


def write_graphs(checkpoint: Checkpoint, settings: ExportSettings, folder: Path) -> None:
    """Writes embedding.onnx, model.onnx and, for a model that takes pictures, vision.onnx, with their external data."""
    model: MoteModel = shared_copy(checkpoint.model)  # the passes work in place
    programs = {"embedding.onnx": embedding_program, "model.onnx": decoder_program}
    if isinstance(model, MoteForConditionalGeneration):
        programs["vision.onnx"] = vision_program
    with Scratch(folder) as scratch:
        apply_passes(model.get_decoder(), PASSES)
        apply_passes(model, OF_THE_WHOLE_MODEL, scratch)
        for name, make_program in programs.items():
            save_with_external_data(make_program(model, settings), folder / name)
            logger.info("wrote %s", name)


def vision_program(model: MoteForConditionalGeneration, settings: ExportSettings) -> torch.onnx.ONNXProgram:
    size = model.config.vision_config.image_size
    channels = model.config.vision_config.num_channels
    return _export(
        VisionGraph(model),
        (torch.zeros(1, EXAMPLE_IMAGES, channels, size, size),),
        ({1: "num_images"},),
        ["pixel_values"],
        ["image_features"],
        settings,
    )


def embedding_program(model: MoteModel, settings: ExportSettings) -> torch.onnx.ONNXProgram:
    """From ids to embeddings; where the model takes pictures, image features replace those of image tokens."""
    ids = torch.zeros(1, EXAMPLE_SEQUENCE, dtype=torch.int64)
    if not isinstance(model, MoteForConditionalGeneration):
        axes = ({1: "sequence_length"},)
        return _export(TextEmbeddingGraph(model), (ids,), axes, ["input_ids"], ["inputs_embeds"], settings)
    features = torch.zeros(EXAMPLE_PAST, model.config.text_config.hidden_size)
    return _export(
        EmbeddingGraph(model),
        (ids, features),
        ({1: "sequence_length"}, {0: "num_image_tokens"}),
        ["input_ids", "image_features"],
        ["inputs_embeds"],
        settings,
    )


def decoder_program(model: MoteModel, settings: ExportSettings, *, from_ids: bool = False) -> torch.onnx.ONNXProgram:
    """The decoder, which takes embeddings as mote_runtime and onnxruntime-genai feed it, or with `from_ids` the ids of a text."""
    config = model.config.text_config
    head_dim = attention_head_dim(config)
    layers = config.num_hidden_layers
    # One tensor each: torch.export takes a tensor that is passed twice for one input.
    shape = (1, config.num_key_value_heads, EXAMPLE_PAST, head_dim)
    dtypes = [torch.int8 if layer.self_attn.has_int8_cache else torch.float32 for layer in model.get_decoder().layers]
    cache = [[torch.zeros(shape, dtype=dtype) for _ in range(2)] for dtype in dtypes]
    past_axes = {2: "past_sequence_length"}
    ids = torch.zeros(1, EXAMPLE_SEQUENCE, dtype=torch.int64)
    program = _export(
        (TextDecoderGraph if from_ids else DecoderGraph)(model, settings.context_length),
        (
            ids if from_ids else torch.zeros(1, EXAMPLE_SEQUENCE, config.hidden_size),
            torch.ones(1, EXAMPLE_SEQUENCE + EXAMPLE_PAST, dtype=torch.int64),
            cache,
        ),
        ({1: "sequence_length"}, {1: "total_sequence_length"}, [[past_axes, past_axes] for _ in range(layers)]),
        ["input_ids" if from_ids else "inputs_embeds", "attention_mask", *_cache_names("past_key_values", layers)],
        ["logits", *_cache_names("present", layers)],
        settings,
    )
    for value in program.model.graph.outputs[1:]:
        assert value.shape is not None
        value.shape = ir.Shape([*value.shape[:2], "total_sequence_length", value.shape[3]])
    return program


def _cache_names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _export(
    graph: torch.nn.Module,
    example: tuple[object, ...],
    dynamic_shapes: tuple[object, ...],
    input_names: list[str],
    output_names: list[str],
    settings: ExportSettings,
) -> torch.onnx.ONNXProgram:
    program = torch.onnx.export(
        graph.eval(),
        example,
        dynamo=True,
        opset_version=settings.opset,
        dynamic_shapes=dynamic_shapes,
        input_names=input_names,
        output_names=output_names,
        verbose=False,
    )
    assert program is not None  # None only with an output path
    describe(program.model, type(graph).__name__, inspect.cleandoc(graph.__doc__ or "").partition("\n")[0])
    if settings.portable:
        add_functions(program.model)
    return program
