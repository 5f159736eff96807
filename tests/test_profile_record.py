"""Records, profiles and prompts as files: what is written is read back, and what is not right is refused with one sentence."""

import json
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx_export
from test_profile_statistics import record

from mote_runtime.manifest import Manifest
from mote_runtime.profile.energy import EnergyMeter
from mote_runtime.profile.memory import MemorySampler, resident_bytes
from mote_runtime.profile.output import check_output, write_output
from mote_runtime.profile.prompt import prompt_inputs, write_prompt
from mote_runtime.profile.read import is_profile, read_profile
from mote_runtime.profile.record import Record
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.strict import ProfileError, read_json


def test_a_record_is_read_back() -> None:
    one = record([4.0, 6.0])
    document = json.loads(json.dumps(one.to_json()))
    assert Record.from_json(document).to_json() == document
    first = document["repetitions"][0]
    assert first["SCALING_FACTOR_UNITS_PER_SECOND"] == 1000
    # The names that ExecuTorch's LLM stats have.
    assert {
        "inference_start_ms",
        "prompt_eval_end_ms",
        "first_token_ms",
        "inference_end_ms",
        "prompt_tokens",
        "generated_tokens",
    } <= first.keys()


def _set(document: Any, path: str, value: Any) -> None:
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in parents:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("format", "other", "format"),
        ("format_version", 2, "format_version"),
        ("runtime", "tflite", "runtime"),
        ("runtime_version", "x" * 200, "runtime_version"),
        ("threads", 0, "threads"),
        ("threads", True, "threads"),
        ("cores", [-1], "cores"),
        ("model_load_end_ms", -5.0, "model_load_end_ms"),
        ("model_load_start_ms", 500.0, "model_load_end_ms"),
        ("model_load_start_ms", 10**400, "model_load_start_ms"),
        ("repetitions", {}, "repetitions"),
        ("repetitions.0", 7, "repetition 0"),
        ("repetitions.0.first_token_ms", "now", "first_token_ms"),
        ("repetitions.0.prompt_eval_end_ms", 999999.0, "first_token_ms"),
        ("repetitions.0.token_ids", [1], "token_ids"),
        ("repetitions.0.token_ids", [1.5] * 9, "token_ids"),
        ("repetitions.0.token_ms", [5.0] * 8 + [1.0], "goes back"),
        ("repetitions.0.prompt_tokens", 1 << 40, "prompt_tokens"),
        ("repetitions.0.energy_joules", -1, "energy_joules"),
        ("memory", None, "memory"),
        ("memory.samples", [[1.0, 2]], "sample"),
        ("memory.samples", [[1.0, 2, 1 << 60]], "sample"),
        ("memory.peak_file_bytes", 1.5, "peak_file_bytes"),
        ("monotonic_to_epoch_ms", [], "monotonic_to_epoch_ms"),
        ("load_ms", [None], "load_ms"),
    ],
)
def test_a_wrong_field_is_named(path: str, value: Any, named: str) -> None:
    document = json.loads(json.dumps(record([4.0]).to_json()))
    _set(document, path, value)
    with pytest.raises(ProfileError, match=named) as caught:
        Record.from_json(document)
    assert len(str(caught.value)) < 400


def test_files_that_are_no_json_are_refused(tmp_path: Path) -> None:
    for name, content in {
        "nan": b'{"a": NaN}',
        "deep": b"[" * 100_000,
        "cut": b'{"a": ',
        "binary": b"\xff\xfe",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ProfileError, match="readable JSON"):
            read_json(path)
    with pytest.raises(ProfileError, match="at most 3"):
        read_json(tmp_path / "nan", max_bytes=3)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProfileError, match="not a file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(ProfileError, match="does not exist"):
        read_json(tmp_path / "missing")


def test_profiles_and_bare_records_can_be_read(tmp_path: Path) -> None:
    bare = tmp_path / "record.json"
    bare.write_text(json.dumps(record([4.0]).to_json()))
    assert [label for label, _ in read_profile(bare)] == ["onnxruntime"]
    assert is_profile(bare)
    assert not is_profile(tmp_path)
    whole = {
        "format": "mote-profile",
        "format_version": 1,
        "runs": [{"label": "mine", "record": record([4.0]).to_json()}],
    }
    (tmp_path / "profile.json").write_text(json.dumps(whole))
    assert read_profile(tmp_path)[0][1].repetitions == record([4.0]).repetitions
    (tmp_path / "profile.json").write_text(json.dumps(whole | {"runs": [{"label": 3}]}))
    with pytest.raises(ProfileError, match="label"):
        read_profile(tmp_path)


def test_output_replaces_an_earlier_profile_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    files = {"profile.json": '{"format": "mote-profile"}', "report.html": "<p>"}
    write_output(folder, files)
    write_output(folder, {"profile.json": '{"format": "mote-profile"}'})  # files of the earlier one are gone
    assert [path.name for path in folder.iterdir()] == ["profile.json"]
    (folder / "notes.txt").write_text("mine")
    for refused in (folder, tmp_path / "absent" / "out"):
        with pytest.raises(ProfileError, match="-o"):
            check_output(refused)
    other = tmp_path / "other"
    other.mkdir()
    (other / "profile.json").write_text("{}")
    with pytest.raises(ProfileError, match="something else"):
        write_output(other, files)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(ProfileError, match="no folder"):
        check_output(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "other", "out"]  # no temporary file is left


def test_prompt_files_have_the_documented_bytes(tmp_path: Path) -> None:
    folder = tiny_onnx_export.write_export(tmp_path / "export")
    manifest = Manifest.read(folder)
    ids, pixels = prompt_inputs(Settings(str(folder), "Hi", ""), manifest)
    assert pixels is not None
    path = tmp_path / "prompt.bin"
    write_prompt(path, manifest, ids, pixels, ignore_eos=False)
    content = path.read_bytes()
    side = tiny_onnx_export.SIDE
    header = struct.unpack_from("<8s8I", content)
    assert header == (b"MOTEPRM1", len(ids), 1, 1, 3, side, side, tiny_onnx_export.IMAGE_PAD, tiny_onnx_export.CONTEXT)
    numbers = np.frombuffer(content, "<i8", len(ids) + 1, 40)
    assert list(numbers) == [*ids, tiny_onnx_export.IM_END]
    rest = np.frombuffer(content, "<f4", offset=40 + 8 * (len(ids) + 1))
    assert np.array_equal(rest.reshape(pixels.shape), pixels)
    write_prompt(path, manifest, [5, 6])
    assert len(path.read_bytes()) == 40 + 16
    for wrong in ([], [10**6], [tiny_onnx_export.IMAGE_PAD], [1] * 1000):
        with pytest.raises(ProfileError):
            write_prompt(path, manifest, wrong)
    with pytest.raises(ProfileError, match="pixels"):
        write_prompt(path, manifest, ids, pixels[:, :, 1:])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["export", "prompt.bin"]


def test_memory_is_sampled_and_grows_with_what_is_allocated() -> None:
    before = resident_bytes()
    with MemorySampler() as sampler:
        # New pages for sure: the heap of a process that has run other tests may have as much to give again.
        block = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.write(b"1" * len(block))
        sampler.mark()
        block.close()
    memory = sampler.memory()
    assert memory.peak_anonymous_bytes >= before[0] + (56 << 20)
    times = [sample[0] for sample in memory.samples]
    assert times == sorted(times)
    assert len(times) >= 3


def test_energy_is_read_or_said_not_to_be_there(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).read() is None
    assert EnergyMeter(tmp_path).reason == "this system shows no energy counters"
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of it, not to be counted twice
    (package / "name").write_text("package-0\n")
    (package / "max_energy_range_uj").write_text("9999999\n")
    (package / "energy_uj").write_text("9000000\n")
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    (package / "energy_uj").write_text("1000000\n")  # it started again at 0
    assert meter.reason is None
    assert meter.joules_since(before) == pytest.approx(2.0)


def test_energy_is_that_of_all_packages_and_of_nothing_else(tmp_path: Path) -> None:
    for number, name in enumerate(("package-0", "psys")):  # the whole board, which holds the package
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        for file, content in (("name", name), ("max_energy_range_uj", "9999999"), ("energy_uj", "1000000")):
            (zone / file).write_text(content + "\n")
    meter = EnergyMeter(tmp_path)
    assert (meter.reason, meter.read()) == (None, (1000000,))
    (tmp_path / "intel-rapl:2").mkdir()
    (tmp_path / "intel-rapl:2" / "name").write_text("package-1\n")
    meter = EnergyMeter(tmp_path)  # a sum without the second package would be no package's and not all
    assert meter.read() is None
    assert str(meter.reason).startswith("intel-rapl:2 cannot be read")


def test_an_interrupt_while_output_is_put_in_place_keeps_the_earlier_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    write_output(output, {"profile.json": '{"format": "mote-profile"}'})
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_output(output, {"profile.json": "{}"})
    assert (output / "profile.json").read_text() == '{"format": "mote-profile"}'
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written_is_told_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "os.access", lambda path, mode: path != tmp_path
    )  # tests may run as root, who may write anywhere
    with pytest.raises(ProfileError, match="cannot be written to, so out"):
        check_output(tmp_path / "out")
    with pytest.raises(ProfileError, match="cannot be looked at"):
        check_output(tmp_path / ("x" * 300))


def test_a_label_cannot_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    run = {"label": "a\x1b[2J", "record": record([10.0]).to_json()}
    path.write_text(json.dumps({"format": "mote-profile", "runs": [run]}))
    assert [label for label, _ in read_profile(path)] == ["a?[2J"]
