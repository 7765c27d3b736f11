"""A result can be believed later: every byte that changed since is told."""

import json

import pytest
from typer.testing import CliRunner

from medsiam import cli
from medsiam.report.digests import verify
from medsiam.report.writer import write_comparison
from tests import comparison_maker as maker


@pytest.fixture
def result(tmp_path):
    write_comparison(maker.comparison(), tmp_path / "result")
    return tmp_path / "result"


def run(folder):
    return CliRunner().invoke(cli.app, ["verify", str(folder)])


def test_a_result_is_as_it_was_written_and_a_file_beside_it_is_told(result):
    (result / "letter.txt").write_text("mine")
    told = verify(result)
    assert (told.files, told.others) == (5, 1)
    assert run(result).stdout.startswith("verified: 5 files")


@pytest.mark.parametrize("name", ["report.json", "report.html", "change.nii.gz", "findings.nii.gz"])
def test_one_flipped_bit_in_any_file_ends_with_3_and_one_line(result, name):
    """A .nii.gz with a flipped bit passes most readers."""
    content = bytearray((result / name).read_bytes())
    content[len(content) // 2] ^= 1
    (result / name).write_bytes(content)
    told = run(result)
    assert (told.exit_code, told.stderr.count("\n")) == (3, 1)
    assert f"the first {name}: changed" in told.stderr


def test_a_missing_file_and_a_missing_seal_are_told(result):
    """Nothing to check against is no proof."""
    (result / "report.html").unlink()
    assert "report.html: missing" in run(result).stderr
    (result / "digests.json").unlink()
    assert "nothing tells what its files were" in run(result).stderr


@pytest.mark.parametrize("listed", [{"../secret": "00"}, ["report.json"], {"report.json": 1}])
def test_a_seal_of_another_s_making_is_not_followed(result, listed):
    """It may come from anywhere."""
    (result / "digests.json").write_text(json.dumps({"schema": "medsiam.digests/1", "files": listed}))
    assert run(result).exit_code == 3
