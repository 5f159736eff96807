"""The bars that the project sets itself, each judged from the figures of one run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .operators import operators
from .results import Record
from .shapes import MAIN_SHAPE

LABELS = {operator.name: operator.label for operator in operators()}
ROUTED_PEERS = ("qmoe2-none", "qmoe4-none", "nbits2-none")
QMOE_PEERS = ROUTED_PEERS[:2]
NBITS_PEERS = ROUTED_PEERS[2:]
SHARED_PEERS = ("qmoe2-int4", "qmoe4-int4", "nbits2-int4")
#: The better of the two counts: an export can choose.
PACKINGS = ("2bit", "1.6bit")
MAX_ANONYMOUS_BYTES = 150e6
LOAD_RATIO = 10.0


@dataclass(frozen=True)
class Verdict:
    bar: str
    required: str
    found: str
    reached: bool | None  # None: not measured in this run
    aim: str = ""


Find = Callable[[str, int, int], Record | None]  # operator, tokens, threads


def _finder(records: Iterable[Record]) -> Find:
    known = {
        (record.operator, record.tokens, record.threads): record
        for record in records
        if record.shape == MAIN_SHAPE.name and not record.failure
    }
    return lambda operator, tokens, threads: known.get((operator, tokens, threads))


def _best(find: Find, names: Iterable[str], tokens: int, threads: int) -> Record | None:
    found = [record for name in names if (record := find(name, tokens, threads))]
    return min(found, key=lambda record: record.median_ms, default=None)


def _ours(find: Find, shared: str, tokens: int, threads: int) -> Record | None:
    return _best(find, [f"ours-{packing}-{shared}" for packing in PACKINGS], tokens, threads)


def _beside_peers(
    find: Find, text: str, shared: str, peers: tuple[str, ...], tokens: int, threads: int, ratio: float, aim: str
) -> Verdict:
    """Ours at least `ratio` times as fast as the best of these peers."""
    ours, peer = _ours(find, shared, tokens, threads), _best(find, peers, tokens, threads)
    required = f"≥ {ratio:g}x the best peer"
    if not ours or not peer:
        return Verdict(text, required, "not measured", None, aim)
    found = peer.median_ms / ours.median_ms
    times = f"{LABELS[ours.operator]} {ours.median_ms:.3f} ms, {LABELS[peer.operator]} {peer.median_ms:.3f} ms"
    detail = f"{found:.2f}x ({times}); {ours.median_ms / ours.limit_ms:.2f}x the limit"
    if ours.dram_ms:
        detail += f", {ours.median_ms / ours.dram_ms:.2f}x DRAM beside it"
    return Verdict(text, required, detail, found >= ratio, aim)


def _beside_dram(find: Find, text: str, shared: str, ratio: float, aim: str = "") -> Verdict:
    """One token, 2 threads: within `ratio` of the time that reading its weights takes; of the packings the faster one.

    Medians on both sides: of the layer's time, and of what DRAM gave just before and after.
    """
    ours = _ours(find, shared, 1, 2)
    required = f"≤ {ratio:g}x DRAM time"
    if not ours or not ours.dram_ms:
        return Verdict(text, required, "not measured", None, aim)
    found = ours.median_ms / ours.dram_ms
    speed = ours.bytes_read / ours.dram_ms / 1e6
    detail = (
        f"{found:.2f}x ({LABELS[ours.operator]} {ours.median_ms:.3f} ms, DRAM beside it {ours.dram_ms:.3f} ms "
        f"at {speed:.0f} GB/s); "
        f"{ours.median_ms / ours.memory_limit_ms:.2f}x at the best of this run"
    )
    return Verdict(text, required, detail, found <= ratio, aim)


def _loads(loads: dict[str, Any]) -> list[Verdict]:
    text = "load, 28 layers of 1.5B, int4 shared, page cache warm: first token"
    ours, stock = loads.get("ours-2bit-int4", {}), loads.get("qmoe2-int4", {})
    if "memory" not in ours or "memory" not in stock:
        missing = ours.get("failure") or stock.get("failure") or "not measured"
        return [Verdict(text, f"≥ {LOAD_RATIO:g}x stock", missing, None)]
    ratio = stock["first_token_seconds"] / ours["first_token_seconds"]
    anonymous = ours["memory"]["anonymous"] - ours["base_anonymous"]
    found = f"{ratio:.1f}x ({ours['first_token_seconds']:.3f} s, stock {stock['first_token_seconds']:.2f} s)"
    return [
        Verdict(text, f"≥ {LOAD_RATIO:g}x stock", found, ratio >= LOAD_RATIO),
        Verdict(
            "the same: anonymous memory beyond the runtime's own",
            f"< {MAX_ANONYMOUS_BYTES / 1e6:g} MB",
            f"{anonymous / 1e6:.0f} MB",
            anonymous < MAX_ANONYMOUS_BYTES,
        ),
    ]


def verdicts(records: list[Record], loads: dict[str, Any]) -> list[Verdict]:
    find = _finder(records)
    routed, whole = "routed experts only", "whole layer, int4 shared expert"
    return [
        _beside_peers(find, f"{routed}, 1 token, 2 threads", "none", ROUTED_PEERS, 1, 2, 1.25, "1.6x, or 1.1x the limit"),
        _beside_peers(find, f"{routed}, 1 token, 1 thread", "none", ROUTED_PEERS, 1, 1, 1.15, "1.5x"),
        _beside_peers(find, f"{routed}, 128 tokens, 2 threads, QMoE", "none", QMOE_PEERS, 128, 2, 2.0, "1.25x the limit"),
        _beside_peers(find, f"{routed}, 128 tokens, 2 threads, MatMulNBits", "none", NBITS_PEERS, 128, 2, 1.5, "1.25x the limit"),
        _beside_peers(find, f"{whole}, 1 token, 2 threads", "int4", SHARED_PEERS, 1, 2, 1.0, "1.15x with 1.6bit"),
        _beside_dram(find, f"{whole}, 1 token, 2 threads, DRAM", "int4", 1.15),
        _beside_dram(find, "whole layer, bf16 shared expert, 1 token, 2 threads, DRAM", "bf16", 1.2, "1.05x"),
        _beside_peers(find, f"{whole}, 128 tokens, 2 threads", "int4", SHARED_PEERS, 128, 2, 1.5, "2.5x"),
        *_loads(loads),
    ]  # fmt: skip
