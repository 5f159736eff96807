"""onnxruntime-genai opens an export as it is and answers like mote_runtime: docs/clients.md, executed.

Every test runs the real package; a missing one is an error, not a skip.
"""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
import pytest
from conftest import DEMO_MODEL
from PIL import Image
from tiny import tiny_checkpoint
from transformers import AutoTokenizer

from mote_export.checkpoint.pt import save_model_pt
from mote_export.exporter import export
from mote_export.passes import PackOptions
from mote_runtime import Pipeline, load
from mote_runtime.preprocess import preprocess_image

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "digits_vqa"))

from evaluate import MAX_NEW_TOKENS, Question, held_out_questions

QUESTIONS = 200
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
PLUGIN = "libmote_ort.so"
# Numbers, spaces, scripts, emoji, contractions. In NFC: genai's tokenizer does not normalize.
TEXTS = (
    "Count the 8s.", "12345 + 678", "  spaces   and\ttabs\n\nlines \n", "é漢字 🙂 ok", "don't I'LL we've", "ǅ ﬁ Ω", "a" * 50,
    "\u200bzero width", "العربية हिन्दी", "\r\nCRLF\r\n", "", "...!!??  -- ", " leading", "x\u00a0nbsp", "٣٤٥ digits ²",
)  # fmt: skip
TEXT_QUESTIONS = ("What is 3 plus 4?", "Hello", "Count the digits.", "é漢字 🙂")


class Client:
    """What a program of genai's documentation does with a folder, and nothing of mote."""

    def __init__(self, folder: Path) -> None:
        self.model = og.Model(str(folder))
        self.tokenizer = og.Tokenizer(self.model)
        self.processor = self.model.create_multimodal_processor()

    def prompt(self, question: str, images: int = 0) -> str:
        """The user's message in the folder's own chat template."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        return str(self.tokenizer.apply_chat_template(json.dumps([{"role": "user", "content": content}])))

    def inputs(self, prompt: str, images: Sequence[Image.Image] = ()) -> Any:
        if not images:
            return self.processor(prompt)
        return self.processor(prompt, images=og.Images.open_bytes(*(png(image) for image in images)))

    def generator(self, **options: Any) -> Any:
        parameters = og.GeneratorParams(self.model)
        parameters.set_search_options(**options)
        return og.Generator(self.model, parameters)

    def ask(self, question: str, images: Sequence[Image.Image] = (), **options: Any) -> tuple[list[int], str]:
        """Ids of the answer with its end token, and its text put together from the stream's pieces."""
        generator = self.generator(**options)
        generator.set_inputs(self.inputs(self.prompt(question, len(images)), images))
        stream = self.processor.create_stream()
        ids = list(generated(generator))
        return ids, "".join(stream.decode(token_id) for token_id in ids)


def generated(generator: Any) -> Iterator[int]:
    for _ in range(MAX_NEW_TOKENS):
        if generator.is_done():
            return
        generator.generate_next_token()
        yield int(generator.get_next_tokens()[0])


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(demo_export: Path) -> Path:
    return demo_export / "onnx"


@pytest.fixture(scope="module")
def client(folder: Path) -> Client:
    return Client(folder)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[Pipeline]:
    with load(folder) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return held_out_questions(QUESTIONS)


def test_answers_image_questions_as_mote_runtime_does(
    client: Client, ours: Pipeline, questions: list[Question]
) -> None:
    eos = ours.manifest.model.eos_token_ids
    for question in questions:
        ids, text = client.ask(question.prompt, [question.image])
        expected = ours.answer(image=question.image, prompt=question.prompt, max_new_tokens=MAX_NEW_TOKENS)
        assert expected.finish_reason == "stop"
        assert (tuple(ids[:-1]), text) == (expected.token_ids, expected.text)
        assert ids[-1] in eos


def test_answers_text_only(client: Client, ours: Pipeline) -> None:
    for text in TEXT_QUESTIONS:
        ids, _ = client.ask(text)
        expected = ours.answer(image=None, prompt=text, max_new_tokens=MAX_NEW_TOKENS)
        assert tuple(ids[: len(expected.token_ids)]) == expected.token_ids
        assert len(ids) == min(len(expected.token_ids) + 1, MAX_NEW_TOKENS)


@pytest.mark.parametrize("count", [2, 3])
def test_answers_about_several_pictures(client: Client, ours: Pipeline, questions: list[Question], count: int) -> None:
    images = [question.image for question in questions[:count]]
    for question in questions[:6]:
        ids, text = client.ask(question.prompt, images)
        expected = ours.answer(image=images, prompt=question.prompt, max_new_tokens=MAX_NEW_TOKENS)
        assert (tuple(ids[:-1]), text) == (expected.token_ids, expected.text)


def test_a_second_question_goes_on_in_the_same_generator(
    client: Client, ours: Pipeline, questions: list[Question]
) -> None:
    """The first answer, its end token included, is in the cache; the next message follows it."""
    first = questions[0]
    generator = client.generator()
    generator.set_inputs(client.inputs(client.prompt(first.prompt, 1), [first.image]))
    answer = list(generated(generator))
    more = client.tokenizer.encode("\n" + client.prompt("Count the 8s."))
    generator.append_tokens(np.asarray(more, np.int32))
    found = list(generated(generator))
    assert ours.manifest.image is not None
    pixels = preprocess_image(first.image, ours.manifest.image)[np.newaxis]
    history = [*ours.tokenizer.encode_prompt(first.prompt, 1), *answer, *(int(token_id) for token_id in more)]
    assert found[:-1] == ours.generate_ids(history, pixels, MAX_NEW_TOKENS)


def test_the_prompts_last_token_may_be_the_pad_token(client: Client, ours: Pipeline) -> None:
    model = ours.manifest.model
    for last in {model.pad_token_id, 0, *model.eos_token_ids}:
        assert last is not None
        prompt = [*ours.tokenizer.encode_prompt("Count the 8s."), last]
        generator = client.generator()
        generator.append_tokens(np.asarray(prompt, np.int32))
        found = [token_id for token_id in generated(generator) if token_id not in model.eos_token_ids]
        assert found == ours.generate_ids(prompt, None, MAX_NEW_TOKENS)


def test_the_chat_template_gives_our_prompt(client: Client, ours: Pipeline, folder: Path) -> None:
    prompt = ours.manifest.prompt
    of_transformers = AutoTokenizer.from_pretrained(folder)
    for images in (0, 1, 2):
        expected = f"{prompt.user_prefix}{IMAGE * images}Is there a 7?{prompt.user_suffix}"
        content = [{"type": "image"}] * images + [{"type": "text", "text": "Is there a 7?"}]
        found = of_transformers.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        assert found == client.prompt("Is there a 7?", images) == expected


def check_tokens(client: Client, ours: Pipeline) -> None:
    """The processor's ids and its stream's text are ours, with and without pictures."""
    picture = Image.new("RGB", (8, 8))
    for text in TEXTS:
        for images in (0, 1):
            found = client.inputs(client.prompt(text, images), [picture] * images)["input_ids"].as_numpy()[0].tolist()
            assert found == ours.tokenizer.encode_prompt(text, images), text
        ids = [int(token_id) for token_id in client.tokenizer.encode(text)]
        stream = client.tokenizer.create_stream()
        assert "".join(stream.decode(token_id) for token_id in ids) == ours.tokenizer.decode(ids)


def test_tokens_are_ours(client: Client, ours: Pipeline) -> None:
    check_tokens(client, ours)


def check_pixels(client: Client, ours: Pipeline, sizes: Sequence[tuple[int, int]], mode: str = "RGB") -> None:
    """The same bytes after resizing; then float32, which genai rescales in another precision: one unit in the last place."""
    spec = ours.manifest.image
    assert spec is not None
    choices = np.random.default_rng(11)
    for width, height in sizes:
        image = Image.fromarray(choices.integers(0, 256, (height, width, 4), np.uint8), "RGBA").convert(mode)
        found = client.inputs(IMAGE, [image])["pixel_values"].as_numpy()[0, 0]
        np.testing.assert_array_max_ulp(found + 2, preprocess_image(image, spec) + 2, 1)


def test_pixels_are_ours_for_pictures_of_any_shape(client: Client, ours: Pipeline) -> None:
    sides = (1, 2, 24, 47, 48, 49, 100, 333)
    check_pixels(client, ours, [(width, height) for width in sides for height in (*sides, 3000)])


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1"])
def test_pixels_are_ours_for_every_kind_of_png(client: Client, ours: Pipeline, mode: str) -> None:
    check_pixels(client, ours, [(64, 100), (100, 64)], mode)


def test_options_of_a_search(client: Client, ours: Pipeline, questions: list[Question]) -> None:
    image = questions[2].image
    sampled = [
        client.ask("Describe the picture.", [image], do_sample=True, temperature=1.5, top_k=50, top_p=0.95, random_seed=seed)
        for seed in (1, 1, *range(2, 8))
    ]  # fmt: skip
    assert sampled[0] == sampled[1]
    assert len({text for _, text in sampled}) > 1
    prompt = client.inputs(client.prompt("Describe the picture.", 1), [image])["input_ids"].as_numpy().shape[1]
    assert len(client.ask("Describe the picture.", [image], max_length=prompt + 4)[0]) == 4
    context = ours.manifest.model.context_length
    with pytest.raises(
        RuntimeError, match=rf"max_length \({context + 1}\) cannot be greater than model context_length"
    ):
        client.ask("Count.", [image], max_length=context + 1)
    separate = client.ask(questions[2].prompt, [image], past_present_share_buffer=False)
    assert separate == client.ask(questions[2].prompt, [image])


def test_the_context_can_be_filled(client: Client, ours: Pipeline) -> None:
    generator = client.generator(min_length=ours.manifest.model.context_length)
    generator.set_inputs(client.inputs(client.prompt("Hello")))
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.token_count() == ours.manifest.model.context_length


def edited(folder: Path, copy: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the folder with another genai_config.json."""
    shutil.copytree(folder, copy)
    path = copy / "genai_config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    return copy


def test_a_folder_may_move_and_sessions_have_options(
    client: Client, folder: Path, tmp_path: Path, questions: list[Question]
) -> None:
    def one_thread(config: dict[str, Any]) -> None:
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = 1
        for graph in ("vision", "embedding"):  # neither has an operator of mote: no library in options of their own
            config["model"][graph]["session_options"] = {"intra_op_num_threads": 1, "provider_options": []}

    moved = Client(edited(folder, tmp_path / "with a space", one_thread))
    for question in questions[:10]:
        assert moved.ask(question.prompt, [question.image]) == client.ask(question.prompt, [question.image])


def test_what_a_missing_plugin_says(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/clients.md quotes these: the message names the library, or the operator where no library is named."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    copy = edited(folder, tmp_path / "renamed", lambda config: None)
    (copy / PLUGIN).rename(copy / "plugin.so")
    with pytest.raises(RuntimeError, match=rf"Failed to load library {PLUGIN} with error: .*cannot open shared object"):
        og.Model(str(copy))
    (copy / PLUGIN).symlink_to(folder / PLUGIN)
    with pytest.raises(RuntimeError, match="custom_ops_library path is not within an allowed directory"):
        og.Model(str(copy))
    (copy / PLUGIN).unlink()
    (copy / PLUGIN).symlink_to("plugin.so")  # a link that stays in the folder
    og.Model(str(copy))
    without = edited(
        folder, tmp_path / "unnamed", lambda c: c["model"]["decoder"]["session_options"].pop("custom_ops_library")
    )
    with pytest.raises(RuntimeError, match=r"mote:TernaryMoE\(-1\) is not a registered function/op"):
        og.Model(str(without))


def test_prompts_that_do_not_fit_their_pictures(client: Client, questions: list[Question]) -> None:
    image = questions[0].image
    for prompt, images, message in (
        (client.prompt("x", 2), [image], "2 vision_start tokens but received 1 images"),
        (client.prompt("x"), [image], "0 vision_start tokens but received 1 images"),
        (client.prompt("x", 1), [], "updates tensor should have shape"),
        (client.prompt("x<|image_pad|>", 1), [image], "updates tensor should have shape"),
    ):
        generator = client.generator()
        with pytest.raises(RuntimeError, match=message):  # noqa: PT012 - either may find it
            generator.set_inputs(client.inputs(prompt, images))
            generator.generate_next_token()


def test_a_cache_in_int8(questions: list[Question], tmp_path: Path) -> None:
    """genai makes the cache of the type that the graph's inputs have, shared between past and present or not."""
    (result,) = export(DEMO_MODEL, tmp_path / "int8", ["onnx"], pack=PackOptions(kv_cache="int8"), verify=False)
    client = Client(result.folder)
    with load(result.folder) as ours:
        assert ours.manifest.kv_cache == "int8"
        for question in questions[:30]:
            ids, text = client.ask(question.prompt, [question.image])
            expected = ours.answer(image=question.image, prompt=question.prompt, max_new_tokens=MAX_NEW_TOKENS)
            assert (tuple(ids[:-1]), text) == (expected.token_ids, expected.text)
        separate = client.ask(questions[2].prompt, [questions[2].image], past_present_share_buffer=False)
        assert separate == client.ask(questions[2].prompt, [questions[2].image])


@pytest.mark.parametrize(
    "pack",
    [PackOptions("1.6bit", "float32"), PackOptions("1.6bit", "int8"), PackOptions("2bit", "int4")],
    ids=lambda pack: f"{pack.packing}-{pack.shared_expert}",
)
def test_every_way_to_store_the_experts(pack: PackOptions, tmp_path: Path) -> None:
    """A tiny model of another shape, with a tokenizer of bytes and no chat template of its own; the demo is 2bit, bf16."""
    checkpoint = tiny_checkpoint(num_experts=3, top_k=2)
    save_model_pt(tmp_path / "tiny.pt", checkpoint.model, dict(checkpoint.files))
    export(tmp_path / "tiny.pt", tmp_path / "tiny", ["onnx"], pack=pack, verify=False)
    client = Client(tmp_path / "tiny")
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (50, 40, 3), np.uint8))
    with load(tmp_path / "tiny") as ours:
        for images in ([], [image], [image, image]):
            ids, _ = client.ask("Where?", images)
            expected = ours.answer(image=images, prompt="Where?", max_new_tokens=MAX_NEW_TOKENS)
            assert tuple(ids[: len(expected.token_ids)]) == expected.token_ids
            assert len(ids) == MAX_NEW_TOKENS or ids[-1] in ours.manifest.model.eos_token_ids
        check_tokens(client, ours)
        check_pixels(client, ours, [(32, 32), (20, 90), (90, 20)])
