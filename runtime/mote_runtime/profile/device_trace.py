"""The traces that the native runner wrote on a device, as `timeline` takes them."""

from mote_runtime.profile.device import Measurement
from mote_runtime.profile.inner import read_events
from mote_runtime.profile.raw_trace import RawTrace
from mote_runtime.profile.session import read_runs


def read_trace(measured: Measurement) -> RawTrace | None:
    """The trace of one measurement, None where nothing was traced; raises ProfileError where it is damaged."""
    if measured.phases is None and measured.operators is None:
        return None
    manifest = measured.manifest
    target = manifest.target
    files = {} if measured.operators is None else {target: measured.operators}
    return RawTrace(
        runs=read_runs(target, files, manifest),
        calls=(),
        marks=None,
        moe_layers=manifest.moe.layers,
        num_experts=manifest.moe.num_experts,
        phases=read_events(b"" if measured.phases is None else measured.phases, f"the phases of {target}"),
    )
