"""The files of a trajectory: they keep their schema, agree with each other, and stand whole or not at all."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import medsiam.trajectory
from medsiam import cli
from medsiam.change.trajectory import Measurement, ScanVolume
from medsiam.demo import PATIENT_NAME, Visit, write_visit
from medsiam.errors import InputRefused, NotComparable
from medsiam.evidence.series import SeriesIdentity, derived_uid, write_series
from medsiam.phantom import Lesion, Scan, position
from medsiam.report.digests import verify
from medsiam.report.schema import load_schema, violations
from medsiam.report.trajectory_html import render_trajectory, trajectory_policy
from medsiam.report.trajectory_json import SCHEMA, trajectory_json
from medsiam.report.trajectory_plot import lesion_plot, net_plot, nice_ticks
from medsiam.report.trajectory_writer import trajectory_folder
from medsiam.volume import Volume
from tests.phantoms import small_head
from tests.test_report_chromium import CHROMIUM, Browser
from tests.trajectory_maker import comparisons, one_lesion, pair, place, silent, trajectory

HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">"
GROWING, SHRINKING = (-30.0, 10.0, 30.0), (24.0, -20.0, 28.0)


def told(made=None, **files):
    return trajectory_json(
        made or grown(), files=files, pair_files={(1, 2): {"html": "pairs/1-2/report.html"}}
    )


def grown():
    """A lesion of 0, 1 and 2.5 ml whose second scan was measured twice, not quite alike."""
    pairs = [pair(1, 2, place(0.0, 1.0)), pair(2, 3, place(1.1, 2.5)), pair(1, 3, place(0.0, 2.4))]
    return trajectory(pairs)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "made",
    [
        grown(),
        trajectory(one_lesion([1.0, 1.0, 1.0])),
        trajectory(one_lesion([0.0, 2.0, 1.0, 0.0, 3.0]), 5),
        trajectory([silent(each) for each in one_lesion([0.0, 1.0, 2.0])]),
    ],
    ids=["grown", "stable", "five", "silent"],
)
def test_every_trajectory_keeps_its_schema(made):
    """Also where nothing could be said."""
    assert violations(json.loads(json.dumps(told(made))), SCHEMA) == ()
    assert load_schema(SCHEMA)["properties"]["schema"]["const"] == "medsiam.trajectory/1"


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("verdict",), "better"),
        (("lesions",), []),
        (("closure", "reason"), "because"),
        (("lesions", 0, "volumes", 1, "sd_ml"), None),
        (("lesions", 0, "volumes", 1, "volume_ml"), -1.0),
        (("total", "rate_ml_per_month", "low_95"), None),
        (("pairs", 0, "registration", "quality"), "failed"),
        (("pairs", 0, "files"), {"html": "../elsewhere.html"}),
        (("scans",), []),
    ],
)
def test_a_broken_trajectory_is_caught(where, value):
    """A schema that lets everything pass is none."""
    broken = copy.deepcopy(told())
    *path, last = where
    target = broken
    for step in path:
        target = target[step]
    target[last] = value
    assert violations(broken, SCHEMA) != ()


def test_the_file_tells_what_was_measured():
    """Mean and spread of two measurements, the pairs they come from, and the interval of the rate."""
    lesion = told()["lesions"][0]
    second = lesion["volumes"][1]
    assert second["volume_ml"] == pytest.approx(1.05)
    assert second["sd_ml"] == pytest.approx(0.1 / np.sqrt(2), abs=1e-5)
    assert [each["pair"] for each in second["measurements"]] == [[1, 2], [2, 3]]
    assert lesion["rate_ml_per_month"]["scans"] == 3
    assert told()["closure"]["error_ml"] == pytest.approx(0.0)
    assert "standard deviation of its own repeated measurements" in told()["uncertainty"]


def test_a_date_that_is_missing_leaves_null_and_a_plot_over_scan_numbers():
    """Neither a made-up interval nor a broken page."""
    made = replace(grown(), days=(0.0, None, None), rate=None)
    plot = net_plot(told(made))
    assert [scan["days_since_first"] for scan in told(made)["scans"]] == [0.0, None, None]
    assert "a date is missing" in plot.x_title
    assert plot.lines[0].fit is None


def test_the_plot_puts_dates_to_scale_and_bars_where_they_were_measured():
    """Scans 0, 100 and 200 days: equal steps; a bar on scans with a spread alone."""
    plot = lesion_plot(told())
    xs = [mark.x for mark in plot.lines[0].marks]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert [mark.low is None for mark in plot.lines[0].marks] == [False, False, False]
    assert plot.lines[0].marks[0].y == pytest.approx(plot.zero)
    assert all(plot.top <= mark.y <= plot.bottom for mark in plot.lines[0].marks)
    assert [tick.second for tick in plot.x_ticks] == ["0 d", "100 d", "200 d"]


def test_what_falls_below_zero_stays_within_the_drawing():
    """Net change may be negative, and so may its fitted line be."""
    net = (ScanVolume(1, (Measurement(None, 0.0),)), ScanVolume(3, (Measurement(None, -3.3),)))
    plot = net_plot(told(replace(grown(), net=net)))
    assert plot.top <= plot.zero <= plot.bottom
    assert all(plot.top <= at <= plot.bottom for at in (*plot.lines[0].fit[1::2], plot.lines[0].marks[1].y))


@pytest.mark.parametrize("ends", [(0.0, 0.83), (-3.3, 0.0), (0.0, 0.0), (0.0, 1234.0), (-0.002, 0.003)])
def test_ticks_enclose_the_values_and_are_few(ends):
    """Whatever the size."""
    ticks = nice_ticks(*ends)
    assert ticks[0] <= ends[0] and ticks[-1] >= ends[1]
    assert len(ticks) <= 9


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def hostile():
    made = grown()
    scans = tuple(
        Volume(
            s.array,
            s.grid,
            replace(s.acquisition, description=HOSTILE, body_part=HOSTILE, assumptions=(HOSTILE,)),
        )
        for s in made.scans
    )
    pairs = tuple(replace(each, summary=HOSTILE) for each in made.pairs)
    return replace(made, scans=scans, pairs=pairs, summary=HOSTILE, notes=(HOSTILE,))


def test_the_page_runs_nothing_fetches_nothing_and_says_what_it_is():
    """Hostile header text stays text; the policy lets two styles in and nothing else."""
    page = render_trajectory(told(hostile()))
    found = Elements(page).found
    assert not {tag for tag, _ in found} & {"script", "img", "iframe", "link", "object"}
    assert not any(name.startswith("on") or name == "style" for _, attrs in found for name in attrs)
    assert all("://" not in (attrs.get("href") or "") for _, attrs in found)
    policy = next(a["content"] for _, a in found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == trajectory_policy()
    assert "'none'" in policy and "unsafe" not in policy and "script-src" not in policy
    assert page.count("Research use only - not a medical device") >= 2


def test_the_page_links_each_pair_s_report_and_shows_every_lesion():
    """Readers come to the pictures from here."""
    page = render_trajectory(told())
    assert 'href="pairs/1-2/report.html"' in page
    assert "1.05 ml ± 0.071" in page
    assert page.count("<svg") == 2


def test_nothing_is_seen_before_all_is_written_and_then_all_is(tmp_path):
    """The pairs are written one by one while the rest is computed."""
    out = tmp_path / "out"
    with trajectory_folder(out, formats=("json", "html")) as writer:
        for key, comparison in comparisons().items():
            writer.keep(key, comparison)
        assert [path for path in names(out) if not path.startswith(".medsiam-")] == []
        files = writer.finish(grown())
    report = json.loads((out / "trajectory.json").read_text())
    assert names(out) == sorted(files.values()) == sorted(report["files"].values())
    written = {"json": "report.json", "html": "report.html", "digests": "digests.json"}
    assert report["pairs"][0]["files"] == {kind: f"pairs/1-2/{path}" for kind, path in written.items()}
    assert violations(report, SCHEMA) == ()


def test_each_pair_s_page_shows_the_trend_over_all_visits(tmp_path):
    """A reader of one pair sees where it stands, and finds the way back; a lone pair has no trend."""
    with trajectory_folder(tmp_path, formats=("html",)) as writer:
        for key, comparison in comparisons().items():
            writer.keep(key, comparison)
        lone = (writer.stage / "pairs" / "1-2" / "report.html").read_text("utf-8")
        writer.finish(grown())

    page = (tmp_path / "pairs" / "2-3" / "report.html").read_text("utf-8")

    assert "Trend over" not in lone and "<svg" not in lone
    assert "Trend over 3 visits" in page and page.count("<svg") == 2
    assert "This page compares scan 2 with scan 3" in page
    assert verify(tmp_path / "pairs" / "2-3").others == 0
    assert (tmp_path / "pairs" / "2-3" / "../../trajectory.html").is_file()
    assert 'href="../../trajectory.html"' in page


def test_each_pair_takes_further_files_and_all_are_listed(tmp_path):
    """The DICOM evidence of each pair; what is listed is there, so that a repeat may replace it."""

    def more(comparison):
        def write_more(folder):
            (folder / "dicom").mkdir()
            (folder / "dicom" / "report.dcm").write_bytes(b"evidence")
            return {"dicom_report": "dicom/report.dcm"}

        return write_more

    for _ in range(2):
        with trajectory_folder(tmp_path, formats=("json",), write_more=more) as writer:
            for key, comparison in comparisons().items():
                writer.keep(key, comparison)
            files = writer.finish(grown())
    assert files["1-2 dicom_report"] == "pairs/1-2/dicom/report.dcm"
    assert (tmp_path / "pairs" / "2-3" / "dicom" / "report.dcm").read_bytes() == b"evidence"


def write(out, count=3):
    with trajectory_folder(out, formats=("json",)) as writer:
        for key, comparison in comparisons(count).items():
            writer.keep(key, comparison)
        writer.finish(trajectory(one_lesion([float(n) for n in range(count)]), count))


def test_a_second_trajectory_replaces_the_first_whole(tmp_path):
    """Pairs of four scans must not stand beside a trajectory of three; what is not ours stays."""
    (tmp_path / "letter.txt").write_text("mine")
    write(tmp_path, 4)
    write(tmp_path, 3)
    pairs = [
        f"pairs/{name}/{file}" for name in ("1-2", "1-3", "2-3") for file in ("digests.json", "report.json")
    ]
    assert names(tmp_path) == ["digests.json", "letter.txt", *pairs, "trajectory.json"]


def test_a_folder_of_pairs_that_holds_something_else_is_never_removed(tmp_path):
    """Someone may have put notes there."""
    write(tmp_path)
    (tmp_path / "pairs" / "notes.txt").write_text("mine")
    before = names(tmp_path)
    with pytest.raises(InputRefused, match="pairs is there and was not written by medsiam"):
        write(tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("error", [ValueError("bug"), NotComparable("a head and a foot; no")])
def test_a_failure_half_way_leaves_everything_as_it_was(tmp_path, error):
    """The first pair's report is not a result."""
    with pytest.raises(type(error)), trajectory_folder(tmp_path / "out") as writer:
        writer.keep((1, 2), comparisons()[1, 2])
        raise error
    assert not (tmp_path / "out").exists()


def run(*arguments):
    return CliRunner().invoke(cli.app, ["trajectory", *map(str, arguments)])


def test_two_scans_are_wrong_usage(tmp_path):
    """compare is for two."""
    result = run("a", "b", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "3 or more" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_fewest_scans_are_told_alike_in_both_places():
    """Told twice, since the recipe takes seconds to import."""
    assert cli.FEWEST_SCANS == medsiam.trajectory.FEWEST_SCANS


@pytest.fixture
def follows(monkeypatch):
    """Lets a function stand in for follow_series, and keeps what it was called with."""

    def stand_in(answer):
        calls = []

        def follow_series(scans, *, keep, progress, **options):
            calls.append((scans, options))
            keep((1, 2), comparisons()[1, 2])
            if isinstance(answer, BaseException):
                raise answer
            return answer

        monkeypatch.setattr(medsiam.trajectory, "follow_series", follow_series)
        return calls

    return stand_in


def test_every_option_reaches_the_trajectory(tmp_path, follows):
    """An option that is accepted and dropped is worse than none."""
    calls = follows(grown())
    result = run(
        "a", "b", "c", "--out", tmp_path, "--config", "c.yaml", "--device", "cpu", "--weights", "w",
        "--seed", "5", "--fast", "--allow-different-patients", "--keep-order", "--all-pairs",
        "--formats", "html", "--json",
    )  # fmt: skip
    scans, options = calls[0]
    rules = vars(options.pop("rules"))
    assert [str(scan) for scan in scans] == ["a", "b", "c"]
    assert {name: str(value) for name, value in options.items()} == {
        "config": "c.yaml", "device": "cpu", "weights": "w", "seed": "5",
    }  # fmt: skip
    assert rules == {
        "allow_different_patients": True, "keep_order": True, "all_pairs": True, "fast": True,
    }  # fmt: skip
    assert json.loads(result.stdout) == json.loads((tmp_path / "trajectory.json").read_text())
    assert names(tmp_path) == [
        "digests.json",
        "pairs/1-2/digests.json",
        "pairs/1-2/report.html",
        "pairs/1-2/report.json",
        "trajectory.html",
        "trajectory.json",
    ]


def test_a_refusal_ends_with_3_one_line_and_a_refused_report_alone(tmp_path, follows):
    """As of a comparison; the pair that was already written is gone."""
    follows(NotComparable("a head and a foot; no"))
    result = run("a", "b", "c", "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert names(tmp_path / "out") == ["report.json"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "refused"


@pytest.mark.parametrize(("error", "code"), [(MemoryError(), 4), (KeyError("slope"), 1)])
def test_exhaustion_and_bugs_leave_nothing(tmp_path, follows, error, code):
    """A queue must not find half a result."""
    follows(error)
    assert run("a", "b", "c", "--out", tmp_path / "out").exit_code == code
    assert not (tmp_path / "out").exists()


def ball(centre_mm, radius_mm) -> Lesion | None:
    return Lesion(centre_mm, (radius_mm,) * 3) if radius_mm else None


def three_visits():
    """Half a year apart: one lesion appears and grows, one shrinks and resolves, one stays."""
    poses = (
        position((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        position((3.0, -2.0, 4.0), (4.0, -3.0, 5.0)),
        position((-4.0, 1.5, -3.0), (-3.0, 5.0, -4.0)),
    )
    radii = ((0.0, 7.0), (5.0, 5.5), (7.0, 0.0))
    dates = (datetime(2022, 3, 4, 9), datetime(2022, 9, 4, 9), datetime(2023, 3, 4, 9))
    for n in range(3):
        scan = Scan((4.0, 2.0, 2.0), noise=4.0, bias=0.05, seed=n)
        changing = (ball(GROWING, radii[n][0]), ball(SHRINKING, radii[n][1]))
        yield Visit(
            f"v{n + 1}", dates[n], poses[n], scan, (Lesion((20.0, 26.0, 26.0), (5.0, 6.0, 5.0)), *changing)
        )


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Three visits as DICOM, followed by the command in a wrong order; folder and result."""
    root = tmp_path_factory.mktemp("course")
    for visit in three_visits():
        write_visit(visit, root / visit.name, seed=0)
    result = run(
        root / "v3", root / "v1", root / "v2", "--out", root / "out", "--formats", "json,html", "--fast"
    )
    assert result.exit_code == 0, result.stderr
    return root, result


@pytest.fixture
def followed(course):
    return json.loads((course[0] / "out" / "trajectory.json").read_text())


@pytest.mark.slow
def test_three_visits_are_followed_in_the_order_of_time(course, followed):
    """Through files, reading, three comparisons, and the page."""
    root, result = course
    assert result.stdout.startswith("mixed: 2 lesions followed")
    assert violations(followed, SCHEMA) == ()
    assert [scan["given"] for scan in followed["scans"]] == [2, 3, 1]
    assert [scan["days_since_first"] for scan in followed["scans"]] == [0.0, 184.0, 365.0]
    assert names(root / "out") == sorted(followed["files"].values())
    for each in followed["pairs"]:
        assert violations(json.loads((root / "out" / each["files"]["json"]).read_text())) == ()


@pytest.mark.slow
def test_the_lesions_put_in_are_followed_with_their_volumes(course, followed):
    """Places within 2 mm of scan 1, volumes within a third, absent where there was none."""
    true_ml = {r: 4.0 / 3.0 * np.pi * r**3 / 1000.0 for r in (0.0, 5.0, 5.5, 7.0)}
    for lesion in followed["lesions"]:
        grows = lesion["rate_ml_per_month"]["value"] > 0
        centre, radii = (GROWING, (0.0, 5.0, 7.0)) if grows else (SHRINKING, (7.0, 5.5, 0.0))
        assert np.linalg.norm(np.subtract(lesion["centre_lps_mm"], centre)) < 2.0
        found = [volume["volume_ml"] for volume in lesion["volumes"]]
        assert found == pytest.approx([true_ml[r] for r in radii], rel=0.34, abs=0.02)
        assert [volume["is_absent"] for volume in lesion["volumes"]] == [r == 0.0 for r in radii]
        assert (lesion["doubling_days"] is not None) == grows


@pytest.mark.slow
def test_steps_and_direct_comparison_close_and_keep_one_identity(course, followed):
    """A tenth of all change and half a millimetre; the UID is that of the first pair's own report."""
    assert followed["closure"]["share"] < 0.1
    assert followed["closure"]["registration_mm"] < 0.5
    first = json.loads((course[0] / "out" / "pairs" / "1-2" / "report.json").read_text())
    assert {lesion["tracking_uid"] for lesion in followed["lesions"]} == {
        finding["tracking_uid"] for finding in first["findings"]
    }


@pytest.mark.slow
def test_no_file_of_the_result_holds_the_patient_s_name(course):
    """Nor its number."""
    for path in (course[0] / "out").rglob("*.*"):
        content = path.read_bytes()
        assert PATIENT_NAME.encode() not in content and b"DEMO-0001" not in content


@pytest.mark.slow
def test_scans_of_two_patients_are_refused(course, tmp_path):
    """One line, exit 3, and a refused report."""
    root, _ = course
    stranger = small_head(acquired=datetime(2024, 1, 1, 9)).volume
    identity = SeriesIdentity(
        patient_name="Other^Otto", patient_id="OTHER", issuer="", birth_date="19700101", sex="M",
        study_uid=derived_uid("o", "study"), series_uid=derived_uid("o", "series"),
        frame_of_reference_uid=derived_uid("o", "frame"), study_id="1", study_description="Head",
    )  # fmt: skip
    write_series(stranger, identity, tmp_path / "other")
    result = run(root / "v1", root / "v2", tmp_path / "other", "--out", tmp_path / "out")
    assert result.exit_code == 3 and result.stderr.count("\n") == 1
    assert re.search("scans 1 and 3 of those given: .*two patients", result.stderr)
    assert names(tmp_path / "out") == ["report.json"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_opens_in_a_browser_without_a_complaint(tmp_path, width):
    """Policy violations, requests and anything that sticks out would show up here."""
    (tmp_path / "page.html").write_text(render_trajectory(told(hostile())), encoding="utf-8")
    browser = Browser(tmp_path / "profile")
    try:
        browser.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        browser.ask("Page.navigate", url=(tmp_path / "page.html").as_uri())
        browser.wait_for(
            "document.readyState === 'complete' && document.querySelectorAll('svg').length === 2"
        )
        assert browser.complaints() == []
        assert browser.value("document.title") == "Change over 3 scans: progressed"
        assert browser.value("document.documentElement.scrollWidth") <= width
    finally:
        browser.close()
