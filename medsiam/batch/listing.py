"""Everything an archive holds, from headers alone: each file's header is read once.

    folder by folder -> series -> [series of several folders: a copy, or read together] -> Found

A series of which the archive holds two copies is taken once. One that was scattered over
several folders is the only thing whose headers are read again, this time together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from medsiam.batch.values import Row, Scan
from medsiam.errors import InputRefused, MedsiamError
from medsiam.reading import SeriesEntry
from medsiam.reading.archive import Source, find_sources, sources_by_folder
from medsiam.reading.dicom import DAMAGED
from medsiam.reading.dicomdir import is_dicomdir, referenced_sources
from medsiam.reading.finding import entries_of
from medsiam.reading.identity import keyed_hash
from medsiam.volume import Acquisition

Progress = Callable[[str], None]

# 16 hexadecimal digits: among a million cases two meet with a chance of 1 in 10^7.
ID_DIGITS = 16
FILES_TOLD_EVERY = 1000


@dataclass(frozen=True, eq=False)
class Found:
    """A series that may be compared, as much of it as choosing needs.

    person    tells two people under one number apart; None where the header tells nothing
    study_at  when its study began, by the clock of the information system
    contents  digest of its instances' UIDs, "" where it has none
    """

    scan: Scan
    acquisition: Acquisition
    shape_kji: tuple[int, int, int]
    spacing_kji_mm: tuple[float, float, float]
    birth: str | None = None
    name_token: str | None = None
    study_at: datetime | None = None
    contents: str = ""


@dataclass
class Listing:
    """What was found.

    left_out  localisers, maps, reports: counted, not told one by one
    """

    found: list[Found] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)
    files: int = 0
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class Met:
    """One entry in one folder, without its headers: those of a large archive would fill the memory.

    uid      of its series, "" where it tells none
    outcome  None for what is left out
    """

    uid: str
    name: str
    files: tuple[tuple[str, str], ...]
    outcome: Found | Row | None

    @property
    def contents(self) -> str:
        return self.outcome.contents if isinstance(self.outcome, Found) else ""

    @property
    def homes(self) -> frozenset[Path]:
        return frozenset(Path(path).parent for path, _ in self.files)


@dataclass(frozen=True)
class Read:
    """What the headers of one folder's files say.

    damaged  one row for all files that cannot be read
    """

    met: tuple[Met, ...]
    damaged: tuple[Row, ...] = ()


# Reads a folder's files by the given call, or knows from before what it would give.
Recall = Callable[[Sequence[Source], Callable[[], Read]], Read]


def always_read(group: Sequence[Source], read: Callable[[], Read]) -> Read:
    """Knows nothing from before."""
    return read()


def list_folder(
    archive: Path, *, key: bytes, leave_out: Path, progress: Progress, recall: Recall = always_read
) -> Listing:
    """The series of a folder tree, a zip or a DICOMDIR.

    leave_out  the output folder, which may lie within the archive
    Raises InputRefused where nothing is there.
    """
    listing = Listing()
    met: dict[str, list[Met]] = {}
    for group in _groups(archive, leave_out, listing, key):
        found = recall(group, partial(_read, group, key))
        listing.refused += found.damaged
        for each in found.met:
            met.setdefault(each.uid or f"file {each.files[:1]} {each.name}", []).append(each)
        listing.files += len(group)
        if listing.files // FILES_TOLD_EVERY != (listing.files - len(group)) // FILES_TOLD_EVERY:
            progress(f"{listing.files} files seen")
    for together in met.values():
        for each in _settled(together, key, listing):
            if isinstance(each.outcome, Found):
                listing.found.append(each.outcome)
            elif each.outcome is not None:
                listing.refused.append(each.outcome)
            else:
                listing.left_out += 1
    return listing


def _read(group: Sequence[Source], key: bytes) -> Read:
    """The entries of one folder's files, by their headers."""
    entries, _ = entries_of(group, key)
    damaged = [entry for entry in entries if entry.reason == DAMAGED]
    whole = (_met(entry, entries, group, key) for entry in entries if entry.reason != DAMAGED)
    return Read(tuple(whole), tuple(_damaged_rows(damaged, key)))


def _groups(archive: Path, leave_out: Path, listing: Listing, key: bytes) -> Iterable[tuple[Source, ...]]:
    """The files of each folder, or of the one file that an archive is."""
    if not archive.is_dir():
        return (referenced_sources(archive) if is_dicomdir(archive) else find_sources(archive),)

    def refuse(path: Path, error: InputRefused) -> None:
        listing.refused.append(input_row("a part of the archive", error, place=str(path), key=key))

    inside = archive / os.path.relpath(leave_out.resolve(), archive.resolve())
    return sources_by_folder(archive, leave_out=inside, refuse=refuse)


def input_row(
    title: str, error: MedsiamError, *, place: str, key: bytes, acquisition: Acquisition | None = None
) -> Row:
    """A refused input. Names of files and folders may tell whom they are of: a keyed digest is kept.

    title  what it is called: a series' UID, or which of the files it is
    place  the path, for the terminal alone
    """
    told = acquisition or Acquisition()
    scan = Scan(
        title, (), "", told.study_uid, told.series_uid, told.modality, told.body_part,
        told.acquired.isoformat(timespec="seconds") if told.acquired else None,
    )  # fmt: skip
    return Row(
        case_id=keyed_hash(key, "input", place, title)[:ID_DIGITS],
        kind="input",
        state="refused",
        patient_key=told.patient_key,
        summary=f"{title[:1].upper()}{title[1:64]} was not compared.",
        code=error.code,
        reason=str(error),
        current=scan.told(),
        spoken=place,
    )


def digest_of(*words: str) -> str:
    """ID_DIGITS hexadecimal digits that stand for these words."""
    return hashlib.sha256("\x1f".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:ID_DIGITS]


def signature_of(sources: Sequence[Source]) -> str:
    """A digest that changes when a file is changed, replaced, added or taken away."""
    told = []
    for path in sorted({source.path for source in sources}):
        try:
            status = os.stat(path)
            told.append(f"{path}\x1f{status.st_size}\x1f{status.st_mtime_ns}")
        except OSError:
            told.append(f"{path}\x1fgone")
    members = sorted(source.member for source in sources if source.member)
    return hashlib.sha256("\n".join([*told, *members]).encode("utf-8", "surrogateescape")).hexdigest()


def _damaged_rows(damaged: Sequence[SeriesEntry], key: bytes) -> Iterator[Row]:
    """One row for the damaged files of a folder: a series cut short in transfer may be hundreds."""
    if not damaged:
        return
    first, refusal = damaged[0], damaged[0].refusal
    assert refusal is not None, "a damaged file is refused"
    row = input_row(first.title, refusal, place=str(first.paths[0]), key=key)
    if len(damaged) > 1:
        row = replace(row, reason=f"{len(damaged)} files of one folder are damaged, the first: {row.reason}")
    yield row


def _settled(together: Sequence[Met], key: bytes, listing: Listing) -> Sequence[Met]:
    """One series' entries, its copies set aside and its parts in several folders read together."""
    kept = list(_without_copies(together, listing))
    in_zip = any(member for each in kept for _, member in each.files)
    if len({each.homes for each in kept}) == 1 or in_zip:
        return kept
    files = sorted({file for each in kept for file in each.files})
    sources = [Source(Path(path), member) for path, member in files]
    entries, _ = entries_of(sources, key)
    return [_met(entry, entries, sources, key) for entry in entries]


def _without_copies(together: Sequence[Met], listing: Listing) -> Iterator[Met]:
    seen: set[tuple[str, str]] = set()
    for each in together:
        if each.contents and (each.name, each.contents) in seen:
            listing.aside.append((each.name, "the very same files are in the archive twice"))
            continue
        seen.add((each.name, each.contents))
        yield each


def _met(entry: SeriesEntry, entries: Sequence[SeriesEntry], group: Sequence[Source], key: bytes) -> Met:
    sources = _sources_of(entry, entries, group)
    outcome: Found | Row | None = None
    if entry.is_usable:
        outcome = _found(entry, sources)
    elif entry.refusal is not None and entry.role == "image":
        place = str(entry.paths[0])
        outcome = input_row(entry.title, entry.refusal, place=place, key=key, acquisition=entry.acquisition)
    files = tuple((str(source.path), source.member) for source in sources)
    return Met(entry.acquisition.series_uid, entry.name, files, outcome)


def _found(entry: SeriesEntry, sources: Sequence[Source]) -> Found:
    # Planning has no use for the station, whose name may be a person's, and what is planned is kept.
    protocol = {name: value for name, value in entry.acquisition.protocol.items() if name != "station"}
    told = replace(entry.acquisition, protocol=protocol)
    scan = Scan(
        name=entry.name,
        files=tuple((str(source.path), source.member) for source in sources),
        signature=signature_of(sources),
        study_uid=told.study_uid,
        series_uid=told.series_uid,
        modality=told.modality,
        body_part=told.body_part,
        acquired=told.acquired.isoformat(timespec="seconds") if told.acquired else None,
        spatial_dims=2 if entry.shape_kji[0] == 1 else 3,
    )
    name_token = study_at = None
    if entry.kind == "dicom":
        header = entry.content.stack.frames[0].header
        name_token = header.person.name_token
        study_at = header.moments["study"][0] if "study" in header.moments else None
    return Found(
        scan, told, entry.shape_kji, entry.spacing_kji_mm, told.birth_key, name_token, study_at,
        _contents(entry),
    )  # fmt: skip


def _sources_of(
    entry: SeriesEntry, entries: Sequence[SeriesEntry], group: Sequence[Source]
) -> tuple[Source, ...]:
    """The files that an entry is read from; for a part of a split series, those of all parts."""
    if not entry.is_usable:
        paths = set(entry.paths)
        return tuple(source for source in group if source.path in paths)
    if entry.kind != "dicom":
        return (entry.content.source,)
    parts = [entry]
    if "#" in entry.name:
        uid = entry.acquisition.series_uid
        parts = [each for each in entries if each.is_usable and each.acquisition.series_uid == uid]
    return tuple(sorted({frame.header.source for each in parts for frame in each.content.stack.frames}))


def _contents(entry: SeriesEntry) -> str:
    """A digest of a series' instances; "" where it is no DICOM."""
    if entry.kind != "dicom":
        return ""
    uids = sorted({frame.header.sop_uid or "" for frame in entry.content.stack.frames})
    return "" if uids[0] == "" else hashlib.sha256(" ".join(uids).encode()).hexdigest()
