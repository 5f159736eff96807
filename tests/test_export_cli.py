"""mote-export on bad input: one clear sentence, the right exit code, no output and no change."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import tiny_checkpoint

from mote_export.checkpoint import save_model_pt
from mote_export.cli.export import main

COMMAND = str(Path(sys.executable).with_name("mote-export"))
ROUTER = "model.language_model.layers.0.mlp.router.weight"
FILE_LIMIT = 200_000  # bytes; less than model.onnx.data


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    checkpoint = tiny_checkpoint()
    save_model_pt(path, checkpoint.model, checkpoint.files)
    return path


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return (os.system, ("touch /tmp/mote-was-here",))


def missing(good: Path, path: Path) -> None:
    path.unlink(missing_ok=True)


def not_a_checkpoint(good: Path, path: Path) -> None:
    path.write_text("just text")


def pickle_with_code(good: Path, path: Path) -> None:
    torch.save({"config": Malicious()}, path)


def truncated(good: Path, path: Path) -> None:
    path.write_bytes(good.read_bytes()[:50_000])


def edited(good: Path, path: Path, edit: Callable[[dict], None]) -> None:
    content = torch.load(good, weights_only=True)
    edit(content)
    torch.save(content, path)


def wrong_shape(good: Path, path: Path) -> None:
    edited(good, path, lambda content: content["state_dict"].update({ROUTER: torch.zeros(4, 63)}))


def nan_weights(good: Path, path: Path) -> None:
    edited(good, path, lambda content: content["state_dict"][ROUTER].fill_(float("nan")))


def no_mote_layer(good: Path, path: Path) -> None:
    edited(good, path, lambda content: content["config"].update(moe=None))


def no_image_pad(good: Path, path: Path) -> None:
    def edit(content: dict) -> None:
        content["files"]["tokenizer.json"] = content["files"]["tokenizer.json"].replace("image_pad", "image_bad")

    edited(good, path, edit)


def edited_processor(good: Path, path: Path, **changes: object) -> None:
    def edit(content: dict) -> None:
        name = "preprocessor_config.json"
        content["files"][name] = json.dumps({**json.loads(content["files"][name]), **changes})

    edited(good, path, edit)


def no_normalization(good: Path, path: Path) -> None:
    edited_processor(good, path, do_normalize=False)


def zero_std(good: Path, path: Path) -> None:
    edited_processor(good, path, image_std=[0, 0, 0])


BAD_CHECKPOINTS = {
    missing: "does not exist",
    not_a_checkpoint: "is not a checkpoint that mote reads",
    pickle_with_code: "perhaps code, and was not loaded",
    truncated: "truncated or damaged",
    wrong_shape: "has shape [4, 63], the configuration wants [4, 64]",
    nan_weights: "contains NaN or infinity",
    no_mote_layer: "has no MoTE layer",
    no_image_pad: "has no token <|image_pad|>",
    no_normalization: "switches do_normalize off",
    zero_std: "the latter two positive",
}


@pytest.mark.parametrize(
    ("damage", "message"), BAD_CHECKPOINTS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_bad_checkpoint(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path, Path], None],
    message: str,
) -> None:
    path = tmp_path / "bad.pt"
    damage(good, path)
    before = path.read_bytes() if path.exists() else None
    assert main([str(path), "-o", str(tmp_path / "deep" / "out")]) == 1
    assert_one_sentence(capsys.readouterr(), message)
    assert (path.read_bytes() if path.exists() else None) == before
    assert {file.name for file in tmp_path.iterdir()} <= {"bad.pt"}
    assert not Path("/tmp/mote-was-here").exists()


def assert_one_sentence(captured: tuple[str, str], message: str) -> None:
    out, err = captured
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("mote-export")]
    assert len(lines) == 1, err
    assert message in lines[0]
    assert "Traceback" not in err


def test_output_not_empty(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    assert main([str(good), "-o", str(tmp_path)]) == 1
    assert_one_sentence(capsys.readouterr(), "is not empty")
    assert [file.name for file in tmp_path.iterdir()] == ["keep.txt"]
    assert main([str(good), "-o", str(tmp_path / "keep.txt")]) == 1
    assert_one_sentence(capsys.readouterr(), "is a file")
    assert (tmp_path / "keep.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--target", "tflite"],
        ["--opset", "9"],
        ["--context-length", "0"],
        ["--context-length", "x"],
        ["--rtol", "nan"],
        ["--no-verify", "--sample", "a.png", "b"],
        ["--packing", "3bit"],
        ["--shared-expert", "int2"],
        ["--shared-expert", "int4", "--shared-group-size", "48"],
        ["--shared-group-size", "32"],
        ["--nonsense"],
    ],
)
def test_usage_errors(good: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(good), *arguments])
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_group_size_without_groups_is_refused(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(good), "--shared-expert", "int8", "--shared-group-size", "64"])
    assert "--shared-group-size is for --shared-expert int4; int8 has no groups" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "bits", "sentence"),
    [
        ([], "(16.00 bits a weight)", "rounds the checkpoint's weights by 0.1"),
        (["--shared-expert", "float32"], "(32.00 bits a weight)", "keep every weight of the checkpoint"),
        pytest.param(
            ["--shared-expert", "int8"],
            "(8.20 bits a weight)",
            "rounds the checkpoint's weights by 0.",
            marks=pytest.mark.long,
        ),
        pytest.param(["--shared-expert", "int4"], "(4.", "--shared-expert float32 keeps them", marks=pytest.mark.long),
        (["--packing", "1.6bit"], "packed (1.", "rounds"),
    ],
)
def test_report_says_how_weights_are_stored(
    good: Path, tmp_path: Path, arguments: list[str], bits: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(good), "-o", str(tmp_path / "out"), "--target", "onnx", "--no-verify", *arguments]) == 0
    report = " ".join(capsys.readouterr().out.split())
    assert bits in report
    assert sentence in report


def test_context_longer_than_the_model(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(good), "-o", str(tmp_path / "out"), "--context-length", "4096"]) == 1
    assert_one_sentence(
        capsys.readouterr(), "the context length is 4096, expected 48 (a picture and a short question) to 128"
    )
    assert list(tmp_path.iterdir()) == []


def test_difference_beyond_the_tolerance(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No two runtimes agree to the last bit in the stock layers, so a tolerance of zero must fail."""
    assert main([str(good), "-o", str(tmp_path / "a" / "out"), "--target", "onnx", "--rtol", "0"]) == 1
    assert_one_sentence(capsys.readouterr(), "more than the tolerance of 0")
    assert list(tmp_path.iterdir()) == []


def test_sample_that_is_no_image(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--target", "onnx", "--sample", str(good), "What?"]
    assert main([str(good), "-o", str(tmp_path / "out"), *arguments]) == 1
    assert_one_sentence(capsys.readouterr(), "is no image")
    assert list(tmp_path.iterdir()) == []


def test_file_too_large_for_the_disk(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A write that the system refuses half-way; the limit on the size of a file stands in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, hard))
    try:
        code = main([str(good), "-o", str(tmp_path / "sub" / "out"), "--target", "onnx", "--no-verify"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    assert_one_sentence(capsys.readouterr(), "cannot read or write")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long  # a process of its own
def test_too_small_a_disk(good: Path, tmp_path: Path) -> None:
    """A real file system with no room, in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    script = (
        'mount -t tmpfs -o size=300k tmpfs "$1" && "$2" "$3" -o "$1/out" --target onnx; code=$?; ls -A "$1"; exit $code'
    )
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path, COMMAND, good], capture_output=True, text=True
    )
    if "unshare" in run.stderr or "mount:" in run.stderr:
        pytest.skip(f"no mount namespace here: {run.stderr.strip()}")
    assert run.returncode == 1
    assert_one_sentence((run.stdout, run.stderr), "its disk has 0.00 GB left")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_interrupt(good: Path, tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "sub" / "out"
    with subprocess.Popen(
        [COMMAND, good, "-o", output], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "sub").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        captured = process.communicate(timeout=120)
    assert process.returncode == 130, captured
    assert_one_sentence(captured, "interrupted, nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_missing_executorch_is_named(good: Path, tmp_path: Path) -> None:
    (tmp_path / "executorch").mkdir()
    (tmp_path / "executorch" / "__init__.py").touch()  # hides the real package
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    output = tmp_path / "sub" / "out"
    run = subprocess.run(
        [COMMAND, good, "-o", output, "--target", "executorch"], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 1
    assert_one_sentence((run.stdout, run.stderr), "pip install 'mote[executorch]'")
    assert not output.parent.exists()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for option, expected in (("--help", "examples:"), ("--version", "mote ")):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.long  # what the next test has too, and the end of the process
def test_an_unprintable_report_is_the_only_complaint_of_the_process(good: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [COMMAND, good, "-o", output, "--target", "onnx", "--no-verify"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert run.returncode == 1
    assert_one_sentence(("", run.stderr), "complete, but the report cannot be printed")
    assert (output / "mote.json").is_file()


def test_a_report_that_cannot_be_printed_does_not_undo_the_export(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        code = main([str(good), "-o", str(tmp_path / "out"), "--target", "onnx", "--no-verify"])
    assert code == 1
    assert_one_sentence(capsys.readouterr(), "complete, but the report cannot be printed")
    assert (tmp_path / "out" / "mote.json").is_file()


def test_output_through_a_link(good: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert main([str(good), "-o", str(tmp_path / "link"), "--target", "onnx", "--no-verify"]) == 0
    assert (tmp_path / "real" / "mote.json").is_file()
    assert (tmp_path / "link").is_symlink()
