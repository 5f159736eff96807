"""What the Kotlin engine must compute, by mote_runtime: `python tests/android_golden.py` writes it beside the engine's tests.

`test_android_golden.py` says where the files no longer are what this makes.
"""

import hashlib
import json
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mote_runtime import Pipeline
from mote_runtime.errors import ExportFolderError
from mote_runtime.manifest import ImageSpec, Manifest, ModelSpec, PromptSpec
from mote_runtime.preprocess import preprocess_image
from mote_runtime.sampling import Sampler
from mote_runtime.tokenizer import PromptTokenizer

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "android_demo" / "engine" / "src" / "test" / "resources" / "golden"
BASE = GOLDEN / "tokenizer.json"
SCENES = ROOT / "examples" / "digits_vqa" / "images"
MAX_NEW_TOKENS = 32

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_AFTER_NUMBERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_AFTER_NUMBERS}"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_AFTER_NUMBERS}"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
PLAIN_TOKENS = ("<tool", "<tool_call>", "<|im_end|>>")  # one begins like another; the last like a special one

TEXTS = (
    *("", " ", "a", "  ", "\n", "\r\n", " \n \n\n", "\t\tx", "What is shown?", "123456789", "a1b22c333"),
    *("don't DON'T we'll I've he'd", "it\u017f it'\u017f IT'S they're I'm x'y", "3.14159e-7, 50% off!!!"),
    *("...\n\n  ...", "   leading and trailing   ", "How many digits do you see?"),
    *("图片里有几个数字？", "中文字符，标点。混合 English 和 123", "日本語のテキスト", "한국어 텍스트", "Привет, мир"),
    *(
        "שלום עולם",
        "مرحبا بالعالم",
        "ไทย",
        "हिन्दी",
        "😀",
        "👩‍👩‍👧‍👦 family",
        "🇨🇳🇩🇪",
        "ﬁ ligature",
        "ｆｕｌｌｗｉｄｔｈ　ｓｐａｃｅ",
    ),
    *("e\u0301 and \u00e9", "A\u030a\u00c5\u212b", "\u1e9b\u0323", "\u1680\u180e\u202f\u205f", "Ⅷ ½ ² ① ٣"),
    *(
        "nbsp\u00a0nel\u0085ls\u2028ps\u2029em\u2003zwsp\u200bbom\ufeff",
        "\x00\x01\x7f",
        "\U0001d400\U00020000\U0010ffff",
    ),
    *(f"before{token}after" for token in (*SPECIAL_TOKENS, *PLAIN_TOKENS)),
    *("<|im_end|><|im_end|>>", "<tool<tool_call>", "<|im_start|", "<|image_pad|><|image_pad|>"),
    *("<|im_start|>system\nobey<|im_end|>\n", "word " * 40, "ab" * 100, " " * 63, "\n" * 31),
)

TRAINING = (
    "The quick brown fox jumps over the lazy dog. How many digits do you see? Read the digit at the bottom left.",
    "What do the digits add up to? Is there a seven in the picture? The answer is twelve, and the largest one is nine.",
    "user assistant system user assistant picture picture number number numbers don't can't we'll they've I'm it's",
    "图片里有几个数字？请把所有数字加起来。图片里的数字是多少？左下角的数字是什么？数字数字数字图片图片图片",
    "日本語のテキスト日本語のテキスト Привет мир Привет мир 123 123 456 456 789 2024 2025 100 200 300 ... !!! ??? \n\n \n\n",
    "😀😀😀 😃😃 👍👍👍 é é é ü ü ñ ñ    indentation        indentation        \t\t\t\t",
)


def base_tokenizer() -> Tokenizer:
    """A tokenizer of 1,000 tokens as Qwen2's is built, with merges in several scripts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator(TRAINING * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TOKENS])
    return tokenizer


def split(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer as tokenizer.json has it."""
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


# What each variant changes in BASE, at the top and in its model.
VARIANTS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama3": {"normalizer": None, "pre_tokenizer": split(LLAMA3), "model": {"ignore_merges": True}},
    "gpt2": {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"continuing_subword_prefix": "", "end_of_word_suffix": ""},
    },
}


def variant_document(name: str) -> dict[str, Any]:
    """The tokenizer.json of a variant; its merges are strings, as before tokenizers 0.20, except in qwen2's."""
    document: dict[str, Any] = json.loads(BASE.read_text())
    changes = dict(VARIANTS[name])
    document["model"] |= changes.pop("model", {})
    if name != "qwen2":
        document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    return document | changes


def random_texts(count: int) -> Iterator[str]:
    """Mixtures of what old versions of Unicode know already, so that every version agrees on what it is."""
    source = random.Random(20250101)
    known = [
        chr(code) for code in range(0x110000) if unicodedata.ucd_3_2_0.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    common = list("aeions' \n\t0123.,!?é中文数字😀\u0301\u3000")
    for _ in range(count):
        yield "".join(source.choice(known if source.random() < 0.4 else common) for _ in range(source.randint(1, 40)))


def prompt_parts(tokenizer: Tokenizer) -> tuple[ModelSpec, PromptSpec]:
    """Specs of a model with three image tokens and of a template whose text meets the user's."""
    found = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    model = ModelSpec(
        name="golden",
        architecture="",
        vocab_size=1024,
        hidden_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=1,
        context_length=4096,
        eos_token_ids=(found["<|im_end|>"],),
        bos_token_id=None,
        pad_token_id=None,
        image_token_id=found["<|image_pad|>"],
        vision_start_token_id=found["<|vision_start|>"],
        vision_end_token_id=found["<|vision_end|>"],
        num_image_tokens=3,
    )
    prompt = PromptSpec(
        user_prefix="<|im_start|>user\n",
        image="<|vision_start|>{image_pads}<|vision_end|>",
        user_suffix=" ok\n<|im_end|>\n<|im_start|>assistant\n",
    )
    return model, prompt


def stream(tokenizer: PromptTokenizer, ids: Sequence[int]) -> list[str]:
    """The pieces of a text, the last of the flush."""
    decoder = tokenizer.stream()
    return [*map(decoder.push, ids), decoder.flush()]


def tokenizer_golden(folder: Path) -> dict[str, Any]:
    """Ids, texts and prompts of every variant. `folder` is for temporary files."""
    golden = {}
    texts = [*TEXTS, *random_texts(60)]
    for name in VARIANTS:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(variant_document(name)))
        stock = Tokenizer.from_file(str(path))
        prompts = PromptTokenizer(path, *prompt_parts(stock))

        def encode(text: str, *, special: bool, stock: Tokenizer = stock) -> list[int]:
            stock.encode_special_tokens = not special
            return list(stock.encode(text, add_special_tokens=False).ids)

        source = random.Random(7)
        answers = [[source.randrange(stock.get_vocab_size()) for _ in range(source.randint(1, 30))] for _ in range(50)]
        golden[name] = {
            "changes": VARIANTS[name],
            "texts": [
                {"text": text, "special": encode(text, special=True), "plain": encode(text, special=False)}
                for text in texts
            ],
            "prompts": [
                {"text": text, "images": images, "ids": prompts.encode_prompt(text, images)}
                for text in texts
                for images in (0, 2)
            ],
            "answers": [{"ids": ids, "text": prompts.decode(ids), "pieces": stream(prompts, ids)} for ids in answers],
        }
    return golden


def ranges(of: Callable[[str], object]) -> list[list[object]]:
    """[first, last, value] over all characters of Unicode, where the value is not None."""
    codes = (code for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    found = []
    for value, group in groupby(codes, lambda code: of(chr(code))):
        run = list(group)
        if value is not None:
            found.append([run[0], run[-1], value])
    return found


def characters_golden() -> dict[str, Any]:
    """What every character is to the regular expressions of tokenizers, and what NFC makes of it."""
    splits = {
        kind: pre_tokenizers.Split(Regex(pattern), "removed")
        for kind, pattern in {"L": r"\p{L}", "N": r"\p{N}", "S": r"\s"}.items()
    }

    def kind_of(character: str) -> str | None:
        kinds = [kind for kind, step in splits.items() if not step.pre_tokenize_str(character)]
        return "".join(kinds) or None

    normalizer = normalizers.NFC()
    composed = {}
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000 and (text := normalizer.normalize_str(chr(code))) != chr(code):
            composed[str(code)] = text
    return {"kinds": ranges(kind_of), "nfc": composed}


PIXEL_SIZES = (
    *((1, 1), (1, 7), (7, 1), (2, 2), (3, 200), (301, 7), (20, 12), (40, 24), (24, 40), (97, 89), (640, 480), (1, 500)),
    *((500, 1), (20, 100), (100, 12), (19, 11), (21, 13)),
)
PIXEL_SPEC = ImageSpec(12, 20, "bicubic", 1 / 255, (0.48, 0.45, 0.4), (0.26, 0.5, 0.27))
LARGE_SPEC = ImageSpec(384, 384, "bicubic", 0.00392156862745098, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LARGE_SIZE = (1001, 743)


def noise(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes of a linear congruential generator (Numerical Recipes), of which the tests have the same."""
    values = np.empty(count, np.uint8)
    state = seed
    for index in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        values[index] = state >> 24
    return values


def picture(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture of noise, uint8 [height, width, 3]."""
    return noise(width * height * 3, 1000 * width + height).reshape(height, width, 3)


def pixels_golden() -> tuple[dict[str, Any], bytes]:
    """The cases, and their pixel_values one after the other, float32 in little endian."""
    values = [preprocess_image(picture(*size), PIXEL_SPEC) for size in PIXEL_SIZES]
    large = preprocess_image(picture(*LARGE_SIZE), LARGE_SPEC)
    document = {
        "spec": _spec(PIXEL_SPEC),
        "sizes": PIXEL_SIZES,
        "large": {
            "spec": _spec(LARGE_SPEC),
            "size": LARGE_SIZE,
            "sha256": hashlib.sha256(large.astype("<f4").tobytes()).hexdigest(),
        },
    }
    return document, b"".join(value.astype("<f4").tobytes() for value in values)


def _spec(spec: ImageSpec) -> dict[str, Any]:
    return {
        "height": spec.height,
        "width": spec.width,
        "rescale_factor": spec.rescale_factor,
        "mean": spec.mean,
        "std": spec.std,
    }


class _Drawn:
    """In place of numpy's generator: the number that it would give."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self) -> float:
        return self._value


def sampling_golden() -> list[dict[str, Any]]:
    """The choice for each number drawn, from logits that are made of noise."""
    cases = []
    settings = [(0.0, 1.0), (1.0, 1.0), (0.7, 0.9), (0.2, 0.5), (2.0, 0.99), (1.0, 1e-6), (1e-3, 1.0)]
    for seed, (temperature, top_p) in enumerate(settings):
        logits = ((noise(200, seed).astype(np.float32) - 128) / 16).astype(np.float32)
        sampler = Sampler(temperature, top_p)
        draws = [index / 40 + 1 / 97 for index in range(39)]
        chosen = []
        for value in draws:
            sampler._random = _Drawn(value)  # type: ignore[assignment]
            chosen.append(sampler(logits))
        cases.append({"seed": seed, "temperature": temperature, "top_p": top_p, "draws": draws, "chosen": chosen})
    return cases


MANIFEST: dict[str, Any] = {
    "format": "mote-export",
    "format_version": 2,
    "target": "onnxruntime",
    "model": {
        "name": "golden",
        "architecture": "MoteForConditionalGeneration",
        "vocab_size": 512,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "context_length": 256,
        "eos_token_ids": [2, 3],
        "bos_token_id": 1,
        "pad_token_id": 0,
        "image_token_id": 5,
        "vision_start_token_id": 3,
        "vision_end_token_id": 4,
        "num_image_tokens": 16,
    },
    "moe": {
        "layers": [1, 3],
        "num_experts": 4,
        "top_k": 2,
        "normalize_topk": False,
        "intermediate_size": 384,
        "packing": "2bit",
        "layout_version": 1,
        "shared_expert": "int4",
        "shared_group_size": 64,
    },
    "image": {
        "height": 48,
        "width": 48,
        "resample": "bicubic",
        "rescale_factor": 0.00392156862745098,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
    "prompt": {"user_prefix": "a", "image": "<{image_pads}>", "user_suffix": "b"},
    "plugin": {"library": "libmote_ort.so"},
    "files": {
        name: {"bytes": 1, "sha256": "0" * 64}
        for name in ("model.onnx", "embedding.onnx", "vision.onnx", "tokenizer.json")
    },
    "memory": {},
    "verification": {},
    "source": {},
    "versions": {},
}
MISSING = "(missing)"
MANIFEST_VALUES: list[Any] = [
    *(MISSING, None, True, False, -1, 0, 1, 2, 4, 5, 32, 64, 255, 256, 257, 511, 512, 4096, 4097),
    *(1 << 20, (1 << 20) + 1, 1 << 24, (1 << 24) + 1, 1 << 50, (1 << 50) + 1, 10**30, 1.0, 0.5, -0.5, 1e308),
    *("", "x", "../x", ".x", "a/b", "x" * 255, "x" * 256, "f" * 64, "F" * 64, "f" * 63),
    *("2bit", "1.6bit", "float32", "bf16", "int8", "int4", "onnxruntime", "executorch", "bicubic", "mote-export"),
    *("{image_pads}", "{image_pads}{image_pads}", {}, {"library": "x"}, [], [0], [3, 0], [0, 0], [4], [-1], [True]),
    *([1.0], [0, 1, 2, 3, 0], [0.5, 1, 2], [0, 1, 2], [1, 2], ["a", 1, 2]),
]


def places(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value of a document but the whole."""
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def manifest_golden() -> dict[str, Any]:
    """Which values of which field are taken ("1") and refused ("0"), one at a time, others being right."""
    results = []
    for path in places(MANIFEST):
        line = ""
        for value in MANIFEST_VALUES:
            document = json.loads(json.dumps(MANIFEST))
            parent = document
            for key in path[:-1]:
                parent = parent[key]
            if value == MISSING:
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
            try:
                Manifest.parse(Path(), document)
                line += "1"
            except ExportFolderError:
                line += "0"
        results.append({"path": path, "taken": line})
    return {"document": [MANIFEST], "values": MANIFEST_VALUES, "results": results}


def answers_golden(pipeline: Pipeline) -> list[dict[str, Any]]:
    """The demo model's answers to the sample questions."""
    answers = []
    for scene in json.loads((SCENES / "questions.json").read_text()):
        for question in scene["questions"]:
            answer = pipeline.answer(SCENES / scene["image"], question["question"], MAX_NEW_TOKENS)
            answers.append(
                {
                    "image": scene["image"],
                    "question": question["question"],
                    "text": answer.text,
                    "token_ids": list(answer.token_ids),
                    "finish_reason": answer.finish_reason,
                    "prompt_tokens": answer.timings["prompt_tokens"],
                }
            )
    return answers


def dump(document: object) -> str:
    """One line for each case, so that a difference can be read; all of ASCII, so that no editor changes a character."""
    if isinstance(document, dict):
        inside = ",\n".join(f"{json.dumps(key)}: {dump(value)}" for key, value in document.items())
        return f"{{\n{inside}\n}}"
    if isinstance(document, list):
        return "[\n" + ",\n".join(map(json.dumps, document)) + "\n]"
    return json.dumps(document)


def golden_files(pipeline: Pipeline, folder: Path) -> dict[str, bytes]:
    """Every file of GOLDEN but BASE. `folder` is for temporary files."""
    pixels, values = pixels_golden()
    documents = {
        "tokenizer_cases.json": tokenizer_golden(folder),
        "characters.json": characters_golden(),
        "pixels.json": pixels,
        "sampling.json": sampling_golden(),
        "manifest.json": manifest_golden(),
        "answers.json": answers_golden(pipeline),
    }
    files = {name: (dump(document) + "\n").encode() for name, document in documents.items()}
    return files | {"pixels.bin": values}


def main() -> None:
    """Write GOLDEN; the argument is the demo model's export. BASE is only made where it is missing, as training may change."""
    from tempfile import TemporaryDirectory

    from mote_runtime import load

    GOLDEN.mkdir(parents=True, exist_ok=True)
    if not BASE.exists():
        BASE.write_text(json.dumps(json.loads(base_tokenizer().to_str()), indent=0) + "\n")
    with load(sys.argv[1]) as pipeline, TemporaryDirectory() as folder:
        for name, content in golden_files(pipeline, Path(folder)).items():
            (GOLDEN / name).write_bytes(content)


if __name__ == "__main__":
    main()
