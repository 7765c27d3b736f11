"""The technique of an acquisition, from one DICOM header; a missing key was not told."""

from __future__ import annotations

import re
from typing import Any

from pydicom.dataset import Dataset

from medsiam.reading import tags
from medsiam.reading.identity import keyed_hash
from medsiam.reading.tags import Malformed

_NUMBERS = {
    "echo_time_ms": "EchoTime",
    "repetition_time_ms": "RepetitionTime",
    "inversion_time_ms": "InversionTime",
    "flip_angle_deg": "FlipAngle",
    "field_strength_t": "MagneticFieldStrength",
    "slice_thickness_mm": "SliceThickness",
    "spacing_between_slices_mm": "SpacingBetweenSlices",
    "kvp": "KVP",
    "gantry_tilt_deg": "GantryDetectorTilt",
    "magnification": "EstimatedRadiographicMagnificationFactor",
    "intensity_sign": "PixelIntensityRelationshipSign",
}

_TEXTS = {
    "kernel": "ConvolutionKernel",
    "scanning_sequence": "ScanningSequence",
    "sequence_variant": "SequenceVariant",
    "sequence_name": "SequenceName",
    "scan_options": "ScanOptions",
    "acquisition_dimensions": "MRAcquisitionType",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "station": "StationName",
    "software": "SoftwareVersions",
    "view_position": "ViewPosition",
    "laterality": "Laterality",
    "image_laterality": "ImageLaterality",
    "patient_position": "PatientPosition",
    "patient_orientation": "PatientOrientation",
    "rescale_type": "RescaleType",
    "receive_coil": "ReceiveCoilName",
    "protocol_name": "ProtocolName",
    "sex": "PatientSex",
}

# Enhanced files keep the same numbers in functional groups.
_GROUPED = {
    "echo_time_ms": ("MREchoSequence", "EffectiveEchoTime"),
    "repetition_time_ms": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "flip_angle_deg": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "inversion_time_ms": ("MRModifierSequence", "InversionTimes"),
    "slice_thickness_mm": ("PixelMeasuresSequence", "SliceThickness"),
    "kvp": ("CTXRayDetailsSequence", "KVP"),
}

_CONTRAST_HINT = re.compile(
    r"(\+\s*(c|km|gd)\b|\b(gd|km|gad|post\s*(c|contrast|gad?|km))\b|post$)", re.IGNORECASE
)
_NO_CONTRAST = frozenset({"NO", "NONE", "N", "NIL", "OHNE", "WITHOUT", "0"})
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def protocol_of(dataset: Dataset, key: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The technique by name, and the sentences about what was assumed."""
    found: dict[str, Any] = {}
    for name, keyword in _NUMBERS.items():
        found[name] = _soft_number(dataset, keyword)
    for name, keyword in _TEXTS.items():
        found[name] = tags.text(dataset, keyword)
    found["image_type"] = tags.words(dataset, "ImageType")
    serial = tags.identifier(dataset, "DeviceSerialNumber")
    found["device_key"] = keyed_hash(key, "device", serial) if serial else None
    found["age_years"] = _age(dataset)
    found["contrast_agent"] = _contrast(dataset)
    found.update(_from_groups(dataset, found))
    told = {name: value for name, value in found.items() if value not in (None, "", ())}
    return told, _contrast_note(dataset, told)


def _soft_number(dataset: Dataset, keyword: str) -> float | None:
    # A broken echo time is no reason to refuse an image: it was not told.
    try:
        found = tags.numbers(dataset, keyword)
    except Malformed:
        return None
    return found[0] if found and len(found) == 1 else None


def _from_groups(dataset: Dataset, found: dict[str, Any]) -> dict[str, Any]:
    if "PerFrameFunctionalGroupsSequence" not in dataset and "SharedFunctionalGroupsSequence" not in dataset:
        return {}
    groups = [
        *tags.items(dataset, "SharedFunctionalGroupsSequence")[:1],
        *tags.items(dataset, "PerFrameFunctionalGroupsSequence")[:1],
    ]
    values: dict[str, Any] = {}
    for name, (sequence, keyword) in _GROUPED.items():
        for group in groups:
            inner = tags.items(group, sequence)
            if inner and found.get(name) is None and values.get(name) is None:
                values[name] = _soft_number(inner[0], keyword)
    return values


def _age(dataset: Dataset) -> float | None:
    told = re.fullmatch(r"(\d{1,3})([YMWD])", (tags.words(dataset, "PatientAge") or ("",))[0])
    if told:
        return round(int(told[1]) * _YEARS[told[2]], 2)
    born, seen = tags.day(dataset, "PatientBirthDate"), tags.day(dataset, "StudyDate")
    if born is None or seen is None or seen < born:
        return None
    return float(seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day)))


def _contrast(dataset: Dataset) -> bool | None:
    if "ContrastBolusAgentSequence" in dataset:
        return True
    agent = tags.text(dataset, "ContrastBolusAgent")
    if agent:
        return agent.upper() not in _NO_CONTRAST
    return None


def _contrast_note(dataset: Dataset, told: dict[str, Any]) -> tuple[str, ...]:
    hint = _CONTRAST_HINT.search(tags.text(dataset, "SeriesDescription"))
    if hint is None or "contrast_agent" in told:
        return ()
    return ("The series description hints at a contrast agent, the header does not tell one.",)
