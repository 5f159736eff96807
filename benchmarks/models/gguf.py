"""A dense decoder of the same shape with random weights for llama.cpp: GGUF in Q4_0, as its quantizer would write it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; blocks: ggml-common.h of the same repository. The head is
tied to the embedding, which llama.cpp's quantizer stores in 6 bits (8 where 256 does not divide its rows).
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .shapes import Shape

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9  # types of values
NORMAL, CONTROL = 1, 3  # types of tokens
FILE_TYPE_Q4_0 = 2
END = "<|endoftext|>"
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Format:
    """Of tensors: ggml's number, values and bytes of a block, and random blocks of numbers of about a standard deviation."""

    number: int
    values: int
    bytes: int
    random: Callable[[np.random.Generator, int, float], Bytes]

    def num_bytes(self, count: int) -> int:
        return count // self.values * self.bytes


def _half(value: float) -> Bytes:
    return np.frombuffer(np.float16(value).tobytes(), np.uint8)


def _q4_0(generator: np.random.Generator, blocks: int, std: float) -> Bytes:
    """A scale, then 32 codes of 4 bits: (code - 8) * scale."""
    found = generator.integers(0, 256, (blocks, 18), dtype=np.uint8)
    found[:, :2] = _half(std / 4.6)
    return found


def _q8_0(generator: np.random.Generator, blocks: int, std: float) -> Bytes:
    """A scale, then 32 codes of 8 bits."""
    found = generator.integers(0, 256, (blocks, 34), dtype=np.uint8)
    found[:, :2] = _half(std / 74)
    return found


def _q6_k(generator: np.random.Generator, blocks: int, std: float) -> Bytes:
    """256 codes of 6 bits, 16 scales of 8 bits, a scale of theirs: (code - 32) * scale * scale."""
    found = generator.integers(0, 256, (blocks, 210), dtype=np.uint8)
    found[:, 192:208] = 64
    found[:, 208:] = _half(std / 18.5 / 64)
    return found


def _f32(generator: np.random.Generator, blocks: int, std: float) -> Bytes:
    values = np.ones(blocks, np.float32) if std == 0 else (generator.standard_normal(blocks) * std).astype(np.float32)
    return values.view(np.uint8).reshape(blocks, 4)


F32, Q4_0 = Format(0, 1, 4, _f32), Format(2, 32, 18, _q4_0)
Q8_0, Q6_K = Format(8, 32, 34, _q8_0), Format(14, 256, 210, _q6_k)
POOL_BLOCKS = 1 << 18


@dataclass(frozen=True)
class Tensor:
    """Sizes as ggml writes them, inputs first."""

    name: str
    sizes: tuple[int, ...]
    format: Format
    std: float

    @property
    def num_bytes(self) -> int:
        return self.format.num_bytes(math.prod(self.sizes))


def tensors_of(shape: Shape) -> Iterator[Tensor]:
    """Of a dense Qwen2, under llama.cpp's names."""
    hidden, inner = shape.hidden, shape.intermediate
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def matrix(name: str, inputs: int, outputs: int) -> Tensor:
        return Tensor(f"{name}.weight", (inputs, outputs), Q4_0, inputs**-0.5)

    yield Tensor("token_embd.weight", (hidden, shape.vocab), Q6_K if hidden % 256 == 0 else Q8_0, 0.02)
    yield Tensor("output_norm.weight", (hidden,), F32, 0.0)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield Tensor(f"{block}.attn_norm.weight", (hidden,), F32, 0.0)
        yield Tensor(f"{block}.ffn_norm.weight", (hidden,), F32, 0.0)
        for name, outputs in (("attn_q", width), ("attn_k", kv_width), ("attn_v", kv_width)):
            yield matrix(f"{block}.{name}", hidden, outputs)
            yield Tensor(f"{block}.{name}.bias", (outputs,), F32, 0.02)
        yield matrix(f"{block}.attn_output", width, hidden)
        yield matrix(f"{block}.ffn_gate", hidden, inner)
        yield matrix(f"{block}.ffn_up", hidden, inner)
        yield matrix(f"{block}.ffn_down", inner, hidden)


def bytes_per_token(shape: Shape) -> int:
    """All tensors: the head reads the whole embedding."""
    return sum(tensor.num_bytes for tensor in tensors_of(shape))


def write_gguf(shape: Shape, path: Path, context: int = 4096) -> int:
    """Returns the bytes of the file."""
    tensors = list(tensors_of(shape))
    generator = np.random.default_rng(0)
    pools: dict[tuple[int, float], Bytes] = {}
    with path.open("wb") as file:
        _write_head(file, shape, tensors, context)
        for tensor in tensors:
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            _write_random(file, tensor, pools, generator)
        return file.tell()


def _write_head(file: BinaryIO, shape: Shape, tensors: list[Tensor], context: int) -> None:
    values = list(_metadata(shape, context))
    file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(values)))
    for key, kind, value in values:
        file.write(_string(key) + struct.pack("<I", kind) + value)
    offset = 0
    for tensor in tensors:
        sizes = struct.pack(f"<I{len(tensor.sizes)}Q", len(tensor.sizes), *tensor.sizes)
        file.write(_string(tensor.name) + sizes + struct.pack("<IQ", tensor.format.number, offset))
        offset += tensor.num_bytes + -tensor.num_bytes % ALIGNMENT


def _write_random(
    file: BinaryIO, tensor: Tensor, pools: dict[tuple[int, float], Bytes], generator: np.random.Generator
) -> None:
    """Blocks from a pool, each time from another place on."""
    form, left = tensor.format, math.prod(tensor.sizes) // tensor.format.values
    key = (form.number, tensor.std)
    if key not in pools:
        pools[key] = form.random(generator, POOL_BLOCKS, tensor.std)
    while left:
        piece = pools[key][int(generator.integers(0, POOL_BLOCKS // 2)) :][:left]
        file.write(piece.data)
        left -= len(piece)


def _metadata(shape: Shape, context: int) -> Iterator[tuple[str, int, bytes]]:
    def text(value: str) -> tuple[int, bytes]:
        return STRING, _string(value)

    def number(value: int) -> tuple[int, bytes]:
        return UINT32, struct.pack("<I", value)

    def real(value: float) -> tuple[int, bytes]:
        return FLOAT32, struct.pack("<f", value)

    end = shape.vocab - 1
    tokens = b"".join(_string(f"t{index}") for index in range(end)) + _string(END)
    kinds = struct.pack(f"<{shape.vocab}i", *[NORMAL] * end, CONTROL)
    for key, (kind, value) in {
        "general.architecture": text("qwen2"),
        "general.name": text(f"random {shape.name}"),
        "general.file_type": number(FILE_TYPE_Q4_0),
        "qwen2.block_count": number(shape.layers),
        "qwen2.context_length": number(context),
        "qwen2.embedding_length": number(shape.hidden),
        "qwen2.feed_forward_length": number(shape.intermediate),
        "qwen2.attention.head_count": number(shape.heads),
        "qwen2.attention.head_count_kv": number(shape.kv_heads),
        "qwen2.attention.layer_norm_rms_epsilon": real(1e-6),
        "qwen2.rope.freq_base": real(1e6),
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text("qwen2"),
        "tokenizer.ggml.tokens": (ARRAY, struct.pack("<IQ", STRING, shape.vocab) + tokens),
        "tokenizer.ggml.token_type": (ARRAY, struct.pack("<IQ", INT32, shape.vocab) + kinds),
        "tokenizer.ggml.merges": (ARRAY, struct.pack("<IQ", STRING, 1) + _string("t 0")),
        "tokenizer.ggml.eos_token_id": number(end),
        "tokenizer.ggml.bos_token_id": number(end),
    }.items():
        yield key, kind, value


def _string(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content
