"""Anything that holds scans to entries, and an entry or a path to one Volume."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medsiam.errors import InputRefused, MedsiamError, SeriesAmbiguous, Unreadable, named
from medsiam.reading.archive import NIFTI_ENDINGS, RASTER_ENDINGS, Refuse, Source, find_sources
from medsiam.reading.dicom import DAMAGED, dicom_entries, read_dicom
from medsiam.reading.dicomdir import is_dicomdir, referenced_sources
from medsiam.reading.entry import SeriesEntry
from medsiam.reading.identity import load_key
from medsiam.reading.nifti import nifti_entry, read_nifti
from medsiam.reading.raster import raster_entry, read_raster
from medsiam.volume import Volume

# Series that a message lists before it says how many more there are.
MOST_LISTED = 12

_READERS = {"dicom": read_dicom, "nifti": read_nifti, "raster": read_raster}


def find_series(path: str | Path, *, key: bytes, refuse: Refuse | None = None) -> tuple[SeriesEntry, ...]:
    """Everything found in a folder, file, zip or DICOMDIR, from headers alone.

    refuse  hears of an unsafe archive in a folder, which is then passed over

    Entries that cannot be read carry the reason; hidden files and files of
    other kinds are left out. Raises InputRefused where the path holds nothing
    that could be an image, or is or holds an unsafe archive of which nobody hears.
    """
    if not str(path).strip():
        raise InputRefused("the path is empty; name a file or folder, or . for this one")
    path = Path(path)
    try:
        path.lstat()
    except ValueError as error:
        raise InputRefused(f"the path cannot be one ({error}); check it") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputRefused("the path is longer than this system allows; check it") from error
    sources = referenced_sources(path) if is_dicomdir(path) else find_sources(path, refuse=refuse)
    entries, others = entries_of(sources, key)
    if not entries:
        refusal = Unreadable(
            f"there is no DICOM, NIfTI, PNG, TIFF or JPEG image ({others} other files); check the path"
        )
        raise named(refusal, repr(path.name))
    return entries


def entries_of(sources: Sequence[Source], key: bytes) -> tuple[tuple[SeriesEntry, ...], int]:
    """The series of these files, and how many of them hold no image at all."""
    nifti = [source for source in sources if _ends(source, NIFTI_ENDINGS)]
    raster = [source for source in sources if _ends(source, RASTER_ENDINGS)]
    by_ending = set(nifti) | set(raster)
    dicom, others = dicom_entries((source for source in sources if source not in by_ending), key)
    entries = _placed((*dicom, *map(nifti_entry, nifti), *map(raster_entry, raster)), sources)
    return tuple(sorted(entries, key=lambda entry: (entry.name, entry.paths))), others


def _placed(entries: Sequence[SeriesEntry], sources: Sequence[Source]) -> Iterator[SeriesEntry]:
    """The entries; those that only a file's name tells apart with their place among the files."""
    places = {(source.path, source.base_name): n for n, source in enumerate(sources, 1)}
    for entry in entries:
        if entry.kind == "dicom" and entry.reason != DAMAGED:
            yield entry
            continue
        number = places[entry.paths[0], entry.name]
        placed = replace(entry, place=f"file {number} of {len(sources)}" if len(sources) > 1 else "the file")
        if placed.refusal is not None:
            named(placed.refusal, placed.whose_name)
        yield placed


def read_series(entry: SeriesEntry) -> Volume:
    """The voxels of an entry as a Volume. Raises its refusal, or what its pixels cause."""
    if entry.refusal is not None:
        raise entry.refusal
    try:
        return _READERS[entry.kind](entry)
    except MedsiamError as error:
        if entry.place:
            named(error, entry.whose_name)
        raise


def read_volume(path: str | Path, *, series_uid: str | None = None, key: bytes | None = None) -> Volume:
    """The one image series of a path, or the one named.

    series_uid  a series UID, or a name as find_series tells it. Raises
    SeriesAmbiguous where several fit, and the reason where none does.
    """
    entries = find_series(path, key=load_key() if key is None else key)
    if series_uid is not None:
        return read_series(_named(entries, series_uid))
    # A map is read where nothing else is there: then it is what was meant.
    usable = [entry for entry in entries if entry.is_usable] or _maps(entries)
    if not usable:
        raise _reason(entries)
    if len(usable) > 1:
        refusal = SeriesAmbiguous(f"{len(usable)} series could be meant: {_listed(usable)}; {_REMEDY}")
        raise _with_names(refusal, usable)
    aside = [entry for entry in entries if entry.refusal and entry.role == "image"]
    return _with_notes(read_series(usable[0]), usable[0].reason, len(aside))


_REMEDY = "choose one by its UID: `--prior-series` or `--current-series` of compare, `--series` of search"


def _maps(entries: Sequence[SeriesEntry]) -> list[SeriesEntry]:
    if any(entry.role == "image" for entry in entries):
        return []
    return [entry for entry in entries if entry.role == "derived" and entry.refusal is None]


def _ends(source: Source, endings: tuple[str, ...]) -> bool:
    return source.base_name.lower().endswith(endings)


def _named(entries: Sequence[SeriesEntry], name: str) -> SeriesEntry:
    found = [entry for entry in entries if entry.name == name]
    found = found or [entry for entry in entries if name and entry.acquisition.series_uid == name]
    if not found:
        refusal = SeriesAmbiguous(f"no series of that name is there, but {_listed(entries)}; {_REMEDY}")
        raise _with_names(named(refusal, f"asked for {name[:64]!r}"), entries)
    if len(found) > 1:
        refusal = SeriesAmbiguous(f"the series has {len(found)} parts: {_listed(found)}; name one part")
        raise _with_names(refusal, found)
    return found[0]


def _reason(entries: Sequence[SeriesEntry]) -> MedsiamError:
    """The error to raise where no entry is usable: its own reason where there is one entry only."""
    images = [entry for entry in entries if entry.role == "image"] or list(entries)
    if len(images) == 1 and images[0].refusal is not None:
        return images[0].refusal
    reasons = "; ".join(f"{entry}: {entry.refusal or entry.reason}" for entry in images[:MOST_LISTED])
    return _with_names(InputRefused(f"none of {len(images)} series can be read: {reasons}"), images)


def _with_names(error: MedsiamError, entries: Sequence[SeriesEntry]) -> MedsiamError:
    """The error with the names of the files that it lists beside it."""
    for entry in entries[:MOST_LISTED]:
        if entry.place:
            named(error, entry.whose_name)
    return error


def _listed(entries: Sequence[SeriesEntry]) -> str:
    more = f" and {len(entries) - MOST_LISTED} more" if len(entries) > MOST_LISTED else ""
    return ", ".join(str(entry) for entry in entries[:MOST_LISTED]) + more


def _with_notes(volume: Volume, reason: str, aside: int) -> Volume:
    notes = list(volume.acquisition.assumptions)
    if reason:
        notes.append(f"The series is {reason}.")
    if aside:
        notes.append(f"{aside} other series in the same place cannot be read and were left aside.")
    return replace(volume, acquisition=replace(volume.acquisition, assumptions=tuple(notes)))
