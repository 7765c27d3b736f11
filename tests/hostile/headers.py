"""Headers that lie: sizes, frames, spacings, places, value types, rescaling, text."""

from __future__ import annotations

from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from tests.dicom_maker import changed, classic, enhanced, save
from tests.hostile.case import EITHER, GRID, VOLUME, Case

EVIL = "</script><img src=x onerror=alert(1)>\"'{{7*7}}"


def series(*, which=slice(None), modality="MR", syntax=ExplicitVRLittleEndian, **changes):
    """A maker of a series some of whose slices say something else; None takes an attribute away."""

    def make(folder: Path) -> Path:
        slices = classic(GRID, modality)
        for ds in slices[which]:
            changed(ds, **changes)
        return save(slices, folder, syntax)

    return make


def written(keyword: str, vr: str, value: bytes, *, which=slice(None)):
    """A maker of a series where a tag holds these very bytes under this value type."""

    def make(folder: Path) -> Path:
        slices = classic(GRID)
        for ds in slices[which]:
            put(ds, keyword, vr, value)
        return save(slices, folder)

    return make


def put(ds: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """Bytes as they are: pydicom itself refuses to write what no scanner writes."""
    tag = Tag(tag_for_keyword(keyword))
    ds[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def frames(change, **options):
    """A maker of an enhanced file after `change` was done to it."""

    def make(folder: Path) -> Path:
        ds = enhanced(GRID, **options)
        change(ds)
        return save(ds, folder)

    return make


def per_frame(ds: Dataset, n: int) -> Dataset:
    return ds.PerFrameFunctionalGroupsSequence[n]


def drop_last_frame(ds: Dataset) -> None:
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]


def give_two_frames_one_place(ds: Dataset) -> None:
    per_frame(ds, 3).PlanePositionSequence = per_frame(ds, 2).PlanePositionSequence


def swap_two_slices(folder: Path) -> Path:
    """Two slices tell each other's place; their slice locations tell the truth."""
    slices = classic(GRID)
    for n, ds in enumerate(slices):
        ds.SliceLocation = 3.0 * n
    one, two = slices[1], slices[3]
    one.ImagePositionPatient, two.ImagePositionPatient = two.ImagePositionPatient, one.ImagePositionPatient
    return save(slices, folder)


def count_in_stack(ds: Dataset) -> None:
    for n, frame in enumerate(ds.PerFrameFunctionalGroupsSequence, 1):
        frame.FrameContentSequence[0].InStackPositionNumber = n


def swap_two_places(ds: Dataset) -> None:
    count_in_stack(ds)
    one, two = per_frame(ds, 1), per_frame(ds, 3)
    one.PlanePositionSequence, two.PlanePositionSequence = (
        two.PlanePositionSequence,
        one.PlanePositionSequence,
    )


# What a tag holds, and the refusal's code: no number at all, or none that can be true.
SPACINGS = {
    "NaN": (b"NaN\\NaN ", "unreadable"),
    "1e400": (b"1e400\\1e400 ", "unreadable"),
    "infinite": (b"inf\\inf ", "unreadable"),
    "with a comma": (b"1,5\\0,75", "unreadable"),
    "of one number": (b"1.5 ", "unreadable"),
    "of three numbers": (b"1.5\\0.75\\3 ", "unreadable"),
    "of letters": (b"narrow\\wide ", "unreadable"),
    "hexadecimal": (b"0x1\\0x1 ", "unreadable"),
    "with a thousands mark": (b"1_5\\0_7 ", "unreadable"),
    "zero": (b"0\\0 ", "geometry"),
    "negative": (b"-1.5\\-0.75", "geometry"),
    "empty": (b"", "geometry"),
    "of a metre": (b"1000\\1000 ", "geometry"),
    "of an atom": (b"1e-9\\1e-9 ", "geometry"),
}
PLACES = {
    "NaN": (b"NaN\\0\\0 ", "unreadable"),
    "1e400": (b"1e400\\0\\0 ", "unreadable"),
    "1e300": (b"1e300\\0\\0 ", "geometry"),
    "of two numbers": (b"1\\2 ", "unreadable"),
    "of four numbers": (b"1\\2\\3\\4 ", "unreadable"),
    "of letters": (b"here\\there\\nowhere ", "unreadable"),
    "empty": (b"", "geometry"),
}
ORIENTATIONS = {
    "NaN": (b"NaN\\0\\0\\0\\1\\0 ", "unreadable"),
    "of five numbers": (b"1\\0\\0\\0\\1 ", "unreadable"),
    "zero": (b"0\\0\\0\\0\\0\\0 ", "geometry"),
    "1e300": (b"1e300\\0\\0\\0\\1e300\\0 ", "geometry"),
    "with one axis twice": (b"1\\0\\0\\1\\0\\0 ", "geometry"),
    "too long": (b"2\\0\\0\\0\\2\\0 ", "geometry"),
    "askew": (b"1\\0\\0\\0.5\\.8\\0", "geometry"),
    "empty": (b"", "geometry"),
}

# Name: (what all slices say, the refusal's code, a word of it).
LIES = {
    "65,535 rows and columns": ({"Rows": 65535, "Columns": 65535}, "unreadable", "cannot be read"),
    "one row too many": ({"Rows": 9}, "unreadable", "bytes of pixels"),
    "one row too few": ({"Rows": 7}, "unreadable", "bytes of pixels"),
    "no rows": ({"Rows": 0}, "unreadable", "cannot be read"),
    "rows missing": ({"Rows": None}, "unreadable", ""),
    "one column too many": ({"Columns": 11}, "unreadable", "bytes of pixels"),
    "two frames in a slice": ({"NumberOfFrames": 2}, "unreadable", ""),
    "no frames": ({"NumberOfFrames": 0}, "unreadable", "frames"),
    "minus one frame": ({"NumberOfFrames": -1}, "unreadable", "frames"),
    "two thousand million frames": ({"NumberOfFrames": 2_000_000_000}, "unreadable", "frames"),
    "three samples": ({"SamplesPerPixel": 3}, "unreadable", "colour"),
    "colour": ({"PhotometricInterpretation": "YBR_FULL"}, "unreadable", "colour"),
    "no photometric interpretation": ({"PhotometricInterpretation": None}, "unreadable", ""),
    "12 bits allocated": ({"BitsAllocated": 12}, "unreadable", "bits"),
    "one bit allocated": ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "unreadable", "bits"),
    "64 bits allocated": ({"BitsAllocated": 64}, "unreadable", "bits"),
    "8 bits allocated": (
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
        "unreadable",
        "bytes of pixels",
    ),
    "a high bit below the stored ones": ({"HighBit": 3}, "unreadable", "bits"),
    "a sign of 7": ({"PixelRepresentation": 7}, "unreadable", "PixelRepresentation"),
    "a slope of zero": ({"RescaleSlope": 0, "RescaleIntercept": 0}, "unreadable", "RescaleSlope"),
    "no pixels": ({"PixelData": None}, "unreadable", "pixels"),
    "no position": ({"ImagePositionPatient": None}, "geometry", "ImagePositionPatient"),
    "no orientation": ({"ImageOrientationPatient": None}, "geometry", "ImageOrientationPatient"),
    "no spacing": ({"PixelSpacing": None}, "geometry", "PixelSpacing"),
    "one position for all": ({"ImagePositionPatient": [1, 2, 3]}, "geometry", "lie where another one lies"),
    "no class": ({"SOPClassUID": "1.2"}, "unreadable", ""),
    "the class of a screenshot": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "unreadable", "screenshot"),
}

# Tags under a value type that is not theirs: what the bytes say is what counts.
WRONG_TYPES = {
    "spacing as unknown bytes": (written("PixelSpacing", "UN", b"1.5\\.75 "), VOLUME, ""),
    "position as unknown bytes": (
        written("ImagePositionPatient", "UN", b"1\\2\\3 "),
        "geometry",
        "another one",
    ),
    "rows as unknown bytes": (written("Rows", "UN", b"\x08\x00"), VOLUME, ""),
    "rows as a text": (written("Rows", "LO", b"8 "), EITHER, ""),
    "rows of two numbers": (written("Rows", "US", b"\x08\x00\x08\x00"), "unreadable", "Rows"),
    "spacing as binary numbers": (
        written("PixelSpacing", "FD", bytes(16)),
        "geometry",
        "PixelSpacing|spacing",
    ),
    "spacing as a sequence": (written("PixelSpacing", "SQ", b""), "geometry", "PixelSpacing"),
    "slope as a text": (written("RescaleSlope", "DS", b"one "), "unreadable", "RescaleSlope"),
    "slope of NaN": (written("RescaleSlope", "DS", b"NaN "), "unreadable", "RescaleSlope"),
    "slope of 1e400": (written("RescaleSlope", "DS", b"1e400 "), "unreadable", "RescaleSlope"),
    "intercept that drowns the values": (
        written("RescaleIntercept", "DS", b"1e9 "),
        "unreadable",
        "differ by",
    ),
    "slope beyond float32": (written("RescaleSlope", "DS", b"1e39"), "unreadable", "finite"),
    "intercept of two numbers": (
        written("RescaleIntercept", "DS", b"1\\2 "),
        "unreadable",
        "RescaleIntercept",
    ),
    "frames as letters": (written("NumberOfFrames", "IS", b"many"), "unreadable", "NumberOfFrames"),
    "frames of a half": (written("NumberOfFrames", "IS", b"1.5 "), "unreadable", "NumberOfFrames"),
    "instance number as letters": (written("InstanceNumber", "IS", b"last"), VOLUME, ""),
    "study date of the 99th": (written("StudyDate", "DA", b"20249999"), VOLUME, ""),
    "character set unknown": (written("SpecificCharacterSet", "CS", b"KLINGON "), VOLUME, ""),
    "name of broken letters": (written("PatientName", "PN", b"\xff\xfe\x1b$B"), VOLUME, ""),
    "name of a megabyte": (written("PatientComments", "UT", b"x" * 2**20), VOLUME, ""),
}

LEAVING = "../../../../etc/cron.d/evil"

CASES = {
    **{f"all slices: {name}": Case(series(**what), code, word) for name, (what, code, word) in LIES.items()},
    **{
        f"spacing {name}": Case(written("PixelSpacing", "DS", value), code)
        for name, (value, code) in SPACINGS.items()
    },
    **{
        f"one position {name}": Case(written("ImagePositionPatient", "DS", value, which=slice(2, 3)), code)
        for name, (value, code) in PLACES.items()
    },
    **{
        f"orientation {name}": Case(written("ImageOrientationPatient", "DS", value), code)
        for name, (value, code) in ORIENTATIONS.items()
    },
    **{name: Case(make, outcome, word) for name, (make, outcome, word) in WRONG_TYPES.items()},
    "places of two slices swapped": Case(swap_two_slices, "geometry", "another order"),
    "places of two frames swapped": Case(frames(swap_two_places), "geometry", "another order"),
    "frames that count their places": Case(frames(count_in_stack), VOLUME),
    "two frames at one place": Case(frames(give_two_frames_one_place), "geometry"),
    "a frame without a description": Case(frames(drop_last_frame), "unreadable", "frames"),
    "a series UID that leads out of the folder": Case(series(SeriesInstanceUID=LEAVING), VOLUME),
    "a study UID that leads out of the folder": Case(series(StudyInstanceUID=LEAVING), VOLUME),
    "an instance UID that leads out of the folder": Case(series(SOPInstanceUID=LEAVING), VOLUME),
    "a patient number that leads out of the folder": Case(series(PatientID=LEAVING), VOLUME),
    "markup in every text": Case(
        series(
            SeriesDescription=EVIL,
            StudyDescription=EVIL,
            ProtocolName=EVIL,
            BodyPartExamined=EVIL[:16],
            Manufacturer=EVIL,
            ManufacturerModelName=EVIL,
            StationName=EVIL[:16],
            SequenceName=EVIL[:16],
            PatientName=EVIL,
            PatientID=EVIL,
            InstitutionName=EVIL,
            ConvolutionKernel=EVIL[:16],
        ),
        VOLUME,
    ),
}
