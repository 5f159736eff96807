"""The demo model's data: splits that share nothing, answers that are true, a tokenizer that loses nothing."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tokenizers import pre_tokenizers
from transformers import Qwen2TokenizerFast

DEMO = Path(__file__).parents[1] / "examples" / "digits_vqa"
sys.path.insert(0, str(DEMO))

import evaluate  # noqa: E402
import questions  # noqa: E402
import train  # noqa: E402

import batches  # noqa: E402
import prompts  # noqa: E402
import scenes  # noqa: E402

NUM_SCENES = 1_500


@pytest.fixture(scope="module")
def train_scenes() -> list[scenes.Scene]:
    return [scenes.make_scene("train", index) for index in range(NUM_SCENES)]


@pytest.fixture(scope="module")
def tokenizer(train_scenes: list[scenes.Scene]) -> Qwen2TokenizerFast:
    return train.make_tokenizer(train_scenes)


def some_questions(chosen: list[scenes.Scene]) -> list[tuple[scenes.Scene, questions.Asked]]:
    rng = np.random.default_rng(3)
    return [(scene, asked) for scene in chosen for asked in batches.ask_some(scene, rng)]


# --- the split ---


def test_splits_share_no_image() -> None:
    images = load_digits().images
    hashes = {
        split: {hashlib.sha256(images[row].tobytes()).hexdigest() for row in scenes.source_images(split)}
        for split in ("train", "test")
    }
    assert len(scenes.source_images("test")) == scenes.NUM_HELD_OUT
    assert len(scenes.source_images("train")) == len(images) - scenes.NUM_HELD_OUT
    assert not hashes["train"] & hashes["test"]


def test_held_out_split_has_every_digit_in_proportion() -> None:
    labels = load_digits().target
    held_out = np.bincount(labels[scenes.source_images("test")], minlength=10) / scenes.NUM_HELD_OUT
    assert np.abs(held_out - np.bincount(labels) / len(labels)).max() < 0.005


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_show_only_images_of_their_split(split: scenes.Split, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = set(scenes.source_images(split).tolist())
    labels = load_digits().target
    drawn: list[int] = []
    draw = scenes._draw_digit

    def spy(source: int, rng: np.random.Generator, augment: bool) -> np.ndarray:
        drawn.append(source)
        assert augment == (split == "train")
        return draw(source, rng, augment)

    monkeypatch.setattr(scenes, "_draw_digit", spy)
    for index in range(100):
        scene = scenes.make_scene(split, index)
        drawn.clear()
        scenes.render(scene)
        assert drawn == [source for source in scene.sources if source is not None]
        assert set(drawn) <= allowed
        assert [labels[source] for source in drawn] == list(scene.present)


# --- pictures ---


def test_scenes_are_reproducible() -> None:
    assert scenes.make_scene("test", 5) == scenes.make_scene("test", 5)
    assert scenes.make_scene("test", 5) != scenes.make_scene("train", 5)
    one, other = (np.asarray(scenes.render(scenes.make_scene("test", 5))) for _ in range(2))
    assert np.array_equal(one, other)


def test_ink_is_where_the_digits_are() -> None:
    for index in range(50):
        scene = scenes.make_scene("test", index)
        picture = np.asarray(scenes.render(scene)).astype(int)
        assert picture.shape == (scenes.CANVAS, scenes.CANVAS, 3)
        for place, digit in enumerate(scene.digits):
            row, column = divmod(place, 2)
            rows = slice(row * scenes.CELL, (row + 1) * scenes.CELL)
            columns = slice(column * scenes.CELL, (column + 1) * scenes.CELL)
            contrast = np.ptp(picture[rows, columns].sum(axis=-1))
            assert contrast == 0 if digit is None else contrast > 150


def test_bulk_rendering_equals_the_image_processor() -> None:
    pictures = [scenes.render(scenes.make_scene("train", index)) for index in range(20)]
    expected = prompts.image_processor()(pictures, return_tensors="pt").pixel_values
    bulk = batches.normalise(batches.render_scenes("train", 20, processes=1))
    assert (bulk - expected).abs().max() < 1e-6


# --- questions and answers, against an independent reading of the scene ---


def true_answer(scene: scenes.Scene, asked: questions.Asked) -> str:
    """Works the answer out from the question's words alone."""
    at = {place: digit for place, digit in zip(scenes.PLACES, scene.digits, strict=True) if digit is not None}
    named = sorted((place for place in scenes.PLACES if place in asked.question), key=asked.question.index)
    asked_digits = [int(character) for character in asked.question if character.isdigit()]
    match asked.kind:
        case "read":
            return str(at.get(named[0], "none"))
        case "count":
            return str(len(at))
        case "sum":
            return "+".join(map(str, at.values())) + "=" + str(sum(at.values()))
        case "exists":
            return "yes" if asked_digits[0] in at.values() else "no"
        case "how many":
            return str(list(at.values()).count(asked_digits[0]))
        case "largest, smallest":
            return str((max if "largest" in asked.question else min)(at.values()))
        case "compare":
            return max(named, key=lambda place: at[place])
        case "where":
            (place,) = (place for place, digit in at.items() if digit == asked_digits[0])
            return place
        case "describe":
            return ", ".join(f"{digit} {place}" for place, digit in at.items()) + "."
    raise AssertionError(asked.kind)


def test_answers_are_true(train_scenes: list[scenes.Scene]) -> None:
    asked = some_questions(train_scenes)
    assert {question.kind for _, question in asked} == set(questions.KINDS)
    for scene, question in asked:
        assert question.answer == true_answer(scene, question), (scene, question)


def test_comparisons_have_no_ties(train_scenes: list[scenes.Scene]) -> None:
    for scene, question in some_questions(train_scenes):
        if question.kind == "compare":
            one, other = (scene.digits[i] for i, place in enumerate(scenes.PLACES) if place in question.question)
            assert one != other


def test_answers_are_balanced(train_scenes: list[scenes.Scene]) -> None:
    by_kind: dict[str, list[str]] = {}
    for _, question in some_questions(train_scenes):
        by_kind.setdefault(question.kind, []).append(question.answer)
    assert 0.45 < by_kind["exists"].count("yes") / len(by_kind["exists"]) < 0.55
    for kind, limit in {"read": 0.2, "where": 0.35, "compare": 0.35, "count": 0.4, "how many": 0.5}.items():
        most = max(by_kind[kind].count(answer) for answer in set(by_kind[kind]))
        assert most / len(by_kind[kind]) < limit, kind


def test_held_out_questions_are_fixed_and_cover_every_kind() -> None:
    few, more = evaluate.held_out_questions(18), evaluate.held_out_questions(27)
    assert [(q.prompt, q.answer, q.kind) for q in few] == [(q.prompt, q.answer, q.kind) for q in more[:18]]
    assert all(one.image.tobytes() == other.image.tobytes() for one, other in zip(few, more, strict=False))
    assert [question.kind for question in more] == [*questions.KINDS] * 3
    assert evaluate.DEFAULT_QUESTIONS >= 2_000


# --- tokenizer and prompt ---


@pytest.mark.parametrize(
    "text",
    [
        "Where is the 7?",
        "3+5+7=15",
        "h\u00e9llo \U0001f600 \u65e5\u672c\n\ttabs  and   spaces",
        "",
        "\x00\x7f",
        "0" * 50,
    ],
)
def test_tokenizer_round_trips_any_text(tokenizer: Qwen2TokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_byte_and_every_digit_is_a_token(tokenizer: Qwen2TokenizerFast) -> None:
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())
    assert [tokenizer.decode([token]) for token in tokenizer("1234567890").input_ids] == list("1234567890")


def test_prompt_format(tokenizer: Qwen2TokenizerFast) -> None:
    prompt = prompts.format_prompt("Where is the 7?")
    assert prompt == (
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * prompts.NUM_IMAGE_TOKENS + "<|vision_end|>"
        "Where is the 7?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(prompt).input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids(prompts.IMAGE_PAD)) == prompts.NUM_IMAGE_TOKENS
    assert ids[-1] != tokenizer.pad_token_id  # or clients that look for the last token that is no padding misread it
    assert (tokenizer.eos_token, tokenizer.pad_token) == (prompts.IM_END, prompts.END_OF_TEXT)


def test_chat_template_makes_the_same_prompt(tokenizer: Qwen2TokenizerFast) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Where is the 7?"}]
    made = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    pads = prompts.IMAGE_PAD * prompts.NUM_IMAGE_TOKENS
    assert made.replace(prompts.IMAGE_PAD, pads) == prompts.format_prompt("Where is the 7?")


def test_tokenizer_is_reproducible_and_survives_its_files(
    tokenizer: Qwen2TokenizerFast, train_scenes: list[scenes.Scene], tmp_path: Path
) -> None:
    again = train.make_tokenizer(train_scenes)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    files = prompts.processor_files(tokenizer, tmp_path)
    preprocessor = evaluate.Preprocessor.from_files(files)
    assert isinstance(preprocessor.tokenizer, Qwen2TokenizerFast)
    prompt = prompts.format_prompt("What is the sum of the digits?")
    assert preprocessor.tokenizer(prompt).input_ids == tokenizer(prompt).input_ids


# --- packed sequences ---


def test_packed_questions_are_the_single_prompts(
    tokenizer: Qwen2TokenizerFast, train_scenes: list[scenes.Scene]
) -> None:
    chosen = train_scenes[:40]
    packed = batches.pack(chosen, tokenizer, seed=5)
    mask = batches.attention_mask(packed.groups)[:, 0]
    rng = np.random.default_rng(5)
    for row, scene in enumerate(chosen):
        asked = batches.ask_some(scene, rng)
        groups = [group for group in packed.groups[row].unique().tolist() if group > 0]
        assert groups
        for group in groups:
            question = asked[group - 1]
            last = int((packed.groups[row] == group).nonzero()[-1])
            seen = mask[row, last]  # what the question's last token may look at is exactly the single prompt
            ids = packed.input_ids[row][seen].tolist()
            answer = question.answer + prompts.IM_END
            assert ids == tokenizer(prompts.format_prompt(question.question) + answer).input_ids
            assert packed.position_ids[row][seen].tolist() == list(range(len(ids)))
            labels = packed.labels[row][seen]
            assert tokenizer.decode(labels[labels != batches.IGNORE]) == answer


def test_packing_is_reproducible_and_fills_the_sequence(
    tokenizer: Qwen2TokenizerFast, train_scenes: list[scenes.Scene]
) -> None:
    one, other = (batches.pack(train_scenes[:50], tokenizer, seed=5) for _ in range(2))
    assert one.input_ids.equal(other.input_ids)
    assert one.labels.equal(other.labels)
    assert (one.groups >= 0).float().mean() > 0.8
    assert not one.input_ids.equal(batches.pack(train_scenes[:50], tokenizer, seed=6).input_ids)
