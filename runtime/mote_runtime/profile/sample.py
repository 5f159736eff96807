"""The question that is measured unless another is given: a drawing and a sentence, the same on every machine."""

from PIL import Image, ImageDraw

DEFAULT_PROMPT = "What is in the picture?"
DEFAULT_TEXT_PROMPT = "How many are there?"


def default_picture() -> Image.Image:
    """A drawing, RGB 320 x 240."""
    drawing = Image.new("RGB", (320, 240), "white")
    pen = ImageDraw.Draw(drawing)
    pen.ellipse((40, 30, 180, 200), fill="orange", outline="black", width=6)
    pen.rectangle((170, 90, 300, 220), fill="navy")
    return drawing
