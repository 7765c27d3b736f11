"""What a DICOM series is good for: an image to compare, a localiser, a map, or no volume."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medsiam.reading.entry import Role
from medsiam.reading.headers import ENHANCED_CLASSES, RADIOGRAPH_CLASSES, SLICE_CLASSES, Frame, Header

_OTHER_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.7": "a secondary capture (screenshot or scanned picture)",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.66.1": "a registration",
    "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object",
    "1.2.840.10008.5.1.4.1.1.88": "a structured report",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.104": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.6": "an ultrasound image",
    "1.2.840.10008.5.1.4.1.1.20": "a nuclear medicine image",
    "1.2.840.10008.5.1.4.1.1.12": "an angiography or fluoroscopy image",
    "1.2.840.10008.1.3.10": "a DICOMDIR",
}

_LOCALISER_KINDS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SURVEY"}
_LOCALISER_NAME = re.compile(
    r"(?<![a-z])(locali[sz]ers?|scouts?|survey|topograms?|surview|scanogram)(?![a-z])", re.I
)

# Image types of maps that are computed from images: their values are no signal.
_MAP_KINDS = {
    "ADC", "EADC", "FA", "RA", "TRACEW_MAP", "TENSOR", "TENSOR_B0", "CBF", "CBV",
    "RCBF", "RCBV", "RELCBF", "RELCBV",
    "MTT", "RELMTT", "TTP", "TMAX", "PBP", "KTRANS", "T1_MAP", "T2_MAP", "T1 MAP", "T2 MAP", "T2_STAR_MAP",
    "T2STAR MAP", "R2_STAR_MAP", "FIELD_MAP", "FIELD MAP", "B0 MAP", "B1 MAP", "SUBTRACTION",
    "MIP", "MINIP", "MNIP", "MIN_IP", "MAX_IP", "PROJECTION", "PROJECTION IMAGE", "VRT", "VOLREN", "SSD",
    "SCREEN SAVE", "SCREENSHOT", "SCREEN CAPTURE", "FMRI", "DOSE_INFO", "REPORT", "CALC_BVALUE",
}  # fmt: skip


def not_an_image(header: Header) -> str:
    """Why a file is no image of a kind that can be compared, "" where it is one."""
    if header.sop_class in SLICE_CLASSES | RADIOGRAPH_CLASSES | ENHANCED_CLASSES:
        return ""
    if not header.sop_class:
        return "it does not tell what kind of object it is (SOPClassUID)"
    matches = [name for uid, name in _OTHER_CLASSES.items() if (header.sop_class + ".").startswith(uid + ".")]
    return matches[0] if matches else "no CT, MR, PET or plain radiograph"


def is_radiograph(header: Header) -> bool:
    """Whether a file is a plain radiograph, one image without a place in the patient."""
    return header.sop_class in RADIOGRAPH_CLASSES


def is_mosaic(header: Header) -> bool:
    """Whether a file tiles all slices of a volume in one picture, as Siemens writes functional MR."""
    return "MOSAIC" in header.image_type


def role_of(frames: Sequence[Frame]) -> tuple[Role, str]:
    """What a clean stack or radiograph is for, and the reason where it is no image to compare."""
    header = frames[0].header
    kinds = {word for frame in frames for word in _kinds(frame)}
    if kinds & _LOCALISER_KINDS or _LOCALISER_NAME.search(header.description):
        return "localiser", "a localiser, made to plan other series"
    maps = sorted(kinds & _MAP_KINDS)
    if maps:
        return "derived", f"a map or projection computed from images ({maps[0].lower()})"
    if header.modality == "MR" and frames[0].traits.get("component") in ("phase", "real", "imaginary"):
        return "derived", f"the {frames[0].traits['component']} part of a complex image"
    return "image", ""


def _kinds(frame: Frame) -> set[str]:
    return {*frame.header.image_type, *str(frame.traits.get("kind", "")).split("\\")}
