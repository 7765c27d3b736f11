"""The commands of the case index on made-up scans, from files to reports."""

import json
import os
import stat
from dataclasses import replace
from datetime import datetime, timedelta

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import medsiam
from medsiam import cli
from medsiam.cases import CaseIndex
from medsiam.cases.labels import read_labels
from medsiam.encoding.encoder import EncoderSettings, TwinEncoder
from medsiam.encoding.preparation import PreparationSettings
from medsiam.encoding.weights import save_encoder
from medsiam.evidence.series import SeriesIdentity, derived_uid, write_series
from medsiam.reading import SeriesEntry, patient_key
from medsiam.report.schema import violations
from medsiam.report.search_json import SCHEMA
from medsiam.volume import Acquisition
from tests import phantoms

HOSTILE = "'; drop table scan; -- <script>alert(1)</script>"
FIRST = datetime(2022, 3, 4, 9, 12)
KEY = "a key for the tests of the index"


@pytest.fixture(scope="module", autouse=True)
def key():
    """One key of patients for all tests, and none written to this user's home."""
    earlier = os.environ.get("MEDSIAM_KEY")
    os.environ["MEDSIAM_KEY"] = KEY
    yield KEY.encode()
    os.environ.pop("MEDSIAM_KEY")
    if earlier is not None:
        os.environ["MEDSIAM_KEY"] = earlier


def tiny_weights(folder, name, seed):
    """A small untrained encoder in a file: which of two scans is nearer is all that is asked of it."""
    torch.manual_seed(seed)
    settings = EncoderSettings(
        channels=(8, 16), embedding_size=16, preparation=PreparationSettings(32, 6.0), summary_cells=2
    )
    save_encoder(TwinEncoder(settings), folder / f"{name}.safetensors", metadata={"name": name})
    return folder / f"{name}.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights"), "tiny", 1)


def write_scan(folder, patient, visit, *, radius_mm=4.0, manufacturer="Acme", issuer=""):
    """One visit of a made-up patient as DICOM, with a lesion of a radius."""
    lesion = phantoms.Lesion((20.0, 26.0, 26.0), (radius_mm,) * 3)
    acquired = FIRST + timedelta(days=180 * visit)
    made = phantoms.small_head((lesion,), noise=4.0, seed=10 * patient + visit, acquired=acquired)
    told = made.volume.acquisition
    volume = replace(
        made.volume,
        acquisition=replace(told, protocol=told.protocol | {"manufacturer": manufacturer, "model": "One"}),
    )
    parts = ("tests of the index", str(patient), str(visit))
    identity = SeriesIdentity(
        patient_name=f"Secret^Name{patient}",
        patient_id=f"PAT-{patient:04d}",
        issuer=issuer,
        birth_date=f"{1940 + 5 * patient}0101",
        sex="F" if patient % 2 else "M",
        study_uid=derived_uid(*parts, "study"),
        series_uid=derived_uid(*parts, "series"),
        frame_of_reference_uid=derived_uid(*parts, "frame"),
        study_id=f"visit{visit}",
        study_description="Made-up head MR",
    )
    write_series(volume, identity, folder)
    return identity


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Five patients with two visits each, a broken file among them."""
    folder = tmp_path_factory.mktemp("archive")
    for patient in range(5):
        for visit in range(2):
            radius_mm = 4.0 + 2.0 * visit * (patient % 2)
            maker = "Acme" if patient < 3 else "Bolt"
            write_scan(
                folder / f"p{patient}" / f"v{visit}", patient, visit, radius_mm=radius_mm, manufacturer=maker
            )
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8b not an image")
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Labels by patient; one is hostile."""
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    lines = [f'PAT-{n:04d},"{HOSTILE}",{n},{"died" if n % 2 else "alive"}' for n in range(5)]
    path.write_text("\n".join(["patient,note,Grade,outcome", *lines]) + "\n", encoding="utf-8")
    return path


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def told(*arguments):
    """What a command prints with --json; it must have gone well."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def index(archive, table, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed") / "cases"
    intake = told("index", "add", archive, "--index", folder, "--labels", table, "--weights", weights)
    assert (intake["new"], intake["changes"], len(intake["refused"])) == (10, 5, 1)
    assert intake["unmatched_labels"] == 0
    return folder


def search(archive, index, weights, out, *more, scan="p0/v1"):
    return run("search", archive / scan, "--index", index, "--out", out, "--weights", weights, *more)


def found(out):
    """search.json, which keeps its schema."""
    report = json.loads((out / "search.json").read_text(encoding="utf-8"))
    assert violations(report, SCHEMA) == ()
    return report


@pytest.mark.parametrize(
    ("formats", "files"),
    [
        ("json", ["search.csv", "search.json"]),
        ("json,html,nifti", ["search.csv", "search.html", "search.json"]),
    ],
)
def test_a_search_writes_the_formats_that_are_asked_for(archive, weights, index, tmp_path, formats, files):
    """The tables always; an earlier page does not stay beside newer tables."""
    assert search(archive, index, weights, tmp_path).exit_code == 0
    told = search(archive, index, weights, tmp_path, "--formats", formats)
    assert told.exit_code == 0 and files[-1 if "html" not in formats else 1] in told.stdout
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith("search.")) == files
    assert search(archive, index, weights, tmp_path, "--formats", "pdf").exit_code == 2


def test_adding_again_changes_nothing_and_reads_nothing(archive, table, weights, index):
    """Files that have not changed are skipped by their size and time."""
    again = told("index", "add", archive, "--index", index, "--labels", table, "--weights", weights)
    assert (again["new"], again["updated"], again["unchanged"], again["cases"]) == (0, 0, 10, 10)


def test_a_copy_of_a_scan_elsewhere_is_the_same_case(archive, weights, index, tmp_path):
    """The content counts, not the path."""
    write_scan(tmp_path / "copy", 0, 0)
    again = told("index", "add", tmp_path / "copy", "--index", index, "--weights", weights)
    assert (again["new"], again["unchanged"], again["cases"]) == (0, 1, 10)


def test_a_refused_file_is_told_and_the_rest_is_added(archive, weights, tmp_path):
    """One broken file in an archive must not end the run."""
    result = run("index", "add", archive, "--index", tmp_path / "cases", "--weights", weights)
    assert result.exit_code == 0
    assert result.stderr.startswith("refused: file 1 of ") and "'broken.nii.gz'" in result.stderr


def test_where_nothing_could_be_added_the_command_ends_with_3(weights, index, tmp_path):
    """A script must see it, be the index new or not; a scan that it holds already is nothing of the kind."""
    write_scan(tmp_path / "scan", 0, 0)
    words = ("--index", index, "--weights", weights)
    assert run("index", "add", tmp_path / "scan", *words).exit_code == 0
    for path in (tmp_path / "scan").rglob("*.dcm"):
        path.write_bytes(path.read_bytes()[:-40])
    refused = run("index", "add", tmp_path / "scan", *words)
    assert refused.exit_code == 3 and "refused" in refused.output


def test_a_damaged_zip_in_a_folder_is_told_and_the_rest_is_added(weights, tmp_path):
    """An archive of years holds one; named alone it is refused, since nothing else was meant."""
    write_scan(tmp_path / "scans" / "whole", 0, 0)
    broken = tmp_path / "scans" / "DOE^JOHN.zip"
    broken.write_bytes(b"PK\x03\x04 and nothing more")
    result = run(
        "index", "add", tmp_path / "scans", "--index", tmp_path / "cases", "--weights", weights, "--json"
    )
    assert result.exit_code == 0
    intake = json.loads(result.stdout)
    assert (intake["new"], len(intake["refused"])) == (1, 1)
    assert "damaged" in intake["refused"][0]["message"] and "DOE" not in result.stdout
    assert run("index", "add", broken, "--index", tmp_path / "none", "--weights", weights).exit_code != 0


def test_a_search_takes_the_report_of_an_earlier_refusal_away(archive, index, weights, tmp_path):
    """Else a good result stands beside "refused"; a comparison's report stays."""
    assert search(archive, tmp_path / "none", weights, tmp_path / "out").exit_code == 3
    assert (tmp_path / "out" / "report.json").is_file()
    assert search(archive, index, weights, tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_search_leaves_the_own_patient_out_unless_asked(archive, index, weights, tmp_path):
    """Else the patient's own prior always comes first."""
    assert search(archive, index, weights, tmp_path).exit_code == 0
    report = found(tmp_path)
    assert report["query"]["patient_key"] not in {each["patient_key"] for each in report["results"]}
    assert len(report["results"]) == 8
    assert search(archive, index, weights, tmp_path, "--include-same-patient").exit_code == 0
    own = [each for each in found(tmp_path)["results"] if each["case_id"] == report["query"]["case_id"]]
    assert own[0]["similarity"] == pytest.approx(1.0, abs=1e-3)


def test_a_result_tells_what_followed_and_what_is_known(archive, index, weights, tmp_path):
    """Labels, outcome, and the next scan of that patient."""
    search(archive, index, weights, tmp_path, "-k", "8")
    by_scan = {each["series_uid"]: each for each in found(tmp_path)["results"]}
    first = by_scan[derived_uid("tests of the index", "1", "0", "series")]
    assert first["followed"]["days"] == 180.0
    assert (first["outcome"], first["labels"]) == ("died", {"note": HOSTILE, "grade": "1"})
    assert by_scan[derived_uid("tests of the index", "1", "1", "series")]["followed"]["days"] is None


def test_the_share_of_one_s_own_scanner_is_told_and_can_be_ranked_by(archive, index, weights, tmp_path):
    """Neighbours by scanner are no neighbours."""
    search(archive, index, weights, tmp_path, "-k", "8")
    assert found(tmp_path)["acquisition_share"] == {"same_scanner": 4, "of": 8, "scanner": "Acme One"}
    search(archive, index, weights, tmp_path, "--scanners", "other")
    assert {each["scanner"] for each in found(tmp_path)["results"]} == {"Bolt One"}
    search(archive, index, weights, tmp_path, "--scanners", "same")
    assert {each["scanner"] for each in found(tmp_path)["results"]} == {"Acme One"}


def test_a_filter_narrows_the_search(archive, index, weights, tmp_path):
    """By a label and a column."""
    assert search(archive, index, weights, tmp_path, "--where", "grade >= 3 and sex = 'F'").exit_code == 0
    assert {each["labels"]["grade"] for each in found(tmp_path)["results"]} == {"3"}


def test_patients_vote_with_one_voice_each(archive, index, weights, tmp_path):
    """Two scans of one patient are not two facts."""
    search(archive, index, weights, tmp_path, "-k", "8")
    votes = {vote["label"]: vote for vote in found(tmp_path)["votes"]}
    assert votes["outcome"]["voices"] == 4
    assert votes["outcome"]["shares"] == {"died": 0.5, "alive": 0.5}
    assert votes["grade"]["mean"] == pytest.approx(2.5)


def test_a_search_by_change_finds_the_patients_who_changed(archive, index, weights, tmp_path):
    """With the prior from the index, and controls of the same kind."""
    assert search(archive, index, weights, tmp_path, "--by", "change", "-k", "4").exit_code == 0
    report = found(tmp_path)
    assert report["query"]["interval_days"] == 180.0
    assert len(report["results"]) == 4
    assert all(each["interval_days"] == 180.0 for each in report["results"])
    page = (tmp_path / "search.html").read_text("utf-8")
    for caption in ("Query, prior", "Query, current", "Case, prior", "Case, current"):
        assert page.count(f">{caption}<") == 4


def test_a_search_by_change_takes_a_prior_that_is_not_in_the_index(archive, index, weights, tmp_path):
    """And refuses one that is not earlier."""
    args = ("--by", "change", "--prior", archive / "p0" / "v0")
    assert search(archive, index, weights, tmp_path, *args).exit_code == 0
    result = search(archive, index, weights, tmp_path / "x", *args, scan="p0/v0")
    assert result.exit_code == 3 and "not older" in result.stderr


def test_a_search_by_finding_finds_the_same_place_in_another_scan(archive, weights, tmp_path):
    """Masks come from the label table; the query's place from a report."""
    volume = medsiam.read_volume(archive / "p1" / "v1")
    entries = ["file,patient,mask"]
    for patient in (1, 2):
        mask = tmp_path / f"mask{patient}.nii.gz"
        _write_mask(mask, volume.grid, (20.0, 26.0, 26.0))
        entries.append(f",PAT-{patient:04d},{mask.name}")
    (tmp_path / "masks.csv").write_text("\n".join(entries), encoding="utf-8")
    made = told(
        "index", "add", archive / "p1", archive / "p2", "--index", tmp_path / "cases",
        "--labels", tmp_path / "masks.csv", "--weights", weights,
    )  # fmt: skip
    assert made["findings"] == 4
    args = ("--by", "finding", "--at", "20,26,26")
    assert search(archive, tmp_path / "cases", weights, tmp_path / "out", *args, scan="p1/v1").exit_code == 0
    results = found(tmp_path / "out")["results"]
    assert len(results) == 2 and results[0]["volume_ml"] > 0
    far = search(archive, tmp_path / "cases", weights, tmp_path / "far", "--by", "finding", "--at", "900,0,0")
    assert far.exit_code == 3 and "outside of the scan" in far.stderr
    none = search(archive, tmp_path / "cases", weights, tmp_path / "none", "--by", "finding")
    assert none.exit_code == 3 and "--at X,Y,Z" in none.stderr


def test_findings_of_comparisons_are_stored_also_of_scans_that_are_known(archive, weights, tmp_path):
    """Compare, then index: the report says whose findings they are."""
    folder, scan = tmp_path / "cases", archive / "p1" / "v1"
    told("index", "add", archive / "p1", "--index", folder, "--weights", weights)
    volume = medsiam.read_volume(scan)
    result = tmp_path / "results" / "pair"
    result.mkdir(parents=True)
    _write_mask(result / "findings.nii.gz", volume.grid, (20.0, 26.0, 26.0))
    report = {"findings": [{}], "provenance": {"inputs": [{}, {"sha256": volume.acquisition.sha256}]}}
    (result / "report.json").write_text(json.dumps(report), encoding="utf-8")
    more = ("--results", tmp_path / "results", "--weights", weights)
    assert told("index", "add", archive / "p1", "--index", folder, *more)["findings"] == 1
    assert told("index", "add", archive / "p1", "--index", folder, *more)["findings"] == 0
    assert told("index", "info", "--index", folder)["findings"] == 1


def _write_mask(path, grid, centre_mm):
    import nibabel

    ball = phantoms.ball(grid, centre_mm, 6.0).array > 0.5
    ras_from_index = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.world_from_index @ np.eye(4)[[2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(ball.T.astype(np.uint8), ras_from_index), path)


def test_hostile_text_is_shown_and_never_run(archive, index, weights, tmp_path):
    """A label is typed by anyone; a spreadsheet runs what begins with =."""
    search(archive, index, weights, tmp_path)
    page = (tmp_path / "search.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src &#39;none&#39;; img-src data:; style-src" in page
    rows = (tmp_path / "search.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 9 and "\"''; drop" not in rows[1]


def test_no_name_is_in_the_index_or_the_report(archive, index, weights, tmp_path):
    """Only keyed hashes of numbers leave the reading room."""
    search(archive, index, weights, tmp_path)
    for path in (*index.rglob("*"), *tmp_path.iterdir()):
        if path.is_file():
            content = path.read_bytes()
            assert b"Secret" not in content and b"PAT-0" not in content, path


def test_info_and_list_tell_what_is_there(index):
    """In words and as JSON."""
    info = told("index", "info", "--index", index)
    assert (info["cases"], info["changes"], info["patients"]) == (10, 5, 5)
    assert info["labels"] == ["grade", "note"]
    assert len(told("index", "list", "--index", index, "--where", "sex = 'M'")) == 6
    assert run("index", "list", "--index", index, "--limit", 2).stdout.count("\n") == 3


def test_a_patient_is_removed_by_number_and_the_receipt_is_kept(archive, weights, tmp_path):
    """From the files too."""
    folder = tmp_path / "cases"
    told("index", "add", archive / "p1", archive / "p2", "--index", folder, "--weights", weights)
    receipt = told("index", "remove", "--patient", "PAT-0001", "--index", folder)
    assert receipt["cases"] == {"scan": 2, "finding": 0, "change": 1}
    assert receipt["is_proven"] and all(p["found_after"] == 0 for p in receipt["proof"].values())
    (kept,) = (folder / "receipts").iterdir()
    assert json.loads(kept.read_text(encoding="utf-8")) == receipt
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    gone = run("index", "remove", "--patient", "PAT-0001", "--index", folder)
    assert gone.exit_code == 3 and "holds nothing" in gone.stderr
    assert told("index", "info", "--index", folder)["cases"] == 2


def test_a_number_alone_finds_its_patient_whoever_issued_it(weights, tmp_path):
    """Most scans of a hospital tell an issuer, and whoever asks for erasure does not know of it."""
    folder = tmp_path / "cases"
    write_scan(tmp_path / "here", 1, 0, issuer="HERE")
    told("index", "add", tmp_path / "here", "--index", folder, "--weights", weights)
    receipt = told("index", "remove", "--patient", "PAT-0001", "--index", folder)
    assert receipt["cases"]["scan"] == 1 and receipt["is_proven"]


def test_a_number_of_two_issuers_is_nobody_s_until_one_is_named(weights, tmp_path):
    """Patient 1 of one hospital is not patient 1 of another."""
    folder = tmp_path / "cases"
    for visit, issuer in enumerate(("HERE", "THERE")):
        write_scan(tmp_path / "scans" / issuer, 1, visit, issuer=issuer)
    told("index", "add", tmp_path / "scans", "--index", folder, "--weights", weights)
    remove = ("index", "remove", "--patient", "PAT-0001", "--index", folder)
    refused = run(*remove)
    assert refused.exit_code == 3 and "'HERE', 'THERE'" in refused.stderr
    assert told(*remove, "--issuer", "HERE")["cases"]["scan"] == 1
    assert told(*remove)["cases"]["scan"] == 1


def test_a_search_by_a_scan_that_tells_nobody_leaves_out_the_patient_that_is_named(weights, tmp_path):
    """An exported image tells no number; its own scan would stand first."""
    folder = tmp_path / "cases"
    for patient in (1, 2):
        write_scan(tmp_path / "scans" / str(patient), patient, 0, issuer="HERE")
    told("index", "add", tmp_path / "scans", "--index", folder, "--weights", weights)
    volume = medsiam.read_volume(tmp_path / "scans" / "1")
    ras_from_ijk = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.grid.world_from_index[:, [2, 1, 0, 3]]
    nib.save(nib.Nifti1Image(volume.array.transpose(2, 1, 0), ras_from_ijk), tmp_path / "scan.nii.gz")
    search = ("search", tmp_path / "scan.nii.gz", "--index", folder, "--weights", weights, "--patient")
    for patient, count in (("PAT-0001", 1), ("PAT-0003", 2)):
        assert run(*search, patient, "--out", tmp_path / patient).exit_code == 0
        assert len(found(tmp_path / patient)["results"]) == count


def test_one_case_is_removed_by_its_id(archive, weights, tmp_path):
    """As the list tells it; a beginning that fits several is refused."""
    folder = tmp_path / "cases"
    told("index", "add", archive / "p1", "--index", folder, "--weights", weights)
    first = told("index", "list", "--index", folder)[0]["case_id"]
    assert run("index", "remove", "--case", first[:4], "--index", folder).exit_code == 3
    receipt = told("index", "remove", "--case", first[:12], "--index", folder)
    assert receipt["cases"] == {"scan": 1, "finding": 0, "change": 1}


def test_another_encoder_is_refused_until_the_index_is_rebuilt(archive, table, weights, tmp_path):
    """Rebuilt, it holds the same cases with their labels, and answers the new encoder."""
    folder = tmp_path / "cases"
    told("index", "add", archive / "p1", "--index", folder, "--weights", weights, "--labels", table)
    other = tiny_weights(tmp_path, "other", 2)
    refused = search(archive, folder, other, tmp_path / "out")
    assert refused.exit_code == 3 and "index rebuild" in refused.stderr
    part = run("index", "rebuild", archive / "p1" / "v0", "--index", folder, "--weights", other)
    assert part.exit_code == 3 and "1 of 2 cases" in part.stderr
    assert CaseIndex.open(folder).encoder_id.startswith("tiny@")
    whole = told("index", "rebuild", archive / "p1", "--index", folder, "--weights", other)
    assert (whole["new"], whole["cases"], whole["changes"]) == (2, 2, 1)
    assert search(archive, folder, other, tmp_path / "out", scan="p0/v0").exit_code == 0
    assert found(tmp_path / "out")["results"][0]["labels"]["grade"] == "1"
    assert len(list(folder.glob("cases*"))) == 1


def test_rebuild_without_scans_tidies_and_links_changes_anew(archive, weights, tmp_path):
    """Also what a run that was killed has left undone."""
    folder = tmp_path / "cases"
    told("index", "add", archive / "p1", "--index", folder, "--weights", weights)
    index = CaseIndex.open(folder)
    index.drop([case.case_id for case in index.store.find("change", None)], "change")
    assert told("index", "rebuild", "--index", folder) == {"cases": 2}
    assert CaseIndex.open(folder).store.count("change") == 1


def test_a_comparison_tells_the_similar_cases(archive, index, weights, tmp_path):
    """In report.json, as search.json tells them, without the own patient."""
    result = run(
        "compare", archive / "p0" / "v0", archive / "p0" / "v1", "--out", tmp_path,
        "--index", index, "--weights", weights, "--formats", "json,html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert violations(report) == ()
    assert len(report["similar_cases"]) == 5
    assert report["current"]["patient_key"] not in {each["patient_key"] for each in report["similar_cases"]}
    assert "Cases that look like" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_search_stands_beside_a_comparison_and_replaces_an_earlier_search_only(
    archive, index, weights, tmp_path
):
    """A report in the same folder is not this command's to remove."""
    (tmp_path / "report.json").write_text('{"schema": "medsiam.comparison/1"}')
    assert search(archive, index, weights, tmp_path).exit_code == 0
    assert search(archive, index, weights, tmp_path, "-k", "2").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.json", "search.csv", "search.html", "search.json",
    ]  # fmt: skip
    assert len(found(tmp_path)["results"]) == 2


@pytest.mark.parametrize(
    ("more", "told_"),
    [
        (("--where", "colour = 'red'"), "no column 'colour'"),
        (("--where", "modality = 'MR'; drop table scan"), "cannot be read"),
        (("--series", "1.2.3"), "no series"),
    ],
)
def test_a_search_that_cannot_be_made_ends_with_3_and_one_line(
    archive, index, weights, tmp_path, more, told_
):
    """And leaves no search behind."""
    result = search(archive, index, weights, tmp_path, *more)
    assert result.exit_code == 3
    assert told_ in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "search.json").exists()


def test_no_index_and_a_damaged_one_are_told_in_one_line(archive, weights, tmp_path):
    """With what to do."""
    none = search(archive, tmp_path / "none", weights, tmp_path / "out")
    assert none.exit_code == 3 and "medsiam index add" in none.stderr
    folder = tmp_path / "cases"
    told("index", "add", archive / "p1", "--index", folder, "--weights", weights)
    for path in (folder / "cases" / "scan.lance" / "data").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    damaged = search(archive, folder, weights, tmp_path / "out")
    assert damaged.exit_code == 3 and damaged.stderr.count("\n") == 1
    assert "restore it from a backup" in damaged.stderr


@pytest.mark.parametrize(
    ("text", "told_"),
    [
        ("note\nx\n", "no column that finds a scan"),
        ("patient,age\nPAT-0001,old\n", "line 2: 'old' is no age"),
        ("patient,acquired\nPAT-0001,soon\n", "no date"),
        ("patient,a\nPAT-0001,1\nPAT-0001,2\n", "told twice"),
        ("patient,modality_,modality\nP,1,2\n", "already the name of a column"),
        ("patient,!!\nP,1\n", "begins with a letter"),
        ("patient,a\n,1\n", "no scan is named"),
        (b"patient,a\n\xff\xfe,1\n", "UTF-8"),
    ],
)
def test_a_label_table_that_is_wrong_is_refused_before_anything_is_read(
    archive, weights, tmp_path, text, told_
):
    """With line and column."""
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = run("index", "add", archive, "--index", tmp_path / "c", "--labels", path, "--weights", weights)
    assert result.exit_code == 3 and told_ in result.stderr
    assert not (tmp_path / "c").exists()


def test_rows_of_a_label_table_that_find_no_scan_are_told(archive, weights, tmp_path):
    """A table of other numbers left every label out, and nothing said so. Semicolons are a table's too."""
    path, out = tmp_path / "labels.csv", tmp_path / "c"
    path.write_text("patient;grade\nPAT-0000;1\nPAT-1000;2\n")
    result = run("index", "add", archive / "p0", "--index", out, "--labels", path, "--weights", weights)
    assert result.exit_code == 0 and "rows that find none of these scans: 1 " in result.stderr
    listed = told("index", "list", "--index", out)
    assert [case["labels"] for case in listed] == [{"grade": "1"}] * 2


def test_a_patient_of_an_issuer_is_found_by_both(tmp_path):
    """The key of a number and its issuer is another than that of the number alone."""
    path, key = tmp_path / "labels.csv", KEY.encode()
    told = Acquisition(patient_key=patient_key("P1", "HERE", key))
    entry = SeriesEntry("1.2", (), told, (1, 1, 1), (1.0, 1.0, 1.0), "dicom")
    for issuer, missed in (("HERE", 0), ("THERE", 1), ("", 1)):
        path.write_text(f"patient\tissuer\tgrade\nP1\t{issuer}\t2\n")
        table = read_labels(path, key)
        assert table.unmatched([entry]) == missed
        assert (table.of(entry) is None) == bool(missed)


def test_nothing_usable_makes_no_index(tmp_path, weights):
    """An index of nothing would only puzzle."""
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"\x1f\x8b")
    result = run("index", "add", tmp_path / "scans", "--index", tmp_path / "cases", "--weights", weights)
    assert result.exit_code == 3 and "no scan can be added" in result.stderr
    assert not (tmp_path / "cases").exists()


def test_python_finds_what_the_command_finds(archive, index, weights):
    """The contract's three lines."""
    encoder = medsiam.load_encoder(weights)
    features = encoder(medsiam.read_volume(archive / "p3" / "v1"))
    best = medsiam.CaseIndex.open(index).search(features.embedding, count=5)[0]
    assert best.case.series_uid == derived_uid("tests of the index", "3", "1", "series")
    assert medsiam.CaseIndex.open(index).search(features)[0].similarity == pytest.approx(1.0, abs=1e-3)
