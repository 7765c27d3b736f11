"""A tilted stack set upright: each slice shifted in its own plane, nothing else."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from medsiam.errors import GeometryRefused
from medsiam.volume import Grid

Array = NDArray[np.float32]

# Setting a stack upright widens it; beyond this the widened grid is mostly empty.
MOST_WIDENING = 3.0


def upright(array: Array, grid: Grid, drift_mm: tuple[float, float]) -> tuple[Array, Grid]:
    """The values on an orthogonal grid that holds every slice whole, and that grid.

    array     (K, J, I) of the sheared stack
    grid      orthogonal, true for slice 0
    drift_mm  in-plane step (down a column, along a row) from slice to slice

    Linear interpolation in the plane; what no slice covers gets the lowest
    value. Raises GeometryRefused where the grid would grow more than
    MOST_WIDENING times.
    """
    drift = np.array(drift_mm) / grid.spacing_mm[1:]
    ends = np.outer([0, len(array) - 1], drift)
    # The slack keeps a drift of whole pixels from adding an empty row.
    low = np.floor(ends.min(axis=0) + 1e-6).astype(int)
    high = np.ceil(ends.max(axis=0) - 1e-6).astype(int)
    shape = (len(array), array.shape[1] + int(high[0] - low[0]), array.shape[2] + int(high[1] - low[1]))
    if math.prod(shape) > MOST_WIDENING * array.size:
        raise GeometryRefused(
            f"set upright, the tilted stack would take {math.prod(shape) / array.size:.1f} times its size; "
            "give a reconstruction whose slices lie above each other"
        )
    result = np.full(shape, array.min(), dtype=np.float32)
    for k, plane in enumerate(array):
        shifted, start = _shifted(_shifted_down(plane, k * drift[0] - low[0]), k * drift[1] - low[1])
        top = _first_row(k * drift[0] - low[0])
        result[k, top : top + shifted.shape[0], start : start + shifted.shape[1]] = shifted
    matrix = grid.world_from_index.copy()
    matrix[:3, 3] += matrix[:3, 1] * low[0] + matrix[:3, 2] * low[1]
    return result, Grid(shape, matrix)


def _first_row(shift: float) -> int:
    return math.ceil(shift - 1e-6)


def _shifted_down(plane: Array, shift: float) -> Array:
    return _shifted(plane.T, shift)[0].T


def _shifted(plane: Array, shift: float) -> tuple[Array, int]:
    """Values at whole columns after a shift to the right, and the first such column."""
    start = _first_row(shift)
    part = start - shift
    if abs(part) < 1e-6:
        return plane, start
    return np.asarray((1 - part) * plane[:, :-1] + part * plane[:, 1:], dtype=np.float32), start
