"""mote.json: what is accepted, what is refused and how the refusal reads."""

import copy
import hashlib
import json
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny_onnx_export as tiny

from mote_runtime.errors import ExportFolderError
from mote_runtime.manifest import Manifest, Verification, sha256

FILES = ("embedding.onnx", "model.onnx", "model.onnx.data", "tokenizer.json", "vision.onnx")


def document(**changes: Any) -> dict[str, Any]:
    entry = {"bytes": 1, "sha256": "0" * 64}
    return tiny.manifest({name: dict(entry) for name in FILES}) | changes


def read(folder: Path, content: object) -> Manifest:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "mote.json").write_bytes(text)
    return Manifest.read(folder)


def refusal(folder: Path, content: object) -> str:
    with pytest.raises(ExportFolderError) as caught:
        read(folder, content)
    return str(caught.value)


def read_or_refuse(folder: Path, content: bytes) -> None:
    """Any other exception than a refusal of one line fails the test."""
    message = ""
    try:
        read(folder, content).verify(Verification.SIZES)
    except ExportFolderError as error:
        message = str(error)
    assert "\n" not in message


def test_reads_every_field(tmp_path: Path) -> None:
    manifest = read(tmp_path, document())
    assert (manifest.target, manifest.plugin_library) == ("onnxruntime", "libmote_ort.so")
    assert (manifest.model.vocab_size, manifest.model.eos_token_ids) == (tiny.VOCAB, (tiny.IM_END,))
    assert (manifest.moe.layers, manifest.moe.normalize_topk) == ((0, 1), False)
    assert manifest.image is not None
    assert manifest.image.mean == (0.5, 0.5, 0.5)
    assert manifest.prompt.image == "<|vision_start|>{image_pads}<|vision_end|>"
    assert sorted(manifest.files) == sorted(FILES)
    assert manifest.versions == {"mote": "0.1.0"}


def test_reads_a_text_only_export(tmp_path: Path) -> None:
    text_only = tiny.manifest(document()["files"], text_only=True)
    assert read(tmp_path, text_only).model.num_image_tokens is None


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("", "format", "other", "expected 'mote-export'"),
        ("", "format_version", 1, "expected an integer from 2 to 2"),
        ("", "target", "tensorrt", "'onnxruntime' or 'executorch'"),
        ("", "target", ["onnxruntime"], "'onnxruntime' or 'executorch'"),
        ("", "model", None, "expected an object"),
        ("model", "vocab_size", True, "expected an integer from 1"),
        ("model", "vocab_size", -1, "field 'model.vocab_size' is -1"),
        ("model", "vocab_size", 10**30, "expected an integer from 1"),
        ("model", "context_length", 1e3, "expected an integer"),
        ("model", "num_key_value_heads", 3, "a divisor of num_attention_heads, 4"),
        ("model", "eos_token_ids", [tiny.VOCAB], "integers from 0 to"),
        ("model", "eos_token_ids", [1, 1], "without duplicates"),
        ("model", "eos_token_ids", 2, "a list of at most"),
        ("model", "image_token_id", None, "an integer, as there is an image section"),
        ("model", "num_image_tokens", tiny.CONTEXT + 1, "an integer from 1 to 96"),
        ("model", "name", 3, "expected a string"),
        ("model", "name", "x" * 10**5, "expected a string"),
        ("moe", "layout_version", 2, "field 'moe.layout_version' is 2; expected an integer from 1 to 1"),
        ("moe", "packing", "3bit", "expected '2bit' or '1.6bit'"),
        ("moe", "shared_expert", "none", "expected 'float32' or 'bf16' or 'int8' or 'int4'"),
        ("moe", "shared_group_size", 32, "expected 0"),
        ("moe", "shared_group_size", False, "expected 0"),
        ("moe", "top_k", tiny.EXPERTS + 1, "expected an integer from 1 to 3"),
        ("moe", "layers", [2], "integers from 0 to 1"),
        ("moe", "normalize_topk", 0, "expected true or false"),
        ("image", "height", 0, "expected an integer from 1"),
        ("image", "resample", "lanczos", "expected 'bicubic'"),
        ("image", "std", [0.5, 0.5, 0], "three numbers above 0"),
        ("image", "mean", [0.5, 0.5], "a list of three finite numbers"),
        ("image", "mean", [10**400] * 3, "a list of three finite numbers"),
        ("image", "rescale_factor", -1.0, "a number above 0"),
        ("prompt", "image", "no pads", "holds {image_pads} once"),
        ("prompt", "user_prefix", None, "expected a string"),
        ("plugin", "library", "../evil.so", "a plain file name"),
    ],
)
def test_refuses_a_field_and_names_it(tmp_path: Path, section: str, key: str, value: object, expected: str) -> None:
    content = document()
    (content[section] if section else content)[key] = value
    message = refusal(tmp_path, content)
    assert key in message
    assert expected in message
    assert len(message) < 400


def test_int4_needs_a_group_size(tmp_path: Path) -> None:
    content = document()
    content["moe"]["shared_expert"] = "int4"
    assert "field 'moe.shared_group_size' is 0; expected 32 or 64 or 128" in refusal(tmp_path, content)
    content["moe"]["shared_group_size"] = 64
    assert read(tmp_path, content).moe.shared_group_size == 64


def test_checks_a_document_before_anything_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "none"
    written = read(tmp_path, document())
    planned = document() | {name: asdict(getattr(written, name)) for name in ("model", "moe", "image", "prompt")}
    assert asdict(Manifest.parse(folder, planned)) == asdict(written) | {"folder": folder}
    for files in ({"files": {}}, {"files": None}, {}):
        early = {key: value for key, value in planned.items() if key != "files"} | files
        assert Manifest.parse(folder, early, files_are_known=False).model == written.model
        with pytest.raises(ExportFolderError, match="files"):
            Manifest.parse(folder, early)
    planned["model"]["num_key_value_heads"] = 3
    with pytest.raises(ExportFolderError, match=r"num_key_value_heads.*a divisor of"):
        Manifest.parse(folder, planned, files_are_known=False)
    assert caplog.text == ""


def test_sha256_of_a_file_in_pieces(tmp_path: Path) -> None:
    path, content = tmp_path / "file", bytes(range(256)) * 5000
    path.write_bytes(content)
    read_bytes: list[int] = []
    assert sha256(path) == sha256(path, read_bytes.append) == hashlib.sha256(content).hexdigest()
    assert sum(read_bytes) == len(content)
    with pytest.raises(FileNotFoundError):
        sha256(tmp_path / "none")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(tiny.write_export(tmp_path))

    def fail(*_: object) -> str:
        raise OSError("input/output error")

    monkeypatch.setattr("mote_runtime.manifest.sha256", fail)
    with pytest.raises(ExportFolderError, match=r"embedding\.onnx in .* cannot be read: input/output error"):
        manifest.verify()


def test_names_a_missing_field(tmp_path: Path) -> None:
    content = document()
    del content["model"]["head_dim"]
    assert "field 'model.head_dim' is missing" in refusal(tmp_path, content)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", "/etc/passwd", "..", ".", "", "a\0b", "C:x", ".hidden", "-rf", "x" * 256, "ﬁle", "a\n"],
)
def test_refuses_a_name_that_is_not_plain(tmp_path: Path, name: str) -> None:
    content = document()
    content["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    assert "expected a plain file name of the folder itself" in refusal(tmp_path, content)


@pytest.mark.parametrize("entry", [None, [], {"bytes": -1, "sha256": "0" * 64}, {"bytes": 1, "sha256": "A" * 64}, {}])
def test_refuses_a_file_entry(tmp_path: Path, entry: object) -> None:
    content = document()
    content["files"]["model.onnx"] = entry
    assert "files.model.onnx" in refusal(tmp_path, content)


@pytest.mark.parametrize("name", ["embedding.onnx", "model.onnx", "tokenizer.json", "vision.onnx"])
def test_refuses_a_list_without_a_file_that_the_runtime_needs(tmp_path: Path, name: str) -> None:
    content = document()
    del content["files"][name]
    assert f"lacks '{name}', which onnxruntime needs" in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a readable JSON document"),
        (b"{", "not a readable JSON document"),
        (b"[]", "expected a JSON object"),
        (b"\xff\xfe{", "not a readable JSON document"),
        (b'{"a": 1, "a": 2}', "a key occurs twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "not a readable JSON document"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not a readable JSON document"),
        (b" " * (1 << 25), "a manifest has at most"),
    ],
    ids=["empty", "cut", "list", "not UTF-8", "twice", "NaN", "deep", "long number", "huge"],
)
def test_refuses_what_is_no_manifest(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in refusal(tmp_path, content)


def test_says_which_field_has_no_effect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = document()
    content["model"]["sliding_window"] = 4
    read(tmp_path, content)
    assert "field 'model.sliding_window' is not known to this version and has no effect" in caplog.text


def test_folder_missing_or_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ExportFolderError, match="does not exist"):
        Manifest.read(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ExportFolderError, match="is not a folder"):
        Manifest.read(tmp_path / "file")
    with pytest.raises(ExportFolderError, match=r"has no mote\.json"):
        Manifest.read(tmp_path)


def test_verify_accepts_what_was_exported(tmp_path: Path) -> None:
    Manifest.read(tiny.write_export(tmp_path)).verify()


def test_verify_names_a_cut_file_with_both_sizes(tmp_path: Path) -> None:
    manifest = Manifest.read(tiny.write_export(tmp_path))
    data = tmp_path / "model.onnx.data"
    size = data.stat().st_size
    os.truncate(data, size - 1)
    with pytest.raises(ExportFolderError, match=rf"model\.onnx\.data .* has {size - 1} bytes, .* expects {size} bytes"):
        manifest.verify(Verification.SIZES)


def test_verify_names_a_changed_file_unless_only_sizes_are_asked_for(tmp_path: Path) -> None:
    manifest = Manifest.read(tiny.write_export(tmp_path))
    data = tmp_path / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    manifest.verify(Verification.SIZES)
    with pytest.raises(ExportFolderError, match=r"model\.onnx\.data .* SHA-256 .* changed since the export"):
        manifest.verify()


def test_sums_of_large_files_are_compared_only_if_all_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(tiny.write_export(tmp_path))
    data = tmp_path / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert Verification.of(None) is Verification.SMALL_FILES
    with pytest.raises(ExportFolderError, match="SHA-256"):
        manifest.verify(Verification.of(None))
    monkeypatch.setattr("mote_runtime.manifest.SMALL_FILE_BYTES", len(content) - 1)
    manifest.verify(Verification.of(None))
    with pytest.raises(ExportFolderError, match="SHA-256"):
        manifest.verify(Verification.of(True))
    for size in (len(content) - 1, len(content) + 1):
        os.truncate(data, size)
        with pytest.raises(ExportFolderError, match=rf"has {size} bytes"):
            manifest.verify(Verification.of(None))
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text().replace(": ", " :", 1))
    os.truncate(data, len(content))
    with pytest.raises(ExportFolderError, match=r"tokenizer\.json .* SHA-256"):
        manifest.verify(Verification.of(None))


def test_verify_follows_no_link_out_of_the_folder(tmp_path: Path) -> None:
    folder = tiny.write_export(tmp_path / "export")
    manifest = Manifest.read(folder)
    model = folder / "model.onnx"
    inside, outside = folder / "renamed", tmp_path / "outside"
    model.rename(inside)
    model.symlink_to("renamed")
    manifest.verify()
    model.unlink()
    inside.rename(outside)
    model.symlink_to(outside)
    with pytest.raises(ExportFolderError, match=r"model\.onnx .* is a link that leaves the folder"):
        manifest.verify()


@pytest.mark.parametrize("kind", ["loop", "pipe", "folder", "missing"])
def test_verify_refuses_what_is_no_file(tmp_path: Path, kind: str) -> None:
    manifest = Manifest.read(tiny.write_export(tmp_path))
    model = tmp_path / "model.onnx"
    model.unlink()
    if kind == "loop":
        model.symlink_to("model.onnx")
    elif kind == "pipe":
        os.mkfifo(model)
    elif kind == "folder":
        model.mkdir()
    with pytest.raises(ExportFolderError, match=r"model\.onnx"):
        manifest.verify()


def test_a_manifest_that_is_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = tiny.write_export(tmp_path / "export")
    (folder / "mote.json").rename(tmp_path / "mote.json")
    (folder / "mote.json").symlink_to(tmp_path / "mote.json")
    with pytest.raises(ExportFolderError, match="link that leaves the folder"):
        Manifest.read(folder)


_HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    1.5,
    1e999,
    "",
    "..",
    "\0",
    "\ud800",
    "x" * 70_000,
    [],
    [[]],
    {},
    [None],
]


def _places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children: list[Any] = list(value) if isinstance(value, dict) else []
    children = list(range(len(value))) if isinstance(value, list) else children
    nested = [place for key in children for place in _places(value[key], (*path, key))]  # type: ignore[index]
    return [path, *nested] if path else nested


def _mutate(content: dict[str, Any], choices: random.Random) -> dict[str, Any]:
    content = copy.deepcopy(content)
    for _ in range(choices.randint(1, 3)):
        place = choices.choice(_places(content))
        parent: Any = content
        for key in place[:-1]:
            parent = parent[key]
        if choices.random() < 0.2:
            del parent[place[-1]]
        else:
            parent[place[-1]] = copy.deepcopy(choices.choice(_HOSTILE))
    return content


@pytest.mark.parametrize("seed", range(4))
def test_hostile_fields_end_in_a_refusal_or_a_manifest(tmp_path: Path, seed: int) -> None:
    choices = random.Random(seed)
    original = document()
    for _ in range(400):
        read_or_refuse(tmp_path, json.dumps(_mutate(original, choices)).encode())


def test_hostile_bytes_end_in_a_refusal_or_a_manifest(tmp_path: Path) -> None:
    choices = random.Random(5)
    original = json.dumps(document()).encode()
    for _ in range(400):
        content = bytearray(original)
        for _ in range(choices.randint(1, 8)):
            content[choices.randrange(len(content))] = choices.randrange(256)
        read_or_refuse(tmp_path, bytes(content))
