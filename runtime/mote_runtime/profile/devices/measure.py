"""Measures exports on a device that adb reaches: push what is missing, wait until it is cool, run, pull, clean up.

Whatever happens (an error, Ctrl-C, SIGTERM), what was put on the device is removed again; where it went away in the middle, the
error says what may be left there and how to remove it.
"""

import contextlib
import hashlib
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mote_runtime.errors import ExportFolderError, MoteError
from mote_runtime.manifest import Manifest, Verification, sha256
from mote_runtime.profile.devices.adb import Adb, AdbError, AttachedDevice, Device, Output, plain
from mote_runtime.profile.devices.facts import Facts, State, read_facts, read_state, throttled
from mote_runtime.profile.devices.folder import Bundle, DeviceFolder, Piece
from mote_runtime.profile.devices.runner import RUNNER, Runner, find_runner
from mote_runtime.profile.prompt import prompt_inputs, write_prompt
from mote_runtime.profile.record import Record
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.signals import uninterrupted
from mote_runtime.profile.strict import read_json
from mote_runtime.profile.trace.inner import EVENT, MAX_EVENTS

logger = logging.getLogger(__name__)

# What a runner reads of an export; the tokenizer and the configurations of stock clients stay here.
_MODEL_FILES = (".onnx", ".onnx.data", ".pte", ".ptd")
MAX_RECORD_BYTES = 64 << 20
MAX_PHASES_BYTES = MAX_EVENTS * EVENT.itemsize
MAX_OPERATORS_BYTES = 512 << 20
COOL_INTERVAL_S = 5.0
# A phone is warm to the hand above the first; a board's hottest zone is its processor, which is warmer inside.
COOL_BELOW, COOL_BELOW_ZONE = 38.0, 60.0
_NOT_FOUND, _NOT_EXECUTABLE, _KILLED = 127, 126, 128


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """What the command line says of the device.

    Attributes:
        adb, serial, runner: None where the default is to be found: the program, the only device, the runner's folder.
        wait_cool: wait until the device is below `cool_below` degrees Celsius (None: by the sensor), at most `cool_timeout_s`.
        run_timeout_s: the longest that one run of the runner may take.
        cleanup: remove models and runner from the device at the end; the files of the run itself go in any case.
    """

    adb: str | None = None
    serial: str | None = None
    runner: str | None = None
    wait_cool: bool = True
    cool_below: float | None = None
    cool_timeout_s: float = 900.0
    run_timeout_s: float = 1800.0
    cleanup: bool = True


@dataclass(frozen=True, slots=True)
class Measurement:
    """One export measured on the device.

    `record` is of the measured repetitions; `traced` of another process, whose operators' phases and runtime's profile are in
    the files: `operators` has one for each part of the model in ONNX Runtime, and one for the whole in ExecuTorch.
    """

    manifest: Manifest
    settings: Settings
    record: Record
    traced: Record | None
    phases: Path | None
    operators: Mapping[str, Path]
    before: State
    after: State

    def to_json(self) -> dict[str, Any]:
        """How the device was before and after, and whether it was slowed down meanwhile."""
        slowed = throttled(self.before, self.after)
        return {"before": self.before.to_json(), "after": self.after.to_json(), "throttled": slowed}


@dataclass(frozen=True, slots=True)
class DeviceMeasurements:
    """What was measured on a device, one entry for each export.

    `left`: a sentence on what cleaning up could not remove, with what to do; None where nothing is left.
    """

    facts: Facts
    runner: Runner
    measurements: tuple[Measurement, ...]
    left: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The device's part of a profile's facts: which it is, and how it was around each measurement, by runtime."""
        runs = {each.manifest.target: each.to_json() for each in self.measurements}
        return self.facts.to_json() | {"runner_abi": self.runner.abi, "runs": runs}


def choose_device(adb: Adb, serial: str | None = None) -> Device:
    """The device of this serial number (default: of ANDROID_SERIAL, or the only one); raises AdbError where it cannot be used."""
    attached = adb.devices()
    wanted = serial or os.environ.get("ANDROID_SERIAL")
    listed = ", ".join(map(str, attached))
    if wanted:
        chosen = [device for device in attached if device.serial == wanted]
        if not chosen:
            there = f"it sees {listed}" if attached else "it sees none at all"
            raise AdbError(f"adb sees no device {plain(wanted)!r}: {there}; name one that adb devices lists")
    else:
        # A device that cannot be used does not make the choice among those that can harder.
        chosen = [device for device in attached if device.state == "device"] or list(attached)
        if not chosen:
            raise AdbError(
                "adb sees no device; connect one by USB with USB debugging switched on, or with adb connect HOST:PORT, until "
                "adb devices lists it"
            )
        if len(chosen) > 1:
            raise AdbError(f"adb sees {len(chosen)} devices, {listed}; choose one with --device SERIAL")
    _check_usable(chosen[0])
    return Device(adb, chosen[0].serial)


def _check_usable(device: AttachedDevice) -> None:
    cures = {
        "unauthorized": "unlock it and accept this computer's key in the dialog that it shows",
        "authorizing": "unlock it and accept this computer's key in the dialog that it shows",
        "offline": "pull its cable and connect it again, or run adb reconnect offline",
        "no permissions": "let your user open its USB device (udev rules), or run adb kill-server and try as another user",
    }
    if device.state != "device":
        state = plain(device.state)
        cure = cures.get(device.state, "start its system as usual, until adb devices shows it as device")
        raise AdbError(f"device {device} is in the state {state!r}, not 'device'; {cure}")


def measure_on_device(
    subjects: Sequence[Settings], options: DeviceOptions, scratch: Path, say: Callable[[str], None]
) -> DeviceMeasurements:
    """Measure exports on a device, one after the other, and leave nothing there; what is pulled lies in `scratch`.

    Raises MoteError.
    """
    manifests = [Manifest.read(settings.path) for settings in subjects]
    for manifest in manifests:
        manifest.verify(Verification.SIZES)  # the device computes the sums of what it is sent
    device = choose_device(Adb.find(options.adb), options.serial)
    facts, _ = read_facts(device)
    runner = find_runner(facts.abis, options.runner)
    _check_loader(device, runner, facts)
    jobs = [_Job.prepare(settings, manifest, scratch) for settings, manifest in zip(subjects, manifests, strict=True)]
    tools = Bundle.by_content("runner", [_piece(path, executable=path.name == RUNNER) for path in runner.files])
    run = Bundle.of_one_run([job.prompt for job in jobs])
    bundles = list({bundle.folder: bundle for bundle in [tools, *(job.model for job in jobs), run]}.values())
    keep = [] if options.cleanup else [bundle for bundle in bundles if bundle is not run]
    folder = DeviceFolder.in_folder(device, facts.folder)
    with _cleaned_up_after_errors(folder, keep):
        folder.lock([bundle for bundle in bundles if bundle not in keep])
        missing = folder.missing(bundles)
        folder.check_space(missing, facts.free_bytes)
        folder.make(bundles)
        folder.push(missing, say)
        session = _Session(device, options, folder, tools, run, scratch, say)
        measurements = tuple(session.measure(job) for job in jobs)
        return DeviceMeasurements(facts, runner, measurements, _clean(folder, keep))


def _check_loader(device: Device, runner: Runner, facts: Facts) -> None:
    if runner.loader is None:
        return
    if device.shell(f"[ -e {shlex.quote(runner.loader)} ]", "looking for the runner's loader").exit_code:
        raise MoteError(
            f"{runner.files[0]} wants the loader {plain(runner.loader)}, which device {plain(device.serial)} ({facts.system}) "
            "does not have: it is built for another system; build the runner for this one (docs/runner.md)"
        )


def _piece(path: Path, *, executable: bool = False) -> Piece:
    try:
        return Piece(path.name, path.resolve(strict=True), path.stat().st_size, sha256(path), executable)
    except (OSError, RuntimeError) as error:
        raise MoteError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class _Job:
    """One export to be measured: what has to be on the device for it."""

    settings: Settings
    manifest: Manifest
    model: Bundle
    prompt: Piece

    @classmethod
    def prepare(cls, settings: Settings, manifest: Manifest, scratch: Path) -> "_Job":
        pieces = [
            Piece(name, manifest.path(name).resolve(), entry.bytes, entry.sha256)
            for name, entry in manifest.files.items()
            if name.endswith(_MODEL_FILES)
        ]
        if not pieces:
            raise ExportFolderError(f"{manifest.folder} lists no model file; expected one of {', '.join(_MODEL_FILES)}")
        prompt = scratch / f"prompt-{manifest.target}.bin"
        ids, pixels = prompt_inputs(settings, manifest)
        write_prompt(prompt, manifest, ids, pixels, ignore_eos=settings.ignore_eos)
        return cls(settings, manifest, Bundle.by_content("model", pieces), _piece(prompt))


@contextlib.contextmanager
def _cleaned_up_after_errors(folder: DeviceFolder, keep: Sequence[Bundle]) -> Iterator[None]:
    """Clean the device if the block does not end well; the error then says what could not be removed."""
    try:
        yield
    except BaseException as error:
        left = _clean(folder, keep)
        if left and isinstance(error, MoteError):
            raise type(error)(f"{str(error).rstrip('.')}; {folder.remedy()}") from error
        if left:
            logger.error("%s", left)
        raise


def _clean(folder: DeviceFolder, keep: Sequence[Bundle]) -> str | None:
    """Clean up; a sentence on what may be left, None where nothing is."""
    with uninterrupted():
        try:
            folder.clean(keep)
        except AdbError as error:
            return f"{str(error).rstrip('.')}; {folder.remedy()}."
    return None


@dataclass(frozen=True, slots=True)
class _Session:
    """The part between pushing and cleaning up: measuring, with everything in place."""

    device: Device
    options: DeviceOptions
    folder: DeviceFolder
    tools: Bundle
    run: Bundle
    scratch: Path
    say: Callable[[str], None]

    def measure(self, job: _Job) -> Measurement:
        """Load one export as often as asked for, run its repetitions, then a traced one; raises MoteError."""
        target, settings = job.manifest.target, job.settings
        before = self._wait_until_cool()
        loads = [f"load-{number}" for number in range(1, settings.loads)]
        for number, what in enumerate(loads, 1):
            self.say(f"loading {target} on {plain(self.device.serial)}, {number} of {settings.loads}")
            self._run(job, what, replace(settings, warmup=0, repetitions=1, max_new_tokens=1), ())
        self.say(f"measuring {target} on {plain(self.device.serial)}")
        self._run(job, "record", settings, ())
        after = read_state(self.device)
        traced = bool(settings.trace_sources)
        if traced:
            self.say(f"tracing {target} on {plain(self.device.serial)}")
            self._run(job, "traced", replace(settings, repetitions=1), self._trace_options(job))
        written = [*loads, "record", *(["traced"] if traced else [])]
        files = self._pull(job, written)
        records = {what: self._read_record(job, files[what]) for what in written}
        times = tuple(records[what].model_load_end_ms - records[what].model_load_start_ms for what in loads)
        return Measurement(
            job.manifest,
            settings,
            records["record"].with_loads(times),
            records.get("traced"),
            files.get("phases"),
            {part: files[what] for part, what in _operator_files(job).items() if what in files},
            before,
            after,
        )

    def _path(self, job: _Job, what: str) -> str:
        return f"{self.folder.path}/{self.run.folder}/{job.manifest.target}-{what}"

    def _trace_options(self, job: _Job) -> tuple[str, ...]:
        options = {"phases": "--trace", "operators": "--runtime-trace"}
        return tuple(
            word
            for what, option in options.items()
            if what in job.settings.trace_sources
            for word in (option, self._path(job, what))
        )

    def _run(self, job: _Job, what: str, settings: Settings, extra: Sequence[str]) -> None:
        tools = f"{self.folder.path}/{self.tools.folder}"
        command = [f"{tools}/{RUNNER}", "--model", f"{self.folder.path}/{job.model.folder}"]
        command += ["--runtime", job.manifest.target]
        command += [
            "--prompt",
            f"{self.folder.path}/{self.run.folder}/{job.prompt.name}",
            "--output",
            self._path(job, what),
        ]
        command += ["--max-new-tokens", str(settings.max_new_tokens)]
        command += ["--warmup", str(settings.warmup), "--repetitions", str(settings.repetitions)]
        if settings.threads is not None:
            command += ["--threads", str(settings.threads)]
        if settings.cores is not None:
            command += ["--cores", ",".join(map(str, settings.cores))]
        output = self.device.execute(
            [*command, *extra],
            f"running {RUNNER} with {job.manifest.target}",
            self.options.run_timeout_s,
            {"LD_LIBRARY_PATH": tools},
            f"{self.folder.path}/{self.run.folder}/pid",
        )
        if output.exit_code:
            raise MoteError(self._failure(job, output))

    def _failure(self, job: _Job, output: Output) -> str:
        where = f"{RUNNER} on device {plain(self.device.serial)} with {job.manifest.target}"
        words = output.last_words().removeprefix(f"{RUNNER}: ") or "it said nothing"
        if output.exit_code in (_NOT_FOUND, _NOT_EXECUTABLE):
            return f"{where} cannot be started: {words.rstrip('.')}; build the runner for this device (docs/runner.md)"
        if output.exit_code > _KILLED:
            return (
                f"{where} was ended by signal {output.exit_code - _KILLED}: {words.rstrip('.')}; if it was the system that "
                "ended it, the model needs more memory than the device has"
            )
        return f"{where} failed with exit code {output.exit_code}: {words}"

    def _wait_until_cool(self) -> State:
        """How the device is once it is cool enough; raises MoteError where it stays warm."""
        deadline = time.monotonic() + self.options.cool_timeout_s
        while True:
            state = read_state(self.device)
            warm = _too_warm(state, self.options.cool_below) if self.options.wait_cool else None
            if warm is None:
                return state
            if time.monotonic() >= deadline:
                raise MoteError(
                    f"device {plain(self.device.serial)} did not cool down within {self.options.cool_timeout_s:.0f} s: {warm}; let "
                    "it rest, raise --cool-below, or measure as it is with --no-wait-cool"
                )
            self.say(f"waiting until {plain(self.device.serial)} is cool: {warm}")
            time.sleep(min(COOL_INTERVAL_S, max(deadline - time.monotonic(), 0.01)))

    def _pull(self, job: _Job, records: Sequence[str]) -> dict[str, Path]:
        """These records and the traces, by what they are, each compared with the device's sum of it; raises AdbError."""
        limits = dict.fromkeys(records, MAX_RECORD_BYTES)
        if "phases" in job.settings.trace_sources:
            limits["phases"] = MAX_PHASES_BYTES
        if "operators" in job.settings.trace_sources:
            limits |= dict.fromkeys(_operator_files(job).values(), MAX_OPERATORS_BYTES)
        lines = ["look() { if [ -f $1 ]; then wc -c <$1 && sha256sum <$1 || exit 1; else echo 0; echo -; fi; }"]
        lines += [f"look {shlex.quote(self._path(job, what))}" for what in limits]
        sums = self.device.ask("\n".join(lines), "looking for its results").split("\n")
        answers = [line.split() for line in sums if line.strip()]
        found = {}
        for index, (what, limit) in enumerate(limits.items()):
            size, digest = answers[2 * index : 2 * index + 2] if len(answers) == 2 * len(limits) else ([""], [""])
            if not size[0].isdecimal() or digest[0] == "-":
                raise AdbError(
                    f"{RUNNER} on device {plain(self.device.serial)} with {job.manifest.target} ended without writing its "
                    f"{what}; run it there by hand to see why (--no-cleanup keeps it)"
                )
            if len(size[0]) > 15 or int(size[0]) > limit:
                raise AdbError(
                    f"the {what} on device {plain(self.device.serial)} has {plain(size[0])} bytes; expected at most {limit}"
                )
            target = self.scratch / f"{job.manifest.target}-{what}"
            self.device.pull(self._path(job, what), target, limit)
            if _sha256(target) != digest[0]:
                raise AdbError(
                    f"the {what} changed on the way from device {plain(self.device.serial)}; profile again, and mistrust the cable "
                    "if that repeats"
                )
            found[what] = target
        return found

    def _read_record(self, job: _Job, path: Path) -> Record:
        record = Record.from_json(
            read_json(path, MAX_RECORD_BYTES),
            f"the record of {job.manifest.target} from device {plain(self.device.serial)}",
        )
        if record.runtime != job.manifest.target:
            raise MoteError(
                f"the record from device {plain(self.device.serial)} is of {record.runtime}; expected {job.manifest.target}"
            )
        return record


def _operator_files(job: _Job) -> dict[str, str]:
    """What the runner names the runtime's profile, by part of the model: each session of ONNX Runtime writes its own."""
    if job.manifest.target != "onnxruntime":
        return {"model": "operators"}
    vision = {} if job.settings.image is None else {"vision": "operators.vision"}
    return {"decoder": "operators", "embedding": "operators.embedding", **vision}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _too_warm(state: State, below: float | None) -> str | None:
    """Why the device should rest first; None where it need not, or says nothing of its temperature."""
    if state.thermal_status:
        return f"its thermal status is {state.thermal_status}; expected 0"
    warmest = state.warmest()
    if warmest is None:
        return None
    name, degrees = warmest
    surface = any(word in name.lower() for word in ("skin", "batt"))
    bound = below if below is not None else COOL_BELOW if surface else COOL_BELOW_ZONE
    return f"{name} is at {degrees:.1f} °C; expected below {bound:g} °C" if degrees >= bound else None
