"""Archives of made-up patients: small DICOM series that compare within a second."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from medsiam.evidence.series import SeriesIdentity, write_series
from medsiam.phantom import Scan, flair_acquisition, head_phantom
from medsiam.volume import Volume

# The middle of a head on 600 voxels.
TINY = Scan(spacing_mm=(8.0, 6.0, 6.0), field_mm=(48.0, 60.0, 60.0))
FIRST = datetime(2024, 1, 10, 9, 30)
NAME = "Unmistakable^Ursula"


def tiny_head(seed: int, acquired: datetime | None) -> Volume:
    """A part of the head, its noise told by the seed."""
    scan = Scan(TINY.spacing_mm, TINY.field_mm, seed=seed)
    return head_phantom(scan=scan, acquisition=flair_acquisition(scan, acquired)).volume


def write_visit(folder: Path, patient: str, visit: int, **changes: object) -> Path:
    """One visit of a patient in a folder of its own, a year after the one before; the folder."""
    told = {"acquired": FIRST + timedelta(days=365 * visit), "number": patient, "birth": "19600101"} | changes
    study = f"1.2.826.{int.from_bytes(patient.encode())}.{visit}"
    identity = SeriesIdentity(
        patient_name=str(told.get("name", NAME)),
        patient_id=str(told["number"]),
        birth_date=str(told["birth"]),
        sex="F",
        study_uid=str(told.get("study", study)),
        series_uid=f"{told.get('study', study)}.1",
        frame_of_reference_uid=f"{study}.2",
    )
    acquired = told["acquired"]
    assert acquired is None or isinstance(acquired, datetime)
    seed = 100 * sum(map(ord, patient)) + visit
    place = folder / patient / str(told.get("place", f"visit{visit}"))
    write_series(tiny_head(seed, acquired), identity, place)
    return place


def write_archive(folder: Path, patients: int, visits: int) -> Path:
    """So many patients with so many visits each; the folder."""
    for patient in range(patients):
        for visit in range(visits):
            write_visit(folder, f"P{patient:03d}", visit)
    return folder
