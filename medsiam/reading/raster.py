"""PNG, TIFF and JPEG radiographs: grey values of a picture, with no word on millimetres."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from medsiam.errors import InputRefused, ResourceExhausted, Unreadable
from medsiam.reading.archive import Opener, Source
from medsiam.reading.dicom import check_varied, digest
from medsiam.reading.entry import SeriesEntry
from medsiam.reading.guard import MOST_FRAME_PIXELS
from medsiam.reading.radiograph import NOMINAL_PIXEL_MM, UNKNOWN_SIZE, plane_grid
from medsiam.volume import Acquisition, Volume

FORMATS = ("PNG", "TIFF", "JPEG")

# Smaller pictures are icons and previews.
SMALLEST_SIDE = 16

_GREY_MODES = {"L", "I;16", "I;16L", "I;16B", "I;16N", "I", "F", "LA"}
_COLOUR_MODES = {"RGB", "RGBA", "P"}
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)

_OPEN_ERRORS = (
    UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError,
    EOFError, IndexError, KeyError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class RasterContent:
    """What reading needs: the file."""

    source: Source


def raster_entry(source: Source) -> SeriesEntry:
    """The entry of a picture, from its header alone; one that cannot be used carries its refusal."""
    refusal: InputRefused | None = None
    rows = columns = 0
    try:
        with Opener() as opener, opener.open(source) as file:
            rows, columns = _upright_size(_picture(file))
    except InputRefused as error:
        refusal = error
    return SeriesEntry(
        name=source.base_name,
        paths=(source.path,),
        acquisition=Acquisition(assumptions=(UNKNOWN_SIZE,), protocol={"pixel_size_known": False}),
        shape_kji=(1, rows, columns),
        spacing_kji_mm=(1.0, NOMINAL_PIXEL_MM, NOMINAL_PIXEL_MM),
        kind="raster",
        refusal=refusal,
        content=RasterContent(source),
    )


def read_raster(entry: SeriesEntry) -> Volume:
    """The radiograph of a picture as a grid of one slice, 1 mm standing for a pixel.

    Raises Unreadable for true colour, several pages or a damaged file.
    """
    content: RasterContent = entry.content
    try:
        with Opener() as opener, opener.open(content.source) as file:
            grey, notes = _grey(_picture(file))
    except MemoryError as error:
        raise ResourceExhausted("no memory for the picture; free some, or use a larger machine") from error
    values = np.ascontiguousarray(grey, dtype=np.float32)[np.newaxis]
    check_varied(values)
    grid = plane_grid(values.shape[1], values.shape[2], (NOMINAL_PIXEL_MM, NOMINAL_PIXEL_MM))
    acquisition = replace(
        entry.acquisition,
        sha256=digest(values, grid),
        assumptions=(*entry.acquisition.assumptions, *notes),
    )
    return Volume(values, grid, acquisition)


def _picture(file: Any) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file, formats=FORMATS)
        pages = getattr(picture, "n_frames", 1)  # which reads on, to the last page
    except _OPEN_ERRORS as error:
        raise Unreadable(
            f"no PNG, TIFF or JPEG that can be read ({type(error).__name__}); save it again"
        ) from error
    columns, rows = picture.size
    if rows * columns > MOST_FRAME_PIXELS or min(rows, columns) < SMALLEST_SIDE:
        raise Unreadable(f"a picture of {rows} x {columns} pixels is no radiograph; give the original")
    if pages != 1:
        raise Unreadable(f"a file of {pages} pages; give one page as a file of its own")
    if picture.mode not in _GREY_MODES | _COLOUR_MODES:
        raise Unreadable(f"a picture of mode {picture.mode!r} holds no grey values; give the grey original")
    return picture


def _grey(picture: Image.Image) -> tuple[NDArray[Any], tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    try:
        if _orientation(picture) != 1:
            notes = ("The picture was turned upright as its orientation tag asks.",)
        white_is_zero = (
            picture.format == "TIFF" and picture.mode != "L" and _photometric(picture) == _WHITE_IS_ZERO
        )
        upright = ImageOps.exif_transpose(picture)
        values = _one_channel(upright)
    except _OPEN_ERRORS as error:
        raise Unreadable(f"the picture is damaged ({type(error).__name__}); save it again") from error
    if not np.isfinite(values).all():
        raise Unreadable("the picture holds values that are not finite numbers; save it again")
    if white_is_zero:
        top = 65535 if values.dtype.itemsize == 2 else values.max()
        values, notes = top - values, (*notes, "Low values were meant to be white; values were turned over.")
    return values, notes


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """Rows and columns after the picture was turned as its orientation tag asks."""
    columns, rows = picture.size
    try:
        return (columns, rows) if _orientation(picture) in _LYING else (rows, columns)
    except _OPEN_ERRORS as error:
        raise Unreadable(f"the picture is damaged ({type(error).__name__}); save it again") from error


def _orientation(picture: Image.Image) -> int:
    # Asking a PNG for a tag that it lacks would decode the whole picture.
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    return int(picture.getexif().get(_ORIENTATION, 1))


def _photometric(picture: Image.Image) -> int | None:
    found = getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC)
    return int(found) if found is not None else None


def _one_channel(picture: Image.Image) -> NDArray[Any]:
    """The grey values (rows, columns). Raises Unreadable where channels differ."""
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    values = np.asarray(picture)
    if values.ndim == 2:
        return values
    colours = values[..., : 1 if picture.mode == "LA" else 3]
    if picture.mode in ("RGBA", "LA") and (values[..., -1] != 255).any():
        raise Unreadable("the picture is partly transparent; give the radiograph without it")
    if (colours != colours[..., :1]).any():
        raise Unreadable("the picture is in colour, which holds no measured values; give the grey original")
    return np.asarray(colours[..., 0])
