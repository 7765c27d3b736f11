"""A sign of life that the kernel keeps: a locked file, free the moment its process ends.

A lease by the clock would be given up by a jump of the clock, or too late; a lock of
the kernel is gone with `kill -9` and with nothing else.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsiam.errors import ServingRefused

SUFFIX = ".lock"


@contextmanager
def lifeline(folder: Path) -> Iterator[str]:
    """A new name, alive until the process ends or the block is left."""
    name = secrets.token_hex(8)
    path = folder / f"{name}{SUFFIX}"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield name
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the process that took a name still runs."""
    try:
        handle = os.open(folder / f"{name}{SUFFIX}", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def bury(folder: Path) -> tuple[str, ...]:
    """The names whose process has ended; their files are removed."""
    dead = [path.stem for path in folder.glob(f"*{SUFFIX}") if not is_alive(folder, path.stem)]
    for name in dead:
        (folder / f"{name}{SUFFIX}").unlink(missing_ok=True)
    return tuple(dead)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A block that no other process runs for the same folder. Raises ServingRefused where one does."""
    handle = os.open(folder / f"serve{SUFFIX}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ServingRefused(
            f"{folder} is being served already; end that one, or name another folder"
        ) from error
    finally:
        os.close(handle)
