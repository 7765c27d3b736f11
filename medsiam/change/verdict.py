"""What the findings amount to: the verdict, the figures of the whole scan, and the map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from medsiam.change.comparison import Change, Finding, Verdict
from medsiam.change.figures import NOT_MEASURED, figures, opacity_figures
from medsiam.change.findings import FindingSettings, tracking_uid
from medsiam.change.measure import MeasuredChange
from medsiam.change.radiograph import (
    OpacityFinding,
    decide_radiograph,
    measure_radiograph_change,
    radiograph_on_current,
)
from medsiam.pairing.radiograph_pair import RadiographPair
from medsiam.pairing.radiograph_pair import prior_on_current as radiograph_prior_on_current
from medsiam.pairing.values import Pair, Registration
from medsiam.sampling import coverage, sample
from medsiam.volume import Matrix, Volume, transform

# Regions in which more than change moves things about, and what to say of it.
NOT_JUDGED = {
    "body": (
        "differences outside the head are shown but not judged: organs move against each other, "
        "and one rigid or affine motion for the whole body cannot tell that from change"
    ),
}
APPEARING: tuple[str, ...] = ("new", "enlarged")


def decide(pair: Pair, change: MeasuredChange | None) -> tuple[Verdict, str]:
    """The verdict and the reason to abstain, "" where there is none."""
    registration = pair.registration
    if registration.quality == "failed":
        return "indeterminate", "the two scans could not be registered: " + "; ".join(registration.reasons)
    if registration.quality == "doubtful":
        return "indeterminate", "the registration is doubtful: " + "; ".join(registration.reasons)
    findings = () if change is None else change.measured.found.findings
    if findings and pair.region in NOT_JUDGED:
        return "indeterminate", NOT_JUDGED[pair.region]
    if change is not None and change.doubt:
        return "indeterminate", change.doubt
    grown = any(finding.kind in APPEARING for finding in findings)
    gone = any(finding.kind not in APPEARING for finding in findings)
    if grown and gone:
        return "mixed", ""
    return ("progressed" if grown else "improved" if gone else "stable"), ""


@dataclass(frozen=True, eq=False)
class Judged:
    """What a pair amounts to, its images on the current's own grid.

    reason            why there is no verdict, "" where there is one
    change_map        (K, J, I) float32, -1..1
    labels            (K, J, I) uint16, n = findings[n-1]
    prior_on_current  (K, J, I) float32, NaN where the prior does not reach
    certificates      what was measured beside the change; None for a radiograph
    """

    verdict: Verdict
    reason: str
    figures: Change
    findings: tuple[Finding, ...]
    change_map: NDArray[np.float32]
    labels: NDArray[np.uint16]
    prior_on_current: NDArray[np.float32]
    certificates: MeasuredChange | None = None


def judge_change(pair: Pair, change: MeasuredChange | None, settings: FindingSettings) -> Judged:
    """The verdict on two volumes; None and nothing but zeros where they could not be registered."""
    verdict, reason = decide(pair, change)
    laid = prior_on_current(pair.prior, pair.current, pair.registration)
    if change is None:
        shape = pair.current.grid.shape
        nothing = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
        return Judged(verdict, reason, NOT_MEASURED, (), *nothing, laid)
    found = change.measured.found
    # No millilitre found where none could be told would read as no change.
    unseen = verdict == "indeterminate" and not found.findings
    told = replace(
        replace(NOT_MEASURED, p_value=found.p_value) if unseen else figures(found),
        smallest_detectable_ml=change.floor.smallest_ml,
        order_reversal_error=change.order_reversal.error,
    )
    images = on_current_grid(change, settings)
    return Judged(verdict, reason, told, found.findings, *images, laid, change)


def judge_radiographs(radiograph: RadiographPair) -> Judged:
    """The verdict on two chest radiographs; where none may be given only the map is shown.

    The order of the two is settled by their pixels before anything is measured, so that the
    reversed comparison is the same one with its signs exchanged: its error is nought by making.
    """
    change = measure_radiograph_change(radiograph)
    verdict, reason = decide_radiograph(change)
    change_map, labels = radiograph_on_current(radiograph, change)
    laid = radiograph_prior_on_current(radiograph)
    if change.reasons:
        return Judged(verdict, reason, NOT_MEASURED, (), change_map, np.zeros_like(labels), laid)
    told = opacity_figures([finding.delta_percent for finding in change.findings], change.p_value)
    findings = tuple(_opacity(finding, radiograph.pair) for finding in change.findings)
    return Judged(verdict, reason, told, findings, change_map, labels, laid)


def _opacity(finding: OpacityFinding, pair: Pair) -> Finding:
    return Finding(
        label=finding.label,
        tracking_uid=tracking_uid(pair, np.array(finding.centre_lps_mm)),
        kind=finding.kind,
        centre_lps_mm=finding.centre_lps_mm,
        volume_prior_ml=None,
        volume_current_ml=None,
        delta_ml=None,
        p_value=finding.p_value,
        area_prior_percent=finding.area_prior_percent,
        area_current_percent=finding.area_current_percent,
        delta_percent=finding.delta_percent,
        zone=finding.zone,
    )


def on_current_grid(
    change: MeasuredChange, settings: FindingSettings
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """The map (-1..1) and the labels on the current's own grid."""
    pair, found, difference = change.measured.pair, change.measured.found, change.measured.difference
    strength = np.abs(change.shown)
    signed = np.sign(difference.standing) * strength
    for label, sign in enumerate(found.signs, start=1):
        place = found.labels == label
        signed[place] = sign * strength[place]
    half_from_current = np.linalg.inv(pair.current_from_half)
    fields = torch.from_numpy(np.stack([signed, np.abs(difference.evidence)]).astype(np.float32))
    evidence = sample(fields, pair.grid, pair.current.grid, half_from_current).numpy()
    change_map = evidence[0] / (np.abs(evidence[0]) + settings.threshold)
    held = evidence[1] >= 0.5 * settings.threshold
    return change_map.astype(np.float32), _nearest(found.labels, held, pair, half_from_current)


def _nearest(
    labels: NDArray[np.int32], held: NDArray[np.bool_], pair: Pair, half_from_current: Matrix
) -> NDArray[np.uint16]:
    """Labels at the nearest halfway voxel of each voxel of the current scan that is held, 0 elsewhere."""
    matrix = pair.grid.index_from_world @ half_from_current @ pair.current.grid.world_from_index
    places = np.argwhere(held)
    index = np.rint(transform(matrix, places)).astype(np.int32)
    inside = ((index >= 0) & (index < pair.grid.shape)).all(axis=1)
    nearest = np.zeros(held.shape, np.uint16)
    nearest[tuple(places[inside].T)] = labels[tuple(index[inside].T)]
    return nearest


def prior_on_current(prior: Volume, current: Volume, registration: Registration) -> NDArray[np.float32]:
    """The prior on the current's grid (K, J, I) for display; NaN where it does not reach."""
    field = sample(
        torch.tensor(prior.array), prior.grid, current.grid, registration.prior_from_current, outside="border"
    )
    inside = coverage(prior.grid, current.grid, registration.prior_from_current, field.device).bool()
    return torch.where(inside, field, torch.nan).numpy()
