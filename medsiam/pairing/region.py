"""Where in a scan the patient is: the brain where one is seen, else the body."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsiam.pairing.brain_net import WEIGHTS, BrainTissue, largest_piece, segment_brain
from medsiam.sampling import Field, sample
from medsiam.volume import Grid, Matrix, Volume

RegionKind = Literal["brain", "body", "field"]
# Denser than fat, so that clothes and couch foam stay out and lungs are filled in later.
BODY_HU = -300.0
# Otsu needs no more resolution than this to part the body from air.
HISTOGRAM_BINS = 256
# Bridges of up to 12 mm, at the network's 3 mm, part a brain from what is none.
BRIDGE_VOXELS = 2
# A visit is the current of one pair, the prior of the next and an end of its trajectory. At the
# network's 3 mm a brain takes 5 to 18 MB; on the scan's own grid it would be gigabytes.
MOST_KEPT = 4


@dataclass(frozen=True, eq=False)
class Region:
    """Where change is looked for in one scan, and what the choice was.

    weight  (K, J, I) float32 0..1 on the scan's grid
    note    the choice in a plain sentence
    tissue  (5, k, j, i) float32 probabilities (outside, fluid, grey, white, hind brain) of a
            brain on the network's grid, tissue_grid: on the scan's own they would be gigabytes
    """

    kind: RegionKind
    weight: NDArray[np.float32]
    note: str
    tissue: NDArray[np.float32] | None = None
    tissue_grid: Grid | None = None

    def tissue_on(self, target: Grid, own_from_target: Matrix) -> Field | None:
        """The tissues' probabilities (5, *target.shape); None where no brain was found.

        own_from_target  4 x 4 LPS mm, from the target's world to the scan's
        """
        if self.tissue is None or self.tissue_grid is None:
            return None
        return sample(torch.from_numpy(self.tissue), self.tissue_grid, target, own_from_target)


def find_region(volume: Volume, *, brain: bool = True) -> Region:
    """The brain of a head scan, the body of any other, the exposed field of a radiograph.

    brain  whether a brain is looked for
    """
    if volume.spatial_dims == 2:
        return Region("field", _exposed(volume.array), "the whole exposed field is compared")
    if brain and volume.acquisition.modality in ("MR", "CT", ""):
        head = _KEPT.brain_of(volume)
        if head.plausible:
            kept = head.probability * _without_bridges(head.probability[1:].sum(axis=0) > 0.5)
            # Outside the network's box the first class, "outside", is meant.
            brain_share = torch.from_numpy(kept[1:].sum(axis=0))
            weight = sample(brain_share, head.grid, volume.grid, np.eye(4)).numpy()
            told = "a brain is seen; change is looked for inside it"
            return Region("brain", weight, told, kept, head.grid)
    return Region("body", _body(volume), "no brain is seen; change is looked for in the whole body")


class KeptBrains:
    """The brains found last, each under a digest of all that finding it looks at.

    The digest is of the voxels themselves: a header may be shared by a scan and what was made of it.
    """

    def __init__(self, find: Callable[[Volume], BrainTissue] = segment_brain) -> None:
        self._find = find
        self._found: OrderedDict[str, BrainTissue] = OrderedDict()
        self._lock = Lock()

    def brain_of(self, volume: Volume) -> BrainTissue:
        """What `find` says of a scan, asked once while the scan is among the last MOST_KEPT."""
        name = _digest(volume)
        with self._lock:
            found = self._found.pop(name, None)
        found = found or self._find(volume)
        with self._lock:
            self._found[name] = found
            while len(self._found) > MOST_KEPT:
                self._found.popitem(last=False)
        return found


_KEPT = KeptBrains()


def _digest(volume: Volume) -> str:
    told = f"{volume.acquisition.modality} {volume.array.shape} {volume.array.dtype}"
    found = hashlib.sha256(told.encode())
    found.update(volume.grid.world_from_index.tobytes())
    found.update(np.ascontiguousarray(volume.array).data)
    return found.hexdigest()


def _without_bridges(brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The brain less what hangs on it by a thin bridge: orbits, nerves, marrow.

    Eroded by BRIDGE_VOXELS of the network's grid, its largest piece is grown back
    by one voxel more, so that the brain keeps its rim.
    """
    core = ndimage.binary_erosion(brain, iterations=BRIDGE_VOXELS)
    if not core.any():
        return brain
    return ndimage.binary_dilation(largest_piece(core), iterations=BRIDGE_VOXELS + 1)


def brain_weights_sha256() -> str:
    """The digest of the network that finds the brain, as its loader checks it."""
    return WEIGHTS.with_suffix(".sha256").read_text(encoding="ascii").split()[0]


def _exposed(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 except in the collimated border, where values do not change over the outermost rows."""
    field = np.ones(array.shape, dtype=np.float32)
    for axis in (1, 2):
        spread = array.max(axis=axis) - array.min(axis=axis)
        flat = spread <= 0.01 * (array.max() - array.min())
        field *= np.where(np.expand_dims(flat, axis), 0.0, 1.0).astype(np.float32)
    return field


def _body(volume: Volume) -> NDArray[np.float32]:
    """The largest connected part above air, holes filled slice by slice."""
    array = volume.array
    threshold = BODY_HU if volume.acquisition.modality == "CT" else _otsu(array)
    mask = ndimage.binary_opening(array > threshold, iterations=1)
    if not mask.any():
        return np.ones(array.shape, dtype=np.float32)
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in largest_piece(mask)])
    return filled.astype(np.float32)


def _otsu(array: NDArray[np.float32]) -> float:
    """Otsu's threshold between air and body (IEEE Trans. SMC 9, 1979), on the lower 99 %."""
    top = float(np.percentile(array, 99.0))
    counts, edges = np.histogram(array, bins=HISTOGRAM_BINS, range=(float(array.min()), top))
    centres = 0.5 * (edges[:-1] + edges[1:])
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(centres[np.nan_to_num(between).argmax()])
