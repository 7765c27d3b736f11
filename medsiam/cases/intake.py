"""An archive of scans into the index: found, read ahead, embedded by one warm model, stored in batches.

    paths -> series -> [skip what is known] -> read (threads) -> embed -> rows -> index

What is stored stays when the run is cut short, and a second run goes on: files that have
not changed are not even read.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from medsiam.cases.case import Case
from medsiam.cases.changes import link_changes
from medsiam.cases.describe import finding_cases, scan_case
from medsiam.cases.filters import equal
from medsiam.cases.index import Added, CaseIndex
from medsiam.cases.issuers import remember_issuers
from medsiam.cases.labels import LabelTable, Told
from medsiam.cases.region import Region, regions_of_labels
from medsiam.encoding.encoder import Encoder, Features
from medsiam.errors import InputRefused, MedsiamError, spoken
from medsiam.reading import SeriesEntry, find_series, read_series, read_volume
from medsiam.reading.archive import FINDINGS
from medsiam.reading.identity import keyed_hash
from medsiam.volume import Volume

# Read ahead by threads; more would only hold more volumes in memory.
READERS, READ_AHEAD = 2, 4
# A GPU gains by batches, a CPU does not.
TOGETHER_ON_GPU = 8
# A run that is cut short loses at most these seconds of work.
LONGEST_UNSTORED_S = 20.0
SOURCES_AT_ONCE = 500

# Stands while scans are stored whose changes are not linked yet.
UNLINKED = ".unlinked"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Refused:
    """A series that was not taken, and why.

    spoken  the same with the names of files, for the terminal alone
    """

    name: str
    code: str
    message: str
    spoken: str = ""

    def as_dict(self) -> dict[str, str]:
        """What may be kept."""
        return {"name": self.name, "code": self.code, "message": self.message}


@dataclass(frozen=True)
class Intake:
    """What became of every series that was found.

    skipped   known by their files, and not read
    left_out  localisers, maps and objects that are no scans
    unmatched rows of the label table that find none of the series
    """

    added: Added
    findings: int
    changes: int
    skipped: int
    left_out: int
    unmatched: int
    refused: tuple[Refused, ...]
    seconds: float

    @property
    def taken(self) -> int:
        """Series that are in the index now, new or as before."""
        return self.added.new + self.added.updated + self.added.unchanged + self.skipped


@dataclass
class Hints:
    """What is known beside the scans.

    results  digest of a scan to the findings image of its comparison
    carried  digest of a scan to its row in an earlier index, whose words it keeps
    """

    table: LabelTable = field(default_factory=LabelTable)
    results: Mapping[str, Path] = field(default_factory=dict)
    carried: Mapping[str, Case] | None = None


def series_of(paths: Iterable[Path], key: bytes) -> tuple[list[SeriesEntry], list[Refused]]:
    """Every series in these places, each once, and the places that hold none or are unsafe."""
    found: dict[tuple[object, ...], SeriesEntry] = {}
    refused = []

    def refuse(what: str, place: Path, error: InputRefused) -> None:
        refused.append(Refused(what, error.code, str(error), spoken(error)))

    for number, path in enumerate(paths, 1):
        part = partial(refuse, f"a part of scan {number} as given")
        try:
            for entry in find_series(path, key=key, refuse=part):
                found.setdefault((entry.name, entry.paths), entry)
        except InputRefused as error:
            refuse(f"scan {number} as given", path, error)
    return list(found.values()), refused


def add_series(
    index: CaseIndex,
    encoder: Encoder,
    entries: Sequence[SeriesEntry],
    hints: Hints,
    *,
    key: bytes,
    progress: Progress = lambda done, total: None,
) -> Intake:
    """Stores every usable series; one that cannot be read is told and passed over.

    Raises ResourceExhausted where memory or disk is used up; what was stored until then stays.
    """
    began = time.monotonic()
    index.check_encoder(encoder.encoder_id)
    images = [entry for entry in entries if entry.role == "image"]
    run = _Run(index, encoder, hints, key)
    skipped = 0
    for some in _in_turns(images, SOURCES_AT_ONCE):
        fresh = run.fresh(some)
        skipped += len(some) - len(fresh)
        for done in run.take(fresh):
            progress(skipped + done + run.finished, len(images))
        run.finished += len(fresh)
        progress(skipped + run.finished, len(images))
    changes = run.end()
    return Intake(
        run.added, run.findings, changes, skipped, len(entries) - len(images), hints.table.unmatched(entries),
        tuple(run.refused), time.monotonic() - began,
    )  # fmt: skip


def results_in(folder: Path) -> dict[str, Path]:
    """Findings images of comparisons below a folder, by the digest of their current scan."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("report.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            sha256 = report["provenance"]["inputs"][1]["sha256"]
            image = path.parent / FINDINGS
        except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
            continue
        if sha256 and report.get("findings") and image.is_file():
            found[str(sha256)] = image
    return found


def source_key(key: bytes, name: str, paths: Iterable[Path]) -> str:
    """Keyed hash of a series' name and its files' places, sizes and times: nothing to who lacks the key."""
    files = []
    for path in paths:
        state = path.stat()
        files.append(f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}")
    return keyed_hash(key, "source", name, *sorted(set(files)))


class _Run:
    """One run over an archive: what waits to be stored, and what became of the rest."""

    def __init__(self, index: CaseIndex, encoder: Encoder, hints: Hints, key: bytes) -> None:
        self.index, self.encoder, self.hints, self.key = index, encoder, hints, key
        self.added, self.findings, self.finished = Added(), 0, 0
        self.refused: list[Refused] = []
        self._patients: set[str] = set()
        self._issuers: set[str] = set()
        self._scans: list[Case] = []
        self._lesions: list[Case] = []
        self._stored_at = time.monotonic()
        on_gpu = next(encoder.network.parameters()).is_cuda
        self._together = TOGETHER_ON_GPU if on_gpu else 1

    def fresh(self, entries: Sequence[SeriesEntry]) -> list[SeriesEntry]:
        """Those whose files, or whose line in the table, the index does not know."""
        keys = {self._source_key(entry): entry for entry in entries}
        known = self.index.known_sources(keys) if self.hints.carried is None else {}
        return [
            entry
            for source, entry in keys.items()
            if source not in known or self._tells_more(entry, known[source])
        ]

    def take(self, entries: Sequence[SeriesEntry]) -> Iterator[int]:
        """Reads ahead, embeds and stores; yields how many are done."""
        usable = [entry for entry in entries if entry.refusal is None]
        for entry in entries:
            if entry.refusal is not None:
                self._refuse(entry, entry.refusal)
        done = len(entries) - len(usable)
        for some in _in_turns_of(_read_ahead(usable), self._together):
            self._embed(some)
            done += len(some)
            yield done
            if time.monotonic() - self._stored_at > LONGEST_UNSTORED_S:
                self._store()

    def end(self) -> int:
        """Stores what waits, links changes, tidies up; how many changes these patients have."""
        self._store()
        left_over = (self.index.folder / UNLINKED).exists() and not self._patients
        patients = (
            {case.patient_key for case in self.index.store.find("scan", None)}
            if left_over
            else self._patients
        )
        changes = link_changes(self.index, patients)
        if self.added.new or self.added.updated or changes:
            self.index.settle()
        (self.index.folder / UNLINKED).unlink(missing_ok=True)
        return changes

    def _embed(self, read: Sequence[tuple[SeriesEntry, Volume | MedsiamError]]) -> None:
        volumes = []
        for entry, outcome in read:
            if isinstance(outcome, Volume):
                volumes.append((entry, outcome))
            else:
                self._refuse(entry, outcome)
        try:
            encoded: Sequence[Features | None] = (
                self.encoder.encode([volume for _, volume in volumes]) if volumes else ()
            )
        except InputRefused:
            # One of them: each by itself then.
            encoded = [self._encoded_alone(entry, volume) for entry, volume in volumes]
        for (entry, volume), features in zip(volumes, encoded, strict=True):
            if features is not None:
                self._describe(entry, volume, features)
        if len(self._scans) >= self.index.settings.batch_cases:
            self._store()

    def _encoded_alone(self, entry: SeriesEntry, volume: Volume) -> Features | None:
        try:
            return self.encoder(volume)
        except InputRefused as error:
            self._refuse(entry, error)
            return None

    def _describe(self, entry: SeriesEntry, volume: Volume, features: Features) -> None:
        told = self.hints.table.of(entry)
        scan = scan_case(volume, features, told, key=self.key, source_key=self._source_key(entry))
        if self.hints.carried is not None:
            earlier = self.hints.carried.get(scan.sha256)
            if earlier is None:
                error = InputRefused("the scan is not in the index; add it by `medsiam index add`")
                self._refuse(entry, error)
                return
            scan = _with_words_of(earlier, scan)
        try:
            lesions = list(finding_cases(scan, volume, features, self._regions(scan, told)))
        except InputRefused as error:
            self._refuse(entry, error)
            return
        self._scans.append(scan)
        self._lesions += lesions
        self._patients.add(scan.patient_key)
        self._issuers.add(volume.acquisition.issuer or (told.issuer if told else ""))

    def _regions(self, scan: Case, told: Told | None) -> Sequence[Region]:
        image = told.mask if told and told.mask else self.hints.results.get(scan.sha256)
        return regions_of_labels(read_volume(image, key=self.key)) if image else ()

    def _store(self) -> None:
        self._stored_at = time.monotonic()
        if not self._scans:
            return
        (self.index.folder / UNLINKED).touch(mode=0o600)
        remember_issuers(self.index.folder, self._issuers)
        silent = {case.case_id for case in self._scans if not case.labels_key}
        # One that is known keeps its labels where the table is silent now.
        known = self.index.store.digests("scan", silent)
        stored = self.index.add([case for case in self._scans if case.case_id not in known])
        self.added += stored + Added(unchanged=len(known))
        if self._lesions:
            self.index.add(self._lesions, "finding")
        self.findings += len(self._lesions)
        self._scans, self._lesions = [], []

    def _refuse(self, entry: SeriesEntry, error: MedsiamError) -> None:
        self.refused.append(Refused(entry.title, error.code, str(error), spoken(error)))

    def _tells_more(self, entry: SeriesEntry, known: Case) -> bool:
        """Whether the table says something new of it, or its findings are not stored yet."""
        told = self.hints.table.of(entry)
        if told is not None and told.digest != known.labels_key:
            return True
        stored = equal("scan_id", known.case_id)
        return known.sha256 in self.hints.results and not self.index.store.count("finding", stored)

    def _source_key(self, entry: SeriesEntry) -> str:
        return source_key(self.key, entry.name, entry.paths)


def _with_words_of(earlier: Case, fresh: Case) -> Case:
    return replace(
        earlier,
        case_id=fresh.case_id,
        scan_id=fresh.scan_id,
        vector=fresh.vector,
        thumbnails=fresh.thumbnails,
        source_key=fresh.source_key,
    )


def _read_ahead(entries: Sequence[SeriesEntry]) -> Iterator[tuple[SeriesEntry, Volume | MedsiamError]]:
    """Each entry with its volume, or what kept it from being read; in their order."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[tuple[SeriesEntry, Future[Volume | MedsiamError]]] = deque()
        rest = iter(entries)
        try:
            while True:
                while len(waiting) < READ_AHEAD and (entry := next(rest, None)) is not None:
                    waiting.append((entry, pool.submit(_read, entry)))
                if not waiting:
                    return
                entry, future = waiting.popleft()
                yield entry, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(entry: SeriesEntry) -> Volume | MedsiamError:
    try:
        return read_series(entry)
    except InputRefused as error:
        return error


def _in_turns(entries: Sequence[SeriesEntry], count: int) -> Iterator[Sequence[SeriesEntry]]:
    for start in range(0, len(entries), count):
        yield entries[start : start + count]


def _in_turns_of(
    read: Iterator[tuple[SeriesEntry, Volume | MedsiamError]], count: int
) -> Iterator[list[tuple[SeriesEntry, Volume | MedsiamError]]]:
    while some := list(islice(read, count)):
        yield some
