"""A result's files: all or none, and nobody else's are touched."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsiam.errors import GeometryRefused, InputRefused, ResourceExhausted
from medsiam.report import refusal_json, writer
from medsiam.report.schema import violations
from medsiam.report.writer import write_comparison, write_refusal
from tests import comparison_maker as maker

NIFTI = ["change.nii.gz", "findings.nii.gz", "prior_on_current.nii.gz"]
ALL = ["change.nii.gz", "digests.json", *NIFTI[1:], "report.html", "report.json"]
REFUSAL = refusal_json("identity", "two patients; choose scans of one")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "deep" / "out"
    write_comparison(maker.comparison(), folder)
    return folder


def test_the_files_are_those_the_report_names(finished):
    told = json.loads((finished / "report.json").read_text("utf-8"))

    assert names(finished) == ALL
    assert sorted(told["files"].values()) == ALL
    assert violations(told) == ()


def test_label_and_change_lie_where_the_findings_are(finished):
    """The three files agree with report.json, through another reader."""
    told = json.loads((finished / "report.json").read_text("utf-8"))
    labels = nib.load(finished / "findings.nii.gz")
    change = np.asarray(nib.load(finished / "change.nii.gz").dataobj)

    for found in told["findings"]:
        ras = np.array(found["centre_lps_mm"]) * (-1, -1, 1)
        i, j, k = np.rint(np.linalg.inv(labels.affine) @ (*ras, 1))[:3].astype(int)
        assert np.asarray(labels.dataobj)[i, j, k] == found["label"]
        assert np.sign(change[i, j, k]) == np.sign(found["delta_ml"])


def test_two_runs_give_the_same_bytes(finished, tmp_path):
    write_comparison(maker.comparison(), tmp_path)

    assert contents(tmp_path) == contents(finished)


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        (("json",), ["digests.json", "report.json"]),
        (("html",), ["report.html"]),
        (("nifti", "json"), sorted([*NIFTI, "digests.json", "report.json"])),
    ],
)
def test_only_the_formats_asked_for_are_written(tmp_path, formats, expected):
    files = write_comparison(maker.comparison(), tmp_path, formats=formats)

    assert names(tmp_path) == expected == sorted(files.values())


def test_an_earlier_result_is_replaced_whole_and_foreign_files_stay(tmp_path):
    """A smaller second result must not stand beside remains of the first."""
    write_comparison(maker.comparison(), tmp_path)
    (tmp_path / "letter.txt").write_text("mine")

    write_comparison(maker.stable(), tmp_path, formats=("json",))

    assert names(tmp_path) == ["digests.json", "letter.txt", "report.json"]
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "stable"


def test_a_refusal_leaves_only_its_report(tmp_path):
    """An old picture beside a refusal would be read as its result."""
    write_comparison(maker.comparison(), tmp_path)

    files = write_refusal(tmp_path, REFUSAL)

    assert names(tmp_path) == ["report.json"] and files == {"json": "report.json"}
    assert json.loads((tmp_path / "report.json").read_text()) == REFUSAL


@pytest.mark.parametrize("name", ["report.json", "report.html", "findings.nii.gz", "change.nii.gz"])
def test_a_file_of_another_s_making_is_never_overwritten(tmp_path, name):
    """Someone's own segmentation may well be called findings.nii.gz."""
    (tmp_path / name).write_bytes(b'{"schema": "theirs"}')

    with pytest.raises(InputRefused, match="not written by medsiam"):
        write_comparison(maker.comparison(), tmp_path)

    assert contents(tmp_path) == {name: b'{"schema": "theirs"}'}


def test_a_folder_named_dicom_is_removed_only_if_an_earlier_report_names_it(tmp_path):
    """It could hold the input."""

    def evidence(stage: Path) -> dict[str, str]:
        (stage / "dicom").mkdir()
        (stage / "dicom" / "seg.dcm").write_bytes(b"seg")
        return {"seg": "dicom/seg.dcm"}

    (tmp_path / "theirs" / "dicom").mkdir(parents=True)
    (tmp_path / "theirs" / "dicom" / "scan.dcm").write_bytes(b"scan")

    write_comparison(maker.comparison(), tmp_path / "theirs", formats=("json",))
    write_comparison(maker.comparison(), tmp_path / "ours", formats=("json",), write_more=evidence)
    told = json.loads((tmp_path / "ours" / "report.json").read_text())["files"]
    write_comparison(maker.comparison(), tmp_path / "ours", formats=("json",))

    assert told == {"json": "report.json", "seg": "dicom/seg.dcm", "digests": "digests.json"}
    assert names(tmp_path / "ours") == ["digests.json", "report.json"]
    assert names(tmp_path / "theirs") == ["dicom", "digests.json", "report.json"]


class PowerCut(Exception):
    pass


def failing_at(name: str, error: BaseException):
    """os.replace that fails when it comes to a file."""

    def replace(source, target, *, real=os.replace):
        if Path(target).name == name and Path(source).parent.name == "fresh":
            raise error
        real(source, target)

    return replace


@pytest.mark.parametrize("name", ["change.nii.gz", "report.html", "report.json"])
@pytest.mark.parametrize("is_first", [True, False], ids=["empty", "over-a-result"])
def test_a_failure_while_placing_leaves_everything_as_it_was(tmp_path, monkeypatch, name, is_first):
    folder = tmp_path / "out"
    if not is_first:
        write_comparison(maker.stable(), folder)
    before = contents(tmp_path)
    monkeypatch.setattr("medsiam.report.placing.os.replace", failing_at(name, PowerCut()))

    with pytest.raises(PowerCut):
        write_comparison(maker.comparison(), folder)

    assert contents(tmp_path) == before
    assert folder.exists() != is_first


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, ResourceExhausted), (errno.EDQUOT, ResourceExhausted), (errno.EROFS, InputRefused)],
)
def test_a_full_disk_and_a_locked_one_are_told_apart(tmp_path, monkeypatch, number, expected):
    """The first is exit 4 and may be tried again, the second exit 3."""

    def write(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer, "write_nifti", write)

    with pytest.raises(expected) as told:
        write_comparison(maker.comparison(), tmp_path / "a" / "b")

    assert os.strerror(number) in str(told.value) and str(tmp_path) in str(told.value)
    assert names(tmp_path) == []


def test_a_refusal_or_bug_while_making_the_files_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise GeometryRefused("sheared")

    monkeypatch.setattr(writer, "render", refuse)

    with pytest.raises(GeometryRefused):
        write_comparison(maker.comparison(), tmp_path / "out")

    assert names(tmp_path) == []


def test_used_up_memory_is_told_as_such(tmp_path, monkeypatch):
    def exhaust(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr(writer, "render", exhaust)

    with pytest.raises(ResourceExhausted, match="memory"):
        write_comparison(maker.comparison(), tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")

    with pytest.raises(InputRefused, match="choose"):
        write_comparison(maker.comparison(), tmp_path / "out")

    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(InputRefused, match="Permission"):
        write_comparison(maker.comparison(), tmp_path / "out")


def test_report_json_is_placed_last_and_removed_first(tmp_path, monkeypatch):
    """Where it stands, the result is whole: also in the moment between two files."""
    write_comparison(maker.stable(), tmp_path)
    moves = []

    def replace(source, target, *, real=os.replace):
        real(source, target)
        moves.append((Path(target).parent == tmp_path, Path(target).name))

    monkeypatch.setattr("medsiam.report.placing.os.replace", replace)
    write_comparison(maker.comparison(), tmp_path)

    assert moves[0] == (False, "report.json")
    assert moves[-1] == (True, "report.json")
