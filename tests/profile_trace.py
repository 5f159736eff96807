"""Checks on traces that several tests make."""

from typing import Any

ROUNDING_US = 2e-3  # times are written to the nanosecond


def complete_events(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """The spans of a trace in order of time, parents before children."""
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    return sorted(events, key=lambda event: (event["pid"], event["tid"], event["ts"], -event["dur"], _rank(event)))


def _rank(event: dict[str, Any]) -> int:
    return ("stage", "op", "phase").index(event["cat"])


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Every span lies wholly inside the one that is open when it begins; operators inside stages, phases inside operators."""
    stacks: dict[tuple[int, int], list[dict[str, Any]]] = {}
    assert events
    for event in events:
        assert event["dur"] >= 0
        stack = stacks.setdefault((event["pid"], event["tid"]), [])
        while stack and event["ts"] >= stack[-1]["ts"] + stack[-1]["dur"] - ROUNDING_US:
            stack.pop()
        if stack:
            end = stack[-1]["ts"] + stack[-1]["dur"]
            assert event["ts"] + event["dur"] <= end + ROUNDING_US, f"{event} sticks out of {stack[-1]}"
        if event["tid"] == 1:
            if event["cat"] == "op":
                assert stack, event
                assert stack[-1]["cat"] in ("stage", "op")
            if event["cat"] == "phase" and event["dur"] > ROUNDING_US:
                assert stack, event
                assert stack[-1]["name"].startswith("Ternary")
        stack.append(event)
