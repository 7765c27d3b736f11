"""Small pictures of a case, kept with it: the search report needs no scans.

A volume becomes one strip of axial tiles at fixed distances from the body's centre,
seen from the feet, so that tiles of two cases correspond by their number, or nearly:
the best match nearby is taken. A radiograph is one tile.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsiam.encoding.preparation import PreparationSettings, prepare
from medsiam.errors import IndexDamaged
from medsiam.volume import Volume

Tile = NDArray[np.uint8]

# 216 mm hold a large head; a tile of this size is legible at twice its size.
TILE_PX, PIXEL_MM = 144, 1.5
RADIOGRAPH_PX = 256
# 12 mm apart: the ventricles are met by three or four, and a strip weighs 25 kB.
STEP_PX = 8
# The head lies within 96 mm above and below its centre.
STEPS_EACH_WAY = 8
JPEG_QUALITY = 75

# Bodies differ in how much of the neck was scanned, which shifts their centre.
MOST_SHIFT_TILES = 3

# Skin and skull lie further out than this share of a tile.
INNER_FROM = 0.28

# A level farther from the centre than this is no picture of the whole.
FARTHEST_SHOWN = 5
# Darker than this is air.
AIR_GREY = 38

CROSS_PX = 7


def strip_of(volume: Volume) -> bytes:
    """The tiles of a volume side by side, as one grey JPEG."""
    return packed(tiles_of(volume))


def tiles_of(volume: Volume) -> list[Tile]:
    """Axial tiles from the feet up, or the one of a radiograph."""
    if volume.spatial_dims == 2:
        return [_grey(prepare(volume, PreparationSettings(RADIOGRAPH_PX)).values.numpy()[0])]
    canonical = _grey(prepare(volume, PreparationSettings(TILE_PX, PIXEL_MM)).values.numpy())
    return [canonical[k] for k in _levels()]


def tile_at(volume: Volume, place_mm: Sequence[float]) -> Tile:
    """The tile through a place (LPS mm), with a mark beside the place."""
    size, spacing = (RADIOGRAPH_PX, PIXEL_MM) if volume.spatial_dims == 2 else (TILE_PX, PIXEL_MM)
    prepared = prepare(volume, PreparationSettings(size, spacing))
    k, j, i = np.rint(prepared.grid.index(np.array([place_mm], dtype=np.float64))[0]).astype(int)
    tile = _grey(prepared.values.numpy()[int(np.clip(k, 0, prepared.grid.shape[0] - 1))]).copy()
    return _marked(tile, int(j), int(i))


def packed(tiles: Sequence[Tile]) -> bytes:
    """Tiles of one size as one strip."""
    buffer = io.BytesIO()
    Image.fromarray(np.hstack(tiles)).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def unpacked(strip: bytes) -> list[Tile]:
    """The square tiles of a strip, () where there is none.

    Raises IndexDamaged where the bytes are no strip.
    """
    if not strip:
        return []
    try:
        with Image.open(io.BytesIO(strip), formats=("JPEG",)) as image:
            whole = np.asarray(image.convert("L"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise IndexDamaged(
            "a picture in the index cannot be read; restore the index from a backup, or add its scan again"
        ) from error
    return [whole[:, n : n + whole.shape[0]] for n in range(0, whole.shape[1], whole.shape[0])]


def telling_tile(tiles: Sequence[Tile]) -> int:
    """Number of the tile to show of a whole scan: the largest section not far from the body's centre.

    Of a head that is the level of the ventricles, wherever the neck was cut off.
    """
    middle = len(tiles) // 2
    near = [n for n in range(len(tiles)) if abs(n - middle) <= FARTHEST_SHOWN]
    return max(near, key=lambda n: (int((tiles[n] > AIR_GREY).sum()), -abs(n - middle)), default=0)


def corresponding(tile: Tile, number: int, others: Sequence[Tile]) -> int:
    """Number of the other case's tile that shows most nearly the same level."""
    near = [n for n in range(len(others)) if abs(n - number) <= MOST_SHIFT_TILES]
    if not near:
        return 0
    return max(near, key=lambda n: (_correlation(tile, others[n]), -abs(n - number)))


def _levels() -> list[int]:
    middle = (TILE_PX - 1) / 2.0
    steps = range(-STEPS_EACH_WAY, STEPS_EACH_WAY + 1)
    return [round(middle + step * STEP_PX) for step in steps]


def _grey(values: NDArray[Any]) -> Tile:
    grey: Tile = np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
    return grey


def _marked(tile: Tile, row: int, column: int) -> Tile:
    """Four strokes that point at a place and leave it free."""
    for step in range(CROSS_PX, 2 * CROSS_PX):
        for r, c in ((row - step, column), (row + step, column), (row, column - step), (row, column + step)):
            if 0 <= r < tile.shape[0] and 0 <= c < tile.shape[1]:
                tile[r, c] = 255
    return tile


def _correlation(one: Tile, other: Tile) -> float:
    """Of what lies inside: every section of a head has the same outline."""
    if one.shape != other.shape:
        return -1.0
    inner = slice(round(INNER_FROM * len(one)), round((1.0 - INNER_FROM) * len(one)))
    a, b = (tile[inner, inner].astype(np.float64) for tile in (one, other))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0.0 else -1.0
