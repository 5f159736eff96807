"""`mote-profile`: what users quote of an exported model, and where its time goes."""

import argparse
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import mote_runtime
from mote_runtime.backends import RUNTIMES
from mote_runtime.cli.profile_device import add_device_options, check_device_options, profile_on_device
from mote_runtime.cli.run import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, add_verify_option
from mote_runtime.errors import MoteError
from mote_runtime.manifest import MANIFEST_NAME
from mote_runtime.pipeline import MAX_THREADS
from mote_runtime.profile import host, terminal
from mote_runtime.profile.build import Profile
from mote_runtime.profile.comparison import Comparison, compare_records, slower
from mote_runtime.profile.output import check_output, write_output
from mote_runtime.profile.read import is_profile, read_profile
from mote_runtime.profile.record import MAX_REPETITIONS, Record
from mote_runtime.profile.settings import (
    DEFAULT_LOADS,
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_REPETITIONS,
    DEFAULT_WARMUP,
    TRACE_SOURCES,
    Settings,
)
from mote_runtime.profile.signals import ending_signals_raise

logger = logging.getLogger("mote-profile")

_CORE_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)

_EPILOG = """\
examples:
  both runtimes of `mote-export --target all`; writes exported-profile/ with profile.json, report.html and trace.json
    mote-profile exported
  a question of your own, on two cores
    mote-profile exported --image photo.png --prompt "What number is shown?" --cores 0,1
  is the new export faster? their answers take turns, so that a change of the machine meets both
    mote-profile --compare before after --runtime onnxruntime
  two runs of before, without measuring anew; fails if B is shown to be more than 5 % slower
    mote-profile --compare monday-profile tuesday-profile --fail-if-slower 5
  on the phone that adb sees (docs/device.md)
    mote-profile exported --device
  one figure for a program
    mote-profile exported --no-trace --json | jq .runs[0].summary.decode_token_per_sec.median

Every answer has the same length unless --stop-at-eos is given: an end-of-sequence token is taken as any other, because
times of answers of different lengths cannot be compared. Open report.html in a browser and trace.json in ui.perfetto.dev.

The summary, or with --json the profile, goes to stdout, everything else to stderr.
exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line, in the groups of its help."""
    parser = argparse.ArgumentParser(
        prog="mote-profile",
        usage="mote-profile DIR [options]\n       mote-profile --compare A B [options]",
        description="Measure a model that mote-export wrote, and show where its time goes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("what is measured")
    model.add_argument(
        "folder", nargs="?", metavar="DIR", help="an exported folder, or one with onnx/ and executorch/ inside"
    )
    model.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two exports, measured in turns, or two profiles (folders or profile.json)",
    )
    model.add_argument("--runtime", choices=tuple(RUNTIMES), help="default: all that DIR was exported for")
    model.add_argument("--prompt", metavar="TEXT", help="default: a short question")
    picture = model.add_mutually_exclusive_group()
    picture.add_argument("--image", metavar="FILE", help="default: a drawing, if the model takes pictures")
    picture.add_argument("--no-image", action="store_true", help="ask without a picture")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--max-new-tokens",
        type=_count(1),
        metavar="N",
        help=f"default: {DEFAULT_MAX_NEW_TOKENS}, as far as the context goes",
    )
    how.add_argument("--stop-at-eos", action="store_true", help="end answers where the model ends them")
    how.add_argument(
        "--warmup",
        type=_count(0, MAX_REPETITIONS),
        default=DEFAULT_WARMUP,
        metavar="N",
        help="answers before; default: %(default)s",
    )
    how.add_argument(
        "--repetitions",
        type=_count(1, MAX_REPETITIONS),
        default=DEFAULT_REPETITIONS,
        metavar="N",
        help="answers measured; default: %(default)s",
    )
    how.add_argument(
        "--loads",
        type=_count(1, 1000),
        default=DEFAULT_LOADS,
        metavar="N",
        help="processes that load the model for its time; default: %(default)s",
    )
    how.add_argument(
        "--threads",
        type=_count(1, MAX_THREADS),
        metavar="N",
        help="default: the runtime's own choice, with --cores their number",
    )
    how.add_argument(
        "--cores", type=_cores, metavar="LIST", help="the cores to run on, such as 0,1 or 0-3; default: any"
    )
    add_verify_option(how)
    add_device_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder; default: DIR's name + -profile, here")
    output.add_argument("--no-trace", action="store_true", help="measure only")
    output.add_argument(
        "--trace-sources",
        type=_sources,
        default=TRACE_SOURCES,
        metavar="LIST",
        help="operators, phases, or both (default)",
    )
    output.add_argument("--json", action="store_true", help="print profile.json instead of the summary")
    output.add_argument(
        "--fail-if-slower",
        type=float,
        metavar="PERCENT",
        help="with --compare: exit code 1 if B is shown to be slower by more",
    )
    output.add_argument("-q", "--quiet", action="store_true", help="say nothing on stderr while it works")
    output.add_argument("-v", "--verbose", action="store_true", help="the traceback of an error")
    output.add_argument("--version", action="version", version=f"mote-profile {mote_runtime.__version__}")
    return parser


class _count:  # noqa: N801 - a type for argparse
    """A whole number within limits."""

    def __init__(self, low: int, high: int = 1 << 20) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = self._low - 1
        if not self._low <= value <= self._high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {self._low} to {self._high}")
        return value


def _cores(text: str) -> tuple[int, ...]:
    parts = [_CORE_RANGE.fullmatch(part) for part in text.split(",")]
    ranges = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    if len(ranges) != len(parts) or any(last < first for first, last in ranges):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of cores such as 0,1 or 0-3")
    return tuple(sorted({core for first, last in ranges for core in range(first, last + 1)}))


def _sources(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(text.split(",")))
    if not set(found) <= set(TRACE_SOURCES):
        raise argparse.ArgumentTypeError(f"{text!r} is not made of {' and '.join(TRACE_SOURCES)}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (argparse itself leaves with 2 on wrong usage)."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if (arguments.folder is None) == (arguments.compare is None):
        parser.error("give either a folder or --compare A B")
    if arguments.fail_if_slower is not None and (arguments.compare is None or not arguments.fail_if_slower >= 0):
        parser.error("--fail-if-slower needs --compare and a percentage of at least 0")
    check_device_options(parser, arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="mote-profile: %(message)s", force=True)
    command = ["mote-profile", *(sys.argv[1:] if argv is None else argv)]
    try:
        with ending_signals_raise():
            return _compare(arguments, command) if arguments.compare else _profile(arguments, command)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILURE
    except MoteError as error:
        logger.error("%s", error, exc_info=arguments.verbose)
    except Exception as error:
        logger.error(
            "internal error: %s: %s (-v shows where).", type(error).__name__, error, exc_info=arguments.verbose
        )
    return EXIT_FAILURE


def _settings(arguments: argparse.Namespace) -> Settings:
    """The settings of any export; `host.settings_for` completes them for one."""
    return Settings(
        folder="",
        prompt=arguments.prompt or "",
        image=None if arguments.no_image else arguments.image or "",
        max_new_tokens=arguments.max_new_tokens or 0,
        ignore_eos=not arguments.stop_at_eos,
        threads=arguments.threads or (len(arguments.cores) if arguments.cores else None),
        cores=arguments.cores,
        warmup=arguments.warmup,
        repetitions=arguments.repetitions,
        loads=arguments.loads,
        trace_sources=() if arguments.no_trace else arguments.trace_sources,
    )


def _profile(arguments: argparse.Namespace, command: list[str]) -> int:
    folder = Path(arguments.folder)
    output = arguments.output or Path(f"{folder.resolve().name}-profile")
    exports = host.find_exports(folder, arguments.runtime)
    check_output(output)
    common = _settings(arguments)
    subjects = [
        host.Subject(runtime, host.settings_for(path, common, verify=arguments.verify))
        for runtime, path in exports.items()
    ]
    if arguments.device is not None:
        with profile_on_device(arguments, subjects, command) as (profile, traces):
            _finish(arguments, profile, output, traces)
        return EXIT_OK
    with host.progress(quiet=arguments.quiet) as progress:
        profile = host.profile(subjects, command, progress, in_turns=False)
    _finish(arguments, profile, output)
    return EXIT_OK


def _compare(arguments: argparse.Namespace, command: list[str]) -> int:
    paths = [Path(path) for path in arguments.compare]
    earlier = [is_profile(path) and not (path / MANIFEST_NAME).exists() for path in paths]
    if all(earlier):
        comparisons = _compare_earlier(paths, arguments.runtime)
        documents = [each.to_json() for each in comparisons]
        if arguments.json:
            _print_json({"comparisons": documents})
        else:
            for document in documents:
                terminal.print_comparison(terminal.stdout_console(), document)
        return _judge(comparisons, arguments.fail_if_slower)
    if any(earlier):
        profiled, other = (paths[earlier.index(which)] for which in (True, False))
        raise MoteError(f"{profiled} is a profile and {other} is none; compare two exports or two profiles")
    output = arguments.output or Path(f"{paths[0].resolve().name}-and-{paths[1].resolve().name}-profile")
    check_output(output)
    common, verify = _settings(arguments), arguments.verify
    pairs = host.pair_exports(paths[0], paths[1], arguments.runtime)
    subjects = [
        host.Subject(
            f"{side}: {path.resolve().parent.name}/{path.resolve().name}",
            host.settings_for(path, common, verify=verify),
        )
        for pair in pairs
        for side, path in zip("AB", pair, strict=True)
    ]
    with host.progress(quiet=arguments.quiet) as progress:
        profile = host.profile(subjects, command, progress, in_turns=True)
    _finish(arguments, profile, output)
    return _judge(profile.comparisons, arguments.fail_if_slower)


def _compare_earlier(paths: Sequence[Path], runtime: str | None) -> list[Comparison]:
    sides: list[dict[str, tuple[str, Record]]] = []
    for path in paths:
        runs = [(label, record) for label, record in read_profile(path) if runtime in (None, record.runtime)]
        if not runs:
            raise MoteError(f"{path} holds no run of {runtime or 'any runtime'}; profile it again")
        if twice := [name for name in RUNTIMES if sum(record.runtime == name for _, record in runs) > 1]:
            raise MoteError(
                f"{path} holds several runs in {twice[0]}, as a comparison does; give the profile of one export"
            )
        sides.append({record.runtime: (label, record) for label, record in runs})
    first, second = sides
    common = [name for name in first if name in second]
    if not common and len(first) == len(second) == 1:
        common_pairs = [(next(iter(first.values())), next(iter(second.values())))]
    else:
        common_pairs = [(first[name], second[name]) for name in common]
    if not common_pairs:
        raise MoteError(
            f"{paths[0]} and {paths[1]} have no runtime in common: {', '.join(first)} and {', '.join(second)}"
        )
    return [compare_records((f"{paths[0]}, {a[0]}", f"{paths[1]}, {b[0]}"), a[1], b[1]) for a, b in common_pairs]


def _finish(
    arguments: argparse.Namespace, profile: Profile, output: Path, traces: Mapping[str, Path] = MappingProxyType({})
) -> None:
    write_output(output, profile.files, traces)
    if arguments.json:
        _print_json(profile.document)
    else:
        console = terminal.stdout_console()
        if not profile.document["comparisons"]:
            terminal.print_summary(console, profile.document)
        for comparison in profile.document["comparisons"]:
            terminal.print_comparison(console, comparison)
    if not arguments.quiet:
        names = " ".join(str(output / name) for name in profile.files)
        sys.stderr.write(f"mote-profile: wrote {names}\n")


def _print_json(document: object) -> None:
    json.dump(document, sys.stdout)
    sys.stdout.write("\n")


def _judge(comparisons: Sequence[Comparison], percent: float | None) -> int:
    if percent is None:
        return EXIT_OK
    found = slower(comparisons, percent)
    if found is None:
        return EXIT_OK
    raise MoteError(f"B is slower by more than {percent:g} %: {found}")


if __name__ == "__main__":
    sys.exit(main())
