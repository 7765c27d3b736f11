"""The demo tells the truth that was put in, whatever was found."""

import numpy as np
import pytest

from tests.comparison_maker import comparison, finding

pytest.importorskip("medsiam.compare", reason="compare is not built yet")

from medsiam.demo import demo_visits, index_page, judge, pair_rows, run_demo, write_visit
from medsiam.demo_cases import show_similar
from medsiam.volume import transform

COARSE_MM = (6.0, 4.0, 4.0)


@pytest.fixture
def visits():
    return demo_visits(spacing_mm=COARSE_MM)


def place_of_change(visit):
    """Where the changing lesion lies in the visit's world."""
    lesion = visit.lesions[-1]
    return tuple(float(mm) for mm in transform(visit.world_from_head, [lesion.centre_mm])[0])


def test_a_finding_at_the_lesion_is_matched_and_one_elsewhere_is_unexplained(visits):
    """The demo must not flatter: what was not put in is told as such."""
    hit = finding(1, centre_lps_mm=place_of_change(visits[1]))
    stray = finding(2, centre_lps_mm=(0.0, 0.0, 90.0))
    pair = judge("visit1-visit2", visits[0], visits[1], comparison(findings=(hit, stray)))
    assert pair.truths[-1].found == hit
    assert pair.truths[-1].kind == "new"
    assert pair.unexplained == (stray,)


def test_a_missed_lesion_is_told_as_missed(visits):
    """Honesty again."""
    pair = judge("visit1-visit2", visits[0], visits[1], comparison(findings=()))
    assert ("new, 0.00 -> 0.18 ml", "no finding (missed)") in pair_rows(pair)


def test_a_finding_at_an_unchanged_lesion_is_told_as_wrong(visits):
    """Three lesions stay as they are; a finding there is a false one."""
    lesion = visits[1].lesions[0]
    place = tuple(float(mm) for mm in transform(visits[1].world_from_head, [lesion.centre_mm])[0])
    pair = judge("a-b", visits[0], visits[1], comparison(findings=(finding(1, centre_lps_mm=place),)))
    assert pair_rows(pair)[2][1].endswith("(wrong)")


def test_the_demo_writes_three_series_and_a_page_that_links_both_reports(tmp_path, visits):
    """With a stand-in for the comparison, so that it takes a second."""
    folders = []

    def compare(prior, current, *, seed, device, fast):
        folders.append((prior.name, current.name, len(list(current.glob("*.dcm")))))
        return comparison()

    outcome = run_demo(tmp_path, visits=visits, compare=compare, similar=None)
    assert [pair[:2] for pair in folders] == [("visit1", "visit2"), ("visit2", "visit3")]
    page = outcome.index.read_text()
    for name in ("visit1-visit2", "visit2-visit3"):
        assert f'href="{name}/report.html"' in page
        assert (tmp_path / name / "report.html").is_file()
    assert "put in" in outcome.table()


def test_the_same_seed_writes_the_same_bytes(tmp_path, visits):
    """A demo that differs each time cannot be talked about."""
    for name in ("a", "b"):
        write_visit(visits[1], tmp_path / name, seed=0)
    first, second = (b"".join(p.read_bytes() for p in sorted((tmp_path / n).iterdir())) for n in "ab")
    assert first == second


def test_text_in_the_page_is_escaped(visits):
    """Summaries may quote DICOM headers, which anybody can write."""
    hostile = comparison(summary="<script>alert(1)</script>", findings=())
    page = index_page([judge("a-b", visits[0], visits[1], hostile)], visits)
    assert "<script>" not in page


def test_the_demo_indexes_all_scans_and_finds_the_other_patients(tmp_path, visits):
    """Three visits and five scans of others; the own patient is left out. A second run says the same."""
    for visit in visits:
        write_visit(visit, tmp_path / "dicom" / visit.name, seed=0)
    found = [show_similar(tmp_path, 0) for _ in range(2)]
    assert [outcome.cases for outcome in found] == [8, 8]
    assert {each.followed.outcome for each in found[0].results} == {"new lesion", "no change", "not followed"}
    assert [each.similarity for each in found[0].results] == [each.similarity for each in found[1].results]
    assert (tmp_path / "similar" / "search.html").is_file()


@pytest.mark.slow
def test_the_whole_demo_finds_the_lesion_that_appears_and_grows(tmp_path):
    """Through files, reading, registration and all, with its true spacing."""
    outcome = run_demo(tmp_path, formats=("json", "html", "dicom"), similar=None)
    for pair, kind in zip(outcome.pairs, ("new", "enlarged"), strict=True):
        truth = pair.truths[-1]
        assert truth.kind == kind
        assert truth.found is not None and truth.found.kind == kind
        assert truth.distance_mm < 4.0
        assert all(other.found is None for other in pair.truths[:-1])
        assert np.isfinite(truth.found.p_value)
        assert (tmp_path / pair.name / "dicom" / "findings.dcm").is_file()
        assert not (tmp_path / pair.name / "change.nii.gz").exists()
