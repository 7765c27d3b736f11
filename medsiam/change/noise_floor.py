"""The noise floor of a pair: what its acquisitions change by themselves, and what could not be seen.

    the pair's gap -> pseudo-rescans of both scans -> the same steps -> candidates of noise alone
    the same rescans with lesions of known size put in -> which are found -> smallest detectable

Everything hangs on the seed and on the scans, on neither as prior or current.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from medsiam.change.comparison import NoiseFloor
from medsiam.change.difference import (
    DifferenceMap,
    DifferenceSettings,
    measure_difference,
    shows_lesions_bright,
)
from medsiam.change.findings import Candidates, FindingSettings, find_candidates
from medsiam.change.injection import THIRDS, InjectionSettings, injected, met, volume_found_with
from medsiam.change.noise_rate import NoiseRate
from medsiam.change.rescan import Base, Rescanner, measured_gap, own_noise
from medsiam.pairing.intensity import IntensitySettings, equalise
from medsiam.pairing.side_by_side import side_by_side
from medsiam.pairing.values import Pair


@dataclass(frozen=True)
class NoiseFloorSettings:
    """How much is spent on the noise floor.

    rescans         pseudo-rescans, half of each scan
    injected        of them, how many are seen once more with lesions put in
    fast_rescans, fast_injected  likewise in the fast mode for batches
    """

    rescans: int = field(default=12, metadata={"range": (2, 200)})
    injected: int = field(default=4, metadata={"range": (0, 200)})
    fast_rescans: int = field(default=4, metadata={"range": (2, 200)})
    fast_injected: int = field(default=2, metadata={"range": (0, 200)})
    lesions: InjectionSettings = field(default_factory=InjectionSettings)

    def faster(self) -> NoiseFloorSettings:
        """The settings of the fast mode."""
        return replace(self, rescans=self.fast_rescans, injected=self.fast_injected)


@dataclass(frozen=True)
class StepSettings:
    """The settings of the steps that a rescan goes through as the pair did."""

    intensity: IntensitySettings
    difference: DifferenceSettings
    findings: FindingSettings


@dataclass(frozen=True)
class MeasuredFloor:
    """The rate by which candidates are judged, what is told of the floor, and the pair's own candidates."""

    rate: NoiseRate
    told: NoiseFloor
    candidates: Candidates


def measure_noise_floor(
    pair: Pair,
    difference: DifferenceMap,
    steps: StepSettings,
    settings: NoiseFloorSettings,
    *,
    seed: int,
    device: torch.device,
    told: Callable[[int, int], None] = lambda done, total: None,
    pool: Executor | None = None,
) -> MeasuredFloor:
    """The noise floor of a pair whose difference was measured.

    told  hears how many rescans are done, and of how many
    pool  does the rescans; otherwise one of this floor's own
    """
    gap = measured_gap(pair, torch.tensor(difference.contrast), torch.tensor(difference.mean))
    rescanner = Rescanner(pair, gap, difference.smoothing_voxels)

    def rescan(n: int) -> tuple[tuple[float, ...], _Looked | None]:
        base: Base = "prior" if n % 2 == 0 else "current"
        still = rescanner.rescan(base, seed * MOST_RESCANS + n // 2)
        strengths = _candidates(still, steps, device).strengths
        if n >= settings.injected:
            return strengths, None
        return strengths, _with_lesions(still, n, steps, settings.lesions, seed, device)

    strengths: list[tuple[float, ...]] = []
    looked: list[_Looked] = []
    with side_by_side(MOST_AT_ONCE) if pool is None else nullcontext(pool) as shared:
        finding = shared.submit(find_candidates, pair, difference, steps.findings)
        explaining = shared.submit(own_noise, pair, rescanner)
        for n, (found, look) in enumerate(shared.map(rescan, range(settings.rescans)), start=1):
            strengths.append(found)
            looked += [] if look is None else [look]
            told(n, settings.rescans)
        own, explained = finding.result(), explaining.result()
    rate = NoiseRate.of(strengths, steps.findings.least_strength, own.strengths)
    significance = steps.findings.significance
    threshold = rate.strength_for(significance)
    floor = NoiseFloor(
        noise=gap.noise,
        edge_mm=gap.edge_mm,
        noise_ratio=gap.noise / explained if explained > 0.0 else None,
        rescans=settings.rescans,
        seed=seed,
        fast=settings.rescans < NoiseFloorSettings.rescans,
        rate_error=rate.relative_error,
        false_findings=significance,
        threshold=threshold,
        **_seen(looked, threshold, settings.lesions),
    )
    return MeasuredFloor(rate, floor, own)


# Rescans that are made side by side, where there are as many cores: each holds some 400 MB.
MOST_AT_ONCE = 2
# Seeds of two floors of one pair do not overlap up to this many rescans.
MOST_RESCANS = 1000


@dataclass(frozen=True)
class _Looked:
    """Lesions put into one rescan, and the strength at which each is met (0 where never)."""

    volumes_mm3: tuple[float, ...]
    thirds: tuple[int, ...]
    strengths: tuple[float, ...]


def _candidates(pair: Pair, steps: StepSettings, device: torch.device) -> Candidates:
    """What the steps after registration make of a pair in halfway space."""
    # HU have a fixed scale, which the pair's own equalising left alone too.
    if pair.tissue.any() and pair.prior.acquisition.modality != "CT":
        one, other = (torch.tensor(half, device=device) for half in (pair.prior_half, pair.current_half))
        tissue = torch.tensor(pair.tissue, device=device)
        spacing_mm = float(pair.grid.spacing_mm[-1])
        one, other = equalise(one, other, tissue, spacing_mm, steps.intensity, signed=False)
        pair = replace(pair, prior_half=one.cpu().numpy(), current_half=other.cpu().numpy())
    difference = measure_difference(pair, steps.difference, device)
    return find_candidates(pair, difference, steps.findings)


def _with_lesions(
    still: Pair,
    n: int,
    steps: StepSettings,
    settings: InjectionSettings,
    seed: int,
    device: torch.device,
) -> _Looked:
    random = np.random.default_rng([seed, n // 2])
    bright = shows_lesions_bright(still)
    made = injected(still, settings, into_prior=n % 2 == 0, bright=bright, random=random)
    found = _candidates(made.pair, steps, device)
    strengths = np.zeros(len(made.volumes_mm3))
    for candidate in found.each:
        hit = np.flatnonzero(met(found.labels, [candidate.label], made))
        strengths[hit] = np.maximum(strengths[hit], candidate.strength)
    return _Looked(made.volumes_mm3, made.thirds, tuple(strengths.tolist()))


def _seen(looked: list[_Looked], threshold: float, settings: InjectionSettings) -> dict[str, Any]:
    """The volumes that are found at this strength, as NoiseFloor names them."""
    volumes = [volume for look in looked for volume in look.volumes_mm3]
    thirds = [third for look in looked for third in look.thirds]
    found = [strength >= threshold for look in looked for strength in look.strengths]

    def smallest(share: float, third: int | None = None) -> float | None:
        kept = [n for n in range(len(volumes)) if third is None or thirds[n] == third]
        return volume_found_with(share, [volumes[n] for n in kept], [found[n] for n in kept])

    return {
        "smallest_ml": smallest(settings.share),
        "half_ml": smallest(0.5),
        "by_third_ml": {name: smallest(settings.share, third) for third, name in enumerate(THIRDS)},
        "injected": len(volumes),
        "contrast": settings.contrast,
        "share": settings.share,
    }
