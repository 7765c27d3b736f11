"""The scans of a case from disk or archive, the next case's while this one is computed."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medsiam.batch.ledger import OWNER_ONLY, Ledger
from medsiam.batch.remote import fetch
from medsiam.batch.values import BatchSettings, Case, Scan
from medsiam.errors import MedsiamError, Unreadable
from medsiam.reading import SeriesEntry, load_key, read_series
from medsiam.reading.archive import Opener, Source
from medsiam.reading.finding import entries_of
from medsiam.reading.originals import Originals, originals_of
from medsiam.volume import Volume

BLOCK_BYTES = 2**20
# The scans of two cases in a row: a visit is the current of one case and the prior of the next.
MOST_HELD = 3


@dataclass(frozen=True, eq=False)
class ReadScan:
    """A scan that was read.

    digest     of its files' bytes, whatever their names and order
    originals  its headers, where DICOM objects are to be written
    """

    volume: Volume
    digest: str
    originals: Originals | None = None


class Reader:
    """Reads scans, holds the latest few, and reads ahead in one thread.

    A context manager: the thread ends with it.
    """

    def __init__(self, out: str | Path, settings: BatchSettings) -> None:
        self._ledger, self._settings = Ledger(out), settings
        self._key = load_key()
        self._held: OrderedDict[Scan, ReadScan] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._ahead: dict[Case, Future[tuple[ReadScan, ...]]] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def expect(self, cases: Sequence[Case]) -> None:
        """Begins to read these cases' scans, in their order. Errors are raised where they are asked for."""
        self._ahead = {case: self._ahead.get(case) or self._thread.submit(self._read, case) for case in cases}

    def scans(self, case: Case) -> tuple[ReadScan, ...]:
        """The scans of a case. Raises what reading them causes."""
        future = self._ahead.pop(case, None) or self._thread.submit(self._read, case)
        return future.result()

    def _read(self, case: Case) -> tuple[ReadScan, ...]:
        read = []
        for scan in case.scans:
            if scan not in self._held:
                self._held[scan] = _read(scan, self._ledger, self._settings, self._key)
            self._held.move_to_end(scan)
            read.append(self._held[scan])
        while len(self._held) > MOST_HELD:
            self._held.popitem(last=False)
        return tuple(read)


def digest_of_files(sources: Sequence[Source]) -> str:
    """SHA-256 over the digests of the files, in the order of these digests."""
    digests = []
    with Opener() as opener:
        for source in sources:
            found = hashlib.sha256()
            with opener.open(source) as file:
                while block := file.read(BLOCK_BYTES):
                    found.update(block)
            digests.append(found.hexdigest())
    return hashlib.sha256(" ".join(sorted(digests)).encode()).hexdigest()


def inputs_of(case: Case) -> list[str]:
    """The digest of each scan of a case, as its key holds it; nothing is fetched.

    Of a series in an archive, its UIDs and the number of its instances: an instance's UID stands
    for its content.
    """
    return [scan.signature if scan.url else digest_of_files(_sources(scan)) for scan in case.scans]


def entry_of(scan: Scan, key: bytes) -> SeriesEntry:
    """The series on disk that a plan speaks of, its headers read again.

    Raises its refusal, or Unreadable where it is not there any more.
    """
    return _entry_of(scan, _sources(scan), key)


def _read(scan: Scan, ledger: Ledger, settings: BatchSettings, key: bytes) -> ReadScan:
    with _files_of(scan, ledger, settings) as sources:
        digest = scan.signature if scan.url else digest_of_files(sources)
        entry = _entry_of(scan, sources, key)
        volume = read_series(entry)
        has_objects = "dicom" in settings.formats and entry.kind == "dicom"
        return ReadScan(volume, digest, originals_of(entry) if has_objects else None)


@contextmanager
def _files_of(scan: Scan, ledger: Ledger, settings: BatchSettings) -> Iterator[Sequence[Source]]:
    """The files of a scan; those that were fetched are gone afterwards."""
    if not scan.url:
        yield _sources(scan)
        return
    # Beside the results: a temporary folder of the system may be small, or memory.
    folder = ledger.home / "stage" / f"fetched-{secrets.token_hex(8)}"
    with ledger.held(folder.name):
        try:
            folder.mkdir(mode=OWNER_ONLY)
            yield fetch(scan, folder, settings.pacs)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            (ledger.home / "locks" / folder.name).unlink(missing_ok=True)


def _sources(scan: Scan) -> list[Source]:
    return [Source(Path(path), member) for path, member in scan.files]


def _entry_of(scan: Scan, sources: Sequence[Source], key: bytes) -> SeriesEntry:
    """The series among these files. Raises its refusal, or Unreadable where it is not there any more."""
    entries, _ = entries_of(sources, key)
    usable = [entry for entry in entries if entry.is_usable]
    named = [entry for entry in usable if entry.name == scan.name] or usable
    if len(named) == 1:
        return named[0]
    refusals: list[MedsiamError] = [entry.refusal for entry in entries if entry.refusal is not None]
    if refusals:
        raise refusals[0]
    raise Unreadable(f"{len(named)} series are where one was planned; the files changed, run the batch again")
