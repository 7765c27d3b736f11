"""The rows of a batch in order of urgency, as pages and tables, and the manifest that adds them up."""

from __future__ import annotations

import csv
import io
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medsiam import __version__
from medsiam.batch.case import Clock, now_utc
from medsiam.batch.ledger import Ledger, Record, settings_told
from medsiam.batch.values import STEP_MISSING, BatchSettings, Case, Plan, Row
from medsiam.errors import ArchiveRefused
from medsiam.report.comparison_json import RESEARCH_USE, plain_object, to_text
from medsiam.report.digests import sha256_of
from medsiam.report.placing import BATCH_FILES, MANIFEST, placed_whole
from medsiam.report.search_json import safe_cell
from medsiam.report.worklist_html import MANIFEST_SCHEMA, SCHEMA, render_worklist

WORKLIST, WORKLIST_HTML, WORKLIST_CSV = "worklist.json", "worklist.html", "worklist.csv"

# Most urgent first: what got worse, what nobody can tell, what got better, what stayed. What was
# not compared stands last; a bug before a refusal, since nobody has looked at that scan either.
URGENCY = ("progressed", "mixed", "indeterminate", "improved", "stable")
WORSE = ("progressed", "mixed")
STATES = ("compared", "refused", "failed")
# Of this run alone: no step of a trajectory, or an archive that was away.
NOT_RECORDED = (STEP_MISSING, ArchiveRefused.code)
LIBRARIES = ("torch", "monai", "numpy", "scipy", "pydicom")

CSV_COLUMNS = (
    "urgency", "case_id", "patient_key", "state", "verdict", "findings", "largest", "unit", "summary",
    "smallest_detectable_ml", "p_value", "interval_days", "prior_acquired", "current_acquired", "modality",
    "body_part", "prior_series_uid", "current_series_uid", "report", "code", "reason", "computed",
)  # fmt: skip


@dataclass(frozen=True)
class Worklist:
    """What a batch came to.

    counts  found, compared, refused, failed; found is the sum of the others
    fresh   cases, trajectories included, that this run computed
    """

    rows: tuple[Row, ...]
    trajectories: tuple[Row, ...]
    counts: Mapping[str, int]
    fresh: int
    report: Mapping[str, Any]

    @property
    def failed(self) -> int:
        return sum(row.state == "failed" for row in (*self.rows, *self.trajectories))


def finish(
    plan: Plan,
    out: str | Path,
    settings: BatchSettings | None = None,
    *,
    rows: Mapping[str, Row] | None = None,
    clock: Clock = now_utc,
) -> Worklist:
    """The worklist of a plan, written into OUT with its manifest: all files or none.

    rows  by case id, of this run; the ledger tells the others, and what it does not know is pending
    Raises InputRefused and ResourceExhausted as write_comparison does.
    """
    settings = settings or BatchSettings()
    ledger = Ledger(out).open()
    found = {case.case_id: _row_of(case, rows or {}, ledger, settings) for case in plan.cases}
    listed = in_order([*(found[case.case_id] for case in plan.comparisons), *plan.inputs])
    courses = in_order([found[case.case_id] for case in plan.trajectories])
    report = worklist_json(plan, listed, courses, settings, clock())
    worklist = Worklist(
        tuple(listed), tuple(courses), report["counts"], sum(row.is_fresh for row in found.values()), report
    )
    with ledger.held("worklist"), placed_whole(Path(out), BATCH_FILES) as stage:
        _write(stage, WORKLIST, to_text(report))
        _write(stage, WORKLIST_HTML, render_worklist(report))
        _write(stage, WORKLIST_CSV, worklist_csv(listed))
        made = {name: sha256_of(stage / name) for name in (WORKLIST, WORKLIST_HTML, WORKLIST_CSV)}
        _write(stage, MANIFEST, to_text(manifest_json(report, plan, ledger, settings, made)))
    return worklist


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The rows, most urgent first; of equals the largest change, then the surest, then by name."""

    def rank(row: Row) -> tuple[Any, ...]:
        if row.state != "compared":
            return len(URGENCY) + (row.state != "failed"), 0.0, 0.0, row.code or "", row.case_id
        group = 0 if row.verdict in WORSE else URGENCY.index(row.verdict or "indeterminate")
        surest = 1.0 if row.p_value is None else row.p_value
        return group, -(row.largest or 0.0), surest, row.patient_key or "", row.case_id

    return sorted(rows, key=rank)


def counts_of(rows: Sequence[Row]) -> dict[str, int]:
    """found, and what became of them; pending ones are told as refused, so that the sum holds."""
    told: Counter[str] = Counter("refused" if row.state == "pending" else row.state for row in rows)
    return {"found": len(rows), **{state: told[state] for state in STATES}}


def worklist_json(
    plan: Plan, rows: Sequence[Row], courses: Sequence[Row], settings: BatchSettings, at: datetime
) -> dict[str, Any]:
    """worklist.json: everything that its page shows."""
    verdicts = Counter(row.verdict for row in rows if row.state == "compared")
    return plain_object(
        {
            "schema": SCHEMA,
            "made": at.isoformat(timespec="seconds"),
            "medsiam": __version__,
            "fast": settings.fast,
            "counts": counts_of(rows),
            "verdicts": {verdict: verdicts[verdict] for verdict in URGENCY},
            "trajectory_counts": counts_of(courses),
            "archive": dict(plan.counts),
            "rows": [{"urgency": n, **_told(row)} for n, row in enumerate(rows, 1)],
            "trajectories": [_told(row) for row in courses],
            "aside": [{"name": name, "reason": reason} for name, reason in plan.aside],
            "research_use": RESEARCH_USE,
        }
    )


def manifest_json(
    report: Mapping[str, Any],
    plan: Plan,
    ledger: Ledger,
    settings: BatchSettings,
    made: Mapping[str, str],
) -> dict[str, Any]:
    """manifest.json: versions, settings, digests of inputs, weights and files, and the counts."""
    told = {row["case_id"]: row for row in (*report["rows"], *report["trajectories"])}
    files, cases = dict(made), []
    for case in plan.cases:
        record, row = ledger.record(case.case_id), told[case.case_id]
        # A record of other settings speaks of files that this list does not hold.
        is_told = record is not None and row["state"] == record.row.state and row["report"]
        cases.append(_case_told(case, row["state"], record if is_told else None))
        if record is not None and is_told:
            files |= {name: each["sha256"] for name, each in record.files.items()}
    return plain_object(
        {
            "schema": MANIFEST_SCHEMA,
            "made": report["made"],
            "versions": {"medsiam": __version__, "python": platform.python_version(), **_versions()},
            "settings": {f"{dims}d": settings_told(settings, dims) for dims in (2, 3)},
            "counts": report["counts"],
            "trajectory_counts": report["trajectory_counts"],
            "archive": report["archive"],
            "cases": cases,
            "files_sha256": dict(sorted(files.items())),
            "research_use": RESEARCH_USE,
        }
    )


def _case_told(case: Case, state: str, record: Record | None) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "kind": case.kind,
        "patient_key": case.patient_key,
        "state": state,
        "key": None if record is None else record.key,
        "inputs_sha256": [] if record is None else [digest for _, digest in record.inputs],
    }


def worklist_csv(rows: Sequence[Row]) -> str:
    """The rows as a table, safe to open in a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for n, row in enumerate(rows, 1):
        prior, current = row.prior or {}, row.current or {}
        cells = {
            **row.as_dict(),
            "urgency": n,
            "prior_acquired": prior.get("acquired"),
            "current_acquired": current.get("acquired"),
            "modality": current.get("modality"),
            "body_part": current.get("body_part"),
            "prior_series_uid": prior.get("series_uid"),
            "current_series_uid": current.get("series_uid"),
        }
        writer.writerow([safe_cell(cells[name]) for name in CSV_COLUMNS])
    return buffer.getvalue()


def _row_of(case: Case, rows: Mapping[str, Row], ledger: Ledger, settings: BatchSettings) -> Row:
    mine = rows.get(case.case_id)
    if mine is not None and mine.code not in NOT_RECORDED:
        return mine
    # What this run could not do another one may have done meanwhile: the ledger is the truth.
    row = ledger.done(case, settings=settings) or mine
    if row is not None:
        return row
    record = ledger.record(case.case_id)
    if record is not None and record.row.state == "failed":
        return record.row
    return replace(
        Row(case.case_id, case.kind, "pending", case.patient_key, code="pending"),
        summary="It was not compared yet.",
        reason="the run ended before it; run the batch again",
        prior=case.scans[0].told(),
        current=case.scans[-1].told(),
    )


def _told(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.as_dict().items() if name != "is_fresh"}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8", newline="")
