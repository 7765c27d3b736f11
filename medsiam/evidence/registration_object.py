"""Where the prior lies in the current scan's space, as a Spatial Registration.

A viewer that reads it can lay the original prior over the current scan. Both scans
are named by their files as well as by their frames of reference: two visits on one
scanner are sometimes given the same one.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import SpatialRegistrationStorage

from medsiam.evidence.case import Case, coded, decimal, item, one, references
from medsiam.volume import Acquisition, Matrix

# DICOM knows three kinds of matrix by the freedom that they have.
MATRIX_TYPES = {"rigid": "RIGID", "affine": "AFFINE"}
BY_CONTENT = ("125024", "DCM", "Image Content-based Alignment")


def spatial_registration(case: Case) -> Dataset | None:
    """The registration, None where none is to be believed."""
    registration = case.comparison.registration
    matrix = registration.prior_from_current
    if registration.quality == "failed" or not np.isfinite(matrix).all():
        return None
    ds = case.new_object("registration", SpatialRegistrationStorage, "REG")
    ds.SeriesDescription = "medsiam registration (research use)"
    ds.ContentLabel = "REGISTRATION"
    ds.ContentDescription = "Prior laid over the current scan"
    ds.ContentCreatorName = ""
    ds.FrameOfReferenceUID = case.frame_of_reference_uid
    ds.PositionReferenceIndicator = ""
    kind = MATRIX_TYPES.get(registration.kind, "AFFINE")
    current, prior = case.comparison.current.acquisition, case.comparison.prior.acquisition
    ds.RegistrationSequence = DicomSequence(
        [
            _registered(case.current_headers, current, np.eye(4), "RIGID"),
            _registered(case.prior_headers, prior, np.linalg.inv(matrix), kind),
        ]
    )
    _refer(ds, case)
    return ds


def _registered(
    headers: tuple[Dataset, ...], acquisition: Acquisition, registered_from_scan: Matrix, kind: str
) -> Dataset:
    """One scan and the matrix that takes its points into the current scan's space."""
    numbers = [decimal(float(value)) for value in registered_from_scan.ravel()]
    matrix = item(FrameOfReferenceTransformationMatrix=numbers, FrameOfReferenceTransformationMatrixType=kind)
    found = item(
        ReferencedImageSequence=references(headers),
        MatrixRegistrationSequence=one(
            RegistrationTypeCodeSequence=coded(*BY_CONTENT),
            MatrixSequence=DicomSequence([matrix]),
        ),
    )
    if acquisition.frame_of_reference_uid:
        found.FrameOfReferenceUID = acquisition.frame_of_reference_uid
    return found


def _refer(ds: Dataset, case: Case) -> None:
    """The series of this study, and those of the other one."""
    ours, others = case.current_headers, case.prior_headers
    same_study = ours[0].StudyInstanceUID == others[0].StudyInstanceUID
    ds.ReferencedSeriesSequence = DicomSequence(
        _series(headers) for headers in ((ours, others) if same_study else (ours,))
    )
    if not same_study:
        ds.StudiesContainingOtherReferencedInstancesSequence = one(
            StudyInstanceUID=others[0].StudyInstanceUID,
            ReferencedSeriesSequence=DicomSequence([_series(others)]),
        )


def _series(headers: tuple[Dataset, ...]) -> Dataset:
    return item(
        SeriesInstanceUID=headers[0].SeriesInstanceUID, ReferencedInstanceSequence=references(headers)
    )
