"""Hostile scans, each by name with its expected outcome: the truth, or one clear refusal."""

from __future__ import annotations

import os
import pickle
import resource
import struct
import time
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom.data
import pytest
import SimpleITK as sitk  # noqa: N813
from typer.testing import CliRunner

from medsiam import cli, load_encoder
from medsiam.errors import MedsiamError, WeightsRefused
from medsiam.reading import find_series, read_series
from medsiam.report import html
from medsiam.report.comparison_json import to_json
from tests import comparison_maker
from tests.dicom_maker import KEY
from tests.hostile import damage, files, headers, pixels, stacks
from tests.hostile.case import VOLUME, Case, judge
from tests.test_report_html import Parsed

# The makers of hostile files make pydicom complain.
pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = (damage, headers, stacks, pixels, files)
CASES = {name: case for module in MODULES for name, case in module.CASES.items()}

# What one scan may take, whatever it is: resident memory in KiB, and seconds.
MOST_KIB = 1536 * 2**10
MOST_SECONDS = 60.0


@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_the_truth_or_one_clear_refusal(name, tmp_path):
    """Each voxel tells where it lies, so that a wrong geometry shows in the values."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    judge(CASES[name], tmp_path)
    assert time.monotonic() - start < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIB


def test_no_name_stands_for_two_cases_and_there_are_enough():
    """A name used twice would hide a case."""
    assert len(CASES) == sum(len(module.CASES) for module in MODULES) >= 120


def test_the_judge_sees_a_slice_in_a_wrong_place(tmp_path):
    """A guard that nothing fails guards nothing: one exchange of two slices is half of what it must see."""
    good = Case(stacks.stack(), VOLUME)
    judge(good, tmp_path / "good" if (tmp_path / "good").mkdir() is None else tmp_path)
    exchanged = Case(stacks.stack(_exchange), VOLUME)
    (tmp_path / "bad").mkdir()
    with pytest.raises(AssertionError):
        judge(exchanged, tmp_path / "bad")


def _exchange(slices):
    one, two = slices[1], slices[2]
    one.ImagePositionPatient, two.ImagePositionPatient = two.ImagePositionPatient, one.ImagePositionPatient


class Evil:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch unpickled",)


def zipped_pickle() -> bytes:
    """A pickle in a zip, as torch writes it."""
    path = Path("evil.zip")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil()))
    return path.read_bytes()


def safetensors(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file, whatever the header says."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


WEIGHTS = {
    "a pickle": lambda: pickle.dumps(Evil()),
    "a pickle of the oldest kind": lambda: pickle.dumps(Evil(), protocol=0),
    "a zipped pickle": zipped_pickle,
    "no bytes": lambda: b"",
    "a header of 2^63 bytes": lambda: safetensors(b"{}", length=2**63),
    "a header that is a list": lambda: safetensors(b"[]"),
    "a header nested 100,000 deep": lambda: safetensors(b"[" * 100_000),
    "a tensor beyond the end": lambda: safetensors(
        b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    ),
    "two tensors in one place": lambda: safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "a tensor of 2^62 numbers": lambda: safetensors(
        b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}', bytes(4)
    ),
    "a tensor of NaN": lambda: safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', struct.pack("<f", float("nan"))
    ),
    "another network": lambda: safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none_are_refused_and_run_nothing(name, tmp_path, monkeypatch):
    """A file of any content may be named .safetensors."""
    monkeypatch.chdir(tmp_path)
    Path("weights.safetensors").write_bytes(WEIGHTS[name]())
    with pytest.raises(WeightsRefused):
        load_encoder("weights.safetensors")
    assert not Path("unpickled").exists()


def test_markup_of_a_header_stays_text_on_the_page(tmp_path):
    """From the file through the reader to the page: no element that a harmless text does not make."""
    skeletons = []
    for text in (headers.EVIL, "harmless"):
        folder = tmp_path / text[:4].strip("</")
        folder.mkdir()
        told = {"SeriesDescription": text, "BodyPartExamined": text[:16], "Manufacturer": text}
        headers.series(**told)(folder)
        acquisition = read_series(find_series(folder, key=KEY)[0]).acquisition
        made = comparison_maker.comparison()
        made = comparison_maker.replace(
            made, current=comparison_maker.replace(made.current, acquisition=acquisition)
        )
        page = Parsed(html.render(made, to_json(made, files={})))
        skeletons.append(([tag for tag, _ in page.elements], page.contents))
        assert text in page.text
    assert skeletons[0] == skeletons[1]


def test_no_word_of_a_header_leads_out_of_the_output_folder(tmp_path):
    """Every identifier is a way out; whatever the commands make of it lies where it was asked for."""
    out = tmp_path / "room" / "deep" / "out"
    way_out = "../../escaped"
    names = ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "PatientID", "SeriesDescription")
    for visit, day in enumerate(("20230101", "20240101")):
        (tmp_path / "scans" / str(visit)).mkdir(parents=True)
        told = dict.fromkeys(names, f"{way_out}/{visit}") | {"PatientID": way_out, "StudyDate": day}
        headers.series(**told, AcquisitionDate=day)(tmp_path / "scans" / str(visit))
    for command in ("deidentify", "batch"):
        words = [command, str(tmp_path / "scans"), "--out", str(out / command)]
        assert CliRunner().invoke(cli.app, words).exit_code in (0, 3)
    assert (out / "batch" / "worklist.json").is_file()
    outside = {path for path in tmp_path.rglob("*") if path.is_file() and out not in path.parents}
    assert {path.parts[len(tmp_path.parts)] for path in outside} == {"scans"}


INSTALLED = {
    "pydicom": Path(pydicom.data.__path__[0]),
    "nibabel": Path(nibabel.__file__).parent,
}


@pytest.mark.parametrize("library", INSTALLED)
def test_every_test_file_of_a_library_is_read_truly_or_refused(library):
    """Files and whole folders; SimpleITK, a reader of other origin, finds the same voxels."""
    root, volumes = INSTALLED[library], 0
    found = [path for path in sorted(root.rglob("*")) if "data" in path.parts or "test_files" in path.parts]
    for path in found:
        start = time.monotonic()
        volumes += sum(is_confirmed(entry) for entry in entries_of(path))
        assert time.monotonic() - start < MOST_SECONDS, path.name
    assert volumes >= 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * MOST_KIB


def entries_of(path: Path):
    try:
        return find_series(path, key=KEY)
    except MedsiamError as refusal:
        assert "\n" not in str(refusal)
        return ()


def is_confirmed(entry) -> bool:
    """Whether an entry is a volume in which a second reader sees the same; False for a refused one."""
    try:
        volume = read_series(entry)
    except MedsiamError as refusal:
        assert "\n" not in str(refusal)
        return False
    if entry.kind == "raster" or volume.spatial_dims == 2:
        return True
    paths = (
        [str(frame.header.source.path) for frame in entry.content.stack.frames]
        if entry.kind == "dicom"
        else [str(entry.paths[0])]
    )
    image = sitk.ReadImage(paths if len(paths) > 1 else paths[0])
    assert np.allclose(volume.array, sitk.GetArrayFromImage(image), rtol=1e-4, atol=1e-3)
    matrix = np.eye(4)
    matrix[:3, :3] = (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())[:, ::-1]
    matrix[:3, 3] = image.GetOrigin()
    index = np.array(np.meshgrid(*[(0, n - 1) for n in volume.grid.shape], indexing="ij")).reshape(3, -1).T
    apart = volume.grid.world(index) - (index @ matrix[:3, :3].T + matrix[:3, 3])
    assert np.abs(apart).max() < 0.15
    return True
