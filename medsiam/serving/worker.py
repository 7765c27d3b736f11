"""The worker: takes one job at a time, with warm models, until it is told to stop."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsiam.errors import MedsiamError
from medsiam.serving.job import Job
from medsiam.serving.lifeline import bury, lifeline
from medsiam.serving.queue import WORKERS, Queue
from medsiam.serving.settings import ServeSettings
from medsiam.serving.work import DAY_S, DRAFTS, Bench, do_job, forget_old

# An idle worker looks so often; the question costs less than a millisecond.
POLL_S = 0.5
# Old results are looked for so often.
FORGET_EVERY_S = 3600.0

Progress = Callable[[str], None]


class Stopped(BaseException):
    """The process was asked to end: what it holds goes back into the queue."""


def work(folder: Path, settings: ServeSettings, progress: Progress) -> None:
    """Works until a signal, or until the process that started this one has ended.

    Raises ServingRefused where the queue cannot be used.
    """
    queue = Queue(folder)
    parent = os.getppid()
    with lifeline(folder / WORKERS) as name, _ends_by_signal():
        bench = Bench(queue, folder, settings, name, progress)
        try:
            _clear_drafts(folder)
            _loop(bench, lambda: os.getppid() == parent)
        except Stopped:
            progress("stopped")
        finally:
            queue.release(name)
            shutil.rmtree(bench.drafts, ignore_errors=True)


def _loop(bench: Bench, is_wanted: Callable[[], bool]) -> None:
    forgot = float("-inf")
    while is_wanted():
        job = bench.queue.claim(bench.name)
        if job is not None:
            _do(bench, job)
            continue
        if time.monotonic() - forgot > FORGET_EVERY_S:
            forget_old(bench)
            forgot = time.monotonic()
        time.sleep(POLL_S)


def _do(bench: Bench, job: Job) -> None:
    bench.progress(f"job {job.id}: {job.kind}, try {job.attempts}")
    outcome = do_job(bench, job)
    if outcome is None:
        bench.progress(f"job {job.id}: another took its place")
        return
    try:
        bench.queue.settle(job, outcome, give_up_s=bench.settings.work.give_up_days * DAY_S)
    except MedsiamError as error:
        # Taken away in the middle, or a disk that is full: it is found again by its lost worker.
        bench.progress(f"job {job.id}: {error}")
        return
    bench.progress(f"job {job.id}: {outcome.state} {outcome.code}".rstrip())


def _clear_drafts(folder: Path) -> None:
    """Removes what workers that were killed had fetched."""
    bury(folder / WORKERS)
    alive = {path.stem for path in (folder / WORKERS).glob("*.lock")}
    for draft in (folder / DRAFTS).glob("*"):
        if draft.name not in alive:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _ends_by_signal() -> Iterator[None]:
    """A block that SIGTERM and SIGINT end in good order."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
