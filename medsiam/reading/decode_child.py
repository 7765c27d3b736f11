"""A program of its own: decodes compressed frames from stdin to stdout.

It runs apart because image codecs crash, hang and eat memory on hostile files;
then this process dies, within its limits, and the one that asked lives on.
It imports nothing of medsiam, so that it starts fast and small.

In and out: records of an 8-byte length, a JSON header of that length, and the
bytes that the header announces.
"""

from __future__ import annotations

import sys

# Started by its path, this folder would come first and hide other packages.
sys.path.pop(0)

import json
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
_RLE = "1.2.840.10008.1.2.5"


class Refused(Exception):
    """The frames contradict the header, or cannot be decoded."""


def decode(job: dict[str, Any], data: bytes) -> NDArray[Any]:
    """All frames (n, rows, columns) of one pixel data element, as stored integers.

    Raises Refused where count or size of the frames are not those declared.
    """
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


def check_size(frame: bytes, rows: int, columns: int) -> None:
    """Raises Refused unless a codestream is of one component and of the declared size."""
    found = codestream_size(frame)
    if found is None:
        raise Refused("a frame is no JPEG codestream")
    if found != (rows, columns, 1):
        raise Refused(
            f"a codestream of {found[0]} x {found[1]} x {found[2]} where {rows} x {columns} x 1 is declared"
        )


def codestream_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components that a JPEG, JPEG-LS or JPEG 2000 codestream declares."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0 and len(frame) >= start + 42:
        right, bottom, left, top = struct.unpack(">4L", frame[start + 8 : start + 24])
        return bottom - top, right - left, struct.unpack(">H", frame[start + 40 : start + 42])[0]
    at = frame.find(b"\xff\xd8", 0, 64) + 2
    while 2 <= at < len(frame) - 10:
        if frame[at] != 0xFF:
            return None
        marker, length = frame[at + 1], struct.unpack(">H", frame[at + 2 : at + 4])[0]
        if marker in _SOF:
            rows, columns, components = struct.unpack(">HHB", frame[at + 5 : at + 10])
            return rows, columns, components
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
