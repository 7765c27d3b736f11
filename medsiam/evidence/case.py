"""What all objects of one comparison share: patient, study, equipment, UIDs and references.

The objects go back to the archive that the scans came from, so they carry the
patient's own identity, taken from the current scan's header. Every UID is derived
from the two series and this software's version: the same comparison, made again,
replaces itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat, validate_value

from medsiam import __version__
from medsiam.change.comparison import Comparison, Finding
from medsiam.errors import IdentityRefused
from medsiam.evidence.series import PAIRED_PARTS, derived_uid
from medsiam.pairing.identity_check import are_two_patients
from medsiam.reading.originals import Originals
from medsiam.volume import Grid

MANUFACTURER = "medsiam"
MODEL = "medsiam compare"
RESEARCH_USE = "Research use only - not a medical device"

# Numbers of the series in the current study; scanners count from 1, and archives sort by them.
SERIES_NUMBERS = {
    "report": 9001,
    "key images": 9002,
    "findings": 9003,
    "prior": 9004,
    "registration": 9005,
    "document": 9006,
}

PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
PATIENT_WHERE_TOLD = (
    "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight",
    "PatientIdentityRemoved", "DeidentificationMethod",
)  # fmt: skip
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
STUDY_WHERE_TOLD = ("StudyDescription",)
REFERENCE = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality")
PIXELS = (
    "Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel",
    "PhotometricInterpretation", "PixelRepresentation", "ImageType", "ImagerPixelSpacing",
    "PatientOrientation",
)  # fmt: skip
PLACE = ("FrameOfReferenceUID", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
# A nanometre: far below what any position means, and above the rounding of products.
DECIMALS = 9
SEXES = ("M", "F", "O", "")


@dataclass(frozen=True, eq=False)
class Case:
    """A comparison with the headers of its two scans.

    now  when the objects are made, local time

    Raises IdentityRefused where the two scans are of two patients: their evidence
    would mix them.
    """

    comparison: Comparison
    prior: Originals
    current: Originals
    now: datetime

    def __post_init__(self) -> None:
        if are_two_patients(self.comparison.prior.acquisition, self.comparison.current.acquisition):
            raise IdentityRefused(
                "the two scans carry 2 patient numbers, and DICOM objects belong to one patient; "
                "leave dicom out of --formats"
            )

    def uid(self, *parts: str) -> str:
        """The UID of an object or series of this comparison."""
        scans = (self.comparison.prior, self.comparison.current)
        names = (
            f"{scan.acquisition.series_uid} {scan.acquisition.protocol.get('part', '')}" for scan in scans
        )
        return derived_uid("medsiam evidence", __version__, *names, *parts)

    def series_uid(self, name: str) -> str:
        """The UID of one of SERIES_NUMBERS."""
        return self.uid(name, "series")

    @cached_property
    def frame_of_reference_uid(self) -> str:
        """The current scan's own; a derived one where it has none, as radiographs have."""
        return self.comparison.current.acquisition.frame_of_reference_uid or self.uid("frame of reference")

    @cached_property
    def current_headers(self) -> tuple[Dataset, ...]:
        """What objects need of each of the current's files, every value valid."""
        return _headers(self.current, self.comparison.current.grid, self.frame_of_reference_uid)

    @cached_property
    def prior_headers(self) -> tuple[Dataset, ...]:
        """What objects need of each of the prior's files, every value valid."""
        own = self.comparison.prior.acquisition.frame_of_reference_uid
        return _headers(self.prior, self.comparison.prior.grid, own or self.uid("prior frame of reference"))

    def new_object(self, name: str, sop_class: str, modality: str, *, instance: int = 1) -> Dataset:
        """A data set with patient, study, series and equipment, and its file's header.

        name  one of SERIES_NUMBERS
        """
        ds = Dataset()
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPClassUID = sop_class
        ds.SOPInstanceUID = self.uid(name, "instance", str(instance))
        self.belong(ds)
        ds.Modality = modality
        ds.SeriesInstanceUID = self.series_uid(name)
        ds.SeriesNumber = SERIES_NUMBERS[name]
        if modality != "DOC":
            self.tell_body_part(ds)
        ds.InstanceNumber = instance
        ds.Manufacturer, ds.ManufacturerModelName = MANUFACTURER, MODEL
        ds.SoftwareVersions = __version__
        ds.DeviceSerialNumber = __version__
        date, time = self.now.strftime("%Y%m%d"), self.now.strftime("%H%M%S")
        ds.SeriesDate = ds.ContentDate = ds.InstanceCreationDate = date
        ds.SeriesTime = ds.ContentTime = ds.InstanceCreationTime = time
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        return ds

    def belong(self, ds: Dataset) -> None:
        """Puts a data set into the current scan's study, value by value the same."""
        identity = self.current_headers[0]
        for keyword in (*PATIENT, *PATIENT_WHERE_TOLD, *STUDY, *STUDY_WHERE_TOLD):
            if keyword in identity:
                ds[keyword] = identity[keyword]

    def tell_body_part(self, ds: Dataset) -> None:
        """Puts in the current scan's body part, and an empty side where one must stand."""
        part = self.comparison.current.acquisition.body_part
        if part:
            ds.BodyPartExamined = part
        # Empty means not told; only where no part of a pair can be meant may it be left out.
        if not part or part in PAIRED_PARTS:
            ds.Laterality = ""


def save(ds: Dataset, path: Path) -> Path:
    """The path of a data set written as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def one(**values: object) -> DicomSequence:
    """A sequence of one item."""
    return DicomSequence([item(**values)])


def item(**values: object) -> Dataset:
    """A data set of these attributes."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def coded(value: str, scheme: str, meaning: str) -> DicomSequence:
    """A code sequence."""
    return one(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def references(headers: tuple[Dataset, ...]) -> DicomSequence:
    """The files as items that refer to them."""
    return DicomSequence(
        item(ReferencedSOPClassUID=ds.SOPClassUID, ReferencedSOPInstanceUID=ds.SOPInstanceUID)
        for ds in headers
    )


def decimal(value: float) -> DSfloat:
    """A DICOM decimal string of at most 16 characters, without the last bits' noise."""
    return DSfloat(round(float(value), DECIMALS) + 0.0, auto_format=True)


def _headers(originals: Originals, grid: Grid, frame_of_reference_uid: str) -> tuple[Dataset, ...]:
    headers = tuple(_header(ds, originals.first, grid) for ds in originals.headers)
    for ds in headers:
        # Anonymised scans often lost theirs; a radiograph never had one.
        if not grid.is_flat and "FrameOfReferenceUID" not in ds:
            ds.FrameOfReferenceUID = frame_of_reference_uid
    return headers


def _header(source: Dataset, first: Dataset, grid: Grid) -> Dataset:
    """The valid part of a header; patient and study from the first of the series."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*PATIENT, *STUDY):
        setattr(ds, keyword, _valid(first, keyword))
    for keyword in (*PATIENT_WHERE_TOLD, *STUDY_WHERE_TOLD):
        if _valid(first, keyword):
            setattr(ds, keyword, _valid(first, keyword))
    if ds.PatientSex not in SEXES:
        ds.PatientSex = ""
    for keyword in (*REFERENCE, *PIXELS, *PLACE):
        if keyword in source and source[keyword].value not in (None, ""):
            ds[keyword] = source[keyword]
    if "ImagePositionPatient" in ds:
        # Often rounded, absent, or the gap alone: the positions that were checked tell it.
        ds.SliceThickness = ds.SpacingBetweenSlices = decimal(grid.spacing_mm[0])
    if "PerFrameFunctionalGroupsSequence" in source:
        _functional_groups(ds, source, grid)
    return ds


def _functional_groups(ds: Dataset, source: Dataset, grid: Grid) -> None:
    """What many frames share, by the grid that was checked, and where each of them lies.

    Vendors put spacing and direction with each frame, or outside of any group.
    """
    axes = grid.world_from_index[:3, :3] / grid.spacing_mm
    measures = item(
        PixelSpacing=[decimal(mm) for mm in grid.spacing_mm[1:]],
        SliceThickness=decimal(grid.spacing_mm[0]),
        SpacingBetweenSlices=decimal(grid.spacing_mm[0]),
    )
    directions = [decimal(cosine) for cosine in (*axes[:, 2], *axes[:, 1])]
    ds.SharedFunctionalGroupsSequence = one(
        PixelMeasuresSequence=DicomSequence([measures]),
        PlaneOrientationSequence=one(ImageOrientationPatient=directions),
    )
    ds.PerFrameFunctionalGroupsSequence = DicomSequence(
        item(PlanePositionSequence=frame.PlanePositionSequence)
        for frame in source.PerFrameFunctionalGroupsSequence
    )


def _valid(source: Dataset, keyword: str) -> str:
    """The value as text, "" where it is absent or breaks the rules of its kind."""
    value = source.get(keyword)
    text = "" if value is None else str(value)
    try:
        validate_value(dictionary_VR(keyword), text, RAISE)
    except ValueError:
        return ""
    return text


PERCENT_OF_LUNGS = "% of lungs"


def sizes_of(finding: Finding) -> tuple[float, float, float, str]:
    """A finding's size in prior and current, their difference, and the unit: ml, or a share of the lungs."""
    if finding.delta_percent is not None:
        before, after, by = finding.area_prior_percent, finding.area_current_percent, finding.delta_percent
        return before or 0.0, after or 0.0, by, PERCENT_OF_LUNGS
    return (
        finding.volume_prior_ml or 0.0, finding.volume_current_ml or 0.0, finding.delta_ml or 0.0, "ml"
    )  # fmt: skip
