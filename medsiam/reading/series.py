"""Frames of one series UID to clean stacks: checked for one patient and one visit, split by tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from typing import Any

from medsiam.errors import GeometryRefused, IdentityRefused, InputRefused, Unreadable
from medsiam.reading.geometry import SAME_PLACE_MM, DoubledSlices, Stack, stack_of
from medsiam.reading.headers import Frame, Header
from medsiam.reading.roles import is_mosaic, not_an_image

# The longest examination that runs under one series UID, a delayed phase
# included. What lies further apart are two time points.
LONGEST_SERIES = timedelta(hours=3)

# Echo times differ by rounding within one echo.
ECHO_TOLERANCE_MS = 0.05

# Tags that may tell several stacks of one series apart, most telling first,
# and the word for it.
_TRAITS = {
    "stack": "stack",
    "echo": "echo",
    "echo_time_ms": "echo time in ms",
    "component": "component",
    "b_value": "b-value",
    "temporal": "temporal position",
    "kernel": "kernel",
    "acquisition": "acquisition",
    "kind": "image type",
}

# Traits that change what a voxel means: slices that differ in one of them are
# never one volume, even where they would fit together.
_MEANING = ("echo_time_ms", "component", "b_value", "temporal")

# Series split by more tags at once are not met; the search stays small.
MOST_TRAITS_AT_ONCE = 3


# So many slices of a stack may not be rescaled otherwise than the rest; in fewer slices
# than these nobody can tell who is odd.
ODD_RESCALINGS = 0.1
FEWEST_ALIKE = 4


@dataclass(frozen=True, eq=False)
class Part:
    """One clean stack of a series; label names the part, "" where the series is whole."""

    stack: Stack
    label: str = ""


def check_one_visit(headers: Sequence[Header]) -> None:
    """Raises an error where files of one series are of several patients, studies or visits.

    IdentityRefused for these, GeometryRefused for several frames of reference.
    """
    _check_person(headers)
    studies = {header.study_uid for header in headers}
    if len(studies) > 1:
        raise IdentityRefused(
            f"one series UID holds slices of {len(studies)} studies; "
            "they were mixed when they were stored, export each study anew"
        )
    spaces = {header.frame_of_reference_uid for header in headers}
    if len(spaces) > 1:
        raise GeometryRefused(
            f"the slices lie in {len(spaces)} frames of reference, so their positions do not go together; "
            "export each as its own series"
        )
    for group in ("study", "series", "acquisition", "content"):
        _check_times(headers, group)


def parts_of(frames: Sequence[Frame]) -> tuple[Part, ...]:
    """The clean stacks of one series: one, or several that a tag tells apart.

    Raises GeometryRefused or Unreadable where the frames make no clean stack,
    nor several complete ones.
    """
    if is_mosaic(frames[0].header):
        raise Unreadable("a mosaic tiles the slices of a volume in one picture; export it as single slices")
    _check_alike(frames)
    try:
        whole = stack_of(frames)
    except GeometryRefused as refusal:
        # Only doubled places, or a stack number, are a reason to look for parts:
        # a gap or uneven spacing must never be explained away by a tag.
        if isinstance(refusal, DoubledSlices) or "stack" in _varying(frames):
            return _split(frames, refusal)
        raise
    _check_one_meaning(frames)
    return (Part(whole),)


def _check_person(headers: Sequence[Header]) -> None:
    numbers = {header.person.patient_key for header in headers}
    births = {header.person.birth_key for header in headers} - {None}
    names = {header.person.name_token for header in headers} - {None}
    for what, found in (("patient numbers", numbers), ("birth dates", births), ("patient names", names)):
        if len(found) > 1:
            raise IdentityRefused(
                f"one series UID holds slices of {len(found)} {what}; "
                "several patients were mixed when it was stored, export each one anew"
            )


def _check_times(headers: Sequence[Header], group: str) -> None:
    moments = [header.moments[group] for header in headers if group in header.moments]
    if not moments:
        return
    times = sorted(moment for moment, _ in moments)
    span = times[-1] - times[0]
    # Without a time of day a scan over midnight looks a day long.
    limit = LONGEST_SERIES if all(told for _, told in moments) else timedelta(0)
    if span > limit and (times[0].date() != times[-1].date() or limit):
        raise IdentityRefused(
            f"one series UID holds slices of two time points ({group} times {span} apart, "
            f"{LONGEST_SERIES} at most are one visit); export each study anew"
        )


def _check_alike(frames: Sequence[Frame]) -> None:
    sizes = {(frame.header.pixel.rows, frame.header.pixel.columns) for frame in frames if frame.header.pixel}
    if len(sizes) > 1:
        raise GeometryRefused(
            f"the slices have {len(sizes)} sizes "
            f"({' and '.join(f'{r} x {c}' for r, c in sorted(sizes)[:3])}); "
            "give them as separate series"
        )
    _check_rescaling(frames)
    if len({frame.header.pixel.lowest_bit for frame in frames if frame.header.pixel}) > 1:
        raise Unreadable(
            "the slices tell different places of their bits in a pixel cell (HighBit), so some values would "
            "be multiplied; export the series again"
        )
    if any(frame.traits.get("distorted") for frame in frames):
        raise GeometryRefused(
            "the frames are marked as distorted: their voxels lie on no grid; give the original"
        )


def _check_rescaling(frames: Sequence[Frame]) -> None:
    """Raises Unreadable where nearly all slices are rescaled alike and a few otherwise.

    A rescaling of each slice's own is legal, and then most differ (PET, some MR); one that
    stands alone is a damaged header.
    """
    found = Counter((frame.slope, frame.intercept) for frame in frames)
    odd = len(frames) - max(found.values())
    if 0 < odd <= max(1, ODD_RESCALINGS * len(frames)) and len(frames) >= FEWEST_ALIKE:
        raise Unreadable(
            f"{odd} of {len(frames)} slices tell another RescaleSlope or RescaleIntercept than all the "
            "others; a header is damaged, export the series again"
        )


def _check_one_meaning(frames: Sequence[Frame]) -> None:
    differing = [name for name in _varying(frames) if name in _MEANING]
    if differing:
        raise GeometryRefused(
            f"slices that differ in {_TRAITS[differing[0]]} lie in one stack; export each as its own series"
        )


def _varying(frames: Sequence[Frame]) -> list[str]:
    return [name for name in _TRAITS if _varies([frame.traits.get(name) for frame in frames], name)]


def _varies(values: Sequence[Any], name: str) -> bool:
    if name == "echo_time_ms" and None not in values:
        return bool(max(values) - min(values) > ECHO_TOLERANCE_MS)
    return len(set(values)) > 1


def _trait(frame: Frame, name: str) -> Any:
    value = frame.traits.get(name)
    if name == "echo_time_ms" and value is not None:
        return round(value / (2 * ECHO_TOLERANCE_MS))
    return value


def _split(frames: Sequence[Frame], refusal: GeometryRefused) -> tuple[Part, ...]:
    """Parts by the fewest tags that make every part a clean stack."""
    varying = _varying(frames)
    for count in range(1, min(len(varying), MOST_TRAITS_AT_ONCE) + 1):
        for names in combinations(varying, count):
            parts = _clean_parts(frames, names)
            if parts:
                return parts
    raise refusal


def _clean_parts(frames: Sequence[Frame], names: tuple[str, ...]) -> tuple[Part, ...]:
    groups = _grouped(frames, lambda frame: tuple(_trait(frame, name) for name in names))
    if len(groups) < 2 or any(None in values for values in groups):
        return ()
    try:
        stacks = [stack_of(group) for group in groups.values()]
        for group in groups.values():
            _check_one_meaning(group)
    except InputRefused:
        return ()
    if "stack" not in names and not _is_one_place(stacks):
        return ()
    labels = (_label(group[0], names) for group in groups.values())
    return tuple(
        sorted((Part(*pair) for pair in zip(stacks, labels, strict=True)), key=lambda part: part.label)
    )


def _grouped(frames: Sequence[Frame], value: Callable[[Frame], Any]) -> dict[Any, list[Frame]]:
    groups: dict[Any, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(value(frame), []).append(frame)
    return groups


def _is_one_place(stacks: Sequence[Stack]) -> bool:
    """Whether all stacks fill the same places: then none of them lacks a slice."""
    first = stacks[0].grid
    return all(stack.grid.is_close(first, 10 * SAME_PLACE_MM) for stack in stacks[1:])


def _label(frame: Frame, names: tuple[str, ...]) -> str:
    return ", ".join(f"{_TRAITS[name]} {_shown(frame.traits[name])}" for name in names)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("\\", " ").lower()


def series_of(
    found: Sequence[tuple[Header, tuple[Frame, ...]]],
) -> Iterator[list[tuple[Header, tuple[Frame, ...]]]]:
    """The files of each series together, in order of the series UIDs.

    Files of one UID that are objects without pixels (a report) are a series
    of their own.
    """
    groups: dict[tuple[str, str, bool], list[tuple[Header, tuple[Frame, ...]]]] = {}
    for header, frames in found:
        study = header.study_uid if not header.series_uid else ""
        is_object = header.pixel is None and bool(not_an_image(header))
        groups.setdefault((header.series_uid, study, is_object), []).append((header, frames))
    for name in sorted(groups):
        yield groups[name]
