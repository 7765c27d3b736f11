"""A volume as the encoder sees it: fixed size, fixed spacing, values 0..1.

    Volume -> block means near the target spacing -> normalised -> centred on the body
    -> axes towards Superior, Posterior, Left -> Prepared

A radiograph keeps its own plane, or is turned, placed and sized by its lungs.

Pure and without chance: the same voxels give the same bits. Moving the scan in its
world changes nothing, nor does a gain or an offset (but for CT, whose units are known).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from medsiam.errors import Unreadable
from medsiam.lungs import chest_field, find_lungs
from medsiam.sampling import block_means
from medsiam.volume import Grid, Matrix, Volume

# HU to 0..1: lung, soft tissue and bone each keep a share of the range, soft tissue
# the largest, since its differences are the smallest.
CT_HU = (-1000.0, -200.0, 300.0, 1500.0)
CT_VALUE = (0.0, 0.2, 0.85, 1.0)

# Percentiles that become 0 and 1 elsewhere: single hot or dead voxels lie outside.
LOW_PERCENT, HIGH_PERCENT = 1.0, 99.0

# Below this share of the range lies air, which has no part in the body's centre.
AIR_LEVEL = 0.15

# A scan this much longer than the field is taken at twice the spacing, and so on:
# a head fits at the finest, a trunk at the second, a whole body at the third.
WIDE_RATIO = 1.5
MOST_DOUBLINGS = 2


@dataclass(frozen=True)
class PreparationSettings:
    """How large and how fine the encoder's input is.

    size_voxels  along each axis
    spacing_mm   of the finest input, where 96 voxels hold a large head (216 mm); a
                 radiograph fills the field instead, since its millimetres may be nominal
    by_lungs     whether a radiograph is turned, placed and sized by its lungs; where no lungs
                 can be believed the whole image fills the field
    """

    size_voxels: int = field(default=96, metadata={"range": (16, 512)})
    spacing_mm: float = field(default=2.25, metadata={"range": (0.5, 16.0)})
    by_lungs: bool = False

    def __post_init__(self) -> None:
        if not 16 <= self.size_voxels <= 512:
            raise ValueError(f"size_voxels is {self.size_voxels}; it must be between 16 and 512")
        if not 0.5 <= self.spacing_mm <= 16.0:
            raise ValueError(f"spacing_mm is {self.spacing_mm}; it must be between 0.5 and 16")


@dataclass(frozen=True, eq=False)
class Prepared:
    """The encoder's input.

    values  (K, J, I) float32 tensor, 0..1, 0 outside the scan; K is 1 for a radiograph
    grid    where these voxels lie, LPS mm
    """

    values: torch.Tensor
    grid: Grid


def prepare(volume: Volume, settings: PreparationSettings) -> Prepared:
    """The volume on its canonical grid, normalised. Keeps only what lies in the field.

    Raises Unreadable where a voxel is not finite.
    """
    chest = _chest(volume, settings)
    spacing_mm = _spacing_mm(volume.grid, settings) if chest is None else float(chest.spacing_mm[1:].min())
    pooled, grid = _pooled(volume, spacing_mm)
    _check_finite(pooled)
    normal = normalised(pooled, volume.acquisition.modality)
    target = chest or _canonical_grid(grid, normal, settings.size_voxels, spacing_mm)
    return Prepared(_resampled(torch.from_numpy(normal), grid, target), target)


def _chest(volume: Volume, settings: PreparationSettings) -> Grid | None:
    """The field that the lungs of a radiograph set; None where it is not asked for or there are none."""
    if not settings.by_lungs or not volume.grid.is_flat:
        return None
    _check_finite(volume.array)
    lungs = find_lungs(volume)
    return chest_field(lungs, settings.size_voxels) if lungs.found else None


def _check_finite(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise Unreadable("the scan holds voxels that are not finite numbers; export it again")


def normalised(values: NDArray[np.float32], modality: str) -> NDArray[np.float32]:
    """The values as 0..1: by Hounsfield units for CT, else by percentiles of body and air."""
    if modality == "CT":
        return np.interp(values, CT_HU, CT_VALUE).astype(np.float32)
    low = np.percentile(values, LOW_PERCENT)
    # Above its mean lies the body: the share of air must not move the upper end.
    body = values[values >= values.mean(dtype=np.float64)]
    high = np.percentile(body, HIGH_PERCENT)
    return np.clip((values - low) / max(float(high - low), 1e-12), 0.0, 1.0).astype(np.float32)


def _spacing_mm(grid: Grid, settings: PreparationSettings) -> float:
    extent_mm = np.array(grid.shape) * grid.spacing_mm
    if grid.is_flat:
        return float(extent_mm[1:].max()) / settings.size_voxels
    field_mm = settings.size_voxels * settings.spacing_mm
    ratio = float(extent_mm.max()) / (WIDE_RATIO * field_mm)
    doublings = min(max(0, math.ceil(math.log2(ratio) - 1e-9)), MOST_DOUBLINGS)
    return settings.spacing_mm * 2**doublings


def _pooled(volume: Volume, spacing_mm: float) -> tuple[NDArray[np.float32], Grid]:
    """Means of whole voxels at most as large as the target's, and where they lie."""
    grid = volume.grid
    # An edge that is short of one part in a million must not change the block.
    ratios = spacing_mm / grid.spacing_mm + 1e-6
    blocks = np.clip(ratios.astype(int), 1, grid.shape)
    if grid.is_flat:
        blocks[0] = 1
    pooled, coarse = block_means(torch.tensor(volume.array), grid, blocks.tolist())
    return pooled.numpy(), coarse


def _canonical_grid(grid: Grid, normal: NDArray[np.float32], size: int, spacing_mm: float) -> Grid:
    matrix = np.eye(4)
    if grid.is_flat:
        # A radiograph keeps the axes of its own plane and is centred on its frame.
        shape = (1, size, size)
        axes = grid.world_from_index[:3, :3] / grid.spacing_mm
        matrix[:3, :3] = axes * (grid.spacing_mm[0], spacing_mm, spacing_mm)
        centre_mm = grid.centre_mm
    else:
        shape = (size, size, size)
        # k to Superior, j to Posterior, i to Left: world z, y and x.
        matrix[:3, :3] = np.fliplr(np.eye(3)) * spacing_mm
        centre_mm = _body_centre_mm(grid, normal)
    matrix[:3, 3] = centre_mm - matrix[:3, :3] @ ((np.array(shape) - 1) / 2.0)
    return Grid(shape, matrix)


def _body_centre_mm(grid: Grid, normal: NDArray[np.float32]) -> Matrix:
    """LPS position (3,) in mm of the centre of what is not air, the box's middle where all is."""
    # Tissue counts alike, bright or dark: a neck that is bright in one contrast would draw the
    # centre by 2 cm. Only what is hardly above the air counts less, which may be noise.
    mass = np.clip(normal.astype(np.float64) / AIR_LEVEL - 1.0, 0.0, 1.0)
    total = mass.sum()
    if total <= 0.0:
        return grid.centre_mm
    index = [
        float(mass.sum(axis=tuple(other for other in range(3) if other != axis)) @ np.arange(size)) / total
        for axis, size in enumerate(grid.shape)
    ]
    return grid.world([index])[0]


def _resampled(values: torch.Tensor, grid: Grid, target: Grid) -> torch.Tensor:
    """The values at the voxels of the target, trilinear, 0 outside the scan."""
    points = _unit_points(grid.index_from_world @ target.world_from_index, grid.shape, target.shape)
    # Each edge voxel reaches half its width outwards, as measured, and fades beyond.
    return functional.grid_sample(values[None, None], points, padding_mode="zeros", align_corners=False)[0, 0]


def _unit_points(index_from_target: Matrix, shape: tuple[int, ...], target: tuple[int, ...]) -> torch.Tensor:
    """Points (1, K, J, I, 3) in torch's -1..1 from edge to edge, ordered (i, j, k)."""
    sizes = np.array(shape, dtype=np.float64)
    rows = index_from_target[:3] * (2.0 / sizes)[:, None]
    rows[:, 3] += 1.0 / sizes - 1.0
    k, j, i = (torch.arange(n, dtype=torch.float64) for n in target)
    # In double until the end: single would place far voxels a thousandth off.
    axis = torch.from_numpy(rows[::-1].copy())
    plane = (k[:, None] * axis[:, 0])[:, None] + (j[:, None] * axis[:, 1])[None] + axis[:, 3]
    return (plane[:, :, None] + (i[:, None] * axis[:, 2])[None, None])[None].float()
