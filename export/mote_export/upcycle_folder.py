"""A dense transformers folder becomes a MoTE folder, tensor by tensor: neither model is ever in memory."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from mote_export.atomic import atomic_folder, check_output, check_room
from mote_export.checkpoint.base import Checkpoint, check_values, parse_config
from mote_export.checkpoint.dense import DenseFolder, open_dense
from mote_export.checkpoint.folder import CONFIG, read_companions
from mote_export.checkpoint.stock_files import stock_files
from mote_export.checkpoint.tensor_files import StoredTensor, TensorSpec
from mote_export.checkpoint.tensor_writer import TensorWriter
from mote_export.model import MoeSettings, MoteModel
from mote_export.model.configuration import ExpertFormat, SharedFormat
from mote_export.model.surgery import PROJECTIONS
from mote_export.model.upcycling import (
    ExpertInit,
    expert_layers,
    mote_class,
    mote_config,
    origins,
    random_parts,
)
from mote_runtime.errors import MoteError

logger = logging.getLogger(__name__)

Dtype = Literal["keep", "bf16", "float32"]
DTYPES: Mapping[str, torch.dtype | None] = {"keep": None, "bf16": torch.bfloat16, "float32": torch.float32}
DEFAULT_SHARD_BYTES = 2 * 10**9
DEFAULT_SEED = 0
SECTIONS = ("text_config", "vision_config")
# What a base has beside the files that mote reads: of other tokenizer libraries, of processors, and the licence.
CARRIED = (
    "added_tokens.json", "chat_template.json", "merges.txt", "processor_config.json", "special_tokens_map.json",
    "tokenizer.model", "video_preprocessor_config.json", "vocab.json", "vocab.txt",
    "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE",
)  # fmt: skip


@dataclass(frozen=True)
class UpcycleOptions:
    """What the MoTE model is to be; see `mote_export.model.upcycle`.

    Attributes:
        num_experts: routed experts of a layer.
        top_k: experts computed for a token; None: 1, and 2 of "full" experts, as in MoE-LLaVA.
        layers: "all", "every-other", or indices.
        experts: "ternary" or "full".
        shared_expert: "full", "ternary" or "none"; None: "full", and "none" beside "full" experts.
        normalize_topk: None: of "full" experts only.
        init: what experts start as, "ffn" or "random".
        dtype: of the result; "keep" leaves every tensor in the dtype that it has in the base.
        seed: of routers and random experts.
        max_shard_bytes: of a weights file.

    Raises:
        MoteError: a value that is not among those.
    """

    num_experts: int = 4
    top_k: int | None = None
    layers: str | Sequence[int] = "all"
    experts: ExpertFormat = "ternary"
    shared_expert: SharedFormat | None = None
    normalize_topk: bool | None = None
    init: ExpertInit = "ffn"
    dtype: Dtype = "keep"
    seed: int = DEFAULT_SEED
    max_shard_bytes: int = DEFAULT_SHARD_BYTES

    def __post_init__(self) -> None:
        for name, value, known in (
            ("init", self.init, get_args(ExpertInit)),
            ("dtype", self.dtype, tuple(DTYPES)),
        ):
            if value not in known:
                raise MoteError(f"{name} is {value!r}, expected {', '.join(known)}")
        if type(self.max_shard_bytes) is not int or self.max_shard_bytes < 1:
            raise MoteError(f"max_shard_bytes is {self.max_shard_bytes!r}, expected a positive integer")
        if type(self.seed) is not int:
            raise MoteError(f"seed is {self.seed!r}, expected an integer")

    def settings(self, layers: tuple[int, ...]) -> MoeSettings:
        """Raises ValueError for what is out of its range."""
        is_full = self.experts == "full"
        return MoeSettings(
            num_experts=self.num_experts,
            top_k=(2 if is_full else 1) if self.top_k is None else self.top_k,
            normalize_topk=is_full if self.normalize_topk is None else self.normalize_topk,
            layers=layers,
            experts=self.experts,
            shared_expert=("none" if is_full else "full") if self.shared_expert is None else self.shared_expert,
        )


@dataclass(frozen=True)
class Size:
    """How many parameters, each counted once where it is tied, and their bytes in the files."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class UpcycleResult:
    """A finished MoTE folder.

    Attributes:
        folder: where it lies; `load_checkpoint`, `mote-train` and transformers' Auto classes open it.
        settings: of its MoE layers.
        config: what its config.json holds.
        files: name to bytes of each file.
        base, base_experts: of the dense model, and of those FFNs in it that became MoE layers.
        model, experts: of the result, and of its MoE layers: shared and routed experts and routers.
    """

    folder: Path
    settings: MoeSettings
    config: Mapping[str, Any]
    files: Mapping[str, int]
    base: Size
    base_experts: Size
    model: Size
    experts: Size


def upcycle_folder(base: Path, output: Path, options: UpcycleOptions | None = None) -> UpcycleResult:
    """Makes a MoTE folder from a dense one; it appears complete or not at all.

    The result is that of `upcycle` with the same seed, bit for bit, but is written block by block: memory holds a few blocks of
    4 MiB, and one matrix where experts start at random, whatever the size of the base.

    Args:
        base: as for `load_dense`; nothing in it is trusted or run.
        output: an absent or empty folder.
        options: by default MoTE's own layer in every layer, with 4 experts.

    Raises:
        MoteError: one sentence; nothing was written.
        OSError: of the disk; nothing was written.
    """
    options = options or UpcycleOptions()
    check_output(output)
    job = _Job(open_dense(base), options)
    parse_config(base, job.config())  # or what is written here could not be read again
    files = job.files()
    check_room(output, job.num_bytes, "fewer experts or layers")
    with atomic_folder(output) as temporary:
        job.write(temporary)
        (temporary / CONFIG).write_text(json.dumps(job.config(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        for name in CARRIED:
            if name not in files and (base / name).is_file():
                shutil.copyfile(base / name, temporary / name)
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
    return job.result(output, sizes)


class _Job:
    """One dense folder on its way: what the result will hold, known from headers alone."""

    def __init__(self, dense: DenseFolder, options: UpcycleOptions) -> None:
        """Raises MoteError where the model or the options do not fit."""
        self.dense, self.options = dense, options
        try:
            self.settings = options.settings(expert_layers(dense.skeleton, options.layers))
            config = mote_config(dense.skeleton, self.settings)
            with torch.device("meta"):
                self.mote: MoteModel = mote_class(config)(config)
            self.origins = origins(dense.skeleton, self.mote, options.init)
        except ValueError as error:
            raise MoteError(f"{dense.path} cannot be up-cycled: {error}") from error
        self.specs = dict(self._specs())
        self.num_bytes = sum(spec.num_bytes for spec in self.specs.values())

    def _specs(self) -> Iterator[tuple[str, TensorSpec]]:
        chosen = DTYPES[self.options.dtype]
        for name, tensor in self.mote.state_dict().items():
            origin = self.origins[name]
            # What is new in a layer has the dtype of the FFN that was there.
            stored = self.dense.tensors.get(origin.source or f"{origin.replaced}{PROJECTIONS[0]}.weight")
            if stored is None:
                continue  # tied to another
            yield name, TensorSpec(tuple(tensor.shape), chosen or stored.float_dtype)

    def config(self) -> dict[str, Any]:
        """The content of config.json; nothing that is a class's default is left out."""
        expert = next(spec for name, spec in self.specs.items() if self.origins[name].replaced)
        return _with_dtype(self.mote.config.to_dict(), str(expert.dtype).removeprefix("torch."))

    def files(self) -> dict[str, str]:
        """The text files of the base, and those that it lacks where mote can make them."""
        checkpoint = Checkpoint(self.dense.path.resolve().name, self.mote, read_companions(self.dense.path))
        try:
            return stock_files(checkpoint)
        except MoteError as error:
            logger.info("mote-export will not take this model: %s", error)
            return dict(checkpoint.files)

    def write(self, folder: Path) -> None:
        """The weights. Raises CheckpointError for values that are not finite, and OSError."""
        targets: dict[str | None, list[str]] = {}
        for name in self.specs:
            targets.setdefault(self.origins[name].source, []).append(name)
        bar = tqdm(total=self.num_bytes, desc="mote-upcycle", unit="B", unit_scale=True, disable=None)
        with bar, TensorWriter(folder, self.specs, self.options.max_shard_bytes) as writer:
            for source, names in targets.items():
                blocks = self._random(names) if source is None else self._copied(source, names)
                for name, offset, block in blocks:
                    bar.update(writer.write(name, offset, block))

    def _copied(self, source: str, names: Sequence[str]) -> Iterator[tuple[str, int, Tensor]]:
        """Each block of a tensor of the base is read once, for all places that it goes to."""
        stored = self.dense.tensors[source]
        size = stored.num_parameters
        offset = 0
        for block in stored.blocks():
            check_values(self.dense.path, stored.name, block)
            block = block.to(self.specs[names[0]].float_dtype)  # the dtype in all places
            for name in names:
                for copy in range(self.origins[name].copies or 1):
                    yield name, copy * size + offset, block
            offset += block.numel()

    def _random(self, names: Sequence[str]) -> Iterator[tuple[str, int, Tensor]]:
        for name in names:
            parts = random_parts(name, self.origins[name], self.specs[name].shape, self.options.seed)
            for index, values in enumerate(parts):
                yield name, index * values.numel(), values

    def result(self, folder: Path, files: dict[str, int]) -> UpcycleResult:
        replaced = tuple({origin.replaced for origin in self.origins.values() if origin.replaced})
        return UpcycleResult(
            folder=folder,
            settings=self.settings,
            config=self.config(),
            files=files,
            base=_size(self.dense.tensors.values()),
            base_experts=_size(tensor for name, tensor in self.dense.tensors.items() if name.startswith(replaced)),
            model=_size(self.specs.values()),
            experts=_size(spec for name, spec in self.specs.items() if self.origins[name].replaced),
        )


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    parts = {key: _with_dtype(value, dtype) for key, value in config.items() if key in SECTIONS}
    return config | parts | {"dtype": dtype}


def _size(tensors: Iterable[TensorSpec | StoredTensor]) -> Size:
    sizes = [(tensor.num_parameters, tensor.num_bytes) for tensor in tensors]
    return Size(sum(parameters for parameters, _ in sizes), sum(num_bytes for _, num_bytes in sizes))
