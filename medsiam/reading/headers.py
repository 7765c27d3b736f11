"""One DICOM header to values: whose, when, how, and where each frame lies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset

from medsiam.errors import Unreadable
from medsiam.reading import tags
from medsiam.reading.archive import Source
from medsiam.reading.identity import birth_key, keyed_hash, number_key, patient_key
from medsiam.reading.parsing import Parsed, PixelPlace
from medsiam.reading.protocol import protocol_of
from medsiam.reading.tags import Malformed

# More frames than the longest dynamic scan; a declared number above it is false.
MOST_FRAMES = 100_000
# Shorter words of a name or number are words of techniques too: "T1", "LI".
SHORTEST_NAME = 3

ENHANCED_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
        "1.2.840.10008.5.1.4.1.1.130",  # Enhanced PET
        "1.2.840.10008.5.1.4.1.1.128.1",  # Legacy Converted Enhanced PET
    }
)

RADIOGRAPH_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
        "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
        "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, for processing
    }
)

SLICE_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",  # CT
        "1.2.840.10008.5.1.4.1.1.4",  # MR
        "1.2.840.10008.5.1.4.1.1.128",  # PET
    }
)

# The parts of a complex MR image, in classic and in enhanced words.
_COMPONENTS = {
    "M": "magnitude", "MAGNITUDE": "magnitude", "P": "phase", "PHASE": "phase", "PHASE MAP": "phase",
    "R": "real", "REAL": "real", "I": "imaginary", "IMAGINARY": "imaginary",
}  # fmt: skip


@dataclass(frozen=True)
class PixelFormat:
    """How the pixel data are written.

    syntax       transfer syntax UID, "" where the file does not tell
    photometric  in capitals
    place        where the bytes lie, None where there are none
    """

    syntax: str
    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    place: PixelPlace | None
    lossy: bool = False
    padding: float | None = None
    has_lookup_table: bool = False
    is_shape_inverse: bool = False

    @property
    def lowest_bit(self) -> int:
        """The bit of a cell in which stored values begin, nearly always 0."""
        return self.high_bit + 1 - self.bits_stored

    @property
    def frame_pixels(self) -> int:
        """Pixels of one frame."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Person:
    """Of whom an image is, as keyed hashes; name_token only tells two names apart.

    patient_key  of number and issuer
    number_key   of the number alone
    issuer       of the number, in plain text: a hospital's name
    """

    patient_key: str | None
    number_key: str | None
    birth_key: str | None
    name_token: str | None
    issuer: str


@dataclass(frozen=True, eq=False)
class Header:
    """One DICOM file before its pixels.

    moments  attribute group -> (local time, whether the time of day was told)
    problem  why no image can be made of it, "" where none was seen
    """

    source: Source
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    instance_number: int | None
    person: Person
    pixel: PixelFormat | None
    image_type: tuple[str, ...] = ()
    description: str = ""
    body_part: str = ""
    moments: Mapping[str, tuple[datetime, bool]] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image plane of a file.

    number       0-based in the file
    position     LPS mm of the first pixel's centre
    orientation  direction cosines: along a row, then down a column
    spacing      mm between rows, then between columns
    traits       what tells one stack of a series from another (echo_time_ms,
                 b_value, component, temporal, acquisition, stack, kernel …)
    """

    header: Header
    number: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float
    intercept: float
    traits: Mapping[str, Any]


def header_of(parsed: Parsed, source: Source, key: bytes) -> tuple[Header, tuple[Frame, ...]]:
    """The header of one file and its frames, () where it holds no usable image.

    What is malformed or missing is told in `problem`, so that one broken file
    refuses its own series and no other.
    """
    dataset = parsed.dataset
    values: dict[str, Any] = _who_and_when(dataset, key)
    try:
        values["pixel"] = _pixel_format(parsed)
        header = Header(source=source, **values, **_technique(dataset, key))
        return header, _frames(dataset, header)
    except Malformed as error:
        problem = f"{error.keyword} is no valid number or sequence; export the series again"
    except Unreadable as error:
        problem = str(error)
    values.setdefault("pixel", None)
    return Header(source=source, problem=problem, **values), ()


def _who_and_when(dataset: Dataset, key: bytes) -> dict[str, Any]:
    return {
        "sop_class": tags.uid(dataset, "SOPClassUID"),
        "sop_uid": tags.uid(dataset, "SOPInstanceUID"),
        "study_uid": tags.uid(dataset, "StudyInstanceUID"),
        "series_uid": tags.uid(dataset, "SeriesInstanceUID"),
        "frame_of_reference_uid": tags.uid(dataset, "FrameOfReferenceUID"),
        "modality": (tags.words(dataset, "Modality") or ("",))[0],
        "instance_number": _instance_number(dataset),
        "person": _person(dataset, key),
        "image_type": tags.words(dataset, "ImageType"),
        "moments": _moments(dataset),
    }


def _technique(dataset: Dataset, key: bytes) -> dict[str, Any]:
    protocol, notes = protocol_of(dataset, key)
    return {
        "description": _without_person(tags.text(dataset, "SeriesDescription"), dataset),
        "body_part": tags.text(dataset, "BodyPartExamined").upper(),
        "protocol": protocol,
        "notes": notes,
    }


def _without_person(text: str, dataset: Dataset) -> str:
    """The text without the words of the patient's name and number, which technicians type in anywhere."""
    told = f"{tags.identifier(dataset, 'PatientName')} {tags.identifier(dataset, 'PatientID')}"
    words = {word for word in re.split(r"[\s^=,]+", told) if len(word) >= SHORTEST_NAME}
    for word in sorted(words, key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", "…", text, flags=re.IGNORECASE)
    return text


def _instance_number(dataset: Dataset) -> int | None:
    try:
        return tags.integer(dataset, "InstanceNumber")
    except Malformed:
        return None


def _lenient(dataset: Dataset, keyword: str) -> float | None:
    # Of a tag that is optional and not relied on: broken is as good as absent.
    try:
        return tags.number(dataset, keyword)
    except Malformed:
        return None


def _person(dataset: Dataset, key: bytes) -> Person:
    birth = tags.identifier(dataset, "PatientBirthDate")
    # Vendors pad and capitalise one name in several ways.
    name = " ".join(tags.identifier(dataset, "PatientName").replace("^", " ").casefold().split())
    issuer = tags.identifier(dataset, "IssuerOfPatientID").strip()
    number = tags.identifier(dataset, "PatientID")
    return Person(
        patient_key(number, issuer, key),
        number_key(number, key),
        birth_key(birth, tags.identifier(dataset, "PatientSex"), key),
        keyed_hash(key, "name", name) if name else None,
        issuer if _without_person(issuer, dataset) == issuer else "",
    )


def _moments(dataset: Dataset) -> dict[str, tuple[datetime, bool]]:
    found = {
        "acquisition": tags.stamp(dataset, "AcquisitionDateTime")
        or tags.moment(dataset, "AcquisitionDate", "AcquisitionTime"),
        "series": tags.moment(dataset, "SeriesDate", "SeriesTime"),
        "content": tags.moment(dataset, "ContentDate", "ContentTime"),
        "study": tags.moment(dataset, "StudyDate", "StudyTime"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _pixel_format(parsed: Parsed) -> PixelFormat | None:
    dataset = parsed.dataset
    rows, columns = tags.integer(dataset, "Rows"), tags.integer(dataset, "Columns")
    if parsed.pixels is None and (rows is None or columns is None):
        return None
    allocated = tags.integer(dataset, "BitsAllocated") or 0
    stored = tags.integer(dataset, "BitsStored") or allocated
    high_bit = tags.integer(dataset, "HighBit")
    frames = tags.integer(dataset, "NumberOfFrames")
    samples = tags.integer(dataset, "SamplesPerPixel")
    return PixelFormat(
        syntax=parsed.syntax,
        rows=rows or 0,
        columns=columns or 0,
        frames=1 if frames is None else frames,
        samples=1 if samples is None else samples,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=_is_signed(dataset),
        photometric=(tags.words(dataset, "PhotometricInterpretation") or ("",))[0],
        place=parsed.pixels,
        lossy=tags.words(dataset, "LossyImageCompression") == ("01",),
        padding=_lenient(dataset, "PixelPaddingValue"),
        has_lookup_table=bool(tags.items(dataset, "ModalityLUTSequence")),
        is_shape_inverse=tags.words(dataset, "PresentationLUTShape") == ("INVERSE",),
    )


def _is_signed(dataset: Dataset) -> bool:
    found = tags.integer(dataset, "PixelRepresentation")
    if found not in (None, 0, 1):
        raise Malformed("PixelRepresentation")
    return found == 1


def _frames(dataset: Dataset, header: Header) -> tuple[Frame, ...]:
    pixel = header.pixel
    if pixel is None or pixel.place is None:
        return ()
    if not 1 <= pixel.frames <= MOST_FRAMES:
        raise Unreadable(f"it declares {pixel.frames} frames; between 1 and {MOST_FRAMES} can be read")
    if header.sop_class in ENHANCED_CLASSES:
        return _enhanced_frames(dataset, header, pixel.frames)
    return (_classic_frame(dataset, header),)


def _classic_frame(dataset: Dataset, header: Header) -> Frame:
    slope, intercept = _rescale(dataset)
    return Frame(
        header=header,
        number=0,
        position=tags.vector(dataset, "ImagePositionPatient", 3),
        orientation=tags.vector(dataset, "ImageOrientationPatient", 6),
        spacing=tags.vector(dataset, "PixelSpacing", 2) or _detector_spacing(dataset, header),
        slope=slope,
        intercept=intercept,
        traits=_told(
            echo_time_ms=tags.number(dataset, "EchoTime"),
            echo=_first(tags.numbers(dataset, "EchoNumbers")),
            b_value=_b_value(dataset),
            component=_component(header.image_type),
            kind="\\".join(header.image_type[2:]),
            temporal=tags.number(dataset, "TemporalPositionIdentifier"),
            acquisition=tags.number(dataset, "AcquisitionNumber"),
            stack=tags.text(dataset, "StackID") or None,
            kernel=tags.text(dataset, "ConvolutionKernel") or None,
            told_place=_lenient(dataset, "SliceLocation"),
            is_calibrated=bool(tags.words(dataset, "PixelSpacingCalibrationType")) or None,
            has_rescale="RescaleSlope" in dataset or None,
        ),
    )


def _detector_spacing(dataset: Dataset, header: Header) -> tuple[float, ...] | None:
    # Of a radiograph alone: a slice without PixelSpacing has no known size.
    if header.sop_class not in RADIOGRAPH_CLASSES:
        return None
    told = (tags.vector(dataset, name, 2) for name in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"))
    return next((spacing for spacing in told if spacing), None)


def _enhanced_frames(dataset: Dataset, header: Header, count: int) -> tuple[Frame, ...]:
    shared = tags.items(dataset, "SharedFunctionalGroupsSequence")
    per_frame = tags.items(dataset, "PerFrameFunctionalGroupsSequence")
    if len(per_frame) != count:
        raise Unreadable(
            f"it declares {count} frames and describes {len(per_frame)}; frames are missing, export it again"
        )
    common = shared[0] if shared else Dataset()
    return tuple(_enhanced_frame(_Groups(own, common, dataset), header, n) for n, own in enumerate(per_frame))


class _Groups:
    """The functional groups of one frame: its own, else the shared ones."""

    def __init__(self, own: Dataset, shared: Dataset, root: Dataset) -> None:
        self._own, self._shared, self.root = own, shared, root

    def get(self, keyword: str) -> Dataset:
        """The first item of a group, an empty dataset where there is none."""
        found = tags.items(self._own, keyword) or tags.items(self._shared, keyword)
        return found[0] if found else Dataset()


def _enhanced_frame(groups: _Groups, header: Header, number: int) -> Frame:
    content = groups.get("FrameContentSequence")
    kind = groups.get("MRImageFrameTypeSequence") or groups.get("CTImageFrameTypeSequence")
    slope, intercept = _rescale(groups.get("PixelValueTransformationSequence") or groups.root)
    orientation = tags.vector(groups.get("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    spacing = tags.vector(groups.get("PixelMeasuresSequence"), "PixelSpacing", 2)
    return Frame(
        header=header,
        number=number,
        position=tags.vector(groups.get("PlanePositionSequence"), "ImagePositionPatient", 3),
        # Some vendors write the parts that all frames share at the root, as in
        # a classic file; the position is never taken from there.
        orientation=orientation or tags.vector(groups.root, "ImageOrientationPatient", 6),
        spacing=spacing or tags.vector(groups.root, "PixelSpacing", 2),
        slope=slope,
        intercept=intercept,
        traits=_told(
            echo_time_ms=tags.number(groups.get("MREchoSequence"), "EffectiveEchoTime"),
            b_value=_b_value(groups.get("MRDiffusionSequence")),
            component=_component(tags.words(kind, "ComplexImageComponent")),
            kind="\\".join(tags.words(kind, "FrameType")[2:]),
            temporal=tags.number(content, "TemporalPositionIndex"),
            acquisition=tags.number(content, "FrameAcquisitionNumber"),
            stack=tags.text(content, "StackID") or None,
            kernel=tags.text(groups.get("CTReconstructionSequence"), "ConvolutionKernel") or None,
            told_place=_lenient(content, "InStackPositionNumber"),
            distorted=tags.words(kind, "VolumetricProperties") == ("DISTORTED",) or None,
            has_rescale=bool(groups.get("PixelValueTransformationSequence")) or None,
        ),
    )


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope, intercept = tags.number(dataset, "RescaleSlope"), tags.number(dataset, "RescaleIntercept")
    if slope == 0:
        raise Unreadable("RescaleSlope is 0, so every voxel would have one value; export it again")
    return (1.0 if slope is None else slope), (intercept or 0.0)


def _b_value(dataset: Dataset) -> float | None:
    return tags.number(dataset, "DiffusionBValue")


def _component(kinds: tuple[str, ...]) -> str | None:
    # The first two values say original or derived, primary or secondary.
    values = kinds[2:] if len(kinds) > 2 else kinds
    return next((_COMPONENTS[word] for word in values if word in _COMPONENTS), None)


def _first(found: tuple[float, ...] | None) -> float | None:
    return found[0] if found else None


def _told(**traits: Any) -> dict[str, Any]:
    return {name: value for name, value in traits.items() if value not in (None, "")}
