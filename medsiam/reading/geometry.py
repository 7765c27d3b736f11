"""Positions and orientations of slices to one grid, or the reason why there is none.

Order and spacing come from ImagePositionPatient and ImageOrientationPatient
alone; slice numbers, thickness and file names are never asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsiam.errors import GeometryRefused
from medsiam.reading.headers import Frame
from medsiam.volume import ORTHOGONALITY_TOLERANCE, Grid, Matrix

# With two slices nobody can tell whether one between them is missing.
FEWEST_SLICES = 3

# Cosines are written with four digits or more. At 1e-3 a pixel 125 mm from the
# middle moves by .06 mm when the axes are set upright; more is no rounding.
COSINE_TOLERANCE = 1e-3

# Slices of one stack may differ in orientation by rounding only: .06 mm at 125 mm.
ORIENTATION_TOLERANCE = 5e-4

# Pixel spacing may differ between slices by rounding only: .01 mm over 100 mm.
SPACING_TOLERANCE = 1e-4

# Closer than this, two slices are one place twice.
SAME_PLACE_MM = 0.01

# How far a slice may lie from the even ladder of all slices, along the normal:
# 2 % of the spacing, at least what positions with one decimal cause, at most
# what still keeps every voxel within .15 mm of its true place.
UNEVEN_SHARE = 0.02
UNEVEN_LEAST_MM = 0.05
UNEVEN_MOST_MM = 0.1

# A gap this many times the smallest one has room for a slice that is not there.
GAP_RATIO = 1.5

# Sideways drift over the whole stack, or scatter of one slice, that rounding explains.
# Drift is shared out to both ends, so no voxel moves by more than half of it.
DRIFT_TOLERANCE_MM = 0.1

# Gantries tilt by 30 degrees at most; slices sheared by more are no tilted gantry.
STEEPEST_SHEAR_DEG = 45.0

# Gantry tilt that the header tells and the orientation must show, within rounding.
TILT_TOLERANCE_DEG = 1.5

SMALLEST_PIXEL_MM, LARGEST_PIXEL_MM = 0.005, 100.0


@dataclass(frozen=True, eq=False)
class Stack:
    """An even stack of slices.

    frames      in order along the normal (row direction x column direction)
    grid        orthogonal; where drift_mm is not 0 only after the slices were shifted
    drift_mm    sideways step (down a column, along a row) from slice to slice of
                a tilted gantry, (0, 0) where there is none
    notes       what was assumed, each a plain sentence
    """

    frames: tuple[Frame, ...]
    grid: Grid
    drift_mm: tuple[float, float] = (0.0, 0.0)
    notes: tuple[str, ...] = ()


def stack_of(frames: Sequence[Frame]) -> Stack:
    """The frames as one even stack.

    Raises GeometryRefused where positions are missing, doubled, uneven or of
    several orientations, or where fewer than FEWEST_SLICES are there.
    """
    positions, axes, spacing = _measured(frames)
    order = np.argsort(positions @ axes[2], kind="stable")
    ordered = tuple(frames[n] for n in order)
    along = (positions @ axes[2])[order]
    _check_doubles(ordered, along)
    _check_count(ordered)
    _check_even(ordered, along)
    _check_order(ordered)
    _check_tilt_is_shown(ordered, axes[2])
    return _laid_out(ordered, positions[order], axes, spacing)


def orthonormal(first: NDArray[np.float64], second: NDArray[np.float64]) -> Matrix:
    """Rows, columns and normal (3, 3) as unit vectors at right angles, nearest to the given two.

    Raises GeometryRefused where the two are no unit vectors at right angles
    within COSINE_TOLERANCE.
    """
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm([first, second], axis=1)
    if np.abs(lengths - 1).max() > COSINE_TOLERANCE or abs(first @ second) > COSINE_TOLERANCE:
        raise GeometryRefused(
            f"the image orientation is not two unit vectors at right angles "
            f"(lengths {lengths[0]:.4f} and {lengths[1]:.4f}, cosine {first @ second:.4f}); export the "
            "series again"
        )
    plus, minus = first + second, first - second
    plus, minus = plus / np.linalg.norm(plus), minus / np.linalg.norm(minus)
    rows, columns = (plus + minus) / np.sqrt(2), (plus - minus) / np.sqrt(2)
    return np.array([rows, columns, np.cross(rows, columns)])


def place_of(frame: Frame, total: int) -> str:
    """Which slice is meant, in words that hold no file name."""
    number = frame.header.instance_number
    if frame.header.pixel is not None and frame.header.pixel.frames > 1:
        return f"frame {frame.number + 1} of {frame.header.pixel.frames}"
    return f"instance {number}" if number is not None else f"one of {total} slices"


def _measured(frames: Sequence[Frame]) -> tuple[Matrix, Matrix, NDArray[np.float64]]:
    """Positions (n, 3), axes (3, 3) as rows, columns, normal, and pixel spacing (2,)."""
    for frame in frames:
        missing = [
            name
            for name, value in (
                ("ImagePositionPatient", frame.position),
                ("ImageOrientationPatient", frame.orientation),
                ("PixelSpacing", frame.spacing),
            )
            if value is None
        ]
        if missing:
            raise GeometryRefused(
                f"{place_of(frame, len(frames))} does not tell {' and '.join(missing)}, "
                "so its place in the patient is unknown; export the original series"
            )
    return (
        np.array([frame.position for frame in frames], dtype=np.float64),
        _axes(np.array([frame.orientation for frame in frames], dtype=np.float64)),
        _pixel_spacing(np.array([frame.spacing for frame in frames], dtype=np.float64)),
    )


def _axes(orientations: NDArray[np.float64]) -> Matrix:
    middle = np.median(orientations, axis=0)
    away = np.abs(orientations - middle).max(axis=1)
    if away.max() > ORIENTATION_TOLERANCE:
        differing = int((away > ORIENTATION_TOLERANCE).sum())
        raise GeometryRefused(
            f"the slices have mixed orientations: {max(differing, 1)} of {len(orientations)} differ from "
            "the others "
            f"by up to {away.max():.4f} in a direction cosine; give a series with one orientation"
        )
    mean = orientations.mean(axis=0)
    return orthonormal(mean[:3], mean[3:])


def _pixel_spacing(spacings: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = spacings.min(axis=0), spacings.max(axis=0)
    if low.min() < SMALLEST_PIXEL_MM or high.max() > LARGEST_PIXEL_MM:
        raise GeometryRefused(
            f"a pixel spacing of {low.min():g} mm or {high.max():g} mm is no true one; export the "
            "original series"
        )
    if (high / low).max() - 1 > SPACING_TOLERANCE:
        raise GeometryRefused(
            f"the slices have several pixel spacings, {low.min():g} to {high.max():g} mm; give them as "
            "separate series"
        )
    return np.asarray(spacings.mean(axis=0), dtype=np.float64)


def _check_doubles(frames: Sequence[Frame], along: NDArray[np.float64]) -> None:
    doubled = np.flatnonzero(np.diff(along) < SAME_PLACE_MM)
    if doubled.size:
        where = place_of(frames[doubled[0] + 1], len(frames))
        raise DoubledSlices(
            f"{doubled.size} of {len(frames)} slices lie where another one lies already (first: {where}): "
            "duplicates, or several scans under one series UID that no tag tells apart; give one stack only"
        )


class DoubledSlices(GeometryRefused):
    """Several slices lie in one place, which splitting by a tag may explain."""


def _check_count(frames: Sequence[Frame]) -> None:
    if len(frames) < FEWEST_SLICES:
        raise GeometryRefused(
            f"a stack of {len(frames)} slice{'s' * (len(frames) > 1)} is no volume, {FEWEST_SLICES} are "
            "needed "
            "to see that none is missing; give the whole series"
        )


def _check_even(frames: Sequence[Frame], along: NDArray[np.float64]) -> None:
    gaps = np.diff(along)
    smallest = float(gaps.min())
    ratios = gaps / smallest
    # The steps an even ladder would have, were slices missing.
    steps = np.round(ratios)
    wide = np.flatnonzero(ratios > GAP_RATIO)
    if wide.size and np.abs(ratios - steps).max() < 0.2:
        raise GeometryRefused(
            f"{int((steps - 1).sum())} slices are missing: the first gap of {gaps[wide[0]]:.2f} mm "
            "follows slice "
            f"{wide[0] + 1} of {len(frames)} where {smallest:.2f} mm is the spacing; export the whole series"
        )
    count = np.arange(len(along))
    even = np.polyval(np.polyfit(count, along, 1), count)
    off = np.abs(along - even)
    tolerance = float(np.clip(UNEVEN_SHARE * np.median(gaps), UNEVEN_LEAST_MM, UNEVEN_MOST_MM))
    if off.max() > tolerance or wide.size:
        raise GeometryRefused(
            f"the slices are unevenly spaced: gaps of {smallest:.3f} to {gaps.max():.3f} mm, slice "
            f"{int(off.argmax()) + 1} of {len(frames)} lies {off.max():.3f} mm off an even stack "
            f"({tolerance:.3f} mm are tolerated); give an evenly spaced reconstruction"
        )


def _check_order(frames: Sequence[Frame]) -> None:
    """Raises GeometryRefused where another tag puts the very same ladder of slices in another order.

    SliceLocation and InStackPositionNumber are optional and often left as they were;
    only where they are as even as the positions do they contradict them.
    """
    places = [frame.traits.get("told_place") for frame in frames]
    if None in places:
        return
    steps, even = np.diff(np.array(places)), np.diff(np.sort(np.array(places)))
    is_ladder = even.min() > 0 and even.max() < (1 + UNEVEN_SHARE) * even.min()
    if is_ladder and not ((steps > 0).all() or (steps < 0).all()):
        raise GeometryRefused(
            f"the positions put the {len(frames)} slices in another order than their slice locations do, "
            "so some of them lie in a wrong place; export the original series"
        )


def _check_tilt_is_shown(frames: Sequence[Frame], normal: NDArray[np.float64]) -> None:
    """Raises GeometryRefused where an original CT tells a tilt that its orientation does not show."""
    header = frames[0].header
    told = header.protocol.get("gantry_tilt_deg")
    if header.modality != "CT" or told is None or "ORIGINAL" not in header.image_type[:1]:
        return
    if abs(told) <= TILT_TOLERANCE_DEG or abs(normal[2]) < 0.5:
        return
    shown = float(np.degrees(np.arccos(min(abs(normal[2]), 1.0))))
    if shown < TILT_TOLERANCE_DEG:
        raise GeometryRefused(
            f"the header tells a gantry tilt of {told:g} degrees, the slice orientation shows {shown:.1f}: "
            "where the slices lie cannot be told; export the original series"
        )


def _laid_out(
    frames: tuple[Frame, ...], positions: Matrix, axes: Matrix, spacing: NDArray[np.float64]
) -> Stack:
    """The grid of slices in order, after every check of their distances."""
    count = np.arange(len(frames))
    step, origin = np.polyfit(count, positions, 1)
    _check_scatter(positions - (origin + np.outer(count, step)), axes)
    rows, columns, normal = axes
    along = float(step @ normal)
    aside = np.array([step @ columns, step @ rows])
    pixels = frames[0].header.pixel
    assert pixels is not None, "frames without pixels have no place in a stack"
    shape = (len(frames), pixels.rows, pixels.columns)
    in_plane = (columns * spacing[0], rows * spacing[1])
    if np.abs(aside).max() <= ORTHOGONALITY_TOLERANCE * np.linalg.norm(step):
        return Stack(frames, Grid(shape, affine(step, *in_plane, origin)))
    total = float(np.linalg.norm(aside)) * (len(frames) - 1)
    if total <= DRIFT_TOLERANCE_MM:
        middle = origin + step * (len(frames) - 1) / 2
        straight = normal * along
        return Stack(
            frames, Grid(shape, affine(straight, *in_plane, middle - straight * (len(frames) - 1) / 2))
        )
    return _tilted(frames, shape, affine(normal * along, *in_plane, origin), aside)


def _tilted(frames: tuple[Frame, ...], shape: tuple[int, int, int], upright: Matrix, aside: Matrix) -> Stack:
    along = float(np.linalg.norm(upright[:3, 0]))
    angle = float(np.degrees(np.arctan2(np.linalg.norm(aside), along)))
    if angle > STEEPEST_SHEAR_DEG:
        raise GeometryRefused(
            f"the slices are sheared by {angle:.0f} degrees, no gantry tilts beyond "
            f"{STEEPEST_SHEAR_DEG:.0f}; "
            "give a reconstruction whose slices lie above each other"
        )
    note = (
        f"The slices lie askew by {angle:.1f} degrees (tilted gantry); each was shifted in its own plane "
        "onto an upright grid, by linear interpolation, and the empty corners filled with the lowest value."
    )
    return Stack(frames, Grid(shape, upright), (float(aside[0]), float(aside[1])), (note,))


def _check_scatter(off: Matrix, axes: Matrix) -> None:
    sideways = np.linalg.norm(off @ axes[:2].T, axis=1)
    if sideways.max() > DRIFT_TOLERANCE_MM:
        raise GeometryRefused(
            f"slice {int(sideways.argmax()) + 1} of {len(off)} is shifted sideways by "
            f"{sideways.max():.2f} mm "
            f"against the others ({DRIFT_TOLERANCE_MM} mm are tolerated); export the original series"
        )


def affine(
    k: NDArray[np.float64], j: NDArray[np.float64], i: NDArray[np.float64], origin: NDArray[np.float64]
) -> Matrix:
    """World_from_index (4, 4) of three steps and the place of voxel (0, 0, 0), in mm."""
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2], matrix[:3, 3] = k, j, i, origin
    return matrix
