"""Independent parts of a comparison at the same time, each on its share of the cores.

Two that each spread over all cores wait for each other more than they gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import torch


class _Cores:
    """How many threads torch has while nobody has dealt them out."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._threads = 1

    def taken(self) -> int:
        """That number, for one more user."""
        with self._lock:
            if self._users == 0:
                self._threads = torch.get_num_threads()
            self._users += 1
            return self._threads

    def given_back(self) -> None:
        """To be called once by each user."""
        with self._lock:
            self._users -= 1
            # A thread sets its own number, and that of all threads that are made later.
            torch.set_num_threads(self._threads)


_CORES = _Cores()


@contextmanager
def side_by_side(parts: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that does up to so many parts at once; torch's threads are dealt out among them.

    What a part gives does not hang on the others, only in its last digits on how many threads it has.
    """
    threads = _CORES.taken()
    at_once = max(1, min(parts, threads))
    share = max(1, threads // at_once)
    try:
        with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        _CORES.given_back()
