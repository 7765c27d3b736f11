"""A study and its prior brought from an archive, and results sent to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medsiam.errors import ArchiveRefused, InputRefused
from medsiam.pacs.prior_rule import Choice, choose, earlier_studies, offer_of
from medsiam.pacs.settings import PriorSettings
from medsiam.pacs.values import Archive, Stored, StudyFound
from medsiam.report.placing import EVIDENCE

Progress = Callable[[str], None]

NO_PRIOR = "so no prior can be found; name both scans yourself"


@dataclass(frozen=True)
class Fetched:
    """Where the two scans lie now, and the sentence that tells why these."""

    prior: Path
    current: Path
    sentence: str


def fetch_with_prior(
    archive: Archive, study_uid: str, folder: Path, settings: PriorSettings, progress: Progress
) -> Fetched:
    """The best pair of series of a study and its prior, each in a folder of its own.

    Raises ArchiveRefused where the archive fails, NotComparable where it holds no prior.
    """
    progress("asking for the prior")
    choice = find_prior(archive, study_uid, settings)
    paths = []
    for name, series in zip(("prior", "current"), choice.series, strict=True):
        progress(f"fetching the {name}")
        paths.append(folder / name)
        count = archive.fetch_series(series.acquisition.study_uid, series.uid, paths[-1])
        if count < series.instances:
            raise ArchiveRefused(
                f"the archive sent {count} of {series.instances} files of the {name}; "
                "it may still be arriving, try again later"
            )
    return Fetched(paths[0], paths[1], choice.sentence)


def find_prior(archive: Archive, study_uid: str, settings: PriorSettings) -> Choice:
    """The prior of a study, by the rule of the settings. Raises as fetch_with_prior does."""
    current = _the_study(archive, study_uid)
    if not current.patient_id:
        raise InputRefused(
            "the study tells no patient number, so no prior can be found; name both scans yourself"
        )
    if current.when is None:
        raise InputRefused("the study tells no date, so no prior can be found; name both scans yourself")
    series = archive.find_series(study_uid)
    studies = archive.find_studies(patient_id=current.patient_id)
    offers = [
        offer_of(study, archive.find_series(study.uid), series, settings)
        for study in earlier_studies(current, studies, settings)
    ]
    return choose(offers, settings)


def send_folder(archive: Archive, folder: Path) -> Stored:
    """What became of the DICOM objects in a result's folder, or in any folder.

    Raises InputRefused where there are none, ArchiveRefused where the archive fails.
    """
    if not folder.is_dir():
        raise InputRefused(f"there is no folder {folder}; check the path")
    home = folder / EVIDENCE if (folder / EVIDENCE).is_dir() else folder
    paths = sorted(path for path in home.rglob("*.dcm") if path.is_file())
    if not paths:
        raise InputRefused(
            f"{folder} holds no DICOM objects to send; make them with `medsiam compare ... --formats dicom`"
        )
    return archive.store(paths)


def _the_study(archive: Archive, study_uid: str) -> StudyFound:
    found = [study for study in archive.find_studies(study_uid=study_uid) if study.uid == study_uid]
    if not found:
        raise ArchiveRefused(f"the archive holds no study {study_uid[:64]!r}; check its UID")
    return found[0]
