"""Keeps the pictures that the app's tests drew in docs/screenshots, with few enough colors to be small.

Run by hand after a change of a screen: `.venv/bin/python -m android_demo.tools.screenshots`. Needs Pillow.
"""

from PIL import Image

from android_demo.tools.paths import ROOT, SCREENSHOTS

KEPT = ROOT / "docs" / "screenshots"
COLORS = 128
SCALE = 2  # drawn at two pixels for each of the page


def main() -> None:
    """Writes KEPT anew."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob("*.png"):
        old.unlink()
    for file in sorted(SCREENSHOTS.glob("*.png")):
        with Image.open(file) as drawn:
            picture = drawn.convert("RGB")
        size = (picture.width // SCALE, picture.height // SCALE)
        small = picture.resize(size, Image.Resampling.LANCZOS).quantize(COLORS, dither=Image.Dither.NONE)
        small.save(KEPT / file.name, optimize=True)


if __name__ == "__main__":
    main()
