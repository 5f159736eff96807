"""What a figure depends on beside the model: the machine and the versions. No name of a machine or a person."""

import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mote_runtime
from mote_runtime.manifest import Manifest
from mote_runtime.profile.bandwidth import last_level_cache_bytes

_BUSY = 0.5  # of the cores in use by others
_DISTRIBUTIONS = ("numpy", "onnxruntime", "executorch", "torch")


def device_facts() -> dict[str, Any]:
    """The machine, as it says itself now, before anything is measured; null where it does not."""
    cpuinfo = _text("/proc/cpuinfo") or ""
    return {
        "kind": "host",
        "processor": _field(cpuinfo, "model name") or _field(cpuinfo, "Hardware"),
        "architecture": platform.machine(),
        "virtual": "hypervisor" in (_field(cpuinfo, "flags") or "").split(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": _release() or platform.system(),
        "kernel": platform.release(),
    }


def version_facts() -> dict[str, str]:
    """Versions of what takes part, as far as it is installed."""
    versions = {"mote": mote_runtime.__version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def model_facts(manifest: Manifest) -> dict[str, Any]:
    """What was measured, from its manifest."""
    return {
        "name": manifest.model.name,
        "hidden_size": manifest.model.hidden_size,
        "num_hidden_layers": manifest.model.num_hidden_layers,
        "vocab_size": manifest.model.vocab_size,
        "context_length": manifest.model.context_length,
        "moe_layers": list(manifest.moe.layers),
        "num_experts": manifest.moe.num_experts,
        "top_k": manifest.moe.top_k,
        "intermediate_size": manifest.moe.intermediate_size,
        "packing": manifest.moe.packing,
        "shared_expert": manifest.moe.shared_expert,
        "export_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "source_sha256": str(manifest.source.get("sha256", "")),
    }


def busy(device: Mapping[str, Any]) -> str | None:
    """A phrase where others were using the machine when measuring began; None where not, or where nobody knows."""
    load, cores = device.get("load_average"), device.get("usable_cores")
    if not isinstance(load, int | float) or not isinstance(cores, int) or load <= cores * _BUSY:
        return None
    return (
        f"the machine was busy when measuring began (a load of {load:.1f} on {cores} cores): take the figures with care"
    )


def thread_count(threads: int | None, cores: tuple[int, ...] | None) -> int:
    """The threads that a limit is measured with: as asked for, else one for each core that may be used."""
    return threads or len(cores or os.sched_getaffinity(0))


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _release() -> str | None:
    name = _field((_text("/etc/os-release") or "").replace("=", ": "), "PRETTY_NAME")
    return name.strip('"') if name else None
