"""From the map of evidence to findings: which places changed, how much, and how surely."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from medsiam.change.comparison import Finding, Kind
from medsiam.change.difference import DifferenceMap
from medsiam.pairing.intensity import robust_deviation
from medsiam.pairing.sampling import smooth
from medsiam.pairing.values import Pair
from medsiam.volume import transform


@dataclass(frozen=True)
class FindingSettings:
    """What counts as a finding.

    threshold        evidence from which a voxel belongs to a finding
    seed             evidence that at least one of its voxels must reach
    least_contrast   mean contrast, in units of the typical tissue value (CT: of 100 HU);
                     flow in vessels alone changes signal by nearly as much
    rim_mm           the most certain voxel must lie this far inside the region,
                     whose border is known to one voxel of the network that finds it
    least_mm3        smallest volume of change
    least_share      smallest change of a structure's volume, as a share of its larger
                     state: within one scanner volumes repeat to about 15 %
    significance     false discovery rate; in a scan without change, the chance of any finding
    scales_mm        sizes of the matched filters over which the p-value is taken
    reach_mm         how far a lesion may go beyond its change when it is measured
    absent_share     a lesion smaller than this share of its other self was not there
    """

    threshold: float = 1.0
    seed: float = 2.0
    least_contrast: float = 0.15
    rim_mm: float = 3.0
    least_mm3: float = 12.0
    least_share: float = 0.15
    significance: float = 0.05
    scales_mm: tuple[float, ...] = (0.0, 2.0, 4.0)
    reach_mm: float = 6.0
    absent_share: float = 0.15


@dataclass(frozen=True, eq=False)
class FoundChange:
    """Findings with their places on the halfway grid.

    labels   (K, J, I) int32, n = findings[n-1]
    signs    +1 appearing or -1 resolving, one a finding
    p_value  that noise alone makes the strongest place of the scan that qualifies in
             contrast, size and share; 1 where none does
    """

    findings: tuple[Finding, ...]
    labels: NDArray[np.int32]
    signs: tuple[int, ...]
    p_value: float


@dataclass(frozen=True)
class _Candidate:
    """A connected place on its way to a finding; volumes in ml."""

    label: int
    sign: int
    p_value: float
    before_ml: float
    after_ml: float


# Robust deviations per smoothing scale are taken with at least this noise.
LEAST_SPREAD = 0.05
# Where the tail of the noise is read off: real change fills less than a tenth of a scan.
TAIL_QUANTILE = 0.9


def find_changes(pair: Pair, difference: DifferenceMap, settings: FindingSettings) -> FoundChange:
    """All places that changed beyond the noise, the most certain first."""
    surprise = _surprise(pair, difference, settings)
    labels, signs = _components(pair, difference, settings)
    candidates = _candidates(labels, signs, surprise, pair, difference, settings)
    p_whole = min((candidate.p_value for candidate in candidates), default=1.0)
    candidates = [candidate for candidate in candidates if candidate.p_value <= settings.significance]
    candidates.sort(key=lambda candidate: (candidate.p_value, candidate.label))
    renumbered = np.zeros(labels.max() + 1, dtype=np.int32)
    renumbered[[candidate.label for candidate in candidates]] = np.arange(1, len(candidates) + 1)
    ordered = renumbered[labels]
    findings = tuple(
        _finding(n, candidate, ordered, pair, settings) for n, candidate in enumerate(candidates, start=1)
    )
    return FoundChange(findings, ordered, tuple(candidate.sign for candidate in candidates), p_whole)


def _candidates(
    labels: NDArray[np.int32],
    signs: list[int],
    surprise: NDArray[np.float64],
    pair: Pair,
    difference: DifferenceMap,
    settings: FindingSettings,
) -> list[_Candidate]:
    """The places that qualify in contrast, depth and change of volume, whatever their p-value."""
    depth_mm = ndimage.distance_transform_edt(pair.tissue) * float(pair.grid.spacing_mm[-1])
    out = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        place = labels[box] == label
        contrast = float(np.abs(difference.contrast[box][place]).mean())
        strongest = int(np.abs(difference.evidence[box][place]).argmax())
        if contrast < settings.least_contrast or depth_mm[box][place][strongest] < settings.rim_mm:
            continue
        volumes = _measured(label, signs[label - 1], labels, pair, settings)
        least_ml = max(settings.least_share * max(volumes), settings.least_mm3 / 1000.0)
        if abs(volumes[1] - volumes[0]) >= least_ml:
            p_value = float(surprise[box][place].min())
            out.append(_Candidate(label, signs[label - 1], p_value, *volumes))
    return out


def _surprise(pair: Pair, difference: DifferenceMap, settings: FindingSettings) -> NDArray[np.float64]:
    """Per voxel, its p-value adjusted so that the false discovery rate of the scan is controlled.

    Contrast over noise is averaged over several sizes, each divided by its own
    typical deviation, so that spatially correlated noise is not taken for many
    independent voxels. The tail is Student's, with the degrees of freedom that
    the scan shows. Benjamini and Hochberg (1995) over the independent places of
    each size, Bonferroni over the sizes: where nothing changed this bounds the
    chance of any finding at all.
    """
    score = torch.from_numpy(np.where(pair.tissue, difference.contrast / difference.noise, 0.0))
    smallest = np.ones(pair.grid.shape)
    if not pair.tissue.any():
        return smallest
    spacing_mm = float(pair.grid.spacing_mm[-1])
    for scale_mm in settings.scales_mm:
        field = smooth(score, (scale_mm / spacing_mm,) * 3).numpy()[pair.tissue]
        spread = max(robust_deviation(torch.from_numpy(field)), LEAST_SPREAD)
        deviations = np.abs(field) / spread
        single = 2.0 * stats.t.sf(deviations, _tail_freedom(deviations))
        adjusted = _discovery_rate(single, _independent_places(pair, scale_mm))
        smallest[pair.tissue] = np.minimum(smallest[pair.tissue], len(settings.scales_mm) * adjusted)
    return np.minimum(smallest, 1.0)


def _discovery_rate(p_values: NDArray[np.float64], places: float) -> NDArray[np.float64]:
    """P-values adjusted after Benjamini and Hochberg, for voxels of which several make one place."""
    order = np.argsort(p_values, kind="stable")
    rank = np.maximum(np.arange(1, order.size + 1) * (places / order.size), 1.0)
    adjusted = np.minimum.accumulate((p_values[order] * places / rank)[::-1])[::-1]
    out = np.empty_like(adjusted)
    out[order] = adjusted
    return out


def _tail_freedom(deviations: NDArray[np.float64]) -> float:
    """Degrees of freedom of the Student tail that this scan's deviations show.

    Read at TAIL_QUANTILE, beyond which real change may lie.
    """
    if deviations.size < 1000:
        return 5.0
    seen = float(np.quantile(deviations, TAIL_QUANTILE)) / max(float(np.quantile(deviations, 0.5)), 1e-6)
    candidates = np.array([3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 30.0, 100.0])
    expected = stats.t.ppf(0.5 + TAIL_QUANTILE / 2.0, candidates) / stats.t.ppf(0.75, candidates)
    return float(candidates[int(np.abs(expected - seen).argmin())])


def _independent_places(pair: Pair, scale_mm: float) -> float:
    """How many filters of this size fit into the tissue."""
    spacing_mm = float(pair.grid.spacing_mm[-1])
    dims = 2 if pair.grid.is_flat else 3
    width_mm = max(scale_mm, spacing_mm) * 2.355
    extent = float(pair.tissue.sum()) * spacing_mm**dims
    return max(1.0, extent / width_mm**dims)


def _components(
    pair: Pair, difference: DifferenceMap, settings: FindingSettings
) -> tuple[NDArray[np.int32], list[int]]:
    """Connected places of one direction of contrast with a seed, and +1 or -1 for each."""
    labels = np.zeros(pair.grid.shape, dtype=np.int32)
    signs: list[int] = []
    dims = 2 if pair.grid.is_flat else 3
    least = settings.least_mm3 / float(pair.grid.spacing_mm[-1]) ** dims
    for direction in (1.0, -1.0):
        evidence = direction * difference.evidence
        parts, _ = ndimage.label(evidence >= settings.threshold)
        for part, box in enumerate(ndimage.find_objects(parts), start=1):
            place = parts[box] == part
            if place.sum() < least or evidence[box][place].max() < settings.seed:
                continue
            signs.append(1 if float(difference.standing[box][place].sum()) >= 0.0 else -1)
            labels[box][place] = len(signs)
    return labels, signs


def _finding(
    n: int, candidate: _Candidate, labels: NDArray[np.int32], pair: Pair, settings: FindingSettings
) -> Finding:
    half_mm = pair.grid.world(np.argwhere(labels == n).mean(axis=0)[None])
    centre = transform(pair.current_from_half, half_mm)[0]
    return Finding(
        label=n,
        tracking_uid=_tracking_uid(pair, centre),
        kind=_kind(candidate.sign, candidate.before_ml, candidate.after_ml, settings),
        centre_lps_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
        volume_prior_ml=candidate.before_ml,
        volume_current_ml=candidate.after_ml,
        delta_ml=candidate.after_ml - candidate.before_ml,
        p_value=candidate.p_value,
    )


def _measured(
    n: int, sign: int, labels: NDArray[np.int32], pair: Pair, settings: FindingSettings
) -> tuple[float, float]:
    """Volumes in ml in prior and current whose difference has the finding's sign, or equal ones."""
    before_ml, after_ml = _volumes_ml(n, labels, pair, settings)
    if (after_ml - before_ml) * sign <= 0.0:
        # A structure may change both ways, and its sum tell the opposite of this
        # place; then only the place itself is measured.
        before_ml, after_ml = _volumes_ml(n, labels, pair, settings, within_finding=True)
    return (before_ml, after_ml) if (after_ml - before_ml) * sign > 0.0 else (before_ml, before_ml)


def _kind(sign: int, before_ml: float, after_ml: float, settings: FindingSettings) -> Kind:
    smaller, larger = (before_ml, after_ml) if sign > 0 else (after_ml, before_ml)
    absent = smaller <= settings.absent_share * larger
    if sign > 0:
        return "new" if absent else "enlarged"
    return "resolved" if absent else "shrunk"


def _volumes_ml(
    n: int,
    labels: NDArray[np.int32],
    pair: Pair,
    settings: FindingSettings,
    *,
    within_finding: bool = False,
) -> tuple[float, float]:
    """The lesion's volume in ml in both scans, by one rule.

    A voxel belongs to the lesion by how far its value lies on the way from the
    surroundings to the lesion's level: none below a quarter, wholly above three
    quarters, in between by share, which is how a voxel on its edge is half
    filled. Counted within the finding and what hangs on it in either scan.
    """
    spacing_mm = float(pair.grid.spacing_mm[-1])
    box = _box_around(labels == n, int(np.ceil((settings.reach_mm + 4.0) / spacing_mm)), pair.grid.is_flat)
    place = labels[box] == n
    distance = ndimage.distance_transform_edt(~place) * spacing_mm
    prior, current = pair.prior_half[box], pair.current_half[box]
    ring = (distance > 2.0) & (distance <= settings.reach_mm + 4.0) & pair.tissue[box] & (labels[box] == 0)
    around = float(np.median(0.5 * (prior + current)[ring])) if ring.sum() >= 20 else float("nan")
    if not np.isfinite(around):
        around = float(np.median(0.5 * (prior + current)[pair.tissue[box]]))
    level = max(
        (_level(values[place], around) for values in (prior, current)), key=lambda value: abs(value - around)
    )
    filled = [_filled(values, around, level) for values in (prior, current)]
    reach = (np.maximum(*filled) > 0.5) & (distance <= settings.reach_mm) & pair.tissue[box]
    parts, _ = ndimage.label(reach | place)
    lesion = np.isin(parts, np.unique(parts[place]))
    lesion = place if within_finding else lesion & ((labels[box] == 0) | place)
    voxel_ml = pair.grid.voxel_ml
    return float(filled[0][lesion].sum()) * voxel_ml, float(filled[1][lesion].sum()) * voxel_ml


def _level(values: NDArray[np.float32], around: float) -> float:
    """The value deep inside a lesion: its edge, blurred by the voxels, is left out."""
    deep = 80.0 if float(values.mean()) >= around else 20.0
    return float(np.percentile(values, deep))


def _filled(values: NDArray[np.float32], around: float, level: float) -> NDArray[np.float64]:
    way = (values - around) / (level - around if abs(level - around) > 1e-6 else 1e-6)
    return np.clip((way - 0.25) / 0.5, 0.0, 1.0)


def _box_around(place: NDArray[np.bool_], margin: int, flat: bool) -> tuple[slice, ...]:
    found = ndimage.find_objects(place.astype(np.int8))[0]
    margins = (0 if flat else margin, margin, margin)
    return tuple(
        slice(max(0, s.start - m), min(size, s.stop + m))
        for s, m, size in zip(found, margins, place.shape, strict=True)
    )


def _tracking_uid(pair: Pair, centre_mm: NDArray[np.float64]) -> str:
    """A UID from both inputs and the place: the same comparison gives the same UID."""
    place = ",".join(f"{value:.1f}" for value in centre_mm)
    seed = "|".join((pair.prior.acquisition.sha256, pair.current.acquisition.sha256, place))
    return f"2.25.{uuid.UUID(bytes=hashlib.sha256(seed.encode()).digest()[:16], version=5).int}"
