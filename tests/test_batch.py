"""A whole archive: every case once, whatever is broken in it and whenever the run is killed."""

import csv
import errno
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import medsiam
from medsiam import cli
from medsiam.batch import BatchSettings, Row, finish, plan_archive, run_batch, run_case
from medsiam.batch.indexing import Indexed, add_compared
from medsiam.batch.ledger import Ledger
from medsiam.batch.pair_record import pair_from_json, pair_to_json
from medsiam.batch.reading import Reader
from medsiam.batch.run import Run, from_own_start
from medsiam.batch.worklist import in_order, worklist_csv
from medsiam.cases.index import CaseIndex
from medsiam.cases.rebuild import sizes_of
from medsiam.change.trajectory import closure_of
from medsiam.errors import ArchiveRefused, InputRefused, ResourceExhausted, Unreadable
from medsiam.reading import read_volume
from medsiam.report.digests import verify
from medsiam.report.nifti import write_nifti
from medsiam.report.schema import violations
from tests.archive_maker import NAME, write_archive, write_visit
from tests.trajectory_maker import POINTS_MM, one_lesion

JSON_ONLY = BatchSettings(formats=("json",))
# What differs between two runs of the same thing.
TIMES = ("computed", "seconds", "made", "peak_memory_mb")


def run(*arguments):
    return CliRunner().invoke(cli.app, ["batch", *map(str, arguments)])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def timeless(value):
    """The same without times."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def reports(out):
    """Every report below OUT, without times."""
    return {str(path.relative_to(out)): timeless(read(path)) for path in sorted(out.rglob("*/*/report.json"))}


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """An archive with everything that goes wrong, and what the command made of it."""
    root = tmp_path_factory.mktemp("night")
    archive = write_archive(root / "archive", 1, 3)
    for visit in range(2):
        write_visit(archive, "TWO", visit, number="P000-2", birth="19600101")
    write_visit(archive, "TWIN", 0, number="P777", birth="19700707")
    write_visit(archive, "TWINB", 1, number="P777", birth="19880808")
    write_visit(archive, "UNDATED", 0, acquired=None)
    broken = write_visit(archive, "CUT", 0)
    (broken / "IM0002.dcm").write_bytes((broken / "IM0002.dcm").read_bytes()[:600])
    shutil.copytree(archive / "P000" / "visit1", archive / "again" / "copy")
    (archive / "readme.txt").write_text("no scan")
    result = run(archive, "--out", root / "out", "--log", root / "log.jsonl")
    return root, result


def test_everything_that_can_be_compared_is_and_the_counts_add_up(night):
    """3 comparisons; refused: the undated, the cut file and its series, one number of two people."""
    root, result = night
    assert result.exit_code == 0, result.output
    assert "found: 7, compared: 3, refused: 4, failed: 0" in result.stdout
    worklist, manifest = read(root / "out" / "worklist.json"), read(root / "out" / "manifest.json")
    assert violations(worklist, "medsiam.worklist/1") == () == violations(manifest, "medsiam.manifest/1")
    counts = manifest["counts"]
    assert counts["found"] == counts["compared"] + counts["refused"] + counts["failed"] == 7
    assert sorted(row["code"] for row in worklist["rows"] if row["state"] == "refused") == [
        "date", "geometry", "identity", "unreadable",
    ]  # fmt: skip
    assert manifest["trajectory_counts"] == {"found": 1, "compared": 1, "refused": 0, "failed": 0}
    assert [each["reason"] for each in worklist["aside"]] == ["the very same files are in the archive twice"]


def test_each_comparison_stands_where_the_contract_says_and_is_sealed(night):
    root, _ = night
    for row in read(root / "out" / "worklist.json")["rows"]:
        if row["state"] == "compared":
            home = root / "out" / row["patient_key"] / row["case_id"]
            assert violations(read(home / "report.json")) == () and (home / "report.html").is_file()
            assert (root / "out" / row["report"]).is_file()
    assert verify(root / "out").others == 0


def test_no_name_and_no_number_is_anywhere_in_what_was_written(night):
    """Keys and digests only, in the log and the ledger too."""
    root, result = night
    written = [root / "log.jsonl", *(path for path in (root / "out").rglob("*") if path.is_file())]
    for path in written:
        content = path.read_bytes()
        assert b"Unmistakable" not in content and b"P000-2" not in content, path
    assert NAME not in result.output


def test_the_log_is_one_json_object_a_line(night):
    events = [json.loads(line) for line in (night[0] / "log.jsonl").read_text().splitlines()]
    assert [each["event"] for each in events][:3] == ["begin", "planned", "known"]
    assert sum(each["event"] == "case" for each in events) == 4 and events[-1]["compared"] == 3


def test_a_second_run_does_nothing_and_says_so(night):
    """Not a file of a result is written again."""
    root, _ = night
    before = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*/*/*")}
    result = run(root / "archive", "--out", root / "out", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["counts"]["compared"] == 3
    assert {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*/*/*")} == before
    assert "nothing was to be done" in run(root / "archive", "--out", root / "out").stdout


def test_a_batch_whose_results_were_changed_says_so_and_makes_them_again(night):
    """A damaged result must not pass for one."""
    root, _ = night
    out = shutil.copytree(root / "out", root / "copy")
    home = (out / read(out / "worklist.json")["rows"][0]["report"]).parent
    (home / "report.html").write_text("<p>nothing</p>")
    refused = CliRunner().invoke(cli.app, ["verify", str(out)])
    assert refused.exit_code == 3 and "report.html: changed" in refused.stderr
    made = run_batch(root / "archive", out)
    assert [(row.case_id, row.state) for row in made.rows if row.is_fresh] == [(home.name, "compared")]
    assert verify(out).files


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One patient with two visits, compared."""
    root = tmp_path_factory.mktemp("pair")
    archive = write_archive(root / "archive", 1, 2)
    run_batch(archive, root / "out", JSON_ONLY)
    return root


def planned_pair(pair):
    return plan_archive(pair / "archive", pair / "out").cases[0]


def copied(pair, tmp_path):
    return shutil.copytree(pair / "out", tmp_path / "out")


@pytest.mark.parametrize(
    "settings",
    [BatchSettings(formats=("json",), seed=7), BatchSettings(formats=("json", "html"))],
    ids=["seed", "formats"],
)
def test_a_changed_setting_makes_anew_what_it_touches(pair, tmp_path, settings):
    out = copied(pair, tmp_path)
    assert run_batch(pair / "archive", out, settings).fresh == 1
    assert run_batch(pair / "archive", out, settings).fresh == 0
    (report,) = reports(out).values()
    assert report["provenance"]["seed"] == settings.seed and ("html" in report["files"]) == (
        settings.seed == 0
    )


def test_files_that_were_only_touched_are_read_but_not_compared_again(pair, tmp_path):
    """Copying an archive changes its times; the ledger goes by content."""
    out = copied(pair, tmp_path)
    before = next(out.rglob("report.json")).stat().st_mtime_ns
    for path in (pair / "archive").rglob("*.dcm"):
        os.utime(path)
    run_batch(pair / "archive", out, JSON_ONLY)
    assert next(out.rglob("report.json")).stat().st_mtime_ns == before


class Broken:
    """A reader that cannot read."""

    def __init__(self, error):
        self.error = error

    def scans(self, case):
        raise self.error


def test_a_bug_is_a_row_with_its_place_and_without_its_words(pair, tmp_path):
    """The text of an error may hold what a header says; nothing of an earlier result stays."""
    case, out = planned_pair(pair), copied(pair, tmp_path)
    settings = BatchSettings(formats=("json",), seed=1)
    row = run_case(case, out, settings, reader=Broken(ValueError("Unmistakable^Ursula")))
    assert (row.state, row.code) == ("failed", "bug") and row.reason.startswith(
        "ValueError in case.py, line "
    )
    assert "Ursula" not in row.reason and not list(out.rglob("report.json"))
    assert run_case(case, out, settings).state == "compared"


def test_a_refusal_is_recorded_once_and_leaves_its_report(pair, tmp_path):
    case = planned_pair(pair)
    row = run_case(case, tmp_path, JSON_ONLY, reader=Broken(Unreadable("cut short; export it again")))
    assert (row.state, row.code) == ("refused", "unreadable")
    assert violations(read(tmp_path / row.report)) == ()
    assert run_case(case, tmp_path, JSON_ONLY).is_fresh is False


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError(), ResourceExhausted),
        (OSError(errno.ENOSPC, "No space left on device"), ResourceExhausted),
        (ArchiveRefused("the archive is down; try later"), ArchiveRefused),
    ],
)
def test_what_may_come_back_is_raised_and_not_recorded(pair, tmp_path, error, raised):
    """Neither a full disk nor an archive that is away says anything of the scans."""
    with pytest.raises(raised):
        run_case(planned_pair(pair), tmp_path, JSON_ONLY, reader=Broken(error))
    assert Ledger(tmp_path).record(planned_pair(pair).case_id) is None


class Watched(Ledger):
    """A ledger whose case is done by another run as soon as it was asked for."""

    asked = 0

    def done(self, *arguments, **options):
        self.asked += 1
        return super().done(*arguments, **options) if self.asked > 1 else None


class Returning:
    """A reader whose archive is away so many times."""

    def __init__(self, out, times):
        self.reader, self.times = Reader(out, JSON_ONLY), times

    def expect(self, cases):
        pass

    def scans(self, case):
        self.times -= 1
        if self.times >= 0:
            raise ArchiveRefused("the archive is down; try later")
        return self.reader.scans(case)


@pytest.mark.parametrize(("times", "state"), [(1, "compared"), (9, "refused")])
def test_an_archive_that_is_away_is_asked_again_and_then_told(pair, tmp_path, times, state):
    """The others are done meanwhile; what is still away at the end is a refusal of this run alone."""
    plan = plan_archive(pair / "archive", tmp_path)
    run = Run(1, Ledger(tmp_path).open(), JSON_ONLY, Returning(tmp_path, times))
    run.take(plan.cases)
    run.take_late(patience_s=0.0)
    made = finish(plan, tmp_path, JSON_ONLY, rows=run.rows)
    assert [row.state for row in made.rows] == [state] and made.failed == 0
    assert (Ledger(tmp_path).record(plan.cases[0].case_id) is None) == (state == "refused")


def test_two_processes_on_one_folder_never_compute_the_same_case(pair, tmp_path):
    case, ledger = planned_pair(pair), Ledger(tmp_path).open()
    with ledger.held(case.case_id):
        assert run_case(case, tmp_path, JSON_ONLY, wait=False) is None
    assert run_case(case, tmp_path, JSON_ONLY, wait=False).state == "compared"


def test_runs_that_share_an_archive_begin_apart_and_keep_patients_together(pair, tmp_path):
    """Else both would read every scan; a run that is alone begins at the first patient."""
    case, ledger = planned_pair(pair), Ledger(tmp_path).open()
    cases = [replace(case, patient_key=f"{n // 2}", case_id=f"{n}") for n in range(16)]
    with ledger.turn() as first, ledger.turn() as second, ledger.turn() as third:
        starts = [from_own_start(cases, number) for number in (first, second, third, 3)]
    assert [start[0].patient_key for start in starts] == ["0", "4", "2", "6"]
    for start in starts:
        assert sorted(start, key=cases.index) == cases
        assert [each.case_id for each in start if each.patient_key == "6"] == ["12", "13"]
    with ledger.turn() as alone:
        assert (alone, from_own_start((), alone), from_own_start(cases[:1], 5)) == (0, (), (cases[0],))


def test_what_another_run_has_done_is_not_even_read(pair, tmp_path):
    plan = plan_archive(pair / "archive", copied(pair, tmp_path))
    run_batch(pair / "archive", tmp_path / "out", JSON_ONLY)
    run = Run(1, Ledger(tmp_path / "late").open(), JSON_ONLY, Broken(AssertionError("it was read")))
    run.ledger = Watched(tmp_path / "out")
    run.take(plan.cases)
    assert [row.state for row in run.rows.values()] == ["compared"]


def test_a_trajectory_waits_for_a_step_that_another_process_has_in_hand(night, tmp_path):
    """Two runs on one folder share the work, and each one's worklist is whole."""
    plan = plan_archive(night[0] / "archive", tmp_path)
    cases = [case for case in plan.cases if case.patient_key == plan.trajectories[0].patient_key]
    ledger = Ledger(tmp_path).open()
    with Reader(tmp_path, JSON_ONLY) as reader:
        run = Run(len(cases), ledger, JSON_ONLY, reader)
        with ledger.held(plan.trajectories[0].steps[0]):
            run.take(cases)
        assert [row.kind for row in run.rows.values()] == ["comparison"]
        run.take_late(patience_s=0.0)
    assert sorted(row.kind for row in run.rows.values()) == ["comparison", "comparison", "trajectory"]
    assert {row.state for row in run.rows.values()} == {"compared"}


def test_what_a_killed_process_left_half_made_is_swept(pair, tmp_path):
    out, case = copied(pair, tmp_path), planned_pair(pair)
    ledger = Ledger(out)
    (ledger.stage(case) / "half").mkdir(parents=True)
    with ledger.held("fetched-alive"):
        (ledger.home / "stage" / "fetched-alive").mkdir()
        run_batch(pair / "archive", out, JSON_ONLY)
    assert [path.name for path in (ledger.home / "stage").iterdir()] == ["fetched-alive"]


@pytest.mark.slow
def test_kill_9_loses_the_case_in_hand_at_most_and_the_end_is_the_same(night, tmp_path):
    """Resumed, it equals a run that nobody killed, and what was done is not done again."""
    root, _ = night
    command = [
        sys.executable,
        "-m",
        "medsiam",
        "batch",
        str(root / "archive"),
        "--out",
        str(tmp_path / "out"),
    ]
    # As many threads as here: another number adds up in another order.
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    ledger = tmp_path / "out" / ".medsiam" / "ledger"
    deadline = time.monotonic() + 60
    while not list(ledger.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.stem: read(path)["row"]["computed"] for path in ledger.glob("*.json")}
    whole = {path.parent.name for path in (tmp_path / "out").glob("*/*/") if path.name[0] != "."}
    assert 1 <= len(done) < 4 and not (tmp_path / "out" / "manifest.json").exists()
    made = run_batch(root / "archive", tmp_path / "out")
    assert whole and {row.case_id for row in made.rows if row.is_fresh}.isdisjoint(done)
    for case_id, computed in done.items():
        assert read(ledger / f"{case_id}.json")["row"]["computed"] == computed
    assert reports(tmp_path / "out") == reports(root / "out")
    ours, theirs = (read(each / "out" / "worklist.json") for each in (tmp_path, root))
    assert timeless(ours) == timeless(theirs)


@pytest.fixture
def indexes(tmp_path):
    """Makes empty indexes for the shipped encoder."""
    encoder = medsiam.load_encoder(spatial_dims=3)
    return lambda name: CaseIndex.make(tmp_path / name, encoder.encoder_id, sizes_of(encoder))


def indexed(pair, out, index, **settings):
    """What a run adds to an index: new, known, refused."""
    events = {}
    wanted = BatchSettings(formats=("json",), index=str(index.folder), add_to_index=True, **settings)
    run_batch(pair / "archive", out, wanted, log=lambda event, told: events.update({event: told}))
    return tuple(events["indexed"].values()), events["end"]["fresh"]


def test_what_was_compared_is_added_to_the_index_once(pair, tmp_path, indexes):
    """A run that was killed before it added anything, or whose index was lost, makes up for it."""
    index, other = indexes("index"), indexes("other")
    assert indexed(pair, tmp_path / "out", index) == ((2, 0, 0), 1)
    words = ("--formats", "json", "--add-to-index", "--index", index.folder)
    again = run(pair / "archive", "--out", tmp_path / "out", *words)
    assert "nothing was to be done" in again.stdout and "index: 0 scans added, 2 known" in again.stdout
    assert indexed(pair, tmp_path / "out", other) == ((2, 0, 0), 0)
    scans = index.store.find("scan", None)
    assert len(scans) == 2 and {scan.patient_key for scan in scans} == {planned_pair(pair).patient_key}
    assert index.store.count("change", None) == 1
    for path in (tmp_path / "index").rglob("*"):
        assert path.is_dir() or not (b"Unmistakable" in path.read_bytes() or b"P000" in path.read_bytes())


def test_the_findings_of_a_scan_that_is_known_are_added_when_they_are_there(pair, tmp_path, indexes):
    """The scan may have come into the index before it was compared."""
    index, out = indexes("index"), copied(pair, tmp_path)
    settings = BatchSettings(formats=("json",), index=str(index.folder), add_to_index=True)
    plan = plan_archive(pair / "archive", out)
    made = run_batch(pair / "archive", out, JSON_ONLY)
    assert add_compared(plan, made.rows, out, settings) == Indexed(new=2)
    report = out / made.rows[0].report
    report.write_text(json.dumps({**read(report), "findings": [{}]}), encoding="utf-8")
    grid = read_volume(pair / "archive" / "P000" / "visit1").grid
    labels = np.zeros(grid.shape, np.uint16)
    labels[2:4, 4:6, 4:6] = 1
    write_nifti(report.with_name("findings.nii.gz"), labels, grid, description="medsiam findings")
    found = [replace(row, findings=1) for row in made.rows]
    for _ in range(2):
        assert add_compared(plan, found, out, settings) == Indexed(known=2)
        assert index.store.count("finding", None) == 1


def test_an_index_that_nothing_can_be_added_to_is_refused_before_anything_is_compared(pair, tmp_path):
    out = tmp_path / "out"
    assert run(pair / "archive", "--out", out, "--add-to-index").exit_code == 2
    words = ("--add-to-index", "--index", tmp_path / "none")
    result = run(pair / "archive", "--out", out, *words)
    assert result.exit_code == 3 and "there is no index" in result.stderr
    address = BatchSettings(index=str(tmp_path), add_to_index=True)
    with pytest.raises(InputRefused, match="behind an address"):
        run_batch("https://pacs.example/dicom-web", out, address)
    assert not (out / ".medsiam").exists()


def test_an_archive_that_holds_its_own_results_does_not_compare_them(tmp_path):
    """`medsiam batch . --out night/` in the archive itself."""
    archive = write_archive(tmp_path, 1, 2)
    run_batch(archive, archive / "night", JSON_ONLY)
    assert plan_archive(archive, archive / "night").counts["files"] == 12


def test_a_series_scattered_over_folders_is_read_as_one(tmp_path):
    """Some archives keep each file in a folder of its own."""
    for visit in range(2):
        place = write_visit(tmp_path / "whole", "P", visit)
        for path in place.iterdir():
            target = tmp_path / "scattered" / f"{visit}{path.stem}"
            target.mkdir(parents=True)
            path.rename(target / path.name)
    (case,) = plan_archive(tmp_path / "scattered", tmp_path / "out").cases
    assert [len(scan.files) for scan in case.scans] == [6, 6]


def test_an_archive_that_is_not_there_ends_with_3(tmp_path):
    result = run(tmp_path / "nothing", "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert read(tmp_path / "out" / "report.json")["status"] == "refused"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def row(case_id, **changes):
    return Row(case_id, "comparison", **{"state": "compared", "verdict": "stable", "report": "x", **changes})


def test_the_most_urgent_stand_first():
    """The largest growth, then what nobody can tell; what was not compared last, a bug before a refusal."""
    rows = [
        row("stable"), row("refused", state="refused", verdict=None, code="date"),
        row("improved", verdict="improved"), row("small", verdict="progressed", largest=0.1),
        row("unclear", verdict="indeterminate"),
        row("failed", state="failed", verdict=None), row("large", verdict="mixed", largest=2.0),
    ]  # fmt: skip
    assert [each.case_id for each in in_order(rows)] == [
        "large", "small", "unclear", "improved", "stable", "failed", "refused",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tcmd"])
def test_no_cell_of_the_table_is_a_formula(text):
    (told,) = csv.DictReader(io.StringIO(worklist_csv([row("a", summary=text)])))
    assert told["summary"] == f"'{text}"


def test_a_pair_written_and_read_again_adds_up_to_the_same():
    """Through JSON, as the ledger keeps it."""
    pairs = one_lesion([1.0, 2.5, 3.0])
    again = [pair_from_json(json.loads(json.dumps(pair_to_json(p), default=float)), *p.key) for p in pairs]
    assert closure_of(again, 3, POINTS_MM) == closure_of(pairs, 3, POINTS_MM)
    for old, new in zip(pairs, again, strict=True):
        assert new.findings == old.findings and new.comparability == old.comparability
        np.testing.assert_allclose(new.places[0].points_mm, old.places[0].points_mm, atol=0.005)


def test_the_plan_can_be_carried_to_another_process(pair):
    """Keys, digests and paths only."""
    plan = plan_archive(pair / "archive", pair / "out")
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert Path(plan.cases[0].scans[0].files[0][0]).is_file()
