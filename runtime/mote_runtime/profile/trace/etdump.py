"""Reads an ETDump, ExecuTorch's own profile, without ExecuTorch (schema `etdump_schema_flatcc.fbs`)."""

import struct
from collections.abc import Sequence
from pathlib import Path

from mote_runtime.profile.strict import MAX_FILE_BYTES, ProfileError
from mote_runtime.profile.trace.events import Part, Run, Span
from mote_runtime.profile.trace.flatbuffer import Table
from mote_runtime.profile.trace.program import Instruction, Program
from mote_runtime.profile.trace.vocabulary import PRODUCTS, operator

METHODS = {"vision_encoder": Part.VISION, "token_embedding": Part.EMBEDDING, "text_decoder": Part.DECODER}
_OPERATOR_CALL, _DELEGATE_CALL, _EXECUTE = "OPERATOR_CALL", "DELEGATE_CALL", "Method::execute"
_UNKNOWN = Instruction("", None)


class _Event:
    """A ProfileEvent: times in ns, as ExecuTorch's clock on Linux and Android counts."""

    __slots__ = ("begin_ns", "delegate_name", "end_ns", "instruction", "name")

    def __init__(self, table: Table) -> None:
        self.name = table.text(0)
        self.instruction = table.scalar(2, "i", -1)
        self.delegate_name = table.text(4)
        self.begin_ns = table.scalar(6, "Q")
        self.end_ns = table.scalar(7, "Q")
        if not self.begin_ns <= self.end_ns < 1 << 62:
            raise ProfileError(f"an event ends at {self.end_ns}, before it begins at {self.begin_ns}")


def read_etdump(path: Path, program: Program | None) -> list[Run]:
    """The runs of methods in order of time, on ExecuTorch's clock; raises ProfileError where the file is damaged.

    The `program` of the `.pte` names the kernels that do not name themselves and says what weights instructions read; without
    it methods are told apart by their operators.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ProfileError(f"{path} has more than {MAX_FILE_BYTES} bytes; expected an ETDump")
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}") from error
    # flatcc writes the size in front of the identifier's place.
    starts = [start for start in (0, 4) if bytes(content[start + 4 : start + 8]) == b"ED00"]
    if not starts:
        raise ProfileError(f"{path} is no ETDump: its first bytes are not those of one")
    try:
        root = Table.root(content[starts[0] :])
        runs = [_run(list(data.tables(3)), program) for data in root.tables(1)]
    except (ProfileError, struct.error) as error:
        raise ProfileError(f"{path} is a damaged ETDump: {error}") from None
    return sorted((run for run in runs if run is not None), key=lambda run: run.begin_ns)


def _run(tables: Sequence[Table], program: Program | None) -> Run | None:
    events = [_Event(profile) for table in tables if (profile := table.table(0)) is not None]
    executes = [event for event in events if event.name == _EXECUTE]
    if not executes:  # what was recorded while a method was loaded
        return None
    begin, end = executes[0].begin_ns, executes[0].end_ns
    part, instructions = _method(events, program)
    calls: list[Span] = []
    pending: list[_Event] = []  # inner events come before the call that holds them
    for event in events:
        if event.name not in (_OPERATOR_CALL, _DELEGATE_CALL):
            if event.name != _EXECUTE:
                pending.append(event)
            continue
        known = instructions[event.instruction] if 0 <= event.instruction < len(instructions) else _UNKNOWN
        inside = [each for each in pending if each.instruction == event.instruction]
        pending = []
        calls.append(_call(event, inside, known))
    return Run(part, min([begin, *(call.begin_ns for call in calls)]), end, calls)


def _call(event: _Event, inside: Sequence[_Event], known: Instruction) -> Span:
    if event.name == _OPERATOR_CALL:
        named = [each.name for each in inside if each.name]
        runtime_name = named[-1] if named else known.name or event.name
        arguments = {"runtime_name": runtime_name.removeprefix("native_call_"), "instruction": event.instruction}
        return Span(operator(runtime_name), "op", event.begin_ns, event.end_ns, known.weight_bytes, arguments)
    arguments = {"runtime_name": known.name or "delegate", "instruction": event.instruction}
    span = Span(_delegate_name(known.name), "op", event.begin_ns, event.end_ns, known.weight_bytes, arguments)
    for each in inside:
        name = each.delegate_name or each.name
        if name and each.end_ns > each.begin_ns:  # XNNPACK counts whole microseconds: what takes less has no span
            child = Span(operator(name), "op", each.begin_ns, each.end_ns, None, {"runtime_name": name})
            span.children.append(child)
    products = [child for child in span.children if child.name in PRODUCTS]
    if len(products) == 1:  # then the delegate's weights are this one's
        products[0].weight_bytes, span.weight_bytes = span.weight_bytes, 0
    return span


def _delegate_name(identifier: str) -> str:
    return {"XnnpackBackend": "Xnnpack"}.get(identifier, identifier or "Delegate")


def _method(events: Sequence[_Event], program: Program | None) -> tuple[Part, Sequence[Instruction]]:
    """Which method a run was: an ETDump does not say, so the one whose instructions agree with what was called."""
    called = {event.instruction: event.name for event in events if event.name in (_OPERATOR_CALL, _DELEGATE_CALL)}
    names = {event.instruction: event.name for event in events if event.name not in (*called.values(), _EXECUTE, "")}
    for method, instructions in (program or {}).items():
        if len(called) == len(instructions) and all(
            0 <= number < len(instructions) and operator(instructions[number].name) == operator(name)
            for number, name in names.items()
        ):
            return METHODS.get(method, Part.OTHER), instructions
    operators = {operator(name) for name in names.values()}
    if "Attention" in operators:
        return Part.DECODER, ()
    return (Part.EMBEDDING if operators == {"Gather"} else Part.VISION), ()
