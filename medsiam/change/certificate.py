"""Two checks that each comparison makes of itself, and prints.

the whole comparison from current to prior     -> must say the opposite
a finding replaced by the registered prior     -> the change must become less
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsiam.change.comparison import ErasedFinding, EraseTest, OrderReversal
from medsiam.change.difference import DifferenceMap, measure_difference
from medsiam.change.figures import figures
from medsiam.change.findings import (
    Candidates,
    FindingSettings,
    FoundChange,
    find_candidates,
    find_changes,
)
from medsiam.change.noise_floor import StepSettings
from medsiam.change.noise_rate import NoiseRate
from medsiam.change.volumes import widened
from medsiam.pairing.motion import mean_distance_mm
from medsiam.pairing.values import Pair
from medsiam.sampling import sample


@dataclass(frozen=True, eq=False)
class Measured:
    """A pair and what was found in it."""

    pair: Pair
    difference: DifferenceMap
    found: FoundChange


@dataclass(frozen=True, eq=False)
class Searched:
    """A pair and its candidates, before its noise rate is known."""

    pair: Pair
    difference: DifferenceMap
    candidates: Candidates

    def at(self, noise: NoiseRate, settings: FindingSettings) -> Measured:
        """What is found at this noise rate."""
        return Measured(self.pair, self.difference, find_changes(self.pair, self.candidates, noise, settings))


def searched(pair: Pair, steps: StepSettings, device: torch.device) -> Searched:
    """The candidates of a pair."""
    difference = measure_difference(pair, steps.difference, device)
    return Searched(pair, difference, find_candidates(pair, difference, steps.findings))


# A finding is replaced this far beyond its voxels, over a soft edge of the second length.
BEYOND_MM, EDGE_MM = 3.0, 2.0
# Beyond these the two directions do not say the same, and no verdict is given.
MOST_ERROR, LEAST_DICE = 0.05, 0.8
# Points of the region at which the two registrations are compared.
MOST_POINTS = 2000


def order_reversal(forward: Measured, backward: Measured, threshold: float) -> OrderReversal:
    """How far the comparison of (current, prior) is from the opposite of that of (prior, current).

    threshold  evidence from which a voxel shows change
    """
    one, other = (figures(told.found).score or 0.0 for told in (forward, backward))
    pair, turned = forward.pair, backward.pair
    # From this halfway space to the prior, which is the other comparison's current scan.
    turned_from_half = np.linalg.inv(turned.current_from_half) @ pair.prior_from_half
    evidence = torch.from_numpy(backward.difference.evidence)
    opposite = -sample(evidence, turned.grid, pair.grid, turned_from_half).numpy()
    here = forward.difference.evidence
    both = sum(
        int(((sign * here >= threshold) & (sign * opposite >= threshold)).sum()) for sign in (1.0, -1.0)
    )
    total = int((np.abs(here) >= threshold).sum() + (np.abs(opposite) >= threshold).sum())
    places = np.argwhere(pair.tissue)
    points = places[:: max(1, len(places) // MOST_POINTS)] if len(places) else np.zeros((1, 3))
    return OrderReversal(
        error=abs(one + other),
        dice=2.0 * both / total if total else 1.0,
        registration_mm=mean_distance_mm(
            pair.registration.prior_from_current,
            np.linalg.inv(turned.registration.prior_from_current),
            pair.grid.world(points),
        ),
    )


def reversal_doubt(reversal: OrderReversal) -> str:
    """Why the two directions do not agree, "" where they do."""
    if reversal.error > MOST_ERROR:
        return f"compared from current to prior the score differs by {reversal.error:.2f}"
    if reversal.dice < LEAST_DICE:
        return f"compared from current to prior the map of change agrees to {reversal.dice:.0%} only"
    return ""


def erase_test(
    told: Measured, noise: NoiseRate, steps: StepSettings, device: torch.device, *, most: int
) -> EraseTest:
    """What is left of the magnitude once findings are replaced by the registered prior.

    most  findings that are also erased one by one, the most certain first
    """
    found = told.found

    def left(labels: NDArray[np.int32]) -> float:
        erased = searched(_with_prior_at(told.pair, labels), steps, device).at(noise, steps.findings)
        return figures(erased.found).magnitude or 0.0

    labels = [finding.label for finding in found.findings]
    whole = left(found.labels) if labels else 0.0
    each = [
        ErasedFinding(label, whole if len(labels) == 1 else left((found.labels == label).astype(np.int32)))
        for label in labels[:most]
    ]
    return EraseTest(figures(found).magnitude or 0.0, whole, tuple(each))


def _with_prior_at(pair: Pair, labels: NDArray[np.int32]) -> Pair:
    """The pair whose current scan shows the prior wherever a place is labelled, with a soft edge."""
    spacing_mm = float(pair.grid.spacing_mm[-1])
    margin = int(np.ceil((BEYOND_MM + EDGE_MM) / spacing_mm))
    share = np.zeros(pair.grid.shape, dtype=np.float32)
    for label, near in enumerate(ndimage.find_objects(labels), start=1):
        box = widened(near, margin, pair.grid.shape, flat=pair.grid.is_flat) if near else ()
        if box:
            far_mm = ndimage.distance_transform_edt(labels[box] != label) * spacing_mm
            own = np.clip((BEYOND_MM + EDGE_MM - far_mm) / EDGE_MM, 0.0, 1.0)
            share[box] = np.maximum(share[box], own)
    return replace(pair, current_half=share * pair.prior_half + (1.0 - share) * pair.current_half)
