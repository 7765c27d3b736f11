"""Foreign compressed pixels decoded in child processes, with limits on memory and time."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from medsiam.errors import Unreadable

# Address space of a child. The libraries take .6 GiB, the largest single
# frame (below) three copies as 32-bit numbers.
CHILD_BYTES = 1536 * 2**20

# The largest frame: 8192 x 8192. Mammograms have 24 megapixels.
MOST_FRAME_PIXELS = 64 * 2**20

# Starting a child costs as much as decoding so many pixels: ten slices of 512 x 512.
PIXELS_OF_A_START = 10 * 2**18

# Seconds: for starting on a busy machine, and for each 512 x 512 pixels.
# JPEG 2000, the slowest, takes .05 s on an idle core.
START_SECONDS = 30.0
SECONDS_PER_PIXEL = 0.5 / 2**18

# More children than this wait for the disk and for each other.
MOST_CHILDREN = 4

# A slice and its question or answer pass through a pipe in few pieces.
PIPE_BYTES = 2**20

# The heading of an answer tells a type, a shape, or a reason.
MOST_HEAD_BYTES = 2**16

_PROGRAM = Path(__file__).with_name("decode_child.py")

Cells = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Job:
    """The encapsulated pixel data of one file.

    options  rows, columns, number_of_frames, syntax … as decode_child takes them
    data     the items, from behind the element's own header
    """

    options: dict[str, Any]
    data: bytes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, rows and columns as declared."""
        return (self.options["number_of_frames"], self.options["rows"], self.options["columns"])


def decode(jobs: Iterator[Job], take: Callable[[int, Cells], None], *, pixels: int) -> None:
    """Gives `take` the number of each job and its stored integers (frames, rows, columns).

    In any order and from several threads; jobs are asked for one after the other, when a
    child is free, so that few are held at a time.
    pixels  of all jobs, which says how many children are worth their start
    Raises Unreadable where a codec fails, crashes, hangs or needs too much memory: the
    reason of the first such job, whatever the order in which they ended.
    """
    children = max(1, min(MOST_CHILDREN, os.cpu_count() or 1, pixels // PIXELS_OF_A_START))
    work = _Work(jobs)
    with ThreadPoolExecutor(children) as pool:
        try:
            for future in [pool.submit(_serve, work, take) for _ in range(children)]:
                future.result()
        finally:
            work.stop()
    work.check()


class _Work:
    """Jobs with their numbers for several threads, until all are given out or one has failed."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = enumerate(jobs)
        self._next = 0
        self._lock = threading.Lock()
        self._failures: dict[int, Unreadable] = {}
        self._is_over = False

    def __iter__(self) -> Iterator[tuple[int, Job]]:
        while (given := self._given()) is not None:
            yield given

    def _given(self) -> tuple[int, Job] | None:
        with self._lock:
            if self._is_over:
                return None
            try:
                number, job = next(self._jobs)
            except StopIteration:
                return None
            except Unreadable as error:
                self._failures[self._next], self._is_over = error, True
                return None
            self._next = number + 1
            return number, job

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Work for one job: where it fails, no further job is given out.

        Those before it were given out earlier and are ended, so the first failure is known.
        """
        try:
            yield
        except Unreadable as error:
            with self._lock:
                self._failures[number], self._is_over = error, True

    def stop(self) -> None:
        """Gives out no more."""
        self._is_over = True

    def check(self) -> None:
        """Raises the failure of the first job that has one."""
        if self._failures:
            raise self._failures[min(self._failures)]


def _serve(work: _Work, take: Callable[[int, Cells], None]) -> None:
    """One child at work. What it answered is taken while it does its next job."""
    held: tuple[int, Cells] | None = None
    with _Child() as child:
        for number, job in work:
            child.ask(job)
            if held is not None:
                with work.of(held[0]):
                    take(*held)
                held = None
            with work.of(number):
                held = number, child.answer(job)
    if held is not None:
        with work.of(held[0]):
            take(*held)


class _Child:
    """A process of decode_child, which is asked and answers in turns.

    What it has over from one answer it has for the next; all together it has no more than
    START_SECONDS and SECONDS_PER_PIXEL, so that many slow slices are no way around the limit.
    """

    def __enter__(self) -> _Child:
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), str(CHILD_BYTES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=_environment(), pipesize=PIPE_BYTES,
        )  # fmt: skip
        self._allowed_s, self._spent_s, self._is_late = START_SECONDS, 0.0, False
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes():
            # What a dead child did not read any more is lost with it.
            with suppress(BrokenPipeError):
                pipe.close()

    def ask(self, job: Job) -> None:
        """Sends a job. That the child is dead is told by the answer that does not come."""
        self._allowed_s += SECONDS_PER_PIXEL * math.prod(job.shape)
        self._asked_s = time.monotonic()
        self._timer = threading.Timer(self._allowed_s - self._spent_s, self._too_late)
        self._timer.daemon = True
        self._timer.start()
        head = json.dumps({**job.options, "bytes": len(job.data)}).encode()
        sink, _ = self._pipes()
        with suppress(BrokenPipeError):
            sink.write(struct.pack("<Q", len(head)) + head + job.data)
            sink.flush()

    def answer(self, job: Job) -> Cells:
        """The answer to the job just asked, an array of the size that was asked for."""
        try:
            # A codec that was made to misbehave may write anything.
            return _answer(self._pipes()[1], job)
        except EOFError as error:
            raise self._end() from error
        except _NONSENSE as error:
            raise Unreadable(
                "the decoder of the compressed pixels answered nonsense "
                f"({type(error).__name__}); they are damaged or hostile; export the series uncompressed"
            ) from error
        finally:
            self._timer.cancel()
            self._spent_s += time.monotonic() - self._asked_s

    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        sink, source = self._process.stdin, self._process.stdout
        assert sink is not None and source is not None, "both were asked for"
        return cast(BinaryIO, sink), cast(BinaryIO, source)

    def _too_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _end(self) -> Unreadable:
        """Why there is no answer."""
        status = self._process.wait()
        if self._is_late:
            return Unreadable(
                f"the compressed pixels were not decoded within {self._allowed_s:.0f} s; they are damaged or "
                "hostile, or the machine is overloaded; decompress them elsewhere"
            )
        return Unreadable(
            f"the decoder of the compressed pixels broke down (status {status}); "
            "they are damaged or hostile; export the series uncompressed"
        )


_NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, struct.error)


def _answer(source: BinaryIO, job: Job) -> Cells:
    """One answer. Raises EOFError where it ends early, and one of _NONSENSE."""
    length = struct.unpack("<Q", _exactly(source, 8))[0]
    if length > MOST_HEAD_BYTES:
        raise ValueError("a heading without end")
    head = json.loads(_exactly(source, length))
    if "error" in head:
        raise Unreadable(
            f"compressed pixels cannot be decoded: {str(head['error'])[:200]}; export the series uncompressed"
        )
    dtype = np.dtype(head["dtype"])
    if tuple(head["shape"]) != job.shape or dtype.kind not in "iu":
        raise ValueError("another shape or kind than was asked for")
    if dtype.itemsize * 8 != job.options["bits_allocated"]:
        raise ValueError("cells of another size than was asked for")
    cells = np.empty(job.shape, dtype)
    if source.readinto(cells.data.cast("B")) < cells.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return cells


def _exactly(source: BinaryIO, count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _environment() -> dict[str, str]:
    # Thread pools of number libraries reserve address space by the core.
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **single, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
