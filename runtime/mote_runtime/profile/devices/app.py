"""Measures exports inside the demo app, or one made after it, by its benchmark intent: push, start, wait, pull, clean up.

The app reads the folder as any other model of its own: with its tokenizer, its pictures, Java's memory and Android's scheduler of
apps, none of which `mote-runner` meets. It records no trace.
"""

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mote_runtime.errors import MoteError
from mote_runtime.manifest import MANIFEST_NAME, Manifest, Verification, sha256
from mote_runtime.profile.devices.adb import Adb, AdbError, AdbTimeoutError, Device, plain
from mote_runtime.profile.devices.choose import choose_device
from mote_runtime.profile.devices.cleaning import clean_up, cleaned_up_after_errors
from mote_runtime.profile.devices.cooling import wait_until_cool
from mote_runtime.profile.devices.facts import Facts, read_facts, read_state
from mote_runtime.profile.devices.folder import NAME, Bundle, DeviceFolder, Piece
from mote_runtime.profile.devices.options import DeviceOptions
from mote_runtime.profile.devices.pull import MAX_RECORD_BYTES, Wanted, pull_files, read_record
from mote_runtime.profile.devices.results import DeviceMeasurements, Measurement
from mote_runtime.profile.sample import read_picture
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.signals import uninterrupted

DEFAULT_APP = "org.mote.demo"
ACTIVITY = ".BenchmarkActivity"
POLL_S = 0.5
_START_S = 60.0  # until the app has said that it runs
_APP = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)+", re.ASCII)
_PICTURE = "question.png"


def measure_in_app(
    subjects: Sequence[Settings], options: DeviceOptions, app: str, scratch: Path, say: Callable[[str], None]
) -> DeviceMeasurements:
    """Measure exports in an app on a device, one after the other, and leave nothing there; what is pulled lies in `scratch`.

    Raises MoteError.
    """
    if not _APP.fullmatch(app):
        raise MoteError(f"{app!r} is no application's name; expected one such as {DEFAULT_APP}")
    manifests = [Manifest.read(settings.path) for settings in subjects]
    for manifest in manifests:
        manifest.verify(Verification.SIZES)  # the device computes the sums of what it is sent
    device = choose_device(Adb.find(options.adb), options.serial)
    facts, _ = read_facts(device)
    files = _files_folder(device, app)
    jobs = [_Job.prepare(settings, manifest, scratch) for settings, manifest in zip(subjects, manifests, strict=True)]
    run = Bundle.of_one_run([job.picture for job in jobs if job.picture is not None][:1])
    bundles = list({bundle.folder: bundle for bundle in [*(job.model for job in jobs), run]}.values())
    keep = [] if options.cleanup else [bundle for bundle in bundles if bundle is not run]
    folder = DeviceFolder.in_folder(device, files)
    with cleaned_up_after_errors(folder, keep):
        folder.place(bundles, keep, facts.free_bytes, say)
        session = _Session(device, options, app, folder, run, scratch, say)
        measurements = tuple(session.measure(job) for job in jobs)
        return DeviceMeasurements(facts, _abi(facts), measurements, clean_up(folder, keep))


def _abi(facts: Facts) -> str:
    return facts.abis[0] if facts.abis else "unknown"


def _files_folder(device: Device, app: str) -> str:
    """The app's own folder on the shared storage, where both it and adb may write; raises MoteError where there is no such app."""
    answer = device.shell(f"pm path {app}", "looking for the app")
    if not answer.stdout.strip().startswith("package:"):
        raise MoteError(
            f"device {plain(device.serial)} has no app {app}; install it with adb install (make android builds the demo app), "
            "or name another with --app"
        )
    folder = f"/sdcard/Android/data/{app}/files"
    device.ask(f"mkdir -p {folder} && [ -w {folder} ]", f"opening the folder of {app}")
    return folder


@dataclass(frozen=True, slots=True)
class _Job:
    """One export to be measured: what has to be on the device for it."""

    settings: Settings
    manifest: Manifest
    model: Bundle
    picture: Piece | None

    @classmethod
    def prepare(cls, settings: Settings, manifest: Manifest, scratch: Path) -> "_Job":
        library = manifest.plugin_library  # the app has its own, and runs no code from a model's folder
        pieces = [
            Piece(name, manifest.path(name).resolve(), entry.bytes, entry.sha256)
            for name, entry in manifest.files.items()
            if name != library
        ]
        description = manifest.folder / MANIFEST_NAME
        pieces.append(Piece(MANIFEST_NAME, description, description.stat().st_size, sha256(description)))
        return cls(settings, manifest, Bundle.by_content("model", pieces), _picture(settings, scratch))


def _picture(settings: Settings, scratch: Path) -> Piece | None:
    """The question's picture as a file that every device decodes to the same pixels."""
    picture: Image.Image | None = read_picture(settings)
    if picture is None:
        return None
    path = scratch / _PICTURE
    picture.save(path)
    return Piece(_PICTURE, path, path.stat().st_size, sha256(path))


@dataclass(frozen=True, slots=True)
class _Session:
    """The part between pushing and cleaning up: measuring, with everything in place."""

    device: Device
    options: DeviceOptions
    app: str
    folder: DeviceFolder
    run: Bundle
    scratch: Path
    say: Callable[[str], None]

    def measure(self, job: _Job) -> Measurement:
        """Start the app's benchmark of one export and wait for its record; raises MoteError."""
        target = job.manifest.target
        # Below the app's folder, and in that of this run, so that whoever cleans up after a lost run removes them as well.
        name = f"{NAME}/{self.run.folder}/{target}"
        results = f"{self.folder.path}/{self.run.folder}/{target}"
        before = wait_until_cool(self.device, self.options, self.say)
        self.say(f"measuring {target} in {self.app} on {plain(self.device.serial)}")
        with self._stopped_after_errors():
            self._start(job, name)
            self._wait(job, f"{results}.status")
        after = read_state(self.device)
        wanted = Wanted(f"{results}.json", MAX_RECORD_BYTES, self.scratch / f"{target}-record")
        whose = f"{self.app} on device {plain(self.device.serial)} with {target}"
        files = pull_files(self.device, {"record": wanted}, whose, "look into adb logcat to see why")
        record = read_record(files["record"], target, self.device)
        return Measurement(job.manifest, job.settings, record, None, None, {}, before, after)

    @contextlib.contextmanager
    def _stopped_after_errors(self) -> Iterator[None]:
        """Ends the app if the block does not end well, so that it writes nothing behind the cleaning up."""
        try:
            yield
        except BaseException:
            with uninterrupted(), contextlib.suppress(AdbError):
                self.device.shell(f"am force-stop {self.app}", f"stopping {self.app}")
            raise

    def _start(self, job: _Job, name: str) -> None:
        settings = job.settings
        texts = {
            "model": f"{self.folder.path}/{job.model.folder}",
            "runtime": job.manifest.target,
            "prompt": settings.prompt,
            "output": name,
        }
        if job.picture is not None:
            texts["image"] = f"{self.folder.path}/{self.run.folder}/{job.picture.name}"
        numbers = {
            "iterations": settings.repetitions,
            "warmup": settings.warmup,
            "max_new_tokens": settings.max_new_tokens,
            "threads": settings.threads,
        }
        command = [
            "am",
            "start",
            "-W",
            "-n",
            f"{self.app}/{ACTIVITY}",
            "--ez",
            "stop_at_eos",
            str(not settings.ignore_eos).lower(),
        ]
        command += [word for key, text in texts.items() for word in ("--es", key, text)]
        command += [
            word for key, number in numbers.items() if number is not None for word in ("--ei", key, str(number))
        ]
        answer = self.device.shell(shlex.join(command), f"starting {self.app}")
        words = answer.stdout + answer.stderr
        if answer.exit_code or "Error" in words:
            raise MoteError(
                f"{self.app}{ACTIVITY} cannot be started on device {plain(self.device.serial)}: "
                f"{plain(words) or 'it said nothing'}; unlock the device, and install the app of this version"
            )

    def _wait(self, job: _Job, status: str) -> None:
        """Until the app says that it is done; raises MoteError where it says that it failed, ended, or says nothing."""
        begin = time.monotonic()
        while True:
            words = self.device.ask(f"cat {status} 2>/dev/null; true", "asking how far it is").strip()
            state, _, sentence = words.partition(":")
            if state == "done":
                return
            where = f"{self.app} on device {plain(self.device.serial)} with {job.manifest.target}"
            if state == "failed":
                raise MoteError(f"{where}: {plain(sentence) or 'it failed without saying why'}")
            waited = time.monotonic() - begin
            if not words and waited > _START_S:
                raise AdbTimeoutError(
                    f"{where} did not begin within {_START_S:.0f} s; unlock the device and keep its screen on"
                )
            if waited > self.options.run_timeout_s:
                raise AdbTimeoutError(
                    f"{where} took longer than {self.options.run_timeout_s:.0f} s; raise --device-timeout"
                )
            if words and not self.device.ask(f"pidof {self.app}; true", "looking for the app").strip():
                raise MoteError(
                    f"{where} was ended before it was done; if it was the system that ended it, the model needs more memory "
                    "than an app gets there"
                )
            time.sleep(POLL_S)
