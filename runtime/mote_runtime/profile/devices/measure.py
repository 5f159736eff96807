"""Measures exports on a device that adb reaches: push what is missing, wait until it is cool, run, pull, clean up.

Whatever happens (an error, Ctrl-C, SIGTERM), what was put on the device is removed again; where it went away in the middle, the
error says what may be left there and how to remove it.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mote_runtime.errors import ExportFolderError, MoteError
from mote_runtime.manifest import Manifest, Verification, sha256
from mote_runtime.profile.devices.adb import Adb, Device, Output, plain
from mote_runtime.profile.devices.choose import choose_device
from mote_runtime.profile.devices.cleaning import clean_up, cleaned_up_after_errors
from mote_runtime.profile.devices.cooling import wait_until_cool
from mote_runtime.profile.devices.facts import Facts, read_facts, read_state
from mote_runtime.profile.devices.folder import Bundle, DeviceFolder, Piece
from mote_runtime.profile.devices.options import DeviceOptions
from mote_runtime.profile.devices.pull import MAX_RECORD_BYTES, Wanted, pull_files, read_record
from mote_runtime.profile.devices.results import DeviceMeasurements, Measurement
from mote_runtime.profile.devices.runner import RUNNER, Runner, find_runner
from mote_runtime.profile.prompt import prompt_inputs, write_prompt
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.trace.inner import EVENT, MAX_EVENTS

# What a runner reads of an export; the tokenizer and the configurations of stock clients stay here.
_MODEL_FILES = (".onnx", ".onnx.data", ".pte", ".ptd")
MAX_PHASES_BYTES = MAX_EVENTS * EVENT.itemsize
MAX_OPERATORS_BYTES = 512 << 20
_NOT_FOUND, _NOT_EXECUTABLE, _KILLED = 127, 126, 128


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
    with cleaned_up_after_errors(folder, keep):
        folder.place(bundles, keep, facts.free_bytes, say)
        session = _Session(device, options, folder, tools, run, scratch, say)
        measurements = tuple(session.measure(job) for job in jobs)
        return DeviceMeasurements(facts, runner.abi, measurements, clean_up(folder, keep))


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
        before = wait_until_cool(self.device, self.options, self.say)
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
        records = {what: read_record(files[what], job.manifest.target, self.device) for what in written}
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

    def _pull(self, job: _Job, records: Sequence[str]) -> dict[str, Path]:
        """These records and the traces, by what they are; raises AdbError."""
        limits = dict.fromkeys(records, MAX_RECORD_BYTES)
        if "phases" in job.settings.trace_sources:
            limits["phases"] = MAX_PHASES_BYTES
        if "operators" in job.settings.trace_sources:
            limits |= dict.fromkeys(_operator_files(job).values(), MAX_OPERATORS_BYTES)
        return pull_files(
            self.device,
            {
                what: Wanted(self._path(job, what), limit, self.scratch / f"{job.manifest.target}-{what}")
                for what, limit in limits.items()
            },
            f"{RUNNER} on device {plain(self.device.serial)} with {job.manifest.target}",
            "run it there by hand to see why (--no-cleanup keeps it)",
        )


def _operator_files(job: _Job) -> dict[str, str]:
    """What the runner names the runtime's profile, by part of the model: each session of ONNX Runtime writes its own."""
    if job.manifest.target != "onnxruntime":
        return {"model": "operators"}
    vision = {} if job.settings.image is None else {"vision": "operators.vision"}
    return {"decoder": "operators", "embedding": "operators.embedding", **vision}
