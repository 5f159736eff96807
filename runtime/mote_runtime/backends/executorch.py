"""Runs an exported folder with ExecuTorch, through the methods that ExecuTorch's own LLM runners call."""

import warnings
from typing import Any

import numpy as np

from mote_runtime.arrays import FloatArray, IntArray
from mote_runtime.backends.base import Backend, import_runtime, reason
from mote_runtime.errors import BackendError
from mote_runtime.library import load_executorch_library
from mote_runtime.manifest import Manifest

_ADVICE = "install it with `pip install 'mote[executorch]'`, or take the ONNX export with --runtime onnxruntime"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ExecuTorch calls its whole Python interface experimental at import
    torch: Any = import_runtime("torch", _ADVICE)
    portable_lib: Any = import_runtime("executorch.extension.pybindings.portable_lib", _ADVICE)
    # Attention is llama::custom_sdpa and llama::update_cache, whose kernels register on this import.
    import_runtime("executorch.extension.llm.custom_ops.custom_ops", _ADVICE)


class ExecuTorchBackend(Backend):
    """`model.pte` of a folder; the KV cache is inside the program and starts anew at position 0.

    ExecuTorch has one thread pool for the whole process: `threads` sets it for every model loaded in it.
    """

    def __init__(self, manifest: Manifest, threads: int | None) -> None:
        self._model = manifest.model
        load_executorch_library()
        if threads is not None:
            portable_lib._unsafe_reset_threadpool(threads)
        path = manifest.path("model.pte")
        try:
            self._module = portable_lib._load_for_executorch(str(path))
        except RuntimeError as error:
            raise BackendError(f"executorch cannot load {path}: {reason(error)}") from error
        needed = {"token_embedding", "text_decoder"} | ({"vision_encoder"} if manifest.image else set())
        if missing := needed - set(self._module.method_names()):
            raise BackendError(f"{path} lacks the methods {sorted(missing)}; export the model again")
        self._max_seq_len = int(self._run("get_max_seq_len"))
        if self._max_seq_len < 1:
            raise BackendError(f"{path}: get_max_seq_len is {self._max_seq_len}; expected at least 1")
        self._position = 0

    def _run(self, method: str, *inputs: Any) -> Any:
        try:
            return self._module.run_method(method, inputs)[0]
        except RuntimeError as error:
            raise BackendError(f"executorch failed in {method}: {reason(error)}") from error

    def encode_image(self, pixel_values: FloatArray) -> FloatArray:
        features = [self._run("vision_encoder", torch.from_numpy(image[np.newaxis])).numpy() for image in pixel_values]
        return np.concatenate(features, axis=1)[0]

    def embed(self, input_ids: IntArray, image_features: FloatArray | None = None) -> FloatArray:
        step = self._max_seq_len
        pieces = [input_ids[start : start + step] for start in range(0, len(input_ids), step)]
        rows = [self._run("token_embedding", torch.from_numpy(piece[np.newaxis])).numpy()[0] for piece in pieces]
        embeddings: FloatArray = np.concatenate(rows)
        if image_features is not None:
            embeddings[input_ids == self._model.image_token_id] = image_features
        return embeddings

    def decode(self, inputs_embeds: FloatArray) -> FloatArray:
        logits = None
        for start in range(0, len(inputs_embeds), self._max_seq_len):
            piece = np.ascontiguousarray(inputs_embeds[np.newaxis, start : start + self._max_seq_len])
            positions = torch.arange(self._position, self._position + piece.shape[1])
            logits = self._run("text_decoder", torch.from_numpy(piece), positions)
            self._position += piece.shape[1]
        if logits is None:
            raise BackendError("decode needs at least one position")
        result: FloatArray = logits.numpy()[0]
        return result

    def reset(self) -> None:
        self._position = 0

    def close(self) -> None:
        del self._module
