"""Pixel bytes to real values: bits, signs, rescale and polarity."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medsiam.errors import ResourceExhausted, Unreadable
from medsiam.reading.archive import Opener
from medsiam.reading.guard import MOST_FRAME_PIXELS, Cells, Job, decode
from medsiam.reading.headers import Frame, PixelFormat
from medsiam.reading.parsing import inflated
from medsiam.reading.tags import clean

# Voxels of a compressed or packed image, whose file does not bound them:
# 1024 x 1024 x 512, 2 GiB as float32.
MOST_VOXELS = 1024**3 // 2

# A compressed file whose pixels are this many times its size holds next to
# nothing; below the second number it may, it does no harm.
MOST_COMPRESSION = 1000
SMALL_IMAGE_BYTES = 64 * 2**20

NATIVE = {
    "", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
}  # fmt: skip

COMPRESSED = {
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
    "1.2.840.10008.1.2.4.202": "HTJ2K lossless",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
    "1.2.840.10008.1.2.5": "RLE",
}
LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81"}

# Where quantities are measured, polarity is a matter of display alone.
QUANTITATIVE = {"CT", "PT"}

_OVERFULL = "Bits above BitsStored were set in some slices and ignored, as the standard asks."


def check_format(pixel: PixelFormat) -> None:
    """Raises Unreadable for what is no plain grey image within the limits."""
    if pixel.samples != 1 or pixel.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise Unreadable(
            f"a colour image ({pixel.photometric or 'no photometric interpretation'}, {pixel.samples} "
            "samples) "
            "holds no measured values; give the grey original"
        )
    if pixel.place is None or not pixel.place.is_integer:
        raise Unreadable("pixels are missing or floating-point maps; give the original images")
    if pixel.has_lookup_table:
        raise Unreadable(
            "values go through a modality lookup table, which is not supported; export linear values"
        )
    _check_bits(pixel)
    if min(pixel.rows, pixel.columns) < 1 or pixel.frame_pixels > MOST_FRAME_PIXELS:
        raise Unreadable(f"an image of {pixel.rows} x {pixel.columns} pixels cannot be read; it is damaged")
    if pixel.syntax in NATIVE:
        _check_native_size(pixel)
    elif pixel.syntax not in COMPRESSED or pixel.place.length is not None:
        raise Unreadable(
            f"the transfer syntax {clean(pixel.syntax)!r} cannot be read; export the series uncompressed"
        )


def read_values(frames: Sequence[Frame], modality: str) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Real values (frames, rows, columns) in the order given, and what was assumed.

    Raises Unreadable for damaged pixels, ResourceExhausted where memory is short.
    """
    pixel = _pixel(frames[0])
    shape = (len(frames), pixel.rows, pixel.columns)
    _check_total(frames)
    try:
        values = np.empty(shape, dtype=np.float32)
        overfull = _fill(values, frames, modality)
    except MemoryError as error:
        raise ResourceExhausted(
            f"no memory for an image of {shape} voxels; free some, or use a larger machine"
        ) from error
    if overfull and len({_pixel(frame).bits_stored for frame in frames}) > 1:
        raise Unreadable(
            "the slices tell different BitsStored, and some values need more bits than are told; a header "
            "is damaged, export the series again"
        )
    return values, (_OVERFULL,) if overfull else ()


def inverts(pixel: PixelFormat, modality: str) -> bool:
    """Whether stored values are turned over so that brighter means denser."""
    return modality not in QUANTITATIVE and (pixel.photometric == "MONOCHROME1" or pixel.is_shape_inverse)


def stored_values(raw: NDArray[Any], pixel: PixelFormat) -> NDArray[Any]:
    """Pixel cells (any integer type of BitsAllocated) as the numbers stored in them.

    Bits above HighBit and below the stored ones are dropped, the sign is
    extended from HighBit.
    """
    cells = raw.view(f"{raw.dtype.byteorder}{'i' if pixel.signed else 'u'}{pixel.bits_allocated // 8}")
    if pixel.bits_stored == pixel.bits_allocated:
        return cells
    above = pixel.bits_allocated - 1 - pixel.high_bit
    return np.asarray((cells << above) >> (pixel.bits_allocated - pixel.bits_stored))


def _pixel(frame: Frame) -> PixelFormat:
    assert frame.header.pixel is not None, "a frame without pixels"
    return frame.header.pixel


def _check_bits(pixel: PixelFormat) -> None:
    fits = pixel.bits_allocated in (8, 16, 32) and 1 <= pixel.bits_stored <= pixel.bits_allocated
    if not fits or not pixel.bits_stored - 1 <= pixel.high_bit < pixel.bits_allocated:
        raise Unreadable(
            f"{pixel.bits_stored} bits up to bit {pixel.high_bit} in cells of {pixel.bits_allocated} "
            "cannot be read; "
            "export the series with 8, 16 or 32 bits"
        )


def _check_native_size(pixel: PixelFormat) -> None:
    place = pixel.place
    assert place is not None, "checked before"
    if place.length is None:
        raise Unreadable("compressed pixels under an uncompressed transfer syntax; export the series again")
    if pixel.bits_allocated == 8 and not place.little_endian:
        raise Unreadable(
            "8-bit pixels in big-endian order are ambiguous; export the series in little-endian order"
        )
    row_bytes = pixel.columns * pixel.bits_allocated // 8
    declared = row_bytes * pixel.rows * pixel.frames
    if not declared <= place.length < declared + max(row_bytes, 2):
        raise Unreadable(
            f"{place.length} bytes of pixels where {pixel.frames} x {pixel.rows} x {pixel.columns} need "
            f"{declared}; "
            "the file is damaged, export it again"
        )


def _check_total(frames: Sequence[Frame]) -> None:
    pixels = [_pixel(frame) for frame in frames]
    if all(pixel.syntax in NATIVE and pixel.syntax != DeflatedExplicitVRLittleEndian for pixel in pixels):
        return
    total = sum(pixel.frame_pixels for pixel in pixels)
    if total > MOST_VOXELS:
        raise Unreadable(f"{total} compressed voxels are more than the {MOST_VOXELS} that can be read")


def _fill(values: NDArray[np.float32], frames: Sequence[Frame], modality: str) -> bool:
    """Fills every slice; returns whether some held bits above BitsStored."""
    native = [n for n, frame in enumerate(frames) if _pixel(frame).syntax in NATIVE]
    packed = [n for n, frame in enumerate(frames) if _pixel(frame).syntax not in NATIVE]
    overfull = False
    with Opener() as opener:
        for n, raw in _native_cells(opener, frames, native):
            overfull |= _convert(raw, frames[n], modality, values[n])
        files = _by_file(frames, packed)

        def take(file: int, cells: Cells) -> None:
            for n in files[file][1]:
                _convert(cells[frames[n].number], frames[n], modality, values[n], exact=True)

        jobs = (_job(opener, frames[numbers[0]]) for _, numbers in files)
        if files:
            decode(jobs, take, pixels=sum(_pixel(frames[n]).frame_pixels for n in packed))
    return overfull


def _native_cells(opener: Opener, frames: Sequence[Frame], wanted: list[int]) -> Iterator[tuple[int, Cells]]:
    """Yields (index, cells) of each wanted frame; a file stays open over its own frames."""
    for _, numbers in _by_file(frames, wanted):
        pixel = _pixel(frames[numbers[0]])
        with opener.open(frames[numbers[0]].header.source) as file:
            content = inflated(file) if pixel.syntax == DeflatedExplicitVRLittleEndian else file
            for n in numbers:
                yield n, _cells(content, pixel, frames[n].number)


def _by_file(frames: Sequence[Frame], wanted: list[int]) -> list[tuple[int, list[int]]]:
    found: dict[int, list[int]] = {}
    for n in wanted:
        found.setdefault(id(frames[n].header), []).append(n)
    return list(found.items())


def _cells(file: BinaryIO, pixel: PixelFormat, number: int) -> NDArray[Any]:
    assert pixel.place is not None, "checked before"
    cell_bytes = pixel.bits_allocated // 8
    length = pixel.frame_pixels * cell_bytes
    file.seek(pixel.place.offset + number * length)
    data = file.read(length)
    if len(data) < length:
        raise Unreadable(
            f"the pixels end after {len(data)} of {length} bytes; the file is cut short, copy it again"
        )
    order = "<" if pixel.place.little_endian else ">"
    return np.frombuffer(data, f"{order}u{cell_bytes}").reshape(pixel.rows, pixel.columns)


def _job(opener: Opener, frame: Frame) -> Job:
    pixel = _pixel(frame)
    assert pixel.place is not None, "checked before"
    with opener.open(frame.header.source) as file:
        file.seek(pixel.place.offset)
        data = _items(file.read())
    declared = pixel.frame_pixels * pixel.frames * pixel.bits_allocated // 8
    if declared > max(SMALL_IMAGE_BYTES, MOST_COMPRESSION * len(data)):
        raise Unreadable(
            f"{len(data)} compressed bytes declare {declared >> 20} MiB of pixels; no image does, do not "
            "trust this file"
        )
    return Job(
        {
            "syntax": pixel.syntax,
            "rows": pixel.rows,
            "columns": pixel.columns,
            "number_of_frames": pixel.frames,
            "samples_per_pixel": 1,
            "photometric_interpretation": pixel.photometric,
            "bits_allocated": pixel.bits_allocated,
            "bits_stored": pixel.bits_stored,
            "pixel_representation": int(pixel.signed),
            "pixel_keyword": "PixelData",
        },
        data,
    )


def _items(data: bytes) -> bytes:
    """The items of encapsulated pixel data up to their delimiter; what follows is no pixel."""
    at = 0
    while at + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHL", data, at)
        if (group, element) != (0xFFFE, 0xE000):
            return data[:at]
        at += 8 + length
    if at > len(data):
        raise Unreadable("the compressed pixels end too early; the file is cut short, copy it again")
    return data


def _convert(
    raw: NDArray[Any], frame: Frame, modality: str, out: NDArray[np.float32], exact: bool = False
) -> bool:
    """Writes the real values of one frame; returns whether bits above BitsStored were set."""
    pixel = _pixel(frame)
    stored = stored_values(raw, pixel)
    overfull = pixel.bits_stored < pixel.bits_allocated and _has_more_bits(raw, stored, pixel)
    if overfull and exact:
        raise Unreadable(
            f"decoded values need more than the {pixel.bits_stored} bits declared; export the series "
            "uncompressed"
        )
    if inverts(pixel, modality):
        # Bitwise: the highest stored value becomes the lowest and the reverse.
        stored = ~stored if pixel.signed else stored ^ stored.dtype.type((1 << pixel.bits_stored) - 1)
    if pixel.bits_allocated == 32:
        out[...] = stored * np.float64(frame.slope) + frame.intercept
        return overfull
    out[...] = stored
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused as a whole
        if frame.slope != 1.0:
            out *= np.float32(frame.slope)
        if frame.intercept != 0.0:
            out += np.float32(frame.intercept)
    return overfull


def _has_more_bits(raw: NDArray[Any], stored: NDArray[Any], pixel: PixelFormat) -> bool:
    if pixel.high_bit != pixel.bits_stored - 1:
        return False
    if not pixel.signed:
        return bool(raw.max() >> pixel.bits_stored)
    mask = (1 << pixel.bits_stored) - 1
    cells = raw.view(stored.dtype)
    # Both ways of writing a negative number are met: with and without its
    # sign carried into the unused bits.
    return bool(((cells != stored) & (cells != (stored & mask))).any())
