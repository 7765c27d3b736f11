"""What the encoder sees in one place: the pooled pyramid of a lesion's region.

features of a scan + where the lesion lies -> for each level, how the region differs from
the rest of the scan -> one vector of unit length
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsiam.cases.case import unit
from medsiam.encoding.encoder import EncoderSettings, FeatureMap, Features
from medsiam.errors import IndexRefused
from medsiam.volume import Grid, Volume

# A lesion's outline is known to about a voxel; more points change the mean by less than that.
MOST_POINTS = 2000
# A point lies on a lattice this fine within a ball that a reader gave by centre and radius.
LATTICE_MM = 1.0


@dataclass(frozen=True, eq=False)
class Region:
    """A lesion: its number, places (n, 3) in LPS mm, and volume."""

    number: int
    places_mm: NDArray[np.float64]
    volume_ml: float

    @property
    def centre_mm(self) -> tuple[float, float, float]:
        """The mean place."""
        x, y, z = self.places_mm.mean(axis=0)
        return float(x), float(y), float(z)


def region_size(settings: EncoderSettings) -> int:
    """How many numbers a region's vector has."""
    return sum(settings.channels)


def pooled(features: Features, region: Region) -> NDArray[np.float32]:
    """The region's vector: each level's mean over it less the mean of the scan, all levels alike.

    (sum of the channels,), unit length
    """
    parts = [unit(_inside(level, region.places_mm) - _everywhere(level)) for level in features.pyramid]
    return unit(np.concatenate(parts))


def ball_region(centre_mm: Sequence[float], radius_mm: float) -> Region:
    """The region within a radius of a place."""
    # No finer than tells of so many places: thousands say no more of a large ball.
    spacing_mm = max(LATTICE_MM, radius_mm * (4.0 / 3.0 * np.pi / MOST_POINTS) ** (1.0 / 3.0))
    reach = int(radius_mm / spacing_mm)
    steps = spacing_mm * np.arange(-reach, reach + 1)
    offsets = np.array(list(product(steps, repeat=3)))
    inside = offsets[np.linalg.norm(offsets, axis=1) <= radius_mm]
    volume_ml = 4.0 / 3.0 * np.pi * radius_mm**3 / 1000.0
    return Region(1, np.asarray(centre_mm, dtype=np.float64) + inside, float(volume_ml))


def regions_of_labels(volume: Volume) -> tuple[Region, ...]:
    """The lesions of a label map: each number is one; a mask of one number falls into its pieces."""
    labels = np.rint(volume.array).astype(np.int64)
    numbers = np.unique(labels[labels > 0])
    if len(numbers) == 1:
        labels, count = ndimage.label(labels > 0)
        numbers = np.arange(1, count + 1)
    return tuple(_region(int(number), labels == number, volume.grid) for number in numbers)


def check_inside(region: Region, volume: Volume) -> None:
    """Raises IndexRefused where the middle of the region lies outside of the scan."""
    index = volume.grid.index(np.array([region.centre_mm]))[0]
    if (index < -0.5).any() or (index > np.array(volume.grid.shape) - 0.5).any():
        x, y, z = region.centre_mm
        raise IndexRefused(
            f"the finding at {x:.0f}, {y:.0f}, {z:.0f} mm lies outside of the scan; give its place in the "
            "scan's own LPS millimetres, as in report.json"
        )


def _region(number: int, mask: NDArray[np.bool_], grid: Grid) -> Region:
    voxels = np.argwhere(mask)
    step = max(1, len(voxels) // MOST_POINTS)
    places = np.asarray(grid.world(voxels[::step]), dtype=np.float64)
    return Region(number, places, float(len(voxels) * grid.voxel_ml))


def _inside(level: FeatureMap, places_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the places of the level's values, linear between its cells."""
    index = level.grid.index(places_mm).T
    values = level.values.float().cpu().numpy()
    means = [
        ndimage.map_coordinates(channel, index, order=1, mode="nearest").mean(dtype=np.float64)
        for channel in values
    ]
    return np.array(means)


def _everywhere(level: FeatureMap) -> NDArray[np.float64]:
    means: NDArray[np.float64] = level.values.float().cpu().numpy().mean(axis=(1, 2, 3), dtype=np.float64)
    return means
