"""One case: read, compared, written, recorded. What became of it is a Row; a refusal is one too."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsiam.batch.ledger import Ledger, Record, fresh, key_of
from medsiam.batch.pair_record import pair_from_json, pair_to_json
from medsiam.batch.reading import Reader, ReadScan, inputs_of
from medsiam.batch.values import STEP_MISSING, BatchSettings, Case, Row, Scan
from medsiam.change.comparison import Comparison
from medsiam.change.trajectory import PairChange, PairKey, Trajectory, pair_change
from medsiam.compare import compare, silent
from medsiam.errors import (
    ArchiveRefused,
    IndexRefused,
    InputRefused,
    ResourceExhausted,
    as_medsiam_error,
    one_line,
    own_frame,
)
from medsiam.evidence.case import Case as Evidence
from medsiam.evidence.write import write_evidence
from medsiam.pairing.identity_check import check_identity
from medsiam.report.comparison_json import refusal_json
from medsiam.report.placing import placed_whole
from medsiam.report.trajectory_writer import trajectory_folder
from medsiam.report.writer import WriteMore, write_comparison, write_refusal
from medsiam.similar import similar_cases
from medsiam.trajectory import Rules, follow
from medsiam.volume import Acquisition

# A bug's place is told by the deepest frame of our own.
PACKAGE = Path(__file__).parents[1]

LOGGER = logging.getLogger(__name__)

Progress = Callable[[str], None]
Clock = Callable[[], datetime]


def now_utc() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def run_case(
    case: Case,
    out: str | Path,
    settings: BatchSettings | None = None,
    *,
    reader: Reader | None = None,
    clock: Clock = now_utc,
    wait: bool = True,
    progress: Progress = silent,
) -> Row | None:
    """What became of a case: computed now, or done before with these inputs, weights and settings.

    A refusal and a bug are rows too; both are recorded, a bug is tried again by the next run.
    reader  reads ahead; without one the scans are read here
    wait    where another process computes this very case; otherwise None is returned

    Raises ArchiveRefused where a scan could not be fetched: it may come back. Raises
    ResourceExhausted where memory or disk is used up. In both cases nothing was recorded.
    """
    settings = settings or BatchSettings()
    ledger = Ledger(out).open()
    with ledger.held(case.case_id, wait=wait) as is_ours, contextlib.ExitStack() as stack:
        if not is_ours:
            return None
        ledger.sweep(case)
        row = ledger.done(case, settings=settings)
        if row is not None:
            return row
        reader = reader or stack.enter_context(Reader(out, settings))
        return _run(_Work(case, ledger, settings, reader, progress), clock)


@dataclass(frozen=True, eq=False)
class _Work:
    """A case that is ours to compute, and what it is computed with."""

    case: Case
    ledger: Ledger
    settings: BatchSettings
    reader: Reader
    progress: Progress

    def make_room(self) -> Path:
        """Where to write: aside, to be moved as one; in its place only beside files that are not ours.

        What the ledger says that we wrote goes first, also where it is damaged beyond recognition.
        """
        home = self.ledger.folder(self.case)
        record = self.ledger.record(self.case.case_id)
        for name in record.files if record is not None else ():
            if (self.ledger.out / name).is_relative_to(home) and ".." not in Path(name).parts:
                (self.ledger.out / name).unlink(missing_ok=True)
        for folder in (*sorted((each for each in home.rglob("*") if each.is_dir()), reverse=True), home):
            with contextlib.suppress(OSError):
                folder.rmdir()
        return home if home.exists() else self.ledger.stage(self.case)

    def placed(self, target: Path) -> dict[str, Mapping[str, Any]]:
        """What the files of a result are, once it stands in its place."""
        if target == self.ledger.stage(self.case):
            return self.ledger.place(self.case)
        return self.ledger.files_of(self.case)

    def clear(self) -> None:
        """Takes away what an earlier run wrote for this case; what is not ours stays."""
        shutil.rmtree(self.ledger.stage(self.case), ignore_errors=True)
        home = self.make_room()
        if home == self.ledger.folder(self.case):
            with placed_whole(home):
                pass


def _run(work: _Work, clock: Clock) -> Row:
    began = time.perf_counter()
    try:
        record = _outcome(work)
    except (ArchiveRefused, ResourceExhausted):
        raise
    except InputRefused as error:
        record = _refused(work, error)
    except Exception as error:
        named = as_medsiam_error(error)
        if isinstance(named, ResourceExhausted):
            raise named from error
        # Heard under -v alone: a traceback may hold what a header says.
        LOGGER.error("case %s failed", work.case.case_id, exc_info=error)
        record = _failed(work, error)
    seconds = round(time.perf_counter() - began, 3)
    row = fresh(replace(record.row, computed=clock().isoformat(timespec="seconds"), seconds=seconds))
    if record.row.code != STEP_MISSING:
        work.ledger.write(replace(record, row=row))
    return row


def _outcome(work: _Work) -> Record:
    """The record of a case whose scans could be read; one that was only touched keeps its result."""
    case, ledger = work.case, work.ledger
    work.progress("reading")
    scans = work.reader.scans(case)
    inputs = tuple((scan.signature, read.digest) for scan, read in zip(case.scans, scans, strict=True))
    key = key_of(case, [digest for _, digest in inputs], work.settings)
    before = ledger.record(case.case_id)
    if before is not None and ledger.done(case, key) is not None:
        return replace(before, inputs=inputs)
    record = Record(case.case_id, key, _row(case), inputs)
    return (_followed if case.kind == "trajectory" else _compared)(record, work, scans)


def _compared(record: Record, work: _Work, scans: tuple[ReadScan, ...]) -> Record:
    settings = work.settings
    prior, current = (scan.volume for scan in scans)
    notes = check_identity(
        prior.acquisition, current.acquisition, allow_different_patients=False, keep_order=False
    )
    comparison = compare(
        prior,
        current,
        settings.compare,
        device=settings.device,
        weights=settings.weights,
        seed=settings.seed,
        fast=settings.fast,
        notes=(*work.case.notes, *notes),
        progress=work.progress,
    )
    comparison, similar = _with_similar(comparison, settings)
    more = _evidence(comparison, scans) if "dicom" in settings.formats else None
    target = work.make_room()
    names = write_comparison(
        comparison, target, formats=settings.formats, similar_cases=similar, write_more=more
    )
    pair = pair_to_json(pair_change(comparison, 1, 2))
    row = _row_of(record.row, work.case, comparison, names)
    return replace(record, row=row, files=work.placed(target), pair=pair)


def _with_similar(comparison: Comparison, settings: BatchSettings) -> tuple[Comparison, list[dict[str, Any]]]:
    """The current scan's neighbours in the index; where it cannot tell any, the comparison says so."""
    if settings.index is None:
        return comparison, []
    folder, weights, device = Path(settings.index), settings.weights, settings.device
    try:
        return comparison, similar_cases(comparison.current, folder, weights=weights, device=device)
    except IndexRefused as error:
        return replace(comparison, notes=(*comparison.notes, f"No similar cases: {error}.")), []


def _followed(record: Record, work: _Work, scans: tuple[ReadScan, ...]) -> Record:
    """A trajectory of steps that were compared before: only first to last is compared now."""
    case, settings = work.case, work.settings
    known = _known_steps(work)
    if len(known) < len(case.steps):
        work.clear()
        missing = len(case.steps) - len(known)
        row = replace(
            record.row, state="refused", code=STEP_MISSING, summary="It was not followed.",
            reason=f"{missing} of its {len(case.steps)} comparisons have no result; see their lines",
        )  # fmt: skip
        return replace(record, row=row)
    target = work.make_room()
    with trajectory_folder(target, formats=settings.formats) as writer:
        for key, step in zip(known, case.steps, strict=True):
            writer.carry(key, work.ledger.out / case.patient_key / step)
        trajectory = follow(
            [scan.volume for scan in scans],
            settings.compare,
            device=settings.device,
            weights=settings.weights,
            seed=settings.seed,
            rules=Rules(fast=settings.fast),
            keep=writer.keep,
            known=known,
            progress=work.progress,
        )
        names = writer.finish(trajectory)
    row = _row_of_course(record.row, case, trajectory, names)
    return replace(record, row=row, files=work.placed(target))


def _known_steps(work: _Work) -> dict[PairKey, PairChange]:
    """The steps of a trajectory that were compared with these very settings."""
    case, known = work.case, {}
    for n, step_id in enumerate(case.steps, 1):
        step = Case(step_id, case.patient_key, case.scans[n - 1 : n + 1])
        record = work.ledger.record(step_id)
        is_done = work.ledger.done(step, settings=work.settings) is not None
        if is_done and record is not None and record.pair is not None:
            known[n, n + 1] = pair_from_json(record.pair, n, n + 1)
    return known


def _evidence(comparison: Comparison, scans: tuple[ReadScan, ...]) -> WriteMore:
    """What writes the DICOM objects. Raises InputRefused where a scan is no DICOM."""
    prior, current = (scan.originals for scan in scans)
    if prior is None or current is None:
        raise InputRefused("a scan is no DICOM, so no objects can belong to it; leave dicom out of --formats")
    case = Evidence(comparison, prior, current, datetime.now())
    return lambda folder: write_evidence(case, folder)


def _refused(work: _Work, error: InputRefused) -> Record:
    """A refusal as data: its report stands where the result would."""
    case, reason = work.case, one_line(str(error))
    work.clear()
    target = work.make_room()
    prior, current = _acquisition(case, case.scans[0]), _acquisition(case, case.scans[-1])
    write_refusal(target, refusal_json(error.code, reason, prior=prior, current=current, notes=case.notes))
    row = replace(
        _row(case), state="refused", code=error.code, reason=reason, summary="No comparison was made.",
        report=_relative(case, "report.json"),
    )  # fmt: skip
    try:
        digests = inputs_of(case)
    except InputRefused:
        digests = [scan.signature for scan in case.scans]
    inputs = tuple((scan.signature, digest) for scan, digest in zip(case.scans, digests, strict=True))
    key = key_of(case, digests, work.settings)
    return Record(case.case_id, key, row, inputs, work.placed(target))


def _failed(work: _Work, error: Exception) -> Record:
    """A bug by its kind and place: its text may hold what a header says."""
    work.clear()
    frame = own_frame(error, PACKAGE)
    place = f"{Path(frame.filename).name}, line {frame.lineno}"
    row = replace(
        _row(work.case), state="failed", code="bug", summary="It failed by a bug.",
        reason=f"{type(error).__name__} in {place}; run again with -v for the traceback",
    )  # fmt: skip
    return Record(work.case.case_id, "", row)


def _acquisition(case: Case, scan: Scan) -> Acquisition:
    """What is known of a scan that may not have been read."""
    return Acquisition(
        modality=scan.modality,
        body_part=scan.body_part,
        patient_key=case.patient_key,
        study_uid=scan.study_uid,
        series_uid=scan.series_uid,
        acquired=datetime.fromisoformat(scan.acquired) if scan.acquired else None,
    )


def _row(case: Case) -> Row:
    return Row(
        case_id=case.case_id,
        kind=case.kind,
        state="compared",
        patient_key=case.patient_key,
        prior=case.scans[0].told(),
        current=case.scans[-1].told(),
    )


def _row_of(row: Row, case: Case, comparison: Comparison, names: Mapping[str, str]) -> Row:
    told = (each.delta_percent if each.delta_ml is None else each.delta_ml for each in comparison.findings)
    sizes = [abs(size) for size in told if size is not None]
    is_flat = comparison.current.spatial_dims == 2
    return replace(
        row,
        verdict=comparison.verdict,
        summary=comparison.summary,
        interval_days=_rounded(comparison.interval_days),
        findings=len(comparison.findings),
        largest=_rounded(max(sizes)) if sizes else None,
        unit=("percent of the lungs" if is_flat else "ml") if sizes else None,
        smallest_detectable_ml=_rounded(comparison.change.smallest_detectable_ml),
        p_value=None if comparison.change.p_value is None else float(f"{comparison.change.p_value:.4g}"),
        report=_relative(case, names.get("html", names["json"])),
    )


def _row_of_course(row: Row, case: Case, trajectory: Trajectory, names: Mapping[str, str]) -> Row:
    return replace(
        row,
        verdict=trajectory.verdict,
        summary=trajectory.summary,
        interval_days=_rounded(trajectory.days[-1]),
        findings=len(trajectory.lesions),
        report=_relative(case, names.get("html", names["json"])),
    )


def _relative(case: Case, name: str) -> str:
    return f"{case.patient_key}/{case.case_id}/{name}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
