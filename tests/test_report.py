"""mote-report: the paper's figures from sizes alone, an export's bytes to the byte, and what is no configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_checkpoint

from mote_export.checkpoint import save_folder, save_model_pt
from mote_export.cli.report import main
from mote_export.memory import DecoderSizes, exported_bytes, memory_table
from mote_export.passes import PackOptions, apply_passes
from mote_export.passes.pack_ternary_experts import pack_ternary_experts
from mote_export.report import expert_memory

# Qwen2.5's: hidden, intermediate, layers, heads, heads of keys and values.
SHAPES = {
    "0.5B": (896, 4864, 24, 14, 2),
    "1.5B": (1536, 8960, 28, 12, 2),
    "3B": (2048, 11008, 36, 16, 2),
}


def config(shape: str) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {"model_type": "qwen2", **dict(zip(names, SHAPES[shape], strict=True))}


def gib(shape: str, num_experts: int, column: str = "formula") -> dict[str, float]:
    sizes = DecoderSizes.from_config(config(shape), "config.json")
    return {row.name: round(getattr(row, column) / 2**30, 2) for row in memory_table(sizes, num_experts, 128)}


@pytest.mark.parametrize(
    ("shape", "full", "bf16", "int8", "int4"),
    [("0.5B", 2.34, 0.88, 0.58, 0.44), ("1.5B", 8.61, 3.23, 2.15, 1.61), ("3B", 18.14, 6.80, 4.54, 3.40)],
)
def test_expert_memory_is_the_papers(shape: str, full: float, bf16: float, int8: float, int4: float) -> None:
    found = gib(shape, 4)
    assert found["MoE-LLaVA, BF16"] == full
    assert [found[f"MoTE, {name} + 2bit"] for name in ("BF16", "INT8", "INT4")] == [bf16, int8, int4]
    assert found["MoE-LLaVA, 3 bits"] == int4, "the paper's equal-memory point"


def test_non_embedding_memory_is_the_papers() -> None:
    """3B, the dense model and 16 BF16 experts: 5.2 and 73.2 GB."""
    found = gib("3B", 16, "decoder")
    assert (round(found["dense, BF16"], 1), round(found["MoE-LLaVA, BF16"], 1)) == (5.2, 73.2)


@pytest.mark.parametrize("packing", ["2bit", "1.6bit"])
@pytest.mark.parametrize(
    ("shared", "group_size"), [("bf16", 128), ("int8", 128), ("int4", 32), ("int4", 64), ("int4", 128)]
)
@pytest.mark.parametrize("widths", [(64, 160), (40, 100), (16, 16)])
def test_exported_bytes_are_those_of_an_export(
    packing: str, shared: str, group_size: int, widths: tuple[int, int]
) -> None:
    hidden, intermediate = widths
    checkpoint = tiny_checkpoint(hidden_size=hidden, intermediate_size=intermediate, num_experts=3)
    sizes = DecoderSizes.from_config(checkpoint.model.config.to_dict(), "it")
    apply_passes(checkpoint.model, [pack_ternary_experts(PackOptions(packing, shared, group_size))])
    assert exported_bytes(sizes, 3, packing, shared, group_size) == expert_memory(checkpoint.model).total


def test_exports_stay_within_a_percent_of_the_formula() -> None:
    """At real sizes padding and routers are little. INT4's scales, which the formula leaves out, are 16 bits for 128 weights."""
    for shape in SHAPES:
        sizes = DecoderSizes.from_config(config(shape), "config.json")
        scales = round(sizes.expert_parameters / 8 * 16 / 128)
        for row in memory_table(sizes, 4, 128):
            if row.exported is not None:
                formula = row.formula + (scales if "INT4" in row.name else 0)
                assert 0 < row.exported / formula - 1 < 0.01, (shape, row.name)


def test_other_layers_stay_dense() -> None:
    half = DecoderSizes.from_config(config("3B"), "config.json", layers=18)
    whole = DecoderSizes.from_config(config("3B"), "config.json")
    assert half.expert_parameters * 2 == whole.expert_parameters
    assert half.expert_parameters + half.other_parameters == whole.expert_parameters + whole.other_parameters
    llava = {**config("3B"), "moe": {"moe_layers_idx": [0, 2, 4], "num_experts": [4, 4, 4]}}
    assert DecoderSizes.from_config(llava, "config.json").layers == 3


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("3B")))
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "4 experts in 36 of 36 layers, 2048 x 11008; GiB" in shown
    assert "18.14" in shown
    assert main([str(tmp_path / "config.json"), "--num-experts", "16", "--layers", "every-other", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_experts"], found["sizes"]["layers"]) == (16, 18)


def test_a_checkpoint_has_its_own_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint(num_experts=3, layers=3, moe_layers=[0, 2])
    save_model_pt(tmp_path / "model.pt", checkpoint.model, checkpoint.files)
    save_folder(tmp_path / "folder", checkpoint)
    for path in (tmp_path / "model.pt", tmp_path / "folder"):
        assert main([str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["num_experts"], found["sizes"]["layers"], found["sizes"]["num_hidden_layers"]) == (3, 2, 3)


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ("{", [], "cannot be read as a model's configuration"),
        ("[1]", [], "holds a JSON list"),
        ("{}", [], "hidden_size is None, expected an integer"),
        ({"hidden_size": True}, [], "hidden_size is True"),
        ({"intermediate_size": 1 << 30}, [], "intermediate_size is 1073741824, expected an integer from 1 to 16777216"),
        ({"num_hidden_layers": 10**9}, [], "num_hidden_layers is 1000000000"),
        ({"text_config": 3}, [], "text_config is 3"),
        ({"moe": 3}, [], "moe names no layers"),
        ({"moe": {"layers": [0] * 99}}, [], "has 36 layers; expected 1 to 36 with experts, not 99"),
        ({}, ["--layers", "37"], "not 37"),
        ({}, ["--layers", "0"], "not 0"),
        ({}, ["--layers", "odd"], "--layers is 'odd', expected all, every-other or a number"),
        ({}, ["--num-experts", "300"], "the number of experts is 300, expected 1 to 256"),
    ],
)
def test_what_is_no_configuration_is_a_sentence(
    content: Any, options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(config("3B") | content))
    assert main([str(path), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_a_file_that_is_no_checkpoint_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 nothing")
    for name in ("model.pt", "absent", "absent.json"):
        assert main([str(tmp_path / name)]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("mote-report: ")
        assert captured.err.count("\n") == 1
