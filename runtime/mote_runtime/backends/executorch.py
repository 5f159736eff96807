"""Runs an exported folder with ExecuTorch, through the methods that ExecuTorch's own LLM runners call."""

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mote_runtime.arrays import FloatArray, IntArray
from mote_runtime.backends.base import PREFILL_CHUNK, Backend, chunks, import_runtime, reason
from mote_runtime.errors import BackendError
from mote_runtime.library import import_executorch, load_executorch_library
from mote_runtime.manifest import Manifest
from mote_runtime.memory_lock import no_memory_lock

logger = logging.getLogger(__name__)

_ADVICE = "install it with `pip install 'mote[executorch]'`, or take the ONNX export with --runtime onnxruntime"


@contextlib.contextmanager
def _quiet_imports() -> Iterator[None]:
    """ExecuTorch calls its whole Python interface experimental on import, and torch logs what torchao deprecates."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _load_custom_ops() -> None:
    """Register the kernels of attention, llama::custom_sdpa and llama::update_cache.

    The module whose import does that imports torch's compiler for what exporting needs; its library is all that is needed here.
    """
    if hasattr(torch.ops.llama, "custom_sdpa"):
        return  # loading it again would end the process
    package = importlib.util.find_spec("executorch.extension.llm.custom_ops")
    folders = [] if package is None else package.submodule_search_locations or []
    libraries = [path for folder in folders for path in Path(folder).glob("*custom_ops_aot_lib.*")]
    if len(libraries) != 1:
        import_runtime("executorch.extension.llm.custom_ops.custom_ops", _ADVICE)
        return
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        raise BackendError(
            f"{libraries[0].name} of executorch cannot be loaded ({reason(error)}); {_ADVICE}"
        ) from error


with _quiet_imports():
    torch: Any = import_runtime("torch", _ADVICE)
    try:
        portable_lib: Any = import_executorch()
    except (ImportError, OSError) as error:
        raise BackendError(f"executorch cannot be imported ({reason(error)}); {_ADVICE}") from error
    _load_custom_ops()


class ExecuTorchBackend(Backend):
    """`model.pte` of a folder; the KV cache is inside the program and starts anew at position 0.

    ExecuTorch has one thread pool for the whole process: `threads` sets it for every model loaded in it.
    """

    def __init__(self, manifest: Manifest, threads: int | None, profile_folder: Path | None = None) -> None:
        self._model = manifest.model
        self._profile_folder = profile_folder
        if manifest.plugin_library is not None:  # a portable program needs none
            load_executorch_library()
        _start_threadpool(threads)
        path = manifest.path("model.pte")
        self._loaded: set[str] = set()
        try:
            # The binding maps the program, but locks what it maps: see _run. All but the methods is read here.
            with no_memory_lock():
                self._module = portable_lib._load_for_executorch(str(path), enable_etdump=profile_folder is not None)
                self._check_methods(manifest)
        except RuntimeError as error:
            raise BackendError(f"executorch cannot load {path}: {reason(error)}") from error
        longest = int(self._run("get_max_seq_len"))
        if longest < 1:
            raise BackendError(f"{path}: get_max_seq_len is {longest}; expected at least 1")
        self._chunk = min(longest, PREFILL_CHUNK)
        self._position = 0

    def _check_methods(self, manifest: Manifest) -> None:
        """Compare the program with the manifest; a kernel may end the process over what passes here unseen."""
        model = manifest.model
        # The sizes of a result; the length of a sequence (None) is the largest that was planned for.
        results: dict[str, tuple[int | None, ...]] = {
            "token_embedding": (1, None, model.hidden_size),
            "text_decoder": (1, model.vocab_size),
        }
        if manifest.image is not None:
            results["vision_encoder"] = (1, model.num_image_tokens, model.hidden_size)
        methods = {*results, "get_max_seq_len", "get_max_context_len"}
        if missing := methods - set(self._module.method_names()):
            raise BackendError(f"model.pte in {manifest.folder} lacks the methods {sorted(missing)}; export it again")
        for method, expected in results.items():
            found = tuple(self._module.method_meta(method).output_tensor_meta(0).sizes())
            if len(found) != len(expected) or any(
                want not in (None, size) for size, want in zip(found, expected, strict=True)
            ):
                raise BackendError(
                    f"model.pte: {method} returns the shape {list(found)}, but mote.json says {list(expected)}"
                )
        context = int(self._run("get_max_context_len"))
        if context < model.context_length:
            raise BackendError(
                f"model.pte: get_max_context_len is {context}, but mote.json says context_length {model.context_length}"
            )

    def _run(self, method: str, *inputs: Any) -> Any:
        first = method not in self._loaded  # its first run loads it
        self._loaded.add(method)
        try:
            with no_memory_lock() if first else contextlib.nullcontext():
                return self._module.run_method(method, inputs)[0]
        except RuntimeError as error:
            raise BackendError(f"executorch failed in {method}: {reason(error)}") from error

    def encode_image(self, pixel_values: FloatArray) -> FloatArray:
        features = [self._run("vision_encoder", torch.from_numpy(image[np.newaxis])).numpy() for image in pixel_values]
        return np.concatenate(features, axis=1)[0]

    def embed(self, input_ids: IntArray, image_features: FloatArray | None = None) -> FloatArray:
        embeddings = np.empty((len(input_ids), self._model.hidden_size), np.float32)
        for piece in chunks(len(input_ids), self._chunk):
            ids = torch.from_numpy(input_ids[np.newaxis, piece])
            embeddings[piece] = self._run("token_embedding", ids).numpy()[0]
        if image_features is not None:
            embeddings[input_ids == self._model.image_token_id] = image_features
        return embeddings

    def decode(self, inputs_embeds: FloatArray) -> FloatArray:
        logits = None
        for cut in chunks(len(inputs_embeds), self._chunk):
            piece = np.ascontiguousarray(inputs_embeds[np.newaxis, cut])
            positions = torch.arange(self._position, self._position + piece.shape[1])
            logits = self._run("text_decoder", torch.from_numpy(piece), positions)
            self._position += piece.shape[1]
        if logits is None:
            raise BackendError("decode needs at least one position")
        result: FloatArray = logits.numpy()[0]
        return result

    def reset(self) -> None:
        self._position = 0

    def end_profile(self) -> Mapping[str, Path]:
        if self._profile_folder is None:
            return {}
        path = self._profile_folder / "program.etdp"
        self._module.write_etdump_result_to_file(str(path))
        return {"program": path}

    def close(self) -> None:
        del self._module


def _start_threadpool(threads: int | None) -> None:
    """Create the process's thread pool, of the default size or as asked for.

    Its first use prints lines to stderr about files that only ARM boards have. They are sent nowhere for that
    moment, unless debugging is on.
    """
    with contextlib.nullcontext() if logger.isEnabledFor(logging.DEBUG) else _quiet_stderr():
        if threads is None:
            portable_lib._threadpool_get_thread_count()
        else:
            portable_lib._unsafe_reset_threadpool(threads)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
