"""The prior resampled onto the current scan, as a series that any viewer shows beside it.

Viewers cannot register, so they are given what is registered already: slices at the
current's places, in its frame of reference, each naming the slices it was made from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from medsiam.evidence.case import SERIES_NUMBERS, Case, coded, item
from medsiam.evidence.series import STORAGE, SeriesIdentity, write_series
from medsiam.volume import Volume, transform

LONGEST_DESCRIPTION = 64


def write_prior(case: Case, folder: Path) -> tuple[Path, ...]:
    """The paths of the series' files; () for a kind of image that no writer is there for."""
    if case.comparison.current.acquisition.modality not in STORAGE:
        return ()
    paths = write_series(_volume(case), _identity(case), folder)
    for k, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        case.belong(ds)
        case.tell_body_part(ds)
        ds.SourceImageSequence = _sources(case, k)
        ds.DerivationCodeSequence = coded("113043", "DCM", "Image processing")
        ds.InstanceCreationDate = ds.ContentDate = case.now.strftime("%Y%m%d")
        ds.InstanceCreationTime = ds.ContentTime = case.now.strftime("%H%M%S")
        ds.save_as(path, enforce_file_format=True)
    return paths


def _volume(case: Case) -> Volume:
    """The resampled voxels, with the current's kind and numbers, and the prior's technique."""
    prior, current = case.comparison.prior.acquisition, case.comparison.current.acquisition
    when = f"{prior.acquired:%Y-%m-%d}" if prior.acquired else "without date"
    told = replace(
        prior,
        modality=current.modality,
        body_part=current.body_part,
        image_numbers=current.image_numbers,
        description=f"Prior {when} on current: {prior.description}"[:LONGEST_DESCRIPTION].strip(" :"),
    )
    return Volume(case.comparison.prior_on_current, case.comparison.current.grid, told)


def _identity(case: Case) -> SeriesIdentity:
    # Patient and study are put in, value by value, when the files are made.
    return SeriesIdentity(
        patient_name="",
        patient_id="",
        study_uid=str(case.current_headers[0].StudyInstanceUID),
        series_uid=case.series_uid("prior"),
        frame_of_reference_uid=case.frame_of_reference_uid,
        series_number=SERIES_NUMBERS["prior"],
        derivation="Prior resampled onto the current scan by medsiam. Research use only.",
    )


def _sources(case: Case, k: int) -> DicomSequence:
    """The prior's slices between which slice k of the current was interpolated."""
    prior, current = case.comparison.prior.grid, case.comparison.current.grid
    _, rows, columns = current.shape
    corners = current.world([(k, j, i) for j in (0, rows - 1) for i in (0, columns - 1)])
    reached = prior.index(transform(case.comparison.registration.prior_from_current, corners))[:, 0]
    low, high = int(np.floor(reached.min())), int(np.ceil(reached.max()))
    last = len(case.prior.slices) - 1
    used = case.prior.slices[max(0, min(low, last)) : max(0, min(high, last)) + 1]
    frames: dict[int, list[int]] = {}
    for n, frame in used:
        frames.setdefault(n, []).append(frame + 1)
    return DicomSequence(_source(case.prior_headers[n], case, sorted(told)) for n, told in frames.items())


def _source(header: Dataset, case: Case, frames: list[int]) -> Dataset:
    made = item(
        ReferencedSOPClassUID=header.SOPClassUID,
        ReferencedSOPInstanceUID=header.SOPInstanceUID,
        PurposeOfReferenceCodeSequence=coded("121322", "DCM", "Source image for image processing operation"),
    )
    if case.prior.is_multi_frame:
        made.ReferencedFrameNumber = frames
    return made
