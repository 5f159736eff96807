"""Folders and files that are damaged, or made to do damage: each is refused in one sentence, and nothing is written."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_text_checkpoint, tiny_text_config
from transformers import Qwen2Config

from mote_export.checkpoint import load_checkpoint, open_path, save_folder, save_model_pt
from mote_export.checkpoint.torch_files import folder_tensors
from mote_export.exporter import export
from mote_runtime.errors import MoteError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one/, many/ (shards) and model.pt of one model, with an output layer of its own. Not to be written to."""
    path = tmp_path_factory.mktemp("sound")
    checkpoint = tiny_text_checkpoint(tiny_text_config(Qwen2Config, num_hidden_layers=1, tie_word_embeddings=False))
    save_folder(path / "one", checkpoint)
    save_folder(path / "many", checkpoint)
    (path / "many" / WEIGHTS).unlink()
    checkpoint.model.save_pretrained(path / "many", max_shard_size="400KB")
    save_model_pt(path / "model.pt", checkpoint.model, checkpoint.files)
    return path


def copy(source: Path, to: Path) -> Path:
    to.mkdir()
    for file in source.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def header(content: dict[str, Any] | bytes, data: int = 16, length: int | None = None) -> Damage:
    """Writes safetensors by hand, with `data` bytes of weights."""

    def damage(path: Path) -> None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (path / WEIGHTS).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))

    return damage


def change_json(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(path: Path) -> None:
        content = json.loads((path / name).read_text())
        change(content)
        (path / name).write_text(json.dumps(content))

    return damage


def change_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(path: Path) -> None:
        state = load_file(path / WEIGHTS)
        change(state)
        save_file(state, path / WEIGHTS)

    return damage


def replace_by_pipe(name: str) -> Damage:
    def damage(path: Path) -> None:
        (path / name).unlink()
        os.mkfifo(path / name)

    return damage


def replace_by_folder(name: str) -> Damage:
    def damage(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return damage


def make_large(name: str) -> Damage:
    return lambda path: os.truncate(path / name, 65 << 20)


def shard(path: Path, number: int) -> Path:
    return sorted(path.glob("model-*.safetensors"))[number]


def repeat_in_another_shard(path: Path) -> None:
    name = next(iter(load_file(shard(path, 0))))
    save_file(load_file(shard(path, 1)) | {name: torch.ones(2)}, shard(path, 1))


def name_the_wrong_shard(path: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        shards = index["weight_map"]
        shards["lm_head.weight"] = next(other for other in shards.values() if other != shards["lm_head.weight"])

    change_json(INDEX, change)(path)


TWICE = (
    b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
)
ONE: dict[str, tuple[Damage, str]] = {
    "an empty file": (lambda path: (path / WEIGHTS).write_bytes(b""), "header too small"),
    "a header longer than the file": (header({"a": entry(0, 16, [4])}, length=10**6), "invalid header length"),
    "a header of exabytes": (header({"a": entry(0, 16, [4])}, length=2**64 - 1), "header too large"),
    "a header that is no JSON": (header(b"{"), "invalid JSON in header"),
    "a header without end": (header(b'{"a":' + b"[" * 10**5), "recursion limit"),
    "overlapping tensors": (
        header({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, 24),
        "invalid offset for tensor `b`",
    ),
    "a gap": (header({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20), "invalid offset for tensor `b`"),
    "a tensor beyond the end": (header({"a": entry(0, 64, [16])}), "not fully covered"),
    "bytes that belong to none": (header({"a": entry(0, 8, [2])}), "not fully covered"),
    "an offset below 0": (header({"a": entry(-8, 0, [2])}), "invalid value: integer `-8`"),
    "an end before the beginning": (header({"a": entry(16, 0, [4])}), "invalid offset"),
    "a dtype that cannot be": (header({"a": entry(0, 16, [4], "F31")}), "unknown variant `F31`"),
    "a shape of other size": (header({"a": entry(0, 16, [5])}), "invalid shape, data type, or offset"),
    "a shape below 0": (header({"a": entry(0, 16, [-4])}), "invalid value: integer `-4`"),
    "a shape whose product overflows": (header({"a": entry(0, 16, [2**33, 2**33])}), "overflow computing buffer size"),
    "two tensors of one name": (header(TWICE), "header of .* cannot be read: it has 'a' twice"),
    "a tensor of the wrong dtype": (
        change_tensors(lambda state: state.update({"lm_head.weight": torch.zeros(262, 64, dtype=torch.int8)})),
        "lm_head.weight is I8, expected a dense float32, float16 or bfloat16",
    ),
    "a tensor of the wrong shape": (
        change_tensors(lambda state: state.update({"lm_head.weight": torch.zeros(64, 262)})),
        r"lm_head.weight has shape \[64, 262\], the configuration wants \[262, 64\]",
    ),
    "a tensor that is missing": (
        change_tensors(lambda state: state.pop("lm_head.weight")),
        "lacks tensor lm_head.weight",
    ),
    "a tensor too many": (change_tensors(lambda state: state.update(x=torch.ones(2))), "an unexpected tensor x"),
    "values that are none": (
        change_tensors(lambda state: state["model.language_model.norm.weight"].fill_(torch.nan)),
        "norm.weight contains NaN or infinity",
    ),
    "tied weights that are two": (
        change_json("config.json", lambda config: config["text_config"].update(tie_word_embeddings=True)),
        "has lm_head.weight, but its configuration ties it to the embedding: which one is meant",
    ),
    "another width": (
        change_json("config.json", lambda config: config["text_config"].update(intermediate_size=192)),
        r"has shape \[\d+, \d+, 64\], the configuration wants|has shape .*160.*, the configuration wants .*192",
    ),
    "more layers": (
        change_json("config.json", lambda config: config["text_config"].update(num_hidden_layers=2, layer_types=None)),
        "lacks tensor .*layers.1",
    ),
    "a million layers": (
        change_json("config.json", lambda config: config["text_config"].update(num_hidden_layers=10**6)),
        "num_hidden_layers is 1000000, expected 1 to 1024",
    ),
    "a configuration with a key twice": (
        lambda path: (path / "config.json").write_text('{"model_type": "mote_text", "moe": {}, "moe": null}'),
        "config.json cannot be read as a model's configuration in JSON: it has 'moe' twice",
    ),
    "a configuration of 65 MiB": (make_large("config.json"), "config.json has more than 64 MiB"),
    "a tokenizer of 65 MiB": (make_large("tokenizer.json"), "tokenizer.json has more than 64 MiB"),
    "a pipe for a configuration": (replace_by_pipe("config.json"), "is not a checkpoint that mote reads"),
    "a pipe for a tokenizer": (replace_by_pipe("tokenizer.json"), "tokenizer.json is no regular file"),
    "a pipe for weights": (replace_by_pipe(WEIGHTS), f"has neither {WEIGHTS} nor"),
    "a folder for a configuration": (replace_by_folder("config.json"), "is not a checkpoint that mote reads"),
    "a folder for a tokenizer": (replace_by_folder("tokenizer.json"), "tokenizer.json is no regular file"),
}
MANY: dict[str, tuple[Damage, str]] = {
    "a shard that is missing": (lambda path: shard(path, 1).unlink(), "model-00002-of-.*it is missing or damaged"),
    "a shard that is cut": (lambda path: os.truncate(shard(path, 1), 99), "cannot be read as safetensors"),
    "a pipe for a shard": (lambda path: replace_by_pipe(shard(path, 1).name)(path), "is no regular file"),
    "an index of what is not there": (
        change_json(INDEX, lambda index: index["weight_map"].update(ghost=next(iter(index["weight_map"].values())))),
        "names ghost in model-0000.-of-.*, which does not hold it",
    ),
    "an index of a file outside": (
        change_json(INDEX, lambda index: index["weight_map"].update(ghost="../secret.safetensors")),
        "names a file outside of its folder: '../secret.safetensors'",
    ),
    "an index of the wrong shard": (
        name_the_wrong_shard,
        "names lm_head.weight in model-0000.-of-.*, which does not hold it",
    ),
    "an index of numbers": (
        change_json(INDEX, lambda index: index["weight_map"].update(x=3)),
        "outside of its folder: 3",
    ),
    "an index without a map": (change_json(INDEX, lambda index: index.update(weight_map=[])), "has no weight_map"),
    "an index with a name twice": (
        lambda path: (path / INDEX).write_text('{"weight_map": {"a": "x", "a": "y"}}'),
        "it has 'a' twice",
    ),
    "a tensor in two shards": (repeat_in_another_shard, "is in model-00001-of-.* and model-00002-of-"),
    "a pipe for an index": (replace_by_pipe(INDEX), "is no regular file"),
}


@pytest.mark.parametrize(("damage", "message"), ONE.values(), ids=ONE.keys())
def test_a_folder_is_refused_in_one_sentence(damage: Damage, message: str, sound: Path, tmp_path: Path) -> None:
    damage(copy(sound / "one", tmp_path / "model"))
    refuse(tmp_path / "model", message)


@pytest.mark.parametrize(("damage", "message"), MANY.values(), ids=MANY.keys())
def test_a_folder_of_shards_is_refused_in_one_sentence(
    damage: Damage, message: str, sound: Path, tmp_path: Path
) -> None:
    damage(copy(sound / "many", tmp_path / "model"))
    refuse(tmp_path / "model", message)


def refuse(path: Path, message: str) -> None:
    """By an export, which leaves nothing behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(MoteError, match=message) as refused:
        export(path, path.parent / "out", ["onnx"], verify=False)
    assert "\n" not in str(refused.value)
    assert sorted(path.parent.iterdir()) == before


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was-run",)


FILES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "code": (
        lambda content: content.update(config=Evil()),
        "Python objects other than tensors and plain data, perhaps code",
    ),
    "an entry too many": (lambda content: content.update(more=1), "holds something else under 'more'"),
    "something among the tensors": (lambda content: content["state_dict"].update(x=[1]), "holds a list under 'x'"),
    "a tensor without a name": (lambda content: content["state_dict"].update({1: torch.ones(1)}), "under 1, expected"),
    "a sparse tensor": (
        lambda content: content["state_dict"].update(x=torch.eye(3).to_sparse()),
        "x is torch.sparse_coo, expected",
    ),
    "a tensor without values": (
        lambda content: content["state_dict"].update(x=torch.empty(3, device="meta")),
        "x is on the meta device",
    ),
    "another file": (lambda content: content["files"].update({"run.sh": "x"}), "carries a file 'run.sh'"),
    "another version": (
        lambda content: content.update(format_version=2),
        "version 2, expected 'mote-checkpoint' version 1",
    ),
    "no configuration": (lambda content: content.update(config=[]), "lacks its config"),
}


@pytest.mark.parametrize(("damage", "message"), FILES.values(), ids=FILES.keys())
def test_a_file_is_refused_in_one_sentence(
    damage: Callable[[dict[str, Any]], Any], message: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(sound / "model.pt", weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "model.pt")
    refuse(tmp_path / "model.pt", message)


@pytest.mark.parametrize("kept", [0, 3, 1000, -1])
def test_a_file_that_is_cut_is_refused(kept: int, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes((sound / "model.pt").read_bytes()[:kept])
    refuse(tmp_path / "model.pt", "truncated or damaged|is not a checkpoint that mote reads")


TORCH_FILES: dict[str, tuple[Damage, str]] = {
    "a shard that is missing": (lambda path: (path / "b.bin").unlink(), "b.bin is missing"),
    "a pipe": (replace_by_pipe("b.bin"), "b.bin is no regular file"),
    "what torch wrote before 1.6": (
        lambda path: torch.save({"b": torch.ones(2)}, path / "b.bin", _use_new_zipfile_serialization=False),
        "b.bin is not a zip archive as torch.save has written since 1.6",
    ),
    "code": (lambda path: torch.save({"b": Evil()}, path / "b.bin"), "perhaps code"),
    "a list": (lambda path: torch.save([1], path / "b.bin"), "b.bin holds a list"),
    "a tensor of another shard": (
        lambda path: torch.save({"b": torch.ones(2), "a": torch.ones(2)}, path / "b.bin"),
        "b.bin holds a, which pytorch_model.bin.index.json has in a.bin",
    ),
    "a tensor of no shard": (
        lambda path: torch.save({"b": torch.ones(2), "c": torch.ones(2)}, path / "b.bin"),
        "b.bin holds c, which pytorch_model.bin.index.json has nowhere",
    ),
    "no tensor": (lambda path: torch.save({}, path / "b.bin"), "names b in b.bin, which does not hold it"),
}


@pytest.mark.parametrize(("damage", "message"), TORCH_FILES.values(), ids=TORCH_FILES.keys())
def test_torch_files_in_shards_are_refused_in_one_sentence(damage: Damage, message: str, tmp_path: Path) -> None:
    for name in "ab":
        torch.save({name: torch.ones(2)}, tmp_path / f"{name}.bin")
    index = {"weight_map": {"a": "a.bin", "b": "b.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert sorted(folder_tensors(tmp_path)) == ["a", "b"]
    damage(tmp_path)
    with pytest.raises(MoteError, match=message):
        folder_tensors(tmp_path)


def test_values_come_back_bit_for_bit_in_the_type_that_they_were_saved_in(tmp_path: Path) -> None:
    checkpoint = tiny_text_checkpoint(tiny_text_config(Qwen2Config, num_hidden_layers=1))
    checkpoint.model.to(torch.bfloat16)
    save_folder(tmp_path / "folder", checkpoint)
    save_model_pt(tmp_path / "model.pt", checkpoint.model, checkpoint.files)
    copy(tmp_path / "folder", tmp_path / "shards")
    (tmp_path / "shards" / WEIGHTS).unlink()
    checkpoint.model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    expected = checkpoint.model.state_dict()
    expected.pop("lm_head.weight")  # tied
    for name in ("folder", "shards", "model.pt"):
        opened = open_path(tmp_path / name)
        assert opened.tensors.keys() == expected.keys()
        for key, source in opened.tensors.items():
            found = source.read()
            assert found.dtype == torch.bfloat16
            assert torch.equal(found.view(torch.int16), expected[key].view(torch.int16))
            assert torch.equal(source.part(0), found[0])
        assert opened.config.moe_settings == checkpoint.model.config.moe_settings
        assert opened.files["tokenizer.json"] == checkpoint.files["tokenizer.json"]


@pytest.mark.parametrize("source", ["one", "many", "model.pt"])
def test_what_is_sound_is_read_alike_from_everywhere(source: str, sound: Path) -> None:
    expected, found = (load_checkpoint(sound / name).model.state_dict() for name in ("one", source))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
