"""A real archive behind an address is compared as a folder is, and left alone where nothing is new."""

import json

import pytest
from typer.testing import CliRunner

from medsiam import cli
from medsiam.batch import BatchSettings, run_batch
from medsiam.doctor import examine
from medsiam.pacs.opening import open_archive
from tests.archive_maker import write_archive
from tests.orthanc import PASSWORD, USER, orthanc


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Orthanc with one patient's two visits; its two addresses."""
    folder = tmp_path_factory.mktemp("orthanc")
    with pytest.MonkeyPatch.context() as patch, orthanc(folder) as (http, dicom):
        patch.setenv("MEDSIAM_PACS_USER", USER)
        patch.setenv("MEDSIAM_PACS_PASSWORD", PASSWORD)
        url = f"http://127.0.0.1:{http}/dicom-web"
        scans = write_archive(folder / "scans", 1, 2)
        open_archive(url).store(sorted(scans.rglob("*.dcm")))
        yield url, f"dimse://ORTHANC@127.0.0.1:{dicom}"


def test_an_archive_by_dicomweb_is_fetched_case_by_case_and_once(archive, tmp_path):
    out = tmp_path / "out"
    for fresh in (1, 0):
        made = run_batch(archive[0], out, BatchSettings(formats=("json",)))
        assert (made.fresh, dict(made.counts)["compared"]) == (fresh, 1)
    assert not list((out / ".medsiam" / "stage").iterdir())
    (row,) = json.loads((out / "worklist.json").read_text())["rows"]
    assert row["prior"]["acquired"] < row["current"]["acquired"]


def test_an_archive_by_dimse_holds_the_same_cases(archive, tmp_path):
    """Whichever way it is asked: the same case ids."""
    plans = [
        run_batch(url, tmp_path / str(n), BatchSettings(formats=("json",))).rows
        for n, url in enumerate(archive)
    ]
    assert plans[0][0].case_id == plans[1][0].case_id


def test_an_archive_that_is_away_ends_with_3(tmp_path):
    result = CliRunner().invoke(cli.app, ["batch", "http://127.0.0.1:1/x", "--out", str(tmp_path)])
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)


def test_the_doctor_asks_both_kinds_of_archive(archive):
    for url, word in zip(archive, ("QIDO", "C-ECHO"), strict=True):
        (check,) = [each for each in examine(device="cpu", archive=url) if each.name == "archive"]
        assert check.state == "ok" and word in check.found
