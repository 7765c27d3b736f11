"""What the findings amount to: the verdict, the figures of the whole scan, and the map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from medsiam.change.comparison import Change, Finding, Verdict
from medsiam.change.difference import DifferenceMap
from medsiam.change.findings import FindingSettings, FoundChange
from medsiam.pairing.sampling import coverage, sample
from medsiam.pairing.values import Pair, Registration
from medsiam.volume import Matrix, Volume

# The score's magnitude is one half at this much change.
HALF_SCORE_ML = 1.0
# Regions in which more than change moves things about, and what to say of it.
NOT_JUDGED = {
    "field": (
        "differences between radiographs are shown but not judged: "
        "position and breathing are not yet told from change"
    ),
    "body": (
        "differences outside the head are shown but not judged: organs move against each other, "
        "and one rigid or affine motion for the whole body cannot tell that from change"
    ),
}
APPEARING: tuple[str, ...] = ("new", "enlarged")


def decide(findings: tuple[Finding, ...], registration: Registration, region: str) -> tuple[Verdict, str]:
    """The verdict and the reason to abstain, "" where there is none."""
    if registration.quality == "failed":
        return "indeterminate", "the two scans could not be registered: " + "; ".join(registration.reasons)
    if registration.quality == "doubtful":
        return "indeterminate", "the registration is doubtful: " + "; ".join(registration.reasons)
    if findings and region in NOT_JUDGED:
        return "indeterminate", NOT_JUDGED[region]
    grown = any(finding.kind in APPEARING for finding in findings)
    gone = any(finding.kind not in APPEARING for finding in findings)
    if grown and gone:
        return "mixed", ""
    return ("progressed" if grown else "improved" if gone else "stable"), ""


def figures(found: FoundChange) -> Change:
    """The whole scan's change: what its findings grew and shrank by, a score that saturates, a p-value."""
    deltas = [finding.delta_ml for finding in found.findings]
    appearing = float(sum(delta for delta in deltas if delta > 0.0))
    resolving = float(-sum(delta for delta in deltas if delta < 0.0))
    total = appearing + resolving
    return Change(
        score=(appearing - resolving) / (total + HALF_SCORE_ML),
        magnitude=total / (total + HALF_SCORE_ML),
        p_value=found.p_value,
        smallest_detectable_ml=None,
        appearing_ml=appearing,
        resolving_ml=resolving,
        order_reversal_error=None,
    )


NOT_MEASURED = Change(
    score=None,
    magnitude=None,
    p_value=None,
    smallest_detectable_ml=None,
    appearing_ml=None,
    resolving_ml=None,
    order_reversal_error=None,
)


def tellable(found: FoundChange, pair: Pair) -> FoundChange | None:
    """The findings as far as they may be told; None where nothing was measured.

    Scans that do not lie on each other have no difference, and a radiograph has no
    volumes: there, only the map is shown.
    """
    if pair.registration.quality == "failed":
        return None
    if pair.region == "field" and found.findings:
        return None
    return found


def on_current_grid(
    pair: Pair, difference: DifferenceMap, found: FoundChange, settings: FindingSettings
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """The map (-1..1, one half at the threshold) and the labels on the current's own grid."""
    signed = np.sign(difference.standing) * np.abs(difference.evidence)
    for label, sign in enumerate(found.signs, start=1):
        place = found.labels == label
        signed[place] = sign * np.abs(difference.evidence[place])
    half_from_current = np.linalg.inv(pair.current_from_half)
    fields = torch.from_numpy(np.stack([signed, np.abs(difference.evidence)]).astype(np.float32))
    evidence = sample(fields, pair.grid, pair.current.grid, half_from_current).numpy()
    change = evidence[0] / (np.abs(evidence[0]) + settings.threshold)
    nearest = _nearest(found.labels, pair, half_from_current)
    held = evidence[1] >= 0.5 * settings.threshold
    return change.astype(np.float32), np.where(held, nearest, 0).astype(np.uint16)


def _nearest(labels: NDArray[np.int32], pair: Pair, half_from_current: Matrix) -> NDArray[np.int32]:
    """Labels at the nearest halfway voxel of each voxel of the current scan."""
    matrix = pair.grid.index_from_world @ half_from_current @ pair.current.grid.world_from_index
    shape = pair.current.grid.shape
    index = []
    for row, size in zip(matrix[:3], pair.grid.shape, strict=True):
        k, j, i = (row[axis] * np.arange(n) for axis, n in enumerate(shape))
        place = np.rint(row[3] + k[:, None, None] + j[None, :, None] + i[None, None, :]).astype(np.int32)
        index.append(np.where((place >= 0) & (place < size), place, -1))
    inside = (index[0] >= 0) & (index[1] >= 0) & (index[2] >= 0)
    return np.where(inside, labels[index[0], index[1], index[2]], 0)


def prior_on_current(prior: Volume, current: Volume, registration: Registration) -> NDArray[np.float32]:
    """The prior on the current's grid (K, J, I) for display; NaN where it does not reach."""
    field = sample(
        torch.tensor(prior.array), prior.grid, current.grid, registration.prior_from_current, outside="border"
    )
    inside = coverage(prior.grid, current.grid, registration.prior_from_current, field.device).bool()
    return torch.where(inside, field, torch.nan).numpy()
