"""A Volume as a classic DICOM series: MR, CT or computed radiography.

Reading the folder gives the volume back: the same grid, and every value within half
a quantum. The quantum is 1 where the values are whole numbers that fit 16 bits (what
scanners send, and always for HU within +-32767), else a 65535th of their range,
told in Rescale Slope. Slices are written in the order of k; a grid whose k runs
against the cross product of its rows and columns comes back flipped, each voxel at
its place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
)
from pydicom.valuerep import DSfloat

from medsiam.errors import GeometryRefused, InputRefused
from medsiam.volume import Acquisition, Grid, Volume

# A radiograph of a digital detector is written as CR too: DX asks for facts about
# the detector that a Volume does not hold.
STORAGE = {
    "MR": MRImageStorage,
    "CT": CTImageStorage,
    "CR": ComputedRadiographyImageStorage,
    "DX": ComputedRadiographyImageStorage,
}
SIXTEEN_BITS = 65535

# Parts of which there are two must carry a side, unknown or not; others must not.
PAIRED_PARTS = frozenset(
    {"HAND", "FOOT", "KNEE", "HIP", "SHOULDER", "ELBOW", "WRIST", "ANKLE"}
    | {"BREAST", "FEMUR", "TIBIA", "HUMERUS", "FOREARM"}
)


@dataclass(frozen=True)
class SeriesIdentity:
    """Whom and what a written series belongs to.

    study_time   start of the study; the volume's own time where None
    derivation   how the image was computed; empty for an original
    """

    patient_name: str
    patient_id: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    issuer: str = ""
    birth_date: str = ""
    sex: str = ""
    age: str = ""
    accession: str = ""
    study_id: str = "1"
    study_description: str = ""
    series_number: int = 1
    study_time: datetime | None = None
    derivation: str = ""


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """Whole numbers that stand for real values: real = slope * stored + intercept."""

    array: NDArray[np.int32]
    slope: float
    intercept: float
    signed: bool

    @property
    def is_plain(self) -> bool:
        """Whether the stored numbers are the values themselves."""
        return self.slope == 1.0 and self.intercept == 0.0


def write_series(volume: Volume, identity: SeriesIdentity, folder: str | Path) -> tuple[Path, ...]:
    """Paths of the files written, one per slice, in the order of k; an earlier series there is replaced.

    Raises InputRefused for a modality that has no writer here, GeometryRefused for
    a sheared grid, which DICOM cannot hold.
    """
    modality = volume.acquisition.modality
    if modality not in STORAGE:
        raise InputRefused(f"modality {modality!r} cannot be written as a series; {', '.join(STORAGE)} can")
    if not volume.grid.is_orthogonal:
        raise GeometryRefused("the grid is sheared, which a DICOM series cannot hold; resample it first")
    stored = stored_pixels(volume.array, signed=modality == "CT")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A longer series written here before would leave its last slices in this one.
    for earlier in folder.glob("IM[0-9][0-9][0-9][0-9].dcm"):
        earlier.unlink()
    series = _series_level(volume, identity, stored)
    paths = []
    for k in range(volume.grid.shape[0]):
        instance = _instance(series, volume, stored, k)
        paths.append(folder / f"IM{k + 1:04d}.dcm")
        instance.save_as(paths[-1], enforce_file_format=True)
    return tuple(paths)


def stored_pixels(array: NDArray[np.float32], *, signed: bool) -> StoredPixels:
    """16-bit numbers for real values, exact where they are whole; NaN becomes the lowest value.

    signed  whether the values are HU: kept at a quantum of 1 HU where they fit
    """
    finite = array[np.isfinite(array)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    filled = np.nan_to_num(array.astype(np.float64), nan=low, posinf=high, neginf=low)
    whole = bool(np.array_equal(filled, np.round(filled)))
    if signed and low >= -32768 and high <= 32767:
        return StoredPixels(np.round(filled).astype(np.int32), 1.0, 0.0, signed=True)
    if whole and not signed and low >= 0 and high <= SIXTEEN_BITS:
        return StoredPixels(filled.astype(np.int32), 1.0, 0.0, signed=False)
    # The file holds 16 characters of the slope; quantise with what it will say.
    slope = float(DSfloat(max(high - low, 1e-6) / SIXTEEN_BITS * (1 + 1e-9), auto_format=True))
    intercept = float(DSfloat(low, auto_format=True))
    counts = np.clip(np.round((filled - intercept) / slope), 0, SIXTEEN_BITS)
    return StoredPixels(counts.astype(np.int32), slope, intercept, signed=False)


def derived_uid(*parts: str) -> str:
    """A UID under 2.25 that the same parts always give (a name-based UUID)."""
    digest = hashlib.sha256("\x00".join(parts).encode()).digest()[:16]
    return f"2.25.{UUID(bytes=digest, version=5).int}"


def _series_level(volume: Volume, identity: SeriesIdentity, stored: StoredPixels) -> Dataset:
    """Everything that all slices share."""
    ds = Dataset()
    _patient_and_study(ds, identity, volume.acquisition)
    _series_and_equipment(ds, identity, volume.acquisition)
    modality = volume.acquisition.modality
    if modality == "MR":
        _mr_technique(ds, volume.acquisition.protocol)
    elif modality == "CT":
        _ct_technique(ds, volume.acquisition.protocol)
    else:
        _radiograph_technique(ds, volume)
    if modality in ("MR", "CT"):
        _plane(ds, volume.grid, identity, volume.acquisition.protocol)
    _pixels(ds, volume, stored)
    return ds


def _patient_and_study(ds: Dataset, identity: SeriesIdentity, acquisition: Acquisition) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = identity.patient_name
    ds.PatientID = identity.patient_id
    if identity.issuer:
        ds.IssuerOfPatientID = identity.issuer
    ds.PatientBirthDate = identity.birth_date
    ds.PatientSex = identity.sex
    if identity.age:
        ds.PatientAge = identity.age
    ds.StudyInstanceUID = identity.study_uid
    ds.StudyDate, ds.StudyTime = _date_and_time(identity.study_time or acquisition.acquired)
    ds.ReferringPhysicianName = ""
    ds.StudyID = identity.study_id
    ds.AccessionNumber = identity.accession
    if identity.study_description:
        ds.StudyDescription = identity.study_description


def _series_and_equipment(ds: Dataset, identity: SeriesIdentity, acquisition: Acquisition) -> None:
    protocol = acquisition.protocol
    ds.Modality = "CR" if acquisition.modality == "DX" else acquisition.modality
    ds.SeriesInstanceUID = identity.series_uid
    ds.SeriesNumber = identity.series_number
    if acquisition.description:
        ds.SeriesDescription = acquisition.description
    if acquisition.body_part:
        ds.BodyPartExamined = acquisition.body_part
    ds.Manufacturer = str(protocol.get("manufacturer", ""))
    if protocol.get("model"):
        ds.ManufacturerModelName = str(protocol["model"])
    ds.ImageType = _image_type(acquisition.modality, bool(identity.derivation))
    if identity.derivation:
        ds.DerivationDescription = identity.derivation
    for group in ("Series", "Acquisition", "Content"):
        date, time = _date_and_time(acquisition.acquired)
        if date:
            setattr(ds, f"{group}Date", date)
            setattr(ds, f"{group}Time", time)


def _image_type(modality: str, derived: bool) -> list[str]:
    """Image Type with the third value that the modality's definition allows."""
    origin = ["DERIVED", "SECONDARY"] if derived else ["ORIGINAL", "PRIMARY"]
    return origin + {"MR": ["OTHER"], "CT": ["AXIAL"]}.get(modality, [])


def _mr_technique(ds: Dataset, protocol: dict[str, Any]) -> None:
    """The MR Image module; what the protocol does not tell is left empty."""
    ds.ScanningSequence = protocol.get("scanning_sequence") or "RM"
    ds.SequenceVariant = protocol.get("sequence_variant") or "NONE"
    ds.ScanOptions = ""
    ds.MRAcquisitionType = "2D"
    ds.RepetitionTime = _decimal(protocol.get("repetition_time_ms"))
    ds.EchoTime = _decimal(protocol.get("echo_time_ms"))
    ds.EchoTrainLength = None
    # The standard forbids it where the sequence is not told as an inversion recovery.
    if "IR" in str(ds.get("ScanningSequence", "")):
        ds.InversionTime = _decimal(protocol.get("inversion_time_ms"))
    if "field_strength_t" in protocol:
        ds.MagneticFieldStrength = _decimal(protocol["field_strength_t"])


def _ct_technique(ds: Dataset, protocol: dict[str, Any]) -> None:
    ds.KVP = _decimal(protocol.get("kvp"))
    ds.AcquisitionNumber = 1
    if protocol.get("kernel"):
        ds.ConvolutionKernel = str(protocol["kernel"])


def _radiograph_technique(ds: Dataset, volume: Volume) -> None:
    protocol = volume.acquisition.protocol
    ds.BodyPartExamined = volume.acquisition.body_part
    ds.ViewPosition = str(protocol.get("view_position", ""))
    if protocol.get("laterality") or ds.BodyPartExamined in PAIRED_PARTS:
        ds.Laterality = str(protocol.get("laterality", ""))
    ds.PatientOrientation = ""
    ds.ImagerPixelSpacing = [_decimal(mm) for mm in volume.grid.spacing_mm[1:]]
    ds.PixelSpacing = ds.ImagerPixelSpacing


def _plane(ds: Dataset, grid: Grid, identity: SeriesIdentity, protocol: dict[str, Any]) -> None:
    """Frame of reference, directions and spacings; the slice's place comes later."""
    ds.FrameOfReferenceUID = identity.frame_of_reference_uid
    ds.PositionReferenceIndicator = ""
    ds.PatientPosition = str(protocol.get("patient_position", "HFS"))
    axes = grid.world_from_index[:3, :3] / grid.spacing_mm
    ds.ImageOrientationPatient = [_decimal(c) for c in (*axes[:, 2], *axes[:, 1])]
    ds.PixelSpacing = [_decimal(mm) for mm in grid.spacing_mm[1:]]
    ds.SliceThickness = _decimal(protocol.get("slice_thickness_mm", grid.spacing_mm[0]))
    if ds.Modality == "MR":
        ds.SpacingBetweenSlices = _decimal(grid.spacing_mm[0])


def _pixels(ds: Dataset, volume: Volume, stored: StoredPixels) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = volume.grid.shape[1:]
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = int(stored.signed)
    if not stored.is_plain or ds.Modality == "CT":
        ds.RescaleSlope = _decimal(stored.slope)
        ds.RescaleIntercept = _decimal(stored.intercept)
        ds.RescaleType = "HU" if ds.Modality == "CT" else "US"
    low, high = np.nanpercentile(volume.array[:: max(1, volume.grid.shape[0] // 16)], [1.0, 99.5])
    ds.WindowCenter = _decimal((low + high) / 2.0)
    ds.WindowWidth = _decimal(max(high - low, 1.0))


def _instance(series: Dataset, volume: Volume, stored: StoredPixels, k: int) -> Dataset:
    """One slice's data set: the series' facts, its own place and its pixels."""
    ds = Dataset()
    ds.update(series)
    ds.SOPClassUID = STORAGE[volume.acquisition.modality]
    ds.SOPInstanceUID = derived_uid(series.SeriesInstanceUID, "instance", str(k))
    numbers = volume.acquisition.image_numbers
    ds.InstanceNumber = numbers[k] if len(numbers) == volume.grid.shape[0] else k + 1
    if "ImageOrientationPatient" in ds:
        ds.ImagePositionPatient = [_decimal(mm) for mm in volume.grid.world([(k, 0, 0)])[0]]
    ds.PixelData = stored.array[k].astype("<i2" if stored.signed else "<u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def _decimal(value: Any) -> DSfloat | None:
    """A DICOM decimal string of at most 16 characters, None for what is not told."""
    return None if value is None else DSfloat(float(value), auto_format=True)


def _date_and_time(moment: datetime | None) -> tuple[str, str]:
    if moment is None:
        return "", ""
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
