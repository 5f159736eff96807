"""Weights pass through an export without being in memory: scratch files, stand-ins, estimates, and what a killed export leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_checkpoint
from torch import nn

from mote_export.atomic import PARTIAL, atomic_folder
from mote_export.budget import Budget, choose, estimate_bytes
from mote_export.checkpoint import Checkpoint, open_path, save_folder
from mote_export.cli.export import main
from mote_export.defaults import BUDGET_STEPS, PRESETS
from mote_export.exporter import rewrite
from mote_export.parallel import each
from mote_export.passes import PackOptions
from mote_export.report import expert_memory, stored_parts
from mote_export.scratch import SMALLEST, Scratch, byte_pieces, is_kept, release
from mote_export.weights import StackedSource, TensorInMemory, attach_sources, read, read_part, shared_copy
from mote_runtime.errors import MoteError

MIB = 1 << 20
LARGE = SMALLEST // 4  # float32 values that are kept in a file


def test_a_kept_tensor_is_a_map_with_the_same_values(tmp_path: Path) -> None:
    values = torch.arange(2 * LARGE).view(2, LARGE)
    with Scratch(tmp_path) as scratch:
        small, first, second = (scratch.keep(tensor) for tensor in (values[0, :8], values, values.bfloat16()))
    assert list(tmp_path.iterdir()) == []  # the file has no name
    assert not is_kept(small)
    for kept, expected in ((first, values), (second, values.bfloat16())):
        assert is_kept(kept)
        assert torch.equal(kept, expected)
        assert kept.data_ptr() % 4096 == 0
        release(kept)
        assert torch.equal(kept, expected)
        assert b"".join(byte_pieces(kept)) == expected.view(torch.uint8).numpy().tobytes()


def test_writing_to_a_map_does_not_reach_the_file(tmp_path: Path) -> None:
    with Scratch(tmp_path) as scratch:
        kept = scratch.keep(torch.zeros(LARGE))
        kept[0] = 1.0
        release(kept)
        assert kept[0] == 0.0


def test_tied_parameters_stay_tied_and_caches_stay_in_memory(tmp_path: Path) -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(LARGE // 8, 8), "head": nn.Linear(8, LARGE // 8, bias=False)})
    model["head"].weight = model["embedding"].weight
    model.register_buffer("cache", torch.zeros(LARGE), persistent=False)
    expected = model["head"].weight.detach().clone()
    with Scratch(tmp_path) as scratch:
        scratch.keep_module(model)
    assert model["head"].weight is model["embedding"].weight
    assert is_kept(model["head"].weight)
    assert torch.equal(model["head"].weight, expected)
    assert not is_kept(model.get_buffer("cache"))


def test_parameters_are_read_from_their_sources(tmp_path: Path) -> None:
    values = torch.randn(3, 4, 5).bfloat16()
    with torch.device("meta"):
        model = nn.ParameterDict({"stacked": nn.Parameter(torch.empty(3, 4, 5))})
    attach_sources(model, {"stacked": StackedSource([TensorInMemory(part) for part in values])})
    assert torch.equal(read(model["stacked"]), values)
    assert torch.equal(read_part(model["stacked"], 1), values[1])
    assert read(shared_copy(model)["stacked"]).dtype == torch.bfloat16
    with Scratch(tmp_path) as scratch:
        scratch.load_parameters(model)
    assert torch.equal(model["stacked"], values.float())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "name",
    [
        "language_model.layers.1.mlp.experts.up_proj",
        "language_model.layers.0.mlp.shared_expert.down_proj.weight",
        "language_model.layers.0.mlp.router.weight",
        "language_model.norm.weight",
        "language_model.layers.0.self_attn.v_proj.weight",
    ],
)
def test_values_that_are_not_finite_are_refused(name: str, value: float, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    with torch.no_grad():
        checkpoint.model.model.get_parameter(name).view(-1)[-1] = value
    save_folder(tmp_path / "model", checkpoint)
    model = open_path(tmp_path / "model").skeleton().model
    with Scratch(tmp_path) as scratch, pytest.raises(MoteError, match=r"contains? NaN or infinity"):
        rewrite(model, PackOptions(**PRESETS["mobile"]), scratch)


def test_items_are_done_in_order_and_errors_come_out() -> None:
    threads = torch.get_num_threads()
    assert each(lambda item: item * item, range(50)) == [item * item for item in range(50)]
    with pytest.raises(ZeroDivisionError):
        each(lambda item: 1 // item, [1, 0, 2])
    assert torch.get_num_threads() == threads


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_folder(folder, tiny_checkpoint(hidden_size=128, intermediate_size=256))
    return open_path(folder).skeleton()


@pytest.mark.parametrize("name", BUDGET_STEPS)
def test_an_estimate_is_what_an_export_holds(name: str, skeleton: Checkpoint, tmp_path: Path) -> None:
    pack = PackOptions(**BUDGET_STEPS[name])
    estimate = estimate_bytes(skeleton, pack, 128)
    model = shared_copy(skeleton.model)
    with Scratch(tmp_path) as scratch:
        rewrite(model, pack, scratch)
    stored = {part.part: part.bytes for part in stored_parts(model)}
    assert estimate.experts == expert_memory(model).total
    assert estimate.vision == pytest.approx(stored["vision"], rel=0.02)
    assert estimate.linear == pytest.approx(stored["linear"] + stored["lm_head"], rel=0.05)  # rows in blocks of 16
    assert estimate.embedding == pytest.approx(stored["embedding"], rel=0.02)


def test_a_budget_chooses_the_most_exact_that_fits(skeleton: Checkpoint) -> None:
    steps = {name: PackOptions(**options) for name, options in BUDGET_STEPS.items()}
    sizes = {name: estimate_bytes(skeleton, pack, 128).total for name, pack in steps.items()}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    for name, size in sizes.items():
        assert choose(skeleton, Budget(size, steps), 128)[0] == name
    with pytest.raises(MoteError, match=r"the smallest export of .* \(mobile with --packing 1.6bit\) takes"):
        choose(skeleton, Budget(min(sizes.values()) - 1, steps), 128)


def test_the_command_line_says_which_preset_a_budget_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(tmp_path / "model", tiny_checkpoint(layers=1))
    arguments = [str(tmp_path / "model"), "--target", "onnx", "--no-verify", "--json", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--memory-budget", "1GB"]) == 0
    printed = capsys.readouterr()
    assert "within the memory budget fits lossless" in printed.err
    assert json.loads(printed.out)[0]["target"] == "onnx"
    quantization = json.loads((tmp_path / "out" / "mote.json").read_text())["quantization"]
    assert {name: quantization[name] for name in ("linear", "embedding", "vision")} == dict.fromkeys(
        ("linear", "embedding", "vision"), "bf16"
    )
    assert main([*arguments[:-1], str(tmp_path / "small"), "--memory-budget", "10KB"]) == 1
    assert "allow more, or shorten the cache" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_too_little_room_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_folder(tmp_path / "model", tiny_checkpoint())
    needed = estimate_bytes(open_path(tmp_path / "model").skeleton(), PackOptions(), 128).on_disk
    for free, code in ((2 * needed - 1, 1), (2 * needed, 0)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        arguments = [str(tmp_path / "model"), "--target", "onnx", "--no-verify", "-o", str(tmp_path / "sub" / "out")]
        assert main([*arguments, "--context-length", "128"]) == code
        assert (tmp_path / "sub").exists() == (code == 0)
    assert "out would take 0.00 GB, but its disk has 0.00 GB left: choose another with -o" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--memory-budget", "3 parsecs"], "is not a size such as 3GB"),
        (["--memory-budget", "0GB"], "is not a size such as 3GB"),
        (["--memory-budget", "3GB", "--linear", "int4"], "--memory-budget chooses --linear"),
        (["--memory-budget", "3GB", "--preset", "mobile"], "not allowed with argument"),
        (["--preset", "mobile", "--shared-expert", "int8", "--shared-group-size", "32"], "int8 has no groups"),
    ],
)
def test_options_that_contradict_each_other(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "model.pt"), *options])
    assert sentence in capsys.readouterr().err


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from mote_export.atomic import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half'); print(folder, flush=True); time.sleep(60)"
    )
    output = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", program, str(output)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        long_ago = time.time() - 3600
        os.utime(left, (long_ago, long_ago))
        with atomic_folder(output):
            assert (left / "half").exists()  # somebody writes it
        output.rmdir()
        process.send_signal(signal.SIGKILL)
    os.utime(left, (long_ago, long_ago))
    mine = tmp_path / f".out.young{PARTIAL}"
    mine.mkdir()
    with atomic_folder(output):
        assert not left.exists()
        assert mine.exists()  # it may be about to be locked


PROGRAM = """
import sys, threading, time
from pathlib import Path
from mote_export.checkpoint import open_path
from mote_export.exporter import rewrite
from mote_export.passes import PackOptions
from mote_export.scratch import Scratch

def anonymous():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024

peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

warm_up, checkpoint, folder = map(Path, sys.argv[1:])
options = PackOptions(shared_expert="int4", linear="int4", embedding="int4", vision="int8")
for path in (warm_up, checkpoint):
    model = open_path(path).skeleton().model
    before = peak = anonymous()
    if path == warm_up:
        threading.Thread(target=watch, daemon=True).start()
    with Scratch(folder) as scratch:
        rewrite(model, options, scratch)
print(peak - before)
"""


def test_memory_is_that_of_a_module_and_not_of_a_model(tmp_path: Path) -> None:
    """Two cores hold a few matrices of 4 MiB in float32, and the packed layer; more layers do not change that."""
    save_folder(tmp_path / "warm-up", tiny_checkpoint())
    large = tiny_checkpoint(layers=5, hidden_size=512, intermediate_size=2048)
    save_folder(tmp_path / "large", replace(large, model=large.model.bfloat16()))
    size = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))
    assert size > 150 * MIB  # in bfloat16
    del large
    command = [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in ("warm-up", "large")), str(tmp_path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0 < grown < 120 * MIB
