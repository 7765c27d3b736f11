"""What an archive behind an address holds, asked once, and a series brought from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from medsiam.batch.listing import Found, Listing, digest_of
from medsiam.batch.values import Scan
from medsiam.errors import ArchiveRefused
from medsiam.pacs.dicomweb import MOST_ANSWERS
from medsiam.pacs.opening import open_archive
from medsiam.pacs.settings import PacsSettings
from medsiam.pacs.values import SeriesFound, StudyFound
from medsiam.reading import number_key, patient_key
from medsiam.reading.archive import Source

Progress = Callable[[str], None]

ADDRESSES = ("http://", "https://", "dimse://")
STUDIES_TOLD_EVERY = 50


def is_address(archive: str) -> bool:
    """Whether an archive is asked over the network and not walked on disk."""
    return archive.startswith(ADDRESSES)


def list_archive(url: str, settings: PacsSettings, *, key: bytes, progress: Progress) -> Listing:
    """The series of all studies that an archive tells, before anything is fetched.

    Patients' numbers become keys here. Raises ArchiveRefused where the archive fails.
    """
    archive = open_archive(url, settings.archive)
    listing = Listing()
    studies = archive.find_studies()
    if len(studies) >= MOST_ANSWERS:
        # What an archive does not tell must not pass for what it does not hold.
        raise ArchiveRefused(
            f"the archive holds {MOST_ANSWERS} studies or more, which one question does not bring; export "
            "those of interest to a folder and give that"
        )
    for n, study in enumerate(studies, 1):
        for series in archive.find_series(study.uid):
            if series.is_comparable:
                listing.found.append(_found(url, study, series, key))
                listing.files += series.instances
            else:
                listing.left_out += 1
        if n % STUDIES_TOLD_EVERY == 0:
            progress(f"{n} studies seen")
    return listing


def fetch(scan: Scan, folder: Path, settings: PacsSettings) -> tuple[Source, ...]:
    """The files of a series, brought into a folder. Raises ArchiveRefused where some did not come."""
    archive = open_archive(scan.url, settings.archive)
    count = archive.fetch_series(scan.study_uid, scan.series_uid, folder)
    if count < scan.instances:
        raise ArchiveRefused(
            f"the archive sent {count} of {scan.instances} files of a series; "
            "it may still be arriving, try again later"
        )
    return tuple(Source(path, size=path.stat().st_size) for path in sorted(folder.glob("*.dcm")))


def _found(url: str, study: StudyFound, series: SeriesFound, key: bytes) -> Found:
    told = replace(
        series.acquisition,
        patient_key=patient_key(study.patient_id, study.issuer, key),
        number_key=number_key(study.patient_id, key),
        issuer=study.issuer,
        acquired=study.when,
    )
    scan = Scan(
        name=series.uid,
        files=(),
        signature=digest_of(url, study.uid, series.uid, str(series.instances)),
        study_uid=study.uid,
        series_uid=series.uid,
        modality=told.modality,
        body_part=told.body_part,
        acquired=study.when.isoformat(timespec="seconds") if study.when else None,
        spatial_dims=2 if told.modality in ("CR", "DX") else 3,
        url=url,
        instances=series.instances,
    )
    return Found(scan, told, series.shape_kji, series.spacing_kji_mm, study_at=study.when)
