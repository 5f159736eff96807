"""Conversations as training data: what is learnt, who sees whom, and files that are not as they should be."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from tiny import byte_tokenizer
from training import IMAGE_SIZE, NUM_IMAGE_TOKENS, conversation, dense_model

from mote_export.checkpoint import Checkpoint
from mote_export.tokens import CHAT_TEMPLATE, load_tokenizer
from mote_export.train import TrainingError
from mote_export.train.conversations import ChatFormat
from mote_export.train.data import ConversationCollator, ConversationData, load_conversations
from mote_runtime.manifest import ImageSpec

SPEC = ImageSpec(IMAGE_SIZE, IMAGE_SIZE, "bicubic", 1 / 255, (0.5,) * 3, (0.5,) * 3)
TOKENIZER = byte_tokenizer()
PAD = TOKENIZER.token_to_id("<|endoftext|>")
IMAGE = f"<|vision_start|>{'<|image_pad|>' * NUM_IMAGE_TOKENS}<|vision_end|>"


def chat(template: str = CHAT_TEMPLATE) -> ChatFormat:
    return ChatFormat(TOKENIZER, template, {"eos_token": "<|im_end|>"}, "<|image_pad|>", NUM_IMAGE_TOKENS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10), (200, 10, 10)).save(tmp_path / name)
    return tmp_path


def load(folder: Path, *entries: Any, **options: Any) -> ConversationData:
    (folder / "data.json").write_text(json.dumps(entries))
    return load_conversations([folder / "data.json"], chat(), **{"max_length": 200, "spec": SPEC, **options})


def text(ids: Any) -> str:
    return TOKENIZER.decode([int(token) for token in ids], skip_special_tokens=False)


def learnt(labels: Any) -> str:
    return text(label for label in labels if label != -100)


def test_a_conversation_is_its_chat_template_and_answers_are_learnt_with_their_end(folder: Path) -> None:
    row = load(folder, conversation(("one?", "1."), ("two?", "2!"), image="a.png")).rows[0]
    assert text(row.input_ids) == (
        f"<|im_start|>user\n{IMAGE}one?<|im_end|>\n<|im_start|>assistant\n1.<|im_end|>\n"
        "<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n2!<|im_end|>"
    )
    assert learnt(row.labels) == "1.<|im_end|>2!<|im_end|>"
    assert row.image == folder / "a.png"


def test_a_question_is_learnt_as_it_is_asked_later(folder: Path) -> None:
    entry = conversation((" one? ", "1."), image="a.png")
    assert text(load(folder, entry).rows[0].input_ids).count("<|vision_end|>one?<|im_end|>") == 1


def test_a_tokenizer_that_cuts_and_pads_does_not_here() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    checkpoint = Checkpoint("any", cast(Any, None), {"tokenizer.json": tokenizer.to_str()})
    assert load_tokenizer(checkpoint).encode("hello").tokens == list("hello")


def test_a_template_without_end_tokens_gets_one(folder: Path) -> None:
    plain = chat(
        "{% for m in messages %}{% if m.role == 'user' %}Q: {% for p in m.content %}{% if p.type == 'image' %}<|image_pad|>"
        "{% else %}{{ p.text }}{% endif %}{% endfor %} A:{% else %} {{ m.content[0].text }} {% endif %}{% endfor %}"
    )
    (folder / "data.jsonl").write_text(json.dumps(conversation(("one?", "1."), image="a.png")) + "\n\n")
    row = load_conversations([folder / "data.jsonl"], plain, max_length=99, spec=SPEC).rows[0]
    assert text(row.input_ids) == f"Q: {'<|image_pad|>' * NUM_IMAGE_TOKENS}one? A: 1.<|im_end|>"
    assert learnt(row.labels) == " 1.<|im_end|>"


def test_independent_turns_compute_what_each_does_alone(folder: Path) -> None:
    turns = [("one?", "1."), ("and two?", "22"), ("three?", "333")]
    system = {"from": "system", "value": "Be brief."}
    together = conversation(*turns, image="a.png")
    together["conversations"].insert(0, system)
    alone = [conversation(turn, image="a.png") for turn in turns]
    for entry in alone:
        entry["conversations"].insert(0, system)
    (packed,) = load(folder, together, turns="independent").rows
    assert packed.groups is not None and packed.groups.max() == 3  # noqa: PT018
    collate = ConversationCollator(PAD)
    short = load(folder, conversation(("text?", "yes")), turns="independent")
    data = load(folder, together, turns="independent")
    batch = collate([data[0], short[0]])  # the second is padded
    singles = load(folder, *alone)
    batches = [collate([singles[index]]) for index in range(3)]
    model = dense_model().eval()
    with torch.no_grad():
        loss = model(**batch).loss
        logits, labels = model(**batch).logits[0], batch["labels"][0]
        expected = [(model(**single).logits[0], single["labels"][0]) for single in batches]
    chosen = labels.roll(-1) != -100
    chosen[-1] = False
    wanted = torch.cat([values[:-1][targets[1:] != -100] for values, targets in expected])
    torch.testing.assert_close(logits[chosen], wanted, rtol=1e-4, atol=1e-5)
    assert loss.isfinite()


def test_turns_that_do_not_fit_go_into_another_row(folder: Path) -> None:
    entry = conversation(*[(f"question {n}?", f"answer {n}") for n in range(5)], image="a.png")
    rows = load(folder, entry, turns="independent", max_length=110).rows
    assert len(rows) > 1
    assert all(len(row.input_ids) <= 110 for row in rows)
    assert "".join(learnt(row.labels) for row in rows) == "".join(f"answer {n}<|im_end|>" for n in range(5))
    assert all(text(row.input_ids).count("<|image_pad|>") == NUM_IMAGE_TOKENS for row in rows)


def test_the_collator_pads_on_the_right(folder: Path) -> None:
    data = load(folder, conversation(("a", "b"), image="a.png"), conversation(("longer question", "b")))
    batch = ConversationCollator(PAD)([data[0], data[1]])
    lengths = [len(row.input_ids) for row in data.rows]
    assert batch["input_ids"].shape == (2, max(lengths))
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert batch["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


MALFORMED: list[Any] = [
    5,
    {"conversations": "hello"},
    {"conversations": []},
    {"conversations": [{"from": "gpt", "value": "b"}]},
    {"conversations": [{"from": "human", "value": "a"}]},
    {"conversations": [{"from": "robot", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "b"}]},
    conversation(("a", " ")),
    conversation(("a", "b"), image="../outside.png"),
    conversation(("a", "b"), image="/etc/passwd"),
    conversation(("<image>", "b"), image="a.png"),
    conversation(("<image> a", "b")),
    conversation(("a", "<|image_pad|>"), image="a.png"),
    conversation(("a\ud83d", "b")),
    {**conversation(("a", "b")), "image": ["a.png", "b.png"]},
    {**conversation(("a", "b")), "image": "a.png"},
]


def test_malformed_entries_are_counted_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = conversation(("a", "b"), image="a.png")
    data = load(folder, good, *MALFORMED, good)
    assert len(data) == 2
    assert data.skipped.counts == {"malformed": len(MALFORMED)}
    assert f"{len(MALFORMED)} malformed" in caplog.text
    for entry in MALFORMED:
        with pytest.raises(TrainingError, match="--strict"):
            load(folder, good, entry, strict=True)


def png_of(width: int, height: int) -> bytes:
    """The head of a picture of any size, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_pictures_that_cannot_be_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "text.png").write_text("no picture")
    (folder / "bomb.png").write_bytes(png_of(60_000, 60_000))
    (folder / "short.png").write_bytes(png_of(16, 16))  # its head is in order, its pixels are missing
    names = ["missing.png", "text.png", "bomb.png"]
    entries = [conversation(("a", name), image=name) for name in (*names, "short.png", "b.png")]
    data = load(folder, *entries)
    assert data.skipped.counts == {"without a usable picture": 3}
    assert learnt(data[0].row.labels) == "b.png<|im_end|>"  # of the next row that can be read
    assert "short.png" in caplog.text
    with pytest.raises(TrainingError, match=r"missing\.png is not a file"):
        load(folder, *entries, strict=True)
    with pytest.raises(TrainingError, match=r"short\.png"):
        load(folder, *entries[3:], strict=True)[0]
    with pytest.raises(TrainingError, match="no picture of the data"):
        load(folder, entries[3])[0]


def test_too_long_and_useless_entries(folder: Path) -> None:
    long = conversation(("q" * 150, "never reached"))
    cut = conversation(("q", "a" * 300))
    data = load(folder, long, cut, max_length=100)
    assert [len(row.input_ids) for row in data.rows] == [100]
    assert data.skipped.counts == {"longer than max_length": 1}
    with pytest.raises(TrainingError, match="no entry"):
        load(folder, long, max_length=100, turns="independent")
    data = load(folder, long, conversation(("a", "b"), image="a.png"), images_only=True)
    assert len(data) == 1
    with pytest.raises(TrainingError, match="can be used"):
        load(folder, conversation(("a", "b"), image="a.png"), spec=None)


@pytest.mark.parametrize("content", ["", "{}", "[", "[" * 100_000, "\xff"])
def test_files_that_are_no_list(folder: Path, content: str) -> None:
    (folder / "data.json").write_text(content, encoding="latin-1")
    with pytest.raises(TrainingError):
        load_conversations([folder / "data.json"], chat(), max_length=9)


def test_a_broken_line_of_jsonl_is_an_entry_left_out(folder: Path) -> None:
    (folder / "data.jsonl").write_text(f"{json.dumps(conversation(('a', 'b')))}\n{{\n")
    data = load_conversations([folder / "data.jsonl"], chat(), max_length=99)
    assert (len(data), data.skipped.counts) == (1, {"malformed": 1})


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% for", "always the same", "{{ ''.__class__.__mro__ }}", " " * 70_000]
)
def test_templates_that_cannot_be_used(template: str) -> None:
    with pytest.raises(TrainingError, match="chat template"):
        chat(template)
