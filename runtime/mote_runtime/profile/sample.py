"""The question that is measured unless another is given: a drawing and a sentence, the same on every machine."""

from PIL import Image, ImageDraw

from mote_runtime.preprocess import load_image
from mote_runtime.profile.settings import Settings

DEFAULT_PROMPT = "What is in the picture?"
DEFAULT_TEXT_PROMPT = "How many are there?"


def default_picture() -> Image.Image:
    """A drawing, RGB 320 x 240."""
    drawing = Image.new("RGB", (320, 240), "white")
    pen = ImageDraw.Draw(drawing)
    pen.ellipse((40, 30, 180, 200), fill="orange", outline="black", width=6)
    pen.rectangle((170, 90, 300, 220), fill="navy")
    return drawing


def read_picture(settings: Settings) -> Image.Image | None:
    """The picture that the settings name, if they ask for one; raises ImageError where it cannot be read."""
    if settings.image is None:
        return None
    return load_image(settings.image) if settings.image else default_picture()
