"""A person scanned again: the scan at hand turned into another acquisition of the same head.

    signal -> contrast -> head moved in the scanner -> slices of full thickness
    -> coil gain -> Rician noise -> whole numbers on the scanner's own grid

Written apart from the generators of training, and sharing nothing with them but the
scans: a network that only learnt to undo its own augmentation fails here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medsiam.pairing.motion import about, translation
from medsiam.sampling import sample
from medsiam.volume import Acquisition, Grid, Matrix, Volume

Contrast = Literal["same", "curve", "inverted"]

# A slice is the mean of planes at most this far apart: a true profile, not a skipped plane.
PLANE_MM = 1.0

# The box of the first scan, and room for the motion beyond it.
MARGIN_MM = 10.0

# The brightest tissue in scanner units, so that rounding costs a thousandth.
SCANNER_GAIN = 1000.0

# Percentile of the body that counts as brightest: vessels and fat folds lie above.
BRIGHTEST_PERCENT = 99.5
# Below this share of the brightest lies air, which no contrast makes bright.
AIR_LEVEL = 0.12

# Exponents of the curve lie this far from 1, on a logarithmic scale, to either side:
# grey matter then moves by a tenth to a fifth of the range.
LEAST_BEND, MOST_BEND = 0.35, 0.8

# In a T2-like scan fluid is brightest and white matter has this share of it.
WHITE_SHARE = 0.3
# Scalp and marrow in a T2-like scan, where fat is less bright than in T1.
SCALP_SHARE = 0.6
# Fluid and white matter are the ends of the brain's range, but for a few voxels.
FLUID_PERCENT, WHITE_PERCENT = 2.0, 98.0


@dataclass(frozen=True)
class Technique:
    """How the scan is made again.

    contrast   "same"; "curve": tissues keep their order, not their distances;
               "inverted": fluid over grey over white, as in T2
    slice_mm   thickness and distance of slices along the scanner's z
    pixel_mm   in the plane; sampled at points, so not far above the scan's own voxels
    noise      deviation of each channel, share of the brightest tissue
    bias       largest relative deviation of the coil's gain
    turn_deg   angle of the head's turn, about an axis that is drawn
    shift_mm   length of its shift, in a direction that is drawn
    """

    contrast: Contrast = "same"
    slice_mm: float = 5.0
    pixel_mm: float = 1.8
    noise: float = 0.03
    bias: float = 0.2
    turn_deg: float = 10.0
    shift_mm: float = 10.0

    def __post_init__(self) -> None:
        if self.contrast not in get_args(Contrast):
            raise ValueError(f"contrast {self.contrast!r} must be one of {get_args(Contrast)}")
        if min(self.slice_mm, self.pixel_mm) <= 0.0:
            raise ValueError(f"slice_mm {self.slice_mm} and pixel_mm {self.pixel_mm} must be above 0")


@dataclass(frozen=True, eq=False)
class Rescan:
    """The new scan, and where the head went.

    volume             on the scanner's grid, world LPS mm of the new session
    rescan_from_world  4 x 4 LPS mm, a point of the head in the first scan's world to its
                       place in the new one
    """

    volume: Volume
    rescan_from_world: Matrix


def rescan(
    volume: Volume,
    technique: Technique,
    random: torch.Generator,
    *,
    brain: NDArray[np.bool_] | None = None,
) -> Rescan:
    """The head of a volume in another acquisition, drawn from `random`.

    brain  (K, J, I), where "inverted" turns the contrast round; without it, all that is not air
    """
    signal = recontrasted(volume.array, technique.contrast, random, brain=brain)
    motion = _drawn_motion(volume.grid.centre_mm, technique, random)
    grid = _scanner_grid(volume.grid, technique, random)
    clean = _sliced(signal, volume.grid, grid, np.linalg.inv(motion))
    array = _noisy(clean * _coil_gain(grid.shape, technique.bias, random), technique.noise, random)
    stored = np.round(array * SCANNER_GAIN).astype(np.float32)
    acquisition = Acquisition(modality="MR", body_part="HEAD", description="made again")
    return Rescan(Volume(stored, grid, acquisition), motion)


def recontrasted(
    values: NDArray[np.float32],
    contrast: Contrast,
    random: torch.Generator,
    *,
    brain: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """The signal (K, J, I) in another contrast, 0 air, about 1 the brightest tissue."""
    body = values[values > values.mean(dtype=np.float64)]
    brightest = np.percentile(body, BRIGHTEST_PERCENT) if body.size else 1.0
    share = np.clip(values / max(float(brightest), 1e-12), 0.0, 1.2).astype(np.float32)
    if contrast == "curve":
        side = 1.0 if _uniform(0.0, 1.0, random) < 0.5 else -1.0
        bent: NDArray[np.float32] = share ** np.exp(side * _uniform(LEAST_BEND, MOST_BEND, random))
        return bent.astype(np.float32)
    if contrast == "inverted":
        return _inverted(share, brain)
    return share


def _inverted(share: NDArray[np.float32], brain: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Fluid bright and white matter dark inside the brain, the scalp as it was but dimmer."""
    if brain is None:
        inside = np.clip(share / AIR_LEVEL - 0.5, 0.0, 1.0)
        held = share[inside >= 1.0]
    else:
        # A mask's edge is a knife's; a voxel's width is what tissue has.
        inside = ndimage.gaussian_filter(brain.astype(np.float32), 0.6)
        held = share[brain]
    if not held.size:
        return share
    fluid, white = np.percentile(held, (FLUID_PERCENT, WHITE_PERCENT))
    depth = np.clip((share - fluid) / max(float(white - fluid), 1e-6), 0.0, 1.0)
    outside = SCALP_SHARE * share
    return (outside + inside * (1.0 - (1.0 - WHITE_SHARE) * depth - outside)).astype(np.float32)


def _drawn_motion(centre_mm: Matrix, technique: Technique, random: torch.Generator) -> Matrix:
    axis, direction = (_drawn_direction(random) for _ in range(2))
    turn = Rotation.from_rotvec(np.deg2rad(technique.turn_deg) * axis).as_matrix()
    return translation(technique.shift_mm * direction) @ about(centre_mm, turn)


def _drawn_direction(random: torch.Generator) -> Matrix:
    vector = torch.randn(3, generator=random).double().numpy()
    return vector / np.linalg.norm(vector)


def _scanner_grid(first: Grid, technique: Technique, random: torch.Generator) -> Grid:
    """Axial slices over the first scan's box, begun anywhere within a slice."""
    corners = first.corners_mm()
    extent_mm = (corners.max(axis=0) - corners.min(axis=0))[::-1] + 2.0 * MARGIN_MM
    steps = np.array([technique.slice_mm, technique.pixel_mm, technique.pixel_mm])
    shape = np.ceil(extent_mm / steps).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = np.fliplr(np.diag(steps[::-1]))
    begun_mm = _uniform(-0.5, 0.5, random) * technique.slice_mm
    matrix[:3, 3] = first.centre_mm + np.array([0.0, 0.0, begun_mm]) - matrix[:3, :3] @ ((shape - 1) / 2.0)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), matrix)


def _sliced(
    signal: NDArray[np.float32], first: Grid, grid: Grid, world_from_rescan: Matrix
) -> NDArray[np.float32]:
    """Means of the signal over each slice's thickness, a box profile without gaps."""
    planes = max(1, int(np.ceil(grid.spacing_mm[0] / PLANE_MM)))
    fine_from_slice = np.diag([1.0 / planes, 1.0, 1.0, 1.0])
    fine_from_slice[0, 3] = 0.5 / planes - 0.5
    fine = Grid((grid.shape[0] * planes, *grid.shape[1:]), grid.world_from_index @ fine_from_slice)
    held = sample(torch.from_numpy(signal), first, fine, world_from_rescan)
    mean: NDArray[np.float32] = held.reshape(grid.shape[0], planes, *grid.shape[1:]).mean(1).numpy()
    return mean


def _coil_gain(shape: tuple[int, int, int], bias: float, random: torch.Generator) -> NDArray[np.float32]:
    """Smooth gain (K, J, I) about 1: a drawn polynomial of second order in the scanner's frame."""
    weights = torch.randn(9, generator=random).numpy()
    z, y, x = np.meshgrid(*(np.linspace(-1.0, 1.0, n) for n in shape), indexing="ij", sparse=True)
    terms = (z, y, x, z * y, z * x, y * x, z * z - 0.5, y * y - 0.5, x * x - 0.5)
    field = np.zeros(shape, np.float32)
    for weight, term in zip(weights, terms, strict=True):
        field += weight * term
    return 1.0 + np.float32(bias) * field / np.abs(field).max()


def _noisy(signal: NDArray[np.float32], deviation: float, random: torch.Generator) -> NDArray[np.float32]:
    """Magnitude of the signal with Gaussian noise on both channels: Rician."""
    real, imaginary = deviation * torch.randn((2, *signal.shape), generator=random).numpy()
    magnitude: NDArray[np.float32] = np.hypot(signal + real, imaginary)
    return magnitude


def _uniform(low: float, high: float, random: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=random))
