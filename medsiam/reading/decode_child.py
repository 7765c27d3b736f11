"""A program of its own: decodes compressed frames from stdin to stdout.

It runs apart because image codecs crash, hang and eat memory on hostile files;
then this process dies, within its limits, and the one that asked lives on.
It imports nothing of medsiam, so that it starts fast and small.

In and out: records of an 8-byte length, a JSON header of that length, and the
bytes that the header announces.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Started by its path, this folder would come first and hide other packages.
    sys.path.pop(0)

import json
import math
import struct
from importlib import import_module
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
_RLE = "1.2.840.10008.1.2.5"
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"


class Refused(Exception):
    """The frames contradict the header, or cannot be decoded."""


def decode(job: dict[str, Any], data: bytes) -> NDArray[Any]:
    """All frames (n, rows, columns) of one pixel data element, as stored integers.

    Raises Refused where count or size of the frames are not those declared.
    """
    frame = only_fragment(data) if job["number_of_frames"] == 1 else None
    if frame is not None and job["syntax"] != _RLE:
        check_size(frame, job["rows"], job["columns"])
        cells = decode_plainly(job, frame)
        if cells is not None:
            return cells.reshape(1, job["rows"], job["columns"])
    return decode_by_pydicom(job, data)


def decode_by_pydicom(job: dict[str, Any], data: bytes) -> NDArray[Any]:
    """As `decode`, for every syntax, with pydicom's corrections of bits and signs."""
    from pydicom.encaps import generate_frames
    from pydicom.pixels import get_decoder

    options = {name: job[name] for name in _OPTIONS}
    frames = list(generate_frames(data, number_of_frames=job["number_of_frames"]))
    if len(frames) != job["number_of_frames"]:
        raise Refused(f"{len(frames)} frames are there, {job['number_of_frames']} are declared")
    if job["syntax"] != _RLE:
        for frame in frames:
            check_size(frame, job["rows"], job["columns"])
    array, _ = get_decoder(job["syntax"]).as_array(data, **options, raw=True)
    return array.reshape(-1, job["rows"], job["columns"])


_OPTIONS = (
    "rows", "columns", "number_of_frames", "samples_per_pixel", "photometric_interpretation",
    "bits_allocated", "bits_stored", "pixel_representation", "pixel_keyword",
)  # fmt: skip


def decode_plainly(job: dict[str, Any], frame: bytes) -> NDArray[Any] | None:
    """The stored integers of one lossless frame by its codec alone, None where that may need correcting.

    The codecs are those that pydicom asks; without it a child starts in half the time.
    """
    found = codestream(frame)
    whole = job["bits_allocated"] == 8 * math.ceil(job["bits_stored"] / 8)
    if found is None or found.bits != job["bits_stored"] or not whole or job["bits_allocated"] > 16:
        return None
    signed = job["pixel_representation"]
    if job["syntax"] == _JPEG_2000_LOSSLESS and found.is_signed == bool(signed) and found.start == 0:
        codec = import_module("openjpeg")
    elif job["syntax"] in _JPEG_LOSSLESS and not signed:
        codec = import_module("libjpeg")
    else:
        return None
    cells = codec.decode_pixel_data(frame, version=2)
    return np.frombuffer(cells, f"<{'ui'[signed]}{job['bits_allocated'] // 8}")


def only_fragment(data: bytes) -> bytes | None:
    """The fragment of pixel data that have an offset table and one fragment, None of all others."""
    at = 0
    found: list[bytes] = []
    while at + 8 <= len(data) and len(found) < 3:
        tag, length = data[at : at + 4], struct.unpack_from("<L", data, at + 4)[0]
        if tag != b"\xfe\xff\x00\xe0" or at + 8 + length > len(data):
            return None
        found.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return found[1] if len(found) == 2 and at == len(data) else None


def check_size(frame: bytes, rows: int, columns: int) -> None:
    """Raises Refused unless a codestream is of one component and of the declared size."""
    found = codestream(frame)
    if found is None:
        raise Refused("a frame is no JPEG codestream")
    if (found.rows, found.columns, found.components) != (rows, columns, 1):
        raise Refused(
            f"a codestream of {found.rows} x {found.columns} x {found.components} where "
            f"{rows} x {columns} x 1 is declared"
        )


class Codestream(NamedTuple):
    """What a JPEG, JPEG-LS or JPEG 2000 codestream declares; start is its first byte in the frame."""

    rows: int
    columns: int
    components: int
    bits: int
    is_signed: bool
    start: int


def codestream(frame: bytes) -> Codestream | None:
    """The declarations of a frame's codestream, None where it holds none."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0 and len(frame) >= start + 43:
        right, bottom, left, top = struct.unpack(">4L", frame[start + 8 : start + 24])
        components, depth = struct.unpack(">HB", frame[start + 40 : start + 43])
        signed, bits = depth >> 7, (depth & 0x7F) + 1
        return Codestream(bottom - top, right - left, components, bits, bool(signed), start)
    start = frame.find(b"\xff\xd8", 0, 64)
    at = start + 2
    while 2 <= at < len(frame) - 10:
        if frame[at] != 0xFF:
            return None
        marker, length = frame[at + 1], struct.unpack(">H", frame[at + 2 : at + 4])[0]
        if marker in _SOF:
            bits, rows, columns, components = struct.unpack(">BHHB", frame[at + 4 : at + 10])
            return Codestream(rows, columns, components, bits, False, start)
        at += 1 if marker == 0xFF else 2 + length
    return None


def limit_memory(most_bytes: int) -> None:
    """Makes every allocation beyond so many bytes of address space fail, where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answer(file: BinaryIO, header: dict[str, Any], data: bytes | memoryview = b"") -> None:
    """Writes one record."""
    head = json.dumps(header).encode()
    file.write(struct.pack("<Q", len(head)) + head)
    file.write(data)
    file.flush()


def main() -> None:
    """Answers every job of stdin, in order; one that fails is answered with its reason."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    limit_memory(int(sys.argv[1]))
    while length := source.read(8):
        job = json.loads(source.read(struct.unpack("<Q", length)[0]))
        data = source.read(job["bytes"])
        try:
            array = np.ascontiguousarray(decode(job, data))
        except Refused as error:
            answer(sink, {"error": str(error)})
        except Exception as error:  # whatever a codec raises, the job is refused and the next one tried
            answer(sink, {"error": f"the codec failed ({type(error).__name__})"})
        else:
            answer(sink, {"dtype": array.dtype.str, "shape": array.shape}, array.data.cast("B"))


if __name__ == "__main__":
    main()
