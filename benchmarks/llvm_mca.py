"""Static analysis of the ARM kernels: multiply-adds per cycle of their inner loops, according to LLVM's models of CPUs.

    python benchmarks/llvm_mca.py [--mca llvm-mca-22]

Nothing is run or measured. The kernels are compiled as the library is (cross compiler and flags from CMake), the innermost loop
of each function is cut out of the assembly, and llvm-mca plays it with all data in the first cache. The peak is what the same
model says of a loop of nothing but the products. Needs cmake, g++-aarch64-linux-gnu and llvm-mca.
"""

import argparse
import json
import re
import shlex
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CORE = ROOT / "runtime" / "core"

# LLVM has no model of its own for some of these and takes that of a relative; model_name() tells which.
CPUS = {
    "neon": ("cortex-a53", "cortex-a72"),
    "neon_dotprod": ("cortex-a55", "cortex-a76", "cortex-a78", "neoverse-n1", "neoverse-v1"),
    "neon_i8mm": ("cortex-a510", "cortex-a710", "neoverse-v1"),
}
TOKENS = (1, 2, 4, 8, 12, 16)
FORMATS = {"TwoBit": "2bit", "OneSixBit": "1.6bit", "Int4": "int4", "Int8": "int8", "": "bf16"}
ITERATIONS = 200

# Multiply-adds of an instruction, and what keeps the units busy with it: chains that do not wait for each other. The additions
# of bf16 are instructions of their own, as nothing is fused.
PRODUCTS = {"smlal": 8, "smlal2": 8, "smull": 8, "smull2": 8, "sdot": 16, "smmla": 32, "fmul": 4}
PEAK_LOOPS = {
    "smlal": ["smlal v{0}.8h, v20.8b, v21.8b"],
    "sdot": ["sdot v{0}.4s, v20.16b, v21.4b[0]"],
    "smmla": ["smmla v{0}.4s, v20.16b, v21.16b"],
    "fmul": ["fmul v22.4s, v20.4s, v21.s[0]", "fadd v{0}.4s, v{0}.4s, v23.4s"],
}

BRANCH = re.compile(r"(?:b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)$")
LINEAR = re.compile(r"linear(?:_bf16)?I(?:\w*?(TwoBit|OneSixBit|Int4|Int8))?ELi(\d+)E|linear_bf16ILi(\d+)E")


@dataclass
class Result:
    isa: str
    format: str
    tokens: int
    product: str
    cpu: str
    instructions: int
    macs_per_cycle: float
    peak_macs_per_cycle: float

    @property
    def share(self) -> float:
        return self.macs_per_cycle / self.peak_macs_per_cycle


def run(command: list[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr}")
    return done.stdout


def assembly(folder: Path) -> dict[str, str]:
    """The assembly of each ISA file, compiled by CMake's command for it."""
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={CORE / 'cmake' / 'aarch64-linux-gnu.cmake'}"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DMOTE_BUILD_TESTS=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    run(["cmake", "-S", str(CORE), "-B", str(folder), "-G", "Unix Makefiles", toolchain, *options])
    out = {}
    for entry in json.loads((folder / "compile_commands.json").read_text()):
        source = Path(entry["file"])
        if source.name.startswith("neon"):
            words = shlex.split(entry["command"])
            words[words.index("-o") + 1] = "-"
            words[words.index("-c")] = "-S"
            out[source.stem] = run(words)
    return out


def functions(listing: str) -> dict[str, list[str]]:
    """Bodies by mangled name."""
    bodies: dict[str, list[str]] = {}
    body: list[str] | None = None
    for line in listing.splitlines():
        if name := re.match(r"(_Z[\w.]+):", line):
            body = bodies.setdefault(name[1], [])
        elif re.match(r"\s*\.size\s", line):
            body = None
        elif body is not None and line.strip():
            body.append(line.strip())
    return bodies


def count_products(loop: list[str]) -> dict[str, int]:
    """By instruction, with its multiply-adds in the loop."""
    counts: dict[str, int] = {}
    for line in loop:
        name = line.split()[0]
        if name in PRODUCTS:
            counts[name] = counts.get(name, 0) + PRODUCTS[name]
    return counts


def inner_loop(body: list[str]) -> list[str]:
    """Of the loops without a loop inside, the one with the most products."""
    labels: dict[str, int] = {}
    best: list[str] = []
    last_branch = -1  # a backward branch inside a candidate means that there is a loop in it
    for i, line in enumerate(body):
        if line.endswith(":"):
            labels[line[:-1]] = i
        branch = BRANCH.match(line)
        if branch is None or branch[1] not in labels:
            continue
        start = labels[branch[1]]
        if start > last_branch:
            loop = [line for line in body[start : i + 1] if not re.match(r"\.(?!L\w+:)|//", line)]
            if sum(count_products(loop).values()) > sum(count_products(best).values()):
                best = loop
        last_branch = i
    return best


class Mca:
    def __init__(self, program: str) -> None:
        self.command = [program, "--mtriple=aarch64-linux-gnu", "-mattr=+dotprod,+i8mm", f"-iterations={ITERATIONS}"]
        self.version = run([program, "--version"]).split("LLVM version ")[1].split()[0]

    def report(self, loop: list[str], cpu: str) -> str:
        return run([*self.command, f"--mcpu={cpu}"], "\n".join(loop) + "\n")

    def macs_per_cycle(self, loop: list[str], cpu: str) -> float:
        cycles = re.search(r"Total Cycles:\s+(\d+)", self.report(loop, cpu))
        assert cycles is not None
        return sum(count_products(loop).values()) * ITERATIONS / int(cycles[1])

    def peak(self, product: str, cpu: str) -> float:
        return self.macs_per_cycle([line.format(i) for i in range(16) for line in PEAK_LOOPS[product]], cpu)

    def model_name(self, cpu: str) -> str:
        """LLVM names the units of a model after the CPU that it was made for."""
        unit = re.search(r"- (\w+?)(?:Unit|Write)\w*$", self.report(["add x0, x0, x1"], cpu), re.MULTILINE)
        assert unit is not None
        return unit[1]


def analyse(mca: Mca, listings: dict[str, str]) -> list[Result]:
    results = []
    for isa, listing in listings.items():
        for name, body in functions(listing).items():
            match = LINEAR.search(name)
            tokens = int(match[2] or match[3]) if match else 0
            loop = inner_loop(body)
            if match is None or tokens not in TOKENS or not loop:
                continue
            counts = count_products(loop)
            product = re.sub(r"smu?l+a?l?2?$", "smlal", max(counts, key=lambda key: counts[key]))
            product = "smmla" if "smmla" in counts else product
            for cpu in CPUS[isa]:
                speed, peak = mca.macs_per_cycle(loop, cpu), mca.peak(product, cpu)
                format_name = FORMATS[match[1] or ""]
                results.append(
                    Result(isa, format_name, tokens, product, cpu, len(loop), round(speed, 2), round(peak, 2))
                )
    order = list(FORMATS.values())
    return sorted(results, key=lambda r: (list(CPUS).index(r.isa), order.index(r.format), r.tokens))


def markdown(results: list[Result], mca: Mca, models: dict[str, str]) -> str:
    lines = [
        "# Inner loops of the ARM kernels: static analysis",
        "",
        f"**Nothing here was measured.** llvm-mca {mca.version} on the compiled loops (`benchmarks/llvm_mca.py`): multiply-adds",
        "per cycle, and their share of what the same model reaches with nothing but the products. All data is in the first cache;",
        "loads from DRAM, the ends of loops, and for `smmla` the bringing of inputs into pairs are not in it.",
        "",
        "LLVM's models: " + ", ".join(f"{cpu} by that of {model}" for cpu, model in models.items()) + ".",
    ]
    for isa in CPUS:
        lines += ["", f"## {isa}", "", "| format | tokens | product | " + " | ".join(CPUS[isa]) + " |"]
        lines += ["|---|--:|---|" + "--:|" * len(CPUS[isa])]
        rows: dict[tuple[str, int, str], list[str]] = {}
        for r in results:
            if r.isa == isa:
                rows.setdefault((r.format, r.tokens, r.product), []).append(f"{r.macs_per_cycle:.1f} ({r.share:.0%})")
        lines += [f"| {f} | {t} | {p} | " + " | ".join(cells) + " |" for (f, t, p), cells in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mca", default="llvm-mca", help="the program, of LLVM 18 or newer")
    mca = Mca(parser.parse_args().mca)
    with tempfile.TemporaryDirectory() as folder:
        results = analyse(mca, assembly(Path(folder)))
    models = {cpu: mca.model_name(cpu) for cpus in CPUS.values() for cpu in cpus}
    data = {"kind": "static analysis, not measured", "llvm": mca.version, "models": models}
    RESULTS.mkdir(exist_ok=True)
    table = markdown(results, mca, models)
    (RESULTS / "arm_static.md").write_text(table)
    (RESULTS / "arm_static.json").write_text(
        json.dumps({**data, "results": [{**asdict(r), "share": round(r.share, 3)} for r in results]}, indent=1) + "\n"
    )
    print(table)


if __name__ == "__main__":
    main()
