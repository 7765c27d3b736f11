"""What the slices of two acquisitions make of one and the same anatomy, told apart from change.

    both scans in the halfway space -> the anatomy that explains both, seen through each one's slices
    anatomy -> as each scan's slices show it -> the difference that slices alone make -> shared by halves

Slices that are thicker, turned, or only lie elsewhere cut an edge otherwise and blur it otherwise.
The anatomy is found by iterative back-projection (Irani and Peleg 1991, CVGIP 53; for slices of
several orientations Greenspan et al. 2002, Magnetic Resonance Imaging 20): what the scans show
beyond the present guess is added to it. A real change is no common anatomy, and stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsiam.sampling import Field, sample, sample_mean
from medsiam.volume import Grid, Matrix, Volume

# Steps of the back-projection, as shares of what is still unexplained. Longer ones in the middle
# reach the finest detail with few (Richardson's iteration with Chebyshev's steps, cut short:
# what is finer still would be noise).
STEPS = (1.0, 1.5, 2.5, 1.5)
# A slice is the mean of planes about this far apart, or about as far as the halfway grid's voxels.
PLANE_MM = 1.0


@dataclass(frozen=True, eq=False)
class Slicing:
    """How one scan shows an anatomy that lies in the halfway space.

    half        the halfway grid
    planes      the scan's grid over it, once for each plane of which a slice is the mean
    slices      the scan's grid over it
    scan_from_half  4 x 4 LPS mm
    """

    half: Grid
    planes: tuple[Grid, ...]
    slices: Grid
    scan_from_half: Matrix

    @classmethod
    def of(cls, volume: Volume, scan_from_half: Matrix, half: Grid) -> Slicing:
        """The slicing of a scan whose place is known."""
        slices, axis = _slices_over(volume.grid, scan_from_half, half)
        thick_mm = float(volume.grid.spacing_mm[axis])
        count = max(1, round(thick_mm / max(PLANE_MM, float(half.spacing_mm[-1]))))
        offsets = (np.arange(count) + 0.5) / count - 0.5
        planes = []
        for offset in offsets:
            matrix = slices.world_from_index.copy()
            matrix[:3, 3] += offset * matrix[:3, axis]
            planes.append(Grid(slices.shape, matrix))
        return cls(half, tuple(planes), slices, scan_from_half)

    def shows(self, anatomy: Field) -> Field:
        """A field (K, J, I) on the halfway grid as the scan, interpolated there, shows it."""
        half_from_scan = np.linalg.inv(self.scan_from_half)
        seen = sample_mean(anatomy, self.half, self.planes, half_from_scan, outside="border")
        return sample(seen, self.slices, self.half, self.scan_from_half, outside="border")


def slicings_of(
    volumes: tuple[Volume, Volume], motions: tuple[Matrix, Matrix], half: Grid
) -> tuple[Slicing, Slicing]:
    """The slicings of prior and current; motions are each scan_from_half, 4 x 4 LPS mm."""
    return Slicing.of(volumes[0], motions[0], half), Slicing.of(volumes[1], motions[1], half)


def slice_gap(prior: Field, current: Field, slicings: tuple[Slicing, Slicing]) -> Field:
    """What the slicings alone make of the difference current - prior, (K, J, I).

    prior, current  (K, J, I) on the halfway grid, intensities equal; the result is linear in
                    both, and exchanging scans and slicings turns its sign
    """
    first, second = slicings
    anatomy = 0.5 * (prior + current)
    for step in STEPS:
        left = (prior - first.shows(anatomy)) + (current - second.shows(anatomy))
        anatomy = anatomy + (0.5 * step) * left
    return second.shows(anatomy) - first.shows(anatomy)


def with_like_slices(prior: Field, current: Field, slicings: tuple[Slicing, Slicing]) -> tuple[Field, Field]:
    """Both fields less half of the gap, as slices midway between both scans' would show them."""
    return less_gap(prior, current, slice_gap(prior, current, slicings))


def less_gap(prior: Field, current: Field, gap: Field) -> tuple[Field, Field]:
    """Both fields, each taken half of the gap towards the other."""
    return prior + 0.5 * gap, current - 0.5 * gap


def _slices_over(grid: Grid, scan_from_half: Matrix, half: Grid) -> tuple[Grid, int]:
    """A scan's grid, cut to what covers the halfway grid, and the axis of the slices."""
    axis = int(np.argmax(grid.spacing_mm))
    corners = np.concatenate([half.corners_mm(), np.ones((8, 1))], axis=1) @ scan_from_half.T
    index = (corners @ grid.index_from_world.T)[:, :3]
    last = np.array(grid.shape) - 1
    low = np.clip(np.floor(index.min(axis=0)).astype(int) - 1, 0, last)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, low, last)
    return grid.part([slice(first, end + 1) for first, end in zip(low, high, strict=True)]), axis
