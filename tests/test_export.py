"""L4: a whole tiny random model in torch, ONNX Runtime and ExecuTorch, and what an exported folder holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny import tiny_checkpoint
from transformers.integrations.bitnet import AutoBitLinear

from mote_export.checkpoint import load_checkpoint, save_model_pt
from mote_export.cli.export import main
from mote_export.defaults import DEFAULT_RTOL
from mote_export.exporter import ExportResult, export
from mote_export.model import MoteForConditionalGeneration
from mote_export.passes import PackOptions, PassError, apply_passes, pack_ternary_experts
from mote_export.passes.group_query_attention import GROUP_QUERY_ATTENTION
from mote_export.report import expert_memory
from mote_export.verify import Sample, VerificationError, verify_folder
from mote_runtime.backends import open_backend
from mote_runtime.errors import MoteError
from mote_runtime.manifest import Manifest

MIB = 1 << 20


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mote-export model.pt` on the tiny model; the folder with onnx/ and executorch/, and model.pt beside it."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = tiny_checkpoint()
    save_model_pt(folder / "model.pt", checkpoint.model, checkpoint.files)
    assert main([str(folder / "model.pt"), "-o", str(folder / "out")]) == 0
    return folder / "out"


@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_logits_and_greedy_tokens_equal_torch(exported: Path, target: str) -> None:
    """On other inputs than the export itself verified: the last one fills the context but for the answer."""
    model = load_checkpoint(exported.parent / "model.pt").model
    apply_passes(model, [pack_ternary_experts()])
    picture = np.random.default_rng(5).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    samples = [Sample("?"), Sample("Wie geht's? \u4f60\u597d", picture), Sample("x" * 60, picture)]
    found = verify_folder(exported / target, model, samples, DEFAULT_RTOL)
    assert found.greedy_tokens_compared >= 3 * 8
    assert found.greedy_ties == 0


@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_manifest_describes_every_file(exported: Path, target: str) -> None:
    manifest = Manifest.read(exported / target)
    manifest.verify()
    assert {path.name for path in (exported / target).iterdir()} == {*manifest.files, "mote.json"}
    assert manifest.model.context_length == 128
    assert manifest.moe.layers == (0, 1)
    assert manifest.source["name"] == "model.pt"
    assert manifest.verification["greedy_tokens_compared"] > 0


def test_nothing_is_left_beside_the_output(exported: Path) -> None:
    assert {path.name for path in exported.parent.iterdir()} == {"model.pt", "out"}


def decoder(exported: Path) -> onnx.ModelProto:
    return onnx.load(exported / "onnx" / "model.onnx", load_external_data=False)


def test_decoder_has_one_moe_node_a_layer_and_no_dequantized_expert(exported: Path) -> None:
    model = decoder(exported)
    nodes = [node for node in model.graph.node if node.op_type == "TernaryMoE"]
    assert [node.domain for node in nodes] == ["mote", "mote"]
    uint8 = onnx.TensorProto.UINT8
    shapes = [tuple(tensor.dims) for tensor in model.graph.initializer if tensor.data_type != uint8]
    assert not any(sorted(shape) == [64, 160] for shape in shapes)
    assert not any(len(shape) == 3 for shape in shapes)
    packed = [tensor for tensor in model.graph.initializer if tensor.data_type == uint8]
    routed, shared = [(4, 10, 2, 4, 64), (4, 4, 10, 64)], [(10, 2, 32, 64), (4, 80, 64)]
    assert sorted(tuple(tensor.dims) for tensor in packed) == sorted([*routed, *shared] * 2)


def test_decoder_interface(exported: Path) -> None:
    graph = decoder(exported).graph
    assert [value.name for value in graph.input] == [
        "inputs_embeds", "attention_mask", *(f"past_key_values.{i}.{part}" for i in (0, 1) for part in ("key", "value")),
    ]  # fmt: skip
    dims = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert dims["inputs_embeds"] == [1, "sequence_length", 64]
    assert dims["attention_mask"] == [1, "total_sequence_length"]
    assert dims["past_key_values.1.value"] == [1, 2, "past_sequence_length", 16]
    assert dims["present.1.value"] == [1, 2, "total_sequence_length", 16]
    assert dims["logits"][:2] == [1, 1]


@pytest.mark.parametrize("name", ["vision.onnx", "embedding.onnx", "model.onnx"])
def test_onnx_files_pass_the_checker_and_are_aligned(exported: Path, name: str) -> None:
    path = exported / "onnx" / name
    onnx.checker.check_model(str(path))
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        external = {entry.key: entry.value for entry in tensor.external_data}
        if external:
            assert int(external["offset"]) % 64 == 0, tensor.name
    assert path.with_name(name + ".data").stat().st_size % (16 * 1024) == 0


def test_genai_configuration(exported: Path) -> None:
    config = json.loads((exported / "onnx" / "genai_config.json").read_text())["model"]
    assert config["type"] == "videochat_flash_qwen"
    assert config["vision"]["num_visual_tokens"] == 16
    assert (exported / "onnx" / config["decoder"]["session_options"]["custom_ops_library"]).is_file()
    processor = json.loads((exported / "onnx" / "processor_config.json").read_text())["processor"]
    normalize = next(t["operation"] for t in processor["transforms"] if t["operation"]["type"] == "Normalize")
    assert all(isinstance(value, float) for value in normalize["attrs"]["mean"])


def test_executorch_methods_and_metadata(exported: Path) -> None:
    from mote_runtime.library import load_executorch_library

    load_executorch_library()
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
    from executorch.extension.pybindings import portable_lib

    program = portable_lib._load_for_executorch(str(exported / "executorch" / "model.pte"))
    constants = {
        "get_max_seq_len": [128], "get_max_context_len": [128], "get_vocab_size": [262], "use_kv_cache": [True],
        "use_sdpa_with_kv_cache": [True], "enable_dynamic_shape": [True], "get_bos_id": [257],
        "get_eos_ids": [258, 256], "get_n_layers": [2],
    }  # fmt: skip
    assert set(program.method_names()) == {"vision_encoder", "token_embedding", "text_decoder", "forward", *constants}
    for name, expected in constants.items():
        assert program.run_method(name, ()) == expected
    ids, positions = torch.tensor([[65, 66, 67]]), torch.arange(3)
    embeds = program.run_method("token_embedding", (ids,))[0]
    by_embeds = program.run_method("text_decoder", (embeds, positions))[0].clone()
    by_ids = program.run_method("forward", (ids, positions))[0]
    torch.testing.assert_close(by_ids, by_embeds)


OPTIONS = {
    "float32": PackOptions("1.6bit", "float32"),
    "bf16": PackOptions("2bit", "bf16"),
    "int8": PackOptions("2bit", "int8"),
    "int4": PackOptions("1.6bit", "int4", 32),
}


@pytest.fixture(
    scope="module",
    params=[
        # Every run exports the demo model with bf16, and the tiny one in all formats for ONNX Runtime (test_client_genai.py).
        pytest.param(options, marks=pytest.mark.long)
        for options in OPTIONS.values()
    ],
    ids=OPTIONS.keys(),
)
def stored(
    request: pytest.FixtureRequest, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PackOptions, list[ExportResult]]:
    """The tiny model on both targets, its weights stored in one of the formats."""
    folder = tmp_path_factory.mktemp("stored")
    return request.param, export(
        exported.parent / "model.pt", folder / "out", ["onnx", "executorch"], pack=request.param
    )


def test_every_format_verifies_on_both_targets(stored: tuple[PackOptions, list[ExportResult]]) -> None:
    pack, results = stored
    for result in results:
        assert result.verification is not None
        assert result.verification.greedy_tokens_compared > 0
        moe = Manifest.read(result.folder).moe
        assert (moe.packing, moe.shared_expert) == (pack.packing, pack.shared_expert)
        assert moe.shared_group_size == pack.shared_group_size


def experts_of(path: Path, pack: PackOptions) -> MoteForConditionalGeneration:
    model = load_checkpoint(path).model
    apply_passes(model.get_decoder(), [pack_ternary_experts(pack)])
    return model


def test_memory_is_that_of_the_files(stored: tuple[PackOptions, list[ExportResult]], exported: Path) -> None:
    pack, (in_onnx, in_executorch) = stored
    memory = in_onnx.memory
    assert memory == in_executorch.memory
    graph = onnx.load(in_onnx.folder / "model.onnx").graph
    sizes = {tensor.name: onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "TernaryMoE"]
    # x is no initializer. Inputs in the order of docs/operator.md.
    routed = sum(sizes[name] for node in nodes for name in (node.input[2], node.input[4]))
    rest = sum(sizes[name] for node in nodes for name in (node.input[1], node.input[3], node.input[5]))
    inside = sum(sizes[name] for node in nodes for name in node.input[6:] if name)
    outside = sum(tensor.dims == [64, 160] or tensor.dims == [160, 64] for tensor in graph.initializer) * 4 * 64 * 160
    assert (memory.packed, memory.scales_and_routers, memory.shared) == (routed, rest, inside + outside)
    assert (outside > 0) == (pack.shared_expert == "float32")
    parameters = 3 * 64 * 160 * 2
    assert memory.packed_bits == 8 * routed / (4 * parameters)
    assert memory.shared_bits == 8 * memory.shared / parameters
    program = (in_executorch.folder / "model.pte").read_bytes()
    for layer in experts_of(exported.parent / "model.pt", pack).get_decoder().layers:
        for name, buffer in layer.mlp.experts.named_buffers():
            assert buffer.contiguous().view(torch.uint8).numpy().tobytes() in program, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("3bit",), "packing is '3bit', expected '2bit', '1.6bit'"),
        (("2bit", "fp8"), "shared_expert is 'fp8', expected 'float32'"),
        (("2bit", "int4", 48), "shared_group_size is 48, expected 32, 64, 128, 256"),
    ],
)
def test_unknown_formats_are_refused(options: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(MoteError, match=message):
        PackOptions(*options)  # type: ignore[arg-type]


def test_rounding_of_the_shared_expert_is_reported(exported: Path) -> None:
    found = {name: expert_memory(experts_of(exported.parent / "model.pt", pack)) for name, pack in OPTIONS.items()}
    assert found["float32"].shared_rounding == 0.0
    assert 0.001 < found["bf16"].shared_rounding < 0.003  # the tiny model is float32
    assert found["bf16"].shared_rounding < found["int8"].shared_rounding < 0.02
    assert found["int8"].shared_rounding < found["int4"].shared_rounding < 0.2


def test_bf16_keeps_a_bfloat16_checkpoint(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    save_model_pt(tmp_path / "model.pt", checkpoint.model.bfloat16(), checkpoint.files)
    assert expert_memory(experts_of(tmp_path / "model.pt", OPTIONS["bf16"])).shared_rounding == 0.0


VARIANTS: dict[str, dict[str, Any]] = {
    "sizes that are no multiple of a tile": {"hidden_size": 40, "intermediate_size": 100},
    "top-2 of 3, normalized": {"num_experts": 3, "top_k": 2, "normalize_topk": True},
    "every other layer": {"layers": 3, "moe_layers": [0, 2], "num_experts": 2},
    "one expert": {"num_experts": 1, "layers": 1},
}


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_variants_verify_on_both_targets(variant: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(**variant, seed=3)
    save_model_pt(tmp_path / "model.pt", checkpoint.model, checkpoint.files)
    results = export(tmp_path / "model.pt", tmp_path / "out", ["onnx", "executorch"])
    assert [result.verification.greedy_tokens_compared > 0 for result in results if result.verification] == [True, True]


@pytest.mark.long
def test_a_decoder_with_bitnet_layers_verifies_on_both_targets(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(layers=1)
    attention = checkpoint.model.get_decoder().layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        linear = attention.get_submodule(name)
        ternary = AutoBitLinear(
            linear.in_features, linear.out_features, bias=False, online_quant=True, use_rms_norm=name == "o_proj"
        )
        attention.set_submodule(name, ternary.eval())
    results = export(checkpoint, tmp_path / "out", ["onnx", "executorch"], pack=OPTIONS["int4"])
    assert [result.verification is not None for result in results] == [True, True]
    nodes = onnx.load(tmp_path / "out" / "onnx" / "model.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "TernaryMatMul" for node in nodes) == 4
    assert (tmp_path / "out" / "executorch" / "model.pte").read_bytes().count(b"mote::ternary_matmul") >= 1


def test_memory_is_counted_in_bytes_and_by_the_formula(exported: Path) -> None:
    memory = Manifest.read(exported / "onnx").memory
    parameters = 3 * 64 * 160 * 2
    assert memory["full_precision"] == 4 * 2 * parameters
    assert memory["formula"] == 2 * parameters + 4 * parameters // 4
    assert memory["packed"] == 4 * parameters // 4  # multiples of the tile: exactly 2 bits
    assert memory["shared"] == 2 * parameters  # bf16
    assert (memory["packed_bits"], memory["shared_bits"]) == (2, 16)
    assert memory["total"] == memory["packed"] + memory["scales_and_routers"] + memory["shared"]


def swap_gate_and_up(model: MoteForConditionalGeneration) -> None:
    experts = model.mote_layers()[0].experts
    experts.gate_proj.data, experts.up_proj.data = experts.up_proj.data, experts.gate_proj.data


def drop_the_experts(model: MoteForConditionalGeneration) -> None:
    for layer in model.mote_layers():
        layer.experts.down_proj.data.zero_()


def choose_other_experts(model: MoteForConditionalGeneration) -> None:
    for layer in model.mote_layers():
        layer.router.weight.data.neg_()


@pytest.mark.parametrize("damage", [swap_gate_and_up, drop_the_experts, choose_other_experts])
def test_a_folder_that_computes_something_else_does_not_verify(
    exported: Path, damage: Callable[[MoteForConditionalGeneration], None]
) -> None:
    """The damage is in the reference, which comes to the same."""
    model = load_checkpoint(exported.parent / "model.pt").model
    damage(model)
    apply_passes(model, [pack_ternary_experts()])
    with pytest.raises(VerificationError, match=r"differs from torch|chose token"):
        verify_folder(exported / "onnx", model, [Sample("What?")], DEFAULT_RTOL)


def test_a_pass_says_why_it_refuses() -> None:
    model = tiny_checkpoint().model
    model.get_decoder().layers[1].self_attn.sliding_window = 16
    with pytest.raises(PassError, match=r"cannot rewrite layers\.1\.self_attn: it attends to a sliding window of 16"):
        apply_passes(model.get_decoder(), [GROUP_QUERY_ATTENTION])


@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_image_features_equal_torch(exported: Path, target: str) -> None:
    """Fails without the explicit-gelu-tanh pass: XNNPACK computes another GELU than the model asks for."""
    model = load_checkpoint(exported.parent / "model.pt").model
    backend = open_backend(Manifest.read(exported / target))
    pixel_values = np.random.default_rng(2).standard_normal((2, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        expected = torch.cat(model.get_image_features(torch.from_numpy(pixel_values)))
    found = backend.encode_image(pixel_values)
    backend.close()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
