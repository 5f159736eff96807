"""Lays a trace on one clock: stages, the operators inside them, and the phases inside those, each within its parent."""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mote_runtime.profile.strict import ProfileError
from mote_runtime.profile.trace import vocabulary
from mote_runtime.profile.trace.alignment import Alignment, Bounds, align, around, inside, match_runs
from mote_runtime.profile.trace.events import Part, Run, Span
from mote_runtime.profile.trace.inner import NO_EXPERT, SHARED_EXPERT, EventArray
from mote_runtime.profile.trace.raw_trace import Call, Marks, RawTrace

LAYER_PHASE, ROUTE_PHASE = "layer", "route"
_GAP_NS = 1_000_000  # between two answers whose clocks have nothing in common


@dataclass(slots=True)
class Timeline:
    """A trace on one clock, in ns.

    Attributes:
        stages: the main thread: stages, with operators and phases inside.
        workers: phases on other threads, by the thread's number from 1.
        alignments: how each clock of the runtime's profiler was shifted.
        clipped: children that stuck out of their parent or into a sibling, by the resolution of a clock, and were cut;
            `greatest_clip_ns` is the most that was cut off.
        expert_tokens: tokens of each routed expert [layers with experts, experts].
        layers: the decoder's layers with experts, as `expert_tokens` has them.
    """

    stages: list[Span]
    workers: dict[int, list[Span]]
    alignments: dict[str, Alignment]
    expert_tokens: list[list[int]]
    layers: list[int]
    clipped: int = 0
    greatest_clip_ns: int = 0
    dropped: int = 0
    answer_ns: tuple[int, int] = (0, 0)


def build_timeline(raw: RawTrace) -> Timeline:
    """Lay out a trace, which stays as it is; raises ProfileError where its parts contradict each other."""
    raw = replace(raw, runs={clock: [run.copy() for run in runs] for clock, runs in raw.runs.items()})
    phases = _Phases(raw)
    alignments, matched = _align_runs(raw, phases)
    if raw.marks is not None:
        stages = _watched_stages(raw.marks, raw.calls, matched)
        answer = (raw.marks.answer_begin_ns, raw.marks.answer_end_ns)
    else:
        stages, answer = _unwatched_stages(raw, phases)
    timeline = Timeline(
        stages, {}, alignments, phases.expert_tokens(), list(raw.moe_layers), dropped=raw.dropped, answer_ns=answer
    )
    clipper = _Clipper(timeline)
    clipper.fit_children_of(stages)
    phases.attach(timeline)
    clipper.fit_children_of(stages)
    return timeline


def walk(spans: Sequence[Span]) -> Iterator[tuple[Span, tuple[Span, ...]]]:
    """Every span with its ancestors, outermost first, parents before children."""
    stack: list[tuple[Span, tuple[Span, ...]]] = [(span, ()) for span in reversed(spans)]
    while stack:
        span, ancestors = stack.pop()
        yield span, ancestors
        stack.extend((child, (*ancestors, span)) for child in reversed(span.children))


def _align_runs(raw: RawTrace, phases: "_Phases") -> tuple[dict[str, Alignment], list[tuple[Call, list[Run]]]]:
    """Shift all runs to CLOCK_MONOTONIC, clock by clock, and say which call made them."""
    alignments: dict[str, Alignment] = {}
    matched: list[tuple[Call, list[Run]]] = []
    if raw.marks is None:
        return alignments, matched
    for clock, runs in raw.runs.items():
        known = [run for run in runs if run.part is not Part.OTHER]
        pairs = match_runs(known, raw.calls)
        bounds = [inside((group[0].begin_ns, group[-1].end_ns), (call.begin_ns, call.end_ns)) for group, call in pairs]
        answered = [run for group, call in pairs if call.begin_ns >= raw.marks.answer_begin_ns for run in group]
        alignments[clock] = align(bounds + phases.bounds(answered))
        for run in runs:
            run.shift(alignments[clock].offset_ns)
        matched += [(call, group) for group, call in pairs]
    return alignments, matched


def _watched_stages(marks: Marks, calls: Sequence[Call], matched: list[tuple[Call, list[Run]]]) -> list[Span]:
    runs = {(call.part, call.begin_ns): group for call, group in matched}
    load = Span(vocabulary.LOAD, "stage", marks.load_begin_ns, marks.load_end_ns)
    before = [call for call in calls if call.end_ns <= marks.answer_begin_ns]
    inside = [call for call in calls if marks.answer_begin_ns <= call.begin_ns and call.end_ns <= marks.answer_end_ns]
    answer = Span(vocabulary.ANSWER, "stage", marks.answer_begin_ns, marks.answer_end_ns)
    tokenize = Span(vocabulary.TOKENIZE, "stage", marks.answer_begin_ns, marks.tokenized_ns)
    answer.children = [tokenize, *_answer_stages(inside, runs)]
    warmup = [Span(vocabulary.WARM_UP, "stage", before[0].begin_ns, before[-1].end_ns)] if before else []
    return [load, *warmup, answer]


def _answer_stages(calls: Sequence[Call], runs: dict[tuple[Part, int], list[Run]]) -> list[Span]:
    """Image encode, embed, prefill, and a decode step for each further pair of embed and decoder."""
    stages: list[Span] = []
    pending: Span | None = None
    steps = 0
    for call in calls:
        operators = [span for run in runs.get((call.part, call.begin_ns), []) for span in run.operators]
        if call.part is Part.VISION:
            stages.append(_stage(vocabulary.IMAGE_ENCODE, call, operators))
        elif call.part is Part.EMBEDDING:
            pending = _stage(vocabulary.EMBED, call, operators)
        elif steps == 0:
            stages += [pending] if pending else []
            stages.append(_stage(vocabulary.PREFILL, call, operators))
            steps, pending = 1, None
        else:
            step = _stage(vocabulary.decode_step(steps), call, operators)
            if pending is not None:
                step.begin_ns = pending.begin_ns
                step.children.insert(0, pending)
            stages.append(step)
            steps, pending = steps + 1, None
    return stages


def _stage(name: str, call: Call, operators: list[Span]) -> Span:
    return Span(name, "stage", call.begin_ns, call.end_ns, None, {"tokens": call.tokens}, operators)


def _unwatched_stages(raw: RawTrace, phases: "_Phases") -> tuple[list[Span], tuple[int, int]]:
    """Stages made of the runs themselves, and where there are none, of what the operators recorded."""
    runs = sorted(
        (run for each in raw.runs.values() for run in each if run.part is not Part.OTHER), key=lambda run: run.begin_ns
    )
    if not runs:
        answers = phases.own_answer(0)
        return answers, ((answers[0].begin_ns, answers[0].end_ns) if answers else (0, 0))
    calls = [Call(run.part, run.begin_ns, run.end_ns, 0) for run in runs]
    stages = _answer_stages(calls, {(run.part, run.begin_ns): [run] for run in runs})
    begin, end = runs[0].begin_ns, max(run.end_ns for run in runs)
    answer = Span(vocabulary.ANSWER, "stage", begin, end, children=stages)
    if phases.shift_to(stages):
        return [answer], (begin, end)
    return [answer, *phases.own_answer(end + _GAP_NS)], (begin, end)


class _Clipper:
    """Cuts what sticks out of a parent or into the sibling before by the resolution of a clock; more than that is an error."""

    GREATEST_NS = 20_000

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def fit_children_of(self, spans: Sequence[Span]) -> None:
        for parent, _ in walk(spans):
            parent.children.sort(key=lambda child: (child.begin_ns, child.end_ns))
            before = parent.begin_ns
            for child in parent.children:
                begin = min(max(child.begin_ns, before), parent.end_ns)
                end = max(min(child.end_ns, parent.end_ns), begin)
                cut = max(begin - child.begin_ns, child.end_ns - end)
                if cut > 0:
                    self._note(cut, parent, child)
                child.begin_ns, child.end_ns = begin, end
                before = end

    def _note(self, cut: int, parent: Span, child: Span) -> None:
        if cut > self.GREATEST_NS:
            raise ProfileError(
                f"in the trace {child.name!r} does not lie inside {parent.name!r}: {cut / 1e3:.1f} µs stick out; trace it again"
            )
        self._timeline.clipped += 1
        self._timeline.greatest_clip_ns = max(self._timeline.greatest_clip_ns, cut)


class _Phases:
    """The operators' records: which call of which layer they belong to."""

    def __init__(self, raw: RawTrace) -> None:
        self._events = raw.phases
        self._names = [*raw.phase_names]
        self._raw = raw
        if len(self._events) and int(self._events["phase"].max()) >= len(self._names):
            raise ProfileError(
                f"a record of the operators has phase {int(self._events['phase'].max())}; expected less than {len(self._names)}"
            )
        self._layer_events = self._of(LAYER_PHASE)
        self._kinds = self._find_kinds()
        self._layers = self._number_layers()

    def _of(self, phase: str) -> EventArray:
        if phase not in self._names:
            return self._events[:0]
        return self._events[self._events["phase"] == self._names.index(phase)]

    def _find_kinds(self) -> dict[int, str]:
        """Which operator a layer's address belongs to: of all but ternary_moe by the phase that only it has."""
        kinds = dict.fromkeys(map(int, np.unique(self._events["layer"])), vocabulary.TERNARY_MOE)
        for phase, kind in (("matmul", vocabulary.TERNARY_MATMUL), ("linear", vocabulary.QUANTIZED_MATMUL)):
            kinds |= dict.fromkeys(map(int, np.unique(self._of(phase)["layer"])), kind)
        return kinds

    def _number_layers(self) -> dict[int, int]:
        """The decoder's layer of each address: layers run in order, so the order of their first calls is theirs."""
        order = self._events[np.argsort(self._events["call"], kind="stable")]["layer"]
        seen = list(dict.fromkeys(map(int, order)))
        experts = [layer for layer in seen if self._kinds[layer] == vocabulary.TERNARY_MOE]
        others = (vocabulary.TERNARY_MATMUL, vocabulary.QUANTIZED_MATMUL)
        products = [[layer for layer in seen if self._kinds[layer] == kind] for kind in others]
        if len(experts) == len(self._raw.moe_layers):
            numbers = dict(zip(experts, self._raw.moe_layers, strict=True))
        else:
            numbers = {layer: index for index, layer in enumerate(experts)}
        return numbers | {layer: index for layers in products for index, layer in enumerate(layers)}

    def expert_tokens(self) -> list[list[int]]:
        """Tokens by layer with experts and expert."""
        rows = {layer: [0] * self._raw.num_experts for layer in self._raw.moe_layers}
        events = self._of(ROUTE_PHASE)
        for layer, expert, tokens in zip(events["layer"], events["expert"], events["tokens"], strict=True):
            row = rows.get(self._layers[int(layer)])
            if row is not None and int(expert) < len(row):
                row[int(expert)] += int(tokens)
        return list(rows.values())

    def bounds(self, runs: Sequence[Run]) -> list[Bounds]:
        """Shifts that bring our operators in `runs` around what these recorded; none where the numbers of both differ."""
        return self._bounds([span for run in runs for span in run.operators])

    def _bounds(self, spans: Sequence[Span]) -> list[Bounds]:
        ours = sorted((span for span in spans if span.name in vocabulary.OURS), key=lambda span: span.begin_ns)
        calls = self._layer_events[np.argsort(self._layer_events["begin_ns"], kind="stable")]
        if len(ours) != len(calls):
            return []
        return [
            around((span.begin_ns, span.end_ns), (int(call["begin_ns"]), int(call["end_ns"])))
            for span, call in zip(ours, calls, strict=True)
        ]

    def shift_to(self, stages: Sequence[Span]) -> bool:
        """Bring the records to the runs' clock, if they are of the same answer: whether they are."""
        bounds = self._bounds([span for span, _ in walk(stages)])
        try:
            if bounds:
                self._shift(-align(bounds).offset_ns)
        except ProfileError:
            return False
        return bool(bounds)

    def _shift(self, offset_ns: int) -> None:
        self._events = self._events.copy()
        for name in ("begin_ns", "end_ns"):
            self._events[name] = (self._events[name].astype(np.int64) + offset_ns).astype(np.uint64)
        self._layer_events = self._of(LAYER_PHASE)

    def own_answer(self, begin_ns: int) -> list[Span]:
        """An answer made of the records alone, from `begin_ns` on: a stage for each pass through the layers."""
        if not len(self._layer_events):
            return []
        self._shift(begin_ns - int(self._events["begin_ns"].min()))
        calls = self._layer_events[np.argsort(self._layer_events["begin_ns"], kind="stable")]
        per_pass = len(np.unique(calls["layer"]))
        stages: list[Span] = []
        step = 0
        for start in range(0, len(calls), per_pass):
            group = calls[start : start + per_pass]
            tokens = int(group["tokens"].max())
            step = step + 1 if tokens == 1 and stages else 0
            name = vocabulary.decode_step(step) if step else vocabulary.PREFILL
            stages.append(
                Span(name, "stage", int(group["begin_ns"].min()), int(group["end_ns"].max()), None, {"tokens": tokens})
            )
        return [Span(vocabulary.PHASES_ANSWER, "stage", stages[0].begin_ns, stages[-1].end_ns, children=stages)]

    def attach(self, timeline: Timeline) -> None:
        """Put phases into the operators that hold them, and those of other threads onto tracks of their own."""
        leaves = _Leaves(timeline.stages)
        operators: dict[int, Span] = {}
        callers: dict[int, int] = {}
        for event in self._layer_events:
            span = leaves.operator_around(
                int(event["begin_ns"]), int(event["end_ns"]), self._kinds[int(event["layer"])]
            )
            if span is None:
                continue  # of the warm-up
            call = int(event["call"])
            operators[call], callers[call] = span, int(event["thread"])
            layer = self._layers[int(event["layer"])]
            span.arguments |= {"layer": layer, "tokens": int(event["tokens"]), "call": call}
            span.weight_bytes = 0
        self._hand_out(timeline, operators, callers)
        for spans in timeline.workers.values():
            spans.sort(key=lambda span: span.begin_ns)

    def _hand_out(self, timeline: Timeline, operators: dict[int, Span], callers: dict[int, int]) -> None:
        tracks: dict[int, int] = {}
        for event in self._events:
            name = self._names[int(event["phase"])]
            call = int(event["call"])
            if name == LAYER_PHASE or call not in operators:
                continue
            operator = operators[call]
            operator.weight_bytes = (operator.weight_bytes or 0) + int(event["bytes"])
            if name == ROUTE_PHASE:
                loads = operator.arguments.setdefault("expert_tokens", {})
                expert = str(int(event["expert"]))
                loads[expert] = loads.get(expert, 0) + int(event["tokens"])
                continue
            span = self._span(event, name, operator)
            thread = int(event["thread"])
            if thread == callers[call]:
                operator.children.append(span)
            else:
                track = tracks.setdefault(thread, len(tracks) + 1)
                timeline.workers.setdefault(track, []).append(span)

    def _span(self, event: np.void, name: str, operator: Span) -> Span:
        expert = int(event["expert"])
        arguments: dict[str, object] = {"layer": operator.arguments["layer"], "tokens": int(event["tokens"])}
        if expert != NO_EXPERT:
            arguments["expert"] = "shared" if expert == SHARED_EXPERT else expert
            name = f"{name} {'shared' if expert == SHARED_EXPERT else f'expert {expert}'}"
        return Span(name, "phase", int(event["begin_ns"]), int(event["end_ns"]), int(event["bytes"]), arguments)


class _Leaves:
    """Finds the span of an operator around a moment; makes one where the runtime recorded none."""

    def __init__(self, stages: Sequence[Span]) -> None:
        found = sorted(
            ((span.begin_ns, span) for span, _ in walk(stages) if span.name in vocabulary.OURS),
            key=lambda pair: pair[0],
        )
        self._begins = [begin for begin, _ in found]
        self._spans = [span for _, span in found]
        parents = [
            span
            for span, _ in walk(stages)
            if span.name == vocabulary.PREFILL or span.name.startswith(vocabulary.DECODE)
        ]
        self._parents = sorted(parents, key=lambda span: span.begin_ns)
        self._parent_begins = [span.begin_ns for span in self._parents]
        self._profiled = {id(span) for span in parents if any(child.category == "op" for child in span.children)}

    def operator_around(self, begin: int, end: int, name: str) -> Span | None:
        middle = (begin + end) // 2
        index = bisect.bisect_right(self._begins, middle) - 1
        if index >= 0 and middle <= self._spans[index].end_ns:
            return self._spans[index]
        index = bisect.bisect_right(self._parent_begins, middle) - 1
        parent = self._parents[index] if index >= 0 else None
        if parent is None or middle > parent.end_ns or id(parent) in self._profiled:
            return None
        span = Span(name, "op", begin, end, None, {"runtime_name": name})
        parent.children.append(span)
        return span
