"""Foreign compressed pixels decoded in a child process, with limits on memory and time."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsiam.errors import Unreadable

# Address space of a child. The libraries take .6 GiB, the largest single
# frame (below) three copies as 32-bit numbers, a batch and its answer the rest.
CHILD_BYTES = 1536 * 2**20

# The largest frame: 8192 x 8192. Mammograms have 24 megapixels.
MOST_FRAME_PIXELS = 64 * 2**20

# Pixels that one child decodes, so that its memory stays bounded.
BATCH_PIXELS = 32 * 2**20

# Seconds: for starting on a busy machine, and for each 512 x 512 pixels.
# JPEG 2000, the slowest, takes .05 s on an idle core.
START_SECONDS = 30.0
SECONDS_PER_PIXEL = 0.5 / 2**18

# More children than this wait for the disk and for each other.
MOST_CHILDREN = 4

_PROGRAM = Path(__file__).with_name("decode_child.py")


@dataclass(frozen=True, eq=False)
class Job:
    """The encapsulated pixel data of one file.

    options  rows, columns, number_of_frames, syntax … as decode_child takes them
    data     the items, from behind the element's own header
    """

    options: dict[str, Any]
    data: bytes

    @property
    def pixels(self) -> int:
        """Pixels of all frames as declared."""
        return int(self.options["rows"] * self.options["columns"] * self.options["number_of_frames"])


def decoded(jobs: Sequence[Job]) -> Iterator[NDArray[Any]]:
    """The stored integers (frames, rows, columns) of each job, in order.

    Raises Unreadable where a codec fails, crashes, hangs or needs too much memory.
    """
    children = max(1, min(MOST_CHILDREN, os.cpu_count() or 1))
    batches = list(_batches(jobs, children))
    with ThreadPoolExecutor(min(children, len(batches))) as pool:
        for found in pool.map(_decoded_batch, batches):
            yield from found


def _batches(jobs: Sequence[Job], children: int) -> Iterator[list[Job]]:
    # Starting a child costs about as much as ten slices of 512 x 512.
    share = max(math.ceil(sum(job.pixels for job in jobs) / children), 10 * 2**18)
    batch: list[Job] = []
    size = 0
    for job in jobs:
        if batch and size + job.pixels > min(share, BATCH_PIXELS):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += job.pixels
    yield batch


def _decoded_batch(jobs: list[Job]) -> list[NDArray[Any]]:
    seconds = START_SECONDS + SECONDS_PER_PIXEL * sum(job.pixels for job in jobs)
    questions = b"".join(_record(job) for job in jobs)
    try:
        done = subprocess.run(
            [sys.executable, str(_PROGRAM), str(CHILD_BYTES)],
            input=questions, capture_output=True, timeout=seconds, env=_environment(), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unreadable(
            f"the compressed pixels were not decoded within {seconds:.0f} s; they are damaged or hostile, "
            "or the machine is overloaded; decompress them elsewhere"
        ) from error
    if done.returncode != 0:
        raise Unreadable(
            f"the decoder of the compressed pixels broke down (status {done.returncode}); "
            "they are damaged or hostile; export the series uncompressed"
        )
    return list(_answers(done.stdout, jobs))


def _record(job: Job) -> bytes:
    head = json.dumps({**job.options, "bytes": len(job.data)}).encode()
    return struct.pack("<Q", len(head)) + head + job.data


def _answers(output: bytes, jobs: Sequence[Job]) -> Iterator[NDArray[Any]]:
    file = io.BytesIO(output)
    for job in jobs:
        try:
            # A codec that was made to misbehave may write anything.
            yield _answer(file, output, job)
        except _NONSENSE as error:
            raise Unreadable(
                "the decoder of the compressed pixels answered nonsense "
                f"({type(error).__name__}); they are damaged or hostile; export the series uncompressed"
            ) from error


_NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, struct.error)


def _answer(file: io.BytesIO, output: bytes, job: Job) -> NDArray[Any]:
    """One answer as an array of the size that was asked for."""
    head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    if "error" in head:
        raise Unreadable(
            f"compressed pixels cannot be decoded: {str(head['error'])[:200]}; export the series uncompressed"
        )
    dtype = np.dtype(head["dtype"])
    asked = tuple(job.options[name] for name in ("number_of_frames", "rows", "columns"))
    if tuple(head["shape"]) != asked or dtype.kind not in "iu":
        raise ValueError("another shape or kind than was asked for")
    array = np.frombuffer(output, dtype, math.prod(asked), file.tell())
    file.seek(array.nbytes, io.SEEK_CUR)
    return array.reshape(asked)


def _environment() -> dict[str, str]:
    # Thread pools of number libraries reserve address space by the core.
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **single, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
