"""DICOM files to series, and a series to a Volume."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsiam.errors import GeometryRefused, InputRefused, MedsiamError, Unreadable
from medsiam.reading.acquisition import acquisition_of, bare_acquisition, image_numbers
from medsiam.reading.archive import DICOM_ENDINGS, Opener, Source
from medsiam.reading.entry import SeriesEntry
from medsiam.reading.geometry import FEWEST_SLICES, Stack
from medsiam.reading.headers import Frame, Header, header_of
from medsiam.reading.parsing import PREAMBLE_BYTES, looks_like_dicom, parse
from medsiam.reading.pixels import check_format, read_values
from medsiam.reading.radiograph import radiograph_grid
from medsiam.reading.roles import is_radiograph, not_an_image, role_of
from medsiam.reading.series import Part, check_one_visit, parts_of, series_of
from medsiam.reading.shear import upright
from medsiam.volume import Acquisition, Grid, Volume

Found = tuple[Header, tuple[Frame, ...]]

DAMAGED = "a damaged DICOM file"

# Between the lowest and the highest value there must be room for so many that float32
# tells apart: an offset a million times the signal leaves steps instead of values.
FEWEST_STEPS = 1000


@dataclass(frozen=True, eq=False)
class DicomContent:
    """What reading needs: frames in order on a grid."""

    stack: Stack


def dicom_entries(sources: Iterable[Source], key: bytes) -> tuple[tuple[SeriesEntry, ...], int]:
    """The series of all DICOM files among the sources, and how many other files there were."""
    found: list[Found] = []
    damaged: list[tuple[Source, Unreadable]] = []
    empty: list[Source] = []
    others = 0
    with Opener() as opener:
        for source in sources:
            try:
                header = _header(opener, source, key)
            except Unreadable as error:
                damaged.append((source, error))
                continue
            if header is None:
                others += 1
                empty += [source] * (source.size == 0)
            else:
                found.append(header)
    slices = {_pattern(header.source) for header, _ in found}
    damaged += [(source, Unreadable(_EMPTY)) for source in empty if _pattern(source) in slices]
    found, lost = _without_lost(found)
    damaged += [
        (header.source, Unreadable("it is cut short before its pixels; copy it again")) for header in lost
    ]
    entries = [entry for group in series_of(found) for entry in _entries(group)]
    stray = _folders(source for source, _ in damaged) + _folders(
        h.source for h, _ in found if not h.series_uid
    )
    doubted = (_doubted(entry, stray) for entry in entries)
    return (*doubted, *(_damaged_entry(*pair) for pair in damaged)), others


def read_dicom(entry: SeriesEntry) -> Volume:
    """The volume of a DICOM entry. Raises what `refusal` holds, or Unreadable for its pixels."""
    stack: Stack = entry.content.stack
    values, notes = read_values(stack.frames, entry.acquisition.modality)
    grid = stack.grid
    if stack.drift_mm != (0.0, 0.0):
        values, grid = upright(values, grid, stack.drift_mm)
    check_varied(values)
    acquisition = replace(
        entry.acquisition,
        sha256=digest(values, grid),
        assumptions=(*entry.acquisition.assumptions, *notes),
        image_numbers=image_numbers(stack.frames),
    )
    return Volume(values, grid, acquisition)


def check_varied(values: NDArray[np.float32]) -> None:
    """Raises Unreadable where voxels are all alike, nearly so beside an offset, or one is no number."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise Unreadable("some voxels are not finite numbers after rescaling; export the image again")
    if low == high:
        raise Unreadable(f"all voxels have the one value {low:g}: the image is empty; export it again")
    if (high - low) < FEWEST_STEPS * np.spacing(np.float32(max(abs(low), abs(high)))):
        raise Unreadable(
            f"voxels differ by {high - low:g} around {high:g}, which single precision cannot tell apart; "
            "export the image without that offset"
        )


def digest(values: NDArray[np.float32], grid: Grid) -> str:
    """SHA-256 of voxels and geometry, the same whatever the files' names, order or compression."""
    found = hashlib.sha256(repr(grid.shape).encode())
    # Adding zero makes a negative zero positive.
    found.update((np.round(grid.world_from_index, 4).astype("<f8") + 0.0).tobytes())
    found.update(np.ascontiguousarray(values, dtype="<f4").data)
    return found.hexdigest()


_EMPTY = "it is empty and named as the slices beside it; copy it again"


def _pattern(source: Source) -> tuple[Path, str]:
    """Where a file lies and how it is named, whatever its numbers: slices of one series are named alike."""
    return _folders([source])[0], re.sub(r"\d+", "#", source.base_name)


def _header(opener: Opener, source: Source, key: bytes) -> Found | None:
    """Header and frames of one file, None where it is no DICOM. Raises Unreadable where damaged."""
    named_dicom = source.base_name.lower().endswith(DICOM_ENDINGS)
    with opener.open(source) as file:
        head = file.read(PREAMBLE_BYTES)
        file.seek(0)
        has_magic = head[128:] == b"DICM"
        if head and len(head) < PREAMBLE_BYTES and not any(head):
            raise Unreadable("it ends in its preamble; copy it again")
        if not has_magic and not named_dicom and not looks_like_dicom(head):
            return None
        try:
            parsed = parse(file)
            is_directory = "DirectoryRecordSequence" in parsed.dataset
            found = header_of(parsed, source, key)
        except Unreadable:
            if has_magic or named_dicom:
                raise
            return None
    header = found[0]
    if header.series_uid or (header.sop_class and not _is_cut_short(header)):
        return found
    if (has_magic or named_dicom) and not is_directory:
        raise Unreadable("it tells no kind, no series or no pixels: damaged or cut short; copy it again")
    return None


def _without_lost(found: Sequence[Found]) -> tuple[list[Found], list[Header]]:
    """The files without those that are cut short and alone in their series: they may belong to another."""
    whole = {header.series_uid for header, frames in found if frames}
    lost = [header for header, _ in found if _is_cut_short(header) and header.series_uid not in whole]
    return [pair for pair in found if pair[0] not in lost], lost


def _is_cut_short(header: Header) -> bool:
    """Whether a file says that it is an image and ends before its pixels."""
    return header.pixel is None and not header.problem and not not_an_image(header)


def _entries(group: Sequence[Found]) -> Iterator[SeriesEntry]:
    """The entries of one series: one, or one for each part or radiograph."""
    headers = [header for header, _ in group]
    kinds = [not_an_image(header) for header in headers]
    if all(kinds):
        yield _other(headers, f"it is {kinds[0]}")
        return
    try:
        yield from _image_entries(group, kinds)
    except InputRefused as refusal:
        yield _refused(headers, refusal)


def _image_entries(group: Sequence[Found], kinds: Sequence[str]) -> Iterator[SeriesEntry]:
    headers = [header for header, _ in group]
    for header in headers:
        # First, since what a cut took away looks like a contradiction.
        if _is_cut_short(header):
            raise Unreadable(f"{_which(header)} is cut short before its pixels; export the series again")
    check_one_visit(headers)
    if any(kinds):
        raise Unreadable(
            f"one series UID holds images and {next(filter(None, kinds))}; export the images alone"
        )
    for header, frames in group:
        _check_file(header, frames)
    if is_radiograph(headers[0]):
        _check_instances(headers)
        for n, (_, frames) in enumerate(group, 1):
            yield _radiograph_entry(frames, f"image {n}" if len(group) > 1 else "")
        return
    yield from _stack_entries([frame for _, frames in group for frame in frames])


def _check_file(header: Header, frames: Sequence[Frame]) -> None:
    where = _which(header)
    if header.problem:
        raise Unreadable(f"{where}: {header.problem}")
    if header.pixel is None or not frames:
        raise Unreadable(f"{where} holds no pixels; export the series again")
    check_format(header.pixel)
    if len(frames) != header.pixel.frames:
        raise Unreadable(
            f"{where} holds {header.pixel.frames} frames in a classic file, without a place for each"
        )


def _which(header: Header) -> str:
    return f"instance {header.instance_number}" if header.instance_number is not None else "one file"


def _check_instances(headers: Sequence[Header]) -> None:
    uids = [header.sop_uid for header in headers if header.sop_uid]
    if len(set(uids)) < len(uids):
        raise GeometryRefused(
            f"{len(uids) - len(set(uids))} files are duplicates of another (one SOPInstanceUID); remove "
            "the copies"
        )


def _stack_entries(frames: Sequence[Frame]) -> Iterator[SeriesEntry]:
    headers = list({id(frame.header): frame.header for frame in frames}.values())
    if len(frames) == 1:
        yield _other(headers, f"it is a single slice, no volume ({FEWEST_SLICES} are needed)", frames[0])
        return
    parts = parts_of(frames)
    for n, part in enumerate(parts, 1):
        yield _part_entry(part, f"#{n}" if len(parts) > 1 else "")


def _part_entry(part: Part, suffix: str) -> SeriesEntry:
    stack = part.stack
    acquisition = acquisition_of(stack.frames, stack.notes)
    if part.label:
        note = f"The series holds several stacks; this is the part with {part.label}."
        acquisition = replace(
            acquisition,
            assumptions=(note, *acquisition.assumptions),
            protocol={**acquisition.protocol, "part": part.label},
        )
    role, reason = role_of(stack.frames)
    return _entry(
        [frame.header for frame in stack.frames],
        acquisition,
        suffix=suffix,
        shape_kji=stack.grid.shape,
        spacing_kji_mm=tuple(float(v) for v in stack.grid.spacing_mm),
        role=role,
        reason=reason,
        content=DicomContent(stack),
    )


def _radiograph_entry(frames: Sequence[Frame], label: str) -> SeriesEntry:
    grid, told, notes = radiograph_grid(frames[0])
    acquisition = acquisition_of(frames, notes)
    acquisition = replace(acquisition, protocol={**acquisition.protocol, **told})
    role, reason = role_of(frames)
    return _entry(
        [frame.header for frame in frames],
        acquisition,
        suffix=f"#{label.split()[-1]}" if label else "",
        shape_kji=grid.shape,
        spacing_kji_mm=tuple(float(v) for v in grid.spacing_mm),
        role=role,
        reason=reason,
        content=DicomContent(Stack(tuple(frames), grid)),
    )


def _other(headers: Sequence[Header], reason: str, frame: Frame | None = None) -> SeriesEntry:
    refusal = Unreadable(f"{reason}; give the folder of a whole CT, MR or PET series, or a radiograph")
    acquisition = acquisition_of([frame]) if frame else bare_acquisition(headers[0])
    return _entry(headers, acquisition, role="not-an-image-volume", reason=reason, refusal=refusal)


def _refused(headers: Sequence[Header], refusal: MedsiamError) -> SeriesEntry:
    return _entry(headers, bare_acquisition(headers[0]), refusal=refusal)


def _entry(
    headers: Sequence[Header], acquisition: Acquisition, suffix: str = "", **values: Any
) -> SeriesEntry:
    pixel = headers[0].pixel
    values.setdefault("shape_kji", (len(headers), pixel.rows, pixel.columns) if pixel else (0, 0, 0))
    values.setdefault("spacing_kji_mm", (0.0, 0.0, 0.0))
    return SeriesEntry(
        name=(acquisition.series_uid or "series without UID") + suffix,
        paths=tuple(sorted({header.source.path for header in headers})),
        acquisition=acquisition,
        kind="dicom",
        **values,
    )


def _damaged_entry(source: Source, error: Unreadable) -> SeriesEntry:
    return SeriesEntry(
        name=source.base_name,
        paths=(source.path,),
        acquisition=Acquisition(),
        shape_kji=(0, 0, 0),
        spacing_kji_mm=(0.0, 0.0, 0.0),
        kind="dicom",
        role="not-an-image-volume",
        reason=DAMAGED,
        refusal=error,
    )


def _folders(sources: Iterable[Source]) -> list[Path]:
    """The folder, or the archive, that each source lies in."""
    return [source.path if source.member else source.path.parent for source in sources]


def _doubted(entry: SeriesEntry, stray: Sequence[Path]) -> SeriesEntry:
    """The entry, refused where a file beside its own, of no known series, may be one of its slices."""
    homes = {*entry.paths, *(path.parent for path in entry.paths)}
    count = sum(folder in homes for folder in stray)
    if not count or entry.refusal is not None or not entry.acquisition.series_uid:
        return entry
    refusal = Unreadable(
        f"{count} DICOM file{'s' * (count > 1)} beside this series cannot be read or tell no series, and "
        "may be "
        "slices of it; export the series again, or move them away if they are not"
    )
    return replace(entry, refusal=refusal)
