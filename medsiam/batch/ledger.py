"""What is done, under a digest of everything it depends on: the truth of a batch.

    OUT/.medsiam/ledger/<case>.json   one record a case, put there whole by one rename
    OUT/.medsiam/locks/<case>         held by whoever computes the case; a dead process gives it back
    OUT/.medsiam/stage/<case>         a result in the making, renamed into place when it is whole

A file a case and no data base: a record is either there or not whatever is killed, workers on
several hosts can share the folder (SQLite's write-ahead log cannot lie on a network file system),
and each case has its own lock, so two runs on one folder share the work. The order is result,
then record: a kill between them costs the case in hand, and what no record speaks of is never
taken for a result.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from medsiam import __version__
from medsiam.batch.values import BatchSettings, Case, Row
from medsiam.change.dense import dense_weights_sha256
from medsiam.config import settings_as_dict
from medsiam.encoding.weights import SHIPPED
from medsiam.errors import InputRefused
from medsiam.pairing.region import brain_weights_sha256
from medsiam.report.digests import digests_of, sha256_of

HOME = ".medsiam"
SCHEMA = "medsiam.ledger/1"
# Nobody else may look: the plan holds the paths of scans, which may hold names.
OWNER_ONLY = 0o700

# Patient keys and case ids are hexadecimal digests; a case from elsewhere must not lead elsewhere.
NAME = re.compile(r"[0-9a-z-]{1,64}")

# What an OUT that may not be written says; a full disk is another matter.
CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR})

# A row's fields that say when it was computed, not what came of it.
_OF_THIS_RUN = ("is_fresh",)


@dataclass(frozen=True)
class Record:
    """What became of a case.

    key     digest of inputs, weights, settings and version that it was computed with
    inputs  of each scan: the signature of its files, and the digest of their bytes
    files   of the result, relative to OUT: SHA-256, size and time of change
    pair    of a comparison: what a trajectory needs of it, as pair_record writes it
    """

    case_id: str
    key: str
    row: Row
    inputs: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pair: Mapping[str, Any] | None = None


class Ledger:
    """The ledger of one output folder."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.home = self.out / HOME

    def open(self) -> Ledger:
        """The ledger with its folders made. Raises InputRefused where they cannot be."""
        with self._writing():
            self.out.mkdir(parents=True, exist_ok=True)
            for name in ("", "ledger", "locks", "stage"):
                (self.home / name).mkdir(mode=OWNER_ONLY, exist_ok=True)
        return self

    @contextmanager
    def held(self, case_id: str, *, wait: bool = True) -> Iterator[bool]:
        """Whether the case is ours while the block runs; False where another holds it and we do not wait."""
        with self._writing():
            handle = os.open(self.home / "locks" / case_id, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(handle)

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Which of the runs on OUT this one is, counted from 0; the number of a dead one is free again."""
        for number in itertools.count():
            with self.held(f"run-{number}", wait=False) as is_ours:
                if is_ours:
                    yield number
                    return

    def record(self, case_id: str) -> Record | None:
        """What the ledger says of a case; None where it says nothing that can be read."""
        try:
            told = json.loads(self._path(case_id).read_text(encoding="utf-8"))
            names = {each.name for each in fields(Row)}
            row = Row(**{name: value for name, value in told["row"].items() if name in names})
            inputs = tuple((str(a), str(b)) for a, b in told["inputs"])
            return Record(told["case_id"], told["key"], row, inputs, told["files"], told["pair"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, record: Record) -> None:
        """Puts a record in its place by one rename, once it is on the disk.

        Raises InputRefused where OUT may not be written any more.
        """
        row = {name: value for name, value in record.row.as_dict().items() if name not in _OF_THIS_RUN}
        told = {
            "schema": SCHEMA, "case_id": record.case_id, "key": record.key, "row": row,
            "inputs": [list(each) for each in record.inputs], "files": record.files, "pair": record.pair,
        }  # fmt: skip
        text = json.dumps(told, ensure_ascii=False, default=float) + "\n"
        with self._writing():
            write_whole(self._path(record.case_id), text)

    def done(self, case: Case, key: str | None = None, settings: BatchSettings | None = None) -> Row | None:
        """The row of a case that was done with this key and whose files still stand; else None.

        key  as key_of makes it; None takes the recorded inputs for what they are now, which holds
             while no file was touched since
        """
        record = self.record(case.case_id)
        if record is None or record.row.state not in ("compared", "refused"):
            return None
        if key is None:
            assert settings is not None, "without a key the settings make it"
            signatures = tuple(scan.signature for scan in case.scans)
            if signatures != tuple(signature for signature, _ in record.inputs):
                return None
            key = key_of(case, [digest for _, digest in record.inputs], settings)
        return record.row if record.key == key and self._stands(record) else None

    def sweep(self, case: Case) -> None:
        """Takes away what a killed process left of this case. Only for who holds it."""
        shutil.rmtree(self.stage(case), ignore_errors=True)
        for left in self.folder(case).glob(".medsiam-*"):
            shutil.rmtree(left, ignore_errors=True)

    def sweep_all(self) -> None:
        """Takes away whatever killed processes left half made; what a living one makes is held."""
        for left in sorted((self.home / "stage").iterdir()):
            with self.held(left.name, wait=False) as is_ours:
                if is_ours:
                    shutil.rmtree(left, ignore_errors=True)

    def folder(self, case: Case) -> Path:
        """Where the result of a case stands."""
        assert NAME.fullmatch(case.patient_key) and NAME.fullmatch(case.case_id), "ids are digests"
        return self.out / case.patient_key / case.case_id

    def stage(self, case: Case) -> Path:
        """Where it is made."""
        return self.home / "stage" / case.case_id

    def place(self, case: Case) -> dict[str, Mapping[str, Any]]:
        """The result moved from its stage into its place, and what its files are."""
        home = self.folder(case)
        home.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.stage(case), home)
        settle(home.parent)
        return self.files_of(case)

    def files_of(self, case: Case) -> dict[str, Mapping[str, Any]]:
        """Digest, size and time of every file of a result, relative to OUT."""
        home = self.folder(case)
        found: dict[str, Mapping[str, Any]] = {}
        for name, sha256 in digests_of(
            self.out, [path for path in home.rglob("*") if path.is_file()]
        ).items():
            status = (self.out / name).stat()
            found[name] = {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        return found

    def _stands(self, record: Record) -> bool:
        """Whether the files of a record are there and are what they were."""
        for name, told in record.files.items():
            try:
                status = (self.out / name).stat()
            except OSError:
                return False
            if status.st_size != told["size"]:
                return False
            # Only a file that was touched is read: a night's archive holds terabytes.
            if status.st_mtime_ns != told["mtime_ns"] and sha256_of(self.out / name) != told["sha256"]:
                return False
        return bool(record.files) or record.row.report is None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A block that writes below OUT. Raises InputRefused where that is not allowed."""
        try:
            yield
        except OSError as error:
            if error.errno not in CLOSED:
                raise
            raise InputRefused(
                f"cannot write to {self.out}: {error.strerror}; choose a folder you may write to"
            ) from error

    def _path(self, case_id: str) -> Path:
        return self.home / "ledger" / f"{case_id}.json"


def key_of(case: Case, inputs: Sequence[str], settings: BatchSettings) -> str:
    """The digest of all that a result depends on: inputs, weights, settings, version."""
    told = {"kind": case.kind, "inputs": list(inputs), **settings_told(settings, case.spatial_dims)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def settings_told(settings: BatchSettings, spatial_dims: int) -> dict[str, Any]:
    """What of the settings changes a result. The device does not: it stands in each report."""
    return {
        "config": settings_as_dict(settings.compare),
        "fast": settings.fast,
        "seed": settings.seed,
        "formats": sorted(settings.formats),
        "similar_cases": settings.index is not None,
        "weights": weights_told(settings.weights, spatial_dims),
        "medsiam": __version__,
    }


@lru_cache(maxsize=8)
def weights_told(weights: str | None, spatial_dims: int) -> dict[str, str]:
    """The digests of the networks that a comparison of so many dimensions asks."""
    told = {"encoder": _encoder_sha256(weights, spatial_dims)}
    if spatial_dims == 3:
        told |= {"brain": brain_weights_sha256(), "change": dense_weights_sha256()}
    return told


def write_whole(path: Path, text: str) -> None:
    """Writes a file by one rename, once its bytes are on the disk."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        settle(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def settle(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot; then their own order must do.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def fresh(row: Row) -> Row:
    """The row as one of this run."""
    return replace(row, is_fresh=True)


def _encoder_sha256(weights: str | None, spatial_dims: int) -> str:
    if weights is not None and weights not in SHIPPED:
        path = Path(weights)
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        return hashlib.sha256("".join(sha256_of(each) for each in files).encode()).hexdigest()
    fitting = [each for each in SHIPPED.values() if each.spatial_dims == spatial_dims]
    chosen = SHIPPED[weights] if weights is not None else fitting[0] if fitting else None
    return chosen.sha256 if chosen else ""
