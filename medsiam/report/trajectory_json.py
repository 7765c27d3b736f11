"""trajectory.json as a dict, in plain JSON values; the same rules as report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medsiam.change.growth import Estimate
from medsiam.change.trajectory import (
    Closure,
    FollowedLesion,
    Measurement,
    PairChange,
    PairKey,
    Repeatability,
    ScanVolume,
    Trajectory,
)
from medsiam.report.comparison_json import (
    PLACES_ML,
    PLACES_MM,
    PLACES_SHARE,
    RESEARCH_USE,
    change_json,
    comparability_json,
    plain_object,
    registration_json,
    scan_json,
)

SCHEMA = "medsiam.trajectory/1"
PLACES_DAYS = 3
UNCERTAINTY = (
    "A volume's uncertainty is the standard deviation of its own repeated measurements: the same scan "
    "measured in several pairs, or reached by the sum of the steps and directly. Where there is one "
    "measurement it is null. Intervals of rates are Student's 95 % intervals from the scatter of the scans "
    "about the fitted line; two scans have none."
)


def trajectory_json(
    trajectory: Trajectory, *, files: Mapping[str, str], pair_files: Mapping[PairKey, Mapping[str, str]]
) -> dict[str, Any]:
    """The report of several scans.

    files       name -> path relative to trajectory.json, of everything written
    pair_files  likewise of each pair's own report
    """
    told = {
        "schema": SCHEMA,
        "status": "followed",
        "verdict": trajectory.verdict,
        "summary": trajectory.summary,
        "ordered_by": "time" if trajectory.is_ordered_by_time else "given",
        "scans": [
            {
                "number": number,
                "given": given,
                "days_since_first": _rounded(days, PLACES_DAYS),
                **(scan_json(scan) or {}),
                "sha256": scan.acquisition.sha256 or None,
            }
            for number, (scan, given, days) in enumerate(
                zip(trajectory.scans, trajectory.given, trajectory.days, strict=True), start=1
            )
        ],
        "pairs": [
            _pair(pair, len(trajectory.scans), pair_files.get(pair.key, {})) for pair in trajectory.pairs
        ],
        "closure": _closure(trajectory.closure),
        "lesions": [_lesion(lesion, trajectory.days) for lesion in trajectory.lesions],
        "total": {
            "net_since_first": [_volume(volume, trajectory.days) for volume in trajectory.net],
            "rate_ml_per_month": _estimate(trajectory.rate, PLACES_ML),
        },
        "repeatability": _repeatability(trajectory.repeatability),
        "uncertainty": UNCERTAINTY,
        "provenance": {
            **trajectory.provenance,
            "inputs": [
                {"series_uid": scan.acquisition.series_uid or None, "sha256": scan.acquisition.sha256 or None}
                for scan in trajectory.scans
            ],
        },
        "files": dict(files),
        "notes": list(trajectory.notes),
        "research_use": RESEARCH_USE,
    }
    return plain_object(told)


def _pair(pair: PairChange, count: int, files: Mapping[str, str]) -> dict[str, Any]:
    return {
        "prior": pair.prior,
        "current": pair.current,
        "is_step": pair.current == pair.prior + 1,
        "is_first_to_last": pair.key == (1, count),
        "interval_days": _rounded(pair.interval_days, PLACES_DAYS),
        "verdict": pair.verdict,
        "summary": pair.summary,
        "comparability": comparability_json(pair.comparability),
        "registration": registration_json(pair.registration),
        "change": {**change_json(pair.change), "net_ml": _rounded(pair.net_ml, PLACES_ML)},
        "findings": len(pair.findings),
        "files": dict(files),
    }


def _closure(closure: Closure) -> dict[str, Any]:
    return {
        "steps_ml": _rounded(closure.steps_ml, PLACES_ML),
        "direct_ml": _rounded(closure.direct_ml, PLACES_ML),
        "error_ml": _rounded(closure.error_ml, PLACES_ML),
        "share": _rounded(closure.share, PLACES_SHARE),
        "error_score": _rounded(closure.error_score, PLACES_SHARE),
        "registration_mm": _rounded(closure.registration_mm, PLACES_MM),
        "reason": closure.reason or None,
    }


def _lesion(lesion: FollowedLesion, days: Sequence[float | None]) -> dict[str, Any]:
    return {
        "number": lesion.number,
        "tracking_uid": lesion.tracking_uid,
        "frame_scan": lesion.frame,
        "centre_lps_mm": [_rounded(mm, PLACES_MM) for mm in lesion.centre_lps_mm],
        "course": [
            {
                "prior": sighting.pair[0],
                "current": sighting.pair[1],
                "label": sighting.label,
                "kind": sighting.kind,
                "delta_ml": _rounded(sighting.delta_ml, PLACES_ML),
            }
            for sighting in lesion.sightings
        ],
        "volumes": [_volume(volume, days) for volume in lesion.volumes],
        "rate_ml_per_month": _estimate(lesion.rate, PLACES_ML),
        "doubling_days": _estimate(lesion.doubling, PLACES_DAYS),
    }


def _volume(volume: ScanVolume, days: Sequence[float | None]) -> dict[str, Any]:
    return {
        "scan": volume.scan,
        "days_since_first": _rounded(days[volume.scan - 1], PLACES_DAYS),
        "volume_ml": _rounded(volume.volume_ml, PLACES_ML),
        "sd_ml": _rounded(volume.sd_ml, PLACES_ML),
        "is_absent": volume.is_absent,
        "measurements": [_measurement(each) for each in volume.measurements],
    }


def _measurement(measurement: Measurement) -> dict[str, Any]:
    return {
        "pair": list(measurement.pair) if measurement.pair else None,
        "volume_ml": _rounded(measurement.volume_ml, PLACES_ML),
    }


def _estimate(estimate: Estimate | None, places: int) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "value": _rounded(estimate.value, places),
        "low_95": _rounded(estimate.low, places),
        "high_95": _rounded(estimate.high, places),
        "scans": estimate.points,
    }


def _repeatability(repeatability: Repeatability | None) -> dict[str, Any] | None:
    if repeatability is None:
        return None
    return {"sd_ml": _rounded(repeatability.sd_ml, PLACES_ML), "sets": repeatability.sets}


def _rounded(value: float | None, places: int) -> float | None:
    # Adding zero turns -0.0 into 0.0; what is not finite becomes null with all other values.
    return None if value is None else round(float(value), places) + 0.0
