"""Change that nobody has seen, and noise floors that moved: from the lines of a worklist."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from medsiam.batch import Case, Plan, Row, Scan
from medsiam.batch.audit import read_marks, recent, unseen, write_audit
from medsiam.batch.drift import Rule, drifts, read_rows
from medsiam.errors import InputRefused

NOW = datetime(2026, 3, 1)
RULE = Rule(recent=timedelta(weeks=4), before=timedelta(weeks=26))


def line(name, **told):
    """A line of growth that is sure, as a worklist holds it."""
    usual = {"verdict": "progressed", "p_value": 0.001, "current": {"study_uid": f"1.2.{name}"}}
    return Row(case_id=name, kind="comparison", state="compared", patient_key="aa", **(usual | told))


def stable(days_ago, floor_ml, scanner="A"):
    """A stable comparison, its scan so many days old."""
    scan = {"acquired": (NOW - timedelta(days=days_ago)).isoformat(), "series_uid": scanner, "modality": "MR"}
    return line(f"{days_ago}-{scanner}", verdict="stable", current=scan, smallest_detectable_ml=floor_ml)


def floors(now_ml, before_ml, scanner="A"):
    """Twelve comparisons of the last weeks and thirty before them, a tenth of spread."""
    draw = np.random.default_rng(3)
    return [
        *(stable(2 * n, now_ml * draw.uniform(0.95, 1.05), scanner) for n in range(12)),
        *(stable(30 + 5 * n, before_ml * draw.uniform(0.95, 1.05), scanner) for n in range(30)),
    ]


def test_only_sure_growth_without_a_mark_is_listed():
    rows = [line("a"), line("b", p_value=0.2), line("c", verdict="improved"), line("d"), line("e")]
    assert [row.case_id for row in unseen(rows, {"d", "1.2.e"}, level=0.01)] == ["a"]


def test_marks_name_a_comparison_or_a_study(tmp_path):
    """Either column will do; a table with neither says nothing and is refused."""
    table = tmp_path / "seen.csv"
    table.write_text("study_uid,reader,case_id\n1.2.e,x,\n,y,d\n")
    assert read_marks(table) == {"1.2.e", "d"}
    table.write_text("reader\nx\n")
    with pytest.raises(InputRefused, match="no column"):
        read_marks(table)


def test_an_audit_leaves_out_what_is_older():
    """A course goes too where one of its comparisons does."""
    scans = [
        Scan(str(n), (), "", acquired=(NOW - timedelta(days=days)).isoformat())
        for n, days in enumerate((900, 400, 10))
    ]
    cases = (
        Case("old", "aa", tuple(scans[:2])), Case("new", "aa", tuple(scans[1:])),
        Case("course", "aa", tuple(scans), steps=("old", "new")),
    )  # fmt: skip
    assert [case.case_id for case in recent(Plan(cases), 3, NOW).cases] == ["new"]


def test_an_audit_is_written_as_json_and_as_a_table(tmp_path):
    write_audit([line("a")], tmp_path, marks=4, now=datetime(2026, 3, 1, tzinfo=UTC))
    assert '"case_id": "a"' in (tmp_path / "audit.json").read_text()
    assert (tmp_path / "audit.csv").read_text().startswith("urgency,case_id,patient_key")


def test_a_floor_that_rose_by_half_is_told_and_one_that_stayed_is_not():
    """A scanner's upgrade, beside one that was left alone."""
    rows = [*floors(1.5, 1.0, "A"), *floors(1.0, 1.0, "B")]
    found = drifts(rows, {"A": "ACME One", "B": "ACME Two"}, RULE, now=NOW)
    assert [(each.scanner, each.has_moved) for each in found] == [("ACME One", True), ("ACME Two", False)]


def test_a_difference_too_small_to_matter_is_not_told():
    """Many comparisons prove anything."""
    (found,) = drifts(floors(1.15, 1.0), {}, RULE, now=NOW)
    assert found.p_value < 0.01 and not found.has_moved and found.scanner == "MR"


def test_illness_is_no_noise_and_few_comparisons_prove_nothing():
    """Only stable ones count, or those of phantoms where they are named."""
    ill = [replace(row, verdict="progressed") for row in floors(2.0, 1.0)]
    assert drifts(ill, {}, RULE, now=NOW) == ()
    assert drifts(ill, {}, RULE, now=NOW, phantoms=("aa",))[0].has_moved
    (few,) = drifts(floors(2.0, 1.0)[9:], {}, RULE, now=NOW)
    assert few.now_ml is None and not few.has_moved


def test_a_folder_without_a_worklist_is_refused(tmp_path):
    with pytest.raises(InputRefused, match="run the batch first"):
        read_rows(tmp_path)
