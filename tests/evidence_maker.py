"""Comparisons of DICOM series on disk, with two findings whose place is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from medsiam.evidence.case import Case
from medsiam.reading import read_volume
from medsiam.reading.originals import find_originals
from tests import comparison_maker, dicom_maker
from tests.dicom_maker import KEY

NOW = datetime(2025, 3, 4, 5, 6, 7)
KINDS = ("MR", "CT", "enhanced", "CR", "DX")
NAME = "Muller^Jorgen"
GRID = dicom_maker.grid_of("oblique", shape=(8, 30, 26), spacing=(3.0, 1.5, 1.25))


def write_visit(kind: str, visit: int, folder: Path, **changes: object) -> Path:
    """One visit's series in a folder of its own; frames of an enhanced file stand in no order."""
    told = {
        "StudyInstanceUID": f"1.2.3.{visit}", "SeriesInstanceUID": f"1.2.3.{visit}.4",
        "FrameOfReferenceUID": f"1.2.3.{visit}.5", "StudyDate": f"202{visit}0102",
        "AcquisitionDate": f"202{visit}0102", "BodyPartExamined": "HEAD", "PatientName": NAME,
        "StudyID": str(visit), "StudyDescription": "Follow-up", **changes,
    }  # fmt: skip
    if kind == "enhanced":
        datasets = [dicom_maker.enhanced(GRID, order=[3, 0, 7, 1, 5, 2, 6, 4], **told)]
    elif kind in ("MR", "CT"):
        datasets = dicom_maker.classic(GRID, kind, **told)
    else:
        datasets = [dicom_maker.radiograph(kind, **(told | {"FrameOfReferenceUID": None}))]
    for n, ds in enumerate(datasets, 1):
        ds.SOPInstanceUID = f"1.2.3.{visit}.4.{n}"
    return dicom_maker.save(datasets, folder / f"visit{visit}")


def made_case(kind: str, folder: Path, *, stable: bool = False, **changes: object) -> Case:
    """A comparison of two visits written under the folder."""
    paths = [write_visit(kind, visit, folder, **changes) for visit in (1, 2)]
    prior, current = (read_volume(path, key=KEY) for path in paths)
    labels = np.zeros(current.grid.shape, np.uint16)
    if not stable:
        labels[len(labels) // 3, 10:16, 12:20] = 1
        labels[len(labels) // 2 :, 25:28, 5:9] = 2
    made = comparison_maker.stable() if stable else comparison_maker.comparison()
    findings = tuple(
        replace(
            found,
            centre_lps_mm=tuple(
                map(float, current.grid.world(np.argwhere(labels == found.label)).mean(axis=0))
            ),
        )
        for found in made.findings
    )
    comparison = replace(
        made,
        prior=prior,
        current=current,
        labels=labels,
        findings=findings,
        change_map=((labels == 1) * 0.9 - (labels == 2) * 0.8).astype(np.float32),
        prior_on_current=prior.array,
    )
    originals = [
        find_originals([path], scan.acquisition, key=KEY)
        for path, scan in zip(paths, (prior, current), strict=True)
    ]
    return Case(comparison, *originals, NOW)
