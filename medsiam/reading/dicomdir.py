"""The table of contents of a DICOM disk, followed inside of its own folder only."""

from __future__ import annotations

from pathlib import Path

from medsiam.errors import Unreadable
from medsiam.reading import tags
from medsiam.reading.archive import MOST_FILES, Opener, Source
from medsiam.reading.parsing import parse
from medsiam.reading.tags import Malformed

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"


def is_dicomdir(path: Path) -> bool:
    """Whether a path is a file named DICOMDIR, as the standard names it."""
    return path.is_file() and path.name.upper() == "DICOMDIR"


def referenced_sources(path: Path) -> tuple[Source, ...]:
    """The files that a DICOMDIR names, in order of their names.

    Raises Unreadable where it names none, or one that lies outside of its
    folder or is not there: a series with a slice lost must not pass as whole.
    """
    with Opener() as opener, opener.open(Source(path)) as file:
        dataset = parse(file).dataset
    try:
        records = tags.items(dataset, "DirectoryRecordSequence")
        names = [name for record in records if (name := tags.parts(record, "ReferencedFileID"))]
    except Malformed as error:
        raise Unreadable("the DICOMDIR is damaged; give its folder instead") from error
    if not names or len(names) > MOST_FILES:
        raise Unreadable(f"the DICOMDIR names {len(names)} files; give its folder instead")
    folder = path.parent.resolve()
    found = {_inside(folder, name) for name in names}
    missing = sum(file is None for file in map(_size, found))
    if missing:
        raise Unreadable(
            f"{missing} of {len(found)} files that the DICOMDIR names are not there; give its folder instead"
        )
    return tuple(Source(file, size=_size(file) or 0) for file in sorted(found))


def _inside(folder: Path, name: tuple[str, ...]) -> Path:
    if any(part in ("", ".", "..") or "/" in part or "\\" in part or "\0" in part for part in name):
        raise Unreadable("the DICOMDIR names a file outside of its folder; do not trust this disk")
    file = folder.joinpath(*name)
    if not file.exists():
        # Disks carry capitals; copies of them often do not.
        file = folder.joinpath(*(part.lower() for part in name))
    if not file.resolve().is_relative_to(folder):
        raise Unreadable("the DICOMDIR names a file outside of its folder; do not trust this disk")
    return file


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
