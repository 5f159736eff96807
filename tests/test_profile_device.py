"""mote-profile over adb, with the stand-in of `fake_adb`: the whole protocol, its faults, and what is left after them."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from arm import build_arm_runner, qemu_command
from fake_adb import SERIAL, FakeAdb

import mote_runtime
from mote_runtime.cli.profile import main
from mote_runtime.errors import ExportFolderError, MoteError
from mote_runtime.profile.devices import adb as adb_module
from mote_runtime.profile.devices import cooling
from mote_runtime.profile.devices import folder as device_folder
from mote_runtime.profile.devices import measure as device_module
from mote_runtime.profile.devices.adb import Adb, AdbError, AdbTimeoutError, Device, DeviceFullError, DeviceLostError
from mote_runtime.profile.devices.choose import choose_device
from mote_runtime.profile.devices.facts import Core, State, parse_state, read_facts, throttled
from mote_runtime.profile.devices.folder import DeviceBusyError
from mote_runtime.profile.devices.measure import measure_on_device
from mote_runtime.profile.devices.options import DeviceOptions
from mote_runtime.profile.devices.results import DeviceMeasurements
from mote_runtime.profile.devices.runner import find_runner
from mote_runtime.profile.devices.trace import _bring_together
from mote_runtime.profile.record import Memory, Record, Repetition
from mote_runtime.profile.sample import DEFAULT_PROMPT, default_picture
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.trace.events import Part, Run

FOLDER = "/data/local/tmp/mote"
ABI = "arm64-v8a"

# In place of the runner where the protocol is tested, not what it carries: it wants a model and a prompt, is slow if asked
# to be, and writes what a runner wrote.
SCRIPT = """\
#!/bin/sh
say() { echo "mote-runner: $1" >&2; exit "${2:-1}"; }
while [ $# -gt 0 ]; do
  case $1 in
    --output) output=$2;; --model) model=$2;; --prompt) prompt=$2;; --trace) phases=$2;; --runtime-trace) operators=$2;;
  esac
  shift 2
done
[ -s "$model/model.pte" ] || say "there is no model.pte in $model"
[ "$(head -c 8 "$prompt")" = MOTEPRM1 ] || say "the prompt is none"
%s
if [ -n "$phases" ]; then : >"$phases"; fi
if [ -n "$operators" ]; then : >"$operators"; fi
cat >"$output" <<'END'
%s
END
"""


def a_record() -> dict[str, object]:
    repetition = Repetition(
        1e3, 1001.0, 1002.0, 1010.0, 1010.5, 1050.0, 0.1, 20, 2, 1, 2000.0, 25.0, (7, 8), (1010.5, 1050.0)
    )
    memory = Memory(((1e3, 1 << 20, 2 << 20),), 1 << 20, 2 << 20)
    return Record(
        "mote-runner 0.1.0", "executorch", "1.5.1", "neon", 2, None, 1, 900.0, 990.0, (repetition,), memory
    ).to_json()


def write_script(folder: Path, body: str = "", record: object = None) -> Path:
    """A folder with a runner that is a script; `body` is executed before it writes the record."""
    (folder / ABI).mkdir(parents=True, exist_ok=True)
    path = folder / ABI / "mote-runner"
    path.write_text(SCRIPT % (body, json.dumps(a_record()) if record is None else record))
    path.chmod(0o644)  # the device's copy is made executable
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeAdb:
    for name in ("ADB", "ANDROID_SERIAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return FakeAdb(tmp_path / "devices")


class Profiler:
    """Measures the demo model on the fake device with a script for a runner."""

    def __init__(self, fake: FakeAdb, export: Path, folder: Path) -> None:
        self.fake = fake
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.runners = write_script(folder / "runners")
        self.settings = Settings(
            str(export), "Is there a 7?", "", max_new_tokens=2, warmup=0, repetitions=1, loads=1, trace_sources=()
        )
        self.options = DeviceOptions(adb=str(fake.program), runner=str(self.runners))
        self.said: list[str] = []
        self.listen: Callable[[str], None] = lambda _: None

    def _say(self, line: str) -> None:
        self.said.append(line)
        self.listen(line)

    def __call__(self, **changes: object) -> DeviceMeasurements:
        self.said.clear()
        settings = {name: changes.pop(name) for name in ("trace_sources", "loads") if name in changes}
        return measure_on_device(
            [replace(self.settings, **settings)],  # type: ignore[arg-type]
            replace(self.options, **changes),  # type: ignore[arg-type]
            self.scratch,
            self._say,
        )

    def fails(self, kind: type[MoteError] = MoteError, **changes: object) -> str:
        """The sentence it fails with."""
        with pytest.raises(kind) as raised:
            self(**changes)
        sentence = str(raised.value)
        assert "\n" not in sentence
        assert re.search(r"[.!?]$", sentence)
        return sentence


@pytest.fixture(scope="session")
def small_export(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's export with a few bytes for a program: to be pushed often, not to be run."""
    folder = tmp_path_factory.mktemp("small") / "export"
    shutil.copytree(demo_export / "executorch", folder)
    (folder / "model.pte").write_bytes(bytes(range(256)) * 256)
    manifest = json.loads((folder / "mote.json").read_text())
    digest = hashlib.sha256((folder / "model.pte").read_bytes()).hexdigest()
    manifest["files"]["model.pte"] = {"bytes": 65536, "sha256": digest}
    (folder / "mote.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def profile(fake: FakeAdb, small_export: Path, tmp_path: Path) -> Profiler:
    return Profiler(fake, small_export, tmp_path)


def is_running(pid: int) -> bool:
    """Whether a process does something still; one that ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# The whole way


def test_measures_and_leaves_nothing(profile: Profiler, fake: FakeAdb) -> None:
    result = profile(trace_sources=("phases", "operators"), loads=2)
    assert fake.left() == []
    assert result.left is None
    (measured,) = result.measurements
    assert measured.traced is not None
    assert measured.record.to_json() == a_record() | {"load_ms": [90.0]}
    assert measured.traced.to_json() == a_record()
    assert measured.phases is not None
    assert measured.phases.read_bytes() == b""
    facts = json.loads(json.dumps(result.to_json()))
    assert facts["system"] == "Android 15 (API 35)"
    assert facts["soc"] == "Paper P-1"
    assert facts["abis"] == [ABI, "armeabi-v7a"]
    assert facts["memory_bytes"] == 7890123 << 10
    state = facts["runs"]["executorch"]["before"]
    assert state["temperatures"] == {"VIRTUAL-SKIN": 31.5, "BIG": 48.0, "battery": 28.4}
    assert (state["battery_level"], state["charging"], state["thermal_status"]) == (87, True, 0)
    assert state["cores"][1] == {
        "number": 1,
        "greatest_khz": 2900000,
        "allowed_khz": 2900000,
        "current_khz": 1450000,
        "governor": "schedutil",
    }
    assert sorted(fake.pushed()) == ["model.pte", "mote-runner", "prompt-executorch.bin"]
    assert any("pushing model.pte" in line for line in profile.said)


def test_pushes_what_is_missing_or_different(profile: Profiler, fake: FakeAdb) -> None:
    profile(cleanup=False)
    kept = fake.left()
    assert [Path(path).name for path in kept if "." in Path(path).name or "runner" in Path(path).name][-2:]
    model = next(path for path in kept if path.endswith("/model.pte"))
    assert {path.split("/")[5].split("-")[0] for path in kept if path.count("/") > 4} == {"model", "runner"}
    fake.replug()

    profile(cleanup=False)
    assert fake.pushed() == ["prompt-executorch.bin"]
    assert fake.left() == kept
    fake.replug()

    (fake.folder / SERIAL / model[1:]).write_bytes(b"damaged")
    profile()  # and removes what is not wanted any more
    assert sorted(fake.pushed()) == ["model.pte", "prompt-executorch.bin"]
    assert fake.left() == []


def test_keeps_what_others_keep_there(profile: Profiler, fake: FakeAdb) -> None:
    other = fake.folder / SERIAL / FOLDER[1:] / "model-0123456789abcdef" / "model.pte"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"kept by another")
    profile()
    assert fake.left() == [
        FOLDER,
        str(Path(FOLDER, other.parent.name)),
        str(Path(FOLDER, other.parent.name, "model.pte")),
    ]


def test_a_linux_board(fake: FakeAdb, profile: Profiler) -> None:
    fake.control(devices=[])
    root = fake.add_device("board", android=False)
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    (profile.runners / ABI).rename(profile.runners / f"linux-{machine}")
    result = profile()
    assert result.facts.system.startswith("Linux ")
    assert result.facts.folder == "/var/tmp"
    (measured,) = result.measurements
    assert measured.before.temperatures == {"cpu-thermal": 41.5}
    assert fake.left("board") == []
    (root / "sys/class/thermal/thermal_zone0/temp").write_text("71000\n")
    assert "cpu-thermal is at 71.0 °C; expected below 60 °C" in profile.fails(cool_timeout_s=0.0)
    assert fake.left("board") == []


# Choosing the device


def test_no_adb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ADB", raising=False)
    with pytest.raises(AdbError, match=r"no adb is on the PATH; install .*platform-tools.*--adb"):
        Adb.find()
    with pytest.raises(AdbError, match=r"the adb program '/no/such/adb' is not there"):
        Adb.find("/no/such/adb")
    monkeypatch.setenv("ADB", "/none/either")
    with pytest.raises(AdbError, match="/none/either"):
        Adb.find()


def test_a_program_that_is_not_adb() -> None:
    with pytest.raises(
        AdbError, match=r"true devices -l failed with exit code 0 \(it said nothing\); expected Android's adb"
    ):
        Adb.find("true").devices()


def test_which_device(fake: FakeAdb, monkeypatch: pytest.MonkeyPatch) -> None:
    adb = Adb.find(str(fake.program))
    assert choose_device(adb).serial == SERIAL
    fake.add_device("second")
    with pytest.raises(
        AdbError,
        match=r"sees 2 devices, FA4E01 \(Sandbox 1\), second \(Sandbox 1\); choose one with --device SERIAL\.$",
    ):
        choose_device(adb)
    assert choose_device(adb, "second").serial == "second"
    monkeypatch.setenv("ANDROID_SERIAL", SERIAL)
    assert choose_device(adb).serial == SERIAL
    with pytest.raises(
        AdbError, match=r"adb sees no device 'third': it sees FA4E01 .*; name one that adb devices lists\.$"
    ):
        choose_device(adb, "third")
    fake.control(devices=[])
    with pytest.raises(AdbError, match=r"no device 'FA4E01': it sees none at all"):
        choose_device(adb)
    monkeypatch.delenv("ANDROID_SERIAL")
    with pytest.raises(AdbError, match=r"adb sees no device; connect one by USB with USB debugging"):
        choose_device(adb)


@pytest.mark.parametrize(
    ("state", "cure"),
    [("unauthorized", "accept this computer's key"), ("offline", "pull its cable"), ("recovery", "start its system")],
)
def test_a_device_that_cannot_be_used(fake: FakeAdb, state: str, cure: str) -> None:
    adb = Adb.find(str(fake.program))
    fake.add_device("locked", state)
    assert choose_device(adb).serial == SERIAL  # the only one that can be
    with pytest.raises(AdbError, match=rf"device locked is in the state '{state}', not 'device'; .*{cure}"):
        choose_device(adb, "locked")
    fake.control(devices=[{"serial": "locked", "state": state}])
    with pytest.raises(AdbError, match=rf"state '{state}'"):
        choose_device(adb)


def test_reads_what_adb_lists(tmp_path: Path) -> None:
    program = tmp_path / "adb"
    program.write_text(
        "#!/bin/sh\ncat <<'END'\n* daemon not running; starting now at tcp:5037\n* daemon started successfully\n"
        "List of devices attached\nemulator-5554\tdevice product:sdk model:sdk_gphone64 device:emu64a transport_id:1\n"
        "0A1B2C  no permissions (user x is not in the plugdev group); see [http://developer.example] usb:1-2 transport_id:3\n"
        "192.168.1.5:5555       offline transport_id:4\n\nEND\n"
    )
    program.chmod(0o755)
    found = [(each.serial, each.state, each.model) for each in Adb.find(str(program)).devices()]
    assert found == [
        ("emulator-5554", "device", "sdk_gphone64"),
        ("0A1B2C", "no permissions", ""),
        ("192.168.1.5:5555", "offline", ""),
    ]


# Faults before and while pushing


def test_not_an_export(profile: Profiler, fake: FakeAdb, tmp_path: Path) -> None:
    profile.settings = replace(profile.settings, folder=str(tmp_path))
    assert "has no mote.json" in profile.fails(ExportFolderError)
    assert fake.log() == []


def test_an_export_that_changed(profile: Profiler, fake: FakeAdb, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(profile.settings.folder, folder)
    with (folder / "model.pte").open("r+b") as stream:
        stream.write(b"changed")
    profile.settings = replace(profile.settings, folder=str(folder))
    assert "it changed since the export or on the way" in profile.fails(AdbError)
    assert fake.left() == []
    (folder / "model.pte").write_bytes(b"short")
    fake.replug()
    assert "model.pte" in profile.fails(ExportFolderError)
    assert fake.log() == []


def test_no_space_for_what_has_to_be_pushed(profile: Profiler, fake: FakeAdb) -> None:
    (fake.folder / SERIAL / "free_kb").write_text("32800\n")
    sentence = profile.fails(DeviceFullError)
    assert "has 33.6 MB free in /data/local/tmp/mote, but" in sentence
    assert fake.pushed() == []
    assert fake.left() == []


def test_no_space_in_the_middle(profile: Profiler, fake: FakeAdb) -> None:
    fake.control(full_after=30_000)
    sentence = profile.fails(DeviceFullError)
    assert "has no space left" in sentence
    assert "model.pte" in sentence
    assert fake.left() == []


def test_no_runner_for_it(profile: Profiler, fake: FakeAdb) -> None:
    (profile.runners / ABI).rename(profile.runners / "linux-x86_64")
    sentence = profile.fails()
    assert (
        f"no mote-runner for arm64-v8a or armeabi-v7a in {profile.runners}: there are runners for linux-x86_64 only"
        in sentence
    )
    assert "make runner-aarch64" in sentence
    assert "make runner-aarch64" in profile.fails(runner=None)
    assert fake.left() == []
    assert fake.pushed() == []


def test_where_runners_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_script(tmp_path / "mote" / "runner")
    assert find_runner([ABI]).files == (tmp_path / "mote" / "runner" / ABI / "mote-runner",)
    assert find_runner(["riscv64", ABI]).abi == ABI
    assert find_runner([ABI], tmp_path / "mote" / "runner" / ABI).abi == ABI  # the folder itself
    with pytest.raises(MoteError, match=r"no mote-runner for this device, which names no ABI"):
        find_runner(["../../etc", ""])


def test_a_runner_for_another_processor(profile: Profiler, fake: FakeAdb) -> None:
    shutil.copy(sys.executable, profile.runners / ABI / "mote-runner")
    assert "is built for x86_64, but the device runs arm64-v8a; build the runner for it" in profile.fails()
    write_script(profile.runners)
    (profile.runners / ABI / "libonnxruntime.so").write_bytes(b"text")
    assert "libonnxruntime.so is no program or library" in profile.fails()
    assert fake.left() == []


def test_a_runner_for_another_system(fake: FakeAdb, profile: Profiler, tmp_path: Path) -> None:
    fake.control(devices=[])
    fake.add_device("board", android=False)
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    folder = tmp_path / "more" / f"linux-{machine}"
    folder.mkdir(parents=True)
    program = bytearray(Path("/bin/true").read_bytes())
    loader = re.search(rb"/lib[\w/.-]*ld-linux[\w.-]*", program)
    assert loader is not None
    program[loader.start() : loader.end()] = b"/lib/no-such-loader".ljust(len(loader[0]), b"\0")
    (folder / "mote-runner").write_bytes(program)
    sentence = profile.fails(runner=str(tmp_path / "more"))
    assert "wants the loader /lib/no-such-loader, which device board (Linux " in sentence
    assert fake.left("board") == []


def test_a_file_that_arrives_changed(profile: Profiler, fake: FakeAdb) -> None:
    fake.control(corrupt="model.pte")
    assert re.search(
        r"model\.pte has SHA-256 [0-9a-f]{64} on device FA4E01, which is not what was to be sent", profile.fails()
    )
    assert fake.left() == []


def test_a_result_that_arrives_changed(profile: Profiler, fake: FakeAdb) -> None:
    fake.control(corrupt="executorch-record")
    assert "the record changed on the way from device FA4E01" in profile.fails()
    assert fake.left() == []


# The lock


def test_two_at_once(profile: Profiler, fake: FakeAdb) -> None:
    lock = fake.folder / SERIAL / FOLDER[1:] / "lock"
    lock.mkdir(parents=True)
    (lock / "owner").write_text(
        "host=elsewhere pid=123 start=1 since=2026-01-02T03:04:05Z folders=run-0123456789abcdef\n"
    )
    sentence = profile.fails(DeviceBusyError)
    assert "in use by another mote-profile (process 123 on elsewhere, since 2026-01-02T03:04:05Z)" in sentence
    assert fake.left()[-1].endswith("lock/owner")
    fake.run_by_hand(sentence.removesuffix(".").split("with: ")[1])
    profile()
    assert fake.left() == []


@pytest.mark.parametrize("alive", [True, False])
def test_a_lock_of_this_computer(profile: Profiler, fake: FakeAdb, alive: bool) -> None:
    folder = fake.folder / SERIAL / FOLDER[1:]
    for name in ("lock", "run-0123456789abcdef", "model-00000000deadbeef"):
        (folder / name).mkdir(parents=True)
    (folder / "run-0123456789abcdef" / "executorch-record").touch()
    host = re.match(r"host=\S+", device_folder._describe_owner([]))
    assert host is not None
    with subprocess.Popen(["sleep", "60"]) as other:
        start = device_folder._start_time(other.pid) + (0 if alive else 1)
        names = "run-0123456789abcdef,model-00000000deadbeef,../../../sdcard,lock"
        owner = f"{host[0]} pid={other.pid} start={start} since=2026-01-02T03:04:05Z folders={names}"
        (folder / "lock" / "owner").write_text(owner)
        sdcard = fake.folder / SERIAL / "data" / "sdcard"
        sdcard.mkdir()
        if alive:
            assert f"process {other.pid} on" in profile.fails(DeviceBusyError)
            assert len(fake.left()) == 6
        else:
            profile()
            assert fake.left() == []
        assert sdcard.exists()
        other.kill()


def test_a_lock_without_an_owner(profile: Profiler, fake: FakeAdb) -> None:
    (fake.folder / SERIAL / FOLDER[1:] / "lock").mkdir(parents=True)
    assert "(an owner that it does not name)" in profile.fails(DeviceBusyError)


# While it runs


def test_a_runner_that_fails(profile: Profiler, fake: FakeAdb) -> None:
    write_script(profile.runners, 'echo "some log" >&2; say "model.pte has no text_decoder; export it again."')
    sentence = profile.fails()
    assert sentence == (
        "mote-runner on device FA4E01 with executorch failed with exit code 1: model.pte has no text_decoder; export it again."
    )
    assert fake.left() == []


def test_a_runner_that_is_killed(profile: Profiler, fake: FakeAdb) -> None:
    write_script(profile.runners, "kill -9 $$")
    assert "was ended by signal 9: " in profile.fails()
    assert fake.left() == []


def test_a_runner_that_cannot_be_started(profile: Profiler, fake: FakeAdb) -> None:
    path = profile.runners / ABI / "mote-runner"
    path.write_text(path.read_text().replace("#!/bin/sh", "#!/no/such/interpreter"))
    assert re.search(r"cannot be started: .*; build the runner for this device", profile.fails())
    assert fake.left() == []


def test_a_runner_that_writes_nothing(profile: Profiler, fake: FakeAdb) -> None:
    write_script(profile.runners, "exit 0")
    assert "ended without writing its record" in profile.fails()
    assert fake.left() == []


def test_a_runner_that_hangs_is_stopped(profile: Profiler, fake: FakeAdb, tmp_path: Path) -> None:
    # It ignores the hang-up, so that cleaning up has to end it.
    write_script(profile.runners, f"trap '' HUP; echo $$ >{tmp_path}/pid; while :; do sleep 0.05; done")
    sentence = profile.fails(AdbTimeoutError, run_timeout_s=0.7)
    assert sentence == "running mote-runner with executorch on device FA4E01 took longer than 1 s."
    assert fake.left() == []
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_a_device_that_does_not_answer(profile: Profiler, fake: FakeAdb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb_module, "COMMAND_TIMEOUT_S", 0.3)
    monkeypatch.setattr(adb_module, "_SLOWEST_TRANSFER", 1 << 40)
    fake.control(hang_on="model.pte.part")
    assert profile.fails(AdbTimeoutError).startswith("pushing model.pte on device FA4E01 took longer than ")
    assert fake.left() == []


def test_records_that_are_none(profile: Profiler, fake: FakeAdb, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, expected in {
        '{"format": "mote-profile", "format_version": 9}': "field 'format_version' is 9; expected",
        json.dumps(a_record() | {"runtime": "onnxruntime"}): "is of onnxruntime; expected executorch",
    }.items():
        write_script(profile.runners, record=content)
        assert expected in profile.fails()
        assert fake.left() == []
    monkeypatch.setattr(device_module, "MAX_RECORD_BYTES", 5)
    assert "has 8 bytes; expected at most 5" in (write_script(profile.runners, record="[1, 2, ") and profile.fails())
    assert fake.left() == []


def test_a_pull_that_brings_more_than_it_said(fake: FakeAdb, tmp_path: Path) -> None:
    device = Device(Adb.find(str(fake.program)), SERIAL)
    (fake.folder / SERIAL / "data/local/tmp/big").write_bytes(bytes(1000))
    target = tmp_path / "big"
    with pytest.raises(AdbError, match="brought more than 999 bytes"):
        device.pull("/data/local/tmp/big", target, 999)
    assert not target.exists()
    device.pull("/data/local/tmp/big", target, 1000)
    assert target.stat().st_size == 1000


def test_an_endless_answer(fake: FakeAdb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb_module, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(AdbError, match="answered with more than 1 MiB"):
        Device(Adb.find(str(fake.program)), SERIAL).ask("head -c 2000000 /dev/zero", "asking")


# Heat


def test_waits_until_it_is_cool(profile: Profiler, fake: FakeAdb, monkeypatch: pytest.MonkeyPatch) -> None:
    skin = fake.folder / SERIAL / "skin"
    skin.write_text("41.0\n")
    monkeypatch.setattr(cooling, "COOL_INTERVAL_S", 0.01)
    sentence = profile.fails(cool_timeout_s=0.05)
    assert "did not cool down within 0 s: VIRTUAL-SKIN is at 41.0 °C; expected below 38 °C" in sentence
    assert "--no-wait-cool" in sentence
    assert fake.left() == []

    degrees = iter((40.0, 38.0, 37.9))

    def cool_down(line: str) -> None:
        if "waiting" in line:
            skin.write_text(f"{next(degrees)}\n")

    profile.listen = cool_down
    result = profile(cool_timeout_s=60.0)
    assert result.measurements[0].before.temperatures["VIRTUAL-SKIN"] == 37.9
    assert [line for line in profile.said if "waiting" in line] == [
        f"waiting until FA4E01 is cool: VIRTUAL-SKIN is at {value} °C; expected below 38 °C"
        for value in (41.0, 40.0, 38.0)
    ]


def test_measures_a_warm_device_if_told_to(profile: Profiler, fake: FakeAdb) -> None:
    (fake.folder / SERIAL / "skin").write_text("41.0\n")
    (fake.folder / SERIAL / "status").write_text("2\n")
    assert "its thermal status is 2; expected 0" in profile.fails(cool_timeout_s=0.0)
    result = profile(wait_cool=False)
    assert result.measurements[0].to_json()["throttled"] == "its thermal status rose to 2"
    (fake.folder / SERIAL / "status").write_text("0\n")
    assert profile(cool_below=41.5).measurements[0].to_json()["throttled"] is None


def test_says_whether_it_was_slowed_down() -> None:
    def state(status: int | None, *allowed: int | None) -> State:
        return State(status, {}, tuple(Core(n, 3_000_000, khz, None, "") for n, khz in enumerate(allowed)), None, None)

    assert throttled(state(0, 2_000_000), state(0, 2_000_000)) is None
    assert throttled(state(None), state(None)) is None
    assert throttled(state(0, 2_000_000, 3_000_000), state(0, 2_000_000, 1_200_000)) == (
        "1 cores were held down, core 1 from 3000 to 1200 MHz"
    )
    assert throttled(state(0, None), state(3, 1_000)) == "its thermal status rose to 3"


def test_states_that_make_no_sense() -> None:
    lines = [
        ("thermal", "Thermal Status: x"),
        ("thermal", "Temperature{mValue=1e9, mType=3, mName=a, mStatus=0}"),
        ("thermal", "Temperature{mValue=400.0, mType=3, mName=b, mStatus=0}"),
        ("battery", "level: 900"),
        ("battery", "temperature: -5"),
        ("core 0 cpuinfo_max_freq", "99999999999999999999999"),
        ("core x cpuinfo_max_freq", "1"),
        ("zone", "7"),
        ("zone gpu", "45"),
        ("zone gpu", "47000"),
        ("nonsense", ""),
    ]
    state = parse_state(lines)
    assert state == State(None, {"zone": 7.0, "gpu": 47.0}, (Core(0, None, None, None, ""),), None, None)
    flood = [(f"core {number} scaling_cur_freq", "1") for number in range(5000)]
    assert len(parse_state(flood).cores) == 1024


def test_facts_from_a_device_that_lies(fake: FakeAdb) -> None:
    root = fake.folder / SERIAL
    (root / "bin/getprop").write_text(
        "#!/bin/sh\nprintf '\\033[31mred\\033[0m,../../x\\n'\nhead -c 500 /dev/zero | tr '\\0' A\n"
    )
    facts, _ = read_facts(Device(Adb.find(str(fake.program)), SERIAL))
    assert facts.abis == ()
    assert facts.model == " [31mred [0m,../../x"
    (root / "bin/df").write_text("#!/bin/sh\necho plenty\n")
    with pytest.raises(AdbError, match=r"does not tell its free space: df said 'plenty'"):
        read_facts(Device(Adb.find(str(fake.program)), SERIAL))


# Unplugged


def named_paths(sentence: str) -> list[str]:
    """What a sentence says may be left, from the command it gives."""
    command = re.search(r"with: adb -s \S+ shell rm -rf (.*)\.$", sentence)
    return command[1].split() if command else []


def changes_the_device(command: list[str]) -> bool:
    return "push" in command or "pull" in command or bool(re.search(r"\b(mkdir|mv|rm|exec) ", command[-1]))


def test_unplugged_at_every_command(profile: Profiler, fake: FakeAdb) -> None:
    """Before each command, or in the middle of it where that can leave something half done."""
    profile()
    commands = fake.log()
    during = [changes_the_device(command) for command in commands]
    assert (len(commands), sum(during)) == (15, 9)
    for number, command in enumerate(commands, 1):
        for path in profile.scratch.iterdir():
            path.unlink()
        fake.replug()
        fake.control(vanish_at=number, vanish_during=during[number - 1])
        last = number == len(commands)  # cleaning up: what was measured is there
        sentence = (profile().left or "") if last else profile.fails(AdbError)
        assert list(profile.scratch.glob("*record*")) == [] or last, command
        assert SERIAL in sentence or number == 1, command
        fake.replug()
        named = named_paths(sentence)
        unnamed = [
            path for path in fake.left() if not any(path == name or path.startswith(f"{name}/") for name in named)
        ]
        assert unnamed == [], command
        if named:
            fake.run_by_hand(sentence.removesuffix(".").split("with: ")[1])
        assert fake.left() == [], command


def test_the_next_run_cleans_up_after_a_lost_one(profile: Profiler, fake: FakeAdb) -> None:
    profile()
    number = next(index for index, command in enumerate(fake.log(), 1) if command[-1].endswith("model.pte.part"))
    fake.replug()
    fake.control(vanish_at=number, vanish_during=True)
    sentence = profile.fails(DeviceLostError)
    assert re.match(
        r"the connection to device FA4E01 was lost while pushing model\.pte \(adb: error: failed to copy .*\); ",
        sentence,
    )
    fake.replug()
    assert any(path.endswith("model.pte.part") for path in fake.left())
    profile()
    assert fake.left() == []


# The program


def arguments(profile: Profiler, *more: str) -> list[str]:
    settings = profile.settings
    return [
        settings.folder,
        *("--device", "--adb", str(profile.fake.program), "--runner", str(profile.runners)),
        *("--loads", "1", "--warmup", "0", "--repetitions", "1", "--max-new-tokens", "2", "--no-trace", *more),
    ]


def test_the_program_writes_a_profile(
    profile: Profiler, fake: FakeAdb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(profile, "-o", str(tmp_path / "out"))) == 0
    assert fake.left() == []
    document = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert document["device"]["processor"] == "Stand-in Sandbox 1 (Paper P-1)"
    assert (
        document["device"]["before executorch"] == "thermal status 0, VIRTUAL-SKIN at 31.5 °C, battery 87 %, charging"
    )
    assert document["device"]["cores before executorch"] == "1 up to 1800 MHz (schedutil), 1 up to 2900 MHz (schedutil)"
    assert document["device"]["states"]["executorch"]["throttled"] is None
    assert document["versions"]["runner"] == "mote-runner 0.1.0"
    assert document["runs"][0]["record"]["tool"] == "mote-runner 0.1.0"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Android 15 (API 35)" in page
    assert "no sign of it before and after" in page
    assert "median" in capsys.readouterr().out


def test_the_program_fails_with_a_sentence(
    profile: Profiler, fake: FakeAdb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    fake.control(devices=[])
    assert main(arguments(profile, "-o", str(output))) == 1
    assert re.fullmatch(r"mote-profile: adb sees no device; .*\.\n", capsys.readouterr().err)
    assert not output.exists()
    assert main([str(tmp_path), "--device", "--adb", str(fake.program)]) == 1
    assert re.fullmatch(r"mote-profile: .* has no mote\.json; .*\.\n", capsys.readouterr().err)


def test_a_device_that_goes_while_it_is_cleaned(
    profile: Profiler, fake: FakeAdb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured is written, and the exit code says that something is left."""
    fake.control(vanish_at=15)
    assert main(arguments(profile, "-q", "-o", str(tmp_path / "out"))) == 1
    assert (tmp_path / "out" / "report.html").exists()
    sentence = capsys.readouterr().err
    assert re.fullmatch(
        r"mote-profile: the connection to device FA4E01 was lost while cleaning up \(adb: error: device 'FA4E01' not found\); "
        r"/data/local/tmp/mote may be left on it: run mote-profile again, or remove it with: adb -s FA4E01 shell rm -rf "
        r"/data/local/tmp/mote\.\n",
        sentence,
    )


@pytest.mark.parametrize(
    "options",
    [
        ["DIR", "--keep-trace"],
        ["DIR", "--cool-below", "30"],
        ["DIR", "--device", "X", "--cool-below", "warm"],
        ["--compare", "a", "b", "--device", "X"],
    ],
)
def test_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert "--" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted(profile: Profiler, fake: FakeAdb, tmp_path: Path, number: int, code: int) -> None:
    write_script(profile.runners, f"echo $$ >{tmp_path}/pid; while :; do sleep 0.05; done")
    command = [sys.executable, "-m", "mote_runtime.cli.profile", *arguments(profile, "-o", str(tmp_path / "out"))]
    environment = os.environ | {"TMPDIR": str(tmp_path / "scratch")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as program:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        program.send_signal(number)
        _, said = program.communicate(timeout=60)
    assert (program.returncode, said) == (code, "")
    assert fake.left() == []
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "out").exists()


# 64-bit ARM


@pytest.fixture(scope="session")
def arm_runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runner for 64-bit ARM with both runtimes."""
    return build_arm_runner(tmp_path_factory.mktemp("arm")).parent


def own_answer(folder: Path, tokens: int) -> list[int]:
    """What this computer answers to the default question."""
    with mote_runtime.load(folder, threads=1) as pipeline:
        loop, _ = pipeline.measured_tokens(DEFAULT_PROMPT, default_picture(), tokens, stop=False)
        return list(loop)


@pytest.mark.slow
def test_real_arm_code(fake: FakeAdb, demo_export: Path, arm_runner: Path, tmp_path: Path) -> None:
    """The whole way with the real runner and both runtimes, by QEMU: the same tokens as here, and whole traces."""
    emulator, *options = qemu_command(tmp_path, arm_runner / "mote-runner")[:-1]
    fake.control(
        qemu=[emulator, "-cpu", "cortex-a76", *options]
    )  # as a phone has; with i8mm and SVE QEMU takes thrice as long
    output, tokens = tmp_path / "out", 2
    code = main(
        [
            *(str(demo_export), "--device", "--adb", str(fake.program), "--runner", str(arm_runner), "-o", str(output)),
            *("--max-new-tokens", str(tokens), "--warmup", "0", "--repetitions", "1", "--loads", "1", "--threads", "1"),
            "--keep-trace",
        ]
    )
    assert code == 0
    assert fake.left() == []
    document = json.loads((output / "profile.json").read_text())
    assert document["device"]["architecture"] == ABI
    assert [run["label"] for run in document["runs"]] == ["onnxruntime", "executorch"]
    for run, folder in zip(document["runs"], ("onnx", "executorch"), strict=True):
        record = run["record"]
        assert record["tool"].startswith("mote-runner ")
        assert record["isa"] == "neon_dotprod"
        assert record["repetitions"][0]["token_ids"] == own_answer(demo_export / folder, tokens)
        prompt_tokens = record["repetitions"][0]["prompt_tokens"]
        assert all(sum(row) == prompt_tokens + tokens - 1 for row in run["experts"]["tokens"])
        stages = run["breakdown"]
        assert {"image encode", "prefill", "decode step"} <= set(stages)
        assert stages["decode step"]["count"] == tokens - 1
        assert any(operator["name"] == "TernaryMoE" for operator in stages["prefill"]["operators"])
    names = {event["name"] for event in json.loads((output / "trace.json").read_text())["traceEvents"]}
    assert {"TernaryMoE", "gate_up shared", "down shared", "router", "prefill"} <= names
    assert sorted(path.name for path in (output / "traces").iterdir()) == [
        "executorch-model.etdump",
        "executorch-phases.bin",
        "onnxruntime-decoder.json",
        "onnxruntime-embedding.json",
        "onnxruntime-phases.bin",
        "onnxruntime-vision.json",
    ]


def test_the_stand_in_heeds_executable_bits(fake: FakeAdb, tmp_path: Path) -> None:
    """Or a forgotten chmod would go unseen."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho done\n")
    program.chmod(0o600)
    device = Device(Adb.find(str(fake.program)), SERIAL)
    device.push(program, "/data/local/tmp/program")
    assert device.execute(["/data/local/tmp/program"], "running", 10.0).exit_code == 126
    device.ask("chmod 755 /data/local/tmp/program", "making it executable")
    assert device.execute(["/data/local/tmp/program"], "running", 10.0).stdout == "done\n"


# Traces of a device


def runs_of(part: Part, offset: int, *intervals: tuple[int, int]) -> list[Run]:
    """Runs on a clock that is `offset` ns ahead of the true one."""
    return [Run(part, begin + offset, end + offset, []) for begin, end in intervals]


def test_sessions_of_onnxruntime_on_one_clock() -> None:
    """Each writes its own time; what came after what is known."""
    true = {
        Part.VISION: [(0, 40_000)],
        Part.EMBEDDING: [(50_000, 60_000), (200_000, 210_000), (300_000, 310_000)],
        Part.DECODER: [(70_000, 190_000), (212_000, 296_000), (313_000, 400_000)],
    }
    offsets = {Part.VISION: 7_000_000, Part.EMBEDDING: 900_000_000, Part.DECODER: 30_000}
    runs = _bring_together({part.value: runs_of(part, offsets[part], *times) for part, times in true.items()})
    assert [run.part.value for run in runs] == ["vision", *["embedding", "decoder"] * 3]
    assert runs[0].begin_ns == 0
    assert all(first.end_ns <= second.begin_ns for first, second in pairwise(runs))
    assert [run.end_ns - run.begin_ns for run in runs[1:3]] == [10_000, 120_000]
    shifts = {run.begin_ns - begin for run, (begin, _) in zip(runs[1::2], true[Part.EMBEDDING], strict=True)}
    assert len(shifts) == 1
    assert abs(shifts.pop() - (runs[2].begin_ns - 70_000)) <= 3_000  # as well as the gaps of 2 and 4 µs tell

    alone = _bring_together(
        {"decoder": runs_of(Part.DECODER, 0, (0, 9)), "embedding": runs_of(Part.EMBEDDING, 500, (0, 4))}
    )
    assert [(run.part.value, run.begin_ns, run.end_ns) for run in alone] == [("embedding", 0, 4), ("decoder", 4, 13)]
    pieces = {"decoder": runs_of(Part.DECODER, 0, (0, 9), (10, 19)), "embedding": runs_of(Part.EMBEDDING, 500, (0, 4))}
    assert [run.part for run in _bring_together(pieces)] == [Part.DECODER, Part.DECODER]
