"""mote-run as a user meets it: its output, its sentences and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx_export as tiny
from PIL import Image

import mote_runtime
from mote_runtime.cli.run import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).save(path)
    return path


def start(*arguments: str | Path, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mote_runtime.cli.run", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]


def test_answers_on_stdout_and_nothing_else(folder: Path, picture: Path) -> None:
    process = start(folder, "--image", picture, "--prompt", "hi", "--max-new-tokens", "5")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    with mote_runtime.load(folder) as pipeline:
        assert out == pipeline.answer(picture, "hi", max_new_tokens=5).text + "\n"


def test_json_is_one_object(folder: Path, picture: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [
        str(folder),
        "--image",
        str(picture),
        "--image",
        str(picture),
        "--prompt",
        "hi",
        "--json",
        "--seed",
        "3",
    ]
    assert main([*arguments, "--temperature", "2", "--top-p", "0.9", "--max-new-tokens", "7", "--threads", "1"]) == 0
    captured = capfd.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert report["runtime"] == "onnxruntime"
    assert report["model"] == "tiny"
    assert report["finish_reason"] in {"stop", "length"}
    assert report["timings"]["generated_tokens"] == len(report["token_ids"])
    assert set(report) == {"answer", "token_ids", "finish_reason", "model", "runtime", "timings"}


def test_verbose_adds_timings_on_stderr(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--prompt", "hi", "--max-new-tokens", "2", "-v"]) == 0
    assert "answer of 2 tokens at" in capfd.readouterr().err


def test_what_c_prints_to_stdout_is_no_part_of_the_answer(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import ctypes, sys; from mote_runtime.cli import run\n"
        "with run.reserved_stdout() as stdout:\n"
        "    ctypes.CDLL(None).printf(b'from C\\n'); print('from Python'); stdout.write('answer\\n')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "answer\nafter\n"
    assert sorted(done.stderr.split("\n")) == ["", "from C", "from Python"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{none}"], "does not exist; expected a folder written by mote-export"),
        (["{empty}"], "has no mote.json"),
        (["{folder}", "--image", "{none}"], "image {none} does not exist"),
        (["{folder}", "--image", "{text}"], "is no image that can be read"),
        (["{folder}", "--runtime", "executorch"], "was exported for onnxruntime, not for executorch"),
        (["{folder}", "--prompt", "{long}"], "the prompt is 319 tokens long, but the model's context holds 96"),
        (["{folder}", "--prompt", "\udcff"], "not valid Unicode"),
    ],
)
def test_failures_are_one_sentence(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no image")
    places = {name: str(tmp_path / name) for name in ("none", "empty", "text")} | {
        "folder": str(folder),
        "long": "x" * 300,
    }
    assert main(["--prompt", "hi", *(argument.format(**places) for argument in arguments)]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mote-run: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith(".\n")
    assert expected.format(**places) in captured.err


def test_changed_folders_fail_and_no_verify_skips_the_hashes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny.write_export(tmp_path)
    ask = [str(folder), "--prompt", "hi", "--max-new-tokens", "2"]
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace(": ", " :", 1))
    assert main(ask) == 1
    assert "tokenizer.json" in capfd.readouterr().err
    assert main([*ask, "--no-verify"]) == 0
    os.truncate(folder / "model.onnx.data", 100)
    assert main([*ask, "--no-verify"]) == 1
    assert "model.onnx.data in" in capfd.readouterr().err


def test_verbose_shows_the_traceback_of_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--prompt", "hi", "-v"]) == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "required: --prompt, DIR"),
        (["d", "--prompt", "hi", "--max-new-tokens", "0"], "--max-new-tokens: '0' is not a whole number of at least 1"),
        (["d", "--prompt", "hi", "--threads", "two"], "--threads: 'two' is not a whole number of at least 1"),
        (["d", "--prompt", "hi", "--runtime", "tensorrt"], "invalid choice: 'tensorrt'"),
        (["d", "--prompt", "hi", "--temperature", "-1"], "temperature is -1.0"),
        (["d", "--prompt", "hi", "--top-p", "0.5"], "no effect at temperature 0"),
        (["d", "--prompt", "hi", "--prom", "x"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_2(capfd: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert expected in capfd.readouterr().err


def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    for option, expected in (("--help", "examples:"), ("--version", mote_runtime.__version__)):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
        assert expected in capfd.readouterr().out


def test_interrupt_is_130_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    big = tmp_path / "folder"
    tiny.write_export(big)
    padding = big / "padding.bin"
    with padding.open("wb") as stream:
        stream.truncate(64 << 30)  # sparse: takes no room, and longer to hash than anyone waits
    (big / "mote.json").write_text(json.dumps(_with_padding(big, 64 << 30)))
    process = start(big, "--prompt", "hi", "--verify")
    _wait_until_reading(process.pid, padding)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


def _with_padding(folder: Path, size: int) -> dict[str, object]:
    document: dict[str, dict[str, object]] = json.loads((folder / "mote.json").read_text())
    document["files"]["padding.bin"] = {"bytes": size, "sha256": "0" * 64}
    return dict(document)


def _wait_until_reading(pid: int, path: Path) -> None:
    descriptors = Path(f"/proc/{pid}/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc to see when the program has started to work")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(link.is_symlink() and link.readlink() == path for link in descriptors.iterdir()):
            return
        time.sleep(0.01)
    raise AssertionError("the program did not begin to read")


def test_a_reader_that_leaves_is_no_traceback(folder: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        process = start(folder, "--prompt", "hi", stdout=write_end)
    finally:
        os.close(write_end)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")
