"""`mote-profile` on a real ONNX export: its files, its trace, comparisons, and what it says when it cannot."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_onnx_export
from profile_trace import check_nesting, complete_events

from mote_runtime.cli.profile import main
from mote_runtime.profile.record import Record
from mote_runtime.profile.trace.inner import PHASE_NAMES, InnerTrace

FAST = ["--repetitions", "3", "--loads", "1", "--quiet"]
TOKENS = 6


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_onnx_export.write_export(tmp_path_factory.mktemp("export") / "tiny")


@pytest.fixture(scope="module")
def profile(export: Path) -> Path:
    """A profile of the export, made once."""
    output = export.parent / "profile"
    assert main([str(export), "-o", str(output), "--max-new-tokens", str(TOKENS), "--threads", "1", *FAST]) == 0
    return output


def _document(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "profile.json").read_text())
    return document


def test_all_files_are_written_and_the_record_is_complete(profile: Path) -> None:
    assert sorted(path.name for path in profile.iterdir()) == ["profile.json", "report.html", "trace.json"]
    (run,) = _document(profile)["runs"]
    record = Record.from_json(run["record"])
    assert (record.runtime, record.threads, len(record.repetitions)) == ("onnxruntime", 1, 3)
    assert {len(each.token_ids) for each in record.repetitions} == {TOKENS}  # an end of sequence changes nothing
    assert len({each.token_ids for each in record.repetitions}) == 1
    assert all(each.decode_steps == TOKENS - 1 for each in record.repetitions)
    times = [moment for each in record.repetitions for moment in (each.inference_start_ms, each.inference_end_ms)]
    assert record.model_load_end_ms < times[0]
    assert times == sorted(times)
    samples = record.memory.samples
    assert samples[0][0] <= record.model_load_start_ms
    assert samples[-1][0] >= times[-1]
    assert 10 << 20 < record.memory.peak_anonymous_bytes < 1 << 30
    assert run["summary"]["decode_token_per_sec"]["n"] == 3
    assert abs(record.monotonic_to_epoch_ms - (time.time() - time.monotonic()) * 1e3) < 1000  # type: ignore[operator]


def test_what_is_said_of_the_machine_is_true(profile: Path) -> None:
    document = _document(profile)
    assert document["device"]["architecture"] == os.uname().machine
    assert document["versions"]["onnxruntime"] == document["runs"][0]["record"]["runtime_version"]
    assert document["memory_limit"]["threads"] == 1
    assert document["memory_limit"]["best_bytes_per_sec"] > 1e8
    assert document["energy"]["measured"] is (document["energy"]["reason"] is None)
    assert "localhost" not in (profile / "profile.json").read_text()
    assert os.uname().nodename not in json.dumps([document["device"], document["versions"]])


def test_the_trace_is_nested_and_has_all_sources(profile: Path) -> None:
    trace = json.loads((profile / "trace.json").read_text())
    check_nesting(complete_events(trace))
    events = [event for event in complete_events(trace) if event["pid"] == 1]
    stages = [event["name"] for event in events if event["cat"] == "stage"]
    assert stages[:6] == ["load", "warm-up", "answer", "tokenize", "image encode", "embed"]
    assert [name for name in stages if name.startswith("decode step")] == [
        f"decode step {number}" for number in range(1, TOKENS)
    ]
    moe = [event for event in events if event["name"] == "TernaryMoE"]
    assert len(moe) == tiny_onnx_export.LAYERS * TOKENS
    assert [event["args"]["layer"] for event in moe] == [0, 1] * TOKENS
    assert [event["args"]["tokens"] for event in moe[:3:2]][1] == 1
    assert all(event["args"]["weight_bytes"] > 0 for event in moe)
    phases = {event["name"].split(" ")[0] for event in events if event["cat"] == "phase"}
    assert {"quantize", "router", "gather", "gate_up", "quantize_hidden", "down", "combine"} <= phases
    counters = {event["name"] for event in trace["traceEvents"] if event["ph"] == "C"}
    assert counters == {"memory", "tokens"}


def test_phases_are_recorded_once_more_where_the_runtimes_profiler_slowed_it_down(profile: Path) -> None:
    """Nodes of a tiny model take less time than ONNX Runtime's profiler needs to note them."""
    (run,) = _document(profile)["runs"]
    trace = json.loads((profile / "trace.json").read_text())
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert run["trace"]["slowdown"] > 1.05
    assert run["trace"]["phases_slowdown"] > 0
    assert names == ["onnxruntime", "onnxruntime, phases only"]
    light = [event for event in complete_events(trace) if event["pid"] == 2]
    assert {event["name"] for event in light if event["cat"] == "op"} == {"TernaryMoE"}
    decode = [event for event in light if event["cat"] == "stage" and event["name"].startswith("decode step")]
    gates = [event for event in light if event["name"].startswith("gate_up") and event["tid"] == 1]
    inside = [gate for gate in gates for step in decode if step["ts"] <= gate["ts"] < step["ts"] + step["dur"]]
    (row,) = [row for row in run["breakdown"]["decode step"]["phases"] if row["name"] == "gate_up"]
    assert row["count"] == len(inside)
    assert row["ms"] == pytest.approx(sum(event["dur"] for event in inside) / 1e3, abs=0.001)


def test_the_breakdown_adds_up(profile: Path) -> None:
    (run,) = _document(profile)["runs"]
    for stage in run["breakdown"].values():
        operators = sum(each["ms"] for each in stage["operators"])
        assert 0 < operators + stage["outside_operators_ms"] == pytest.approx(stage["ms"], abs=0.01)
        assert stage["outside_operators_ms"] >= -0.001
    decode = {each["name"]: each for each in run["breakdown"]["decode step"]["operators"]}
    assert run["breakdown"]["decode step"]["count"] == TOKENS - 1
    assert decode["TernaryMoE"]["count"] == tiny_onnx_export.LAYERS * (TOKENS - 1)
    hidden, heads = tiny_onnx_export.HIDDEN, tiny_onnx_export.HEADS * tiny_onnx_export.HEAD_DIM
    keys = tiny_onnx_export.KV_HEADS * tiny_onnx_export.HEAD_DIM
    values = tiny_onnx_export.LAYERS * hidden * (2 * heads + 2 * keys) + hidden * tiny_onnx_export.VOCAB
    assert decode["MatMul"]["weight_bytes"] == 4 * values * (TOKENS - 1)  # though ONNX Runtime packs them anew


def test_the_routers_load_is_that_of_all_tokens(profile: Path) -> None:
    (run,) = _document(profile)["runs"]
    tokens = run["record"]["repetitions"][0]["prompt_tokens"] + TOKENS - 1
    assert run["experts"]["layers"] == [0, 1]
    assert [sum(row) for row in run["experts"]["tokens"]] == [tokens, tokens]  # top_k is 1
    assert run["trace"]["dropped_phases"] == 0
    assert run["trace"]["greatest_clip_ns"] < 5000


def test_phases_alone_make_operators_of_their_own(export: Path, tmp_path: Path) -> None:
    arguments = [str(export), "-o", str(tmp_path / "out"), "--trace-sources", "phases", "--max-new-tokens", "3", *FAST]
    assert main(arguments) == 0
    events = complete_events(json.loads((tmp_path / "out" / "trace.json").read_text()))
    check_nesting(events)
    assert {event["name"] for event in events if event["cat"] == "op"} == {"TernaryMoE"}
    assert len([event for event in events if event["cat"] == "op"]) == tiny_onnx_export.LAYERS * 3


def test_json_goes_to_stdout_alone(export: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mote_runtime.cli.profile", str(export), "--json", "--no-trace", "--no-image"]
    result = subprocess.run([*command, "--max-new-tokens", "3", *FAST], cwd=tmp_path, capture_output=True, check=True)
    document = json.loads(result.stdout)
    assert document["runs"][0]["breakdown"] is None
    assert document["runs"][0]["summary"]["image_encode_ms"] is None
    assert result.stderr == b""
    assert sorted(path.name for path in (tmp_path / "tiny-profile").iterdir()) == ["profile.json", "report.html"]


def test_two_exports_are_measured_in_turns(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["--compare", str(export), str(export), "-o", str(output), "--no-trace", "--max-new-tokens", "4"]
    assert main([*arguments, "--fail-if-slower", "100000", *FAST]) == 0
    document = _document(output)
    first, second = (Record.from_json(run["record"]) for run in document["runs"])
    for a, b, next_a in zip(first.repetitions, second.repetitions, first.repetitions[1:], strict=False):
        assert a.inference_end_ms <= b.inference_start_ms + 5
        assert b.inference_end_ms <= next_a.inference_start_ms + 5
    rows = {row["key"]: row for row in document["comparisons"][0]["rows"]}
    assert (rows["decode_token_per_sec"]["n_a"], rows["decode_token_per_sec"]["n_b"]) == (3, 3)
    assert rows["decode_token_per_sec"]["p"] >= 0.1 - 1e-9  # three of each cannot show anything
    assert re.search(r"^decode .* no difference shown +3, 3", capsys.readouterr().out, re.MULTILINE)


def test_two_profiles_are_compared_without_measuring(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = _document(profile)
    record = slow["runs"][0]["record"]
    record["repetitions"] = [dict(each) for each in record["repetitions"] * 4]
    fast = json.loads(json.dumps(slow))
    speed = record["repetitions"][0]["decode_token_per_sec"]
    for document, factor in ((slow, 0.5), (fast, 1.0)):
        for index, each in enumerate(document["runs"][0]["record"]["repetitions"]):
            each["decode_token_per_sec"] = speed * (factor + index / 1000)
    for name, document in (("slow", slow), ("fast", fast)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    paths = [str(tmp_path / "fast.json"), str(tmp_path / "slow.json")]
    assert main(["--compare", *paths, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["comparisons"][0]["rows"]
    assert {row["key"]: row["verdict"] for row in rows}["decode_token_per_sec"] == "slower"
    assert main(["--compare", *paths, "--fail-if-slower", "10"]) == 1
    captured = capsys.readouterr()
    assert "B is slower by more than 10 %: decode by" in captured.err
    assert re.search(r"^decode .* slower +12, 12", captured.out, re.MULTILINE)
    assert main(["--compare", *reversed(paths), "--fail-if-slower", "10"]) == 0


def test_errors_are_one_sentence(
    export: Path, profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    cases = {
        "does not exist": [str(tmp_path / "missing")],
        "has no mote.json": [str(tmp_path / "empty")],
        "not for executorch": [str(export), "--runtime", "executorch"],
        "something else than an earlier profile": [str(export), "-o", str(tmp_path / "full")],
        "does not exist, so": [str(export), "-o", str(tmp_path / "absent" / "out")],
        "core 4000 is not there": [str(export), "-o", str(tmp_path / "a"), "--cores", "4000", *FAST],
        "has room for": [str(export), "-o", str(tmp_path / "a"), "--max-new-tokens", "5000"],
        "photo.png does not exist": [str(export), "-o", str(tmp_path / "a"), "--image", str(tmp_path / "photo.png")],
        "shorten the prompt": [str(export), "-o", str(tmp_path / "a"), "--prompt", "long " * 200],
        "is a profile and": ["--compare", str(export), str(profile)],
    }
    for text, arguments in cases.items():
        assert main(arguments) == 1, text
        error = capsys.readouterr().err
        assert text in error, error
        assert error.startswith("mote-profile: ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_wrong_usage_is_told(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [],
        [str(export), "--compare", "a", "b"],
        [str(export), "--fail-if-slower", "5"],
        [str(export), "--runtime", "tflite"],
        [str(export), "--cores", "1-"],
        [str(export), "--repetitions", "0"],
        [str(export), "--trace-sources", "all"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "usage: mote-profile DIR" in capsys.readouterr().err


def test_a_model_that_ends_its_process_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The worker's end is one sentence of the parent, and nothing is written."""
    folder = tiny_onnx_export.write_export(tmp_path / "tiny")
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif sys.orig_argv[-1] == 'mote_runtime.profile.worker':\n    {code}\n"
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        assert main([str(folder), "-o", str(tmp_path / "out"), *FAST]) == 1
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)
    assert "was ended by SIGKILL" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing_behind(export: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mote_runtime.cli.profile", str(export), "-o", str(tmp_path / "out")]
    with subprocess.Popen([*command, "--repetitions", "5000", "--loads", "1"], start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 60
        while not children.read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_termination_leaves_nothing_behind(export: Path, tmp_path: Path) -> None:
    """While it is traced, as then there is a folder of raw traces as well as a process."""
    command = [sys.executable, "-m", "mote_runtime.cli.profile", str(export), "-o", str(tmp_path / "out")]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = ["--repetitions", "1", "--loads", "1"]
    with subprocess.Popen([*command, *options], env=os.environ | {"TMPDIR": str(scratch)}) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 60
        while not list(scratch.glob("mote-profile-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = children.read_text().split()
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert list(scratch.iterdir()) == []
    # One that was just being started is not known yet; it ends by itself when it finds nobody at its input.
    deadline = time.monotonic() + 60
    while (running := [worker for worker in workers if _is_running(worker)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running == []


def _is_running(process: str) -> bool:
    """Not one that has ended, and that whoever inherited it has not asked about."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_runtime_that_is_not_installed_is_told(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError(\"No module named 'onnxruntime'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main([str(export), "-o", str(tmp_path / "out"), *FAST]) == 1
    error = capsys.readouterr().err
    assert "onnxruntime cannot be imported (No module named 'onnxruntime'); install it with" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_comparison_is_no_side_of_another(profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document(profile)
    document["runs"] *= 2
    (tmp_path / "profile.json").write_text(json.dumps(document))
    assert main(["--compare", str(tmp_path), str(profile)]) == 1
    assert "several runs in onnxruntime" in capsys.readouterr().err


def test_phases_have_the_names_that_records_from_devices_rely_on() -> None:
    assert InnerTrace("onnxruntime").phase_names == PHASE_NAMES
