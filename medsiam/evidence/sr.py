"""A comparison as a Comprehensive 3D SR by TID 1500: one measurement group a finding.

Each group names its segment, its kind as coded, the sizes in both scans and their
difference, its tracking UID and its time points. A last group (TID 1501) holds what
is said of the whole scan: the verdict, the sums, the smallest detectable change. So a
stable comparison has a report too. Nothing in it has been verified by a person.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom import UID
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    LongitudinalTemporalOffsetFromEvent,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TimePointContext,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dicom_codes
from pydicom.sr.coding import Code

from medsiam import __version__
from medsiam.change.comparison import Finding
from medsiam.evidence import codes
from medsiam.evidence.case import (
    MANUFACTURER,
    MODEL,
    PERCENT_OF_LUNGS,
    RESEARCH_USE,
    SERIES_NUMBERS,
    Case,
    decimal,
    item,
    one,
    sizes_of,
)
from medsiam.evidence.seg import complete, moments, segment_label
from medsiam.volume import Grid

# Digits after the point of an interval in days.
LONGEST_DAYS_TEXT = 3

WHAT_IS_MEASURED = (
    "Volumes are of the whole changed structure in each scan; the segments mark where it changed, "
    "and their own volumes are others."
)


def structured_report(
    case: Case, segmentation: Dataset | None, others: Sequence[Dataset] = ()
) -> Comprehensive3DSR:
    """The report of a comparison.

    segmentation  the findings' object, None where there are none
    others        further objects of this comparison, to be named as evidence
    """
    groups = [_finding_group(case, segmentation, n) for n in range(1, len(case.comparison.findings) + 1)]
    content = MeasurementReport(
        observation_context=_observer(case),
        procedure_reported=_procedure(case),
        imaging_measurements=[*groups, _whole_scan(case)],
        title=dicom_codes.DCM.ImagingMeasurementReport,
        referenced_images=_library(case),
    )
    made = Comprehensive3DSR(
        # Patient and study are taken from the first of these.
        evidence=[*case.current_headers, *_as_evidence(segmentation), *others, *case.prior_headers],
        content=content,
        series_instance_uid=case.series_uid("report"),
        series_number=SERIES_NUMBERS["report"],
        sop_instance_uid=case.uid("report", "instance", "1"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=__version__,
        device_serial_number=__version__,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="medsiam comparison report (research use)",
        **moments(case),
    )
    _settle(made, case)
    return made


def _settle(made: Comprehensive3DSR, case: Case) -> None:
    """What highdicom would take from the clock, and the owner of our own codes."""
    complete(made, case)
    made.CodingSchemeIdentificationSequence = one(  # type: ignore[assignment]
        CodingSchemeDesignator=codes.OWN_SCHEME,
        CodingSchemeName="medsiam",
        CodingSchemeResponsibleOrganization="medsiam",
    )
    made.ObservationDateTime = case.now.strftime("%Y%m%d%H%M%S")
    made.PreliminaryFlag = "PRELIMINARY"


def _observer(case: Case) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=UID(case.uid("observer")),
        name=MODEL,
        manufacturer_name=MANUFACTURER,
        model_name=f"{MODEL} {__version__}",
    )
    observer = ObserverContext(observer_type=dicom_codes.DCM.Device, observer_identifying_attributes=device)
    return ObservationContext(observer_device_context=observer)


def _procedure(case: Case) -> Code:
    return codes.PROCEDURES.get(case.comparison.current.acquisition.modality, codes.RADIOGRAPHY)


def _library(case: Case) -> list[Dataset] | None:
    """Both series, current first; None for radiographs that do not tell how they lie."""
    scans = (
        (case.current_headers, case.comparison.current.grid),
        (case.prior_headers, case.comparison.prior.grid),
    )
    images = [_with_place(ds, grid) for headers, grid in scans for ds in headers]
    described = all(
        "ImagePositionPatient" in ds
        or (len(ds.get("PatientOrientation") or ()) == 2 and "ImagerPixelSpacing" in ds)
        for ds in images
    )
    return images if described else None


def _with_place(header: Dataset, grid: Grid) -> Dataset:
    """The header itself; one of many frames with the place of the first slice, as the library tells it."""
    if "SharedFunctionalGroupsSequence" not in header:
        return header
    placed = item()
    placed.update(header)
    axes = grid.world_from_index[:3, :3] / grid.spacing_mm
    placed.ImageOrientationPatient = [decimal(c) for c in (*axes[:, 2], *axes[:, 1])]
    placed.ImagePositionPatient = [decimal(mm) for mm in grid.world([(0, 0, 0)])[0]]
    placed.PixelSpacing = [decimal(mm) for mm in grid.spacing_mm[1:]]
    placed.SliceThickness = placed.SpacingBetweenSlices = decimal(grid.spacing_mm[0])
    return placed


def _finding_group(
    case: Case, segmentation: Dataset | None, number: int
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    assert segmentation is not None, "findings without their segmentation"
    finding = case.comparison.findings[number - 1]
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=UID(finding.tracking_uid), identifier=f"finding {segment_label(finding)}"
        ),
        referenced_segment=ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=SourceSeriesForSegmentation(
                referenced_series_instance_uid=case.current_headers[0].SeriesInstanceUID
            ),
        ),
        time_point_context=_time_point(case),
        finding_type=codes.LESION,
        algorithm_id=_algorithm(),
        measurements=_sizes(finding),
        qualitative_evaluations=[
            QualitativeEvaluation(
                CodedConcept.from_code(codes.QUALITATIVE_DIFFERENCE),
                CodedConcept.from_code(codes.DIFFERENCES[finding.kind]),
            )
        ],
    )


def _whole_scan(case: Case) -> MeasurementsAndQualitativeEvaluations:
    """Verdict and sums of the whole scan, with the summary as its comment."""
    comparison = case.comparison
    change = comparison.change
    told = (
        (codes.APPEARING, change.appearing_ml),
        (codes.RESOLVING, change.resolving_ml),
        (codes.SMALLEST_DETECTABLE, change.smallest_detectable_ml),
    )
    verdict = [QualitativeEvaluation(codes.VERDICT, codes.VERDICTS[comparison.verdict])]
    if comparison.verdict == "stable":
        verdict.append(QualitativeEvaluation(codes.QUALITATIVE_DIFFERENCE, codes.UNCHANGED))
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=UID(case.uid("whole scan")), identifier="whole scan"),
        time_point_context=_time_point(case),
        algorithm_id=_algorithm(),
        measurements=[_volume(name, value) for name, value in told if value is not None],
        qualitative_evaluations=verdict,
    )
    measured = (WHAT_IS_MEASURED,) if any(f.delta_ml is not None for f in comparison.findings) else ()
    for text in (comparison.summary, *comparison.notes, *measured, RESEARCH_USE):
        group[0].ContentSequence.append(_comment(text))
    return group


def _comment(text: str) -> TextContentItem:
    return TextContentItem(name=codes.COMMENT, value=text, relationship_type=RelationshipTypeValues.CONTAINS)


def _sizes(finding: Finding) -> list[Measurement]:
    """The size now under its public code, that of the prior and the difference, and the p-value."""
    before, after, by, unit = sizes_of(finding)
    is_share = unit == PERCENT_OF_LUNGS
    coded = codes.PERCENT if is_share else codes.MILLILITRE
    named = (
        (codes.LUNG_SHARE if is_share else codes.VOLUME, after),
        (codes.PRIOR_SIZE, before),
        (codes.DIFFERENCE, by),
    )
    measured = [Measurement(name=name, value=_number(value), unit=coded) for name, value in named]
    return [*measured, Measurement(name=codes.P_VALUE, value=_number(finding.p_value), unit=codes.NO_UNIT)]


def _volume(name: Code, value_ml: float) -> Measurement:
    return Measurement(name=name, value=_number(value_ml), unit=codes.MILLILITRE)


def _number(value: float) -> float:
    # A DICOM decimal string has 16 characters.
    return float(f"{value:.6g}")


def _time_point(case: Case) -> TimePointContext:
    """The current scan as a follow-up, so many days after the prior, which is the baseline."""
    days = case.comparison.interval_days
    offset = None
    if days is not None:
        offset = LongitudinalTemporalOffsetFromEvent(
            value=round(days, LONGEST_DAYS_TEXT), unit=codes.DAY, event_type=codes.BASELINE
        )
    return TimePointContext(
        time_point="current",
        time_point_order=2,
        temporal_offset_from_event=offset,
    )


def _algorithm() -> AlgorithmIdentification:
    return AlgorithmIdentification(name=MODEL, version=__version__, family=codes.ALGORITHM_FAMILY)


def _as_evidence(segmentation: Dataset | None) -> Sequence[Dataset]:
    return () if segmentation is None else (segmentation,)
