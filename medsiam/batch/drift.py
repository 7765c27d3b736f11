"""Whether what can be seen has changed: noise floors of recent weeks beside those of the weeks before.

A scanner that was upgraded, a coil that fails, a protocol that was altered: none of it is told to
whoever reads the worklist, and each moves the smallest change that can be detected. Only stable
comparisons are asked, or those of phantoms, so that illness is not taken for noise.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from medsiam import __version__
from medsiam.batch.ledger import write_whole
from medsiam.batch.listing import list_folder
from medsiam.batch.values import Row
from medsiam.batch.worklist import WORKLIST
from medsiam.errors import InputRefused
from medsiam.reading import load_key
from medsiam.report.comparison_json import RESEARCH_USE, plain_object, to_text

DRIFT = "drift.json"
SCHEMA = "medsiam.drift/1"
# Without the software's version: an upgrade is to show as a step of one scanner.
SCANNER = ("manufacturer", "model", "station")


@dataclass(frozen=True)
class Rule:
    """When a floor counts as moved: see `drift` in configs/flows.yaml.

    ratio  of the medians, up or down; a difference that can be proved may still be too small to matter
    level  of Mann and Whitney's rank test, two-sided
    """

    recent: timedelta
    before: timedelta
    least: int = 8
    ratio: float = 1.25
    level: float = 0.01


@dataclass(frozen=True)
class Drift:
    """One scanner's floor, now and before.

    now_ml, before_ml  medians of the smallest detectable change; None without enough comparisons
    """

    scanner: str
    now: int
    before: int
    now_ml: float | None = None
    before_ml: float | None = None
    p_value: float | None = None
    has_moved: bool = False


def scanners_in(archive: Path, out: Path) -> dict[str, str]:
    """Series UID to the scanner that its header names, "" where it names none.

    Raises InputRefused where nothing is there.
    """
    listing = list_folder(archive, key=load_key(), leave_out=out, progress=lambda step: None)
    told = {each.scan.series_uid: each.acquisition.protocol for each in listing.found}
    return {uid: " ".join(str(tags[key]) for key in SCANNER if tags.get(key)) for uid, tags in told.items()}


def read_rows(out: Path) -> tuple[Row, ...]:
    """The lines of the worklist in a folder. Raises InputRefused where there is none."""
    try:
        told = json.loads((out / WORKLIST).read_text(encoding="utf-8"))["rows"]
        names = {each.name for each in fields(Row)}
        return tuple(Row(**{name: value for name, value in row.items() if name in names}) for row in told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputRefused(f"{out / WORKLIST} cannot be read; run the batch first") from error


def drifts(
    rows: Sequence[Row],
    scanners: Mapping[str, str],
    rule: Rule,
    *,
    now: datetime,
    phantoms: Collection[str] = (),
) -> tuple[Drift, ...]:
    """Each scanner's floor in the recent span beside the span before it, moved ones first.

    rows      of a worklist
    scanners  series UID to name; a scan without one stands under its modality
    phantoms  patient keys; where some are given nothing else is asked
    """
    floors: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in rows:
        span = _span(row, rule, now)
        is_asked = row.patient_key in phantoms if phantoms else row.verdict == "stable"
        if span is None or not is_asked or not row.smallest_detectable_ml:
            continue
        scan = row.current or {}
        name = scanners.get(str(scan.get("series_uid"))) or str(scan.get("modality") or "unknown")
        floors[name][span].append(row.smallest_detectable_ml)
    told = (_drift(name, *floors[name], rule) for name in sorted(floors))
    return tuple(sorted(told, key=lambda each: not each.has_moved))


def write_drift(found: Sequence[Drift], out: Path, *, now: datetime) -> None:
    """drift.json in a folder."""
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "made": now.isoformat(timespec="seconds"),
        "medsiam": __version__,
        "scanners": [asdict(each) for each in found],
        "research_use": RESEARCH_USE,
    }
    write_whole(out / DRIFT, to_text(plain_object(told)))


def _span(row: Row, rule: Rule, now: datetime) -> int | None:
    """0 for the recent span, 1 for the one before, None for neither."""
    told = (row.current or {}).get("acquired")
    if not told:
        return None
    age = now - datetime.fromisoformat(told).replace(tzinfo=None)
    if timedelta(0) <= age < rule.recent:
        return 0
    return 1 if rule.recent <= age < rule.recent + rule.before else None


def _drift(scanner: str, now_ml: Sequence[float], before_ml: Sequence[float], rule: Rule) -> Drift:
    if min(len(now_ml), len(before_ml)) < rule.least:
        return Drift(scanner, len(now_ml), len(before_ml))
    medians = float(np.median(now_ml)), float(np.median(before_ml))
    p_value = float(mannwhitneyu(now_ml, before_ml, alternative="two-sided").pvalue)
    ratio = max(medians[0] / medians[1], medians[1] / medians[0])
    has_moved = p_value <= rule.level and ratio >= rule.ratio
    return Drift(scanner, len(now_ml), len(before_ml), *medians, p_value, has_moved)
