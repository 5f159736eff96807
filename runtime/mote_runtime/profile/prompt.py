"""Writes the prompt for the native runner, which has neither a tokenizer nor an image library (docs/profiling.md)."""

import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mote_runtime.arrays import FloatArray
from mote_runtime.manifest import Manifest
from mote_runtime.preprocess import preprocess_image
from mote_runtime.profile.sample import read_picture
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.strict import ProfileError
from mote_runtime.tokenizer import PromptTokenizer

MAGIC = b"MOTEPRM1"
NO_IMAGE_TOKEN = 0xFFFFFFFF


def prompt_inputs(settings: Settings, manifest: Manifest) -> tuple[list[int], FloatArray | None]:
    """The ids of the whole prompt, and the pixels float32 [1, 3, height, width] of its picture, None without one.

    Raises MoteError where the picture or the text cannot be read.
    """
    tokenizer = PromptTokenizer(manifest.path("tokenizer.json"), manifest.model, manifest.prompt)
    picture = read_picture(settings)
    ids = tokenizer.encode_prompt(settings.prompt, 0 if picture is None else 1)
    if picture is None or manifest.image is None:
        return ids, None
    return ids, preprocess_image(picture, manifest.image)[np.newaxis]


def write_prompt(
    path: Path, manifest: Manifest, ids: Sequence[int], pixels: FloatArray | None = None, *, ignore_eos: bool = True
) -> None:
    """Write a prompt's file, little endian, in one rename.

    The header is the magic and uint32 num_ids, num_eos, num_images, channels, height, width, image_token_id (0xFFFFFFFF: none),
    context_length; then int64 ids, int64 end-of-sequence ids (none with `ignore_eos`), float32 pixels.

    Args:
        path: the file; its folder must exist.
        manifest: of the model that will answer.
        ids: the whole prompt, with n * num_image_tokens image tokens for n images.
        pixels: float32 [n, 3, height, width], or None.
        ignore_eos: let every answer have its full length.

    Raises:
        ProfileError: ids or pixels do not fit the model, or the file cannot be written.
    """
    model = manifest.model
    images = np.zeros((0, 3, 0, 0), np.float32) if pixels is None else np.ascontiguousarray(pixels, "<f4")
    _check(manifest, ids, images)
    eos = () if ignore_eos else model.eos_token_ids
    image_token = NO_IMAGE_TOKEN if model.image_token_id is None else model.image_token_id
    header = struct.pack("<8s8I", MAGIC, len(ids), len(eos), *images.shape, image_token, model.context_length)
    content = header + np.array([*ids, *eos], "<i8").tobytes() + images.tobytes()
    try:
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=f".{path.name}-", delete=False) as stream:
            try:
                stream.write(content)
                stream.close()
                os.replace(stream.name, path)  # noqa: PTH105 - the same for names and paths
            except BaseException:
                Path(stream.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ProfileError(f"{path} cannot be written: {error.strerror or error}") from error


def _check(manifest: Manifest, ids: Sequence[int], images: FloatArray) -> None:
    model, image = manifest.model, manifest.image
    if not 1 <= len(ids) <= model.context_length:
        raise ProfileError(
            f"the prompt has {len(ids)} tokens; expected 1 to {model.context_length}, the model's context"
        )
    if bad := [token_id for token_id in ids if not 0 <= token_id < model.vocab_size]:
        raise ProfileError(f"token id {bad[0]} is not in the vocabulary of {model.vocab_size}")
    expected = (3, image.height, image.width) if image is not None else (3, 0, 0)
    if images.ndim != 4 or (len(images) and images.shape[1:] != expected):
        raise ProfileError(f"pixels have shape {list(images.shape)}; expected [n, {', '.join(map(str, expected))}]")
    found = 0 if model.image_token_id is None else list(ids).count(model.image_token_id)
    if found != len(images) * (model.num_image_tokens or 0):
        raise ProfileError(
            f"the prompt has {found} image tokens for {len(images)} pictures of {model.num_image_tokens or 0} tokens each"
        )
