"""What a comparison says: the value that reports and DICOM objects are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsiam.change.brain_volume import BrainVolumeChange
from medsiam.pairing.values import Comparability, Registration
from medsiam.volume import Volume

Verdict = Literal["stable", "progressed", "improved", "mixed", "indeterminate"]
Kind = Literal["new", "enlarged", "shrunk", "resolved"]


@dataclass(frozen=True)
class Finding:
    """One place that changed beyond the noise of this pair.

    label            its number in the findings image, 1 is the most certain
    centre_lps_mm    in the current scan's world
    volumes          in ml, both by the same rule; None in a radiograph, which has none
    areas            of a radiograph's opacity, in percent of both lungs' area; else None
    zone             of the lungs, "right upper" …; "" where there is none
    """

    label: int
    tracking_uid: str
    kind: Kind
    centre_lps_mm: tuple[float, float, float]
    volume_prior_ml: float | None
    volume_current_ml: float | None
    delta_ml: float | None
    p_value: float
    area_prior_percent: float | None = None
    area_current_percent: float | None = None
    delta_percent: float | None = None
    zone: str = ""


@dataclass(frozen=True)
class Change:
    """The whole scan's change in figures; None where a figure was not measured.

    score      -1..1: + appearing, - resolving;  magnitude 0..1
    p_value    chance that noise alone gives as much
    """

    score: float | None
    magnitude: float | None
    p_value: float | None
    smallest_detectable_ml: float | None
    appearing_ml: float | None
    resolving_ml: float | None
    order_reversal_error: float | None


@dataclass(frozen=True)
class NoiseFloor:
    """What the acquisitions of this pair change by themselves, and what could not have been seen.

    noise, edge_mm   deviation of the pair's difference where the image is flat, in units of the
                     typical tissue value; and how far its edges lie off each other
    noise_ratio      that noise over what both scans' own noise explains: what a change of protocol
                     adds; None where it is not known
    rescans, seed    pseudo-rescans that it was learnt from
    fast             fewer of them than by default
    rate_error       relative standard error of the expected number of false findings
    false_findings   expected in a scan without change, at most
    threshold        deviations from which a lone finding is believed
    smallest_ml      volume that is found with the chance `share`; None where none was
    half_ml          volume that is found half of the times
    by_third_ml      smallest_ml in the lower, middle and upper third of the region
    injected, contrast   lesions put in to learn that, and their contrast to the tissue
    """

    noise: float
    edge_mm: float
    noise_ratio: float | None
    rescans: int
    seed: int
    fast: bool
    rate_error: float
    false_findings: float
    threshold: float
    smallest_ml: float | None
    half_ml: float | None
    by_third_ml: dict[str, float | None]
    injected: int
    contrast: float
    share: float


@dataclass(frozen=True)
class OrderReversal:
    """The whole comparison run from current to prior, held against this one.

    error   |score of prior to current + score of current to prior|
    dice    of the two maps where they show change, signs exchanged; 1 where neither does
    """

    error: float
    dice: float
    registration_mm: float


@dataclass(frozen=True)
class ErasedFinding:
    """What is left of the magnitude once finding `label` is replaced by the registered prior."""

    label: int
    magnitude: float


@dataclass(frozen=True)
class EraseTest:
    """The magnitude as it is, with all findings replaced by the registered prior, and with one each."""

    magnitude: float
    all_erased: float
    each: tuple[ErasedFinding, ...]


@dataclass(frozen=True)
class EmbeddingDistance:
    """How far apart the twin encoder puts the two scans."""

    encoder: str
    cosine_distance: float
    same_patient_probability: float | None


@dataclass(frozen=True)
class Provenance:
    """What made this result, enough to make it again."""

    medsiam: str
    config: dict[str, Any]
    device: str
    seed: int
    encoder: str | None = None
    weights_sha256: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """The answer to "has this scan changed since the last one", with its evidence.

    change_map        (K, J, I) float32 on the current's grid, -1..1,
                      + appearing or growing, - resolving or shrinking
    labels            (K, J, I) uint16 on the current's grid, n = findings[n-1]
    prior_on_current  (K, J, I) float32, the prior on the current's grid, NaN outside
    notes             what a reader must know: assumptions, abstentions, limits
    """

    prior: Volume
    current: Volume
    verdict: Verdict
    summary: str
    comparability: Comparability
    registration: Registration
    change: Change
    findings: tuple[Finding, ...]
    change_map: NDArray[np.float32]
    labels: NDArray[np.uint16]
    prior_on_current: NDArray[np.float32]
    provenance: Provenance
    embedding: EmbeddingDistance | None = None
    noise_floor: NoiseFloor | None = None
    order_reversal: OrderReversal | None = None
    erase_test: EraseTest | None = None
    brain_volume: BrainVolumeChange | None = None
    notes: tuple[str, ...] = ()

    @property
    def interval_days(self) -> float | None:
        """Days from prior to current, None where a date is missing."""
        before, after = self.prior.acquisition.acquired, self.current.acquisition.acquired
        if before is None or after is None:
            return None
        return (after - before).total_seconds() / 86400.0
