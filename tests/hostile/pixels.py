"""Compressed pixels: bombs, codestreams that contradict their header, and damage that codecs crash on."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import numpy as np
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.dicom_maker import classic, enhanced, grid_of, pixels_of, save
from tests.hostile.case import EITHER, VOLUME, Case

# JPEG 2000 encoders refuse smaller pictures.
LARGER = grid_of("oblique", shape=(3, 48, 64))
SHIFT = pixels_of(LARGER, floor=10)[1]

HUGE_JPEG_LS = b"\xff\xd8\xff\xf7\x00\x0b\x10\xff\xff\xff\xff\x01\x01\x11\x00" + bytes(40)
HUGE_JPEG = b"\xff\xd8\xff\xc3\x00\x0b\x10\xff\xff\xff\xff\x01\x01\x11\x00" + bytes(40)
NO_TILES = b"\xff\x4f\xff\x51" + bytes(60)
# One segment that repeats a byte 128 times with every two bytes.
RLE_OF_ZEROS = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 4000


@cache
def compressed(syntax: str, make=classic) -> tuple[bytes, ...]:
    """The codestreams of all slices, packed by pydicom's encoders."""
    made = make(LARGER)
    streams = []
    for ds in made if isinstance(made, list) else [made]:
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(syntax, generate_instance_uid=False)
        streams += generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1)))
    return tuple(streams)


def packed(change=None, syntax=JPEG2000Lossless, **header):
    """A maker of a compressed series; `change` is done to the last slice's codestream."""

    def make(folder: Path) -> Path:
        slices = classic(LARGER, **header)
        streams = list(compressed(str(syntax)))
        streams[-1] = change(streams[-1]) if change else streams[-1]
        for ds, stream in zip(slices, streams, strict=True):
            put(ds, [stream])
        return save(slices, folder, syntax)

    return make


def put(ds, streams) -> None:
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True


def foreign(stream: bytes, syntax, **header):
    """A maker of a series whose slices all hold this codestream."""

    def make(folder: Path) -> Path:
        slices = classic(LARGER, **header)
        for ds in slices:
            put(ds, [stream])
        return save(slices, folder, syntax)

    return make


def multi_frame(*, keep: int, twice: bool = False):
    """A maker of a compressed enhanced file with fewer or more codestreams than frames."""

    def make(folder: Path) -> Path:
        ds = enhanced(LARGER)
        streams = list(compressed(str(RLELossless), enhanced))
        put(ds, (streams + streams[:1] if twice else streams)[:keep])
        return save(ds, folder, RLELossless)

    return make


def shuffled_frames(folder: Path) -> Path:
    ds = enhanced(LARGER, order=(2, 0, 1))
    streams = compressed(str(RLELossless), enhanced)
    put(ds, [streams[n] for n in (2, 0, 1)])
    return save(ds, folder, RLELossless)


def told_uncompressed(folder: Path) -> Path:
    slices = classic(LARGER)
    for ds, stream in zip(slices, compressed(str(JPEG2000Lossless)), strict=True):
        ds.PixelData = stream + b"\0" * (len(stream) % 2)
    return save(slices, folder)


def noise(seed: int):
    """A handful of bytes of the codestream overwritten, behind its header."""

    def change(stream: bytes) -> bytes:
        draw, data = np.random.default_rng(seed), bytearray(stream)
        for at in draw.integers(100, len(data), 6):
            data[at] = int(draw.integers(256))
        return bytes(data)

    return change


def with_size(width: int, height: int):
    """Another picture size in a JPEG 2000 header."""
    return lambda stream: (
        stream[: stream.index(b"\xff\x51") + 6]
        + struct.pack(">2L", width, height)
        + stream[stream.index(b"\xff\x51") + 14 :]
    )


def case(make, outcome="unreadable", words="", shift=SHIFT):
    return Case(make, outcome, words, LARGER, shift)


BIG = {"Rows": 8000, "Columns": 8000}
CASES = {
    "legal: JPEG 2000": case(packed(), VOLUME),
    "legal: RLE": case(packed(syntax=RLELossless), VOLUME),
    "legal: RLE, enhanced and shuffled": case(shuffled_frames, VOLUME),
    "JPEG 2000 cut short": case(packed(lambda stream: stream[: len(stream) // 2]), EITHER),
    "JPEG 2000 without its end": case(packed(lambda stream: stream[:-2]), EITHER),
    "JPEG 2000 of another size": case(packed(with_size(48, 64)), words="codestream"),
    "JPEG 2000 bomb": case(packed(with_size(60_000, 60_000)), words="codestream"),
    "JPEG 2000 bomb that its header tells too": case(packed(with_size(8000, 8000), **BIG)),
    "JPEG 2000 without tiles": case(foreign(NO_TILES, JPEG2000Lossless)),
    "JPEG-LS bomb": case(foreign(HUGE_JPEG_LS, JPEGLSLossless)),
    "JPEG lossless bomb": case(foreign(HUGE_JPEG, JPEGLosslessSV1)),
    "a text as JPEG": case(foreign(b"no picture at all", JPEGBaseline8Bit)),
    "two bytes as JPEG": case(foreign(bytes(2), JPEGBaseline8Bit)),
    "a JPEG 2000 stream told as RLE": case(foreign(compressed(str(JPEG2000Lossless))[0], RLELossless)),
    "an RLE stream told as JPEG 2000": case(foreign(compressed(str(RLELossless))[0], JPEG2000Lossless)),
    "RLE without segments": case(foreign(bytes(64), RLELossless)),
    "RLE of a million segments": case(foreign(struct.pack("<L", 10**6) + bytes(60), RLELossless)),
    "RLE whose segments begin beyond the end": case(
        foreign(struct.pack("<16L", 2, 64, 10**9, *[0] * 13), RLELossless)
    ),
    "RLE bomb": case(foreign(RLE_OF_ZEROS, RLELossless, **BIG)),
    "RLE cut short": case(packed(lambda stream: stream[:200], RLELossless)),
    "compressed pixels told as plain ones": case(told_uncompressed, words="bytes of pixels"),
    "a video": case(foreign(NO_TILES, "1.2.840.10008.1.2.4.102"), words="transfer syntax"),
    "a codestream too few": case(multi_frame(keep=2)),
    "a codestream too many": case(multi_frame(keep=4, twice=True)),
    **{f"JPEG 2000 with noise, draw {n}": case(packed(noise(n)), EITHER, shift=None) for n in range(3)},
    **{
        f"RLE with noise, draw {n}": case(packed(noise(n), RLELossless), EITHER, shift=None) for n in range(2)
    },
}
