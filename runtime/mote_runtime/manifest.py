"""Reads and checks `mote.json`, the manifest of an exported folder (docs/export-format.md).

A folder may come from anywhere, so nothing in it is believed before it is checked: types, ranges, file names, sizes
and SHA-256 sums. Every refusal is an `ExportFolderError` that names the field or the file, what was found and what
was expected.
"""

import hashlib
import json
import logging
import math
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mote_runtime.errors import ExportFolderError

logger = logging.getLogger(__name__)

MANIFEST_NAME = "mote.json"
FORMAT = "mote-export"
FORMAT_VERSION = 2
LAYOUT_VERSION = 1
PACKINGS = ("2bit", "1.6bit")
SHARED_EXPERTS = ("float32", "bf16", "int8", "int4")
GROUPED_SHARED_EXPERT = "int4"
SHARED_GROUP_SIZES = (32, 64, 128, 256)
KV_CACHES = ("float32", "int8")
IMAGE_PADS = "{image_pads}"

MAX_MANIFEST_BYTES = 16 << 20
MAX_DIMENSION = 1 << 20
MAX_LAYERS = 4096
MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 24
MAX_EXPERTS = 256
MAX_EOS_TOKENS = 64
MAX_IMAGE_SIDE = 4096
MAX_TEXT = 1 << 16
MAX_FILES = 4096
MAX_FILE_BYTES = 1 << 50

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HASH_CHUNK = 1 << 20
SMALL_FILE_BYTES = 16 << 20
_SHOWN_CHARACTERS = 60

_REQUIRED_FILES = {
    "onnxruntime": ("embedding.onnx", "model.onnx", "tokenizer.json"),
    "executorch": ("model.pte", "tokenizer.json"),
}


class Verification(Enum):
    """How much of a folder is compared with its manifest.

    The sums of all files want every byte of the weights, which are gigabytes that nothing else reads at once. So what is
    compared unless all is asked for is the sizes of all files, and the sums of those that a runtime reads as a whole.
    """

    SIZES = "sizes"
    SMALL_FILES = "sizes, and sums of files up to 16 MiB"
    HASHES = "hashes"

    @classmethod
    def of(cls, verify: bool | None) -> "Verification":
        """The level that an option says: all sums, sizes only, or for None what is usual."""
        return cls.SMALL_FILES if verify is None else cls.HASHES if verify else cls.SIZES


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The `model` section; the image fields are None in a text-only export."""

    name: str
    architecture: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    image_token_id: int | None
    vision_start_token_id: int | None
    vision_end_token_id: int | None
    num_image_tokens: int | None


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """The `moe` section: which layers hold ternary experts, and how these and the shared ones are stored.

    `shared_group_size` is the number of weights that share a scale in `int4`, else 0.
    """

    layers: tuple[int, ...]
    num_experts: int
    top_k: int
    normalize_topk: bool
    intermediate_size: int
    packing: str
    layout_version: int
    shared_expert: str
    shared_group_size: int


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The `image` section: how a picture becomes `pixel_values`."""

    height: int
    width: int
    resample: str
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """The `prompt` section; `image` holds `{image_pads}` once and is None where the model takes no image."""

    user_prefix: str
    image: str | None
    user_suffix: str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 (lower-case hex) of a file of the folder at the time of the export."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked `mote.json` and the folder it lies in."""

    folder: Path
    target: str
    model: ModelSpec
    moe: MoeSpec
    image: ImageSpec | None
    prompt: PromptSpec
    plugin_library: str | None
    files: Mapping[str, FileEntry]
    memory: Mapping[str, Any]
    verification: Mapping[str, Any]
    source: Mapping[str, Any]
    versions: Mapping[str, Any]
    quantization: Mapping[str, Any]
    kv_cache: str = KV_CACHES[0]  # what a decoder keeps keys and values in; older exports do not say it

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check `mote.json` in `folder`; the other files are only looked at by `verify`.

        Raises ExportFolderError where the folder or the manifest is missing, or a field is not what it must be.
        """
        if not folder.is_dir():
            found = "is not a folder" if folder.exists() else "does not exist"
            raise ExportFolderError(f"{folder} {found}; expected a folder written by mote-export")
        return cls.parse(folder, _read_json(folder))

    @classmethod
    def parse(cls, folder: Path, document: Mapping[str, Any], *, files_are_known: bool = True) -> "Manifest":
        """Check the content of a `mote.json`, which need not be written yet, nor `folder` exist; tuples count as lists.

        With `files_are_known` False the field `files` is not looked at, for a check before any file is there.
        Raises ExportFolderError where a field is not what it must be.
        """
        return _parse_manifest(folder, document, files_are_known=files_are_known)

    def path(self, name: str) -> Path:
        """The path of a file that the manifest lists; raises ExportFolderError if it lists none of this name."""
        if name not in self.files:
            raise ExportFolderError(f"{MANIFEST_NAME} in {self.folder} lists no file {name!r}; export the model again")
        return self.folder / name

    def verify(self, level: Verification = Verification.HASHES) -> None:
        """Compare every listed file with the manifest: sizes always, SHA-256 sums of all with `Verification.HASHES`.

        Raises ExportFolderError that names the first file found missing, outside the folder or changed.
        """
        for name, entry in self.files.items():
            size = _regular_file_size(self.folder, name)
            if size != entry.bytes:
                raise _changed(self.folder, name, f"{size} bytes", f"{entry.bytes} bytes")
        if level is not Verification.SIZES:
            largest = MAX_FILE_BYTES if level is Verification.HASHES else SMALL_FILE_BYTES
            self._verify_hashes({name: entry for name, entry in self.files.items() if entry.bytes <= largest})

    def _verify_hashes(self, files: Mapping[str, FileEntry]) -> None:
        total = sum(entry.bytes for entry in files.values())
        with tqdm(total=total, unit="B", unit_scale=True, desc="verifying", delay=1, disable=None, leave=False) as bar:
            for name, entry in files.items():
                try:
                    found = sha256(self.folder / name, bar.update)
                except OSError as error:
                    raise ExportFolderError(f"{name} in {self.folder} cannot be read: {error}") from error
                if found != entry.sha256:
                    raise _changed(self.folder, name, f"SHA-256 {found}", f"SHA-256 {entry.sha256}")


def sha256(path: Path, on_read: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file in lower-case hex; `on_read` gets the number of bytes of each piece. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK):
            digest.update(chunk)
            if on_read is not None:
                on_read(len(chunk))
    return digest.hexdigest()


def _changed(folder: Path, name: str, found: str, expected: str) -> ExportFolderError:
    return ExportFolderError(
        f"{name} in {folder} has {found}, but {MANIFEST_NAME} expects {expected}: the folder changed since the export; "
        "copy it again or export anew"
    )


def _regular_file_size(folder: Path, name: str) -> int:
    """Size of a regular file of the folder; a link may lead to another file of the folder, but not out of it."""
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            raise ExportFolderError(f"{name} in {folder} is a link that leaves the folder; copy the file itself there")
        status = path.stat()
    except FileNotFoundError:
        raise ExportFolderError(f"{name} is missing in {folder}; copy the folder again or export anew") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ExportFolderError(f"{name} in {folder} cannot be opened: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ExportFolderError(f"{name} in {folder} is not a regular file; copy the folder again or export anew")
    return status.st_size


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    if not path.exists() and not path.is_symlink():
        raise ExportFolderError(
            f"{folder} has no {MANIFEST_NAME}; expected a folder written by mote-export "
            "(with --target all these are its subfolders onnx and executorch)"
        )
    size = _regular_file_size(folder, MANIFEST_NAME)
    if size > MAX_MANIFEST_BYTES:
        raise ExportFolderError(f"{path} has {size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        document = json.loads(
            path.read_bytes(), object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ExportFolderError(f"{path} is not a readable JSON document: {_shown(str(error))}") from error
    if not isinstance(document, dict):
        raise ExportFolderError(f"{path} holds {_shown(document)}; expected a JSON object")
    return document


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return result


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _shown(value: object) -> str:
    """A value for a message: escaped and short, since it may come from a hostile file."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


class _Section:
    """One JSON object of the manifest, whose fields are taken out with a check each."""

    def __init__(self, fields: Mapping[str, Any], prefix: str) -> None:
        self._fields = fields
        self._prefix = prefix
        self._taken: set[str] = set()

    def refuse(self, key: str, expected: str) -> ExportFolderError:
        found = _shown(self._fields[key]) if key in self._fields else "missing"
        return ExportFolderError(f"{MANIFEST_NAME}: field {self._prefix + key!r} is {found}; expected {expected}")

    def value(self, key: str) -> Any:
        """The raw value; None where the field is absent, which every caller that needs one refuses."""
        self._taken.add(key)
        return self._fields.get(key)

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.value(key)
        if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance
            raise self.refuse(key, f"an integer from {low} to {high}")
        return value

    def integer_of(self, key: str, allowed: Sequence[int]) -> int:
        value = self.value(key)
        if type(value) is not int or value not in allowed:
            raise self.refuse(key, " or ".join(map(str, allowed)))
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return None if self.value(key) is None else self.integer(key, low, high)

    def integers(self, key: str, low: int, high: int, max_length: int) -> tuple[int, ...]:
        value = self.value(key)
        good = isinstance(value, list | tuple) and len(value) <= max_length
        if not good or not all(type(item) is int and low <= item <= high for item in value):
            raise self.refuse(key, f"a list of at most {max_length} integers from {low} to {high}")
        if len(set(value)) != len(value):
            raise self.refuse(key, "a list without duplicates")
        return tuple(value)

    def number(self, key: str) -> float:
        value = self.value(key)
        if not _is_number(value):
            raise self.refuse(key, "a finite number")
        return float(value)

    def three_numbers(self, key: str) -> tuple[float, float, float]:
        value = self.value(key)
        if not (isinstance(value, list | tuple) and len(value) == 3 and all(_is_number(item) for item in value)):
            raise self.refuse(key, "a list of three finite numbers")
        return float(value[0]), float(value[1]), float(value[2])

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise self.refuse(key, f"a string of at most {MAX_TEXT} characters")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self.value(key) is None else self.text(key)

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        value = self.value(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(key, " or ".join(repr(name) for name in allowed))
        return value

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.value(key)
        if not isinstance(value, dict):
            raise self.refuse(key, "an object")
        return value

    def free_mapping(self, key: str) -> Mapping[str, Any]:
        """A section that is only reported, never acted on; it may be null or absent."""
        return {} if self.value(key) is None else self.mapping(key)

    def section(self, key: str) -> "_Section":
        return _Section(self.mapping(key), f"{self._prefix}{key}.")

    def optional_section(self, key: str) -> "_Section | None":
        return None if self.value(key) is None else self.section(key)

    def finish(self) -> None:
        """Say which fields were not read: a newer exporter may have meant something by them."""
        for key in self._fields.keys() - self._taken:
            name = _shown(self._prefix + key)
            logger.warning("%s: field %s is not known to this version and has no effect", MANIFEST_NAME, name)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _parse_manifest(folder: Path, document: Mapping[str, Any], *, files_are_known: bool) -> Manifest:
    top = _Section(document, "")
    top.choice("format", (FORMAT,))
    top.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    target = top.choice("target", tuple(_REQUIRED_FILES))
    image = _parse_image(top.optional_section("image"))
    model = _parse_model(top.section("model"), has_image=image is not None)
    plugin = top.optional_section("plugin")
    files: Mapping[str, FileEntry] = {}
    if files_are_known:
        files = _parse_files(top.section("files"), top.mapping("files"), target, has_image=image is not None)
    else:
        top.value("files")
    manifest = Manifest(
        folder=folder,
        target=target,
        model=model,
        moe=_parse_moe(top.section("moe"), model.num_hidden_layers),
        image=image,
        prompt=_parse_prompt(top.section("prompt"), has_image=image is not None),
        plugin_library=_plain_name(plugin, "library") if plugin else None,
        files=files,
        memory=top.free_mapping("memory"),
        verification=top.free_mapping("verification"),
        source=top.free_mapping("source"),
        versions=top.free_mapping("versions"),
        quantization=top.free_mapping("quantization"),
        kv_cache=_parse_kv_cache(top.optional_section("quantization")),
    )
    top.finish()
    return manifest


def _parse_model(section: _Section, *, has_image: bool) -> ModelSpec:
    vocab_size = section.integer("vocab_size", 1, MAX_VOCAB)
    last_id = vocab_size - 1
    num_attention_heads = section.integer("num_attention_heads", 1, MAX_DIMENSION)
    num_key_value_heads = section.integer("num_key_value_heads", 1, num_attention_heads)
    if num_attention_heads % num_key_value_heads:
        raise section.refuse("num_key_value_heads", f"a divisor of num_attention_heads, {num_attention_heads}")
    context_length = section.integer("context_length", 1, MAX_CONTEXT)
    eos_token_ids = section.integers("eos_token_ids", 0, last_id, MAX_EOS_TOKENS)
    model = ModelSpec(
        name=section.text("name"),
        architecture=section.text("architecture"),
        vocab_size=vocab_size,
        hidden_size=section.integer("hidden_size", 1, MAX_DIMENSION),
        num_hidden_layers=section.integer("num_hidden_layers", 1, MAX_LAYERS),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=section.integer("head_dim", 1, MAX_DIMENSION),
        context_length=context_length,
        eos_token_ids=eos_token_ids,
        bos_token_id=section.optional_integer("bos_token_id", 0, last_id),
        pad_token_id=section.optional_integer("pad_token_id", 0, last_id),
        image_token_id=section.optional_integer("image_token_id", 0, last_id),
        vision_start_token_id=section.optional_integer("vision_start_token_id", 0, last_id),
        vision_end_token_id=section.optional_integer("vision_end_token_id", 0, last_id),
        num_image_tokens=section.optional_integer("num_image_tokens", 1, context_length),
    )
    for key in ("image_token_id", "num_image_tokens"):
        if (getattr(model, key) is not None) != has_image:
            raise section.refuse(key, "an integer, as there is an image section" if has_image else "null without one")
    section.finish()
    return model


def _parse_moe(section: _Section, num_hidden_layers: int) -> MoeSpec:
    num_experts = section.integer("num_experts", 1, MAX_EXPERTS)
    shared_expert = section.choice("shared_expert", SHARED_EXPERTS)
    group_sizes = SHARED_GROUP_SIZES if shared_expert == GROUPED_SHARED_EXPERT else (0,)
    moe = MoeSpec(
        layers=section.integers("layers", 0, num_hidden_layers - 1, num_hidden_layers),
        num_experts=num_experts,
        top_k=section.integer("top_k", 1, num_experts),
        normalize_topk=section.flag("normalize_topk"),
        intermediate_size=section.integer("intermediate_size", 1, MAX_DIMENSION),
        packing=section.choice("packing", PACKINGS),
        layout_version=section.integer("layout_version", LAYOUT_VERSION, LAYOUT_VERSION),
        shared_expert=shared_expert,
        shared_group_size=section.integer_of("shared_group_size", group_sizes),
    )
    section.finish()
    return moe


def _parse_kv_cache(quantization: _Section | None) -> str:
    """The one field of the section that a runtime compares with its graph; the others are for people."""
    cache = quantization.optional_section("kv_cache") if quantization else None
    return KV_CACHES[0] if cache is None else cache.choice("format", KV_CACHES)


def _parse_image(section: _Section | None) -> ImageSpec | None:
    if section is None:
        return None
    image = ImageSpec(
        height=section.integer("height", 1, MAX_IMAGE_SIDE),
        width=section.integer("width", 1, MAX_IMAGE_SIDE),
        resample=section.choice("resample", ("bicubic",)),
        rescale_factor=section.number("rescale_factor"),
        mean=section.three_numbers("mean"),
        std=section.three_numbers("std"),
    )
    if image.rescale_factor <= 0:
        raise section.refuse("rescale_factor", "a number above 0")
    if min(image.std) <= 0:
        raise section.refuse("std", "three numbers above 0")
    section.finish()
    return image


def _parse_prompt(section: _Section, *, has_image: bool) -> PromptSpec:
    prompt = PromptSpec(
        user_prefix=section.text("user_prefix"),
        image=section.optional_text("image"),
        user_suffix=section.text("user_suffix"),
    )
    if has_image and (prompt.image is None or prompt.image.count(IMAGE_PADS) != 1):
        raise section.refuse("image", f"a string that holds {IMAGE_PADS} once")
    section.finish()
    return prompt


def _parse_files(
    section: _Section, names: Mapping[str, Any], target: str, *, has_image: bool
) -> Mapping[str, FileEntry]:
    if len(names) > MAX_FILES:
        raise ExportFolderError(
            f"{MANIFEST_NAME}: field 'files' lists {len(names)} files; expected at most {MAX_FILES}"
        )
    files = {}
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            raise ExportFolderError(
                f"{MANIFEST_NAME}: field 'files' lists {_shown(name)}; expected a plain file name of the folder itself"
            )
        entry = section.section(name)
        digest = entry.text("sha256")
        if not _SHA256.fullmatch(digest):
            raise entry.refuse("sha256", "64 lower-case hexadecimal digits")
        files[name] = FileEntry(bytes=entry.integer("bytes", 0, MAX_FILE_BYTES), sha256=digest)
        entry.finish()
    required = _REQUIRED_FILES[target] + (("vision.onnx",) if target == "onnxruntime" and has_image else ())
    for name in required:
        if name not in files:
            raise ExportFolderError(f"{MANIFEST_NAME}: field 'files' lacks {name!r}, which {target} needs")
    return files


def _plain_name(section: _Section, key: str) -> str:
    name = section.text(key)
    if not _PLAIN_NAME.fullmatch(name):
        raise section.refuse(key, "a plain file name")
    section.finish()
    return name
