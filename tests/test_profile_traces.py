"""Traces of both runtimes on the trained demo model: one vocabulary, one clock, and readers that damaged files cannot harm."""

import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from profile_trace import check_nesting, complete_events

from mote_runtime.cli.profile import main
from mote_runtime.manifest import Manifest
from mote_runtime.profile import session
from mote_runtime.profile.build import Circumstances, MeasuredRun, build_profile
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.strict import ProfileError
from mote_runtime.profile.trace.alignment import align, around, inside, match_runs
from mote_runtime.profile.trace.etdump import read_etdump
from mote_runtime.profile.trace.events import Part, Run, Span
from mote_runtime.profile.trace.inner import EVENT, PHASE_NAMES, read_events
from mote_runtime.profile.trace.ort_trace import read_ort_profiles
from mote_runtime.profile.trace.program import read_program
from mote_runtime.profile.trace.raw_trace import Call, RawTrace
from mote_runtime.profile.trace.timeline import build_timeline
from mote_runtime.profile.trace.vocabulary import operator

TOKENS = 8
PROMPT = "What is the sum of the digits?"


@pytest.fixture(scope="module")
def profile(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of the demo model in both runtimes."""
    output = tmp_path_factory.mktemp("traces") / "profile"
    arguments = ["--max-new-tokens", str(TOKENS), "--repetitions", "2", "--loads", "1", "--no-verify", "--quiet"]
    assert main([str(demo_export), "-o", str(output), "--prompt", PROMPT, *arguments]) == 0
    return output


@pytest.fixture(scope="module")
def document(profile: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((profile / "profile.json").read_text())
    return result


@pytest.fixture(scope="module")
def raw_executorch(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RawTrace]:
    """An ETDump of the demo model as it was written, and the whole trace."""
    kept = tmp_path_factory.mktemp("etdump") / "program.etdp"
    settings = Settings(str(demo_export / "executorch"), PROMPT, "", max_new_tokens=4, threads=1)
    read = session.read_runs

    def keeping(runtime: str, files: Mapping[str, Path], manifest: Manifest) -> dict[str, list[Run]]:
        kept.write_bytes(files["program"].read_bytes())
        return read(runtime, files, manifest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "read_runs", keeping)
        _, raw = session.trace(settings, lambda _: None)
    return kept, raw


def test_both_runtimes_have_the_same_stages_and_are_nested(profile: Path) -> None:
    trace = json.loads((profile / "trace.json").read_text())
    events = complete_events(trace)
    check_nesting(events)
    names = {event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"}
    assert (names[1], names[2]) == ("onnxruntime", "executorch")
    stages = {
        pid: [event["name"] for event in events if event["cat"] == "stage" and event["pid"] == pid] for pid in names
    }
    assert stages[1] == stages[2]
    assert stages[1][:7] == ["load", "warm-up", "answer", "tokenize", "image encode", "embed", "prefill"]
    assert stages[1][7::2] == [f"decode step {number}" for number in range(1, TOKENS)]


def test_both_runtimes_use_one_vocabulary(profile: Path) -> None:
    events = complete_events(json.loads((profile / "trace.json").read_text()))
    operators = [{event["name"] for event in events if event["cat"] == "op" and event["pid"] == pid} for pid in (1, 2)]
    common = {"TernaryMoE", "Attention", "MatMul", "Add", "Multiply", "Mean", "Gather", "Softmax", "Convolution"}
    assert common <= operators[0] & operators[1]
    phases = [
        {event["name"] for event in events if event["cat"] == "phase" and event["pid"] == pid and event["tid"] == 1}
        for pid in (1, 2)
    ]
    assert phases[0] == phases[1]
    assert {"quantize", "router", "gate_up shared", "down shared", "combine"} <= phases[0]
    assert len([name for name in phases[0] if name.startswith("gate_up expert ")]) == 4


def test_phases_of_a_call_lie_within_its_operator_on_every_thread(profile: Path) -> None:
    events = complete_events(json.loads((profile / "trace.json").read_text()))
    for pid in (1, 2):
        calls = [event for event in events if event["name"] == "TernaryMoE" and event["pid"] == pid]
        assert len(calls) == 4 * TOKENS
        assert [event["args"]["layer"] for event in calls] == [0, 1, 2, 3] * TOKENS
        workers = [event for event in events if event["pid"] == pid and event["tid"] > 1]
        for event in workers:
            assert any(
                call["ts"] - 5 <= event["ts"] and event["ts"] + event["dur"] <= call["ts"] + call["dur"] + 5
                for call in calls
            ), event


def test_the_router_sends_tokens_the_same_way_in_both(document: dict[str, Any]) -> None:
    """The operator is the same to the last bit; what comes before it differs by rounding, which may move a token or two."""
    first, second = (np.array(run["experts"]["tokens"]) for run in document["runs"])
    record = document["runs"][0]["record"]["repetitions"][0]
    assert first.shape == second.shape == (4, 4)
    assert (first.sum(axis=1) == record["prompt_tokens"] + TOKENS - 1).all()
    assert (first.sum(axis=1) == second.sum(axis=1)).all()
    assert np.abs(first - second).sum() <= 4


def test_weights_read_agree_between_the_runtimes(document: dict[str, Any]) -> None:
    """ONNX Runtime's from the shapes of its profile, ExecuTorch's from the program; ours from the operators themselves."""
    for stage in ("prefill", "decode step"):
        first, second = (
            {each["name"]: each["weight_bytes"] for each in run["breakdown"][stage]["operators"]}
            for run in document["runs"]
        )
        assert first["MatMul"] == pytest.approx(second["MatMul"], rel=0.01)
        if stage == "decode step":
            assert first["TernaryMoE"] == second["TernaryMoE"]


def test_clocks_are_brought_together_closely(raw_executorch: tuple[Path, RawTrace]) -> None:
    timeline = build_timeline(raw_executorch[1])
    assert build_timeline(raw_executorch[1]) == timeline  # what it is made of stays as it is
    assert timeline.alignments["program"].uncertainty_ns < 50_000
    assert timeline.greatest_clip_ns < 5_000
    assert timeline.dropped == 0


def test_methods_are_found_with_and_without_the_program(
    raw_executorch: tuple[Path, RawTrace], demo_export: Path
) -> None:
    program = read_program(demo_export / "executorch" / "model.pte")
    known = [run for run in read_etdump(raw_executorch[0], program) if run.part is not Part.OTHER]
    assert [run.part for run in known] == [Part.VISION, *[Part.EMBEDDING, Part.DECODER] * 4] * 2
    guessed = [run for run in read_etdump(raw_executorch[0], None) if run.operators]
    assert [run.part for run in guessed] == [run.part for run in known]


def test_a_trace_that_nobody_watched_is_laid_out(raw_executorch: tuple[Path, RawTrace], demo_export: Path) -> None:
    """As from a device: no calls seen from outside; with records of the same answer, of another, and without any."""
    etdump, watched = raw_executorch
    program = read_program(demo_export / "executorch" / "model.pte")

    def lay_out(**parts: Any) -> Any:
        answer = [run for run in read_etdump(etdump, program) if run.part is not Part.OTHER][9:]
        runs = {"program": answer}
        return build_timeline(
            RawTrace(**{"runs": runs, "calls": (), "marks": None, "moe_layers": (0, 1, 2, 3), "num_experts": 4} | parts)
        )

    same = lay_out(phases=watched.phases, phase_names=PHASE_NAMES)
    assert [span.name for span in same.stages] == ["answer"]
    moved = watched.phases.copy()
    first = moved["begin_ns"].min()
    for name in ("begin_ns", "end_ns"):  # another answer: everything takes twice as long
        moved[name] = first + (moved[name] - first) * 2
    other = lay_out(phases=moved, phase_names=PHASE_NAMES)
    assert [span.name for span in other.stages] == ["answer", "answer, phases only"]
    assert other.expert_tokens == same.expert_tokens == build_timeline(watched).expert_tokens
    assert [span.name for span in other.stages[1].children] == [
        "prefill",
        "decode step 1",
        "decode step 2",
        "decode step 3",
    ]
    assert [span.name for span in lay_out().stages] == ["answer"]
    phases_only = lay_out(runs={}, phases=watched.phases, phase_names=PHASE_NAMES)
    assert [span.name for span in phases_only.stages] == ["answer, phases only"]


def test_a_device_without_traces_has_a_profile(document: dict[str, Any]) -> None:
    """What comes after the records does not care where they came from."""
    from mote_runtime.profile.record import Record

    record = Record.from_json(document["runs"][1]["record"])
    circumstances = Circumstances({"model": "some phone"}, {}, ["mote-profile", "x"], None, "it was not looked for")
    run = MeasuredRun("executorch", document["runs"][1]["model"], document["runs"][1]["settings"], record)
    files = build_profile([run], circumstances).files
    assert sorted(files) == ["profile.json", "report.html"]
    assert "some phone" in files["report.html"]


def test_damaged_dumps_and_programs_are_refused(
    raw_executorch: tuple[Path, RawTrace], demo_export: Path, tmp_path: Path
) -> None:
    """Whatever bytes are changed, reading gives runs or a sentence, and ends."""
    random_bytes = random.Random(0)
    etdump = raw_executorch[0].read_bytes()
    model = demo_export / "executorch" / "model.pte"
    program = read_program(model)
    with model.open("rb") as stream:
        head = stream.read(400_000)
    messages = []
    for number in range(120):
        content = bytearray(etdump if number % 2 else head)
        for _ in range(random_bytes.choice((1, 4, 64))):
            content[random_bytes.randrange(min(len(content), 4000 if number % 3 else len(content)))] = (
                random_bytes.randrange(256)
            )
        path = tmp_path / "file"
        path.write_bytes(content[: random_bytes.choice((len(content), len(content), len(content) // 2))])
        try:
            if number % 2:
                read_etdump(path, program)
            else:
                read_program(path)
        except ProfileError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(str(path)) for message in messages)
    for content in (b"", b"x", b"\0" * 64):
        path.write_bytes(content)
        for read in (lambda: read_etdump(path, None), lambda: read_program(path)):
            with pytest.raises(ProfileError):
                read()


def test_a_damaged_graph_in_a_program_is_refused(demo_export: Path, tmp_path: Path) -> None:
    content = bytearray((demo_export / "executorch" / "model.pte").read_bytes())
    header = content.index(b"XH00")
    content[header + 6 : header + 14] = b"\xff" * 8  # where the graph is, and its size
    path = tmp_path / "model.pte"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match="a graph of 4294967295 bytes"):
        read_program(path)


def test_a_dump_that_names_one_part_without_end_is_refused(tmp_path: Path) -> None:
    """1,000 offsets to one run of 1,000 offsets to one event: a million events in 8 KB."""
    count, run = 1000, 44 + 4 * 1000
    event = run + 12 + 4 * count

    def table_of_one(start: int, at: int, target: int) -> bytes:
        """A table at `at` whose fields 1 and 3 are the vector behind it, all of whose offsets lead to `target`."""
        offsets = (target - (at + 12 + 4 * index) for index in range(count))
        return struct.pack("<iII", at - start, 4, count) + b"".join(struct.pack("<I", each) for each in offsets)

    indices = struct.pack("<HHHHHH", 12, 8, 0, 4, 0, 4) + struct.pack("<HH", 4, 4)
    content = struct.pack("<I", 32) + b"ED00" + indices + bytes(8)
    content += table_of_one(8, 32, run) + table_of_one(8, run, event) + struct.pack("<i", event - 20)
    path = tmp_path / "dump.etdp"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match="names the same parts too often"):
        read_etdump(path, None)


def test_shapes_without_end_are_passed_over(tmp_path: Path) -> None:
    shape = [1 << 39] * 200_000  # whose product would take a minute
    arguments = {"op_name": "MatMul", "input_type_shape": [{"float": [1, 2]}, {"float": shape}]}
    arguments["output_type_shape"] = [{"float": [1, 3]}]
    node = {"cat": "Node", "ph": "X", "ts": 1, "dur": 1, "name": "a_kernel_time", "args": arguments}
    run = {"cat": "Session", "ph": "X", "ts": 0, "dur": 9, "name": "model_run", "args": {}}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([node, run]))
    (found,) = read_ort_profiles({"decoder": path})
    assert found.operators[0].weight_bytes == 2 * 3 * 4


def test_a_thread_that_calls_one_operator_may_help_another() -> None:
    """Records of a device may come from any threads."""
    events = np.zeros(4, EVENT)
    layer, quantize = PHASE_NAMES.index("layer"), PHASE_NAMES.index("quantize")
    events["begin_ns"], events["end_ns"] = (0, 2, 10, 12), (9, 4, 19, 14)
    events["call"], events["tokens"], events["expert"] = (0, 0, 1, 1), 1, 0xFFFF
    events["phase"], events["thread"] = (layer, quantize, layer, quantize), (7, 7, 8, 7)
    timeline = build_timeline(RawTrace({}, (), None, (0,), 4, events, PHASE_NAMES))
    assert [span.name for span in timeline.workers[1]] == ["quantize"]


def test_damaged_profiles_of_onnxruntime_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    node: dict[str, Any] = {
        "cat": "Node",
        "ph": "X",
        "ts": 1,
        "dur": 1,
        "name": "a_kernel_time",
        "args": {"op_name": "Add"},
    }
    for wrong in ({}, [1], [node | {"ts": -1}], [node | {"dur": "1"}], [node | {"args": []}], [node | {"args": {}}]):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ProfileError):
            read_ort_profiles({"decoder": path})
    odd = {
        "op_name": "MatMul",
        "parameter_size": "9" * 50,
        "input_type_shape": [{"float": [1, "x"]}, 7],
        "output_type_shape": [{"float": []}],
    }
    run = {"cat": "Session", "ph": "X", "ts": 0, "dur": 9, "name": "model_run", "args": {}}
    path.write_text(json.dumps([node | {"args": odd}, run]))
    (found,) = read_ort_profiles({"decoder": path})
    assert found.operators[0].weight_bytes == 0


def test_records_of_phases_are_checked() -> None:
    with pytest.raises(ProfileError, match="multiple of 64"):
        read_events(b"x" * 65, "phases")
    event = np.zeros(1, EVENT)
    event["begin_ns"] = 5
    with pytest.raises(ProfileError, match="ends before it begins"):
        read_events(event.tobytes(), "phases")
    event["end_ns"] = 6
    event["phase"] = 99
    raw = RawTrace({}, (), None, (0,), 4, read_events(event.tobytes(), "phases"), PHASE_NAMES)
    with pytest.raises(ProfileError, match="phase 99"):
        build_timeline(raw)


def test_alignment_takes_the_middle_and_refuses_what_cannot_be() -> None:
    assert align([inside((10, 20), (105, 125)), inside((40, 50), (137, 148))]).offset_ns == (97 + 98) // 2
    found = align([inside((10, 20), (105, 125)), around((10, 20), (112, 117))])
    assert 97 <= found.offset_ns <= 102
    assert found.uncertainty_ns <= 3
    with pytest.raises(ProfileError, match="cannot be brought together"):
        align([inside((0, 10), (100, 110)), inside((0, 10), (9_100, 9_110))])
    assert align([]).offset_ns == 0


def test_runs_are_matched_to_calls_also_in_pieces() -> None:
    """A long prompt is several runs of one call."""
    order = [Part.VISION, Part.EMBEDDING, Part.EMBEDDING, Part.DECODER, Part.DECODER, Part.EMBEDDING, Part.DECODER]
    runs = [Run(part, index, index + 1, []) for index, part in enumerate(order)]
    calls = [Call(part, 0, 1, 1) for part in (Part.VISION, *[Part.EMBEDDING, Part.DECODER] * 2)]
    assert [len(group) for group, _ in match_runs(runs, calls)] == [1, 2, 2, 1, 1]
    with pytest.raises(ProfileError, match="called 4 times"):
        match_runs(runs, calls[:-1])


def test_spans_far_outside_their_parent_are_refused() -> None:
    run = Run(Part.DECODER, 0, 1_000_000, [Span("Add", "op", 900_000, 1_500_000)])
    with pytest.raises(ProfileError, match="does not lie inside"):
        build_timeline(RawTrace({"program": [run]}, (), None, (), 1))


@pytest.mark.parametrize(
    ("runtime_name", "name"),
    [
        ("mote::ternary_moe.out", "TernaryMoE"),
        ("TernaryMoE", "TernaryMoE"),
        ("native_call_unsqueeze_copy.out", "Reshape"),
        ("Fully Connected (NC, F32) GEMM #1", "MatMul"),
        ("llama::custom_sdpa.out", "Attention"),
        ("GroupQueryAttention", "Attention"),
        ("SomethingNew", "SomethingNew"),
        ("", "unnamed"),
    ],
)
def test_operators_have_one_name(runtime_name: str, name: str) -> None:
    assert operator(runtime_name) == name
