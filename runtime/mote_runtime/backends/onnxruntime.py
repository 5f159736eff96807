"""Runs an exported folder with ONNX Runtime: three sessions, and the operator plugin on those that compute."""

import itertools
import logging
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mote_runtime.arrays import FloatArray, IntArray
from mote_runtime.backends.base import PREFILL_CHUNK, Backend, chunks, import_runtime, reason
from mote_runtime.errors import BackendError
from mote_runtime.library import get_library_path
from mote_runtime.manifest import Manifest, ModelSpec

logger = logging.getLogger(__name__)

# ONNX Runtime reads this when it is imported, so it is set before that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
ort: Any = import_runtime("onnxruntime", "install it with `pip install onnxruntime`")

_SEVERITY_FATAL, _SEVERITY_WARNING = 4, 2
_PLUGIN_HINT = (
    "the operator mote::TernaryMoE comes from the plugin of mote's own installation, loaded with "
    'SessionOptions.register_custom_ops_library(mote_runtime.get_library_path("onnxruntime"))'
)

# What GroupQueryAttention keeps keys and values in: as they are, or in int8 with scales that lie in the graph.
_CACHE_TYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(int8)": np.dtype(np.int8)}

_Shape = Sequence[int | None]


class OnnxRuntimeBackend(Backend):
    """`vision.onnx`, `embedding.onnx` and `model.onnx` of a folder.

    Keys and values, float32 or int8, lie in one buffer of context length for each layer, bound to the decoder as past
    and as present at once, so GroupQueryAttention appends in place and a step copies nothing.
    """

    def __init__(self, manifest: Manifest, threads: int | None, profile_folder: Path | None = None) -> None:
        self._model = manifest.model
        self._profiles = profile_folder is not None
        plugin = manifest.plugin_library is not None
        self._decoder = _open_session(manifest, "model.onnx", threads, profile_folder, plugin=plugin)
        # The embedding graph only gathers rows: threads of its own would wait for work that never comes.
        self._embedding = _open_session(manifest, "embedding.onnx", 1, profile_folder)
        self._vision = (
            _open_session(manifest, "vision.onnx", threads, profile_folder, plugin=plugin)
            if manifest.image is not None
            else None
        )
        self._check_graphs(manifest)
        self._cache_type = _cache_type(manifest, self._decoder)
        self._mask = np.ones((1, self._model.context_length), np.int64)
        self._logits = np.zeros((1, 1, self._model.vocab_size), np.float32)
        self._no_features = np.zeros((0, self._model.hidden_size), np.float32)
        self._borrowed: list[Any] = []
        self._binding = self._bind_buffers()
        self._chunk = PREFILL_CHUNK
        self._position = 0

    def _check_graphs(self, manifest: Manifest) -> None:
        model, hidden, vocab = self._model, self._model.hidden_size, self._model.vocab_size
        cache = (1, model.num_key_value_heads, None, model.head_dim)
        past = dict.fromkeys(_cache_names(model, "past_key_values"), cache)
        present = dict.fromkeys(_cache_names(model, "present"), cache)
        _check_values(
            "model.onnx",
            self._decoder,
            {"inputs_embeds": (1, None, hidden), "attention_mask": (1, None), **past},
            {"logits": (1, 1, vocab), **present},
        )
        features: dict[str, _Shape] = {"image_features": (None, hidden)} if self._vision else {}
        _check_values(
            "embedding.onnx",
            self._embedding,
            {"input_ids": (1, None), **features},
            {"inputs_embeds": (1, None, hidden)},
        )
        if self._vision and manifest.image:
            pixels = (1, None, 3, manifest.image.height, manifest.image.width)
            _check_values("vision.onnx", self._vision, {"pixel_values": pixels}, features)

    def _bind_buffers(self) -> Any:
        model = self._model
        shape = (1, model.num_key_value_heads, model.context_length, model.head_dim)
        binding = self._decoder.io_binding()
        pairs = zip(_cache_names(model, "past_key_values"), _cache_names(model, "present"), strict=True)
        dtype = self._cache_type
        try:
            for past, present in pairs:
                buffer = self._lend(_untouched(shape, dtype))
                binding.bind_ortvalue_input(past, buffer)
                binding.bind_ortvalue_output(present, buffer)
        except (OSError, OverflowError, ValueError) as error:  # the latter two: more than can ever be held
            raise BackendError(
                f"no memory for the KV cache: {2 * model.num_hidden_layers} buffers of {list(shape)} {dtype} values; "
                "export with a shorter context"
            ) from error
        binding.bind_ortvalue_output("logits", self._lend(self._logits))
        return binding

    def _lend(self, array: NDArray[Any]) -> Any:
        """A value in the array's own memory, which is kept here: in most versions a binding does not keep it alive."""
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._borrowed += [array, value]
        return value

    def encode_image(self, pixel_values: FloatArray) -> FloatArray:
        if self._vision is None:
            raise BackendError("this export has no vision.onnx")
        # One after another, with the memory of one.
        features = [
            _run(self._vision, "image_features", {"pixel_values": image[np.newaxis, np.newaxis]})
            for image in pixel_values
        ]
        return np.concatenate(features)

    def embed(self, input_ids: IntArray, image_features: FloatArray | None = None) -> FloatArray:
        features = iter(self._no_features if image_features is None else image_features)
        embeddings = np.empty((len(input_ids), self._model.hidden_size), np.float32)
        for piece in chunks(len(input_ids), self._chunk):
            inputs: dict[str, Any] = {"input_ids": input_ids[np.newaxis, piece]}
            if self._vision is not None:
                count = int(np.count_nonzero(input_ids[piece] == self._model.image_token_id))
                taken = list(itertools.islice(features, count))
                inputs["image_features"] = np.stack(taken) if taken else self._no_features
            embeddings[piece] = _run(self._embedding, "inputs_embeds", inputs)[0]
        return embeddings

    def decode(self, inputs_embeds: FloatArray) -> FloatArray:
        for piece in chunks(len(inputs_embeds), self._chunk):
            self._append(inputs_embeds[piece])
        return self._logits[0, 0].copy()

    def _append(self, inputs_embeds: FloatArray) -> None:
        total = self._position + len(inputs_embeds)
        embeds = np.ascontiguousarray(inputs_embeds[np.newaxis])  # borrowed as well, until the run is over
        self._binding.bind_cpu_input("inputs_embeds", embeds)
        self._binding.bind_cpu_input("attention_mask", self._mask[:, :total])
        try:
            self._decoder.run_with_iobinding(self._binding)
        except Exception as error:  # the exceptions of onnxruntime's binding have no common base of their own
            raise BackendError(f"onnxruntime failed in model.onnx: {reason(error)}") from error
        self._position = total

    def reset(self) -> None:
        self._position = 0  # the mask hides what is left in the buffers

    def end_profile(self) -> Mapping[str, Path]:
        if not self._profiles:
            return {}
        sessions = {"vision": self._vision, "embedding": self._embedding, "decoder": self._decoder}
        return {name: Path(session.end_profiling()) for name, session in sessions.items() if session is not None}

    def close(self) -> None:
        del self._binding, self._decoder, self._embedding, self._vision
        del self._borrowed, self._logits


def _cache_type(manifest: Manifest, session: Any) -> np.dtype[Any]:
    """What the cache holds; raises BackendError if that is no type of a cache, not the same everywhere, or not mote.json's."""
    model = manifest.model
    names = {*_cache_names(model, "past_key_values"), *_cache_names(model, "present")}
    types = {value.type for value in (*session.get_inputs(), *session.get_outputs()) if value.name in names}
    if len(types) != 1 or not types <= _CACHE_TYPES.keys():
        raise BackendError(
            f"model.onnx keeps keys and values in {sorted(types)}; expected one of {sorted(_CACHE_TYPES)}"
        )
    dtype = _CACHE_TYPES[types.pop()]
    if dtype != manifest.kv_cache:
        raise BackendError(f"model.onnx keeps keys and values in {dtype}, but mote.json says {manifest.kv_cache}")
    return dtype


def _untouched(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros of the shape, in pages of their own that take no room before they are written to.

    numpy's zeros do not promise that: the C library may hand out, and then clear, memory that it got back from others.
    Raises OSError, OverflowError or ValueError where there cannot be so much.
    """
    size = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)


def _cache_names(model: ModelSpec, prefix: str) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in range(model.num_hidden_layers) for kind in ("key", "value")]


def _open_session(
    manifest: Manifest, name: str, threads: int | None, profile_folder: Path | None, *, plugin: bool = False
) -> Any:
    options = ort.SessionOptions()
    if profile_folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_folder / name.removesuffix(".onnx"))
    # Failures arrive as exceptions; the library's own lines beside them are for those who asked for more.
    options.log_severity_level = _SEVERITY_WARNING if logger.isEnabledFor(logging.DEBUG) else _SEVERITY_FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
    if plugin:
        _register_plugin(options)
    try:
        return ort.InferenceSession(str(manifest.path(name)), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exceptions of onnxruntime's binding have no common base of their own
        text = reason(error)
        hint = f"; {_PLUGIN_HINT}" if "TernaryMoE" in text or ("mote" in text and "not a registered" in text) else ""
        raise BackendError(f"onnxruntime cannot load {name} in {manifest.folder}: {text}{hint}") from error


def _register_plugin(options: Any) -> None:
    """Register the installed plugin; a library in a model's folder is never loaded, as it would be foreign code."""
    path = str(get_library_path("onnxruntime"))
    try:
        options.register_custom_ops_library(path)
    except Exception as error:
        raise BackendError(f"onnxruntime cannot load the plugin {path}: {reason(error)}; {_PLUGIN_HINT}") from error


def _check_values(name: str, session: Any, inputs: Mapping[str, _Shape], outputs: Mapping[str, _Shape]) -> None:
    """Compare a graph's inputs and outputs with the manifest, before a wrong shape is read or written by anyone."""
    for kind, values, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        found = {value.name: value for value in values}
        if found.keys() != expected.keys():
            extra, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
            raise BackendError(f"{name} has other {kind} than mote.json says: extra {extra}, missing {missing}")
        for key, shape in expected.items():
            if not _fits(found[key].shape, shape):
                raise BackendError(f"{name}: {key} has shape {found[key].shape}, but mote.json says {list(shape)}")


def _fits(found: Sequence[int | str | None], expected: _Shape) -> bool:
    """Whether a graph's shape can be the expected one; a name or None stands for any size."""
    if len(found) != len(expected):
        return False
    return all(size == want for size, want in zip(found, expected, strict=True) if isinstance(size, int) and want)


def _run(session: Any, output: str, inputs: Mapping[str, Any]) -> FloatArray:
    try:
        result: FloatArray = session.run([output], inputs)[0]
    except Exception as error:
        raise BackendError(f"onnxruntime failed to compute {output}: {reason(error)}") from error
    return result
