"""A whole archive in one process: one warm model, the next case read while this one is computed.

    plan -> what the ledger knows -> the rest, case by case -> those that waited -> worklist

A case that an archive did not give is tried again at the end, with pauses, as long as patience
lasts. Memory or disk used up stops the run: what is done is done, and the next run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medsiam.batch.case import Clock, now_utc, run_case
from medsiam.batch.indexing import add_compared, check_index
from medsiam.batch.ledger import Ledger, Record
from medsiam.batch.plan import plan_archive
from medsiam.batch.reading import Reader
from medsiam.batch.values import STEP_MISSING, BatchSettings, Case, Row
from medsiam.batch.worklist import Worklist, finish
from medsiam.errors import ArchiveRefused, ResourceExhausted, one_line

# An archive that restarts or loses its network for ten minutes is waited for.
PACS_PATIENCE_S = 900.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 120.0

Log = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Told:
    """How far a run is.

    done, total  cases
    per_hour     of those computed in this run
    left_s       seconds until the end at this rate, None where no rate is known
    """

    done: int
    total: int
    per_hour: float | None
    left_s: float | None


Progress = Callable[[str, Told | None], None]


def nobody(event: str, told: Any) -> None:
    """Tells nobody."""


def run_batch(
    archive: str | Path,
    out: str | Path,
    settings: BatchSettings | None = None,
    *,
    clock: Clock = now_utc,
    patience_s: float = PACS_PATIENCE_S,
    log: Log = nobody,
    progress: Progress = nobody,
) -> Worklist:
    """The worklist of an archive, every case of it done that can be.

    log       hears events with keys, digests and figures
    progress  hears what is being done, for somebody who watches

    Raises InputRefused where the archive, OUT or the index cannot be used, ResourceExhausted where
    memory or disk is used up; run again, it goes on.
    """
    settings = settings or BatchSettings()
    if settings.add_to_index:
        check_index(str(archive), settings)
    log("begin", {"fast": settings.fast, "device": settings.device})
    plan = plan_archive(archive, out, settings, now=clock().replace(tzinfo=None), keep=True,
                        progress=lambda step: progress(step, None))  # fmt: skip
    # Not before: a run that is refused leaves nothing but its refusal.
    ledger = Ledger(out).open()
    ledger.sweep_all()
    log("planned", {**plan.counts, "comparisons": len(plan.comparisons)})
    with ledger.turn() as number, Reader(out, settings) as reader:
        run = Run(len(plan.cases), ledger, settings, reader, clock, log, progress)
        run.take(_known_last(from_own_start(plan.cases, number), ledger))
        run.take_late(patience_s)
    worklist = finish(plan, out, settings, rows=run.rows, clock=clock)
    if settings.add_to_index:
        progress("adding to the index", None)
        log("indexed", asdict(add_compared(plan, worklist.rows, Path(out), settings)))
    log("end", {**worklist.counts, "fresh": worklist.fresh, "seconds": round(run.seconds, 3)})
    return worklist


def from_own_start(cases: Sequence[Case], number: int) -> tuple[Case, ...]:
    """The cases, begun at another patient by each run that shares them: they meet once and not at every case.

    Whoever has a patient in hand has their scans in memory.
    number  which of the runs it is: 0 begins at the first patient, 1 in the middle, 2 and 3 at the quarters
    """
    patients = list(dict.fromkeys(case.patient_key for case in cases))
    # Van der Corput's sequence: the binary digits behind the point in reverse.
    share = sum(0.5 ** (place + 1) for place in range(number.bit_length()) if number >> place & 1)
    first = patients[int(share * len(patients))] if patients else ""
    place = next((n for n, case in enumerate(cases) if case.patient_key == first), 0)
    return (*cases[place:], *cases[:place])


def _known_last(cases: Sequence[Case], ledger: Ledger) -> list[Case]:
    """The cases in order; those that used up memory or disk the last time stand behind all others."""
    records = (ledger.record(case.case_id) for case in cases)
    code = ResourceExhausted.code
    heavy = {record.case_id for record in records if record is not None and record.row.code == code}
    return sorted(cases, key=lambda case: case.case_id in heavy)


@dataclass
class Run:
    """One run: the rows so far, and what waits for an archive or for another process."""

    total: int
    ledger: Ledger
    settings: BatchSettings
    reader: Reader
    clock: Clock = now_utc
    log: Log = nobody
    progress: Progress = nobody
    rows: dict[str, Row] = field(default_factory=dict)
    _late: list[Case] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _computed_s: float = 0.0
    _computed: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def take(self, cases: Sequence[Case]) -> None:
        """Computes what the ledger does not know, the next case being read meanwhile."""
        wanted = []
        for case in cases:
            row = self.ledger.done(case, settings=self.settings)
            if row is None:
                wanted.append(case)
            else:
                self.rows[case.case_id] = row
        self.log("known", {"done": len(self.rows), "left": len(wanted)})
        for n, case in enumerate(wanted):
            # Where another run was, nothing is even read.
            if (row := self.ledger.done(case, settings=self.settings)) is not None:
                self.rows[case.case_id] = row
                continue
            self.reader.expect(wanted[n : n + 2])
            self._take(case, wait=False)

    def take_late(self, patience_s: float) -> None:
        """What another process held is waited for, what an archive did not give is asked for again."""
        deadline, pause = time.monotonic() + patience_s, FIRST_PAUSE_S
        while self._late:
            late, self._late = self._late, []
            for case in late:
                self._take(case, wait=True)
            if self._late and time.monotonic() + pause > deadline:
                return
            if self._late:
                self.progress(f"the archive is away, trying again in {pause:.0f} s", self._told())
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _take(self, case: Case, *, wait: bool) -> None:
        began = time.monotonic()
        try:
            row = run_case(case, self.ledger.out, self.settings, reader=self.reader, clock=self.clock,
                           wait=wait, progress=lambda step: self.progress(step, self._told()))  # fmt: skip
        except ArchiveRefused as error:
            self._late.append(case)
            self.rows[case.case_id] = away(case, error)
            self.log("late", {"case": case.case_id, "code": error.code})
            return
        except ResourceExhausted:
            self._mark_heavy(case)
            self.log("exhausted", {"case": case.case_id})
            raise
        if row is None or (row.code == STEP_MISSING and not wait):
            # Another process has it in hand, or one of its steps: by the end it is done, or told.
            self._late.append(case)
            return
        self.rows[case.case_id] = row
        if row.is_fresh:
            self._computed_s += time.monotonic() - began
            self._computed += 1
        self.log("case", _logged(row, self._told()))
        self.progress("", self._told())

    def _mark_heavy(self, case: Case) -> None:
        row = Row(case.case_id, case.kind, "pending", case.patient_key, code=ResourceExhausted.code)
        try:
            self.ledger.write(Record(case.case_id, "", row))
        except OSError:
            # On a full disk not even this fits; then the next run meets it in its usual place.
            return

    def _told(self) -> Told:
        left = self.total - len(self.rows)
        if not self._computed:
            return Told(len(self.rows), self.total, None, None)
        each_s = self._computed_s / self._computed
        return Told(len(self.rows), self.total, 3600.0 / max(each_s, 1e-6), left * each_s)


def away(case: Case, error: ArchiveRefused) -> Row:
    """The row of a case whose scans could not be fetched; no record is kept, so the next run tries again."""
    return replace(
        Row(case.case_id, case.kind, "refused", case.patient_key),
        code=error.code,
        reason=one_line(str(error)),
        summary="Its scans could not be fetched; the next run tries again.",
        prior=case.scans[0].told(),
        current=case.scans[-1].told(),
    )


def _logged(row: Row, told: Told) -> dict[str, Any]:
    """A case as a line of the log: keys and figures, no words of a header."""
    return {
        "case": row.case_id,
        "kind": row.kind,
        "patient": row.patient_key,
        "state": row.state,
        "verdict": row.verdict,
        "code": row.code,
        "fresh": row.is_fresh,
        "seconds": row.seconds,
        "done": told.done,
        "total": told.total,
        "per_hour": None if told.per_hour is None else round(told.per_hour, 1),
    }
