"""From the bytes of a DICOM file to its header, bounded in time and memory.

pydicom parses; here stands what it leaves open: which encoding a file without
a preamble has, how far a deflated one may inflate, and where the pixels lie.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, cast

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from medsiam.errors import Unreadable
from medsiam.reading.tags import PARSE_ERRORS, identifier

PREAMBLE_BYTES = 132
MAGIC = b"DICM"

# Values above this are skipped while the header is read. The functional
# groups of five thousand frames take about as much.
LARGEST_VALUE = 32 * 2**20

# A header of more elements, or that takes more reading, is no header: zeros
# read as an endless row of empty elements.
MOST_ELEMENTS = 20_000
MOST_READS = 2_000_000

# A deflated file is inflated in memory; single images stay far below.
MOST_INFLATED_BYTES = 512 * 2**20
MOST_INFLATION = 250
SMALL_INFLATED_BYTES = 16 * 2**20

# A set of plain numbers: pydicom's own comparison of tags is slow.
_PIXEL_TAGS = frozenset((0x7FE00010, 0x7FE00009, 0x7FE00008))
_LONG_LENGTH = (b"OB", b"OW", b"UN", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UT", b"UC", b"UR")
UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True)
class PixelPlace:
    """Where the pixel data of a file begin and how long they are.

    offset         of the first pixel byte, in the inflated file where it was deflated
    length         bytes, None where the data are encapsulated (compressed)
    is_integer     False for float pixel data
    little_endian  byte order of native pixels
    """

    offset: int
    length: int | None
    is_integer: bool
    little_endian: bool


@dataclass(frozen=True, eq=False)
class Parsed:
    """A header: the dataset before the pixels, its transfer syntax, the pixels' place."""

    dataset: Dataset
    syntax: str
    pixels: PixelPlace | None


class BoundedFile:
    """A file that never hands out, or asks memory for, more than it holds.

    A length field may declare gigabytes; reading then takes only what is there.
    Raises Unreadable when more than MOST_READS reads were asked for.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.seek, self.tell = file.seek, file.tell
        self._reads_left = MOST_READS

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes, all that is left where it is negative."""
        self._reads_left -= 1
        if self._reads_left < 0:
            raise Unreadable("the DICOM header has no end; the file is damaged or hostile")
        if count > 4096:
            count = min(count, max(self.size - self.tell(), 0))
        return self._file.read(count)


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first PREAMBLE_BYTES may begin a DICOM file, with or without preamble."""
    if head[128:132] == MAGIC:
        return True
    return head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08") and len(head) > 16


def parse(file: BinaryIO) -> Parsed:
    """The header of a DICOM file.

    Raises Unreadable where the bytes cannot be parsed or inflate without bound.
    """
    try:
        return _parse(cast(BinaryIO, BoundedFile(file)))
    except RecursionError as error:
        raise Unreadable(
            "sequences are nested deeper than any scanner writes; the file is damaged"
        ) from error
    except PARSE_ERRORS as error:
        raise Unreadable(f"the DICOM header is damaged ({type(error).__name__}); export it again") from error


def inflated(file: BinaryIO) -> BinaryIO:
    """The data set of a deflated file, inflated. Raises Unreadable for a bomb."""
    _meta(file)
    packed = file.read()
    limit = min(MOST_INFLATED_BYTES, max(SMALL_INFLATED_BYTES, MOST_INFLATION * len(packed)))
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    data = unpacker.decompress(packed, limit + 1)
    if len(data) > limit:
        raise Unreadable(
            f"the deflated data set inflates {len(packed)} bytes to more than {limit >> 20} MiB; "
            "no image does; do not trust this file"
        )
    if not unpacker.eof:
        raise Unreadable("the deflated data set is cut short; export it again")
    return io.BytesIO(data)


def _parse(file: BinaryIO) -> Parsed:
    syntax = _meta(file)
    if syntax == DeflatedExplicitVRLittleEndian:
        file.seek(0)
        file = cast(BinaryIO, BoundedFile(inflated(file)))
    implicit, little = _encoding(file, syntax)
    dataset = read_dataset(file, implicit, little, stop_when=_PixelsReached(), defer_size=LARGEST_VALUE)
    return Parsed(dataset, syntax, _pixel_place(file, implicit, little))


class _PixelsReached:
    """Tells pydicom where to stop: at the pixels. Raises Unreadable after MOST_ELEMENTS elements."""

    def __init__(self) -> None:
        self._elements_left = MOST_ELEMENTS

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        self._elements_left -= 1
        if self._elements_left < 0:
            raise Unreadable("the DICOM header has no end; the file is damaged or hostile")
        return tag in _PIXEL_TAGS


def _meta(file: BinaryIO) -> str:
    """The transfer syntax, "" where not told; the file then stands at its data set."""
    start = PREAMBLE_BYTES if file.read(PREAMBLE_BYTES)[128:] == MAGIC else 0
    file.seek(start)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    return identifier(meta, "TransferSyntaxUID")


def _encoding(file: BinaryIO, syntax: str) -> tuple[bool, bool]:
    """Whether the VR is implicit, and whether the order is little endian."""
    if syntax:
        return syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    head = file.read(6)
    file.seek(-len(head), io.SEEK_CUR)
    little = head[:2] != b"\x00\x08"
    return not (head[4:6].isalpha() and head[4:6].isupper()), little


def _pixel_place(file: BinaryIO, implicit: bool, little: bool) -> PixelPlace | None:
    """Reads the pixel element's own header, at which the file stands."""
    order = "<" if little else ">"
    head = file.read(8)
    if len(head) < 8:
        return None
    group, element = struct.unpack(order + "HH", head[:4])
    if (group << 16 | element) not in _PIXEL_TAGS:
        return None
    if implicit:
        length = struct.unpack(order + "L", head[4:])[0]
    elif head[4:6] in _LONG_LENGTH:
        length = struct.unpack(order + "L", file.read(4))[0]
    else:
        raise Unreadable("the pixel data carry a value type that pixels cannot have; export it again")
    is_encapsulated = length == UNDEFINED_LENGTH
    return PixelPlace(file.tell(), None if is_encapsulated else length, element == 0x0010, little)
