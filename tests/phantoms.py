"""Scans whose right answer is geometry.

The full head lives in medsiam.phantom; here are the small and fast ones.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np

from medsiam.phantom import Lesion, Phantom, Scan, flair_acquisition, head_phantom, position
from medsiam.volume import Acquisition, Grid, Matrix, Volume

__all__ = [
    "SMALL_SCAN",
    "Lesion",
    "Phantom",
    "Scan",
    "ball",
    "box_grid",
    "flair_acquisition",
    "head_phantom",
    "position",
    "position_encoded",
    "radiograph",
    "small_head",
]

# About 50,000 voxels: a head in a tenth of a second.
SMALL_SCAN = Scan(spacing_mm=(6.0, 4.0, 4.0))

# value = OFFSET + SLOPES . (x, y, z): any mistake of geometry shows in the values.
POSITION_OFFSET = 1000.0
POSITION_SLOPES = np.array([1.0, 2.5, -0.75])


def box_grid(
    shape: tuple[int, int, int] = (9, 12, 10),
    spacing_kji_mm: tuple[float, float, float] = (3.0, 1.0, 1.5),
    *,
    world_from_grid: Matrix | None = None,
) -> Grid:
    """An axial grid centred on the origin, then moved by a matrix of the world."""
    matrix = np.zeros((4, 4))
    matrix[[2, 1, 0], [0, 1, 2]] = spacing_kji_mm
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(shape) - 1) / 2.0)
    matrix[3, 3] = 1.0
    return Grid(shape, (np.eye(4) if world_from_grid is None else world_from_grid) @ matrix)


def position_encoded(grid: Grid | None = None, *, acquisition: Acquisition | None = None) -> Volume:
    """A volume whose value at each voxel is a linear function of its true place in LPS mm."""
    grid = grid or box_grid()
    index = np.indices(grid.shape).reshape(3, -1).T
    values = POSITION_OFFSET + grid.world(index) @ POSITION_SLOPES
    array = values.reshape(grid.shape).astype(np.float32)
    return Volume(array, grid, acquisition or Acquisition(modality="MR"))


def ball(grid: Grid, centre_mm: tuple[float, float, float], radius_mm: float, value: float = 1.0) -> Volume:
    """A ball with an edge one voxel wide, on zero."""
    index = np.indices(grid.shape).reshape(3, -1).T
    distance = np.linalg.norm(grid.world(index) - np.array(centre_mm), axis=1) - radius_mm
    share = np.clip(0.5 - distance / grid.spacing_mm.min(), 0.0, 1.0)
    return Volume((value * share).reshape(grid.shape).astype(np.float32), grid)


def small_head(
    lesions: tuple[Lesion, ...] = (),
    *,
    world_from_head: Matrix | None = None,
    noise: float = 0.0,
    seed: int = 0,
    acquired: datetime | None = None,
) -> Phantom:
    """The head on coarse voxels, without bias; without noise unless asked."""
    scan = Scan(SMALL_SCAN.spacing_mm, noise=noise, bias=0.0, seed=seed)
    return head_phantom(
        lesions,
        scan=scan,
        world_from_head=world_from_head,
        acquisition=flair_acquisition(scan, acquired),
    )


def radiograph(shape_ji: tuple[int, int] = (96, 80), *, seed: int = 0) -> Volume:
    """A chest-like radiograph: two dark lungs, a bright spine, on one slice of 1 mm pixels."""
    y, x = np.meshgrid(*(np.linspace(-1.0, 1.0, n) for n in shape_ji), indexing="ij")
    image = 2000.0 - 600.0 * (np.hypot(x, y * 0.8) > 0.95)
    for side in (-1.0, 1.0):
        image -= 900.0 * np.clip(1.6 - 1.6 * np.hypot((x - 0.42 * side) / 0.38, y / 0.75), 0.0, 1.0)
    image += 500.0 * np.exp(-((x / 0.08) ** 2))
    image += np.random.default_rng(seed).normal(0.0, 10.0, shape_ji)
    grid = box_grid((1, *shape_ji), (1.0, 1.0, 1.0))
    acquisition = Acquisition(modality="CR", body_part="CHEST", protocol={"view_position": "PA"})
    return Volume(np.round(image)[None].astype(np.float32), grid, acquisition)
