"""What pairing hands on: how alike two scans are and how they lie to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsiam.volume import Grid, Matrix, Volume

ComparabilityClass = Literal["same-protocol", "protocol-changed", "not-comparable"]
Quality = Literal["good", "doubtful", "failed"]


@dataclass(frozen=True)
class Difference:
    """One way in which two acquisitions differ, and what it does to a comparison."""

    what: str
    prior: str
    current: str
    effect: str


@dataclass(frozen=True)
class Comparability:
    """Whether two scans can be set side by side, with the reasons.

    category     "same-protocol", "protocol-changed" or "not-comparable"
    differences  each difference found, gravest first
    """

    category: ComparabilityClass
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the prior lies, seen from the current scan, and how sure that is.

    prior_from_current   4 x 4 LPS mm: a point of the current scan to the same
                         anatomy in the prior
    overlap              share 0..1 of the smaller scan's body seen by both
    residual             0..1, one minus the local correlation after registration
    inverse_consistency_mm  mean distance between forward and inverted backward run
    determinant          volume ratio of the affine part
    quality              "good", "doubtful" or "failed"
    reasons              why it is not good, each a plain sentence
    """

    prior_from_current: Matrix
    overlap: float
    residual: float
    determinant: float
    inverse_consistency_mm: float
    quality: Quality
    kind: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Pair:
    """Two scans in their halfway space, each interpolated once, gains equal.

    grid            the halfway grid
    prior_half      (K, J, I) float32 on the halfway grid, equalised, each slicing's share taken out
    current_half    likewise
    tissue          bool: where change is looked for (inside the brain or body, in both)
    tissue_kinds    (5, K, J, I) probabilities of outside, fluid, grey, white, hind brain;
                    None where the region is no brain
    region          "brain", "body" or "field" (a radiograph)
    prior_from_half, current_from_half   4 x 4 LPS mm
    slice_gap       (K, J, I) float32, what the slices alone made of the difference and was taken
                    out; None for radiographs
    notes           what was chosen on the way, plain sentences
    coarse          both scans in voxels hardly finer than the halfway grid's, where their own are
    """

    prior: Volume
    current: Volume
    comparability: Comparability
    registration: Registration
    region: str
    grid: Grid
    prior_half: NDArray[np.float32]
    current_half: NDArray[np.float32]
    tissue: NDArray[np.bool_]
    tissue_kinds: NDArray[np.float32] | None
    prior_from_half: Matrix
    current_from_half: Matrix
    slice_gap: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()
    coarse: tuple[Volume, Volume] | None = None

    @property
    def seen(self) -> tuple[Volume, Volume]:
        """Prior and current in the voxels from which the halves were interpolated."""
        return self.coarse or (self.prior, self.current)
