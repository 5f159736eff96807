"""mote-profile inside the Android app: its real activity on this machine's JVM, over the stand-in for adb."""

import json
import shlex
from pathlib import Path

import pytest
from android import skipped_without_packages
from fake_adb import SERIAL, FakeAdb
from test_profile_device import own_answer

from android_demo.tools.modules import APP
from android_demo.tools.tests import ENVIRONMENT, junit_command
from mote_runtime.cli.profile import main
from mote_runtime.profile.devices.app import DEFAULT_APP

# What Android does with the command: it starts the app's process, and the command ends.
START = """\
printf '%s\\0' "$@" >{words}
({environment} exec {command} org.mote.demo.AmStart >{log} 2>&1) &
echo $! >app-pid
echo "Starting: Intent {{ cmp={app}/.BenchmarkActivity }}"
"""


@pytest.mark.slow
def test_the_app_measures_as_this_computer_answers(
    demo_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ADB", "ANDROID_SERIAL"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeAdb(tmp_path / "devices")
    root = fake.folder / SERIAL
    files, words, log = root / "sdcard/Android/data" / DEFAULT_APP / "files", root / "words", root / "log"
    properties = {"am.words": words, "am.files": files}
    (tmp_path / "jvm").mkdir()
    with skipped_without_packages():
        command = junit_command(APP, tmp_path / "jvm", **properties)
    environment = " ".join(f"export {name}={value};" for name, value in ENVIRONMENT.items())
    fake.install(
        DEFAULT_APP,
        START.format(words=words, log=log, command=shlex.join(command), environment=environment, app=DEFAULT_APP),
    )

    output, tokens = tmp_path / "out", 6
    code = main(
        [
            *(str(demo_export), "--device", "--app", "--adb", str(fake.program), "-o", str(output)),
            *("--max-new-tokens", str(tokens), "--warmup", "1", "--repetitions", "2", "--threads", "1"),
        ]
    )
    assert code == 0, (capsys.readouterr().err, log.read_text() if log.exists() else "")
    document = json.loads((output / "profile.json").read_text())
    assert [run["label"] for run in document["runs"]] == ["onnxruntime", "executorch"]
    for run, folder in zip(document["runs"], ("onnx", "executorch"), strict=True):
        record = run["record"]
        assert record["tool"].startswith("mote-android ")
        assert (record["threads"], record["warmup"], record["num_images"]) == (1, 1, 1)
        assert [each["token_ids"] for each in record["repetitions"]] == [own_answer(demo_export / folder, tokens)] * 2
        assert run["summary"]["decode_token_per_sec"]["median"] > 0
    assert sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file()) == []
