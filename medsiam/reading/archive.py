"""Finding the files: folders, zip archives and DICOMDIR, without unpacking to disk.

Nothing here trusts a name: an archive's members are read by content only and
never written anywhere, and a DICOMDIR may point at files in its own folder only.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from medsiam.errors import InputRefused, Unreadable, named

# Above these a folder or an archive is no set of studies of one comparison.
MOST_FILES = 500_000
MOST_MEMBERS = 100_000
MOST_ARCHIVE_BYTES = 16 * 2**30
MOST_MEMBER_BYTES = 4 * 2**30

# Deflate reaches 1032 : 1 on zeros. Images with wide empty borders were seen
# at 40 : 1; small members are let through whatever their ratio.
MOST_INFLATION = 250
SMALL_MEMBER_BYTES = 4 * 2**20

NIFTI_ENDINGS = (".nii", ".nii.gz")
RASTER_ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
DICOM_ENDINGS = (".dcm", ".ima", ".dicom")

# What a zip library raises on a damaged or foreign archive.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    OSError,
)


@dataclass(frozen=True, order=True)
class Source:
    """One file, or one member of a zip archive.

    path    the file on disk
    member  the name inside of the archive, "" for a plain file
    size    bytes, unpacked
    """

    path: Path
    member: str = ""
    size: int = 0

    @property
    def base_name(self) -> str:
        """The last part of the name: folders above may tell whom it is of."""
        return PurePosixPath(self.member).name if self.member else self.path.name


# What medsiam made of two scans is no scan: these files are left out beside this one.
RESULT_MARK = "digests.json"
CHANGE, FINDINGS, PRIOR_ON_CURRENT = "change.nii.gz", "findings.nii.gz", "prior_on_current.nii.gz"
RESULT_IMAGES = (CHANGE, FINDINGS, PRIOR_ON_CURRENT)

# Hears of a place that is passed over, and why.
Refuse = Callable[[Path, InputRefused], None]


class Opener:
    """Opens sources one after the other; an archive stays open between its members.

    A context manager: whatever it holds is closed at the end.
    """

    def __init__(self) -> None:
        self._archive: zipfile.ZipFile | None = None
        self._archive_path: Path | None = None

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()

    def open(self, source: Source) -> BinaryIO:
        """The content of a source, ready to read and to seek.

        Raises Unreadable where the file cannot be opened or unpacked.
        """
        try:
            if source.member:
                return io.BytesIO(self._in(source.path).read(source.member))
            return open(source.path, "rb")
        except KeyError as error:
            raise Unreadable("the archive changed while it was read; try again") from error
        except ZIP_ERRORS as error:
            refusal = Unreadable(
                f"a file cannot be opened or unpacked ({type(error).__name__}); "
                "check its permissions, or copy or pack it again"
            )
            raise named(refusal, repr(source.base_name)) from error

    def _in(self, path: Path) -> zipfile.ZipFile:
        if self._archive is None or self._archive_path != path:
            if self._archive is not None:
                self._archive.close()
            self._archive, self._archive_path = zipfile.ZipFile(path), path
        return self._archive


def find_sources(path: Path, *, refuse: Refuse | None = None) -> tuple[Source, ...]:
    """Every visible file of a folder and of the zips in it, of one zip, or the file itself.

    refuse  hears of an archive in the folder that is unsafe or too large, which is then passed over

    In order of the names. Raises InputRefused where nothing is there, or an
    archive is unsafe or too large and nobody hears of it.
    """
    if path.is_dir():
        return tuple(_in_folder(path, refuse))
    if not path.is_file():
        raise named(InputRefused("there is no such file or folder; check the path"), repr(str(path)))
    if is_zip(path):
        return members(path)
    return (Source(path, size=path.stat().st_size),)


def sources_by_folder(
    folder: Path, *, leave_out: Path | None = None, refuse: Refuse
) -> Iterator[tuple[Source, ...]]:
    """The visible files of each folder below, and the members of each zip: one group after the other.

    For trees of any size: nothing is held but the group in hand.
    leave_out  a folder that is not entered
    refuse     hears of a folder that may not be read, and of an archive that is unsafe
    """

    def unreadable(error: OSError) -> None:
        place = Path(str(error.filename or folder))
        refuse(place, Unreadable(f"a folder cannot be read ({error.strerror}); check its permissions"))

    walked = _walk(folder, leave_out=leave_out, onerror=unreadable)
    for _, files in groupby(walked, key=lambda found: found[0].parent):
        plain = []
        for path, size in files:
            if path.suffix.lower() != ".zip" or not is_zip(path):
                plain.append(Source(path, size=size))
                continue
            try:
                yield members(path)
            except InputRefused as error:
                refuse(path, error)
        yield tuple(plain)


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, by its first bytes."""
    return _first_bytes(path, 4) in (b"PK\x03\x04", b"PK\x05\x06")


def _first_bytes(path: Path, count: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def _in_folder(folder: Path, refuse: Refuse | None) -> Iterator[Source]:
    count = 0
    for path, size in _walk(folder):
        found: tuple[Source, ...] = (Source(path, size=size),)
        if path.suffix.lower() == ".zip" and is_zip(path):
            try:
                found = members(path)
            except InputRefused as error:
                if refuse is None:
                    raise
                refuse(path, error)
                found = ()
        count += len(found)
        if count > MOST_FILES:
            raise InputRefused(f"the folder holds more than {MOST_FILES} files; name a folder further down")
        yield from found


def _walk(
    folder: Path, *, leave_out: Path | None = None, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, int]]:
    # Folders behind symbolic links are left out, since they may lead in a circle;
    # pipes and devices are left out, since reading them may never end.
    for root, folders, files in os.walk(folder, onerror=onerror):
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if leave_out is None or Path(root, name) != leave_out]
        ours = RESULT_IMAGES if RESULT_MARK in files else ()
        for name in sorted(files):
            if name.startswith(".") or name in ours:
                continue
            path = Path(root) / name
            try:
                status = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size


def members(path: Path) -> tuple[Source, ...]:
    """The visible files of a zip archive, in order of the names.

    Raises Unreadable where the archive is damaged, locked, larger than the
    limits above, or holds names that lead out of it or symbolic links.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not _is_folder(info)]
        _check_archive(infos)
        for info in infos:
            _check_member(info)
    except InputRefused as error:
        raise named(error, repr(path.name)) from None
    except ZIP_ERRORS as error:
        raise named(Unreadable("the zip archive is damaged; pack it again"), repr(path.name)) from error
    visible = [info for info in infos if not _is_hidden(info.filename)]
    return tuple(sorted(Source(path, info.filename, info.file_size) for info in visible))


def _is_folder(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a folder. Raises zipfile.BadZipFile where it has no name."""
    if not info.filename:
        raise zipfile.BadZipFile("a member has no name")
    return info.is_dir()


def _check_archive(infos: list[zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in infos)
    if len(infos) > MOST_MEMBERS or total > MOST_ARCHIVE_BYTES:
        raise Unreadable(
            f"the zip archive unpacks to {len(infos)} files of {total / 2**30:.1f} GiB, more than "
            f"{MOST_MEMBERS} files or {MOST_ARCHIVE_BYTES >> 30} GiB; unpack it yourself if you trust it"
        )
    if len({info.filename for info in infos}) != len(infos):
        raise Unreadable("the zip archive holds two files of one name; unpack it and name the folder")


def _check_member(info: zipfile.ZipInfo) -> None:
    parts = info.filename.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in info.filename:
        raise Unreadable("the zip archive holds a file name that leads out of the archive; do not unpack it")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise Unreadable("the zip archive holds a symbolic link; pack the files themselves")
    if info.flag_bits & 0x1:
        raise Unreadable("the zip archive is locked with a password; unpack it and name the folder")
    inflation = info.file_size / max(info.compress_size, 1)
    if info.file_size > MOST_MEMBER_BYTES or (
        info.file_size > SMALL_MEMBER_BYTES and inflation > MOST_INFLATION
    ):
        raise Unreadable(
            f"the zip archive holds a file that unpacks {inflation:.0f} : 1 to "
            f"{info.file_size / 2**20:.0f} MiB; unpack it yourself if you trust it"
        )


def _is_hidden(member: str) -> bool:
    # macOS packs a second, empty twin of each file below __MACOSX.
    return any(part.startswith(".") or part == "__MACOSX" for part in member.split("/"))
