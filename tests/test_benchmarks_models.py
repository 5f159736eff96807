"""The arithmetic of the benchmark of whole models, its random checkpoints, and its tables; the models themselves take hours."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.models import children, gguf, report
from benchmarks.models.__main__ import check_room, is_finished
from benchmarks.models.bars import Verdict, anonymous_beyond, limit_share, verdicts
from benchmarks.models.checkpoints import RandomTensor, random_tensors, skeleton_of, write_checkpoint
from benchmarks.models.export_child import is_random, open_random
from benchmarks.models.manifests import bytes_per_token, graph_bytes_per_token, planned_bytes, read_manifest
from benchmarks.models.shapes import CUT, EXPLICIT, PRESETS, SHAPES, Shape, presets_of

from mote_export.checkpoint import load_checkpoint
from mote_runtime.errors import MoteError

TINY = Shape(
    "tiny", 64, 160, layers=2, heads=4, vocab=300, picture=28, vision_layers=2, vision_hidden=32, vision_intermediate=64,
    vision_heads=2,
)  # fmt: skip
DEMO = Shape("demo", 128, 384, layers=4, heads=4, vocab=416)
MB = 10**6


def test_a_checkpoint_reads_back_as_it_was_made(tmp_path: Path) -> None:
    size = write_checkpoint(TINY, tmp_path / "tiny", max_shard_bytes=200_000)
    assert len(list((tmp_path / "tiny").glob("model-*.safetensors"))) > 1
    state = load_checkpoint(tmp_path / "tiny").model.state_dict()
    made = random_tensors(skeleton_of(TINY))
    assert size == sum(2 * state[name].numel() for name in made)
    assert all(torch.equal(state[name], tensor.read().float()) for name, tensor in made.items())
    assert torch.equal(state["lm_head.weight"], state["model.language_model.embed_tokens.weight"])


def test_random_tensors_are_the_same_each_time_and_differ_from_each_other() -> None:
    experts = RandomTensor("model.layers.0.mlp.experts.gate_proj", (4, 160, 64))
    assert torch.equal(experts.read()[2], experts.part(2))
    assert not torch.equal(experts.part(0), experts.part(1))
    assert not torch.equal(experts.part(0), RandomTensor("another", (4, 160, 64)).part(0))
    assert experts.read().float().std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert torch.equal(RandomTensor("norm.weight", (8,)).read(), torch.ones(8, dtype=torch.bfloat16))


def test_a_shape_opens_as_a_checkpoint_that_is_on_no_disk() -> None:
    path = Path("3B-16.shape")
    assert is_random(path)
    assert not is_random(Path("nothing.shape"))
    opened = open_random(path)
    experts = {name: source for name, source in opened.tensors.items() if ".experts." in name}
    assert {source.shape[0] for source in experts.values()} == {16}
    assert opened.config.moe_settings.num_experts == 16


@pytest.mark.parametrize(("name", "billions"), [("0.5B", 0.494), ("1.5B", 1.544), ("3B", 3.086)])
def test_shapes_have_the_parameters_of_their_models(name: str, billions: float) -> None:
    shape = SHAPES[name]
    dense = shape.ffn_parameters + shape.attention_parameters + shape.vocab * shape.hidden
    assert dense / 1e9 == pytest.approx(billions, rel=0.002)  # without norms and biases


def manifest(packed: int, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "moe": {"top_k": 1, "num_experts": 4},
        "memory": {"packed": packed, "scales_and_routers": 30, "shared": 500},
        "quantization": {"parts": parts},
    }


def test_a_token_reads_one_expert_the_shared_one_and_what_every_token_needs() -> None:
    linear = {"part": "linear", "parameters": 1000, "bytes": 516}
    found = bytes_per_token(manifest(4000, [linear]), TINY)
    assert found["experts"] == 1000 + 30 + 500
    assert found["attention"] == pytest.approx(TINY.attention_parameters * 0.516)
    assert found["head"] == 4 * 300 * 64  # nothing said of it: float32


def test_the_graph_says_the_same_as_the_manifest(demo_export: Path) -> None:
    folder = demo_export / "onnx"
    by_part = bytes_per_token(read_manifest(folder), DEMO)
    assert planned_bytes(demo_export / "executorch")["text_decoder"] > 0
    # Norms and biases, which the parts leave out, count for more in so small a model.
    assert graph_bytes_per_token(folder) == pytest.approx(sum(by_part.values()), rel=0.01)


def row(preset: str, target: str, shape: str = "3B", step: float = 0.05, **changes: Any) -> dict[str, Any]:
    memory = {when: {"anonymous": 100 * MB, "file": 50 * MB} for when in ("before", "opened", "first_token", "steady")}
    parameters = SHAPES[shape].ffn_parameters
    export = {
        "seconds": 300.0, "peak": 2 << 30, "anonymous": 1 << 30, "file": 1 << 30, "random_source": False,
        "files": {"model.pte": 3 * 10**9}, "expert_parameters": parameters,
        "experts": {"packed": parameters, "scales_and_routers": 1000, "shared": parameters // 2},
    }  # fmt: skip
    run = {
        "open_seconds": 0.2, "first_text_token_seconds": 0.1, "memory": memory, "peak_anonymous": 1, "peak_file": 1,
        "first_token": 5.0, "image": 1.0, "prefill": 4.0, "prefill_tokens_s": 150.0, "short_first_token": 0.5,
        "prompt_tokens": 608, "image_tokens": 576, "step_seconds": step, "dram_bytes_s": [9e9, 11e9],
        "kv_bytes": 10 * MB, "kv_bytes_first_token": 1000,
    }  # fmt: skip
    limited = {
        "file_bytes": 3 * 10**9, "limit": 2 * 10**9, "peak": 10**9, "seconds": 60.0, "free_seconds": 10.0, "tokens": 12,
        "same": True,
    }  # fmt: skip
    found = {"shape": shape, "preset": preset, "target": target, "commit": "abc", "bytes_per_token": 4e8}
    return found | {"export": export, "run": run, "limited": limited} | changes


def verdict(rows: list[dict[str, Any]], start: str) -> Verdict:
    return next(one for one in verdicts(rows, 2e10) if one.bar.startswith(start))


def test_decoding_is_held_to_what_dram_gave_beside_it() -> None:
    found = row("mobile", "onnx", "1.5B", step=0.05)
    assert limit_share(found) == pytest.approx(4e8 / 10e9 / 0.05)
    assert verdict([found], "decode of 1.5B, mobile, onnx").reached
    assert verdict([row("mobile", "onnx", "1.5B", step=0.1)], "decode of 1.5B, mobile, onnx").reached is False
    assert "40% at the best" in verdict([found], "decode of 1.5B, mobile, onnx").found
    impossible = row("mobile", "onnx", "1.5B", step=0.03)  # DRAM was slow when it was measured, not when it was needed
    assert verdict([impossible], "decode of 1.5B, mobile, onnx").reached is None
    cut = [row(name, "onnx", CUT, step=step) for name, step in (("mobile", 0.05), ("portable", 0.06))]
    ratios = [one for one in verdicts([found, *cut], 2e10) if "--portable" in one.required and one.reached is not None]
    assert [one.found[:5] for one in ratios] == ["1.20x", "1.00x"]
    assert [one.reached for one in ratios] == [True, False]


def test_bars_tell_a_miss_from_what_was_not_measured() -> None:
    found = row("mobile", "onnx")
    assert verdict([found], "export of 3B, mobile, onnx").reached
    slow = row("mobile", "onnx", export=found["export"] | {"seconds": 601.0})
    assert verdict([slow], "export of 3B, mobile, onnx").reached is False
    failed = row("mobile", "onnx", export={"failure": "exit status 1: no room"})
    assert verdict([failed], "export of 3B, mobile, onnx").reached is None
    assert "no room" in verdict([failed], "export of 3B, mobile, onnx").found
    assert verdict([found], "export of 3B, mobile, executorch").reached is None
    assert verdict([found], "bytes of the experts, mobile").reached
    assert verdict([found | {"preset": "balanced"}], "bytes of the experts, balanced").reached is False
    other = found["limited"] | {"same": False}
    assert verdict([row("mobile", "onnx", limited=other)], "3B, mobile, onnx, in 60 %").reached is False


def test_memory_beyond_the_cache_is_what_opening_and_a_token_added() -> None:
    run = row("mobile", "onnx")["run"]
    run["memory"]["first_token"] = {"anonymous": 150 * MB, "file": 0}
    assert anonymous_beyond(run) == 50 * MB - 1000
    run["planned_bytes"] = {"token_embedding": 10 * MB, "text_decoder": 30 * MB, "vision_encoder": 90 * MB}
    assert anonymous_beyond(run) == 10 * MB
    run["planned_bytes"]["text_decoder"] = 60 * MB  # more than became resident: it is not touched
    assert anonymous_beyond(run) == 50 * MB - 1000


def test_tables_hold_every_row_and_what_failed(tmp_path: Path) -> None:
    failed = row("mobile", "executorch", run={"failure": "exit status 9: killed"})
    small = row("mobile", "onnx", "0.5B") | {"shape": "112px"}
    run = {
        "machine": {
            "cpu": "any", "cores": 2, "memory_bytes": 8 << 30, "onnxruntime": "1", "executorch": "1", "date": "today",
            "minutes": 1.0, "cores_busy_elsewhere": 0.5,
        },
        "dram_bytes_s": 2e10,
        "rows": [row("mobile", "onnx"), failed, small],
        "llama_cpp": {"1.5B": {"failure": "npm is not installed"}},
    }  # fmt: skip
    text = report.render(run, tmp_path)
    assert "| 3B | mobile | onnx | 5.00 | 1.00 | 1.50 |" in text  # 0.5 s and the small tower's 1 s
    assert "exit status 9: killed" in text
    assert "npm is not installed" in text
    assert "disturbed" in text
    assert (tmp_path / report.PICTURE).stat().st_size > 0


def test_gguf_lies_where_its_head_says(tmp_path: Path) -> None:
    shape = replace(TINY, hidden=256, intermediate=512)
    path = tmp_path / "model.gguf"
    size = gguf.write_gguf(shape, path)
    content = path.read_bytes()
    tensors = list(gguf.tensors_of(shape))
    assert content[:4] == gguf.MAGIC
    assert struct.unpack("<IQ", content[4:16]) == (gguf.VERSION, len(tensors))
    last = content.index(tensors[-1].name.encode()) + len(tensors[-1].name)
    dimensions, first, second, number, offset = struct.unpack("<IQQIQ", content[last : last + 32])
    assert (dimensions, (first, second), number) == (2, tensors[-1].sizes, gguf.Q4_0.number)
    data = last + 32 + -(last + 32) % gguf.ALIGNMENT
    assert data + offset + tensors[-1].num_bytes == size == len(content)


def test_a_dense_token_reads_four_and_a_half_bits_a_weight_and_a_head_of_six() -> None:
    shape = SHAPES["1.5B"]
    expected = (shape.ffn_parameters + shape.attention_parameters) * 4.5 / 8 + shape.vocab * shape.hidden * 6.5625 / 8
    assert gguf.bytes_per_token(shape) == pytest.approx(expected, rel=0.002)


def test_a_child_is_watched_and_its_failure_told(tmp_path: Path) -> None:
    program = "import time; held = bytearray(b'x' * (80 << 20)); time.sleep(0.2); print('done')"
    run = children.run([sys.executable, "-c", program], tmp_path / "child.log")
    assert run.output == "done\n"
    assert not run.failure
    assert 80 << 20 <= run.anonymous <= 200 << 20
    assert run.peak >= run.anonymous
    failed = children.run([sys.executable, "-c", "raise SystemExit('no such model')"], tmp_path / "child.log")
    assert failed.failure == "exit status 1: no such model"


def test_rows_are_done_once_unless_they_failed(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    assert not is_finished(path)
    path.write_text(json.dumps({"export": {"failure": "no room"}}))
    assert not is_finished(path)
    path.write_text(json.dumps({"export": {}, "run": {}, "limited": {"failure": "no control group"}}))
    assert is_finished(path)


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    huge = replace(SHAPES["3B"], layers=10**6)
    with pytest.raises(MoteError, match="choose another with --folder"):
        check_room(tmp_path, [(huge, PRESETS["mobile"], "onnx")])


def test_presets_are_measured_where_they_say_something() -> None:
    names = list(PRESETS)
    assert [preset.name for preset in presets_of(SHAPES["3B"], names)] == ["mobile", "balanced", "lossless"]
    assert [preset.name for preset in presets_of(SHAPES[CUT], names)] == ["mobile", "portable"]
    assert [preset.name for preset in presets_of(SHAPES["3B-16"], names)] == ["mobile"]
    assert "mobile-1.6bit" in [preset.name for preset in presets_of(SHAPES["0.5B"], names)]
    assert all(preset.options[1] in EXPLICIT for preset in PRESETS.values())
