"""What an archive says it holds, and what every kind of archive can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset

from medsiam.evidence.case import SERIES_NUMBERS
from medsiam.reading import tags
from medsiam.reading.tags import Malformed
from medsiam.volume import Acquisition

# Kinds of series that a comparison can be made of.
COMPARABLE = frozenset({"MR", "CT", "CR", "DX"})

STUDY_KEYS = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "PatientID", "IssuerOfPatientID", "ModalitiesInStudy",
    "StudyDescription",
)  # fmt: skip
SERIES_KEYS = (
    "SeriesInstanceUID", "Modality", "SeriesDescription", "SeriesNumber", "BodyPartExamined",
    "NumberOfSeriesRelatedInstances",
)  # fmt: skip


@dataclass(frozen=True)
class StudyFound:
    """A study as the archive describes it; the patient's number is for asking again, never for telling."""

    uid: str
    patient_id: str
    issuer: str
    when: datetime | None
    modalities: tuple[str, ...] = ()

    @property
    def day(self) -> str:
        """Its date in words."""
        return f"{self.when:%Y-%m-%d}" if self.when else "a study without date"


@dataclass(frozen=True)
class SeriesFound:
    """A series as the archive describes it: as much of a candidate as is known before it is fetched."""

    acquisition: Acquisition
    instances: int
    is_evidence: bool = False

    @property
    def uid(self) -> str:
        return self.acquisition.series_uid

    @property
    def shape_kji(self) -> tuple[int, int, int]:
        return (self.instances, 0, 0)

    @property
    def spacing_kji_mm(self) -> tuple[float, float, float]:
        return (0.0, 0.0, 0.0)

    @property
    def is_comparable(self) -> bool:
        """Whether it may be a scan: not a report, and not made by this package."""
        return self.acquisition.modality in COMPARABLE and not self.is_evidence


@dataclass(frozen=True)
class Stored:
    """How many objects an archive took, and of each that it did not, its UID and why."""

    done: int
    failed: tuple[tuple[str, str], ...] = ()


class Archive(Protocol):
    """What every kind of archive can do; all raise ArchiveRefused, with one line that says why."""

    def find_studies(self, *, study_uid: str = "", patient_id: str = "") -> tuple[StudyFound, ...]:
        """Studies by their UID or their patient."""

    def find_series(self, study_uid: str) -> tuple[SeriesFound, ...]:
        """The series of a study."""

    def fetch_series(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """How many files of a series were written into a folder."""

    def store(self, paths: Sequence[Path]) -> Stored:
        """What became of the objects of these files."""


def study_of(answer: Dataset) -> StudyFound:
    """A study from one answer of an archive."""
    moment = tags.moment(answer, "StudyDate", "StudyTime")
    return StudyFound(
        uid=tags.uid(answer, "StudyInstanceUID"),
        patient_id=tags.identifier(answer, "PatientID"),
        issuer=tags.identifier(answer, "IssuerOfPatientID"),
        when=moment[0] if moment else None,
        modalities=tags.words(answer, "ModalitiesInStudy"),
    )


def series_of(answer: Dataset, study_uid: str) -> SeriesFound:
    """A series from one answer of an archive."""
    uid = tags.uid(answer, "SeriesInstanceUID")
    acquisition = Acquisition(
        modality=(tags.words(answer, "Modality") or ("",))[0],
        body_part=tags.text(answer, "BodyPartExamined").upper(),
        description=tags.text(answer, "SeriesDescription"),
        study_uid=study_uid,
        series_uid=uid,
    )
    is_ours = uid.startswith("2.25.") and _whole(answer, "SeriesNumber") in SERIES_NUMBERS.values()
    return SeriesFound(acquisition, max(1, _whole(answer, "NumberOfSeriesRelatedInstances")), is_ours)


def _whole(answer: Dataset, keyword: str) -> int:
    try:
        return tags.integer(answer, keyword) or 0
    except Malformed:
        return 0
