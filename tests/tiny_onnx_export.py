"""Writes a tiny but real ONNX export with random weights, for tests of the runtime that need no trained model."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VOCAB = 256 + len(SPECIAL_TOKENS)
ENDOFTEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD = range(256, VOCAB)
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 32, 2, 4, 2, 16, 96
EXPERTS, INTERMEDIATE, TILE, LINE = 3, 16, 16, 64
SIDE, IMAGE_TOKENS = 8, 4
INT8_CACHE = False  # keys and values in int8, of -4 to 4


def tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges: one token for each byte, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    result = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens(list(SPECIAL_TOKENS))
    return result


def manifest(files: dict[str, Any], *, text_only: bool = False, target: str = "onnxruntime") -> dict[str, Any]:
    """The `mote.json` of the folder; `files` is its section of that name."""
    document: dict[str, Any] = {
        "format": "mote-export",
        "format_version": 2,
        "target": target,
        "model": {
            "name": "tiny",
            "architecture": "MoteForConditionalGeneration",
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "context_length": CONTEXT,
            "eos_token_ids": [IM_END],
            "bos_token_id": None,
            "pad_token_id": ENDOFTEXT,
            "image_token_id": IMAGE_PAD,
            "vision_start_token_id": VISION_START,
            "vision_end_token_id": VISION_END,
            "num_image_tokens": IMAGE_TOKENS,
        },
        "moe": {
            "layers": list(range(LAYERS)),
            "num_experts": EXPERTS,
            "top_k": 1,
            "normalize_topk": False,
            "intermediate_size": INTERMEDIATE,
            "packing": "2bit",
            "layout_version": 1,
            "shared_expert": "float32",
            "shared_group_size": 0,
        },
        "image": {
            "height": SIDE,
            "width": SIDE,
            "resample": "bicubic",
            "rescale_factor": 1 / 255,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "prompt": {
            "user_prefix": "<|im_start|>user\n",
            "image": "<|vision_start|>{image_pads}<|vision_end|>",
            "user_suffix": "<|im_end|>\n<|im_start|>assistant\n",
        },
        "plugin": {"library": "libmote_ort.so"},
        "files": files,
        "memory": {},
        "verification": {"max_abs_logit_difference": 0.0, "atol": 0.0, "greedy_tokens_compared": 0},
        "source": {"name": "none", "sha256": "0" * 64},
        "versions": {"mote": "0.1.0"},
    }
    if INT8_CACHE:
        document["quantization"] = {"kv_cache": {"format": "int8"}}
    if text_only:
        document["image"] = None
        for key in ("image_token_id", "vision_start_token_id", "vision_end_token_id", "num_image_tokens"):
            document["model"][key] = None
    return document


class _Graph:
    """Collects nodes and random weights; every method returns the name of the value it made."""

    def __init__(self, random: np.random.Generator) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = random

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant((self._random.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32))

    def ternary(self, *shape: int) -> str:
        codes = self._random.integers(0, 3, (4, *shape), np.uint8)
        return self.constant(codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6)

    def node(self, kind: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **attributes: Any) -> str:
        outputs = outputs or [f"value_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, domain=domain, **attributes))
        return outputs[0]

    def save(self, path: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        values = [
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in group.items()]
            for group in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, path.stem, *values, self.weights)
        # The versions that mote-export writes, so that a runtime which takes these graphs takes an export.
        domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("mote", 1)]
        model = helper.make_model(graph, opset_imports=domains, ir_version=10)
        location = path.name + ".data"
        onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=256)


def _write_vision(path: Path, random: np.random.Generator) -> None:
    graph = _Graph(random)
    patch = 3 * SIDE * SIDE // IMAGE_TOKENS
    rows = graph.node("Reshape", "pixel_values", graph.constant(np.array([-1, patch])))
    graph.node("MatMul", rows, graph.weight(patch, HIDDEN), outputs=["image_features"])
    graph.save(
        path,
        {"pixel_values": (TensorProto.FLOAT, [1, "N", 3, SIDE, SIDE])},
        {"image_features": (TensorProto.FLOAT, ["rows", HIDDEN])},
    )


def _write_embedding(path: Path, random: np.random.Generator, *, text_only: bool) -> None:
    graph = _Graph(random)
    inputs: dict[str, Any] = {"input_ids": (TensorProto.INT64, [1, "sequence_length"])}
    rows = graph.node("Gather", graph.weight(VOCAB, HIDDEN), "input_ids")
    if text_only:
        graph.node("Identity", rows, outputs=["inputs_embeds"])
    else:
        inputs["image_features"] = (TensorProto.FLOAT, ["n", HIDDEN])
        is_pad = graph.node("Equal", "input_ids", graph.constant(np.array(IMAGE_PAD)))
        where = graph.node("Transpose", graph.node("NonZero", is_pad), perm=[1, 0])
        graph.node("ScatterND", rows, where, "image_features", outputs=["inputs_embeds"])
    graph.save(path, inputs, {"inputs_embeds": (TensorProto.FLOAT, [1, "sequence_length", HIDDEN])})


def _write_decoder(path: Path, random: np.random.Generator) -> None:
    graph = _Graph(random)
    one = graph.constant(np.array(1, np.int64))
    valid = graph.node("Sub", graph.node("ReduceSum", "attention_mask", graph.constant(np.array([1])), keepdims=0), one)
    seqlens = graph.node("Cast", valid, to=TensorProto.INT32)
    length = graph.node("Gather", graph.node("Shape", "attention_mask"), one)
    total = graph.node("Cast", length, to=TensorProto.INT32)
    angles = np.outer(np.arange(CONTEXT), 10000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)).astype(np.float32)
    rotary = graph.constant(np.cos(angles)), graph.constant(np.sin(angles))
    cache_type = TensorProto.INT8 if INT8_CACHE else TensorProto.FLOAT
    cache = (cache_type, [1, KV_HEADS, "past_sequence_length", HEAD_DIM])
    inputs: dict[str, Any] = {
        "inputs_embeds": (TensorProto.FLOAT, [1, "sequence_length", HIDDEN]),
        "attention_mask": (TensorProto.INT64, [1, "total_sequence_length"]),
    }
    outputs: dict[str, Any] = {"logits": (TensorProto.FLOAT, [1, 1, VOCAB])}
    quantized: dict[str, Any] = {}
    scales: list[str] = []
    if INT8_CACHE:
        quantized = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
        scales = ["", "", "", *[graph.constant(np.array([4 / 127], np.float32))] * 2]
    hidden = "inputs_embeds"
    for layer in range(LAYERS):
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        inputs |= dict.fromkeys(past, cache)
        outputs |= dict.fromkeys(present, (cache_type, [1, KV_HEADS, "total_sequence_length", HEAD_DIM]))
        widths = [heads * HEAD_DIM for heads in (HEADS, KV_HEADS, KV_HEADS)]
        projected = [graph.node("MatMul", hidden, graph.weight(HIDDEN, width)) for width in widths]
        attended = graph.node(
            "GroupQueryAttention",
            *(*projected, *past, seqlens, total, *rotary, *scales),
            outputs=[f"attended_{layer}", *present],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
            **quantized,
        )
        hidden = graph.node("Add", hidden, graph.node("MatMul", attended, graph.weight(HEADS * HEAD_DIM, HIDDEN)))
        hidden = graph.node("Add", hidden, _experts(graph, hidden))
    last = graph.node("Gather", hidden, graph.constant(np.array([-1])), axis=1)
    graph.node("MatMul", last, graph.weight(HIDDEN, VOCAB), outputs=["logits"])
    graph.save(path, inputs, outputs)


def _experts(graph: _Graph, hidden: str) -> str:
    scales = np.full((EXPERTS, 2), 0.1, np.float32)
    return graph.node(
        "TernaryMoE",
        hidden,
        graph.weight(EXPERTS, HIDDEN),
        graph.ternary(EXPERTS, INTERMEDIATE // TILE, 2, HIDDEN // TILE, LINE),
        graph.constant(scales),
        graph.ternary(EXPERTS, HIDDEN // TILE, INTERMEDIATE // TILE, LINE),
        graph.constant(scales[:, 0].copy()),
        domain="mote",
        num_experts=EXPERTS,
        top_k=1,
        normalize_topk=0,
        intermediate_size=INTERMEDIATE,
        activation="silu",
        packing="2bit",
        layout_version=1,
        shared_format="none",
        shared_group_size=0,
    )


def write_export(folder: Path, *, text_only: bool = False, seed: int = 7) -> Path:
    """Write the whole folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    if not text_only:
        _write_vision(folder / "vision.onnx", random)
    _write_embedding(folder / "embedding.onnx", random, text_only=text_only)
    _write_decoder(folder / "model.onnx", random)
    tokenizer().save(str(folder / "tokenizer.json"))
    write_manifest(folder, text_only=text_only)
    return folder


def write_manifest(folder: Path, *, text_only: bool = False, target: str = "onnxruntime") -> None:
    """Write `mote.json` for the files that are there now."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != "mote.json"
    }
    (folder / "mote.json").write_text(json.dumps(manifest(files, text_only=text_only, target=target), indent=2))
