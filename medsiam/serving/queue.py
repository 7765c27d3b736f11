"""The queue on disk: an SQLite table that survives kill -9, and who may take which job when.

Every change is one transaction; a job is taken by writing a living worker's name
(medsiam.serving.lifeline) into its row. No name of a patient, no header text stands in it.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from medsiam.errors import ResourceExhausted, ServingRefused
from medsiam.serving.job import FINAL, Job, Outcome, Request, one_line
from medsiam.serving.lifeline import is_alive

DATABASE = "queue.sqlite"
WORKERS = "workers"

# A job that took its worker with it so often is not given to another.
MOST_DEATHS = 3
# Tries of a job whose failure lies here: a full disk, an object that the archive does not take.
MOST_TRIES = 5
# Pauses grow fourfold; five minutes are soon enough for an archive that was away for long.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
GROWTH = 4.0
# Another writer is waited for; each holds the table for milliseconds.
BUSY_S = 30.0

COLUMNS = tuple(each.name for each in fields(Job))
KINDS_OF_COLUMN = {"str": "TEXT", "int": "INTEGER", "bool": "INTEGER", "float": "REAL"}
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS jobs ({
    ", ".join(f"{each.name} {KINDS_OF_COLUMN.get(str(each.type), 'TEXT')} NOT NULL" for each in fields(Job))
}, PRIMARY KEY (id));
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, not_before, created);
CREATE INDEX IF NOT EXISTS by_revision ON jobs (revision);
CREATE INDEX IF NOT EXISTS by_study ON jobs (study_uid);
CREATE TABLE IF NOT EXISTS archives (name TEXT PRIMARY KEY, failures INTEGER, not_before REAL);
CREATE TABLE IF NOT EXISTS card (queue TEXT, revision INTEGER);
"""


class Queue:
    """The queue in a folder, made where there is none.

    clock   seconds since 1970
    chance  spreads the pauses
    Raises ServingRefused where the folder cannot be used, ResourceExhausted where it is full.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._folder, self._clock, self._chance = folder, clock, chance
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(folder / DATABASE, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise ServingRefused(
                f"{folder} cannot be written ({error.strerror}); name a folder of your own with --data"
            ) from error
        with self._opened() as table:
            table.executescript(f"PRAGMA journal_mode = WAL; {SCHEMA}")
        with self._change() as table:
            if not table.execute("SELECT 1 FROM card").fetchone():
                table.execute("INSERT INTO card VALUES (?, 0)", (uuid.uuid4().hex,))

    def hand_in(self, request: Request, version: str) -> tuple[Job, bool]:
        """The job of a request, and whether it is newly to be done. A repeat changes nothing."""
        with self._change() as table:
            return self._handed_in(table, request, version)

    def claim(self, worker: str) -> Job | None:
        """The next job, now this worker's; None where nothing is due."""
        with self._change() as table:
            self._free_the_dead(table)
            now = self._clock()
            # A pause beyond the longest comes of a clock that was set back.
            row = table.execute(
                "SELECT jobs.* FROM jobs LEFT JOIN archives ON archives.name = jobs.archive "
                "WHERE state IN ('queued', 'waiting') "
                "AND (jobs.not_before <= :now OR jobs.not_before > :odd) "
                "AND (COALESCE(archives.not_before, 0) <= :now OR archives.not_before > :odd) "
                "ORDER BY jobs.created, jobs.id LIMIT 1",
                {"now": now, "odd": now + 4.0 * LONGEST_PAUSE_S},
            ).fetchone()
            if row is None:
                return None
            self._set(table, row["id"], state="running", worker=worker, attempts=row["attempts"] + 1)
            return self._row(table, row["id"])

    def keep(self, job: Job, *, verdict: str, told: str, facts: dict[str, Any]) -> None:
        """Notes that a job's result lies on disk whole, and the sentence that it ends with."""
        text = json.dumps({**facts, "summary": one_line(told)})
        with self._change() as table:
            self._check_own(table, job)
            self._set(table, job.id, is_made=1, verdict=verdict, told=one_line(told), facts=text)

    def settle(self, job: Job, outcome: Outcome, *, give_up_s: float = float("inf")) -> None:
        """Writes what became of a job that this worker had taken."""
        with self._change() as table:
            mine = self._check_own(table, job)
            if outcome.state in FINAL:
                self._pause(table, job.archive, failures=0)
                told = one_line(outcome.told) or str(mine.facts.get("summary", ""))
                self._end(table, job, outcome.state, told, outcome.code)
                return
            since = job.waiting_since or self._clock()
            tries = job.attempts >= MOST_TRIES if outcome.counts else self._clock() - since > give_up_s
            if tries:
                self._end(table, job, "failed", one_line(f"{outcome.told} (given up)"), outcome.code)
                return
            if outcome.is_archives:
                self._pause(table, job.archive, failures=None)
            later = self._clock() + self._pause_s(job.attempts)
            told = one_line(outcome.told)
            self._set(
                table, job.id, state="waiting", told=told, code=outcome.code, worker="", not_before=later,
                waiting_since=since,
            )  # fmt: skip

    def move_on(self, job: Job, content: str, *, settle_s: float) -> Job:
        """The job of what the study holds now; this one points at it and is done."""
        now_asked = Request(job.kind, job.archive, job.study_uid, content, job.again)
        with self._change() as table:
            self._check_own(table, job)
            grown = bool(job.content)
            told = "the study has changed since it was handed in" if grown else "looked up"
            self._set(table, job.id, same_as=now_asked.job_id(job.version))
            self._end(table, job, "done", told, "")
            other, is_new = self._handed_in(table, now_asked, job.version)
            if is_new and grown:
                self._set(table, other.id, not_before=self._clock() + settle_s)
            return other

    def release(self, worker: str) -> None:
        """Puts back what a worker that stops in good order has taken."""
        with self._change() as table:
            found = table.execute("SELECT * FROM jobs WHERE state = 'running' AND worker = ?", (worker,))
            for row in found.fetchall():
                self._set(table, row["id"], state="queued", worker="", attempts=row["attempts"] - 1)

    def reopen(self, archive: str, study_uids: Sequence[str]) -> int:
        """How many comparisons that were refused for want of a prior are queued again."""
        wanted = set(study_uids)
        with self._change() as table:
            found = [row for row in self._without_prior(table, archive) if row["study_uid"] in wanted]
            for row in found:
                self._renew(table, row["id"])
            return len(found)

    def has_without_prior(self, archive: str) -> bool:
        """Whether a comparison was refused because its scan had nothing to be compared with."""
        with self._opened() as table:
            return bool(self._without_prior(table, archive))

    def job(self, job_id: str) -> Job | None:
        """A job by its id."""
        with self._opened() as table:
            return self._row(table, job_id)

    def jobs(self, *, study_uid: str = "", after: int | None = None, limit: int = 500) -> tuple[Job, ...]:
        """Jobs, last changed first; of a study, or those changed after a revision, oldest change first."""
        where: list[str] = ["1"]
        values: list[str | int] = []
        if study_uid:
            where, values = ["study_uid = ?"], [study_uid]
        if after is not None:
            where, values = [*where, "revision > ?"], [*values, after]
        order = "DESC" if after is None else "ASC"
        question = f"SELECT * FROM jobs WHERE {' AND '.join(where)} ORDER BY revision {order} LIMIT ?"
        with self._opened() as table:
            return tuple(_job(row) for row in table.execute(question, (*values, limit)))

    def running(self) -> Job | None:
        """The job that is worked on now."""
        with self._opened() as table:
            row = table.execute("SELECT * FROM jobs WHERE state = 'running' LIMIT 1").fetchone()
            return None if row is None else _job(row)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state; those that others took the place of are left out."""
        with self._opened() as table:
            rows = table.execute("SELECT state, COUNT(*) FROM jobs WHERE same_as = '' GROUP BY state")
            return dict(rows.fetchall())

    def name(self) -> str:
        """What tells this queue from another in the same place."""
        with self._opened() as table:
            return str(table.execute("SELECT queue FROM card").fetchone()[0])

    def forget(self, older_than_s: float) -> tuple[str, ...]:
        """The ids of finished jobs older than this, no longer there."""
        with self._change() as table:
            old = self._clock() - older_than_s
            marks = ", ".join("?" for _ in FINAL)
            found = table.execute(
                f"SELECT id FROM jobs WHERE state IN ({marks}) AND updated < ?", (*FINAL, old)
            )
            gone = tuple(row["id"] for row in found)
            table.executemany("DELETE FROM jobs WHERE id = ?", [(each,) for each in gone])
            return gone

    def _handed_in(self, table: sqlite3.Connection, request: Request, version: str) -> tuple[Job, bool]:
        job_id, now = request.job_id(version), self._clock()
        job = self._row(table, job_id)
        if job is None:
            fresh = Job(
                job_id, request.kind, request.archive, request.study_uid, request.content, version,
                state="queued", again=request.again, created=now, updated=now,
            )  # fmt: skip
            values = [
                json.dumps(v) if isinstance(v, dict) else v for v in (getattr(fresh, c) for c in COLUMNS)
            ]
            marks = ", ".join("?" for _ in COLUMNS)
            table.execute(f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({marks})", values)
            self._set(table, job_id)
            is_new = True
        elif job.state in FINAL and (request.again or not request.content):
            self._renew(table, job_id, again=request.again)
            is_new = True
        else:
            if job.state == "waiting" and request.again:
                # Whoever asks so has mended something.
                self._set(table, job_id, not_before=0.0)
                self._pause(table, request.archive, failures=0)
            is_new = False
        found = self._row(table, job_id)
        assert found is not None, "a job that was just written"
        return found, is_new

    def _renew(self, table: sqlite3.Connection, job_id: str, *, again: bool = False) -> None:
        self._set(
            table, job_id, state="queued", told="", code="", verdict="", attempts=0, deaths=0, is_made=0,
            again=int(again), same_as="", not_before=0.0, waiting_since=0.0, worker="",
        )  # fmt: skip

    def _end(self, table: sqlite3.Connection, job: Job, state: str, told: str, code: str) -> None:
        self._set(table, job.id, state=state, told=told, code=code, worker="", again=0, waiting_since=0.0)

    def _free_the_dead(self, table: sqlite3.Connection) -> None:
        """Takes jobs back from workers that have ended without a word."""
        for row in table.execute("SELECT * FROM jobs WHERE state = 'running'").fetchall():
            if is_alive(self._folder / WORKERS, row["worker"]):
                continue
            deaths = row["deaths"] + 1
            state = "failed" if deaths >= MOST_DEATHS else "queued"
            told = f"its worker ended {deaths} times in the middle" if state == "failed" else row["told"]
            self._set(table, row["id"], state=state, told=told, deaths=deaths, worker="")

    def _without_prior(self, table: sqlite3.Connection, archive: str) -> list[sqlite3.Row]:
        question = (
            "SELECT * FROM jobs WHERE state = 'refused' AND code = 'not-comparable' AND archive = ? "
            "AND kind = 'compare'"
        )
        return table.execute(question, (archive,)).fetchall()

    def _pause(self, table: sqlite3.Connection, archive: str, *, failures: int | None) -> None:
        """Lets an archive rest that failed once more (None), or forgets its failures."""
        row = table.execute("SELECT failures FROM archives WHERE name = ?", (archive,)).fetchone()
        count = (row["failures"] if row else 0) + 1 if failures is None else failures
        later = self._clock() + self._pause_s(count) if count else 0.0
        table.execute("INSERT OR REPLACE INTO archives VALUES (?, ?, ?)", (archive, count, later))

    def _pause_s(self, tries: int) -> float:
        """Seconds until the next try, growing, and spread so that not all come at once."""
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * GROWTH ** min(tries - 1, 10))
        return longest * (0.5 + 0.5 * self._chance())

    def _check_own(self, table: sqlite3.Connection, job: Job) -> Job:
        found = self._row(table, job.id)
        if found is None or found.state != "running" or found.worker != job.worker:
            raise ServingRefused(f"job {job.id} is no longer this worker's; nothing was written")
        return found

    def _set(self, table: sqlite3.Connection, job_id: str, **values: Any) -> None:
        table.execute("UPDATE card SET revision = revision + 1")
        values |= {"updated": self._clock()}
        words = ", ".join(f"{name} = :{name}" for name in values)
        table.execute(
            f"UPDATE jobs SET {words}, revision = (SELECT revision FROM card) WHERE id = :id",
            {**values, "id": job_id},
        )

    def _row(self, table: sqlite3.Connection, job_id: str) -> Job | None:
        row = table.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else _job(row)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it, or nothing."""
        with self._opened() as table:
            table.execute("BEGIN IMMEDIATE")
            try:
                yield table
                table.execute("COMMIT")
            except BaseException:
                if table.in_transaction:
                    table.execute("ROLLBACK")
                raise

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        table = None
        try:
            table = sqlite3.connect(self._folder / DATABASE, timeout=BUSY_S, isolation_level=None)
            table.row_factory = sqlite3.Row
            # What was acknowledged is on the disk, also after a power cut.
            table.execute("PRAGMA synchronous = FULL")
            yield table
        except sqlite3.Error as error:
            if "full" in str(error) or "disk I/O" in str(error):
                raise ResourceExhausted(
                    f"the queue in {self._folder} cannot grow ({error}); free some space"
                ) from error
            raise ServingRefused(
                f"the queue in {self._folder} cannot be used ({error}); move {DATABASE} away to begin anew"
            ) from error
        finally:
            if table is not None:
                table.close()


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in COLUMNS}
    values |= {name: bool(values[name]) for name in ("again", "is_made")}
    return Job(**{**values, "facts": json.loads(values["facts"])})
