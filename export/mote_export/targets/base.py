"""What every export target provides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mote_export.checkpoint import Checkpoint
from mote_export.defaults import DEFAULT_KV_CACHE
from mote_export.passes.quantize_linear import Activations


@dataclass(frozen=True)
class ExportSettings:
    """Options of an export.

    Attributes:
        context_length: positions in the KV cache: prompt, image tokens and answer together.
        opset: ONNX operator set.
        portable: no operator of mote is left that needs a plugin; the runtime's own ones compute the same, slowly.
        has_plugin_operators: the model has an operator of mote's; a baseline has none.
    """

    context_length: int
    opset: int
    portable: bool = False
    has_plugin_operators: bool = True

    @property
    def needs_plugin(self) -> bool:
        return self.has_plugin_operators and not self.portable


@dataclass(frozen=True)
class Target:
    """One runtime.

    Attributes:
        name: value of `--target`, and the folder of `--target all`.
        runtime: the runtime's name in `mote.json` and in `mote-run --runtime`.
        requires: modules that must be importable to export and verify, and the extra that brings them.
        plugin_library: name of the plugin that the runtime needs, unless the export is portable.
        activations: what its operators for integer weights do to their inputs, for verification.
        kv_caches: what its attention can hold keys and values in.
        write: writes the target's own files of a checkpoint, whose experts are packed already, into a folder.
    """

    name: str
    runtime: Literal["onnxruntime", "executorch"]
    requires: Sequence[str]
    extra: str
    plugin_library: str
    activations: Activations
    write: Callable[[Checkpoint, ExportSettings, Path], None]
    kv_caches: Sequence[str] = (DEFAULT_KV_CACHE,)
