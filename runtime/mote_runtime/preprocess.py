"""Turns a picture into `pixel_values`, as transformers' SiglipImageProcessor does (the slow one, to the last bit), and as
onnxruntime-genai's image processor does, with whatever version of Pillow."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mote_runtime.arrays import FloatArray
from mote_runtime.errors import ImageError
from mote_runtime.manifest import ImageSpec

ImageSource: TypeAlias = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]

# Formats whose decoders are widely used; Pillow has others which start external programs (EPS runs Ghostscript).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# 8192 x 8192: more than any phone camera delivers, and 192 MiB once decoded.
MAX_IMAGE_PIXELS = 1 << 26

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC}


def load_image(source: ImageSource) -> Image.Image:
    """A decoded RGB picture from a file, the bytes of a file, a PIL image or a uint8 array [height, width, 3].

    Files and bytes are turned upright by their EXIF orientation, as transformers' `load_image` does; pictures
    already in memory are taken as they are. Raises ImageError with one sentence where it cannot be read.
    """
    if isinstance(source, Image.Image):
        return _decode("the image", lambda: source, upright=False)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise ImageError(
                f"an image array must be uint8 of shape [height, width, 3], not {source.dtype} {list(source.shape)}"
            )
        return Image.fromarray(source)
    if isinstance(source, bytes):
        return _decode("the image", lambda: Image.open(io.BytesIO(source), formats=IMAGE_FORMATS), upright=True)
    path = Path(source)
    if not path.is_file():  # also keeps a pipe or a device from being read without end
        raise ImageError(f"image {path} {'is not a file' if path.exists() else 'does not exist'}")
    return _decode(f"image {path}", lambda: Image.open(path, formats=IMAGE_FORMATS), upright=True)


def _decode(name: str, open_image: Callable[[], Image.Image], *, upright: bool) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning about size comes before our own refusal
            image = open_image()
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS or not width * height:
                raise ImageError(f"{name} is {width} x {height} pixels; expected 1 to {MAX_IMAGE_PIXELS} pixels in all")
            image.load()
            return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no image that can be read; expected one of {', '.join(IMAGE_FORMATS)}") from error
    except Exception as error:  # a decoder fed with hostile bytes may raise anything
        raise ImageError(f"{name} cannot be decoded, it may be cut short: {error}") from error


def preprocess_image(source: ImageSource, spec: ImageSpec) -> FloatArray:
    """`pixel_values` of one picture: float32 [3, height, width], C-contiguous.

    Resized to exactly `spec.height` x `spec.width` without keeping the aspect ratio, times `rescale_factor` in
    float64, rounded to float32, then `(value - mean) / std` in float32. Raises ImageError.
    """
    image = _resize(load_image(source), spec)
    rescaled = (np.asarray(image).astype(np.float64) * spec.rescale_factor).astype(np.float32)
    normalized = (rescaled - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1))


def _resize(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The width first, rounded to bytes, then the height.

    Two calls, as Pillow 13 chooses the order itself: of a tall picture it reduces the height first, which moves bytes by
    up to 20. Earlier versions, with which models were trained, and other clients' copies of the algorithm never do.
    """
    resample = _RESAMPLING[spec.resample]
    return image.resize((spec.width, image.height), resample).resize((spec.width, spec.height), resample)
