"""The grid of a plain radiograph: a plane of its own, since it has no place in the patient.

World axes lie in the image: x to the right along a row, y down along a column,
z out of it with a nominal 1 mm, so that volume_ml means "mm2 times 1 mm / 1000".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medsiam.errors import GeometryRefused
from medsiam.reading.geometry import LARGEST_PIXEL_MM, SMALLEST_PIXEL_MM
from medsiam.reading.headers import Frame
from medsiam.volume import Grid

# A plane has no depth; one millimetre keeps mm2 readable in a volume.
NOMINAL_DEPTH_MM = 1.0

# Stands where nobody told the size of a pixel: lengths are then in pixels.
NOMINAL_PIXEL_MM = 1.0

UNKNOWN_SIZE = (
    "The size of a pixel is not known and 1 mm stands for it: "
    "lengths and volumes are in pixels, mm and ml are not to be trusted."
)
DETECTOR_PLANE = "Lengths are those in the detector plane, larger than in the body by the magnification."


def plane_grid(rows: int, columns: int, spacing_mm: tuple[float, float]) -> Grid:
    """A grid of one slice with spacings (down a column, along a row) in mm."""
    return Grid((1, rows, columns), _plane(spacing_mm))


def radiograph_grid(frame: Frame) -> tuple[Grid, dict[str, Any], tuple[str, ...]]:
    """The grid of a CR or DX image, what goes into its protocol, and what was assumed.

    Raises GeometryRefused where a spacing is told that cannot be true.
    """
    header = frame.header
    assert header.pixel is not None, "a radiograph without pixels"
    spacing = frame.spacing
    if spacing is None:
        unknown = (NOMINAL_PIXEL_MM, NOMINAL_PIXEL_MM)
        grid = plane_grid(header.pixel.rows, header.pixel.columns, unknown)
        return grid, {"pixel_size_known": False}, (UNKNOWN_SIZE,)
    if not SMALLEST_PIXEL_MM <= min(spacing) <= max(spacing) <= LARGEST_PIXEL_MM:
        raise GeometryRefused(
            f"a pixel spacing of {min(spacing):g} mm is no true one; export the original image"
        )
    grid = plane_grid(header.pixel.rows, header.pixel.columns, (spacing[0], spacing[1]))
    return grid, {"pixel_size_known": True}, () if frame.traits.get("is_calibrated") else (DETECTOR_PLANE,)


def _plane(spacing_mm: tuple[float, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2], matrix[3, 3] = (
        NOMINAL_DEPTH_MM,
        spacing_mm[0],
        spacing_mm[1],
        1.0,
    )
    return matrix
