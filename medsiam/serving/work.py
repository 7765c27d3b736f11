"""One job, done: fetched, compared, written, sent; and every way in which that can fail, as an Outcome.

look at the study -> fetch it with its prior -> compare -> page and evidence on disk -> send
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from medsiam.cases.search import Wish
from medsiam.change.comparison import Comparison
from medsiam.compare import compare_series
from medsiam.errors import (
    ArchiveRefused,
    InputRefused,
    MedsiamError,
    ResourceExhausted,
    as_medsiam_error,
    own_frame,
)
from medsiam.evidence.write import evidence_of
from medsiam.pacs.exchange import fetch_with_prior, send_folder
from medsiam.pacs.opening import open_archive
from medsiam.pacs.prior_rule import earlier_studies
from medsiam.pacs.values import Archive, SeriesFound, StudyFound
from medsiam.report.comparison_json import to_json
from medsiam.report.search_writer import write_search
from medsiam.report.writer import write_comparison
from medsiam.serving.job import RESULTS, Job, Outcome, content_of
from medsiam.serving.queue import Queue
from medsiam.serving.settings import ArchiveEntry, ServeSettings
from medsiam.similar import search_index

OUTBOX, DRAFTS = "outbox", "drafts"
DAY_S = 86400.0

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a worker works with.

    folder  of the queue: results, what waits to be sent, and drafts lie there too
    name    the worker's, alive as long as its process
    """

    queue: Queue
    folder: Path
    settings: ServeSettings
    name: str
    progress: Progress

    @property
    def drafts(self) -> Path:
        """Where this worker alone writes."""
        return self.folder / DRAFTS / self.name


def do_job(bench: Bench, job: Job) -> Outcome | None:
    """What became of a job that was taken; None where another took its place."""
    try:
        return _done(bench, job)
    except ArchiveRefused as error:
        return Outcome("waiting", str(error), error.code, is_archives=not _answers(bench, job))
    except Exception as error:
        return _failed(as_medsiam_error(error))


def _failed(error: Exception) -> Outcome:
    """What an error of this machine, of the scans or of ours means for a job."""
    if isinstance(error, ResourceExhausted):
        return Outcome("waiting", str(error), error.code, counts=True)
    if isinstance(error, MedsiamError):
        return Outcome("refused", str(error), error.code)
    if isinstance(error, OSError):
        told = f"this machine failed ({error.strerror or type(error).__name__}); look at its disk"
        return Outcome("waiting", told, ResourceExhausted.code, counts=True)
    # A bug; its message may hold what a scan says, so its kind and place alone are told.
    return Outcome("failed", f"this is a bug: {type(error).__name__} in {_place(error)}", "bug")


def forget_old(bench: Bench) -> int:
    """How many old jobs were removed, with their pages."""
    gone = bench.queue.forget(bench.settings.work.keep_days * DAY_S)
    for job_id in gone:
        for home in (RESULTS, OUTBOX):
            shutil.rmtree(bench.folder / home / job_id, ignore_errors=True)
    return len(gone)


def _done(bench: Bench, job: Job) -> Outcome | None:
    entry = bench.settings.archive(job.archive)
    archive = open_archive(entry.url, entry.archive)
    if not job.is_made:
        series = scans_of(archive, job.study_uid)
        content = content_of((each.uid, each.instances) for each in series)
        if not series:
            raise InputRefused("the study holds no scan (any more); store it again")
        if content != job.content:
            bench.queue.move_on(job, content, settle_s=bench.settings.work.settle_s)
            return None
        if job.kind == "compare":
            _reopen_later(bench.queue, archive, job, entry)
        _made_whole(bench, job, archive, entry, series)
    if job.kind == "similar":
        return Outcome("done")
    return _sent(bench, job, archive)


def _answers(bench: Bench, job: Job) -> bool:
    """Whether the archive answers at all, so that only this study's matter failed."""
    try:
        entry = bench.settings.archive(job.archive)
        open_archive(entry.url, entry.archive).find_studies(study_uid=job.study_uid)
    except MedsiamError:
        return False
    return True


def scans_of(archive: Archive, study_uid: str) -> tuple[SeriesFound, ...]:
    """The series of a study that are scans, not reports and not our own evidence."""
    return tuple(series for series in archive.find_series(study_uid) if series.is_comparable)


def _made_whole(
    bench: Bench, job: Job, archive: Archive, entry: ArchiveEntry, series: tuple[SeriesFound, ...]
) -> None:
    """Makes a job's page, and the evidence that waits to be sent."""
    bench.drafts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bench.drafts) as name:
        draft = Path(name)
        if job.kind == "similar":
            told, verdict, facts = _searched(bench, job, archive, series, draft)
        else:
            comparison = _compared(bench, job, archive, entry, draft)
            told, verdict, facts = comparison.summary, comparison.verdict, facts_of(comparison)
    bench.queue.keep(job, verdict=verdict, told=told, facts=facts)


def _compared(bench: Bench, job: Job, archive: Archive, entry: ArchiveEntry, draft: Path) -> Comparison:
    """The comparison of a study with its prior, its page and evidence written."""
    work = bench.settings.work
    fetched = fetch_with_prior(archive, job.study_uid, draft, entry.prior, bench.progress)
    evidence = evidence_of([fetched.prior, fetched.current], now=datetime.now())
    comparison = compare_series(
        fetched.prior,
        fetched.current,
        config=work.config,
        device=work.device,
        fast=work.fast,
        progress=bench.progress,
    )
    comparison = dataclasses.replace(comparison, notes=(fetched.sentence, *comparison.notes))
    bench.progress("writing the evidence")
    # Apart from the page: it carries the patient's name, and is gone once the archive has it.
    evidence(comparison)(draft / "evidence")
    _put(draft / "evidence", bench.folder / OUTBOX / job.id)
    write_comparison(comparison, bench.folder / RESULTS / job.id, formats=("json", "html"))
    return comparison


def _searched(
    bench: Bench, job: Job, archive: Archive, series: tuple[SeriesFound, ...], draft: Path
) -> tuple[str, str, dict[str, Any]]:
    """Similar cases of the study's largest series, their page written."""
    index = bench.settings.work.index
    if index is None:
        raise InputRefused("no index of cases is named; set work.index in --config")
    largest = max(series, key=lambda each: (each.instances, each.uid))
    archive.fetch_series(job.study_uid, largest.uid, draft / "current")
    outcome = search_index(draft / "current", index, Wish(), device=bench.settings.work.device)
    write_search(outcome, bench.folder / RESULTS / job.id)
    return f"{len(outcome.results)} similar cases", "", {}


def _sent(bench: Bench, job: Job, archive: Archive) -> Outcome:
    """What became of a result's evidence: with it in the archive the job is done."""
    home = bench.folder / OUTBOX / job.id
    if not home.is_dir():
        return Outcome("done")
    bench.progress("sending the evidence")
    try:
        stored = send_folder(archive, home)
    except ArchiveRefused as error:
        # Without leave to store, no study's evidence can be stored.
        return Outcome("waiting", str(error), error.code, is_archives=True)
    if stored.failed:
        of, reason = stored.done + len(stored.failed), stored.failed[0][1]
        told = f"{len(stored.failed)} of {of} objects were not taken, the first: {reason}"
        return Outcome("waiting", told, "archive", counts=True)
    shutil.rmtree(home)
    return Outcome("done")


def _reopen_later(queue: Queue, archive: Archive, job: Job, entry: ArchiveEntry) -> None:
    """Asks again for later studies of the patient that had no prior: this one may be it."""
    if not queue.has_without_prior(job.archive):
        return
    here = [study for study in archive.find_studies(study_uid=job.study_uid) if study.uid == job.study_uid]
    if not here or not here[0].patient_id:
        return
    studies = archive.find_studies(patient_id=here[0].patient_id)
    later = [study.uid for study in studies if _is_prior_of(here[0], study, entry)]
    queue.reopen(job.archive, later)


def _is_prior_of(earlier: StudyFound, later: StudyFound, entry: ArchiveEntry) -> bool:
    return bool(earlier_studies(later, [earlier], entry.prior))


def facts_of(comparison: Comparison) -> dict[str, Any]:
    """What the worklist tells of a comparison: keys, dates, figures."""
    told: Mapping[str, Any] = to_json(comparison, files={})
    return {
        "patient_key": told["current"]["patient_key"],
        "modality": told["current"]["modality"],
        "body_part": told["current"]["body_part"],
        "acquired": told["current"]["acquired"],
        "interval_days": told["interval_days"],
        "magnitude": told["change"]["magnitude"],
        "findings": len(told["findings"]),
    }


def _put(made: Path, place: Path) -> None:
    """Moves a whole folder to its place, instead of an earlier one."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    os.replace(made, place)


def _place(error: BaseException) -> str:
    """The innermost line of this package that an error passed through."""
    package = Path(__file__).parents[1]
    frame = own_frame(error, package)
    return f"{Path(frame.filename).relative_to(package)}:{frame.lineno}"
