"""What a comparison measured of itself, as JSON: noise floor, certificates, brain volume.

Keys here are additions to the contract's report; what was not measured is null.
"""

from __future__ import annotations

from typing import Any

from medsiam.change.brain_volume import BrainVolumeChange
from medsiam.change.comparison import Comparison, EraseTest, NoiseFloor, OrderReversal
from medsiam.report.numbers import PLACES_ML, PLACES_MM, PLACES_SHARE, places, significant


def measured_json(comparison: Comparison) -> dict[str, Any]:
    """The keys noise_floor, order_reversal, erase_test and brain_volume of a report."""
    return {
        "noise_floor": _floor_json(comparison.noise_floor),
        "order_reversal": _reversal_json(comparison.order_reversal),
        "erase_test": _erase_json(comparison.erase_test),
        "brain_volume": _brain_json(comparison.brain_volume),
    }


def _floor_json(floor: NoiseFloor | None) -> dict[str, Any] | None:
    if floor is None:
        return None
    return {
        "noise": significant(floor.noise),
        "edge_mm": places(floor.edge_mm, PLACES_MM),
        "noise_ratio": significant(floor.noise_ratio),
        "rescans": floor.rescans,
        "seed": floor.seed,
        "fast": floor.fast,
        "rate_error": significant(floor.rate_error),
        "false_findings": floor.false_findings,
        "threshold": significant(floor.threshold),
        "smallest_ml": places(floor.smallest_ml, PLACES_ML),
        "half_ml": places(floor.half_ml, PLACES_ML),
        "by_third_ml": {name: places(ml, PLACES_ML) for name, ml in floor.by_third_ml.items()},
        "injected": floor.injected,
        "contrast": floor.contrast,
        "share": floor.share,
    }


def _reversal_json(reversal: OrderReversal | None) -> dict[str, Any] | None:
    if reversal is None:
        return None
    return {
        "error": significant(reversal.error),
        "dice": places(reversal.dice, PLACES_SHARE),
        "registration_mm": significant(reversal.registration_mm),
    }


def _erase_json(erased: EraseTest | None) -> dict[str, Any] | None:
    if erased is None:
        return None
    return {
        "magnitude": places(erased.magnitude, PLACES_SHARE),
        "all_erased": places(erased.all_erased, PLACES_SHARE),
        "each": [
            {"label": one.label, "magnitude": places(one.magnitude, PLACES_SHARE)} for one in erased.each
        ],
    }


def _brain_json(brain: BrainVolumeChange | None) -> dict[str, Any] | None:
    if brain is None:
        return None
    return {
        "percent": places(brain.percent, PLACES_MM),
        "interval95_percent": [places(end, PLACES_MM) for end in brain.interval95_percent],
        "noise_percent": places(brain.noise_percent, PLACES_MM),
        "recovery": places(brain.recovery, PLACES_MM),
        "prior_ml": places(brain.prior_ml, 1),
        "significant": brain.significant,
        "note": brain.note,
    }
