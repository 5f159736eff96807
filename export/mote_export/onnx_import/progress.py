"""Bars on stderr for what takes long in large models: weights that are looked at, and bytes that are written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import onnx_ir as ir
from tqdm import tqdm

from mote_export.onnx_import.constants import recipe
from mote_export.onnx_import.graph import STANDARD
from mote_export.targets.onnx.external_data import INLINE_BYTES

SECONDS = 0.2  # between two looks at a file that grows


def looking(model: ir.Model, wanted: bool) -> "tqdm[None]":
    """A bar over the constant weights of the linear layers; shown on a terminal only, and only if it is `wanted`."""
    weights = {
        node.inputs[1]
        for graph in model.graphs()
        for node in graph
        if node.domain in STANDARD and node.op_type in ("MatMul", "Gemm") and len(node.inputs) > 1
    }
    total = sum(weight is not None and recipe(weight) is not None for weight in weights)
    return tqdm(total=total, desc="mote-export: weights", unit="weight", disable=None if wanted else True)


@contextmanager
def writing(model: ir.Model, data: Path, wanted: bool) -> Iterator[None]:
    """A bar over the bytes of `data`, a file that the block writes the tensors of `model` to. It looks at how large the file is."""
    sizes = (value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    total = sum(size for size in sizes if size >= INLINE_BYTES)
    with tqdm(
        total=total, desc="mote-export: writing", unit="B", unit_scale=True, disable=None if wanted else True
    ) as bar:
        if bar.disable:
            yield
            return
        done = Event()
        watcher = Thread(target=_watch, args=(bar, data, done), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _watch(bar: "tqdm[None]", data: Path, done: Event) -> None:
    is_last = False
    while not is_last:
        is_last = done.wait(SECONDS)
        size = data.stat().st_size if data.exists() else 0
        bar.update(min(size, bar.total) - bar.n)  # the file has padding, too
