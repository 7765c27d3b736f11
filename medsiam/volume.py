"""Grids and volumes: where voxels lie, what they hold, and taking them elsewhere.

Arrays are (k, j, i), slices first. World is LPS millimetres. A radiograph is a
grid of one slice. Matrices are named target_from_source, so that products read
by cancelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsiam.errors import GeometryRefused

Matrix = NDArray[np.floating[Any]]

# Scanners write direction cosines with about six digits; beyond this the
# axes are truly sheared (a tilted CT gantry) and must be resampled first.
ORTHOGONALITY_TOLERANCE = 1e-4


def transform(target_from_source: Matrix, points: ArrayLike) -> Matrix:
    """Points (n, 3) of the source frame in the target frame of a 4 x 4 matrix."""
    points = np.asarray(points, dtype=np.float64)
    return points @ target_from_source[:3, :3].T + target_from_source[:3, 3]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: a shape and the matrix from voxel index to world.

    shape             (K, J, I) voxels
    world_from_index  4 x 4, maps (k, j, i, 1) to LPS mm

    Raises GeometryRefused where the matrix is not finite or flat.
    """

    shape: tuple[int, int, int]
    world_from_index: Matrix

    def __post_init__(self) -> None:
        matrix = np.array(self.world_from_index, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise GeometryRefused("the voxel-to-world matrix is not a finite 4 x 4 matrix")
        if min(self.shape) < 1:
            raise GeometryRefused(f"the image is empty: shape {self.shape}")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise GeometryRefused("the voxel-to-world matrix is flat (zero spacing or parallel axes)")
        matrix.flags.writeable = False
        k, j, i = (int(n) for n in self.shape)
        object.__setattr__(self, "shape", (k, j, i))
        object.__setattr__(self, "world_from_index", matrix)

    @property
    def index_from_world(self) -> Matrix:
        """4 x 4, maps LPS mm to voxel index (k, j, i, 1)."""
        return np.linalg.inv(self.world_from_index)

    @property
    def spacing_mm(self) -> Matrix:
        """Distances (k, j, i) in mm between neighbouring voxel centres."""
        return np.linalg.norm(self.world_from_index[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.world_from_index[:3, :3]))) / 1000.0

    @property
    def centre_mm(self) -> Matrix:
        """LPS position (3,) in mm of the middle of the box."""
        return self.world([(np.array(self.shape) - 1) / 2.0])[0]

    @property
    def is_flat(self) -> bool:
        """Whether the grid is a single slice: a radiograph."""
        return self.shape[0] == 1

    @property
    def is_orthogonal(self) -> bool:
        """Whether the axes stand at right angles within ORTHOGONALITY_TOLERANCE."""
        axes = self.world_from_index[:3, :3] / self.spacing_mm
        return bool(np.abs(axes.T @ axes - np.eye(3)).max() < ORTHOGONALITY_TOLERANCE)

    def world(self, index: ArrayLike) -> Matrix:
        """LPS positions (n, 3) in mm of voxel indices (n, 3)."""
        return transform(self.world_from_index, index)

    def index(self, world_mm: ArrayLike) -> Matrix:
        """Voxel indices (n, 3), fractional, of LPS positions (n, 3) in mm."""
        return transform(self.index_from_world, world_mm)

    def corners_mm(self) -> Matrix:
        """LPS positions (8, 3) in mm of the outermost voxel centres."""
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"))
        return self.world(ends.reshape(3, -1).T)

    def moved(self, target_from_world: Matrix) -> Grid:
        """The same voxels after a motion of the world (4 x 4, LPS mm)."""
        return Grid(self.shape, target_from_world @ self.world_from_index)

    def part(self, box: Sequence[slice]) -> Grid:
        """The grid of a box (k, j, i) of its voxels, whose ends are told."""
        matrix = self.world_from_index.copy()
        matrix[:3, 3] = self.world([[side.start for side in box]])[0]
        k, j, i = (int(side.stop - side.start) for side in box)
        return Grid((k, j, i), matrix)

    def is_close(self, other: Grid, tolerance_mm: float = 0.01) -> bool:
        """Whether both grids put every voxel at the same place."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners_mm() - other.corners_mm()).max() <= tolerance_mm)


@dataclass(frozen=True)
class Acquisition:
    """How an image came to be: what the header tells, without any name.

    patient_key    keyed hash of the patient's number and its issuer, None where there is no number
    number_key     keyed hash of the number alone
    issuer         of the patient's number: a hospital's name, "" where none is told
    acquired       local time of acquisition, None where the file does not tell
    sha256         digest of the input's pixels and geometry
    assumptions    what reading had to assume, each a plain sentence
    image_numbers  what an archive's viewer calls each slice k: InstanceNumber, or the number of the
                   frame in its one file; () where not all are told, or two are alike
    protocol       further technique (echo_time_ms, repetition_time_ms,
                   inversion_time_ms, field_strength_t, kernel, slice_thickness_mm,
                   contrast_agent, scanning_sequence, sequence_variant, image_type,
                   manufacturer, model, station, kvp, view_position, laterality,
                   patient_position …); a missing key was not told
    """

    modality: str = ""
    body_part: str = ""
    description: str = ""
    patient_key: str | None = None
    number_key: str | None = None
    birth_key: str | None = None
    issuer: str = ""
    study_uid: str = ""
    series_uid: str = ""
    frame_of_reference_uid: str = ""
    acquired: datetime | None = None
    sha256: str = ""
    assumptions: tuple[str, ...] = ()
    image_numbers: tuple[int, ...] = ()
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Volume:
    """One series as real values on a grid.

    array        (K, J, I) float32, read-only; HU for CT, the scanner's units for MR
    grid         where the voxels lie
    acquisition  how the image came to be

    Raises GeometryRefused where array and grid disagree in shape.
    """

    array: NDArray[np.float32]
    grid: Grid
    acquisition: Acquisition = field(default_factory=Acquisition)

    def __post_init__(self) -> None:
        array = np.asarray(self.array, dtype=np.float32)
        if array.shape != self.grid.shape:
            raise GeometryRefused(f"array {array.shape} and grid {self.grid.shape} differ in shape")
        view = array.view()
        view.flags.writeable = False
        object.__setattr__(self, "array", view)

    @property
    def spatial_dims(self) -> int:
        """2 for a radiograph, 3 for a volume."""
        return 2 if self.grid.is_flat else 3
