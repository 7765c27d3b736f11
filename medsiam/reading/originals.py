"""The headers of a series as they were written, for results that go back to the same archive.

Nothing else in the package sees a patient's name. What is read here is handed to
the writers of DICOM objects alone; it is not shown, logged or kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset

from medsiam.errors import InputRefused, named
from medsiam.reading.archive import Opener, Source
from medsiam.reading.entry import SeriesEntry
from medsiam.reading.finding import find_series, read_series
from medsiam.reading.headers import ENHANCED_CLASSES
from medsiam.reading.identity import load_key
from medsiam.reading.parsing import parse
from medsiam.reading.tags import PARSE_ERRORS, uid
from medsiam.volume import Acquisition

# Without these no object can say what it was made from.
NEEDED_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True, eq=False)
class Originals:
    """A series' headers without their pixels, names included.

    headers  one data set a file
    slices   for each slice k of the volume: which header, and which frame in it (from 0)
    """

    headers: tuple[Dataset, ...] = field(repr=False)
    slices: tuple[tuple[int, int], ...]

    @property
    def first(self) -> Dataset:
        """The header that speaks for the whole series."""
        return self.headers[0]

    @property
    def is_multi_frame(self) -> bool:
        """Whether one file holds many slices."""
        return str(self.first.SOPClassUID) in ENHANCED_CLASSES


def find_originals(
    paths: Sequence[str | Path], acquisition: Acquisition, *, key: bytes | None = None
) -> Originals:
    """The headers of the series, in the first of these paths that holds it, that a volume was read from.

    Raises InputRefused where it was no DICOM series, or one that names no study.
    """
    key = load_key() if key is None else key
    for path in paths:
        found = [entry for entry in find_series(path, key=key) if _is_of(entry, acquisition)]
        if len(found) > 1:
            # Radiographs of one series share all that a header tells: their pixels decide.
            found = [entry for entry in found if read_series(entry).acquisition.sha256 == acquisition.sha256]
        if found:
            return originals_of(found[0])
    refusal = InputRefused(
        "the scans hold no DICOM series that objects could refer to; leave dicom out of --formats, or give "
        "them as DICOM"
    )
    raise named(refusal, " and ".join(repr(Path(path).name) for path in paths))


def check_is_dicom(path: str | Path, *, key: bytes | None = None) -> None:
    """Raises InputRefused where a path holds no usable DICOM series: nobody's objects cannot be written."""
    entries = find_series(path, key=load_key() if key is None else key)
    usable = [entry for entry in entries if entry.is_usable]
    if usable and not any(entry.kind == "dicom" for entry in usable):
        refusal = InputRefused(
            f"a scan is {usable[0].kind}, which tells no patient and no study that objects could belong to; "
            "leave dicom out of --formats, or give the scan as DICOM"
        )
        raise named(refusal, repr(Path(path).name))


def originals_of(entry: SeriesEntry) -> Originals:
    """The headers of an entry, in the order of its slices. Raises InputRefused where UIDs are missing."""
    frames = entry.content.stack.frames
    sources = list(dict.fromkeys(frame.header.source for frame in frames))
    place = {source: n for n, source in enumerate(sources)}
    headers = _headers(sources)
    missing = [name for name in NEEDED_UIDS if not all(uid(header, name) for header in headers)]
    if missing:
        raise InputRefused(
            f"the series tells no valid {missing[0]}, so DICOM objects cannot refer to it; "
            "leave dicom out of --formats"
        )
    return Originals(headers, tuple((place[frame.header.source], frame.number) for frame in frames))


def _headers(sources: Sequence[Source]) -> tuple[Dataset, ...]:
    found = []
    with Opener() as opener:
        for source in sources:
            with opener.open(source) as file:
                header = parse(file).dataset
            try:
                # Text is decoded here, by the file's own character set: it will be written in another.
                header.decode()
            except PARSE_ERRORS:
                header = _what_can_be_decoded(header)
            found.append(header)
    return tuple(found)


def _what_can_be_decoded(header: Dataset) -> Dataset:
    kept = Dataset()
    for tag in list(header.keys()):
        try:
            kept.add(header[tag])
        except PARSE_ERRORS:
            continue
    return kept


def _is_of(entry: SeriesEntry, acquisition: Acquisition) -> bool:
    told = entry.acquisition
    return (
        entry.kind == "dicom"
        and entry.refusal is None
        and told.series_uid == acquisition.series_uid
        and told.study_uid == acquisition.study_uid
        and told.protocol.get("part") == acquisition.protocol.get("part")
    )
