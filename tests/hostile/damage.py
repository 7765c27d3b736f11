"""Damaged bytes: files cut at every stage, bits flipped, lengths that lie, sequences without end."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.dicom_maker import classic, save_file
from tests.hostile.case import EITHER, GRID, VOLUME, Case

PIXELS = b"\xe0\x7f\x10\x00OW\x00\x00"
POSITION = b"\x20\x00\x32\x00DS"
# Behind the preamble, the magic and the group length stands the data set.
META = 132 + 12


def data_set_at(data: bytes) -> int:
    """Where the data set begins: behind the file's own header."""
    return META + int.from_bytes(data[140:144], "little")


STAGES = {
    "to nothing": lambda data: 0,
    "in the preamble": lambda data: 64,
    "behind the preamble": lambda data: 128,
    "behind the magic": lambda data: 132,
    "in the file's own header": lambda data: 170,
    "before the data set": data_set_at,
    "in the first tag": lambda data: data_set_at(data) + 3,
    "in a value": lambda data: data.index(POSITION) + 12,
    "before the pixels": lambda data: data.index(PIXELS),
    "in the pixels' tag": lambda data: data.index(PIXELS) + 5,
    "in the pixels' length": lambda data: data.index(PIXELS) + 10,
    "behind the pixels' length": lambda data: data.index(PIXELS) + 12,
    "after a row": lambda data: data.index(PIXELS) + 12 + 20,
    "in the middle of the pixels": lambda data: data.index(PIXELS) + 12 + 81,
    "by one byte": lambda data: len(data) - 1,
}


def damaged(change, *, which=-1, ending=".dcm", syntax=ExplicitVRLittleEndian):
    """A maker of a series in which `change` was done to the bytes of one slice."""

    def make(folder: Path) -> Path:
        for n, ds in enumerate(classic(GRID)):
            save_file(ds, folder / f"IM{n:04d}{ending}", syntax)
        path = folder / f"IM{which % GRID.shape[0]:04d}{ending}"
        path.write_bytes(change(path.read_bytes()))
        return folder

    return make


def cut(stage):
    return lambda data: data[: STAGES[stage](data)]


def with_value(tag: bytes, value: bytes):
    """Puts other bytes in the place of a value, whatever its length says."""

    def change(data: bytes) -> bytes:
        at = data.index(tag) + 8
        return data[:at] + value + data[at + len(value) :]

    return change


def with_length(tag: bytes, length: int, code: str = "<H"):
    """Another length in an element's own header."""

    def change(data: bytes) -> bytes:
        at = data.index(tag) + (6 if code == "<H" else 8)
        return data[:at] + struct.pack(code, length) + data[at + struct.calcsize(code) :]

    return change


def inserted(more: bytes, before: bytes = PIXELS):
    """More bytes before an element."""
    return lambda data: data[: data.index(before)] + more + data[data.index(before) :]


def flipped(seed: int):
    """One bit of the header turned over."""

    def change(data: bytes) -> bytes:
        draw = np.random.default_rng(seed)
        changed = bytearray(data)
        changed[int(draw.integers(132, data.index(PIXELS) + 12))] ^= 1 << int(draw.integers(8))
        return bytes(changed)

    return change


def deeper(levels: int) -> bytes:
    """Sequences of undefined length, one in the other."""
    return (b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * levels


def private(length: int) -> bytes:
    """A private element of so many zeros."""
    return b"\x29\x00\x10\x10OB\x00\x00" + struct.pack("<L", length) + bytes(length)


def deflate_bomb(data: bytes) -> bytes:
    """The data set replaced by 128 MiB of packed zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = b"".join([packer.compress(bytes(2**24)) for _ in range(8)]) + packer.flush()
    return data[: data_set_at(data)] + zeros


def polyglot(head: bytes):
    """A preamble that is another kind of file too (CVE-2019-11687)."""
    return lambda data: head.ljust(128, b"\0")[:128] + data[128:]


CASES = {
    **{f"last slice cut {stage}": Case(damaged(cut(stage)), "unreadable") for stage in STAGES},
    **{
        f"last slice without ending cut {stage}": Case(damaged(cut(stage), ending=""), "unreadable")
        for stage in STAGES
    },
    **{f"bit flipped in a header, draw {n}": Case(damaged(flipped(n)), EITHER) for n in range(40)},
    "rows with the letters of a text": Case(
        damaged(lambda data: data.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00LO")), EITHER
    ),
    "rows of three bytes": Case(
        damaged(
            lambda data: data.replace(
                b"\x28\x00\x10\x00US\x02\x00\x08", b"\x28\x00\x10\x00US\x03\x00\x08\x00"
            )
        ),
        "unreadable",
    ),
    "position longer than the file": Case(damaged(with_length(POSITION, 65534)), "unreadable"),
    "position of odd length": Case(damaged(with_length(POSITION, 3)), EITHER),
    "pixels longer than the file": Case(damaged(with_length(PIXELS, 2**31, "<L")), "unreadable"),
    "pixels of no bytes": Case(damaged(with_length(PIXELS, 0, "<L")), "unreadable"),
    "pixels of undefined length uncompressed": Case(
        damaged(with_length(PIXELS, 0xFFFFFFFF, "<L")), "unreadable"
    ),
    "an unknown value type": Case(
        damaged(lambda data: data.replace(POSITION, b"\x20\x00\x32\x00??")), "unreadable"
    ),
    "sequences 20,000 deep": Case(damaged(inserted(deeper(20_000))), "unreadable"),
    "sequences 200 deep and never closed": Case(damaged(inserted(deeper(200))), "unreadable"),
    "a sequence longer than the file": Case(
        damaged(inserted(b"\x08\x00\x40\x11SQ\x00\x00\xf0\xff\xff\x7f")), "unreadable"
    ),
    "a million empty elements": Case(
        damaged(inserted(b"\x29\x00\x10\x10LO\x00\x00" * 1_000_000)), "unreadable"
    ),
    "forty megabytes of private bytes": Case(damaged(inserted(private(40 * 2**20))), VOLUME),
    "zeros instead of a header": Case(
        damaged(lambda data: data[: data_set_at(data)] + bytes(2**20)), "unreadable"
    ),
    "nothing but 0xFF": Case(damaged(lambda data: data[:132] + b"\xff" * 4096), "unreadable"),
    "deflate bomb": Case(damaged(deflate_bomb, syntax=DeflatedExplicitVRLittleEndian), "unreadable"),
    "deflated and cut short": Case(
        damaged(lambda data: data[:-9], syntax=DeflatedExplicitVRLittleEndian), "unreadable"
    ),
    "transfer syntax of another encoding": Case(
        damaged(lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")), EITHER
    ),
    "implicit slice among explicit ones, told wrongly": Case(
        damaged(
            lambda data: data.replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.9.2\0"),
            syntax=ImplicitVRLittleEndian,
        ),
        EITHER,
    ),
    "a preamble that is a program for Windows": Case(damaged(polyglot(b"MZ\x90\0\x03")), VOLUME),
    "a preamble that is a program for Linux": Case(damaged(polyglot(b"\x7fELF\x02\x01\x01")), VOLUME),
    "a preamble that is a page": Case(damaged(polyglot(b"<html><script>alert(1)</script>")), VOLUME),
    "a preamble that is a zip": Case(damaged(polyglot(b"PK\x03\x04")), VOLUME),
    "a preamble that is a TIFF": Case(damaged(polyglot(b"II*\0\x08\0\0\0")), VOLUME),
    "bytes behind the pixels": Case(damaged(lambda data: data + b"PK\x05\x06" + bytes(18)), VOLUME),
}
