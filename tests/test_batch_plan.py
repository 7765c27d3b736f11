"""Which scans of an archive are compared: visits, priors, and everything that cannot be one."""

import os
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from medsiam.batch.listing import Found, Listing
from medsiam.batch.plan import plan_archive, planned
from medsiam.batch.values import BatchSettings, Scan
from medsiam.volume import Acquisition
from tests.archive_maker import write_archive

NOW = datetime(2030, 1, 1)
DAY = datetime(2024, 1, 10, 9, 30)


def found(visit, *, series=1, days=0.0, **changes):
    """A FLAIR of one patient, a visit a year, unless told otherwise."""
    told = {
        "modality": "MR", "body_part": "HEAD", "description": "FLAIR axial", "patient_key": "ab" * 10,
        "birth_key": "cd" * 10, "study_uid": f"1.2.{visit}", "series_uid": f"1.2.{visit}.{series}",
        "acquired": DAY + timedelta(days=365 * visit + days),
    } | changes  # fmt: skip
    at = told["acquired"]
    acquisition = Acquisition(**told)
    scan = Scan(
        acquisition.series_uid, ((f"{visit}-{series}.dcm", ""),), f"{visit}-{series}", acquisition.study_uid,
        acquisition.series_uid, acquisition.modality, acquisition.body_part, at.isoformat() if at else None,
    )  # fmt: skip
    return Found(scan, acquisition, (40, 200, 200), (3.0, 1.0, 1.0), acquisition.birth_key, "name", at)


def plan(*series, **settings):
    return planned(Listing(found=list(series)), BatchSettings(**settings), NOW)


def pairs(made):
    """The visits of each comparison."""
    return sorted(
        tuple(int(scan.study_uid.split(".")[2]) for scan in case.scans) for case in made.comparisons
    )


def test_each_visit_is_compared_with_the_one_before_and_three_make_a_trajectory():
    made = plan(found(2), found(0), found(1))
    assert pairs(made) == [(0, 1), (1, 2)]
    (course,) = made.trajectories
    assert course.steps == tuple(case.case_id for case in made.comparisons)
    assert made.inputs == ()


def test_one_visit_is_nothing_to_compare_and_no_refusal():
    """Most patients of an archive came once."""
    assert plan(found(0)).cases == () == plan(found(0)).inputs


def test_a_visit_that_shows_something_else_does_not_break_the_line():
    """The prior of a head is the last head, whatever was scanned in between."""
    made = plan(found(0), found(1, body_part="KNEE", description="PD sagittal"), found(2))
    assert pairs(made) == [(0, 2)]


def test_the_series_most_alike_are_taken_and_with_all_series_each_that_has_a_counterpart():
    """The same choice at each visit, or a trajectory would jump between contrasts."""
    visits = [
        (found(n, description="FLAIR axial"), found(n, series=2, description="T1 sagittal")) for n in range(3)
    ]
    series = [each for visit in visits for each in visit]
    made = plan(*series)
    assert len(made.comparisons) == 2 and len({s.name[-1] for c in made.comparisons for s in c.scans}) == 1
    assert len(plan(*series, all_series=True).comparisons) == 4
    assert len(plan(*series, all_series=True).trajectories) == 2


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"acquired": None}, "date", "tells no date"),
        ({"acquired": datetime(2099, 1, 1)}, "clock", "2099-01-01, which cannot be"),
        ({"acquired": datetime(1970, 1, 1)}, "clock", "1970-01-01, which cannot be"),
        ({"patient_key": None}, "identity", "no patient number"),
    ],
)
def test_what_cannot_be_put_in_order_or_belongs_to_nobody_is_refused_and_the_rest_is_done(
    changes, code, words
):
    made = plan(found(0), found(1, **changes), found(2))
    assert pairs(made) == [(0, 2)]
    (row,) = made.inputs
    assert (row.state, row.code) == ("refused", code) and words in row.reason


def test_two_clocks_that_disagree_on_the_order_are_refused():
    """The scanner says before, the information system says after."""
    late = replace(found(1), study_at=DAY - timedelta(days=30))
    made = plan(found(0), late)
    assert made.cases == () and "opposite orders" in made.inputs[0].reason


def test_two_visits_on_one_day_without_a_time_are_refused():
    midnight = DAY.replace(hour=0, minute=0)
    made = plan(found(0, acquired=midnight), found(1, acquired=midnight))
    assert made.cases == () and "do not tell which is the earlier" in made.inputs[0].reason


def test_two_people_under_one_number_are_compared_apart_and_told():
    """Each one's scans are their own; across they must never meet."""
    other = {"birth_key": "ef" * 10}
    made = plan(found(0), found(1, **other), found(2), found(3, **other))
    assert pairs(made) == [(0, 2), (1, 3)]
    (row,) = made.inputs
    assert row.code == "identity" and "2 people share one patient number" in row.reason


def test_one_number_of_which_a_scan_tells_no_issuer_is_one_patient():
    """By the earlier scan's key, which what comes later does not change. Two issuers are two patients."""
    bare, here, there = (
        {"patient_key": key * 10, "number_key": "12", "issuer": issuer}
        for key, issuer in (("aa", ""), ("bb", "HERE"), ("cc", "THERE"))
    )
    made = plan(found(0, **bare), found(1, **here), found(2, **here))
    assert pairs(made) == [(0, 1), (1, 2)]
    assert {case.patient_key for case in made.cases} == {"aa" * 10}
    assert {case.patient_key for case in plan(found(0, **here), found(1, **bare)).cases} == {"bb" * 10}
    assert plan(found(0, **here), found(1, **there)).cases == ()
    assert plan(found(0, **bare), found(1, **here), found(2, **there)).cases == ()
    assert plan(found(0, **bare), found(1, **here | {"number_key": "13"})).cases == ()


def test_a_missing_birth_date_is_no_second_person():
    made = plan(found(0), found(1, birth_key=None))
    assert pairs(made) == [(0, 1)] and made.inputs == ()


def test_two_names_without_birth_dates_are_two_people():
    nameless = [replace(found(n, birth_key=None), name_token=f"name {n % 2}") for n in range(4)]
    assert pairs(plan(*nameless)) == [(0, 2), (1, 3)]


def test_one_visit_under_two_studies_is_taken_once_and_told():
    """Sent twice with new UIDs, it would be compared with itself and called stable."""
    twin = found(5, acquired=found(1).acquisition.acquired)
    made = plan(found(0), found(1), twin)
    assert pairs(made) == [(0, 1)]
    assert made.aside == (
        ("1.2.5", "acquired at the very moment of another study: one visit is there twice"),
    )


def test_a_follow_up_on_the_same_day_is_a_visit_of_its_own():
    """Before and after surgery."""
    assert pairs(plan(found(0), found(1, days=-365 + 0.2))) == [(0, 1)]


def test_no_series_like_enough_is_a_refusal_with_the_likeness():
    made = plan(found(0, description="T1 sagittal"), found(1, description="FLAIR axial"))
    (row,) = made.inputs
    assert made.cases == () and row.code == "not-comparable" and "not like enough" in row.reason


def test_a_case_keeps_its_name_whatever_else_the_archive_holds():
    """Its folder and its ledger record are found again in the next night."""
    few, many = plan(found(0), found(1)), plan(found(0), found(1), found(2), found(3, patient_key="0" * 20))
    assert few.comparisons[0].case_id in {case.case_id for case in many.comparisons}


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """An archive of a patient with three visits, and an OUT that keeps what its headers say."""
    root = tmp_path_factory.mktemp("headers")
    write_archive(root / "archive", 1, 3)
    plan_archive(root / "archive", root / "out", keep=True)
    return root


@pytest.fixture
def copied(headers, tmp_path):
    """A plan anew of a copy of OUT: what it makes of the archive, and where it keeps."""
    shutil.copytree(headers / "out", tmp_path / "out")
    return lambda: plan_archive(headers / "archive", tmp_path / "out", keep=True)


def garbled(path, *, is_told):
    """The file with other bytes, its size and time as before unless told."""
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    if not is_told:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_headers_of_untouched_files_are_not_read_again_and_the_plan_is_the_same(headers, copied):
    """A file that cannot be read any more proves that nobody looked; who keeps nothing looks."""
    fresh = plan_archive(headers / "archive", headers / "none")
    path = headers / "archive" / "P000" / "visit1" / "IM0002.dcm"
    content, times = path.read_bytes(), path.stat()
    garbled(path, is_told=False)
    assert copied() == fresh != plan_archive(headers / "archive", headers / "none")
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not (headers / "none").exists()


@pytest.mark.parametrize("what", ["changed", "gone", "added", "another key", "damaged", "foreign"])
def test_headers_are_read_again_where_anything_is_not_as_it_was(headers, tmp_path, monkeypatch, what):
    archive = shutil.copytree(headers / "archive", tmp_path / "archive")
    before = plan_archive(archive, tmp_path / "out", keep=True)
    visit, kept = archive / "P000" / "visit1", tmp_path / "out" / ".medsiam" / "headers"
    if what == "changed":
        garbled(visit / "IM0002.dcm", is_told=True)
    elif what == "gone":
        (visit / "IM0002.dcm").unlink()
    elif what == "added":
        shutil.copy(visit / "IM0002.dcm", visit / "again.dcm")
    elif what == "another key":
        monkeypatch.setenv("MEDSIAM_KEY", "another secret of this hospital")
    for path in kept.iterdir():
        if what in ("damaged", "foreign"):
            path.write_text("{" if what == "damaged" else '{"schema": "medsiam.headers/1"}')
    again = plan_archive(archive, tmp_path / "out", keep=True)
    assert again == plan_archive(archive, tmp_path / "none")
    assert (again == before) == (what in ("damaged", "foreign"))


def test_a_refusal_is_not_kept_and_a_folder_that_is_gone_is_forgotten(headers, tmp_path):
    """What is broken is told by each run; what was taken away leaves nothing behind."""
    archive = shutil.copytree(headers / "archive", tmp_path / "archive")
    garbled(archive / "P000" / "visit1" / "IM0002.dcm", is_told=True)
    first, second = (plan_archive(archive, tmp_path / "out", keep=True) for _ in range(2))
    assert first == second and {row.code for row in first.inputs} >= {"unreadable"}
    kept = tmp_path / "out" / ".medsiam" / "headers"
    assert len(list(kept.iterdir())) == 2
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in (kept, kept.parent))
    shutil.rmtree(archive / "P000" / "visit0")
    plan_archive(archive, tmp_path / "out", keep=True)
    assert len(list(kept.iterdir())) == 1


def test_what_is_kept_of_headers_names_no_file(headers):
    """A folder's or a file's name may be a patient's."""
    kept = list((headers / "out" / ".medsiam" / "headers").iterdir())
    assert len(kept) == 3
    for path in kept:
        assert not any(word in path.read_text() for word in ("IM0", "P000", "visit", "Unmistakable"))


def test_a_folder_whose_name_is_no_text_is_planned_and_kept_like_any_other(headers, tmp_path):
    """Names of files are bytes, and old archives hold such."""
    archive = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    shutil.copytree(headers / "archive", archive)
    first, again = (plan_archive(archive, tmp_path / "out", keep=True) for _ in range(2))
    assert first == again and len(first.comparisons) == 2
