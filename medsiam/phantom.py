"""Made-up heads whose right answer is geometry: FLAIR-like scans with known lesions.

    anatomy (implicit surfaces in head mm) -> tissue signal -> mean over the slice's
    thickness -> coil bias -> Rician noise -> Volume, with the truth beside it

Every voxel is evaluated at its own place, never interpolated, so two visits in
different positions differ by exactly what was put in. Nothing here is a model of
disease; it serves demos and tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from medsiam.head_anatomy import Slab, brain_coverage, tissue_signal
from medsiam.volume import Acquisition, Grid, Matrix, Volume

# Sub-slices are at most this far apart, so that a thick slice is a true mean.
SUB_SLICE_MM = 1.0

# White matter in scanner units; the anatomy is written with white matter at 100.
SCANNER_GAIN = 6.0


@dataclass(frozen=True)
class Lesion:
    """A FLAIR-bright spot: an ellipsoid with a soft edge.

    centre_mm  in the head's own frame (LPS mm, origin between the thalami)
    radii_mm   half axes, where the edge is half as bright as the middle
    signal     brightness with white matter at 100
    """

    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    signal: float = 185.0

    @property
    def volume_ml(self) -> float:
        """Volume inside the half-brightness surface, in ml."""
        return float(4.0 / 3.0 * np.pi * np.prod(self.radii_mm) / 1000.0)


@dataclass(frozen=True)
class Scan:
    """How the phantom is scanned.

    spacing_mm  (k, j, i) distance of voxel centres; the slice is as thick as its distance
    field_mm    (k, j, i) extent of the grid
    centre_mm   middle of the grid, LPS mm
    noise       standard deviation in percent of white matter
    bias        largest relative deviation of the coil's gain
    seed        of noise and bias
    """

    spacing_mm: tuple[float, float, float] = (3.0, 1.0, 1.0)
    field_mm: tuple[float, float, float] = (165.0, 220.0, 180.0)
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 17.0)
    noise: float = 3.0
    bias: float = 0.12
    seed: int = 0

    @property
    def grid(self) -> Grid:
        """The scanner's grid: axial slices, rows to the back, columns to the left."""
        shape = tuple(max(1, round(f / s)) for f, s in zip(self.field_mm, self.spacing_mm, strict=True))
        world_from_index = np.zeros((4, 4))
        world_from_index[[2, 1, 0], [0, 1, 2]] = self.spacing_mm
        half = (np.array(shape) - 1) / 2.0
        world_from_index[:3, 3] = np.array(self.centre_mm) - world_from_index[:3, :3] @ half
        world_from_index[3, 3] = 1.0
        return Grid((shape[0], shape[1], shape[2]), world_from_index)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A scan with its truth.

    volume           the scan
    lesion_labels    (K, J, I) uint16, n where lesions[n-1] fills over half the voxel;
                     on thick slices their sum falls short of lesions[n-1].volume_ml
    brain            (K, J, I) bool, brain tissue and ventricles
    head_from_world  4 x 4 LPS mm, the scanner's world to the head's own frame
    """

    volume: Volume
    lesion_labels: NDArray[np.uint16]
    brain: NDArray[np.bool_]
    head_from_world: Matrix
    lesions: tuple[Lesion, ...] = field(default=())


def head_phantom(
    lesions: tuple[Lesion, ...] = (),
    *,
    scan: Scan | None = None,
    world_from_head: Matrix | None = None,
    head_seed: int = 0,
    acquisition: Acquisition | None = None,
) -> Phantom:
    """One scan of the head that head_seed names, in the given position, with its truth."""
    scan = scan or Scan()
    placed = np.eye(4) if world_from_head is None else world_from_head
    head_from_world = np.linalg.inv(placed).astype(np.float64)
    grid = scan.grid
    clean, labels, brain = _scan_slices(grid, head_from_world, lesions, head_seed)
    array = _noisy(clean * _coil_gain(grid, scan), scan)
    # Scanners store whole numbers; so do we, so that writing as DICOM loses nothing.
    array = np.round(array * SCANNER_GAIN).astype(np.float32)
    volume = Volume(array, grid, acquisition or flair_acquisition(scan))
    return Phantom(volume, labels, brain, head_from_world, tuple(lesions))


def position(rotation_deg: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> Matrix:
    """world_from_head (4 x 4, LPS mm): turns about x, y, z in this order, then a shift."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(rotation_deg)):
        turn = np.eye(4)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    matrix[:3, 3] = shift_mm
    return matrix


def flair_acquisition(scan: Scan, acquired: datetime | None = None) -> Acquisition:
    """The header of a FLAIR made by no real scanner."""
    protocol = {
        "echo_time_ms": 120.0,
        "repetition_time_ms": 9000.0,
        "inversion_time_ms": 2500.0,
        "field_strength_t": 3.0,
        "slice_thickness_mm": scan.spacing_mm[0],
        "scanning_sequence": "SE\\IR",
        "sequence_variant": "SK",
        "manufacturer": "medsiam phantom",
        "model": "made-up head",
        "patient_position": "HFS",
    }
    return Acquisition(
        modality="MR", body_part="HEAD", description="FLAIR axial", acquired=acquired, protocol=protocol
    )


def _scan_slices(
    grid: Grid, head_from_world: Matrix, lesions: tuple[Lesion, ...], head_seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint16], NDArray[np.bool_]]:
    """Signal, lesion labels and brain, each slice the mean over its thickness."""
    signal = np.zeros(grid.shape, np.float32)
    labels = np.zeros(grid.shape, np.uint16)
    brain = np.zeros(grid.shape, bool)
    steps = max(1, int(np.ceil(grid.spacing_mm[0] / SUB_SLICE_MM)))
    offsets = (np.arange(steps) + 0.5) / steps - 0.5
    head_from_index = head_from_world @ grid.world_from_index
    pixel_mm = float(grid.spacing_mm[1:].max())
    for k in range(grid.shape[0]):
        shares = np.zeros((len(lesions), *grid.shape[1:]), np.float32)
        inside = np.zeros(grid.shape[1:], np.float32)
        for offset in offsets:
            slab = Slab.at(head_from_index, k + offset, grid.shape[1:], pixel_mm, head_seed)
            plane = tissue_signal(slab)
            for n, lesion in enumerate(lesions):
                share = _lesion_share(lesion, slab)
                plane = plane + share * (lesion.signal - plane)
                shares[n] += share / steps
            signal[k] += plane / steps
            inside += brain_coverage(slab) / steps
        for n in range(len(lesions)):
            labels[k][shares[n] > 0.5] = n + 1
        brain[k] = inside > 0.5
    return signal, labels, brain


def _lesion_share(lesion: Lesion, slab: Slab) -> NDArray[np.float32]:
    """Share 0..1 of each place that the lesion takes, one half on its surface."""
    middle = slab.ellipsoid(lesion.centre_mm, lesion.radii_mm)
    # Plaques end over about a millimetre, not at a knife's edge.
    return np.clip(0.5 - middle / (1.2 + slab.pixel_mm), 0.0, 1.0)


def _coil_gain(grid: Grid, scan: Scan) -> NDArray[np.float32]:
    """Smooth gain (K, J, I) about 1, fixed to the scanner and drawn by the seed."""
    if scan.bias == 0.0:
        return np.ones(grid.shape, np.float32)
    draw = np.random.default_rng([scan.seed, 1]).uniform(-1.0, 1.0, 6)
    k, j, i = (np.linspace(-1.0, 1.0, n, dtype=np.float32) for n in grid.shape)
    z, y, x = k[:, None, None], j[None, :, None], i[None, None, :]
    terms = (z, y, x, z * y, x * y, y * y - 0.5)
    shape = np.zeros(grid.shape, np.float32)
    for weight, term in zip(draw, terms, strict=True):
        shape += np.float32(weight) * term
    return (1.0 + scan.bias * shape / np.abs(shape).max()).astype(np.float32)


def _noisy(signal: NDArray[np.float32], scan: Scan) -> NDArray[np.float32]:
    """Magnitude of the signal with complex Gaussian noise: Rician."""
    if scan.noise == 0.0:
        return signal
    rng = np.random.default_rng([scan.seed, 2])
    real = signal + scan.noise * rng.standard_normal(signal.shape, np.float32)
    imaginary = scan.noise * rng.standard_normal(signal.shape, np.float32)
    return np.hypot(real, imaginary)
