"""An archive, one patient of it, or its last months compared, case by case on one GPU.

    plan -> what the ledger knows -> a task a case -> those that may come back -> worklist

A run that is killed anywhere is run again and does what is left: the ledger is the truth. Several
runs on one OUT share its cases.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.states import Completed, Failed, State

from flows.closed import ComesBack, closed
from flows.running import came_back, check_restarts, on_device, once, retried
from flows.settings import FlowSettings, settings_of
from flows.telling import Telling, tell_worklist
from medsiam.batch import Case, Plan, Row, finish, plan_archive, run_case
from medsiam.batch.audit import read_marks, recent, unseen, write_audit
from medsiam.batch.indexing import add_compared, check_index
from medsiam.batch.ledger import Ledger
from medsiam.batch.reading import Reader
from medsiam.batch.run import Told, away, from_own_start
from medsiam.batch.values import STEP_MISSING
from medsiam.batch.worklist import Worklist
from medsiam.errors import ArchiveRefused, ResourceExhausted

# Of a case as a line of the log: no words of a header.
LOGGED = ("case_id", "kind", "patient_key", "state", "verdict", "code", "is_fresh", "seconds")


@flow(name="compare_archive", persist_result=False, log_prints=False)
def compare_archive(archive: str, out: str, config: str = "") -> State:
    """Compares each patient's successive visits and writes the worklist, as `medsiam batch` does.

    archive  a folder, or an archive's address
    config   a file with the keys of configs/flows.yaml
    """
    with closed():
        settings = settings_of(config)
        plan = _planned(archive, out, settings)
        made = _compared(plan, plan.cases, Path(out), settings)
        return _told(made, Path(out), "archive", settings)


@flow(name="compare_patient", persist_result=False, log_prints=False)
def compare_patient(archive: str, out: str, patient: str, config: str = "") -> State:
    """Compares one patient's visits, as soon as a scan is there; the worklist keeps all others' lines.

    patient  their key, as the worklist tells it, never their number
    """
    with closed():
        settings = settings_of(config)
        plan = _planned(archive, out, settings)
        cases = tuple(case for case in plan.cases if case.patient_key == patient)
        made = _compared(plan, cases, Path(out), settings)
        rows, courses = (
            tuple(row for row in lines if row.patient_key == patient)
            for lines in (made.rows, made.trajectories)
        )
        return _told(replace(made, rows=rows, trajectories=courses), Path(out), "patient", settings)


@flow(name="night_audit", persist_result=False, log_prints=False)
def night_audit(archive: str, out: str, seen: str = "", config: str = "") -> State:
    """Compares the last months again, with the full noise floor, and lists change that nobody has seen.

    out   a folder of its own
    seen  a table with a column case_id or study_uid: what somebody has looked at
    """
    with closed():
        settings = settings_of(config)
        batch = replace(settings.batch, fast=False, add_to_index=False)
        settings = replace(settings, batch=batch)
        marks = read_marks(Path(seen)) if seen else frozenset()
        plan = recent(_planned(archive, out, settings), settings.audit.months, datetime.now())
        made = _compared(plan, plan.cases, Path(out), settings)
        rows = unseen(made.rows, marks, level=settings.audit.level)
        write_audit(rows, Path(out), marks=len(marks), now=datetime.now(UTC))
        tell_worklist(rows, Path(out), "audit", most=settings.told.rows, pages=settings.told.pages)
        return Completed(message=f"{len(rows)} confident changes without a mark of {_counts(made)}")


def _planned(archive: str, out: str, settings: FlowSettings) -> Plan:
    if settings.batch.add_to_index:
        check_index(archive, settings.batch)
    return plan_archive(archive, out, settings.batch, keep=True)


def _compared(plan: Plan, cases: tuple[Case, ...], out: Path, settings: FlowSettings) -> Worklist:
    """The worklist of a plan, these cases of it done that can be."""
    check_restarts(settings.retries)
    ledger = Ledger(out).open()
    ledger.sweep_all()
    telling = Telling(out, cases, metrics=settings.told.metrics)
    telling.event("planned", {**plan.counts, "cases": len(cases)})
    with on_device(settings), ledger.turn() as number, Reader(out, settings.batch) as reader:
        night = Night(from_own_start(cases, number), ledger, settings, reader, telling)
        try:
            night.go()
        finally:
            worklist = finish(plan, out, settings.batch, rows=night.rows)
        if settings.batch.add_to_index:
            telling.event("indexed", asdict(add_compared(plan, worklist.rows, out, settings.batch)))
    telling.event("end", {**worklist.counts, "fresh": worklist.fresh})
    return worklist


class Night:
    """The cases of one run: each is a task, what may come back is one task with retries."""

    def __init__(
        self,
        cases: tuple[Case, ...],
        ledger: Ledger,
        settings: FlowSettings,
        reader: Reader,
        telling: Telling,
    ) -> None:
        self._ledger, self._settings, self._reader, self._telling = ledger, settings, reader, telling
        known = {case.case_id: ledger.done(case, settings=settings.batch) for case in cases}
        self.rows: dict[str, Row] = {name: row for name, row in known.items() if row is not None}
        self._left = {case.case_id: case for case in cases if known[case.case_id] is None}
        self._total, self._computed, self._computed_s = len(cases), 0, 0.0
        telling.event("known", {"done": len(self.rows), "left": len(self._left)})

    def go(self) -> None:
        """Does all that can be done. Raises ComesBack where memory or disk stay used up."""
        each = once(self.take, "compare_case", "case {case_id}")
        names = list(self._left)
        for n, name in enumerate(names):
            # Where another run was, nothing is even read.
            if (row := self._ledger.done(self._left[name], settings=self._settings.batch)) is not None:
                self.rows[name] = row
                del self._left[name]
                continue
            self._reader.expect([self._left[each] for each in names[n : n + 2]])
            if not came_back(each(name, return_state=True)):
                break
        again = retried(self.again, "late_cases", self._settings.retries)
        is_stuck = bool(self._left) and not came_back(again(return_state=True))
        self._telling.progress(self._told(), self.rows, now=True)
        if is_stuck and any(name not in self.rows for name in self._left):
            raise ComesBack(f"{len(self._left)} cases are left: memory or disk are used up")

    def take(self, case_id: str) -> None:
        """One case, unless another run has it in hand. Raises ComesBack where memory or disk is used up."""
        with closed():
            self._take(self._left[case_id], wait=False)

    def again(self) -> None:
        """All that is left, the heaviest case last. Raises ComesBack while something stays away."""
        with closed():
            for case in list(self._left.values()):
                self._take(case, wait=True)
            if self._left:
                raise ComesBack(f"{len(self._left)} cases wait for an archive")

    def _take(self, case: Case, *, wait: bool) -> None:
        began = time.monotonic()
        try:
            row = run_case(case, self._ledger.out, self._settings.batch, reader=self._reader, wait=wait)
        except ArchiveRefused as error:
            self.rows[case.case_id] = away(case, error)
            self._telling.event("late", {"case": case.case_id, "code": error.code})
            return
        except ResourceExhausted:
            # All others go before it when there is room again.
            self._left[case.case_id] = self._left.pop(case.case_id)
            self._telling.event("exhausted", {"case": case.case_id})
            raise
        if row is None or (row.code == STEP_MISSING and not wait):
            return
        self.rows[case.case_id] = row
        del self._left[case.case_id]
        if row.is_fresh:
            self._computed += 1
            self._computed_s += time.monotonic() - began
        self._telling.event("case", {name: getattr(row, name) for name in LOGGED})
        self._telling.progress(self._told(), self.rows)

    def _told(self) -> Told:
        done = self._total - len(self._left)
        if not self._computed:
            return Told(done, self._total, None, None)
        each_s = max(self._computed_s / self._computed, 1e-6)
        return Told(done, self._total, 3600.0 / each_s, len(self._left) * each_s)


def _told(made: Worklist, out: Path, name: str, settings: FlowSettings) -> State:
    """How a run ended: a bug is a failure, a refusal is not."""
    tell_worklist(made.rows, out, name, most=settings.told.rows, pages=settings.told.pages)
    ended = Failed if made.failed else Completed
    return ended(message=_counts(made))


def _counts(made: Worklist) -> str:
    states = Counter(row.state for row in made.rows)
    return ", ".join(f"{state} {states[state]}" for state in ("compared", "refused", "failed", "pending"))
