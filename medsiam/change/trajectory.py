"""What several scans of one patient say together: pairs, closure, lesions over time.

    steps 1-2, 2-3, ... and the direct pair 1-n   ->  closure: do they add up?
    each scan's volumes, measured in several pairs ->  their spread

Pure arithmetic on what single comparisons measured. Scans are numbered from 1
in the order of time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from medsiam.change.comparison import Change, Comparison, Finding, Kind, Verdict
from medsiam.change.growth import Estimate
from medsiam.pairing.values import Comparability, Registration
from medsiam.volume import Matrix, Volume, transform

PairKey = tuple[int, int]

# Up to this many scans all pairs are compared unasked: six comparisons.
MOST_SCANS_ALL_PAIRS = 4
# A finding is held by at most about this many of its voxels' centres.
MOST_POINTS = 2000


@dataclass(frozen=True, eq=False)
class FoundPlace:
    """A finding with the place of its voxels.

    points_mm  (n, 3) LPS mm in the current scan's world
    voxel_mm   the diagonal of a voxel there
    """

    finding: Finding
    points_mm: Matrix
    voxel_mm: float


@dataclass(frozen=True, eq=False)
class PairChange:
    """One comparison without its images.

    prior, current  numbers of the scans
    places          the findings that count: none where the verdict is indeterminate
    net_ml          appearing less resolving, None where it was not measured
    """

    prior: int
    current: int
    interval_days: float | None
    verdict: Verdict
    summary: str
    comparability: Comparability
    registration: Registration
    change: Change
    findings: tuple[Finding, ...]
    places: tuple[FoundPlace, ...] = ()

    @property
    def key(self) -> PairKey:
        return self.prior, self.current

    @property
    def is_determinate(self) -> bool:
        """Whether it says anything on change."""
        return self.verdict != "indeterminate"

    @property
    def net_ml(self) -> float | None:
        if self.change.appearing_ml is None or self.change.resolving_ml is None:
            return None
        return self.change.appearing_ml - self.change.resolving_ml


@dataclass(frozen=True)
class Closure:
    """Whether the steps from scan to scan add up to the direct comparison of first and last.

    steps_ml, direct_ml          net change by either way
    error_ml, error_score        magnitude of the difference of both ways
    share                        error_ml over the steps' appearing and resolving ml together
    registration_mm              mean distance between where the composed and the direct
                                 motion put a point of the last scan's brain or body
    reason                       why ml and score are None, "" where they are not
    """

    steps_ml: float | None
    direct_ml: float | None
    error_ml: float | None
    share: float | None
    error_score: float | None
    registration_mm: float | None
    reason: str = ""


@dataclass(frozen=True)
class Measurement:
    """A volume of one scan as one pair measured it.

    pair       the comparison it was measured in; None for a sum of steps
    is_absent  whether that comparison called the lesion new after, or resolved in, this scan
    """

    pair: PairKey | None
    volume_ml: float
    is_absent: bool = False


@dataclass(frozen=True)
class ScanVolume:
    """The volume at one scan: the mean of its measurements, and their spread.

    sd_ml  standard deviation of the measurements of this very scan, None where there is one
    """

    scan: int
    measurements: tuple[Measurement, ...]

    @property
    def volume_ml(self) -> float:
        return float(np.mean([each.volume_ml for each in self.measurements]))

    @property
    def sd_ml(self) -> float | None:
        volumes = [each.volume_ml for each in self.measurements]
        return float(np.std(volumes, ddof=1)) if len(volumes) > 1 else None

    @property
    def is_absent(self) -> bool:
        """Whether most measurements say that nothing is there."""
        return 2 * sum(each.is_absent for each in self.measurements) > len(self.measurements)


@dataclass(frozen=True)
class Sighting:
    """A finding of one pair as a part of a lesion's course."""

    pair: PairKey
    label: int
    kind: Kind
    delta_ml: float


@dataclass(frozen=True)
class FollowedLesion:
    """One lesion over all scans.

    tracking_uid   of the finding in the earliest pair that found it
    centre_lps_mm  in the world of scan `frame`
    volumes        at the scans where it was measured, in their order
    rate           ml per month;  doubling  days
    """

    number: int
    tracking_uid: str
    frame: int
    centre_lps_mm: tuple[float, float, float]
    sightings: tuple[Sighting, ...]
    volumes: tuple[ScanVolume, ...]
    rate: Estimate | None
    doubling: Estimate | None


@dataclass(frozen=True)
class Repeatability:
    """How far measurements of one lesion in one scan lie apart, over all lesions.

    sd_ml  pooled standard deviation;  sets  lesions at scans that were measured repeatedly
    """

    sd_ml: float
    sets: int


@dataclass(frozen=True, eq=False)
class Trajectory:
    """All scans of one patient, compared.

    scans        in the order of time; given[n] is the place scan n had when it was given
    days         since the first scan, None where the times do not tell
    net          net change since the first scan, at each scan where it is known
    provenance   what made it: medsiam, device, seed, config, weights_sha256, seconds
    """

    scans: tuple[Volume, ...]
    given: tuple[int, ...]
    is_ordered_by_time: bool
    days: tuple[float | None, ...]
    verdict: Verdict
    summary: str
    pairs: tuple[PairChange, ...]
    closure: Closure
    lesions: tuple[FollowedLesion, ...]
    net: tuple[ScanVolume, ...]
    rate: Estimate | None
    repeatability: Repeatability | None
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def pair_change(comparison: Comparison, prior: int, current: int) -> PairChange:
    """The comparison of two numbered scans, less its images."""
    # A radiograph's opacities have no volume that could be followed.
    has_ml = all(finding.delta_ml is not None for finding in comparison.findings)
    is_told = comparison.verdict != "indeterminate" and has_ml
    return PairChange(
        prior=prior,
        current=current,
        interval_days=days_between(comparison.prior, comparison.current),
        verdict=comparison.verdict,
        summary=comparison.summary,
        comparability=comparison.comparability,
        registration=comparison.registration,
        change=comparison.change,
        findings=comparison.findings,
        places=tuple(_place(comparison, each) for each in comparison.findings) if is_told else (),
    )


def planned_pairs(count: int, *, all_pairs: bool) -> tuple[PairKey, ...]:
    """The pairs of scans 1..count to compare: each scan with the next, first with last, or all.

    In the order of time: of the pairs with one current scan, the shortest first, so
    that further scans put pairs at the end and change nothing before.
    """
    numbers = range(1, count + 1)
    chosen = set(combinations(numbers, 2)) if all_pairs else {*pairwise(numbers), (1, count)}
    return tuple(sorted(chosen, key=lambda key: (key[1], -key[0])))


def days_between(prior: Volume, current: Volume) -> float | None:
    """Days from one scan to another, None where their clocks do not tell."""
    before, after = prior.acquisition.acquired, current.acquisition.acquired
    # A clock with a zone and one without cannot be subtracted.
    if before is None or after is None or (before.tzinfo is None) != (after.tzinfo is None):
        return None
    return (after - before).total_seconds() / 86400.0


def days_for_rates(days: Sequence[float | None]) -> tuple[float | None, ...]:
    """The days, or none at all where one is missing: then the order itself was not checked."""
    return (None,) * len(days) if None in days else tuple(days)


def closure_of(pairs: Sequence[PairChange], count: int, points_mm: Matrix) -> Closure:
    """How far steps and direct comparison differ.

    points_mm  (n, 3) LPS mm of the last scan over which the motions are compared
    """
    by_key = {pair.key: pair for pair in pairs}
    steps = [by_key[key] for key in pairwise(range(1, count + 1))]
    direct = by_key[1, count]
    registration_mm = _registration_closure_mm(steps, direct, points_mm)
    silent = [f"{pair.prior}-{pair.current}" for pair in (*steps, direct) if not pair.is_determinate]
    if silent:
        reason = f"no verdict was given for {' and '.join(silent)}, so nothing can be added up"
        return Closure(None, None, None, None, None, registration_mm, reason)
    if any(pair.net_ml is None for pair in (*steps, direct)):
        reason = "radiographs show no volumes that could be added up"
        return Closure(None, None, None, None, None, registration_mm, reason)
    steps_ml, direct_ml = sum(_known(step.net_ml) for step in steps), _known(direct.net_ml)
    magnitude = sum(_known(step.change.appearing_ml) + _known(step.change.resolving_ml) for step in steps)
    error_ml = abs(steps_ml - direct_ml)
    scores = sum(_known(step.change.score) for step in steps)
    return Closure(
        steps_ml=steps_ml,
        direct_ml=direct_ml,
        error_ml=error_ml,
        share=error_ml / magnitude if magnitude > 0.0 else None,
        error_score=abs(scores - _known(direct.change.score)),
        registration_mm=registration_mm,
    )


def motion_closure_mm(steps: Iterable[Matrix], direct: Matrix, points_mm: Matrix) -> float:
    """Mean distance in mm between points moved by all steps and by the direct matrix.

    steps      prior_from_current of 1-2, 2-3, ..., 4 x 4 LPS mm
    points_mm  (n, 3) of the last scan
    """
    composed = reduce(np.matmul, steps)
    apart = transform(composed, points_mm) - transform(direct, points_mm)
    return float(np.linalg.norm(apart, axis=1).mean())


def net_since_first(pairs: Sequence[PairChange], count: int) -> tuple[ScanVolume, ...]:
    """Net change since the first scan at each scan: by the sum of the steps and by the direct pair.

    Pairs without a verdict are left out; a scan that no way leads to is missing. Nothing of radiographs,
    which show no volumes.
    """
    by_key = {pair.key: pair for pair in pairs if pair.is_determinate}
    if any(pair.net_ml is None for pair in by_key.values()):
        return ()
    sums: dict[int, float] = {1: 0.0}
    out = [ScanVolume(1, (Measurement(None, 0.0),))]
    for scan in range(2, count + 1):
        step = by_key.get((scan - 1, scan))
        if step is not None and scan - 1 in sums:
            sums[scan] = sums[scan - 1] + _known(step.net_ml)
        found = [Measurement(None, sums[scan])] if scan in sums else []
        direct = by_key.get((1, scan))
        # From the first to the second scan, the step is the direct pair.
        if direct is not None and scan > 2:
            found.append(Measurement((1, scan), _known(direct.net_ml)))
        if found:
            out.append(ScanVolume(scan, tuple(found)))
    return tuple(out)


def repeatability_of(lesions: Iterable[FollowedLesion]) -> Repeatability | None:
    """The pooled spread of repeated measurements; None where nothing was measured twice."""
    sets = [
        [each.volume_ml for each in volume.measurements]
        for lesion in lesions
        for volume in lesion.volumes
        if len(volume.measurements) > 1 and not volume.is_absent
    ]
    if not sets:
        return None
    squares = sum(float(np.var(volumes)) * len(volumes) for volumes in sets)
    freedom = sum(len(volumes) - 1 for volumes in sets)
    return Repeatability(float(np.sqrt(squares / freedom)), len(sets))


def verdict_over_time(pairs: Sequence[PairChange], count: int) -> Verdict:
    """What all pairs that have a verdict say together.

    "indeterminate" where a step has none: what happened meanwhile is then not known.
    """
    steps = {*pairwise(range(1, count + 1))}
    said = {pair.key: pair.verdict for pair in pairs}
    if any(said[step] == "indeterminate" for step in steps):
        return "indeterminate"
    told = set(said.values())
    grown = bool(told & {"progressed", "mixed"})
    gone = bool(told & {"improved", "mixed"})
    if grown and gone:
        return "mixed"
    return "progressed" if grown else "improved" if gone else "stable"


def _registration_closure_mm(
    steps: Sequence[PairChange], direct: PairChange, points_mm: Matrix
) -> float | None:
    if any(pair.registration.quality == "failed" for pair in (*steps, direct)) or len(points_mm) == 0:
        return None
    matrices = [step.registration.prior_from_current for step in steps]
    return motion_closure_mm(matrices, direct.registration.prior_from_current, points_mm)


def _place(comparison: Comparison, finding: Finding) -> FoundPlace:
    index = np.argwhere(comparison.labels == finding.label)
    step = max(1, len(index) // MOST_POINTS)
    grid = comparison.current.grid
    # A finding may be too small for any voxel of a coarse current scan: then its centre stands for it.
    points = grid.world(index[::step]) if len(index) else np.array([finding.centre_lps_mm])
    return FoundPlace(finding, points, float(np.linalg.norm(grid.spacing_mm)))


def _known(value: float | None) -> float:
    assert value is not None, "a pair with a verdict has its figures"
    return value
