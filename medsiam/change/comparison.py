"""What a comparison says: the value that reports and DICOM objects are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsiam.pairing.values import Comparability, Registration
from medsiam.volume import Volume

Verdict = Literal["stable", "progressed", "improved", "mixed", "indeterminate"]
Kind = Literal["new", "enlarged", "shrunk", "resolved"]


@dataclass(frozen=True)
class Finding:
    """One place that changed beyond the noise of this pair.

    label            its number in the findings image, 1 is the most certain
    centre_lps_mm    in the current scan's world
    volumes in ml, both by the same rule
    """

    label: int
    tracking_uid: str
    kind: Kind
    centre_lps_mm: tuple[float, float, float]
    volume_prior_ml: float
    volume_current_ml: float
    delta_ml: float
    p_value: float


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
    notes: tuple[str, ...] = ()

    @property
    def interval_days(self) -> float | None:
        """Days from prior to current, None where a date is missing."""
        before, after = self.prior.acquisition.acquired, self.current.acquisition.acquired
        if before is None or after is None:
            return None
        return (after - before).total_seconds() / 86400.0
