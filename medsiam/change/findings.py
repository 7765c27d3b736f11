"""From the map of evidence to findings: which places changed, how much, and how surely.

    evidence -> connected places of one direction -> those deep, strong and large enough: candidates
    candidates + the noise floor of this pair -> findings, their false discovery rate controlled

Candidates are made alike from the pair and from its pseudo-rescans; what the rescans show
by noise alone is what a candidate of the pair is held against.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsiam.change.comparison import Finding, Kind
from medsiam.change.difference import DifferenceMap
from medsiam.change.kept import depth_voxels
from medsiam.change.noise_rate import NoiseRate
from medsiam.change.volumes import measure_volumes
from medsiam.pairing.intensity import robust_deviation, some_of
from medsiam.pairing.values import Pair
from medsiam.sampling import smooth
from medsiam.volume import transform


@dataclass(frozen=True)
class FindingSettings:
    """What counts as a finding.

    threshold        evidence from which a voxel belongs to a finding
    least_strength   deviations that a candidate's strongest place must reach
    least_contrast   mean contrast beyond what the slices make, in units of the typical tissue
                     value (CT: of 100 HU), in voxels of VOXEL_MM3; larger ones cut more of the
                     anatomy otherwise, in proportion to their length
    least_contrast_bright  likewise where lesions are bright (FLAIR): flow and enhancement, which
                     change other signals by nearly as much, seldom are
    least_deviations the same contrast, in deviations of the noise there, likewise
    rim_mm           the most certain voxel must lie this far inside the region,
                     whose border is known to one voxel of the network that finds it
    least_mm3        smallest volume of change and of its place, in voxels of VOXEL_MM3; larger ones
                     must be as many
    least_share      smallest change of a structure's volume, as a share of its larger state
    least_share_of_place  likewise of what fills the place of change alone
    significance     false discovery rate; in a scan without change, the chance of any finding
    scales_mm        sizes of the matched filters over which strength is taken
    reach_mm         how far a lesion may go beyond its change when it is measured
    absent_share     a lesion smaller than this share of its other self was not there
    """

    threshold: float = field(default=1.0, metadata={"range": (0.01, 1000.0)})
    least_strength: float = field(default=3.5, metadata={"range": (0.0, 100.0)})
    least_contrast: float = field(default=0.09, metadata={"range": (0.0, 10.0)})
    least_contrast_bright: float = field(default=0.08, metadata={"range": (0.0, 10.0)})
    least_deviations: float = field(default=1.7, metadata={"range": (0.0, 100.0)})
    rim_mm: float = field(default=3.0, metadata={"range": (0.0, 50.0)})
    least_mm3: float = field(default=8.0, metadata={"range": (0.0, 1e6)})
    least_share: float = field(default=0.05, metadata={"range": (0.0, 1.0)})
    least_share_of_place: float = field(default=0.3, metadata={"range": (0.0, 1.0)})
    significance: float = field(default=0.05, metadata={"range": (1e-9, 1.0)})
    scales_mm: tuple[float, ...] = field(default=(1.0, 2.0), metadata={"range": (0.1, 20.0)})
    reach_mm: float = field(default=6.0, metadata={"range": (0.0, 50.0)})
    absent_share: float = field(default=0.15, metadata={"range": (0.0, 1.0)})

    def __post_init__(self) -> None:
        if not self.scales_mm:
            raise ValueError("scales_mm is empty; it must hold at least one size")


@dataclass(frozen=True)
class Candidate:
    """A connected place on its way to a finding.

    label     in the image of candidates
    sign      +1 appearing, -1 resolving
    strength  deviations of this pair's noise at its strongest place
    volumes   in ml, in prior and current
    """

    label: int
    sign: int
    strength: float
    before_ml: float
    after_ml: float


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates of a pair; labels (K, J, I) int32 on the halfway grid."""

    labels: NDArray[np.int32]
    each: tuple[Candidate, ...]

    @property
    def strengths(self) -> tuple[float, ...]:
        """One for each candidate."""
        return tuple(candidate.strength for candidate in self.each)


@dataclass(frozen=True, eq=False)
class FoundChange:
    """Findings with their places on the halfway grid.

    labels   (K, J, I) int32, n = findings[n-1]
    signs    +1 appearing or -1 resolving, one a finding
    p_value  that noise alone makes a place as strong as the scan's strongest candidate;
             1 where there is none
    """

    findings: tuple[Finding, ...]
    labels: NDArray[np.int32]
    signs: tuple[int, ...]
    p_value: float


# The voxel for which the least contrast and volume are given: 1 by 1 by 3 mm.
VOXEL_MM3 = 3.0
# The halfway grid for which contrasts are given, where the scans are as fine.
GRID_MM = 1.0
# Robust deviations per smoothing scale are taken with at least this noise.
LEAST_SPREAD = 0.05


def find_candidates(pair: Pair, difference: DifferenceMap, settings: FindingSettings) -> Candidates:
    """The places that qualify in strength, contrast, depth and change of volume, whatever noise does."""
    strength = _strength(pair, difference, settings)
    labels, signs = _components(pair, difference, strength, settings)
    depth_mm = depth_voxels(pair.tissue) * float(pair.grid.spacing_mm[-1])
    least = settings.least_contrast_bright if difference.bright else settings.least_contrast
    larger = _larger_voxels(pair)
    coarser, least_mm3 = (larger * _thinned(pair)) ** (1.0 / 3.0), settings.least_mm3 * larger
    out = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        place = labels[box] == label
        beyond = np.abs(difference.contrast[box][place]) - difference.slices[box][place]
        contrast = float(beyond.clip(min=0.0).mean())
        noise = float(difference.noise[box][place].mean())
        strongest = int(np.abs(difference.evidence[box][place]).argmax())
        if contrast < coarser * max(least, settings.least_deviations * noise):
            continue
        if depth_mm[box][place][strongest] < settings.rim_mm:
            continue
        sign = signs[label - 1]
        volumes = measure_volumes(label, sign, labels, pair, settings.reach_mm, box)
        before_ml, after_ml = volumes.structure
        if (
            volumes.share_of_place >= settings.least_share_of_place
            and volumes.share >= settings.least_share
            and abs(after_ml - before_ml) * 1000.0 >= least_mm3
        ):
            out.append(Candidate(label, sign, float(strength[box][place].max()), before_ml, after_ml))
    return Candidates(labels, tuple(out))


def _larger_voxels(pair: Pair) -> float:
    """How many VOXEL_MM3 a voxel of the coarser scan holds, at least one."""
    return max(1.0, *(v.grid.voxel_ml * 1000.0 / VOXEL_MM3 for v in (pair.prior, pair.current)))


def _thinned(pair: Pair) -> float:
    """How much coarser the halfway grid is than the scans let it be, at least one.

    The fewer voxels a place has, the more of its mean contrast is chance. With the third root of this,
    what chance made of two scans of one day lies as far below the bars at 1.4 mm as at 1 mm.
    """
    finest_mm = min(float(v.grid.spacing_mm.min()) for v in (pair.prior, pair.current))
    return max(1.0, float(pair.grid.spacing_mm[-1]) / max(GRID_MM, finest_mm))


def find_changes(
    pair: Pair, candidates: Candidates, noise: NoiseRate, settings: FindingSettings
) -> FoundChange:
    """The candidates that noise does not explain, the most certain first.

    Strongest first, those are kept down to the last whose expected number of false
    ones (the noise rate) is at most `significance` of all as strong: Benjamini and
    Hochberg (1995) with the null distribution of this very pair.
    """
    ranked = sorted(candidates.each, key=lambda candidate: (-candidate.strength, candidate.label))
    rates = [noise.per_scan(candidate.strength) for candidate in ranked]
    held = [n for n, rate in enumerate(rates, start=1) if rate <= settings.significance * n]
    kept = ranked[: max(held, default=0)]
    renumbered = np.zeros(candidates.labels.max() + 1, dtype=np.int32)
    renumbered[[candidate.label for candidate in kept]] = np.arange(1, len(kept) + 1)
    ordered = renumbered[candidates.labels]
    boxes = ndimage.find_objects(ordered)
    findings = tuple(
        _finding(n, candidate, noise, ordered, boxes[n - 1], pair, settings)
        for n, candidate in enumerate(kept, start=1)
    )
    p_whole = noise.any_in_scan(ranked[0].strength) if ranked else 1.0
    return FoundChange(findings, ordered, tuple(candidate.sign for candidate in kept), p_whole)


def _strength(pair: Pair, difference: DifferenceMap, settings: FindingSettings) -> NDArray[np.float32]:
    """Per voxel, contrast over noise averaged over several sizes, each in its own typical deviations."""
    score = torch.from_numpy(np.where(pair.tissue, difference.contrast / difference.noise, 0.0))
    greatest = np.zeros(pair.grid.shape, dtype=np.float32)
    if not pair.tissue.any():
        return greatest
    spacing_mm = float(pair.grid.spacing_mm[-1])
    some = some_of(torch.from_numpy(pair.tissue))
    for scale_mm in settings.scales_mm:
        field = smooth(score, (scale_mm / spacing_mm,) * 3)
        spread = max(robust_deviation(some(field)), LEAST_SPREAD)
        greatest = np.maximum(greatest, np.abs(field.numpy()) / spread)
    return np.where(pair.tissue, greatest, 0.0).astype(np.float32)


def _components(
    pair: Pair, difference: DifferenceMap, strength: NDArray[np.float32], settings: FindingSettings
) -> tuple[NDArray[np.int32], list[int]]:
    """Connected places of one direction of contrast that are strong somewhere, and +1 or -1 for each."""
    labels = np.zeros(pair.grid.shape, dtype=np.int32)
    signs: list[int] = []
    dims = 2 if pair.grid.is_flat else 3
    least = settings.least_mm3 * _larger_voxels(pair) / float(pair.grid.spacing_mm[-1]) ** dims
    for direction in (1.0, -1.0):
        parts, _ = ndimage.label(direction * difference.evidence >= settings.threshold)
        for part, box in enumerate(ndimage.find_objects(parts), start=1):
            place = parts[box] == part
            if place.sum() < least or strength[box][place].max() < settings.least_strength:
                continue
            signs.append(1 if float(difference.standing[box][place].sum()) >= 0.0 else -1)
            labels[box][place] = len(signs)
    return labels, signs


def _finding(
    n: int,
    candidate: Candidate,
    noise: NoiseRate,
    labels: NDArray[np.int32],
    box: tuple[slice, ...],
    pair: Pair,
    settings: FindingSettings,
) -> Finding:
    places = np.argwhere(labels[box] == n) + [along.start for along in box]
    half_mm = pair.grid.world(_middle(places)[None])
    centre = transform(pair.current_from_half, half_mm)[0]
    return Finding(
        label=n,
        tracking_uid=tracking_uid(pair, centre),
        kind=_kind(candidate.sign, candidate.before_ml, candidate.after_ml, settings),
        centre_lps_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
        volume_prior_ml=candidate.before_ml,
        volume_current_ml=candidate.after_ml,
        delta_ml=candidate.after_ml - candidate.before_ml,
        p_value=noise.at_a_place(candidate.strength),
    )


def _middle(places: NDArray[np.intp]) -> NDArray[np.float64]:
    """The mean of a finding's voxels, or the nearest of them where the mean lies outside, as in a ring."""
    mean = places.mean(axis=0)
    if (places == np.rint(mean)).all(axis=1).any():
        return mean
    return places[((places - mean) ** 2).sum(axis=1).argmin()].astype(np.float64)


def _kind(sign: int, before_ml: float, after_ml: float, settings: FindingSettings) -> Kind:
    smaller, larger = (before_ml, after_ml) if sign > 0 else (after_ml, before_ml)
    absent = smaller <= settings.absent_share * larger
    if sign > 0:
        return "new" if absent else "enlarged"
    return "resolved" if absent else "shrunk"


def tracking_uid(pair: Pair, centre_mm: NDArray[np.float64]) -> str:
    """A UID from both inputs and the place: the same comparison gives the same UID."""
    place = ",".join(f"{value:.1f}" for value in centre_mm)
    seed = "|".join((pair.prior.acquisition.sha256, pair.current.acquisition.sha256, place))
    return f"2.25.{uuid.UUID(bytes=hashlib.sha256(seed.encode()).digest()[:16], version=5).int}"
