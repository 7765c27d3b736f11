"""What the headers of a stack tell about how it was acquired, as one value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from medsiam.reading.headers import Frame, Header
from medsiam.reading.pixels import COMPRESSED, LOSSY, inverts
from medsiam.volume import Acquisition

# Which moment tells when an image was acquired, best first.
_ACQUIRED = ("acquisition", "series", "content", "study")

# SpacingBetweenSlices is rounded, or is the gap only; beyond this it is told.
SPACING_DISAGREEMENT = 0.02


def acquisition_of(frames: Sequence[Frame], notes: Sequence[str] = ()) -> Acquisition:
    """What the headers of a whole stack tell; a value that differs between slices is left out."""
    headers = list({id(frame.header): frame.header for frame in frames}.values())
    first = min(headers, key=lambda header: (header.instance_number or 0, header.sop_uid))
    protocol = {
        name: value
        for name, value in first.protocol.items()
        if all(header.protocol.get(name) == value for header in headers)
    }
    acquired, time_known = _acquired(headers)
    if acquired is not None:
        protocol["acquired_time_known"] = time_known
    if first.pixel is not None and first.pixel.padding is not None:
        protocol["pixel_padding_value"] = first.pixel.padding
    return replace(
        bare_acquisition(first),
        acquired=acquired,
        protocol=protocol,
        assumptions=(*notes, *first.notes, *_assumptions(frames)),
    )


def image_numbers(frames: Sequence[Frame]) -> tuple[int, ...]:
    """The number of each frame in an archive's viewer; () where not all are told, or two are alike."""
    headers = {id(frame.header) for frame in frames}
    if len(headers) == 1 and len(frames) > 1:
        return tuple(frame.number + 1 for frame in frames)
    told = [frame.header.instance_number for frame in frames]
    numbers = tuple(number for number in told if number is not None and number >= 0)
    return numbers if len(set(numbers)) == len(frames) else ()


def bare_acquisition(header: Header) -> Acquisition:
    acquired, _ = _acquired([header])
    return Acquisition(
        modality=header.modality,
        body_part=header.body_part,
        description=header.description,
        patient_key=header.person.patient_key,
        number_key=header.person.number_key,
        birth_key=header.person.birth_key,
        issuer=header.person.issuer,
        study_uid=header.study_uid,
        series_uid=header.series_uid,
        frame_of_reference_uid=header.frame_of_reference_uid,
        acquired=acquired,
        protocol=dict(header.protocol),
    )


def _acquired(headers: Sequence[Header]) -> tuple[datetime | None, bool]:
    for group in _ACQUIRED:
        moments = [header.moments[group] for header in headers if group in header.moments]
        if moments:
            return min(moments)
    return None, False


def _assumptions(frames: Sequence[Frame]) -> Iterator[str]:
    first = frames[0].header
    pixel = first.pixel
    if pixel is None:
        return
    if not first.series_uid:
        yield "The files tell no valid series UID; all of one folder without one were taken as one series."
    if not pixel.syntax:
        yield "The file does not tell its transfer syntax; it was recognised from its bytes."
    yield from _spacing_note(frames)
    if pixel.lossy or pixel.syntax in LOSSY:
        yield f"The pixels were compressed with loss ({COMPRESSED.get(pixel.syntax, 'earlier')})."
    if inverts(pixel, first.modality):
        yield (
            "Low values were meant to be shown bright; "
            "values were turned over within the stored bits (brighter = denser)."
        )
    elif pixel.photometric == "MONOCHROME1":
        yield "Meant to be shown inverted (MONOCHROME1); the measured values were kept as they are."
    if first.modality == "CT" and not frames[0].traits.get("has_rescale"):
        yield "The header tells no rescaling; the stored values were taken as Hounsfield units."


def _spacing_note(frames: Sequence[Frame]) -> Iterator[str]:
    """Told where header and positions disagree: positions are believed, and slices may have been left out."""
    told = frames[0].header.protocol.get("spacing_between_slices_mm")
    if len(frames) < 2 or not told or frames[0].position is None or frames[-1].position is None:
        return
    found = math.dist(frames[0].position, frames[-1].position) / (len(frames) - 1)
    if abs(found - abs(told)) > SPACING_DISAGREEMENT * found:
        yield (
            f"The header tells {abs(told):g} mm between slices, their positions {found:g} mm; "
            "the positions were believed."
        )
