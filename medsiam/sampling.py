"""Fields on grids, in torch: smoothing and affine resampling, each done once.

A field is a float32 tensor (K, J, I) or (C, K, J, I) on the chosen device. On the CPU both
are done by compiled loops (kernels.py), on a GPU by torch; they agree within 1e-4 of the range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as functional

from medsiam.kernels import blurred, resampled
from medsiam.volume import Grid, Matrix, transform

Field = torch.Tensor


# A Gaussian that reaches further than this (voxels) is quicker as a product with a dense matrix.
NARROW_REACH = 24


def smooth(field: Field, sigma_voxels: tuple[float, float, float]) -> Field:
    """The field after a Gaussian of sigma (k, j, i) in voxels, edges repeated."""
    for axis, sigma in enumerate(sigma_voxels):
        size = field.shape[axis - 3]
        if sigma <= 0.05 or size < 2:
            continue
        if in_loops(field) and math.ceil(3.0 * sigma) <= NARROW_REACH:
            weights = _gaussian(float(sigma)).astype(np.float32)
            field = torch.from_numpy(blurred(field.contiguous().numpy(), weights, axis))
        else:
            kernel = torch.as_tensor(_kernel(size, float(sigma)), dtype=field.dtype, device=field.device)
            field = _along(field, kernel, axis)
    return field


# A mean over so many voxels (sigma) or more is slow from voxel to voxel: it is made on means of blocks,
# of which a sigma holds at least this many, and that are no longer than this.
BLOCKS_IN_SIGMA, LONGEST_BLOCK = 3.5, 4
# Less weight than this around a voxel tells nothing of it.
LEAST_WEIGHT = 1e-3


def local_mean(field: Field, weight: Field, sigma_voxels: float) -> Field:
    """The weighted mean of a field (K, J, I) around each voxel, by a Gaussian of so many voxels.

    Where hardly any weight is near it falls to nought.
    """
    block = min(LONGEST_BLOCK, max(1, int(sigma_voxels / BLOCKS_IN_SIGMA)))
    blocks = [block if size > 1 else 1 for size in field.shape]
    both = torch.stack([field * weight, weight])
    beyond = [(0, -size % n) for size, n in zip(field.shape, blocks, strict=True)]
    both = functional.pad(both, [n for pair in reversed(beyond) for n in pair])
    both = functional.avg_pool3d(both, blocks)
    # The blocks' own width and that of the interpolation between them blur too.
    width = (
        math.sqrt(sigma_voxels**2 - (block**2 - 1) / 12.0 - (block**2 / 6.0 if block > 1 else 0.0)) / block
    )
    both = smooth(both, (width,) * 3)
    mean = both[0] / both[1].clamp_min(LEAST_WEIGHT)
    if block > 1:
        mean = stretched(mean, [size * n for size, n in zip(mean.shape, blocks, strict=True)], corners=False)
    return mean[tuple(slice(size) for size in field.shape)]


def stretched(field: Field, shape: Sequence[int], *, corners: bool) -> Field:
    """A coarse field (…, k, j, i) at every voxel of a finer one (…, K, J, I), linear between its own.

    corners  whether the first and last voxels of both lie on each other; otherwise the walls do
             and the edges are repeated (torch's align_corners)
    """
    for axis, size in enumerate(shape):
        weights = _between(field.shape[axis - 3], size, corners)
        field = _along(field, torch.as_tensor(weights, dtype=field.dtype, device=field.device), axis)
    return field


@lru_cache(maxsize=64)
def _between(few: int, many: int, corners: bool) -> Matrix:
    """The weights (many, few) of linear interpolation along one axis."""
    at = np.arange(many) * ((few - 1) / max(many - 1, 1))
    if not corners:
        at = np.clip((np.arange(many) + 0.5) * (few / many) - 0.5, 0.0, few - 1)
    return np.clip(1.0 - np.abs(at[:, None] - np.arange(few)), 0.0, None)


def in_loops(field: Field) -> bool:
    """Whether a field is one for the compiled loops."""
    return field.device.type == "cpu" and field.dtype == torch.float32


def _gaussian(sigma: float) -> Matrix:
    """The weights of a Gaussian out to three sigma, which sum to one."""
    reach = math.ceil(3.0 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return weights / weights.sum()


@lru_cache(maxsize=64)
def _kernel(size: int, sigma: float) -> Matrix:
    """The Gaussian as a (size, size) matrix whose rows sum to one, edges repeated."""
    weights = _gaussian(sigma)
    reach = len(weights) // 2
    matrix = np.zeros((size, size))
    for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
        np.add.at(matrix, (np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)), weight)
    return matrix


def _along(field: Field, kernel: Field, axis: int) -> Field:
    # A dense matrix product beats conv1d several times over on a CPU: the rows
    # are short, and no axis has to be moved in memory.
    if axis == 2:
        return field @ kernel.T
    if axis == 1:
        return kernel @ field
    lead, (depth, rows, columns) = field.shape[:-3], field.shape[-3:]
    return (kernel @ field.reshape(*lead, depth, rows * columns)).reshape(*lead, -1, rows, columns)


def sample(
    field: Field, grid: Grid, target: Grid, world_from_target_world: Matrix, *, outside: str = "zeros"
) -> Field:
    """The field of `grid` at the voxels of `target`, linear, once.

    world_from_target_world  4 x 4 LPS mm: where a point of the target lies in the field's world
    outside                  "zeros" or "border"
    """
    return sample_mean(field, grid, (target,), world_from_target_world, outside=outside)


def sample_mean(
    field: Field,
    grid: Grid,
    targets: Sequence[Grid],
    world_from_target_world: Matrix,
    *,
    outside: str = "zeros",
) -> Field:
    """The mean of what `sample` gives for each of some grids of one shape."""
    channels = field if field.ndim == 4 else field[None]
    into = grid.index_from_world @ world_from_target_world
    matrices = np.stack([into @ target.world_from_index for target in targets])
    shape = targets[0].shape
    if in_loops(field):
        border = outside == "border"
        fields = channels.contiguous().numpy()
        out = torch.from_numpy(resampled(fields, matrices[:, :3], shape, border=border))
    else:
        out = torch.stack([_by_torch(channels, grid, m, shape, outside) for m in matrices]).mean(dim=0)
    return out if field.ndim == 4 else out[0]


def _by_torch(
    channels: Field, grid: Grid, index_from_target: Matrix, shape: tuple[int, int, int], outside: str
) -> Field:
    points = _unit_points(index_from_target, grid.shape, shape, channels.device)
    return functional.grid_sample(
        channels[None], points, mode="bilinear", padding_mode=outside, align_corners=True
    )[0]


def coverage(grid: Grid, target: Grid, world_from_target_world: Matrix, device: torch.device) -> Field:
    """1 where a target voxel lies inside the grid's box of voxels, else 0."""
    inside = None
    matrix = grid.index_from_world @ world_from_target_world @ target.world_from_index
    for row, size in zip(matrix[:3], grid.shape, strict=True):
        position = _linear(row, target.shape, device)
        held = (position >= -0.5) & (position <= size - 0.5)
        inside = held if inside is None else inside & held
    assert inside is not None
    return inside.to(torch.float32)


def _linear(row: Matrix, shape: tuple[int, int, int], device: torch.device) -> Field:
    steps = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    k, j, i = (float(row[axis]) * steps[axis] for axis in range(3))
    return float(row[3]) + k[:, None, None] + j[None, :, None] + i[None, None, :]


def _unit_points(
    index_from_target: Matrix, shape: tuple[int, int, int], target: tuple[int, int, int], device: torch.device
) -> Field:
    """Points (1, K, J, I, 3) in torch's -1..1 coordinates, ordered (i, j, k)."""
    sizes = np.array(shape, dtype=np.float64)
    # A flat axis has no extent: its only voxel stands for all of it.
    scale = np.where(sizes > 1, 2.0 / np.maximum(sizes - 1.0, 1.0), 0.0)
    rows = index_from_target[:3] * scale[:, None]
    rows[:, 3] -= np.where(sizes > 1, 1.0, 0.0)
    unit = torch.as_tensor(rows[::-1].copy(), dtype=torch.float32, device=device)
    k, j, i = (torch.arange(n, dtype=torch.float32, device=device) for n in target)
    planes = (k[:, None] * unit[:, 0])[:, None] + (j[:, None] * unit[:, 1])[None] + unit[:, 3]
    return (planes[:, :, None] + (i[:, None] * unit[:, 2])[None, None])[None]


def isotropic(grid: Grid, spacing_mm: float) -> Grid:
    """A grid over the same box along the same axes, with equal spacing; flat stays flat."""
    own = grid.spacing_mm
    axes = grid.world_from_index[:3, :3] / own
    steps = np.where(np.array(grid.shape) > 1, spacing_mm, own)
    shape = np.maximum(1, np.ceil((np.array(grid.shape) - 1) * own / steps - 1e-6).astype(int) + 1)
    matrix = np.eye(4)
    matrix[:3, :3] = axes * steps
    matrix[:3, 3] = grid.centre_mm - matrix[:3, :3] @ ((shape - 1) / 2.0)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), matrix)


def covering(boxes: list[tuple[Grid, Matrix]], spacing_mm: tuple[float, float, float]) -> Grid:
    """The world-aligned grid that holds all boxes, each moved by its target_from_world.

    Raises no error: boxes are finite. Axes k, j, i run to Superior, Posterior, Left.
    """
    corners = np.concatenate([transform(moved, grid.corners_mm()) for grid, moved in boxes])
    low, high = corners.min(axis=0), corners.max(axis=0)
    steps = np.array(spacing_mm)
    extent = (high - low)[::-1]
    shape = np.ceil(extent / steps - 1e-6).astype(int) + 1
    matrix = np.eye(4)
    matrix[:3, :3] = np.fliplr(np.diag(steps[::-1]))
    matrix[:3, 3] = (low + high) / 2.0 - matrix[:3, :3] @ ((shape - 1) / 2.0)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), matrix)


def cropped(field: Field, grid: Grid, weight: Field, margin_voxels: int = 3) -> tuple[Field, Grid]:
    """The field and its grid cut to the box in which the weight exceeds 0.01."""
    held = (weight > 0.01).nonzero()
    if len(held) == 0:
        return field, grid
    size = torch.tensor(grid.shape, device=held.device)
    low = (held.min(dim=0).values - margin_voxels).clamp_min(0).tolist()
    high = torch.minimum(held.max(dim=0).values + margin_voxels + 1, size).tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    k, j, i = box
    return field[..., k, j, i], grid.part(box)


def block_means(
    field: Field, grid: Grid, blocks: Sequence[int], *, with_rim: bool = False
) -> tuple[Field, Grid]:
    """Means (K, J, I) over blocks of so many voxels (k, j, i) from the first on, and where they lie.

    with_rim  whether voxels that fill no block at the far end make one; otherwise they are left out

    A mean over a block is what a scanner of such voxels would have measured, so fine detail does not alias.
    """
    k, j, i = (int(n) for n in blocks)
    pooled = functional.avg_pool3d(field[None, None], (k, j, i), ceil_mode=with_rim)[0, 0]
    matrix = grid.world_from_index.copy()
    matrix[:3, :3] = matrix[:3, :3] * (k, j, i)
    matrix[:3, 3] = grid.world([((k - 1) / 2.0, (j - 1) / 2.0, (i - 1) / 2.0)])[0]
    return pooled, Grid((pooled.shape[0], pooled.shape[1], pooled.shape[2]), matrix)


def downsampled(field: Field, grid: Grid, spacing_mm: float) -> tuple[Field, Grid]:
    """The field on an isotropic grid of the given spacing, smoothed against aliasing."""
    ratio = spacing_mm / grid.spacing_mm
    sigma = [0.5 * math.sqrt(max(0.0, r * r - 1.0)) for r in ratio]
    target = isotropic(grid, spacing_mm)
    smoothed = smooth(field, (sigma[0], sigma[1], sigma[2]))
    return sample(smoothed, grid, target, np.eye(4), outside="border"), target
