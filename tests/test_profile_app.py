"""mote-profile inside an app, over the stand-in for adb: the protocol and its faults. The app itself is in test_android_app.py."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_adb import SERIAL, FakeAdb
from test_profile_device import a_record as runner_record

from mote_runtime.cli.profile import main
from mote_runtime.errors import MoteError
from mote_runtime.profile.devices import app as app_module
from mote_runtime.profile.devices.app import DEFAULT_APP, measure_in_app
from mote_runtime.profile.devices.options import DeviceOptions
from mote_runtime.profile.devices.results import DeviceMeasurements
from mote_runtime.profile.settings import Settings

FILES = f"sdcard/Android/data/{DEFAULT_APP}/files"

# What the app does, as far as the protocol goes: it says that it runs, wants the model and the picture, and writes its record.
START = """\
words="$*"
while [ $# -gt 0 ]; do
  case $1 in
    --es | --ei | --ez) eval "$2=\\$3"; shift 3;;
    -n) component=$2; shift 2;;
    *) shift;;
  esac
done
folder=%s
echo "$words" >"$folder/words"
(
  echo running >"$folder/$output.status"
  %s
  if [ ! -s "$model/mote.json" ] || [ ! -s "$image" ]; then
    echo "failed: no model or no picture." >"$folder/$output.status"
    exit
  fi
  cat >"$folder/$output.json" <<'END'
%s
END
  echo done >"$folder/$output.status"
) &
echo $! >app-pid
echo "Starting: Intent { cmp=$component }"
"""


def a_record() -> dict[str, object]:
    return runner_record() | {
        "tool": "mote-demo 0.1.0",
        "runtime": "onnxruntime",
        "runtime_version": "1.29.0",
        "isa": None,
    }


class Profiler:
    """Measures the demo model in a script that stands for the app."""

    def __init__(self, fake: FakeAdb, export: Path, folder: Path) -> None:
        self.fake = fake
        self.root = fake.folder / SERIAL
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.settings = Settings(
            str(export), "Is there a 7?", "", max_new_tokens=2, warmup=0, repetitions=3, loads=1, trace_sources=()
        )
        self.options = DeviceOptions(adb=str(fake.program))

    def install(self, body: str = "", record: object = None) -> None:
        content = json.dumps(a_record()) if record is None else str(record)
        self.fake.install(DEFAULT_APP, START % (self.root / FILES, body, content))

    def __call__(self, app: str = DEFAULT_APP, **changes: object) -> DeviceMeasurements:
        options = replace(self.options, **changes)  # type: ignore[arg-type]
        return measure_in_app([self.settings], options, app, self.scratch, lambda _: None)

    def fails(self, app: str = DEFAULT_APP, **changes: object) -> str:
        """The sentence it fails with."""
        with pytest.raises(MoteError) as raised:
            self(app, **changes)
        sentence = str(raised.value)
        assert "\n" not in sentence
        assert re.search(r"[.!?]$", sentence)
        return sentence

    def left(self) -> list[str]:
        """What this profile left on the device, beside the app's own folders and what the script notes for the test."""
        own = [f"/{FILES[: end or None]}" for end in (-len("/files"), 0)]
        own += ["/sdcard/Android", "/sdcard/Android/data", f"/{FILES}/words"]
        return [path for path in self.fake.left() if path not in own]


@pytest.fixture
def profile(demo_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profiler:
    for name in ("ADB", "ANDROID_SERIAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(app_module, "POLL_S", 0.02)
    return Profiler(FakeAdb(tmp_path / "devices"), demo_export / "onnx", tmp_path)


def test_measures_and_leaves_nothing(profile: Profiler) -> None:
    profile.install("sleep 0.2")
    result = profile()
    assert result.left is None
    assert profile.left() == []
    assert result.abi == "arm64-v8a"
    (measured,) = result.measurements
    assert measured.record.to_json() == a_record()
    words = (profile.root / FILES / "words").read_text()
    assert f"-n {DEFAULT_APP}/.BenchmarkActivity" in words
    for extra in ("--es prompt Is there a 7?", "--ei iterations 3", "--ei warmup 0", "--ei max_new_tokens 2"):
        assert extra in words
    assert "--ez stop_at_eos false" in words
    pushed = profile.fake.pushed()
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "mote.json", "question.png"} <= set(pushed)
    assert not [name for name in pushed if name.endswith(".so")], "an app has its own plugin"


def test_command_line(profile: Profiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile.install()
    output = tmp_path / "profile"
    words = ["--device", "--app", "--adb", str(profile.fake.program), "-o", str(output), "-q"]
    assert main([profile.settings.folder, *words]) == 0
    document = json.loads((output / "profile.json").read_text())
    assert document["runs"][0]["record"]["tool"] == "mote-demo 0.1.0"
    assert document["device"]["architecture"] == "arm64-v8a"
    assert (output / "report.html").is_file()
    for option in (["--runner", "."], ["--cores", "0"], ["--keep-trace"]):
        with pytest.raises(SystemExit) as ended:
            main([profile.settings.folder, *words, *option])
        assert ended.value.code == 2
        assert "is of no use with --app" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([profile.settings.folder, "--app"])
    assert "--app is of use with --device only" in capsys.readouterr().err


def test_keeps_the_model_if_asked_to(profile: Profiler) -> None:
    profile.install()
    profile(cleanup=False)
    kept = profile.left()
    assert any(path.endswith("/model.onnx.data") for path in kept)
    assert not any("run-" in path for path in kept)
    profile.fake.replug()
    profile()
    assert profile.fake.pushed() == ["question.png"]
    assert profile.left() == []


@pytest.mark.parametrize(
    ("body", "record", "sentence"),
    [
        (
            'echo "failed: the model needs more memory." >"$folder/$output.status"; exit',
            None,
            "needs more memory",
        ),
        ("exit", None, "was ended before it was done"),
        ("", "{}", "format"),
        ("", json.dumps(a_record() | {"runtime": "executorch"}), "is of executorch; expected onnxruntime"),
        ('echo done >"$folder/$output.status"; exit', None, "ended without writing its record"),
    ],
)
def test_says_what_went_wrong_and_leaves_nothing(
    profile: Profiler, body: str, record: str | None, sentence: str
) -> None:
    profile.install(body, record)
    assert sentence in profile.fails()
    assert profile.left() == []


def test_an_app_that_hangs_is_stopped(profile: Profiler) -> None:
    profile.install("sleep 60")
    assert "took longer than 1 s; raise --device-timeout" in profile.fails(run_timeout_s=1)
    assert profile.left() == []
    pid = int((profile.root / "app-pid").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_a_missing_app_is_a_sentence(profile: Profiler) -> None:
    assert f"has no app {DEFAULT_APP}; install it with adb install" in profile.fails()
    assert "is no application's name" in profile.fails("rm -rf /")
    assert profile.fake.left() == []


def test_an_activity_that_does_not_start_is_a_sentence(profile: Profiler) -> None:
    profile.fake.install(DEFAULT_APP, "echo 'Error type 3'; echo 'Error: Activity class does not exist.'")
    assert "cannot be started on device FA4E01: Error type 3" in profile.fails()
    assert profile.left() == []


@pytest.mark.parametrize("during", [False, True])
def test_unplugged_at_any_command(profile: Profiler, *, during: bool) -> None:
    profile.install()
    profile()
    commands = len(profile.fake.log())
    for number in range(2, commands + 1, 6):
        profile.fake.replug()
        profile.fake.control(vanish_at=number, vanish_during=during)
        try:
            measured = profile()
        except MoteError as error:
            left = str(error)
        else:
            left = measured.left or ""
        profile.fake.replug()
        if remedy := re.search(r"with: adb (.*?)\.?$", left):
            profile.fake.run_by_hand(f"adb {remedy[1]}")
        profile()  # takes over what a lost run left
        assert profile.left() == [], f"unplugged at {number}"
