"""search.json and search.csv: a search in plain values, keys in the contract's order."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medsiam import __version__
from medsiam.cases.case import Case
from medsiam.cases.search import Neighbour, SearchOutcome
from medsiam.report.comparison_json import RESEARCH_USE

SCHEMA = "medsiam.search/1"

# The engine's half precision holds three digits of a cosine.
PLACES_SIMILARITY = 5

# A cell that begins so is run as a formula by spreadsheet programs.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

CSV_COLUMNS = (
    "rank", "case_id", "patient_key", "similarity", "percentile", "modality", "body_part", "sequence",
    "acquired", "age", "sex", "scanner", "series_uid", "study_uid", "interval_days", "magnitude",
    "volume_ml", "outcome",
)  # fmt: skip


def search_json(outcome: SearchOutcome) -> dict[str, Any]:
    """What `medsiam search` found."""
    wish = outcome.wish
    return {
        "schema": SCHEMA,
        "query": query_json(outcome.query),
        "by": wish.by,
        "where": wish.where or None,
        "scanners": wish.scanners,
        "index": {
            "path": str(outcome.index.folder),
            "cases": outcome.cases,
            "encoder": outcome.index.encoder_id,
            "engine": outcome.index.settings.engine,
        },
        "results": [result_json(each) for each in outcome.results],
        "acquisition_share": {
            "same_scanner": outcome.same_scanner,
            "of": len(outcome.results),
            "scanner": outcome.query.scanner or None,
        },
        "votes": [
            {"label": vote.label, "voices": vote.voices, "shares": _rounded(vote.shares), "mean": vote.mean}
            for vote in outcome.votes
        ],
        "controls": [result_json(each) for each in outcome.controls],
        "strangers": _strangers(outcome.background),
        "notes": list(outcome.notes),
        "seconds": outcome.seconds,
        "medsiam": __version__,
        "research_use": RESEARCH_USE,
    }


def result_json(found: Neighbour) -> dict[str, Any]:
    """One case as it stands in search.json, and in a comparison's similar_cases."""
    case = found.case
    return {
        "rank": found.rank,
        "case_id": case.case_id,
        "patient_key": case.patient_key or None,
        "similarity": round(found.similarity, PLACES_SIMILARITY),
        "percentile": None if found.percentile is None else round(found.percentile, 2),
        **_words(case),
        "outcome": found.followed.outcome or None,
        "labels": dict(case.labels),
        "followed": {
            "days": found.followed.days,
            "similarity": None
            if found.followed.similarity is None
            else round(found.followed.similarity, PLACES_SIMILARITY),
        },
    }


def query_json(query: Case) -> dict[str, Any]:
    """What is known of the query."""
    return {
        "case_id": query.case_id,
        "patient_key": query.patient_key or None,
        "sha256": query.sha256 or None,
        **_words(query),
    }


def search_csv(outcome: SearchOutcome) -> str:
    """The results as a table, a column for each label; safe to open in a spreadsheet."""
    labels = sorted({name for each in outcome.results for name in each.case.labels})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, "next_scan_days", "next_scan_similarity", *labels])
    for each in outcome.results:
        told = result_json(each)
        row = [told[name] for name in CSV_COLUMNS]
        row += [told["followed"]["days"], told["followed"]["similarity"]]
        row += [each.case.labels.get(name) for name in labels]
        writer.writerow([safe_cell(value) for value in row])
    return buffer.getvalue()


def _words(case: Case) -> dict[str, Any]:
    return {
        "modality": case.modality or None,
        "body_part": case.body_part or None,
        "sequence": case.sequence or None,
        "acquired": case.acquired or None,
        "age": case.age,
        "sex": case.sex or None,
        "scanner": case.scanner or None,
        "series_uid": case.series_uid or None,
        "study_uid": case.study_uid or None,
        "volume_ml": case.volume_ml,
        "interval_days": case.interval_days,
        "magnitude": case.magnitude,
    }


def _strangers(background: Sequence[float]) -> dict[str, Any] | None:
    """How alike pairs of two different patients of the index are."""
    if not background:
        return None
    middle, high = np.percentile(background, (50.0, 95.0))
    return {
        "pairs": len(background),
        "median": round(float(middle), PLACES_SIMILARITY),
        "percentile_95": round(float(high), PLACES_SIMILARITY),
    }


def _rounded(shares: Mapping[str, float]) -> dict[str, float]:
    return {value: round(share, 4) for value, share in shares.items()}


def safe_cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return "'" + value
    return "" if value is None else value
