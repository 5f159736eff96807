"""What the machine can do: compiles and runs benchmarks/limits/limits.cpp."""

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .graphs import Traffic

SOURCE = Path(__file__).parent.parent / "limits" / "limits.cpp"


@dataclass(frozen=True)
class Limits:
    """Per number of threads."""

    dram_bytes_s: dict[int, float]
    integer_mul_adds_s: dict[int, float]
    float_mul_adds_s: dict[int, float]
    details: dict[str, Any]

    def seconds(self, bytes_read: float, traffic: Traffic, tokens: int, threads: int) -> float:
        """No layer can take less: the greater of the time to read its weights and the time to compute."""
        return max(self.memory_seconds(bytes_read, threads), self.compute_seconds(traffic, tokens, threads))

    def memory_seconds(self, bytes_read: float, threads: int) -> float:
        return bytes_read / self.dram_bytes_s[threads]

    def compute_seconds(self, traffic: Traffic, tokens: int, threads: int) -> float:
        """Integer and float products share the machine's units, so their times add up."""
        integer = traffic.integer_products / self.integer_mul_adds_s[threads]
        floating = traffic.float_products / self.float_mul_adds_s[threads]
        return tokens * (integer + floating)


def from_json(found: dict[str, Any]) -> Limits:
    """Of the program's output, or of a run's file; JSON has made texts of the numbers of threads."""
    names = ("dram_bytes_s", "integer_mul_adds_s", "float_mul_adds_s")
    dram, integer, floating = ({int(threads): value for threads, value in found[name].items()} for name in names)
    rest = {key: value for key, value in found.items() if key not in names}
    return Limits(dram, integer, floating, rest.get("details", rest))


def compile_limits(folder: Path) -> Path:
    """The program, built by the compiler that CXX names (default: c++)."""
    program = folder / "limits"
    command = [os.environ.get("CXX", "c++"), "-O3", "-std=c++17", "-pthread", str(SOURCE), "-o", str(program)]
    subprocess.run(command, check=True, stderr=subprocess.PIPE)
    return program


def measure_limits(program: Path) -> Limits:
    return from_json(json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout))


def dram_of_the_moment(program: Path, threads: int) -> float:
    """Bytes a second that are read from DRAM just now, the median of some pieces; takes a fifth of a second."""
    return float(subprocess.run([program, "dram", str(threads)], check=True, capture_output=True, text=True).stdout)


def greatest(several: list[Limits]) -> Limits:
    """Of measurements before, between and after: a limit is the best that was ever seen in the run."""

    def best(name: str) -> dict[int, float]:
        """More threads can do what fewer did, whatever else ran on the machine while they were measured."""
        found: dict[int, float] = {}
        for threads in sorted(getattr(several[0], name)):
            found[threads] = max([getattr(one, name)[threads] for one in several] + list(found.values()))
        return found

    details = several[-1].details | {"dram_bytes_s_of_runs": [one.dram_bytes_s for one in several]}
    return Limits(best("dram_bytes_s"), best("integer_mul_adds_s"), best("float_mul_adds_s"), details)


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def l3_bytes() -> int:
    """Of the cache that the first core uses; 32 MiB where the system does not tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
    except OSError:
        return 32 << 20
    return int(text.removesuffix("K")) << 10
