"""report.json as a dict: a comparison, or a refusal, in plain JSON values.

Keys stand in the contract's order, what is unknown is null, and no number is
NaN or infinite. Only the patient's key is told, never a name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from medsiam.change.comparison import Change, Comparison, EmbeddingDistance, Finding, Provenance
from medsiam.pairing.values import Comparability, Registration
from medsiam.report.measured_json import measured_json
from medsiam.report.numbers import PLACES_MATRIX, PLACES_ML, PLACES_MM, PLACES_SHARE, places, significant
from medsiam.report.slices import image_number, shown_slice
from medsiam.volume import Acquisition, Matrix, Volume

SCHEMA = "medsiam.comparison/1"
RESEARCH_USE = "Research use only - not a medical device."
NO_EMBEDDING = "The twin encoder was not run, so neither distance nor same-patient check is given."
NOT_REACHED = "The comparison was refused before the twin encoder was run."


def to_json(
    comparison: Comparison,
    *,
    files: Mapping[str, str],
    similar_cases: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The report of a comparison that was made.

    files          name -> path relative to the report
    similar_cases  results as in search.json, where an index was asked
    """
    embedding = comparison.embedding
    report = {
        "schema": SCHEMA,
        "status": "compared",
        "refusal": None,
        "verdict": comparison.verdict,
        "summary": comparison.summary,
        "prior": scan_json(comparison.prior),
        "current": scan_json(comparison.current),
        "interval_days": places(_interval_days(comparison.prior, comparison.current), 3),
        "comparability": comparability_json(comparison.comparability),
        "registration": registration_json(comparison.registration),
        "change": change_json(comparison.change),
        "findings": [_finding_json(finding, comparison) for finding in comparison.findings],
        "embedding": _embedding_json(embedding),
        "similar_cases": list(similar_cases),
        "provenance": _provenance_json(comparison.provenance, comparison.prior, comparison.current),
        "files": dict(files),
        **measured_json(comparison),
        "notes": list(comparison.notes),
        "embedding_note": NO_EMBEDDING if embedding is None else None,
        "research_use": RESEARCH_USE,
    }
    return plain_object(report)


def refusal_json(
    error_code: str,
    message: str,
    *,
    prior: Volume | Acquisition | None = None,
    current: Volume | Acquisition | None = None,
    comparability: Comparability | None = None,
    registration: Registration | None = None,
    provenance: Provenance | None = None,
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """The report of a comparison that was refused, with what is known by then."""
    if comparability is None and error_code == "not-comparable":
        comparability = Comparability("not-comparable")
    report = {
        "schema": SCHEMA,
        "status": "refused",
        "refusal": {"code": error_code, "message": message},
        "verdict": "indeterminate",
        "summary": f"No comparison was made: {message}",
        "prior": scan_json(prior),
        "current": scan_json(current),
        "interval_days": places(_interval_days(prior, current), 3),
        "comparability": comparability_json(comparability),
        "registration": registration_json(registration),
        "change": change_json(None),
        "findings": [],
        "embedding": None,
        "similar_cases": [],
        "provenance": _provenance_json(provenance, prior, current),
        "files": {},
        "notes": list(notes),
        "embedding_note": NOT_REACHED,
        "research_use": RESEARCH_USE,
    }
    return plain_object(report)


def to_text(report: Mapping[str, Any]) -> str:
    """The report as JSON text, the same bytes for the same report."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def scan_json(scan: Volume | Acquisition | None) -> dict[str, Any] | None:
    """One scan's summary; None where nothing is known of it."""
    if scan is None:
        return None
    grid = scan.grid if isinstance(scan, Volume) else None
    told = _acquisition(scan)
    return {
        "patient_key": told.patient_key or None,
        "study_uid": told.study_uid or None,
        "series_uid": told.series_uid or None,
        "modality": told.modality or None,
        "body_part": told.body_part or None,
        "description": told.description or None,
        "acquired": told.acquired.isoformat(timespec="seconds") if told.acquired else None,
        "shape_kji": [int(n) for n in grid.shape] if grid else None,
        "spacing_kji_mm": [places(mm, PLACES_MM) for mm in grid.spacing_mm] if grid else None,
        "assumptions": list(told.assumptions),
    }


def _acquisition(scan: Volume | Acquisition) -> Acquisition:
    return scan.acquisition if isinstance(scan, Volume) else scan


def _interval_days(prior: Volume | Acquisition | None, current: Volume | Acquisition | None) -> float | None:
    if prior is None or current is None:
        return None
    before, after = _acquisition(prior).acquired, _acquisition(current).acquired
    # A clock with a zone and one without cannot be subtracted.
    if before is None or after is None or (before.tzinfo is None) != (after.tzinfo is None):
        return None
    return (after - before).total_seconds() / 86400.0


def comparability_json(comparability: Comparability | None) -> dict[str, Any]:
    if comparability is None:
        return {"class": None, "differences": []}
    return {
        "class": comparability.category,
        "differences": [
            {
                "what": difference.what,
                "prior": difference.prior,
                "current": difference.current,
                "effect": difference.effect,
            }
            for difference in comparability.differences
        ],
    }


def registration_json(registration: Registration | None) -> dict[str, Any]:
    if registration is None:
        keys = ("prior_from_current", "overlap", "residual", "quality", "kind", "determinant")
        return dict.fromkeys((*keys, "inverse_consistency_mm")) | {"reasons": []}
    return {
        "prior_from_current": _matrix(registration.prior_from_current),
        "overlap": places(registration.overlap, PLACES_SHARE),
        "residual": places(registration.residual, PLACES_SHARE),
        "quality": registration.quality,
        "kind": registration.kind,
        "determinant": places(registration.determinant, PLACES_SHARE),
        "inverse_consistency_mm": places(registration.inverse_consistency_mm, PLACES_MM),
        "reasons": list(registration.reasons),
    }


def change_json(change: Change | None) -> dict[str, Any]:
    if change is None:
        keys = ("score", "magnitude", "p_value", "smallest_detectable_ml", "appearing_ml", "resolving_ml")
        return dict.fromkeys((*keys, "order_reversal_error"))
    return {
        "score": places(change.score, PLACES_SHARE),
        "magnitude": places(change.magnitude, PLACES_SHARE),
        "p_value": significant(change.p_value),
        "smallest_detectable_ml": places(change.smallest_detectable_ml, PLACES_ML),
        "appearing_ml": places(change.appearing_ml, PLACES_ML),
        "resolving_ml": places(change.resolving_ml, PLACES_ML),
        "order_reversal_error": significant(change.order_reversal_error),
    }


def _finding_json(finding: Finding, comparison: Comparison) -> dict[str, Any]:
    return {
        "label": int(finding.label),
        "tracking_uid": finding.tracking_uid,
        "kind": finding.kind,
        "centre_lps_mm": [places(mm, PLACES_MM) for mm in finding.centre_lps_mm],
        "volume_prior_ml": places(finding.volume_prior_ml, PLACES_ML),
        "volume_current_ml": places(finding.volume_current_ml, PLACES_ML),
        "delta_ml": places(finding.delta_ml, PLACES_ML),
        "p_value": significant(finding.p_value),
        "area_prior_percent": places(finding.area_prior_percent, PLACES_MM),
        "area_current_percent": places(finding.area_current_percent, PLACES_MM),
        "delta_percent": places(finding.delta_percent, PLACES_MM),
        "zone": finding.zone or None,
        "image_number": image_number(comparison.current, shown_slice(comparison, finding)),
    }


def _embedding_json(embedding: EmbeddingDistance | None) -> dict[str, Any] | None:
    if embedding is None:
        return None
    return {
        "encoder": embedding.encoder,
        "cosine_distance": places(embedding.cosine_distance, PLACES_SHARE),
        "same_patient_probability": places(embedding.same_patient_probability, PLACES_SHARE),
    }


def _provenance_json(
    provenance: Provenance | None,
    prior: Volume | Acquisition | None,
    current: Volume | Acquisition | None,
) -> dict[str, Any]:
    inputs = [
        {"series_uid": told.series_uid or None, "sha256": told.sha256 or None}
        for told in (_acquisition(scan) for scan in (prior, current) if scan is not None)
    ]
    if provenance is None:
        keys = ("medsiam", "encoder", "weights_sha256", "config")
        return dict.fromkeys(keys) | {
            "inputs": inputs, "device": None, "seed": None, "seconds": {}, "peak_memory_mb": None,
        }  # fmt: skip
    return {
        "medsiam": provenance.medsiam,
        "encoder": provenance.encoder or None,
        "weights_sha256": provenance.weights_sha256,
        "config": provenance.config,
        "inputs": inputs,
        "device": provenance.device,
        "seed": int(provenance.seed),
        "seconds": {step: places(seconds, 3) for step, seconds in provenance.seconds.items()},
        "peak_memory_mb": places(provenance.peak_memory_mb, 1),
    }


def _matrix(target_from_source: Matrix) -> list[list[float | None]] | None:
    """Rows of a matrix; None where a failed registration left holes in it."""
    if not np.isfinite(target_from_source).all():
        return None
    return [[places(number, PLACES_MATRIX) for number in row] for row in target_from_source]


def _text(value: str) -> str:
    """The text without lone surrogates, which no UTF-8 file can hold."""
    return value.encode("utf-8", errors="replace").decode("utf-8")


def plain_object(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in report.items()}


def _plain(value: Any) -> Any:
    """The value in JSON's own types: settings may hold paths, tuples and numpy numbers."""
    if isinstance(value, Mapping):
        return {_text(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return _text(str(value))
