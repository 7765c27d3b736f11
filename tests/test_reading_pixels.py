"""What voxels hold: bits, signs, rescale, polarity, compression, and hostile pixel data."""

import struct
import zlib

import numpy as np
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medsiam.errors import InputRefused, Unreadable
from medsiam.reading import decode_child, guard, read_volume
from medsiam.reading.pixels import stored_values
from tests.dicom_maker import (
    KEY,
    changed,
    classic,
    enhanced,
    grid_of,
    identity,
    item,
    jpeg_lossless,
    pixels_of,
    put_pixels,
    radiograph,
    save,
    save_file,
)

GRID = grid_of("oblique", shape=(4, 8, 10))
SIGNED = pixels_of(GRID)[0] - int(pixels_of(GRID)[0].mean())


def read(folder):
    return read_volume(folder, key=KEY)


def cells(low, high):
    """Stored integers of the whole range from low to high, different in each voxel's neighbourhood."""
    return np.linspace(low, high, GRID.shape[0] * 80).astype(np.int64).reshape(GRID.shape)


@pytest.mark.parametrize(
    ("bits", "low", "high"),
    [
        ({"allocated": 16}, 0, 65535),
        ({"allocated": 16, "signed": True}, -32768, 32767),
        ({"allocated": 16, "stored": 12}, 0, 4095),
        ({"allocated": 16, "stored": 12, "signed": True}, -2048, 2047),
        ({"allocated": 16, "stored": 12, "high_bit": 15}, 0, 4095),
        ({"allocated": 16, "stored": 12, "high_bit": 13, "signed": True}, -2048, 2047),
        ({"allocated": 8}, 0, 255),
        ({"allocated": 8, "stored": 7, "signed": True}, -64, 63),
        ({"allocated": 32, "stored": 24}, 0, 2**24 - 1),
    ],
)
def test_every_way_of_storing_bits_gives_the_same_numbers(tmp_path, bits, low, high):
    """12 in 16, high or low, signed or not."""
    wanted = cells(low, high)
    assert np.array_equal(read(save(classic(GRID, cells=wanted, bits=bits), tmp_path)).array, wanted)


def test_negative_numbers_carried_into_the_unused_bits_are_read_too(tmp_path):
    """Both ways of writing -5 in 12 of 16 bits are met."""
    slices = classic(GRID, cells=SIGNED, bits={"stored": 12, "signed": True})
    wanted = read(save(slices, tmp_path / "without")).array
    for ds, plane in zip(slices, SIGNED, strict=True):
        ds.PixelData = plane.astype("<i2").tobytes()
    carried = read(save(slices, tmp_path / "with"))
    assert np.array_equal(carried.array, wanted)
    assert not any("BitsStored" in note for note in carried.acquisition.assumptions)


def test_overlay_bits_above_the_stored_ones_are_dropped_and_told(tmp_path):
    """Old scanners kept drawings there."""
    slices = classic(GRID, cells=cells(0, 4095), bits={"stored": 12})
    drawn = np.frombuffer(slices[1].PixelData, "<u2") | 0x8000
    slices[1].PixelData = drawn.tobytes()
    volume = read(save(slices, tmp_path))
    assert np.array_equal(volume.array, cells(0, 4095))
    assert any("BitsStored" in note for note in volume.acquisition.assumptions)


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2.5, 10), (-1, 0), (0.001, 0.25), (-0.5, -3)])
def test_rescaled_values_are_the_real_ones(tmp_path, slope, intercept):
    """Negative slopes and fractions included."""
    volume = read(
        save(
            classic(GRID, "CT", cells=SIGNED, bits={"signed": True}, slope=slope, intercept=intercept),
            tmp_path,
        )
    )
    assert volume.array == pytest.approx(SIGNED * slope + intercept, rel=1e-6, abs=1e-4)


def test_each_slice_keeps_its_own_rescale(tmp_path):
    """Philips and PET scale every slice by itself."""
    slices = classic(GRID, cells=np.abs(SIGNED))
    for k, ds in enumerate(slices):
        ds.RescaleSlope, ds.RescaleIntercept = k + 1, -k
    wanted = np.abs(SIGNED) * np.arange(1, 5)[:, None, None] - np.arange(4)[:, None, None]
    assert np.array_equal(read(save(slices, tmp_path)).array, wanted)


def test_each_frame_keeps_its_own_rescale(tmp_path):
    """In enhanced files the rescale stands with the frame."""

    def scaled(frame, n):
        frame.PixelValueTransformationSequence[0].RescaleSlope = n + 1

    plain = read(save(enhanced(GRID), tmp_path / "plain")).array
    volume = read(save(enhanced(GRID, order=(2, 0, 1, 3), extra=scaled), tmp_path / "scaled"))
    assert np.array_equal(volume.array, plain * np.array([2, 3, 1, 4])[:, None, None])


def test_a_radiograph_meant_to_be_shown_inverted_is_turned_over(tmp_path):
    """Brighter means denser, whatever the vendor's polarity."""
    plain = radiograph()
    upright = read(save(plain, tmp_path / "mono2")).array
    negative = radiograph(cells=4095 - np.frombuffer(plain.PixelData, "<u2").reshape(40, 30).astype(int))
    negative.PhotometricInterpretation = "MONOCHROME1"
    volume = read(save(negative, tmp_path / "mono1"))
    assert np.array_equal(volume.array, upright)
    assert any("brighter = denser" in note for note in volume.acquisition.assumptions)
    shaped = changed(negative, PhotometricInterpretation="MONOCHROME2", PresentationLUTShape="INVERSE")
    assert np.array_equal(read(save(shaped, tmp_path / "shape")).array, upright)


def test_hounsfield_units_are_not_turned_over(tmp_path):
    """A CT shown inverted still measures the same."""
    plain = read(save(classic(GRID, "CT", intercept=-1024, slope=1), tmp_path / "plain"))
    shown = classic(GRID, "CT", intercept=-1024, slope=1, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(save(shown, tmp_path / "inverted")).array, plain.array)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_every_uncompressed_syntax_gives_the_same_volume(tmp_path, syntax):
    """Byte order and deflation are not the image's."""
    slices = classic(GRID, cells=SIGNED, bits={"signed": True})
    wanted = read(save(slices, tmp_path / "explicit"))
    if syntax == ExplicitVRBigEndian:
        for ds in slices:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    found = read(save([again(ds) for ds in slices], tmp_path / "other", syntax))
    assert np.array_equal(found.array, wanted.array)
    assert found.acquisition.sha256 == wanted.acquisition.sha256


def again(ds):
    """A copy that may be written in another syntax."""
    copy = type(ds)()
    for element in ds:
        if element.tag.group != 2:
            copy.add(element)
    return copy


def test_files_without_preamble_are_read(tmp_path):
    """Old archives keep the bare data set."""
    folder = save(classic(GRID), tmp_path / "with")
    wanted = read(folder)
    bare = tmp_path / "bare"
    bare.mkdir()
    for n, ds in enumerate(classic(GRID)):
        path = save_file(ds, bare / f"{n}", ImplicitVRLittleEndian)
        data = path.read_bytes()
        path.write_bytes(data[data.index(b"\x08\x00\x08\x00", 132) :])
    assert np.array_equal(read(bare).array, wanted.array)


def compressed(slices, syntax):
    """The slices compressed by pydicom's encoders."""
    for ds in slices:
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(syntax, generate_instance_uid=False)
    return slices


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_lossless_compression_changes_nothing(tmp_path, syntax, signed):
    """Neither values nor the digest."""
    numbers = pixels_of(LARGER)[0] - (2500 if signed else 0)
    make = {"cells": numbers if signed else np.abs(numbers), "bits": {"signed": signed, "stored": 14}}
    wanted = read(save(classic(LARGER, **make), tmp_path / "plain"))
    found = read(save(compressed(classic(LARGER, **make), syntax), tmp_path / "packed", syntax))
    assert np.array_equal(found.array, wanted.array)
    assert found.acquisition.sha256 == wanted.acquisition.sha256


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (16, True), (16, False)])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1])
def test_a_codec_asked_directly_gives_what_pydicom_gives(syntax, bits, signed):
    """The way without pydicom is there for its speed alone; what it leaves out must need no correcting."""
    stored = np.random.default_rng(bits).integers(0, 1 << bits, (64, 48)) - signed * (1 << (bits - 1))
    ds = put_pixels(identity(), stored, 8 * -(-bits // 8), bits, signed=signed)
    if syntax == JPEG2000Lossless:
        compressed([ds], syntax)
        data = ds.PixelData
    else:
        data = encapsulate([jpeg_lossless(stored & ((1 << bits) - 1), bits)])
    job = {name: ds[name].value for name in _ASKED}
    job = {key: job[name] for name, key in _ASKED.items()} | {
        "syntax": str(syntax), "number_of_frames": 1, "pixel_keyword": "PixelData",
    }  # fmt: skip
    wanted = decode_child.decode_by_pydicom(job, data)
    plainly = decode_child.decode_plainly(job, decode_child.only_fragment(data))
    assert (plainly is None) == (syntax == JPEGLosslessSV1 and signed)
    assert np.array_equal(decode_child.decode(job, data), wanted)
    assert plainly is None or plainly.dtype == wanted.dtype


_ASKED = {
    "Rows": "rows", "Columns": "columns", "SamplesPerPixel": "samples_per_pixel", "BitsStored": "bits_stored",
    "BitsAllocated": "bits_allocated", "PixelRepresentation": "pixel_representation",
    "PhotometricInterpretation": "photometric_interpretation",
}  # fmt: skip


# JPEG 2000 encoders refuse smaller pictures.
LARGER = grid_of("oblique", shape=(4, 64, 48))


def test_shuffled_frames_of_a_compressed_enhanced_file_find_their_place(tmp_path):
    """Order in the file and order in the patient are two things here too."""
    wanted = read(save(enhanced(GRID), tmp_path / "plain"))
    packed = compressed([enhanced(GRID, order=(3, 1, 0, 2))], RLELossless)
    assert np.array_equal(read(save(packed, tmp_path / "packed", RLELossless)).array, wanted.array)


HOSTILE = {
    "colour": ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
    "slope of zero": ({"RescaleSlope": 0}, "RescaleSlope is 0"),
    "more rows than pixels": ({"Rows": 65535, "Columns": 65535}, "cannot be read|need"),
    "fewer rows than pixels": ({"Rows": 4}, "bytes of pixels"),
    "no columns": ({"Columns": 0}, "cannot be read"),
    "bits beyond the cell": ({"HighBit": 20}, "bits"),
    "more bits than the cell": ({"BitsStored": 20}, "bits"),
    "no bits": ({"BitsAllocated": 0}, "bits"),
    "half cells": ({"BitsAllocated": 12}, "bits"),
    "a strange sign": ({"PixelRepresentation": 7}, "PixelRepresentation"),
    "a million frames": ({"NumberOfFrames": 1_000_000}, "frames"),
    "frames in a classic file": ({"NumberOfFrames": 2}, "bytes of pixels|classic"),
    "no pixels": ({"PixelData": None}, "no pixels"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_pixels_that_contradict_their_header_are_refused(tmp_path, name):
    """Before any memory is asked for."""
    changes, reason = HOSTILE[name]
    with pytest.raises(InputRefused, match=reason):
        read(save(classic(GRID, **changes), tmp_path))


def test_a_modality_lookup_table_is_refused(tmp_path):
    """Values behind a table are not the stored ones."""
    slices = classic(GRID)
    for ds in slices:
        ds.ModalityLUTSequence = item(ModalityLUTType="US")
    with pytest.raises(Unreadable, match="lookup table"):
        read(save(slices, tmp_path))


def test_an_empty_image_is_refused(tmp_path):
    """All voxels alike: nothing was measured, or nothing arrived."""
    with pytest.raises(Unreadable, match="one value"):
        read(save(classic(GRID, cells=np.full(GRID.shape, 7)), tmp_path))


def test_a_file_cut_short_is_refused(tmp_path):
    """Half a slice is no slice."""
    folder = save(classic(GRID), tmp_path)
    path = sorted(folder.iterdir())[1]
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(Unreadable, match="cut short"):
        read(folder)


def bomb(tmp_path, data, syntax, **changes):
    slices = classic(GRID)
    for ds in slices:
        changed(ds, **changes)
        ds.PixelData = encapsulate([data])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return save(slices, tmp_path, syntax)


@pytest.mark.parametrize(
    ("data", "syntax", "changes"),
    [
        (b"\xff\x4f\xff\x51" + bytes(60), JPEG2000Lossless, {}),
        (b"\xff\xd8\xff\xf7\x00\x0b\x10\xff\xff\xff\xff\x01\x01\x11\x00" + bytes(40), JPEGLSLossless, {}),
        (b"no picture at all", JPEGBaseline8Bit, {}),
        (bytes(64), RLELossless, {}),
        (b"\x01" + bytes(63) + b"\x81\x00" * 20, RLELossless, {"Rows": 8000, "Columns": 8000}),
        (b"\xff\x4f\xff\x51" + bytes(60), JPEG2000Lossless, {"Rows": 60000, "Columns": 60000}),
    ],
    ids=["empty JPEG 2000", "huge JPEG-LS", "text", "no RLE segments", "RLE bomb", "huge frame"],
)
def test_compressed_bombs_are_refused(tmp_path, data, syntax, changes):
    """A few bytes that ask for gigabytes, and codestreams of another size than the header's."""
    with pytest.raises(InputRefused):
        read(bomb(tmp_path, data, syntax, **changes))


def test_a_codestream_of_another_size_is_refused(tmp_path):
    """64 x 48 and 48 x 64 have as many pixels, and one decoder gives them out transposed in silence."""
    slices = compressed(classic(LARGER), JPEG2000Lossless)
    for ds in slices:
        ds.Rows, ds.Columns = 48, 64
    with pytest.raises(Unreadable, match="codestream"):
        read(save(slices, tmp_path, JPEG2000Lossless))


def test_a_deflate_bomb_is_refused(tmp_path):
    """A gigabyte of zeros packs into one megabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = b"".join([packer.compress(bytes(2**24)) for _ in range(8)]) + packer.flush()
    path = save_file(classic(GRID)[0], tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    path.write_bytes(data[:start] + zeros)
    with pytest.raises(Unreadable, match="inflates"):
        read(path)


def test_a_header_without_end_is_refused(tmp_path):
    """Zeros read as millions of empty elements, one by one."""
    path = tmp_path / "zeros.dcm"
    path.write_bytes(bytes(128) + b"DICM" + bytes(2**22))
    with pytest.raises(Unreadable, match="no end"):
        read(path)


def test_sequences_nested_without_end_are_refused(tmp_path):
    """Twenty thousand levels crash two of the common readers."""
    path = save_file(classic(GRID)[0], tmp_path / "deep.dcm")
    data = path.read_bytes()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    deeper = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(data[:start] + deeper * 20_000)
    with pytest.raises(Unreadable, match=r"nested|damaged"):
        read(path)


def test_a_codec_that_hangs_or_dies_is_survived(monkeypatch, tmp_path):
    """The child is ended, the parent tells why."""
    job = guard.Job({"rows": 8, "columns": 8, "number_of_frames": 1, "syntax": str(JPEG2000Lossless)}, b"")
    monkeypatch.setattr(guard, "START_SECONDS", 0.01)
    with pytest.raises(Unreadable, match="not decoded within"):
        guard.decode(iter([job]), lambda number, cells: None, pixels=64)
    monkeypatch.setattr(guard, "START_SECONDS", 30.0)
    dying = tmp_path / "dying.py"
    dying.write_text("import os; os.abort()")
    monkeypatch.setattr(guard, "_PROGRAM", dying)
    with pytest.raises(Unreadable, match="broke down"):
        guard.decode(iter([job]), lambda number, cells: None, pixels=64)


def test_many_slow_slices_have_no_more_time_than_one(monkeypatch, tmp_path):
    """Each slice just within its time would else hold the reader for hours; quick ones pass."""
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_DECODER)
    monkeypatch.setattr(guard, "_PROGRAM", slow)
    options = {"rows": 1, "columns": 1, "number_of_frames": 1, "bits_allocated": 8}
    found = []
    guard.decode(iter([guard.Job(options, b"")] * 3), lambda number, cells: found.append(number), pixels=1)
    assert found == [0, 1, 2]
    monkeypatch.setattr(guard, "START_SECONDS", 1.5)
    with pytest.raises(Unreadable, match="not decoded within"):
        guard.decode(iter([guard.Job(options, b"")] * 20), lambda number, cells: None, pixels=1)


# Answers each job after .2 s.
SLOW_DECODER = """
import json, struct, sys, time
while length := sys.stdin.buffer.read(8):
    sys.stdin.buffer.read(struct.unpack("<Q", length)[0])
    time.sleep(0.2)
    head = json.dumps({"dtype": "|u1", "shape": [1, 1, 1]}).encode()
    sys.stdout.buffer.write(struct.pack("<Q", len(head)) + head + b"1")
    sys.stdout.buffer.flush()
"""


def test_of_several_damaged_slices_the_first_is_told():
    """Two children end in any order; the answer must not depend on it."""
    options = {"rows": 1024, "columns": 1024, "number_of_frames": 1, "syntax": str(JPEG2000Lossless)}
    jobs = [guard.Job({**options, "rows": 1024 + n}, encapsulate([codestream(n)])) for n in range(12)]
    with pytest.raises(Unreadable, match=r"where 1024 x"):
        guard.decode(iter(jobs), lambda number, cells: None, pixels=12 * 2**20)


def codestream(number):
    """The beginning of a JPEG 2000 codestream of a size that no header tells."""
    return b"\xff\x4f\xff\x51" + bytes(4) + struct.pack(">4L", 7, 7, 0, 0) + bytes(16) + b"\0\1\7" + bytes(9)


def test_dropping_bits_is_the_same_in_both_byte_orders():
    """The mask works on numbers, not on bytes."""
    pixel = type("Format", (), {"signed": True, "bits_allocated": 16, "bits_stored": 12, "high_bit": 11})
    raw = np.array([0x0FFB, 0x1005, 0x07FF], dtype=np.uint16)
    for order in "<>":
        assert stored_values(raw.astype(f"{order}u2"), pixel).tolist() == [-5, 5, 2047]
