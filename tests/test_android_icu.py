"""The tokenizer's regular expressions on ICU, which is what `java.util.regex` is on Android, cut texts as `tokenizers` does."""

import ctypes
import ctypes.util
import re
from collections.abc import Iterator
from typing import Any

import android_golden
import pytest
from tokenizers import Regex, pre_tokenizers

PRE_TOKENIZER = (
    android_golden.ROOT
    / "android_demo"
    / "engine"
    / "src"
    / "main"
    / "kotlin"
    / "org"
    / "mote"
    / "engine"
    / "PreTokenizer.kt"
)
# Android's Pattern sets this one always.
ERROR_ON_UNKNOWN_ESCAPES = 512
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Icu:
    """The functions of a libicui18n whose names end in its version."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("icui18n")
        version = re.search(r"\.so\.(\d+)", name or "")
        if name is None or version is None:
            pytest.skip("ICU is not installed")
        self._library = ctypes.CDLL(name)
        self._suffix = f"_{version[1]}"

    def call(self, function: str, *arguments: Any, restype: Any = ctypes.c_int32) -> Any:
        """What the function gives; its last parameter is ICU's error, which must stay zero."""
        found = self._library[function + self._suffix]
        found.restype = restype
        error = ctypes.c_int(0)
        result = found(*arguments, ctypes.byref(error))
        assert error.value <= 0, (function, error.value)
        return result


def utf16(text: str) -> tuple[Any, int]:
    """The text as ICU takes it, and its length."""
    data = text.encode("utf-16-le")
    return ctypes.create_string_buffer(data + b"\0\0"), len(data) // 2


def matches(icu: Icu, pattern: str, text: str) -> Iterator[str]:
    source, length = utf16(pattern)
    regex = icu.call("uregex_open", source, length, ERROR_ON_UNKNOWN_ESCAPES, None, restype=ctypes.c_void_p)
    subject, length = utf16(text)
    handle = ctypes.c_void_p(regex)
    icu.call("uregex_setText", handle, subject, length, restype=None)
    while icu.call("uregex_findNext", handle, restype=ctypes.c_int8):
        start, end = icu.call("uregex_start", handle, 0), icu.call("uregex_end", handle, 0)
        yield subject.raw[2 * start : 2 * end].decode("utf-16-le")


def spelled_out(pattern: str) -> str:
    """What PreTokenizer.kt makes of a pattern of a file."""
    found = re.search(r'const val SPACES = """(.*)"""', PRE_TOKENIZER.read_text())
    assert found is not None
    spaces = found[1]
    return pattern.replace(r"[^\s", f"[^{spaces}").replace(r"\s", f"[{spaces}]").replace(r"\S", f"[^{spaces}]")


@pytest.mark.parametrize(
    "pattern", [android_golden.QWEN2, android_golden.LLAMA3, GPT2], ids=["qwen2", "llama3", "gpt2"]
)
def test_icu_cuts_as_tokenizers(pattern: str) -> None:
    icu = Icu()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    texts = [*android_golden.TEXTS, *android_golden.random_texts(500)]
    for text in texts:
        expected = [piece for piece, _ in split.pre_tokenize_str(text)]
        assert list(matches(icu, spelled_out(pattern), text)) == expected, text
