"""One GPU, one job: a lock of our own, which holds whatever Prefect's server believes.

    FOLDER/<device>.lock   held by flock: the kernel frees it in the moment its holder dies
    FOLDER/<device>.lease  who holds it and when they last said so

The lease is for file systems and containers whose flock does not reach everyone: a lease that
another one renewed within lease_s is respected even where the flock was given. A holder of this
host that is dead is not waited for. It knows nothing of Prefect.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.settings import LockSettings

CPU = "cpu"
ASKED_AGAIN_AFTER_S = 0.5
HOME = Path("~/.cache/medsiam/devices")

Waiting = Callable[[str], None]


class DeviceBusy(Exception):
    """Another job holds the device; it will come back."""


def device_name(device: str) -> str:
    """The physical device behind "auto", "cuda" or "cuda:1": its UUID, the same in each container."""
    import torch  # takes seconds, and the lock itself must not wait for it

    if device == CPU or (device == "auto" and not torch.cuda.is_available()):
        return CPU
    number = int(device.partition(":")[2] or 0)
    return f"gpu-{torch.cuda.get_device_properties(number).uuid}"


def silent(holder: str) -> None:
    """Tells nobody."""


@contextmanager
def held(
    name: str,
    settings: LockSettings,
    *,
    patience_s: float | None = None,
    waiting: Waiting = silent,
) -> Iterator[None]:
    """A block that runs alone on a device.

    name        as device_name gives it
    patience_s  how long to wait for it, for ever where None
    waiting     hears once who holds it

    Raises DeviceBusy when patience is over.
    """
    folder = Path(settings.folder or HOME).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / re.sub(r"[^A-Za-z0-9-]", "_", name)
    lease = _Lease(place.with_suffix(".lease"), settings)
    handle = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(handle, lease, patience_s, waiting)
        with lease.renewed():
            yield
    finally:
        os.close(handle)


def _take(handle: int, lease: _Lease, patience_s: float | None, waiting: Waiting) -> None:
    began, told = time.monotonic(), False
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not lease.is_anothers():
                return
            fcntl.flock(handle, fcntl.LOCK_UN)
        if patience_s is not None and time.monotonic() - began >= patience_s:
            raise DeviceBusy(f"the device is held by {lease.holder()}")
        if not told:
            waiting(lease.holder())
            told = True
        time.sleep(ASKED_AGAIN_AFTER_S)


@dataclass
class _Lease:
    """Who holds a device, as a small file that is written anew while they live."""

    path: Path
    settings: LockSettings

    def __post_init__(self) -> None:
        self._token = secrets.token_hex(8)

    def holder(self) -> str:
        """The process that wrote it last."""
        told = self._read()
        return f"process {told.get('pid')} on {told.get('host')}" if told else "an unknown process"

    def is_anothers(self) -> bool:
        """Whether another one holds it who is alive, or may be."""
        told = self._read()
        if not told or told.get("token") == self._token:
            return False
        if told.get("host") == socket.gethostname() and told.get("boot") == _boot():
            return _started(told.get("pid")) == told.get("started")
        return abs(time.time() - self.path.stat().st_mtime) < self.settings.lease_s

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """A block while which it is written anew; it is gone afterwards."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self.settings.beat_s):
                # A full disk: the flock still holds.
                with contextlib.suppress(OSError):
                    self._write()

        self._write()
        thread = threading.Thread(target=beat, name="device-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        told = {
            "token": self._token,
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "host": socket.gethostname(),
            "boot": _boot(),
        }
        draft = self.path.with_suffix(f".{self._token}")
        draft.write_text(json.dumps(told), encoding="utf-8")
        os.replace(draft, self.path)

    def _read(self) -> dict[str, Any]:
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}


def _started(pid: object) -> str | None:
    """When a process began, in ticks since boot: numbers of processes are used again. None for a dead one."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    # Fields 3 (state) and 22 (start time) of proc(5); a zombie computes nothing any more.
    return None if status[0] in "ZX" else status[19]


def _boot() -> str:
    """This boot of the kernel; containers share it, and have names of their own."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
