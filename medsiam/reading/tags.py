"""What the bytes of a DICOM header say, one question at a time.

Values are taken from the raw bytes: pydicom would warn with the value in the
message, and a value may be a name. A tag that is not there gives None; a tag
that is there but broken gives Malformed, so that no default hides it.
"""

from __future__ import annotations

import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time
from functools import cache
from typing import Any

from pydicom.charset import decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag, Tag

# Whatever a header holds that is odd is judged here; pydicom need not tell the user twice.
warnings.filterwarnings("ignore", module=r"pydicom\.(filereader|charset|misc|valuerep)")

# All that pydicom was seen to raise on damaged files.
PARSE_ERRORS = (
    InvalidDicomError, BytesLengthException, ValueError, TypeError, LookupError, AttributeError,
    NotImplementedError, OverflowError, EOFError, RecursionError, MemoryError, struct.error,
    zlib.error, OSError,
)  # fmt: skip

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}

# Characters that reset the encoding in a text of several character sets.
_DELIMITERS = {0x0D, 0x0A, 0x09, 0x0C, 0x5C, 0x5E, 0x3D}

LONGEST_TEXT = 64
LONGEST_UID = 64


class Malformed(ValueError):
    """A tag is there, but what it holds is not what it must hold."""

    def __init__(self, keyword: str) -> None:
        super().__init__(f"{keyword} is malformed")
        self.keyword = keyword


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """All values of a numeric tag, None where it is absent or empty.

    Raises Malformed where one is no finite number.
    """
    element = _element(dataset, keyword)
    if element is None:
        return None
    if not isinstance(element.value, bytes):
        return _converted_numbers(element.value, keyword)
    vr = element.VR if element.VR not in (None, "UN") else dictionary_VR(element.tag)
    # A VR choice such as "US or SS" holds values that are never negative here.
    code = _BINARY.get(vr[:2] if " or " in vr else vr)
    if code:
        return _unpacked(element, code, keyword)
    text = element.value.decode("ascii", "replace").strip(" \0")
    return tuple(_number(part, keyword) for part in text.split("\\")) if text else None


def number(dataset: Dataset, keyword: str) -> float | None:
    """The only value of a numeric tag, None where it is absent or empty."""
    found = numbers(dataset, keyword)
    if found is None:
        return None
    if len(found) != 1:
        raise Malformed(keyword)
    return found[0]


def integer(dataset: Dataset, keyword: str) -> int | None:
    """The only value of a whole-number tag, None where it is absent or empty."""
    found = number(dataset, keyword)
    if found is None:
        return None
    if found != int(found):
        raise Malformed(keyword)
    return int(found)


def vector(dataset: Dataset, keyword: str, length: int) -> tuple[float, ...] | None:
    """The values of a tag that must hold exactly so many, None where it is absent or empty."""
    found = numbers(dataset, keyword)
    if found is not None and len(found) != length:
        raise Malformed(keyword)
    return found


def text(dataset: Dataset, keyword: str) -> str:
    """A text tag without control characters, at most LONGEST_TEXT long, "" where absent."""
    return clean(identifier(dataset, keyword))


def clean(value: str) -> str:
    """Text for reports: no control characters or line breaks, single blanks, capped."""
    printable = value[: 4 * LONGEST_TEXT]
    if not printable.isprintable():
        printable = "".join(c if c.isprintable() else " " for c in printable)
    return " ".join(printable.split())[:LONGEST_TEXT].strip()


def identifier(dataset: Dataset, keyword: str) -> str:
    """A tag that tells one person or thing from another, whole and untouched but for blanks."""
    return "\\".join(parts(dataset, keyword)).strip(" \0")


def parts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of a text or code tag as they stand, () where absent or broken."""
    try:
        element = _element(dataset, keyword)
    except Malformed:
        return ()
    if element is None:
        return ()
    value = element.value
    if isinstance(value, bytes):
        value = _decoded(value, dataset).split("\\")
    elif isinstance(value, str) or not isinstance(value, Iterable):
        value = [value]
    return tuple(str(part).strip(" \0") for part in value)


def words(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of a code tag in capitals, () where absent or broken."""
    return tuple(clean(part).upper() for part in parts(dataset, keyword))


def uid(dataset: Dataset, keyword: str) -> str:
    """A valid UID, "" where it is absent or not one."""
    found = (words(dataset, keyword) or ("",))[0].strip("\0 ")
    return found if len(found) <= LONGEST_UID and _UID.fullmatch(found) else ""


def items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence, () where it is absent.

    Raises Malformed where it is no sequence.
    """
    tag = _tag(keyword)
    if tag not in dataset:
        return ()
    try:
        found = dataset[tag].value
        return tuple(found) if found and all(isinstance(item, Dataset) for item in found) else ()
    except PARSE_ERRORS as error:
        raise Malformed(keyword) from error


def day(dataset: Dataset, keyword: str) -> date | None:
    """A calendar day, None where it is absent or none."""
    return parse_day((words(dataset, keyword) or ("",))[0])


def parse_day(value: str) -> date | None:
    """A DICOM date (DA), also in its old form with dots; None where it is none."""
    digits = value.replace(".", "").strip()
    if len(digits) != 8 or not digits.isdecimal():
        return None
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None


def parse_time(value: str) -> time | None:
    """A DICOM time of day (TM), also in its old form with colons; None where it is none."""
    match = re.fullmatch(r"(\d\d)(\d\d)?(\d\d)?(\.\d{1,6})?", value.replace(":", "").strip())
    if not match:
        return None
    hour, minute, second = (int(part or 0) for part in match.groups()[:3])
    micro = round(float(match.group(4) or 0) * 1e6)
    try:
        return time(hour, minute, min(second, 59), min(micro, 999_999))
    except ValueError:
        return None


def moment(dataset: Dataset, day_keyword: str, time_keyword: str) -> tuple[datetime, bool] | None:
    """A day and a time of two tags, and whether the time was told; None without a day."""
    found = day(dataset, day_keyword)
    if found is None:
        return None
    clock = parse_time((words(dataset, time_keyword) or ("",))[0])
    return datetime.combine(found, clock or time()), clock is not None


def stamp(dataset: Dataset, keyword: str) -> tuple[datetime, bool] | None:
    """A date-time tag (DT) as local time, and whether the time was told; None where it is none."""
    value = (words(dataset, keyword) or ("",))[0].split("+")[0].split("-")[0]
    found = parse_day(value[:8])
    if found is None:
        return None
    clock = parse_time(value[8:]) if value[8:] else None
    return datetime.combine(found, clock or time()), clock is not None


def _element(dataset: Dataset, keyword: str) -> Any:
    """The element with its raw or converted value, None where it is absent or empty."""
    try:
        element = dataset.get_item(_tag(keyword))
    except PARSE_ERRORS as error:  # among them a value too large to have been read
        raise Malformed(keyword) from error
    if element is None:
        return None
    if isinstance(element, RawDataElement):
        return element if element.value else None
    return element if element.value not in (None, "", []) else None


@cache
def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return Tag(tag)


def _decoded(value: bytes, dataset: Dataset) -> str:
    """Text in the dataset's own character set, as far as that is known."""
    encodings = dataset.original_character_set
    try:
        return decode_bytes(
            value, [encodings] if isinstance(encodings, str) else list(encodings), _DELIMITERS
        )
    except PARSE_ERRORS:
        return value.decode("latin-1")


def _unpacked(element: RawDataElement, code: str, keyword: str) -> tuple[float, ...]:
    order = "<" if element.is_little_endian else ">"
    assert element.value is not None
    try:
        found = struct.unpack(
            f"{order}{len(element.value) // struct.calcsize(order + code)}{code}", element.value
        )
    except struct.error as error:
        raise Malformed(keyword) from error
    if not found or not all(math.isfinite(value) for value in found):
        raise Malformed(keyword)
    return found


def _number(part: str, keyword: str) -> float:
    part = part.strip()
    # float() would also take "nan", "1_0" and "1e400".
    value = float(part) if _NUMBER.fullmatch(part) else math.nan
    if not math.isfinite(value):
        raise Malformed(keyword)
    return value


def _converted_numbers(value: Any, keyword: str) -> tuple[float, ...]:
    parts = [value] if isinstance(value, (int, float, str)) else value
    try:
        found = tuple(float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise Malformed(keyword) from error
    if not all(math.isfinite(part) for part in found):
        raise Malformed(keyword)
    return found
