"""How slices stand on a screen: which way up, how grey, and how much of them.

A View is derived from where the voxels lie, never from their order: the
patient's left is on the picture's right, anterior (axial) or head (coronal,
sagittal) is up, and a sagittal picture faces left. A radiograph is shown as it
was stored, for its matrix says nothing of the patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsiam.volume import Grid, Matrix, Volume

Plane = Literal["axial", "coronal", "sagittal", "projection"]
Array = NDArray[Any]

# Modalities whose picture is a shadow; an unknown one with a single slice is taken for one too.
PROJECTIONS = frozenset({"CR", "DX", "RG", "MG", "XA", "RF", "IO", "PX", "OT", "SC", ""})
# Units that mean the same in both scans, so that grey levels must never be matched.
ABSOLUTE_UNITS = frozenset({"CT", "PT"})

# The LPS direction that lies along a picture's rows (to the right), by plane.
RIGHTWARD = {"axial": (1, 0, 0), "coronal": (1, 0, 0), "sagittal": (0, 1, 0)}
DOWNWARD = {"axial": (0, 1, 0), "coronal": (0, 0, -1), "sagittal": (0, 0, -1)}
PLANE_OF_NORMAL: tuple[Plane, Plane, Plane] = ("sagittal", "coronal", "axial")
LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))

# A second letter is written where an axis leans more than about 20 degrees.
LEANING = 0.35

# Level and width in HU that readers use; the first that fits the body part.
CT_WINDOWS = (
    (("HEAD", "BRAIN", "SKULL"), (40.0, 80.0)),
    (("CHEST", "LUNG", "THORAX"), (-600.0, 1500.0)),
    (("",), (40.0, 400.0)),
)

# What lies below this share of the window is air around the patient.
AIR_SHARE = 0.12
SKIN_HU = -500.0
# Scanner scales that differ by less than this share of the window are shown in one window.
SAME_SCALE = 0.25
BRIGHTER_THAN_TISSUE = 0.25
MARGIN_MM = 6.0
MOST_SAMPLES = 2_000_000


@dataclass(frozen=True)
class Box:
    """A part of a displayed slice: rows top..bottom, columns left..right, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True)
class GreyWindow:
    """The values shown as black and as white."""

    low: float
    high: float

    def grey(self, values: Array) -> NDArray[np.uint8]:
        """Values as 0..255; NaN becomes 0."""
        share = (np.nan_to_num(values, nan=self.low) - self.low) / max(self.high - self.low, 1e-12)
        grey: NDArray[np.uint8] = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
        return grey


@dataclass(frozen=True, eq=False)
class View:
    """How the slices of constant k of a grid are shown.

    right_axis, down_axis   voxel axis (1 = j, 2 = i) along a picture's rows and columns
    flip_right, flip_down   whether that axis runs against the picture
    edges                   letters at the left, right, top and bottom; "" where not known
    picture_from_voxel      4 x 4, maps (k, j, i, 1) to (x, y, k, 1), x and y in displayed pixels
    """

    grid: Grid
    plane: Plane
    right_axis: int
    down_axis: int
    flip_right: bool
    flip_down: bool
    edges: tuple[str, str, str, str]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a displayed slice."""
        return self.grid.shape[self.down_axis], self.grid.shape[self.right_axis]

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Height and width of a displayed pixel."""
        spacing = self.grid.spacing_mm
        return float(spacing[self.down_axis]), float(spacing[self.right_axis])

    def slice(self, array: Array, k: int) -> Array:
        """Slice k of an array (K, J, I) as displayed, rows downward."""
        shown = array[k].T if self.right_axis == 1 else array[k]
        upright: Array = shown[:: -1 if self.flip_down else 1, :: -1 if self.flip_right else 1]
        return upright

    @property
    def picture_from_voxel(self) -> Matrix:
        matrix = np.zeros((4, 4))
        for row, axis, flip in ((0, self.right_axis, self.flip_right), (1, self.down_axis, self.flip_down)):
            matrix[row, axis] = -1.0 if flip else 1.0
            matrix[row, 3] = self.grid.shape[axis] - 1.0 if flip else 0.0
        matrix[2, 0] = matrix[3, 3] = 1.0
        return matrix

    @property
    def world_from_picture(self) -> Matrix:
        """4 x 4, maps (x, y, k, 1) in displayed pixels to LPS mm."""
        product: Matrix = self.grid.world_from_index @ np.linalg.inv(self.picture_from_voxel)
        return product

    def locate(self, world_mm: Array) -> tuple[float, float, int]:
        """Displayed column x, row y and slice k nearest to an LPS position, inside the grid."""
        point = np.linalg.inv(self.world_from_picture) @ np.append(np.asarray(world_mm, float), 1.0)
        rows, columns = self.shape
        x, y = np.clip(point[0], 0, columns - 1), np.clip(point[1], 0, rows - 1)
        return float(x), float(y), int(np.clip(np.rint(point[2]), 0, self.grid.shape[0] - 1))


def view_of(volume: Volume) -> View:
    """The view in the plane in which a volume was acquired."""
    if volume.grid.is_flat and volume.acquisition.modality in PROJECTIONS:
        return View(volume.grid, "projection", 2, 1, False, False, _told_edges(volume))
    return view_of_grid(volume.grid)


def view_of_grid(grid: Grid) -> View:
    """The view of a grid's slices by where they lie in the patient."""
    axes = (grid.world_from_index[:3, :3] / grid.spacing_mm).T
    normal = np.cross(axes[1], axes[2])
    plane = PLANE_OF_NORMAL[int(np.argmax(np.abs(normal)))]
    rightward, downward = np.array(RIGHTWARD[plane]), np.array(DOWNWARD[plane])
    along_rows = abs(axes[2] @ rightward) + abs(axes[1] @ downward)
    along_columns = abs(axes[1] @ rightward) + abs(axes[2] @ downward)
    right_axis, down_axis = (2, 1) if along_rows >= along_columns else (1, 2)
    flip_right = bool(axes[right_axis] @ rightward < 0)
    flip_down = bool(axes[down_axis] @ downward < 0)
    to_right = axes[right_axis] * (-1 if flip_right else 1)
    to_bottom = axes[down_axis] * (-1 if flip_down else 1)
    edges = (letters(-to_right), letters(to_right), letters(-to_bottom), letters(to_bottom))
    return View(grid, plane, right_axis, down_axis, flip_right, flip_down, edges)


def letters(direction: Array) -> str:
    """The patient's side a direction (LPS) points to: "L", "P", "LA" …"""
    order = np.argsort(-np.abs(direction), kind="stable")
    told = [axis for rank, axis in enumerate(order) if rank == 0 or abs(direction[axis]) > LEANING]
    return "".join(LETTERS[axis][0 if direction[axis] > 0 else 1] for axis in told[:2])


def place_text(view: View, world_mm: Array, unit: str = "mm") -> str:
    """A position in words of a reader: "L 23, A 4, H 61 mm", or where it lies on a radiograph.

    unit  "px" where the size of a radiograph's pixel is not known and 1 mm stands for it
    """
    if view.plane == "projection":
        x, y, _ = view.locate(world_mm)
        height_mm, width_mm = view.pixel_mm
        return f"{x * width_mm:.0f} {unit} from the left, {y * height_mm:.0f} {unit} from the top"
    parts = []
    for value, (positive, negative) in zip(world_mm, LETTERS, strict=True):
        parts.append(f"{positive if value >= 0 else negative} {abs(round(float(value)))}")
    return ", ".join(parts) + " mm"


def _told_edges(volume: Volume) -> tuple[str, str, str, str]:
    """Edges from the header's patient orientation (row, column), where it was told."""
    told = volume.acquisition.protocol.get("patient_orientation")
    parts = told.split("\\") if isinstance(told, str) else told if isinstance(told, list | tuple) else ()
    opposite = str.maketrans("LRPAHF", "RLAPFH")
    known = len(parts) == 2 and all(isinstance(part, str) and set(part) <= set("LRPAHF") for part in parts)
    if not known:
        return ("", "", "", "")
    right, bottom = parts
    return (right.translate(opposite), right, bottom.translate(opposite), bottom)


def samples(array: Array) -> Array:
    """Finite values of an array, thinned to a number that can be sorted."""
    step = max(1, int(np.ceil((array.size / MOST_SAMPLES) ** (1 / 3))))
    thinned = array[:: min(step, array.shape[0]), ::step, ::step]
    return thinned[np.isfinite(thinned)]


def windows_of(volume: Volume, prior_on_current: Array) -> tuple[GreyWindow, GreyWindow]:
    """The grey windows of prior and current: one and the same wherever that is true to both.

    MR and radiographs have no unit: where the scanners' scales plainly differ, the
    prior's window is fitted to the prior, for else one of the two would be black.
    """
    current = window_of(volume.array, volume.acquisition.modality, volume.acquisition.body_part)
    if volume.acquisition.modality in ABSOLUTE_UNITS or samples(prior_on_current).size == 0:
        return current, current
    prior = window_of(prior_on_current, volume.acquisition.modality, volume.acquisition.body_part)
    width = current.high - current.low
    apart = max(abs(prior.low - current.low), abs(prior.high - current.high)) / width
    return (prior if apart > SAME_SCALE else current), current


def window_of(array: Array, modality: str, body_part: str) -> GreyWindow:
    """The window an array (K, J, I) reads well in; a reader's usual one for CT."""
    if modality == "CT":
        part = body_part.upper()
        level, width = next(window for names, window in CT_WINDOWS if any(name in part for name in names))
        return GreyWindow(level - width / 2, level + width / 2)
    values = samples(array)
    if values.size == 0:
        return GreyWindow(0.0, 1.0)
    low = float(np.percentile(values, 0.5))
    body = values[values > low + AIR_SHARE * (float(np.percentile(values, 99)) - low)]
    high = float(np.percentile(body, 99.5)) if body.size else low
    # A radiograph fills its range; in a slice, a lesion brighter than all tissue must not be flat white.
    high += (0.0 if array.shape[0] == 1 else BRIGHTER_THAN_TISSUE) * (high - low)
    return GreyWindow(low, high if high > low else low + 1.0)


def body_box(view: View, volume: Volume, window: GreyWindow) -> tuple[Box, range]:
    """The part of the slices, and the range of slices, that hold the patient."""
    rows, columns = view.shape
    slices = volume.grid.shape[0]
    if view.plane == "projection":
        return Box(0, 0, rows, columns), range(slices)
    floor = window.low + AIR_SHARE * (window.high - window.low)
    if volume.acquisition.modality == "CT":
        floor = SKIN_HU
    inside = volume.array > floor
    first_k, last_k = _extent(inside.mean(axis=(1, 2)), 0)
    across = inside.mean(axis=0)[None]
    height_mm, width_mm = view.pixel_mm
    shown = view.slice(across, 0)
    top, bottom = _extent(shown.mean(axis=1), int(np.ceil(MARGIN_MM / height_mm)))
    left, right = _extent(shown.mean(axis=0), int(np.ceil(MARGIN_MM / width_mm)))
    return Box(top, left, bottom, right), range(first_k, last_k)


def _extent(share: Array, margin: int) -> tuple[int, int]:
    """First and last (excluded) place whose share is not noise, all of it where nothing is."""
    # Ghosts and noise beside the head reach a few per cent of a line through it.
    places = np.flatnonzero(share > 0.06 * share.max())
    if places.size == 0:
        return 0, len(share)
    return max(0, int(places[0]) - margin), min(len(share), int(places[-1]) + 1 + margin)
