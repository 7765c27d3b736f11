"""Confident change that nobody has marked as seen: what a night audit lists."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from medsiam import __version__
from medsiam.batch.ledger import write_whole
from medsiam.batch.values import Case, Plan, Row
from medsiam.batch.worklist import WORSE, worklist_csv
from medsiam.errors import InputRefused
from medsiam.report.comparison_json import RESEARCH_USE, plain_object, to_text

AUDIT, AUDIT_CSV = "audit.json", "audit.csv"
SCHEMA = "medsiam.audit/1"
# A mark names a comparison, or the study that was looked at.
MARK_COLUMNS = ("case_id", "study_uid")
LARGEST_MARKS_BYTES = 2**28
DAYS_A_MONTH = 30.44


def recent(plan: Plan, months: float, now: datetime) -> Plan:
    """The plan without the cases whose current scan is older than so many months."""
    since = now - timedelta(days=months * DAYS_A_MONTH)

    def is_recent(case: Case) -> bool:
        told = case.scans[-1].acquired
        return told is not None and datetime.fromisoformat(told).replace(tzinfo=None) >= since

    cases = tuple(case for case in plan.cases if is_recent(case))
    kept = {case.case_id for case in cases}
    # A course that reaches further back asks for comparisons that are not made here.
    return replace(plan, cases=tuple(case for case in cases if kept.issuperset(case.steps)))


def read_marks(path: Path) -> frozenset[str]:
    """Case ids and study UIDs that somebody has looked at, from a table with either column.

    Raises InputRefused where it cannot be read or has neither.
    """
    try:
        if path.stat().st_size > LARGEST_MARKS_BYTES:
            raise InputRefused(f"{path} is larger than {LARGEST_MARKS_BYTES} bytes; name the table of marks")
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            columns = [name for name in MARK_COLUMNS if name in (table.fieldnames or ())]
            marks = frozenset(value.strip() for row in table for name in columns if (value := row[name]))
    except (OSError, ValueError, csv.Error) as error:
        raise InputRefused(f"{path} cannot be read ({type(error).__name__}); name a CSV table") from error
    if not columns:
        raise InputRefused(f"{path} has no column {' or '.join(MARK_COLUMNS)}; add one")
    return marks


def unseen(rows: Sequence[Row], marks: Collection[str], *, level: float) -> tuple[Row, ...]:
    """Lines that tell growth with a p value up to `level` and bear no mark, in their order."""
    return tuple(
        row
        for row in rows
        if row.state == "compared"
        and row.verdict in WORSE
        and row.p_value is not None
        and row.p_value <= level
        and not {row.case_id, str((row.current or {}).get("study_uid"))} & set(marks)
    )


def write_audit(rows: Sequence[Row], out: Path, *, marks: int, now: datetime) -> None:
    """audit.json and audit.csv in a folder."""
    told = {
        "schema": SCHEMA,
        "made": now.isoformat(timespec="seconds"),
        "medsiam": __version__,
        "marks": marks,
        "rows": [
            {name: value for name, value in row.as_dict().items() if name != "is_fresh"} for row in rows
        ],
        "research_use": RESEARCH_USE,
    }
    write_whole(out / AUDIT_CSV, worklist_csv(rows))
    write_whole(out / AUDIT, to_text(plain_object(told)))
