"""NIfTI files, archives, links and weights that are damaged, contradict themselves or want out."""

from __future__ import annotations

import bz2
import gzip
import os
import stat
import struct
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

from medsiam.volume import Grid, transform
from tests.dicom_maker import GRADIENT, changed, classic, save
from tests.hostile.case import EITHER, GRID, VOLUME, Case

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (6, 7, 8)
TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def ras_from_ijk() -> np.ndarray:
    """A turned geometry of 1 x 1.5 x 2.5 mm."""
    affine = np.eye(4)
    affine[:3, :3] = TURN * (1.0, 1.5, 2.5)
    affine[:3, 3] = 3, -20, 7
    return affine


TRUE = Grid(SHAPE[::-1], (LPS_FROM_RAS @ ras_from_ijk())[:, [2, 1, 0, 3]])


def picture(kind=nib.Nifti1Image, dtype=np.float32, affine=None):
    """An image whose voxels tell their place; both geometries say the same."""
    affine = ras_from_ijk() if affine is None else affine
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(-1, 3)
    values = transform(LPS_FROM_RAS @ ras_from_ijk(), index) @ GRADIENT
    made = kind(values.reshape(SHAPE).astype(dtype), affine)
    made.set_sform(affine, 1)
    made.set_qform(affine, 1)
    made.header.set_xyzt_units("mm")
    return made


def nifti(change=None, *, name="a.nii", of=picture):
    """A maker of a NIfTI file; `change` is done to its bytes before they are packed."""

    def make(folder: Path) -> Path:
        data = of().to_bytes()
        data = change(data) if change else data
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return folder / name

    return make


def packed(change):
    """A maker of a .nii.gz whose packed bytes are changed."""

    def make(folder: Path) -> Path:
        (folder / "a.nii.gz").write_bytes(change(gzip.compress(picture().to_bytes())))
        return folder / "a.nii.gz"

    return make


def at(place: int, code: str, *values):
    """Other numbers in the header."""
    return lambda data: data[:place] + struct.pack(code, *values) + data[place + struct.calcsize(code) :]


def with_forms(sform=None, qform=None, codes=(1, 1)):
    """An image whose two geometries are given apart."""

    def make():
        made = picture()
        if sform is not None:
            made.set_sform(sform)
        if qform is not None:
            made.set_qform(qform)
        made.header["sform_code"], made.header["qform_code"] = codes
        return made

    return make


def shifted(mm):
    affine = ras_from_ijk()
    affine[0, 3] += mm
    return affine


def sheared():
    affine = ras_from_ijk()
    affine[:3, 2] += (0.4, 0.0, 0.0)
    return affine


def bomb_of_zeros(folder: Path) -> Path:
    header = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), ras_from_ijk())
    header.header.set_data_shape((1024, 1024, 400))
    with gzip.open(folder / "a.nii.gz", "wb", compresslevel=1) as file:
        file.write(header.header.binaryblock + bytes(4))
        for _ in range(16):
            file.write(bytes(2**20))
    return folder / "a.nii.gz"


def endless_tail(folder: Path) -> Path:
    with gzip.open(folder / "a.nii.gz", "wb", compresslevel=1) as file:
        file.write(picture().to_bytes())
        for _ in range(64):
            file.write(bytes(2**20))
    return folder / "a.nii.gz"


def twins(folder: Path) -> Path:
    """A.nii beside A.nii.gz: the wrong one is opened by one common reader."""
    nib.save(picture(affine=np.eye(4)), folder / "a.nii.gz")
    nib.save(picture(), folder / "a.nii")
    return folder / "a.nii"


def two_in_a_folder(folder: Path) -> Path:
    twins(folder)
    return folder


def pair_of_files(folder: Path) -> Path:
    nib.save(nib.Nifti1Pair(picture().get_fdata(), ras_from_ijk()), folder / "a.img")
    (folder / "a.hdr").rename(folder / "a.nii")
    return folder / "a.nii"


NIFTI = {
    "cut in its header": (nifti(lambda data: data[:200]), "unreadable"),
    "cut behind its magic": (nifti(lambda data: data[:347]), "unreadable"),
    "cut before its voxels": (nifti(lambda data: data[:352]), "unreadable"),
    "cut by one byte": (nifti(lambda data: data[:-1]), "unreadable"),
    "of no bytes": (nifti(lambda data: b""), "unreadable"),
    "packed and cut by one byte": (packed(lambda data: data[:-1]), "unreadable"),
    "packed and cut in half": (packed(lambda data: data[: len(data) // 2]), "unreadable"),
    "packed with another checksum": (packed(lambda data: data[:-8] + b"abcd" + data[-4:]), "unreadable"),
    "packed with another length": (packed(lambda data: data[:-4] + b"abcd"), "unreadable"),
    "packed twice": (packed(gzip.compress), "unreadable"),
    "packed by bzip2": (packed(lambda data: bz2.compress(gzip.decompress(data))), "unreadable"),
    "of zeros declared huge": (bomb_of_zeros, "unreadable"),
    "with an endless tail": (endless_tail, "unreadable"),
    "with 32,767 voxels along each axis": (
        nifti(at(40, "<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)),
        "unreadable",
    ),
    "with minus seven voxels": (nifti(at(42, "<h", -7)), "unreadable"),
    "of no dimension": (nifti(at(40, "<h", 0)), "unreadable"),
    "of two hundred dimensions": (nifti(at(40, "<h", 200)), "unreadable"),
    "with one row too many": (nifti(at(44, "<h", 8)), "unreadable"),
    "with one row too few": (nifti(at(44, "<h", 6)), "unreadable"),
    "with one slice too few": (nifti(at(46, "<h", 7)), "unreadable"),
    "of an unknown voxel type": (nifti(at(70, "<h", 999)), "unreadable"),
    "of colours": (nifti(at(70, "<2h", 128, 24)), "unreadable"),
    "whose voxels begin in the header": (nifti(at(108, "<f", 10.0)), "unreadable"),
    "whose voxels begin nowhere": (nifti(at(108, "<f", float("nan"))), "unreadable"),
    "whose voxels begin beyond the end": (nifti(at(108, "<f", 1e9)), "unreadable"),
    "scaled by infinity": (nifti(at(112, "<2f", float("inf"), 0.0)), "unreadable"),
    "lifted by NaN": (nifti(at(112, "<2f", 1.0, float("nan"))), "unreadable"),
    "lifted by a million million": (nifti(at(112, "<2f", 1.0, 1e12)), "unreadable"),
    "with a place of NaN": (nifti(at(280, "<4f", *[float("nan")] * 4)), "geometry"),
    "with a place of zeros": (nifti(at(280, "<12f", *[0.0] * 12)), "geometry"),
    "with one axis twice": (nifti(at(296, "<4f", *ras_from_ijk()[0])), "geometry"),
    "with a broken quaternion": (nifti(at(256, "<3f", 9.0, 9.0, 9.0)), "geometry"),
    "with two geometries 5 mm apart": (nifti(of=with_forms(qform=shifted(5.0))), "geometry"),
    "with two mirrored geometries": (
        nifti(of=with_forms(qform=np.diag([-1, 1, 1, 1]) @ ras_from_ijk())),
        "geometry",
    ),
    "without geometry": (nifti(at(252, "<2h", 0, 0)), "geometry"),
    "with sheared axes": (nifti(of=with_forms(sform=sheared(), codes=(1, 0))), "geometry"),
    "in an unknown unit": (nifti(at(123, "<b", 7)), "geometry"),
    "of another magic": (nifti(at(344, "<4s", b"n+9\0")), "unreadable"),
    "whose voxels lie in another file": (pair_of_files, "unreadable"),
    "beside its packed twin": (twins, VOLUME),
    "and its packed twin in one folder": (two_in_a_folder, "series"),
    "legal: its second version": (nifti(of=lambda: picture(nib.Nifti2Image)), VOLUME),
    "legal: packed": (nifti(name="a.nii.gz"), VOLUME),
    "legal: in double precision": (nifti(of=lambda: picture(dtype=np.float64)), VOLUME),
    "legal: one geometry alone": (nifti(of=with_forms(codes=(0, 1))), VOLUME),
    "legal: geometries a hundredth apart": (nifti(of=with_forms(qform=shifted(0.01))), VOLUME),
    "under the name of a DICOM file": (nifti(name="a.dcm"), "unreadable"),
}


def zipped(*members, link=False, locked=False):
    """A maker of an archive with a good series and further members (name, bytes)."""

    def make(folder: Path) -> Path:
        inside = save(classic(GRID), folder / "series")
        with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(inside.iterdir()):
                file.write(path, f"study/{path.name}")
            for name, data in members:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = ((stat.S_IFLNK | 0o777) << 16) if link else 0
                file.writestr(info, data)
        return folder / "a.zip"

    return make


def changed_zip(change):
    def make(folder: Path) -> Path:
        path = zipped()(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def nested(folder: Path) -> Path:
    inner = zipped()(folder).read_bytes()
    with zipfile.ZipFile(folder / "outer.zip", "w") as file:
        file.writestr("inner.zip", inner)
    return folder / "outer.zip"


def linked(*, to_folder=False, circle=False):
    """A maker of a folder with links in it: files are followed, folders are not."""

    def make(folder: Path) -> Path:
        outside = save(classic(GRID), folder / "outside")
        inside = folder / "inside"
        inside.mkdir()
        if to_folder:
            (inside / "away").symlink_to(outside)
        if circle:
            save(classic(GRID), inside)
            (inside / "circle").symlink_to(inside)
        return inside

    return make


def with_devices(folder: Path) -> Path:
    save(classic(GRID), folder)
    os.mkfifo(folder / "pipe.dcm")
    (folder / "zero.dcm").symlink_to("/dev/zero")
    (folder / "secret").symlink_to("/proc/self/environ")
    return folder


def disk(names):
    """A maker of a DICOMDIR that names files by these parts."""

    def make(folder: Path) -> Path:
        files = FileSet()
        for ds in classic(GRID, PatientName="A", StudyID="1", SeriesNumber=1):
            changed(ds, SOPInstanceUID=generate_uid())
            save([ds], folder / "source")
            files.add(next(iter(sorted((folder / "source").iterdir()))))
        files.write(folder / "disk")
        path = folder / "disk" / "DICOMDIR"
        path.write_bytes(names(path.read_bytes()))
        return path

    return make


CONTAINERS = {
    "a zip with a way out": (zipped(("../../evil.dcm", b"x")), "unreadable"),
    "a zip with an absolute name": (zipped(("/etc/evil.dcm", b"x")), "unreadable"),
    "a zip with a Windows way out": (zipped(("..\\..\\evil.dcm", b"x")), "unreadable"),
    "a zip with a symbolic link": (zipped(("evil.dcm", b"/etc/passwd"), link=True), "unreadable"),
    "a zip bomb": (zipped(("zeros.dcm", bytes(32 * 2**20))), "unreadable"),
    "a zip cut short": (changed_zip(lambda data: data[:-30]), "unreadable"),
    "a zip with a flipped bit": (
        changed_zip(lambda data: data[:1200] + bytes([data[1200] ^ 4]) + data[1201:]),
        EITHER,
    ),
    "a zip that declares a million files": (
        changed_zip(lambda data: data[:-12] + b"\xff\xff" + data[-10:]),
        EITHER,
    ),
    "a zip of a zip": (nested, "unreadable"),
    "a zip with a text beside": (zipped(("readme.txt", b"hello")), VOLUME),
    "links to a folder outside": (linked(to_folder=True), "unreadable"),
    "links in a circle": (linked(circle=True), VOLUME),
    "a pipe, a device and a secret behind links": (with_devices, VOLUME),
    "a DICOMDIR": (disk(lambda data: data), VOLUME),
    "a DICOMDIR that names a way out": (
        disk(lambda data: data.replace(b"PT000000\\", b"..\\..\\..\\", 5)),
        "unreadable",
    ),
    "a DICOMDIR that names a missing file": (
        disk(lambda data: data.replace(b"IM000004", b"IM000099")),
        "unreadable",
    ),
    "a DICOMDIR cut short": (disk(lambda data: data[: len(data) // 2]), "unreadable"),
}

CASES = {
    **{f"NIfTI {name}": Case(make, code, "", TRUE, 0.0) for name, (make, code) in NIFTI.items()},
    **{name: Case(make, code) for name, (make, code) in CONTAINERS.items()},
}
