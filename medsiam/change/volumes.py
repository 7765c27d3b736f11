"""The volume of a changed structure in both scans, by one rule.

A voxel belongs to a lesion by how far its value lies on the way from the surroundings
to the lesion's level: that is how a voxel on its edge is partly filled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsiam.pairing.values import Pair

# How far (mm) around a change its surroundings begin, and how far beyond the reach they end.
NEAR_MM, BEYOND_MM = 2.0, 4.0
# Beyond the place itself a structure belongs to the lesion where it is filled this far: grey
# matter beside a lesion in white matter often passes half the way.
CORE = 0.75
# Fewer voxels of surroundings than this do not tell their value.
FEWEST_AROUND = 20


@dataclass(frozen=True)
class ChangedVolumes:
    """Volumes in ml in prior and current: of the structure, and within the place of change alone."""

    structure: tuple[float, float]
    place: tuple[float, float]

    @property
    def share(self) -> float:
        """The change of the structure's volume, as a share of its larger state."""
        return _share(self.structure)

    @property
    def share_of_place(self) -> float:
        """Likewise of what fills the place of change."""
        return _share(self.place)


def _share(volumes_ml: tuple[float, float]) -> float:
    return abs(volumes_ml[1] - volumes_ml[0]) / max(*volumes_ml, 1e-9)


def measure_volumes(
    n: int, sign: int, labels: NDArray[np.int32], pair: Pair, reach_mm: float, near: tuple[slice, ...]
) -> ChangedVolumes:
    """Volumes whose differences have the finding's sign, or equal ones.

    n, labels  (K, J, I) int32 on the halfway grid, the place of change is labels == n
    reach_mm   how far a lesion may go beyond its change
    near       the box of the place of change
    """
    structure, within = _filled_ml(n, labels, pair, reach_mm, near)
    place = _signed(within, sign)
    # A structure may change both ways, and its sum tell the opposite of this
    # place; then only the place itself is measured.
    return ChangedVolumes(structure if (structure[1] - structure[0]) * sign > 0.0 else place, place)


def _signed(volumes_ml: tuple[float, float], sign: int) -> tuple[float, float]:
    before_ml, after_ml = volumes_ml
    return volumes_ml if (after_ml - before_ml) * sign > 0.0 else (before_ml, before_ml)


def _filled_ml(
    n: int, labels: NDArray[np.int32], pair: Pair, reach_mm: float, near: tuple[slice, ...]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """None of a voxel below a quarter of the way, all of it above three quarters, in between by share.

    Counted in the place and what hangs on it in either scan, and in the place alone.
    """
    spacing_mm = float(pair.grid.spacing_mm[-1])
    margin = int(np.ceil((reach_mm + BEYOND_MM) / spacing_mm))
    box = widened(near, margin, pair.grid.shape, flat=pair.grid.is_flat)
    place = labels[box] == n
    distance = ndimage.distance_transform_edt(~place) * spacing_mm
    prior, current = pair.prior_half[box], pair.current_half[box]
    ring = (distance > NEAR_MM) & (distance <= reach_mm + BEYOND_MM) & pair.tissue[box] & (labels[box] == 0)
    known = ring if ring.sum() >= FEWEST_AROUND else pair.tissue[box]
    around = float(np.median(0.5 * (prior + current)[known]))
    level = max(
        (_level(values[place], around) for values in (prior, current)), key=lambda value: abs(value - around)
    )
    filled = [_filled(values, around, level) for values in (prior, current)]
    most = np.maximum(*filled)
    seen = (distance <= reach_mm) & pair.tissue[box]
    core = ndimage.binary_dilation(place | (seen & (most > CORE)))
    parts, _ = ndimage.label((core & seen & (most > 0.5)) | place)
    lesion = np.isin(parts, np.unique(parts[place])) & ((labels[box] == 0) | place)
    voxel_ml = pair.grid.voxel_ml
    whole, within = (
        tuple(float(values[counted].sum()) * voxel_ml for values in filled) for counted in (lesion, place)
    )
    return (whole[0], whole[1]), (within[0], within[1])


def _level(values: NDArray[np.float32], around: float) -> float:
    """The value deep inside a lesion: its edge, blurred by the voxels, is left out."""
    deep = 80.0 if float(values.mean()) >= around else 20.0
    return float(np.percentile(values, deep))


def _filled(values: NDArray[np.float32], around: float, level: float) -> NDArray[np.float64]:
    way = (values - around) / (level - around if abs(level - around) > 1e-6 else 1e-6)
    return np.clip((way - 0.25) / 0.5, 0.0, 1.0)


def box_around(place: NDArray[np.bool_], margin: int, flat: bool) -> tuple[slice, ...]:
    """The box of a place, wider by a margin in voxels, within the grid."""
    return widened(ndimage.find_objects(place.astype(np.int8))[0], margin, place.shape, flat=flat)


def widened(box: tuple[slice, ...], margin: int, shape: tuple[int, ...], *, flat: bool) -> tuple[slice, ...]:
    """A box wider by a margin in voxels on each side, within the grid."""
    margins = (0 if flat else margin, margin, margin)
    return tuple(
        slice(max(0, s.start - m), min(size, s.stop + m))
        for s, m, size in zip(box, margins, shape, strict=True)
    )
