"""How the opacities of the lungs changed between two chest radiographs, in % of lung area.

    RadiographPair -> each field against what lies about the lungs, then one contrast curve for both
          -> difference over the noise of this very pair -> findings and their p-values
          -> zones: upper, middle, lower, right and left -> one score, -1..1

A radiograph has no depth: nothing here is a volume. Every step treats both scans alike
and is done in an order that the pixels tell, so that exchanging them changes signs alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, special

from medsiam.change.comparison import Kind, Verdict
from medsiam.pairing.intensity import curve, interpolated, thinned
from medsiam.pairing.radiograph_pair import RadiographPair, is_in_order, on_current
from medsiam.sampling import Field, smooth
from medsiam.volume import transform

# Zones as radiologists name them; the patient's right lies on the left of the image.
SIDES, HEIGHTS = ("right", "left"), ("upper", "middle", "lower")
# Both fields are smoothed by this share of the lungs' height: ribs and vessels are finer,
# opacities coarser.
FINE, WIDE, NEIGHBOURHOOD = 0.02, 0.05, 0.15
# Percentiles of the chest beyond which values are cut off.
OUTER_PERCENT = (1.0, 99.0)
# Classes of brightness in which the two contrast curves are made one.
CURVE_BINS = 3
# A change of the lungs' brightness this large, in deviations of the chest, makes a score of one half.
HALF_SCORE = 0.4
# The noise is at least this, in deviations of the chest.
LEAST_NOISE = 0.07
# Share of the fine deviations that is left after averaging over an opacity's width: they
# are two to three times finer.
FINE_KEPT = 0.4
# Beyond so many deviations, real change does not pass for local noise.
CLIP_DEVIATIONS = 3.0
# An opacity's change ends where this share of its largest is left.
HALF_LEFT = 0.5
# The level deep inside an opacity, whose blurred edge belongs to its place as well.
DEEP_PERCENT = 85.0
# Student's tail with which few-scaled, edge-ridden noise is judged.
TAIL_FREEDOM = 8.0
KINDS: dict[tuple[bool, bool], Kind] = {
    (True, True): "new",
    (True, False): "enlarged",
    (False, True): "resolved",
    (False, False): "shrunk",
}
OPPOSITE: dict[Kind, Kind] = {
    "new": "resolved",
    "resolved": "new",
    "enlarged": "shrunk",
    "shrunk": "enlarged",
}


@dataclass(frozen=True)
class RadiographChangeSettings:
    """What counts as a finding in a chest radiograph.

    threshold      deviations of the pair's noise from which a pixel belongs to a finding
    seed           deviations that its most certain pixel must reach
    least_change   mean change of brightness within a finding, deviations of the chest
    least_percent  smallest finding, in % of the area of both lungs
    significance   p-value, adjusted for all places, above which it is none
    absent_share   an opacity smaller than this share of its other self was not there
    """

    threshold: float = field(default=1.5, metadata={"range": (0.5, 10.0)})
    seed: float = field(default=2.5, metadata={"range": (0.5, 20.0)})
    least_change: float = field(default=0.35, metadata={"range": (0.0, 1.0)})
    least_percent: float = field(default=1.0, metadata={"range": (0.0, 50.0)})
    significance: float = field(default=0.05, metadata={"range": (0.0, 1.0)})
    absent_share: float = field(default=0.25, metadata={"range": (0.0, 1.0)})


@dataclass(frozen=True)
class OpacityFinding:
    """One place of the lungs that changed beyond the noise of this pair.

    label           its number in the labels, 1 is the most certain
    zone            "right upper" … where its middle lies
    centre_lps_mm   in the current scan's world;  centre_prior_lps_mm  in the prior's
    area_..._percent  of the area of both lungs that is opaque there, by one rule
    """

    label: int
    kind: Kind
    zone: str
    centre_lps_mm: tuple[float, float, float]
    centre_prior_lps_mm: tuple[float, float, float]
    area_prior_percent: float
    area_current_percent: float
    delta_percent: float
    p_value: float


@dataclass(frozen=True)
class ZoneChange:
    """One of six zones: brightness in deviations of the chest, 0 that of what lies about the lungs."""

    zone: str
    prior: float
    current: float

    @property
    def delta(self) -> float:
        """Current minus prior: + where the zone became more opaque."""
        return self.current - self.prior


@dataclass(frozen=True, eq=False)
class RadiographChange:
    """How the lungs' opacities changed.

    score      -1..1, + where the zones became more opaque on the whole;  magnitude 0..1, of all that
               changed either way, noise included: what findings say is told instead
    p_value    that noise alone makes the strongest place, 1 where none qualifies
    findings   the most certain first
    evidence   (K, J, I) float32 on the halfway grid: + appearing, one is noticeable
    labels     (K, J, I) int32 on the halfway grid, n = findings[n-1]
    reasons    why no verdict may be given, () where one may; figures are then for display
    """

    score: float
    magnitude: float
    p_value: float
    findings: tuple[OpacityFinding, ...]
    zones: tuple[ZoneChange, ...]
    evidence: NDArray[np.float32]
    labels: NDArray[np.int32]
    reasons: tuple[str, ...]

    def exchanged(self) -> RadiographChange:
        """The change from the current to the prior."""
        return replace(
            self,
            score=-self.score,
            findings=tuple(_exchanged(finding) for finding in self.findings),
            zones=tuple(ZoneChange(zone.zone, zone.current, zone.prior) for zone in self.zones),
            evidence=-self.evidence,
        )


def _exchanged(finding: OpacityFinding) -> OpacityFinding:
    return replace(
        finding,
        kind=OPPOSITE[finding.kind],
        centre_lps_mm=finding.centre_prior_lps_mm,
        centre_prior_lps_mm=finding.centre_lps_mm,
        area_prior_percent=finding.area_current_percent,
        area_current_percent=finding.area_prior_percent,
        delta_percent=-finding.delta_percent,
    )


def measure_radiograph_change(
    radiograph: RadiographPair, settings: RadiographChangeSettings | None = None
) -> RadiographChange:
    """The change of opacities, and why it may not be told where it may not."""
    settings = settings or RadiographChangeSettings()
    pair = radiograph.pair
    if not is_in_order(pair.prior, pair.current):
        return measure_radiograph_change(radiograph.exchanged(), settings).exchanged()
    if not all((lung & radiograph.chest).any() for lung in radiograph.lungs):
        return _nothing(radiograph)
    fields = [_levelled(values, radiograph) for values in (pair.prior_half, pair.current_half)]
    zones = _zones(fields, radiograph)
    fields = _one_curve(fields, radiograph)
    evidence, contrast = _evidence(fields, radiograph)
    findings, labels, p_value = _findings(evidence, contrast, fields, radiograph, settings)
    delta = float(np.mean([zone.delta for zone in zones]))
    moved = float(np.mean([abs(zone.delta) for zone in zones]))
    return RadiographChange(
        score=delta / (abs(delta) + HALF_SCORE),
        magnitude=moved / (moved + HALF_SCORE),
        p_value=p_value,
        findings=findings,
        zones=zones,
        evidence=(evidence / settings.threshold).astype(np.float32),
        labels=labels,
        reasons=radiograph.reasons,
    )


def _nothing(radiograph: RadiographPair) -> RadiographChange:
    shape = radiograph.pair.grid.shape
    empty = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    reasons = radiograph.reasons or ("the two scans have no lung in common",)
    return RadiographChange(0.0, 0.0, 1.0, (), (), *empty, reasons)


def decide_radiograph(change: RadiographChange) -> tuple[Verdict, str]:
    """The verdict and the reason to abstain, "" where there is none."""
    if change.reasons:
        return "indeterminate", "; ".join(change.reasons)
    grown = any(finding.delta_percent > 0.0 for finding in change.findings)
    gone = any(finding.delta_percent < 0.0 for finding in change.findings)
    if grown and gone:
        return "mixed", ""
    return ("progressed" if grown else "improved" if gone else "stable"), ""


def radiograph_on_current(
    radiograph: RadiographPair, change: RadiographChange
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """The map (-1..1, one half at the threshold) and the labels on the current's own grid."""
    layers = [change.evidence, *(change.labels == finding.label for finding in change.findings)]
    there = on_current(radiograph, np.stack(layers).astype(np.float32))
    labels = np.zeros(there.shape[1:], np.uint16)
    for finding, share in zip(change.findings, there[1:], strict=True):
        labels[share > 0.5] = finding.label
    return there[0] / (np.abs(there[0]) + 1.0), labels


def _levelled(values: NDArray[np.float32], radiograph: RadiographPair) -> NDArray[np.float32]:
    """Smoothed values (K, J, I) in deviations of the chest from the mean of what lies about the lungs.

    Soft tissue, bone and belly stand for what no opacity changes; 0 outside the chest.
    """
    calm = smooth(torch.from_numpy(values), _sigma(FINE, radiograph)).numpy()
    # A tube, a marker or the air beside a shoulder must not stretch the scale.
    low, high = np.percentile(calm[radiograph.chest], OUTER_PERCENT)
    calm = np.clip(calm, low, high)
    around = calm[radiograph.chest & ~radiograph.pair.tissue]
    spread = float(calm[radiograph.chest].std())
    return np.where(radiograph.chest, (calm - around.mean()) / max(spread, 1e-6), 0.0).astype(np.float32)


def _one_curve(fields: list[NDArray[np.float32]], radiograph: RadiographPair) -> list[NDArray[np.float32]]:
    """Both fields less half the typical difference at their mean brightness: one contrast curve."""
    one, other = (torch.from_numpy(values) for values in fields)
    inside = torch.from_numpy(radiograph.chest)
    mean, gap = 0.5 * (one + other), other - one
    places, typical = curve(thinned(mean[inside]), thinned(gap[inside]), CURVE_BINS)
    expected = interpolated(mean, places, typical) * inside
    return [(one + 0.5 * expected).numpy(), (other - 0.5 * expected).numpy()]


def _sigma(share: float, radiograph: RadiographPair) -> tuple[float, float, float]:
    rows = radiograph.pair.tissue.any(axis=(0, 2)).sum()
    return 0.0, float(share * rows), float(share * rows)


def _zones(fields: list[NDArray[np.float32]], radiograph: RadiographPair) -> tuple[ZoneChange, ...]:
    parts = _zone_masks(radiograph)
    return tuple(
        ZoneChange(name, float(fields[0][mask].mean()), float(fields[1][mask].mean()))
        for name, mask in parts.items()
        if mask.any()
    )


def _zone_masks(radiograph: RadiographPair) -> dict[str, NDArray[np.bool_]]:
    """Each lung in three parts of equal height, within what both scans show of the chest."""
    out = {}
    for side, lung in zip(SIDES, radiograph.lungs, strict=True):
        rows = np.flatnonzero(lung.any(axis=(0, 2)))
        for name, part in zip(HEIGHTS, np.array_split(rows, 3), strict=True):
            mask = np.zeros_like(lung)
            mask[:, part] = lung[:, part] & radiograph.chest[:, part]
            out[f"{side} {name}"] = mask
    return out


def _evidence(
    fields: list[NDArray[np.float32]], radiograph: RadiographPair
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The change of brightness in deviations of this pair's noise, and as it is; 0 outside the lungs."""
    gap = torch.from_numpy(fields[1] - fields[0])
    chest = torch.from_numpy(radiograph.chest.astype(np.float32))
    lungs = chest * torch.from_numpy(radiograph.pair.tissue.astype(np.float32))
    contrast, rough = _within(gap, lungs, radiograph)
    fine = _fine_noise(rough, lungs, radiograph)
    noise = (fine * fine + _wide_noise(gap, chest - lungs, radiograph) ** 2 + LEAST_NOISE**2).sqrt()
    return (contrast / noise).numpy(), contrast.numpy()


def _within(gap: Field, where: Field, radiograph: RadiographPair) -> tuple[Field, Field]:
    """The gap averaged over an opacity's width within a region, and what differs from that."""
    wide = _sigma(WIDE, radiograph)
    mean = smooth(gap * where, wide) / smooth(where, wide).clamp_min(0.05)
    return mean * where, (gap - mean) * where


def _fine_noise(rough: Field, lungs: Field, radiograph: RadiographPair) -> Field:
    """What ribs that do not meet, tubes and grain leave of their deviation after averaging."""
    typical = 1.4826 * float(rough[lungs > 0].abs().median())
    clipped = rough.clamp(-CLIP_DEVIATIONS * typical, CLIP_DEVIATIONS * typical)
    near = _sigma(NEIGHBOURHOOD, radiograph)
    local = (smooth(clipped * clipped, near) / smooth(lungs, near).clamp_min(0.05)).sqrt()
    return FINE_KEPT * 0.5 * (local + typical)


def _wide_noise(gap: Field, around: Field, radiograph: RadiographPair) -> float:
    """Deviation of what differs about the lungs on an opacity's scale: exposure, turn, soft tissue."""
    mean, _ = _within(gap, around, radiograph)
    values = mean[around > 0]
    return 1.4826 * float((values - values.median()).abs().median()) if values.numel() else 0.0


def _findings(
    evidence: NDArray[np.float32],
    contrast: NDArray[np.float32],
    fields: list[NDArray[np.float32]],
    radiograph: RadiographPair,
    settings: RadiographChangeSettings,
) -> tuple[tuple[OpacityFinding, ...], NDArray[np.int32], float]:
    """Findings, their labels, and the smallest p-value of any place that qualifies."""
    places = _places(evidence, contrast, radiograph, settings)
    smallest = min((p_value for _, p_value in places), default=1.0)
    held = sorted((p for p in places if p[1] <= settings.significance), key=lambda place: place[1])
    labels = np.zeros(evidence.shape, np.int32)
    out: list[OpacityFinding] = []
    for place, p_value in held:
        finding = _finding(len(out) + 1, place, p_value, contrast, fields, radiograph, settings)
        labels[place] = finding.label
        out.append(finding)
    return tuple(out), labels, smallest


def _places(
    evidence: NDArray[np.float32],
    contrast: NDArray[np.float32],
    radiograph: RadiographPair,
    settings: RadiographChangeSettings,
) -> list[tuple[NDArray[np.bool_], float]]:
    """Connected places of one direction that are strong and large enough, each with its p-value.

    Bonferroni over the filters of this width that fit into the lungs.
    """
    area = float(radiograph.pair.tissue.sum())
    width = 2.355 * _sigma(WIDE, radiograph)[1]
    count = max(1.0, area / width**2)
    out: list[tuple[NDArray[np.bool_], float]] = []
    for direction in (1.0, -1.0):
        parts, number = ndimage.label(direction * evidence >= settings.threshold)
        for part in range(1, number + 1):
            place = parts == part
            size = np.abs(contrast) * place
            # Averaging widens an opacity: it ends where half of its change is left.
            place &= size >= HALF_LEFT * size.max()
            strongest = float(np.abs(evidence[place]).max())
            large = 100.0 * place.sum() / area >= settings.least_percent
            if large and strongest >= settings.seed and abs(contrast[place].mean()) >= settings.least_change:
                out.append((place, min(1.0, count * 2.0 * float(special.stdtr(TAIL_FREEDOM, -strongest)))))
    return out


def _finding(
    label: int,
    place: NDArray[np.bool_],
    p_value: float,
    contrast: NDArray[np.float32],
    fields: list[NDArray[np.float32]],
    radiograph: RadiographPair,
    settings: RadiographChangeSettings,
) -> OpacityFinding:
    appearing = float(contrast[place].mean()) > 0.0
    areas = _areas(place, fields, radiograph)
    middle = np.argwhere(place).mean(axis=0)
    prior_mm, current_mm = _centres(middle, radiograph)
    smaller, larger = min(areas), max(areas)
    return OpacityFinding(
        label=label,
        kind=KINDS[appearing, smaller <= settings.absent_share * larger],
        zone=_zone_of(middle, radiograph),
        centre_lps_mm=current_mm,
        centre_prior_lps_mm=prior_mm,
        area_prior_percent=areas[0],
        area_current_percent=areas[1],
        delta_percent=areas[1] - areas[0],
        p_value=p_value,
    )


def _areas(
    place: NDArray[np.bool_], fields: list[NDArray[np.float32]], radiograph: RadiographPair
) -> tuple[float, float]:
    """Opaque area within a place in prior and current, in % of the lungs, by one rule.

    Opaque is what lies nearer to the place's more opaque state than to its clearer one,
    ribs averaged away; in between by share.
    """
    area = float(radiograph.pair.tissue.sum())
    lungs = torch.from_numpy((radiograph.pair.tissue & radiograph.chest).astype(np.float32))
    values = [_within(torch.from_numpy(one), lungs, radiograph)[0].numpy()[place] for one in fields]
    clearer, denser = sorted(values, key=lambda one: float(one.mean()))
    low, high = float(np.median(clearer)), float(np.percentile(denser, DEEP_PERCENT))
    filled = [np.clip((one - low) / max(high - low, 1e-6) * 2.0 - 0.5, 0.0, 1.0).sum() for one in values]
    return 100.0 * float(filled[0]) / area, 100.0 * float(filled[1]) / area


def _centres(
    middle: NDArray[Any], radiograph: RadiographPair
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """LPS mm of a halfway index (3,) in the prior's and in the current's world."""
    pair = radiograph.pair
    there = pair.grid.world(middle[None])
    _, j, i = (round(float(x)) for x in middle)
    bend = np.zeros((1, 3))
    bend[0, :2] = radiograph.bend_mm[:, j, i]
    prior = transform(pair.prior_from_half, there - bend)[0]
    current = transform(pair.current_from_half, there + bend)[0]
    return (
        (float(prior[0]), float(prior[1]), float(prior[2])),
        (float(current[0]), float(current[1]), float(current[2])),
    )


def _zone_of(middle: NDArray[Any], radiograph: RadiographPair) -> str:
    """The zone whose middle lies nearest."""
    far = {
        name: float(np.linalg.norm(np.argwhere(mask).mean(axis=0) - middle))
        for name, mask in _zone_masks(radiograph).items()
        if mask.any()
    }
    return min(far, key=lambda name: far[name])
