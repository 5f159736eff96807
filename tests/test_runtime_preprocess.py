"""Pictures to pixel_values: equal to transformers' processor, and one sentence for what cannot be read."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from mote_runtime.errors import ImageError
from mote_runtime.manifest import ImageSpec
from mote_runtime.preprocess import MAX_IMAGE_PIXELS, load_image, preprocess_image

SPEC = ImageSpec(
    height=24, width=40, resample="bicubic", rescale_factor=1 / 255, mean=(0.48, 0.45, 0.4), std=(0.26, 0.5, 0.27)
)


def picture(mode: str, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(40, 24), (3, 200), (301, 7), (1, 1), (97, 89)])
def test_equals_transformers_to_the_last_bit(mode: str, size: tuple[int, int]) -> None:
    siglip = pytest.importorskip("transformers.models.siglip.image_processing_siglip")
    processor = siglip.SiglipImageProcessor(
        size={"height": SPEC.height, "width": SPEC.width},
        resample=Image.Resampling.BICUBIC,
        rescale_factor=SPEC.rescale_factor,
        image_mean=list(SPEC.mean),
        image_std=list(SPEC.std),
        do_convert_rgb=True,
    )
    image = picture(mode, *size)
    found = preprocess_image(image, SPEC)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    # Pillow 13 reduces the height of a tall picture first; with its width reduced already, no version has a choice.
    for source in (image.convert("RGB").resize((SPEC.width, size[1]), Image.Resampling.BICUBIC), image):
        expected = processor(source, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
        if source is not image or size != (3, 200) or int(PIL.__version__.split(".")[0]) < 13:
            assert np.array_equal(found, expected)


def test_file_bytes_image_and_array_give_the_same(tmp_path: Path) -> None:
    image = picture("RGB", 31, 17)
    path = tmp_path / "picture.png"
    image.save(path)
    expected = preprocess_image(image, SPEC)
    for source in (path, str(path), path.read_bytes(), np.asarray(image)):
        assert np.array_equal(preprocess_image(source, SPEC), expected)


def test_a_photograph_is_turned_upright() -> None:
    image = picture("RGB", 8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    assert load_image(encoded(image, "PNG", exif=exif)).size == (4, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_cut_image_gives_a_sentence(kind: str) -> None:
    content = encoded(picture("RGB", 64, 64), kind)
    for length in (len(content) // 2, 40, 12, 2, 0):
        with pytest.raises(ImageError) as caught:
            load_image(content[:length])
        assert "\n" not in str(caught.value)


def test_flipped_bytes_give_an_image_or_a_sentence() -> None:
    choices = np.random.default_rng(3)
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        content = np.frombuffer(encoded(picture("RGB", 16, 16), kind), np.uint8)
        for _ in range(100):
            damaged = content.copy()
            damaged[choices.integers(0, len(damaged), 4)] = choices.integers(0, 256, 4)
            try:
                load_image(damaged.tobytes())
            except ImageError:
                continue


@pytest.mark.parametrize("size", [(9000, 9000), (12_000, 12_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="pixels"):
        load_image(png_header(*size))


def test_what_is_no_image_gives_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("this is text")
    with pytest.raises(ImageError, match=r"notes\.png is no image that can be read; expected one of PNG, JPEG"):
        load_image(path)
    with pytest.raises(ImageError, match="does not exist"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is not a file"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="expected one of"):  # a PostScript file would start an external program
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_of_another_kind_gives_a_sentence(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"must be uint8 of shape \[height, width, 3\]"):
        load_image(array)
