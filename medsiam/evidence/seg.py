"""Findings as a DICOM Segmentation: one segment a finding, on the current scan's frame of reference.

Tracking identity stands on a segment, so each finding is a segment of its own; its
label, colour and order tell the kind (docs/decisions/0003-segment-a-finding.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, Volume
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription

from medsiam import __version__
from medsiam.change.comparison import Finding
from medsiam.evidence import codes
from medsiam.evidence.case import MANUFACTURER, MODEL, SERIES_NUMBERS, Case, decimal

# The report's own two colours, told apart by readers with any colour vision; the
# half of each pair that is gone or came is the lighter one.
COLOURS = {
    "new": (0xE6, 0x9F, 0x00),
    "enlarged": (0xF0, 0xC8, 0x66),
    "shrunk": (0x9A, 0xD2, 0xF0),
    "resolved": (0x56, 0xB4, 0xE9),
}

WHAT_IS_MARKED = "Place of change; sizes in both scans stand in the report"


def segmentation(case: Case) -> Segmentation | None:
    """The findings as a binary Segmentation, None where there are none: it must hold a segment."""
    findings = case.comparison.findings
    if not findings:
        return None
    is_flat = "FrameOfReferenceUID" not in case.current_headers[0]
    made = Segmentation(
        source_images=list(case.current_headers),
        pixel_array=_labels(case) if is_flat else _volume(case),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(n, finding) for n, finding in enumerate(findings, 1)],
        series_instance_uid=case.series_uid("findings"),
        series_number=SERIES_NUMBERS["findings"],
        sop_instance_uid=case.uid("findings", "instance", "1"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=__version__,
        device_serial_number=__version__,
        content_label="FINDINGS",
        content_description="Change since the prior scan",
        series_description="medsiam findings (research use)",
        **moments(case),
    )
    for segment in made.SegmentSequence:
        segment.SegmentDescription = WHAT_IS_MARKED
    complete(made, case)
    if is_flat:
        made.PatientOrientation = ""
    else:
        # Enhanced sources may leave it out, and highdicom repeats what they say.
        measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SliceThickness = decimal(case.comparison.current.grid.spacing_mm[0])
    return made


def segment_label(finding: Finding) -> str:
    """The name of a finding's segment, "1 new"."""
    return f"{finding.label} {finding.kind}"


def moments(case: Case) -> dict[str, Any]:
    """The times of an object, so that none is taken from the clock."""
    day, clock = case.now.date(), case.now.time().replace(microsecond=0)
    return {"content_date": day, "content_time": clock, "series_date": day, "series_time": clock}


def complete(made: Any, case: Case) -> None:
    """Adds the rest of patient and study; replaces what came from the clock and from chance."""
    case.belong(made)
    for equipment in made.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = case.now.strftime("%Y%m%d%H%M%S")
    for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for dimension in made.get(keyword, ()):
            dimension.DimensionOrganizationUID = case.uid("dimensions")
    made.InstanceCreationDate = case.now.strftime("%Y%m%d")
    made.InstanceCreationTime = case.now.strftime("%H%M%S")


def _segment(number: int, finding: Finding) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=segment_label(finding),
        segmented_property_category=codes.MORPHOLOGY,
        segmented_property_type=codes.LESION,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=MODEL, family=codes.ALGORITHM_FAMILY, version=__version__
        ),
        tracking_uid=finding.tracking_uid,
        tracking_id=f"finding {segment_label(finding)}",
        display_color=CIELabColor.from_rgb(*COLOURS[finding.kind]),
    )


def _labels(case: Case) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Segment numbers (K, J, I); findings are numbered from one without a gap."""
    numbers = np.zeros(1 + int(case.comparison.labels.max()), np.uint16)
    for n, finding in enumerate(case.comparison.findings, 1):
        if finding.label < len(numbers):
            numbers[finding.label] = n
    found: np.ndarray[Any, np.dtype[np.uint16]] = numbers[case.comparison.labels]
    return found


def _volume(case: Case) -> Volume:
    # highdicom's volumes are (slice, row, column) and LPS, as ours are.
    make: Callable[..., Volume] = Volume
    return make(
        array=_labels(case),
        affine=case.comparison.current.grid.world_from_index,
        coordinate_system="PATIENT",
        frame_of_reference_uid=case.frame_of_reference_uid,
    )
