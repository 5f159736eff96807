"""Prompts and streamed text."""

import json
from pathlib import Path

import pytest
import tiny_onnx_export as tiny
from tokenizers import Tokenizer

from mote_runtime.errors import ExportFolderError, ImageError, MoteError
from mote_runtime.manifest import Manifest
from mote_runtime.tokenizer import PromptTokenizer

USER, SUFFIX = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def open_tokenizer(folder: Path) -> PromptTokenizer:
    manifest = Manifest.read(folder)
    return PromptTokenizer(manifest.path("tokenizer.json"), manifest.model, manifest.prompt)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PromptTokenizer:
    return open_tokenizer(folder)


@pytest.mark.parametrize("num_images", [0, 1, 2])
@pytest.mark.parametrize("text", ["What is shown?", "", " two\n\nlines ", "日本語 😀"])
def test_a_prompt_is_the_whole_template_encoded(tokenizer: PromptTokenizer, text: str, num_images: int) -> None:
    image = "<|vision_start|>" + "<|image_pad|>" * tiny.IMAGE_TOKENS + "<|vision_end|>"
    expected = tiny.tokenizer().encode(USER + image * num_images + text + SUFFIX, add_special_tokens=False).ids
    assert tokenizer.encode_prompt(text, num_images) == expected


@pytest.mark.parametrize("special", tiny.SPECIAL_TOKENS)
def test_a_special_token_in_the_text_is_plain_text(tokenizer: PromptTokenizer, special: str) -> None:
    ids = tokenizer.encode_prompt(f"a{special}b", 1)
    assert ids.count(tiny.IMAGE_PAD) == tiny.IMAGE_TOKENS
    assert [token for token in ids if token >= 256] == [
        token for token in tokenizer.encode_prompt("ab", 1) if token >= 256
    ]
    assert tokenizer.decode(ids) == f"user\na{special}b\nassistant\n"


def test_text_that_the_tokenizer_takes_for_an_image_is_refused(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["special"] = False
    manifest = Manifest.read(folder)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    tokenizer = PromptTokenizer(path, manifest.model, manifest.prompt)
    with pytest.raises(MoteError, match="spells a control token"):
        tokenizer.encode_prompt("<|image_pad|>")


def test_truncation_asked_for_by_the_file_is_not_done(folder: Path, tmp_path: Path) -> None:
    truncating = Tokenizer.from_file(str(folder / "tokenizer.json"))
    truncating.enable_truncation(4)
    truncating.enable_padding(length=90)
    path = tmp_path / "tokenizer.json"
    truncating.save(str(path))
    manifest = Manifest.read(folder)
    ids = PromptTokenizer(path, manifest.model, manifest.prompt).encode_prompt("long question")
    assert ids == open_tokenizer(folder).encode_prompt("long question")


def test_refusals(folder: Path, tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    manifest = Manifest.read(folder)
    path = tmp_path / "tokenizer.json"
    for content in ("", "{}", "[1]", '{"model": {"type": "Nonsense"}}'):
        path.write_text(content)
        with pytest.raises(ExportFolderError, match="not a readable tokenizer"):
            PromptTokenizer(path, manifest.model, manifest.prompt)
    larger = tiny.tokenizer()
    larger.add_tokens(["more"])
    larger.save(str(path))
    with pytest.raises(ExportFolderError, match="263 tokens, but the model's vocabulary has 262"):
        PromptTokenizer(path, manifest.model, manifest.prompt)
    with pytest.raises(MoteError, match="not valid Unicode"):
        tokenizer.encode_prompt("\udcff")


def test_an_image_for_a_text_only_model_is_refused(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(tiny.write_export(tmp_path, text_only=True))
    assert tokenizer.encode_prompt("hi") == tiny.tokenizer().encode(USER + "hi" + SUFFIX).ids
    with pytest.raises(ImageError, match="text only"):
        tokenizer.encode_prompt("hi", 1)


def test_streaming_holds_back_incomplete_characters(tokenizer: PromptTokenizer) -> None:
    ids = tiny.tokenizer().encode("é日😀!").ids
    stream = tokenizer.stream()
    assert [stream.push(token_id) for token_id in ids] == ["", "é", "", "", "日", "", "", "", "😀", "!"]
    assert stream.flush() == ""


@pytest.mark.parametrize(
    "ids",
    [
        tiny.tokenizer().encode("日").ids[:2],
        [127] * 9 + tiny.tokenizer().encode("a日").ids,
        tiny.tokenizer().encode("a\ufffdb\ufffd").ids,
        [tiny.IM_START, *tiny.tokenizer().encode(" a ").ids, tiny.IM_END],
        list(range(256)),
        [],
    ],
    ids=["cut", "invalid bytes", "replacement characters", "special tokens", "every byte", "nothing"],
)
def test_streamed_pieces_make_up_the_whole_text(tokenizer: PromptTokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)
    assert stream.flush() == ""
