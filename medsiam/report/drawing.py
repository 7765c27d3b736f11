"""Marks on pictures: outlines, translucent change, side letters, scale bars, encoding."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Array = NDArray[Any]
Colour = tuple[int, int, int]

# Okabe and Ito's orange and sky blue: told apart by readers with any colour vision,
# and never by colour alone, for resolving outlines are dashed.
APPEARING: Colour = (0xE6, 0x9F, 0x00)
RESOLVING: Colour = (0x56, 0xB4, 0xE9)
PAPER: Colour = (235, 238, 242)
# Blue is taken from grey to make it amber: enough to tell squares apart, too little to hide an edge.
AMBER_BLUE_SHARE = 0.72

# Change weaker than this is haze; from here to 1 the tint grows in few steps, which compress well.
FAINTEST_CHANGE = 0.15
TINT_STEPS = 6
STRONGEST_TINT = 0.45
DASH_PX = 7.0
BAR_LENGTHS_MM = (1, 2, 5, 10, 20, 50, 100, 200)
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Picture:
    """An encoded picture with the words that stand for it.

    data        bytes of the file
    media_type  "image/jpeg" or "image/png"
    alt         what it shows, for those who do not see it
    """

    data: bytes
    media_type: str
    width: int
    height: int
    alt: str

    @property
    def data_url(self) -> str:
        """The picture as a data: URL."""
        return data_url(self.data, self.media_type)


def data_url(data: bytes, media_type: str) -> str:
    """Bytes as a data: URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def as_picture(image: Image.Image, alt: str) -> Picture:
    """An image as JPEG: grey where it has no colour, and without lost colour where it has."""
    return Picture(encode_jpeg(image), "image/jpeg", image.width, image.height, alt)


def encode_jpeg(image: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    """The bytes of an image as JPEG, with full colour resolution for thin outlines."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def encode_png(image: Image.Image) -> bytes:
    """The bytes of an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def enlarged(values: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Grey values as an image of a size (width, height)."""
    return Image.fromarray(np.ascontiguousarray(values)).resize(size, Image.Resampling.BICUBIC)


def amber(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey values as faintly amber RGB."""
    coloured: NDArray[np.uint8] = _ambers()[grey]
    return coloured


@cache
def _ambers() -> NDArray[np.uint8]:
    """The RGB (256, 3) of each grey value."""
    share = np.array([1.0, 0.5 + AMBER_BLUE_SHARE / 2, AMBER_BLUE_SHARE])
    return np.rint(np.arange(256)[:, None] * share).astype(np.uint8)


def hatched(grey: NDArray[np.uint8], outside: Array) -> NDArray[np.uint8]:
    """Grey values with a hatch where the scan did not reach, so that it is not taken for air."""
    rows, columns = np.indices(grey.shape)
    hatch = np.where((rows + columns) % 8 < 2, 62, 20).astype(np.uint8)
    return np.where(outside, hatch, grey)


def tinted(image: Image.Image, change: Array) -> Image.Image:
    """The image in colour with change (-1..1, any size) laid over it."""
    overlay = tint_image(change).resize(image.size, Image.Resampling.BILINEAR)
    coloured = image.convert("RGB")
    coloured.paste(overlay, mask=overlay.getchannel("A"))
    return coloured


def tint_image(change: Array) -> Image.Image:
    """Change (-1..1) as a translucent RGBA image of the same size."""
    strength = (np.abs(np.nan_to_num(change)) - FAINTEST_CHANGE) / (1 - FAINTEST_CHANGE)
    steps = np.ceil(np.clip(strength, 0, 1) * TINT_STEPS) / TINT_STEPS
    pixels = np.zeros((*change.shape, 4), np.uint8)
    # Colour also beside the visible change, or smoothing would drag it towards black.
    pixels[..., :3] = np.where(np.nan_to_num(change)[..., None] < 0, RESOLVING, APPEARING)
    pixels[..., 3] = np.rint(steps * STRONGEST_TINT * 255)
    return Image.fromarray(pixels)


def outline(mask: Array, size: tuple[int, int], *, dashed: bool, width: int = 2) -> NDArray[np.bool_]:
    """Where the outline of a mask runs on a picture of a size (width, height).

    The line lies just outside the mask, so that it hides nothing of it.
    """
    large = Image.fromarray((mask * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    filled = np.asarray(large) > 100
    ring = ndimage.binary_dilation(filled, iterations=1 + width) & ~ndimage.binary_dilation(filled)
    line: NDArray[np.bool_] = ring & _dashes(filled) if dashed else ring
    return line


def _dashes(filled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A pattern of dashes around each part of a mask, of about equal length."""
    parts, count = ndimage.label(filled)
    pattern = np.zeros(filled.shape, bool)
    if count == 0:
        return pattern
    nearest = ndimage.distance_transform_edt(parts == 0, return_distances=False, return_indices=True)
    owner = parts[tuple(nearest)]
    rows, columns = np.indices(filled.shape)
    for part, centre in enumerate(ndimage.center_of_mass(filled, parts, range(1, count + 1)), start=1):
        around = 2 * np.pi * np.sqrt((parts == part).sum() / np.pi)
        dashes = max(4, round(float(around) / (2 * DASH_PX)))
        angle = np.arctan2(rows - centre[0], columns - centre[1]) / (2 * np.pi)
        pattern |= (owner == part) & ((angle * dashes) % 1 < 0.6)
    return pattern


def draw_outlines(image: Image.Image, appearing: Array, resolving: Array, *, width: int = 2) -> Image.Image:
    """The image with solid orange outlines for appearing and dashed blue ones for resolving."""
    pixels = np.array(image)
    for mask, colour, dashed in ((appearing, APPEARING, False), (resolving, RESOLVING, True)):
        if mask.any():
            line = outline(mask, image.size, dashed=dashed, width=width)
            pixels[line] = colour if pixels.shape[-1] == 3 else (*colour, 255)
    return Image.fromarray(pixels)


@cache
def font(size: int) -> Any:
    """Pillow's own typeface, the same on every machine."""
    return ImageFont.load_default(size=size)


def write(
    image: Image.Image, at: tuple[float, float], text: str, *, size: int = 15, anchor: str = "la"
) -> None:
    """Writes text with a dark halo, legible on white and on black."""
    ink: Any = PAPER if image.mode == "RGB" else 235
    draw = ImageDraw.Draw(image)
    draw.text(at, text, fill=ink, font=font(size), anchor=anchor, stroke_width=2, stroke_fill=0)


def write_edges(image: Image.Image, edges: tuple[str, str, str, str], *, size: int = 15) -> None:
    """Writes the patient's sides at the edges (left, right, top, bottom)."""
    across, down = image.width, image.height
    left, right, top, bottom = edges
    write(image, (5, down / 2), left, size=size, anchor="lm")
    write(image, (across - 5, down / 2), right, size=size, anchor="rm")
    write(image, (across / 2, 4), top, size=size, anchor="mt")
    write(image, (across / 2, down - 4), bottom, size=size, anchor="mb")


def bar_length_mm(width_mm: float) -> int:
    """The length of a scale bar that fits a picture of a width."""
    fitting = [length for length in BAR_LENGTHS_MM if length <= 0.3 * width_mm]
    return fitting[-1] if fitting else BAR_LENGTHS_MM[0]


def write_scale(image: Image.Image, px_per_mm: float, *, unit: str = "mm", size: int = 13) -> None:
    """Draws a scale bar with its length at the lower left."""
    length_mm = bar_length_mm(image.width / px_per_mm)
    ink: Any = PAPER if image.mode == "RGB" else 235
    left, y = 10.0, image.height - 11.0
    right = left + length_mm * px_per_mm
    draw = ImageDraw.Draw(image)
    draw.line((left - 1, y, right + 1, y), fill=0, width=5)
    draw.line((left, y, right, y), fill=ink, width=2)
    write(image, (left, y - 6), f"{length_mm} {unit}", size=size, anchor="lb")


def mark_box(image: Image.Image, box: tuple[float, float, float, float]) -> None:
    """Draws the frame of a part (left, top, right, bottom) that another picture enlarges."""
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = box
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=0, width=4)
    draw.rectangle((left, top, right, bottom), outline=PAPER if image.mode == "RGB" else 235, width=2)
