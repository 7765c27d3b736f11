"""Folders, zips and DICOMDIR: the same series from each, and nothing from outside."""

import os
import stat
import zipfile

import nibabel as nib
import numpy as np
import pytest
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

from medsiam.errors import InputRefused, Unreadable
from medsiam.reading import archive, find_series, read_volume
from tests.dicom_maker import KEY, changed, classic, grid_of, save


def read(path):
    return read_volume(path, key=KEY)


@pytest.fixture
def folder(tmp_path):
    return save(classic(), tmp_path / "series")


def packed(folder, path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for n, member in enumerate(sorted(folder.iterdir())):
            file.write(member, f"study/{n % 2}/{member.name}")
    return path


def test_a_zip_gives_the_same_volume_as_its_folder(folder, tmp_path):
    """Also a zip that lies in a folder; nothing is unpacked to disk."""
    wanted = read(folder)
    zipped = packed(folder, tmp_path / "zips" / "a.zip") if (tmp_path / "zips").mkdir() is None else None
    for path in (zipped, zipped.parent):
        found = read(path)
        assert found.grid.is_close(wanted.grid)
        assert found.acquisition.sha256 == wanted.acquisition.sha256
    assert [path.name for path in zipped.parent.iterdir()] == ["a.zip"]


def test_pictures_that_a_comparison_left_are_no_scans(folder, tmp_path):
    """An archive that holds results beside scans must not be searched for those; named alone each is read."""
    result = tmp_path / "result"
    result.mkdir()
    image = nib.Nifti1Image(np.random.default_rng(0).random((9, 8, 7), np.float32), np.eye(4))
    nib.save(image, result / "findings.nii.gz")
    assert len(find_series(tmp_path, key=KEY)) == 2
    (result / "digests.json").write_text("{}")
    assert [entry.kind for entry in find_series(tmp_path, key=KEY)] == ["dicom"]
    assert read(result / "findings.nii.gz").grid.shape == (7, 8, 9)


def test_the_patients_name_in_a_description_is_taken_out(tmp_path):
    """Technicians type it in; a report that "carries no name" would."""
    told = save(classic(SeriesDescription="FLAIR PHANTOM_x, paula Phantom 4711 t1"), tmp_path / "told")
    assert read(told).acquisition.description == "FLAIR …_x, … … … t1"


def test_a_path_that_is_too_long_is_a_refusal():
    """And its five thousand letters are not told."""
    with pytest.raises(InputRefused, match="longer than this system allows"):
        read("x" * 5000)


def test_a_series_in_subfolders_is_one_series(folder, tmp_path):
    """Archives spread slices over folders as they please."""
    deep = tmp_path / "deep"
    for n, path in enumerate(sorted(folder.iterdir())):
        (deep / str(n)).mkdir(parents=True)
        path.rename(deep / str(n) / "IM0")
    assert read(deep).grid.is_close(grid_of())


@pytest.mark.parametrize(
    "name", ["../out.dcm", "/etc/out.dcm", "C:/out.dcm", "a/../../out.dcm", "..\\out.dcm"]
)
def test_names_that_lead_out_of_a_zip_are_refused(tmp_path, name):
    """Zip slip: the archive is hostile, not only that member."""
    path = tmp_path / "slip.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, b"anything")
    with pytest.raises(Unreadable, match="leads out"):
        read(path)


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path):
    """It would read files of this machine into a report."""
    link = zipfile.ZipInfo("link.dcm")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(Unreadable, match="symbolic link"):
        read(tmp_path / "link.zip")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """Zeros pack a thousand to one."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.dcm", bytes(16 * 2**20))
    with pytest.raises(Unreadable, match=": 1 to 16 MiB"):
        read(tmp_path / "bomb.zip")


def test_a_zip_of_too_many_bytes_is_refused(folder, tmp_path, monkeypatch):
    """The limit is stated, and this side of it is read."""
    path = packed(folder, tmp_path / "a.zip")
    assert read(path).grid.is_close(grid_of())
    monkeypatch.setattr(archive, "MOST_ARCHIVE_BYTES", 1000)
    with pytest.raises(Unreadable, match="more than"):
        read(path)


def test_a_damaged_zip_is_refused(folder, tmp_path):
    """A flipped bit in a member is found by its checksum, a cut by the missing end."""
    path = packed(folder, tmp_path / "a.zip", zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    (tmp_path / "cut.zip").write_bytes(data[:-200])
    data[data.index(b"DICM") + 900] ^= 1
    (tmp_path / "flipped.zip").write_bytes(data)
    for name in ("cut.zip", "flipped.zip"):
        with pytest.raises(InputRefused):
            read(tmp_path / name)


def test_links_and_pipes_of_a_folder_are_left_alone(folder):
    """A circle of folders has no end, and a pipe never answers."""
    os.symlink(folder, folder / "circle")
    os.symlink(folder / "nowhere", folder / "broken")
    os.mkfifo(folder / "pipe")
    assert read(folder).grid.is_close(grid_of())


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_path_without_images_is_refused(tmp_path, name):
    """With what is there, and without the path above it."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused) as caught:
        read(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)


@pytest.fixture
def disk(tmp_path):
    """A DICOM disk with two series, written by pydicom."""
    files = FileSet()
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "one", "two")}
    for name, plane in (("one", "axial"), ("two", "sagittal")):
        for ds in classic(grid_of(plane)):
            changed(ds, SeriesInstanceUID=uids[name], StudyInstanceUID=uids["StudyInstanceUID"])
            changed(ds, SOPInstanceUID=generate_uid(), StudyID="1", SeriesNumber=1 + (name == "two"))
            save([ds], tmp_path / "loose", names=["a.dcm"])
            files.add(ds)
    files.write(tmp_path / "disk")
    return tmp_path / "disk"


def test_a_dicomdir_leads_to_its_series(disk):
    """The disk's own table of contents, and a lone file beside it is not listed."""
    entries = find_series(disk / "DICOMDIR", key=KEY)
    assert [entry.shape_kji for entry in entries] == [(5, 8, 10)] * 2
    grids = [read_volume(disk / "DICOMDIR", series_uid=entry.name, key=KEY).grid for entry in entries]
    assert {plane for plane in ("axial", "sagittal") for grid in grids if grid.is_close(grid_of(plane))} == {
        "axial",
        "sagittal",
    }


def test_the_folder_of_a_disk_gives_the_same_series(disk):
    """The DICOMDIR itself is no image and no damage."""
    assert len(find_series(disk, key=KEY)) == 2
    assert all(entry.is_usable for entry in find_series(disk, key=KEY))


def test_a_disk_that_lacks_a_file_is_refused(disk):
    """The last slice of a series would be missed by nobody else."""
    victim = next(path for path in sorted(disk.rglob("*")) if path.is_file() and path.name != "DICOMDIR")
    victim.unlink()
    with pytest.raises(Unreadable, match="1 of 10 files"):
        read(disk / "DICOMDIR")


@pytest.mark.parametrize("target", [b"..", b"/e"])
def test_a_dicomdir_that_leads_outside_is_refused(disk, target):
    """Its names are data of a stranger."""
    path = disk / "DICOMDIR"
    data = path.read_bytes()
    start = data.index(b"\x04\x00\x00\x15CS") + 8
    first = data[start : data.index(b"\\", start)]
    path.write_bytes(data[:start] + target.ljust(len(first), b" ") + data[start + len(first) :])
    with pytest.raises(Unreadable, match="outside"):
        read(path)
