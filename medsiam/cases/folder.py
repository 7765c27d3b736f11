"""The folder of an index: closed to others, with one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from medsiam.errors import IndexDamaged, IndexRefused

CARD = "index.json"
LOCK = ".writer"

# What others may do with a folder; a group is taken for people who are meant.
FOR_OTHERS = stat.S_IRWXO
OWNER_ONLY_MASK = 0o077

# A writer holds the lock for one batch or one tidying, which takes seconds.
PATIENCE_S = 300.0
POLL_S = 0.05


def make_private(folder: Path, *, allow_shared: bool) -> None:
    """Makes the folder with mode 0700 where it is not there.

    Raises IndexRefused where it is there and others may read it, unless that is allowed,
    or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise IndexRefused(
            f"the index folder {folder} cannot be made ({error.strerror}); choose another place"
        ) from error
    if mode & FOR_OTHERS and not allow_shared:
        raise IndexRefused(
            f"others may look into {folder} (mode {stat.S_IMODE(mode):04o}) and embeddings are personal "
            "data; "
            f"`chmod 700 {folder}`, or pass --allow-shared-folder"
        )


@contextmanager
def only_writer(folder: Path, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """The lock of this index, held while the block runs; files made in it have mode 0600.

    A process that dies gives it back. The folder itself is locked beside the file, which may
    be deleted under a writer. Raises IndexRefused where it is not free in time, or the
    folder cannot be written.
    """
    with ExitStack() as held:
        try:
            handles = [
                _opened(folder / LOCK, os.O_RDWR | os.O_CREAT, held),
                _opened(folder, os.O_RDONLY | os.O_DIRECTORY, held),
            ]
        except OSError as error:
            raise IndexRefused(
                f"the index in {folder} cannot be written ({error.strerror}); check its permissions"
            ) from error
        held.callback(os.umask, os.umask(OWNER_ONLY_MASK))
        deadline = time.monotonic() + patience_s
        for handle in handles:
            _wait_for(handle, folder, deadline)
        yield


def read_card(folder: Path) -> dict[str, Any]:
    """What index.json says. Raises IndexRefused where it is missing, IndexDamaged where it is broken."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexRefused(
            f"there is no index in {folder}; make one with `medsiam index add SCAN --index {folder}`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise IndexDamaged(
            f"{folder / CARD} cannot be read ({type(error).__name__}); restore it from a backup"
        ) from error
    if not isinstance(card, dict):
        raise IndexDamaged(f"{folder / CARD} holds no index card; restore it from a backup")
    return card


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes index.json whole, by one rename."""
    write_private(folder / CARD, json.dumps(card, indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """Writes a file with mode 0600, whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _opened(path: Path, flags: int, held: ExitStack) -> int:
    handle = os.open(path, flags, 0o600)
    held.callback(os.close, handle)
    return handle


def _wait_for(handle: int, folder: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise IndexRefused(
                    f"another process writes to the index in {folder}; wait until it has ended"
                ) from None
            time.sleep(POLL_S)
        except OSError as error:
            # Network file systems cannot lock a folder; there the file alone must do.
            if error.errno != errno.EBADF:
                raise
            return
