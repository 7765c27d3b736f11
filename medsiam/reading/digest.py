"""The digest of a scan, that of its voxels and geometry, also taken while it is read."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsiam.volume import Grid

Array = NDArray[np.float32]


def digest(values: Array, grid: Grid) -> str:
    """SHA-256 of voxels and geometry, the same whatever the files' names, order or compression."""
    found = _begun(grid)
    found.update(_bytes(values))
    return found.hexdigest()


class RunningDigest:
    """The same as `digest`, slice by slice, in a thread beside the reading.

    A context manager: an error in its body ends the thread too.
    """

    def __init__(self, grid: Grid) -> None:
        self._hash = _begun(grid)
        self._waiting: dict[int, Array] = {}
        self._next = 0
        self._lock = Lock()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> RunningDigest:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)

    def add(self, number: int, plane: Array) -> None:
        """Counts slice `number` (rows, columns) in as soon as all before it are; any thread may call."""
        with self._lock:
            self._waiting[number] = plane
            while self._next in self._waiting:
                self._thread.submit(self._hash.update, _bytes(self._waiting.pop(self._next)))
                self._next += 1

    def found(self) -> str:
        """The digest, once the body has ended."""
        assert not self._waiting, "a slice is missing"
        return str(self._hash.hexdigest())


def _begun(grid: Grid) -> Any:
    found = hashlib.sha256(repr(grid.shape).encode())
    # Adding zero makes a negative zero positive.
    found.update((np.round(grid.world_from_index, 4).astype("<f8") + 0.0).tobytes())
    return found


def _bytes(values: Array) -> memoryview:
    return np.ascontiguousarray(values, dtype="<f4").data
