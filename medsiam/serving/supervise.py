"""`medsiam serve` as a whole: the HTTP face here, the worker in a process of its own beside it.

A worker that dies is replaced, one that hangs is ended; the queue gives its job back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsiam.serving.lifeline import alone_in
from medsiam.serving.queue import Queue
from medsiam.serving.server import QueueServer
from medsiam.serving.settings import ServeSettings, token_of

LOOK_S = 0.5
# A worker that dies at once is started again after growing pauses.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# A worker that lived so long died of something else.
HEALTHY_S = 120.0
# A worker that is asked to end puts its job back first.
GRACE_S = 15.0

Progress = Callable[[str], None]


def serve(folder: Path, settings: ServeSettings, worker: Sequence[str], progress: Progress) -> None:
    """Serves until SIGTERM or SIGINT.

    worker  the command that starts one

    Raises ServingRefused where the folder, the token or the port cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Evidence that waits to be sent carries names: the folder is its owner's alone.
    os.chmod(folder, 0o700)
    with alone_in(folder):
        server = QueueServer(folder, settings, token_of(settings.http, folder))
        with _asked_to_end() as end, _answering(server):
            progress(f"listening at {settings.http.host}:{server.server_port}")
            _keep_working(Queue(folder), worker, settings.work.job_limit_s, end, progress)


def _keep_working(
    queue: Queue, command: Sequence[str], limit_s: float, end: threading.Event, progress: Progress
) -> None:
    """Has one worker at work until the end."""
    pause_s = FIRST_PAUSE_S
    while not end.is_set():
        started = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            _watch(process, queue, limit_s, end, progress)
        finally:
            _end(process)
        if end.is_set():
            return
        pause_s = (
            FIRST_PAUSE_S if time.monotonic() - started > HEALTHY_S else min(LONGEST_PAUSE_S, 2 * pause_s)
        )
        progress(f"the worker ended ({process.returncode}); the next one starts in {pause_s:g} s")
        end.wait(pause_s)


def _watch(
    process: subprocess.Popen[bytes], queue: Queue, limit_s: float, end: threading.Event, progress: Progress
) -> None:
    """Returns when the worker has ended or the end has come; kills it over a job that takes too long."""
    at_work, since = ("", 0), time.monotonic()
    while process.poll() is None and not end.wait(LOOK_S):
        running = queue.running()
        now_at = (running.id, running.attempts) if running else ("", 0)
        if now_at != at_work:
            at_work, since = now_at, time.monotonic()
        elif running and time.monotonic() - since > limit_s:
            progress(f"job {running.id} takes longer than {limit_s:g} s; its worker is ended")
            process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


@contextmanager
def _answering(server: QueueServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _asked_to_end() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    event = threading.Event()

    def stop(number: int, frame: Any) -> None:
        event.set()

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
