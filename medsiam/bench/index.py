"""The case index at size: what it finds, how fast, on how much disk.

Made-up cases lie in clusters, as patients do; an eighth of them passes the filter. The
truth is every cosine, reckoned by numpy. No scan is read.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsiam.bench.scores import Score, Scores
from medsiam.cases.case import Case, case_id_of
from medsiam.cases.index import CaseIndex
from medsiam.cases.settings import IndexSettings

CASES, SIZE = 200_000, 256
# Of cases; and how far they lie from their cluster's middle, in units of the middle's own length.
CLUSTERS, SPREAD = 2_000, 0.7
KINDS_OF_SCAN = ("MR", "CT", "CR", "DX", "PT", "US", "NM", "MG")
BATCH = 4_096

QUERIES, NEIGHBOURS = 200, 10
ENCODER = "made-up@000000000000"

REFERENCE = "LanceDB IVF_SQ 1.000, 27 ms at p50"
REFERENCE_FILTERED = ".967, 12 ms"


@dataclass(frozen=True, eq=False)
class Crowd:
    """Made-up embeddings (n, SIZE) of unit length, and each one's kind of scan (n,)."""

    vectors: NDArray[np.float32]
    kinds: NDArray[np.intp]


def measure(data: Path | None, seed: int) -> Scores:
    """Recall, time and size of an index of CASES cases, by the embedded engine."""
    with tempfile.TemporaryDirectory(prefix="medsiam-bench-") as folder:
        rows = tuple(measured(Path(folder) / "cases", CASES, seed))
    return Scores("index", f"made up, {CASES} x {SIZE} in {CLUSTERS} clusters", seed, rows)


def measured(folder: Path, cases: int, seed: int) -> Iterator[Score]:
    """All figures of an index of so many cases, which is made in the folder."""
    crowd = crowd_of(cases, seed)
    began = time.perf_counter()
    index = filled(folder, crowd)
    yield Score("seconds to add all and build the search index", time.perf_counter() - began)
    queries = queries_of(crowd, seed + 1)
    for words, where, target, reference in (
        ("", None, ">= .98", REFERENCE),
        (", filter that an eighth passes", "modality = 'CT'", ">= .97", REFERENCE_FILTERED),
    ):
        recall, seconds = asked(index, crowd, queries, where)
        yield Score(f"recall@{NEIGHBOURS} against exact{words}", recall, reference, target)
        yield Score(f"ms at p50{words}", 1000.0 * float(np.percentile(seconds, 50)))
        target_ms = "" if where else "< 60"
        yield Score(f"ms at p95{words}", 1000.0 * float(np.percentile(seconds, 95)), "", target_ms)
    yield from _size_rows(folder, cases)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield Score("peak memory of the whole run (GB)", peak_gb, "", "< 8 at a million")


def crowd_of(cases: int, seed: int) -> Crowd:
    """Embeddings around CLUSTERS middles, in float32 throughout."""
    random = np.random.default_rng(seed)
    middles = random.normal(size=(CLUSTERS, SIZE)).astype(np.float32)
    vectors = middles[random.integers(CLUSTERS, size=cases)]
    for start in range(0, cases, BATCH):
        part = vectors[start : start + BATCH]
        part += SPREAD * random.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return Crowd(vectors, random.integers(len(KINDS_OF_SCAN), size=cases))


def queries_of(crowd: Crowd, seed: int) -> NDArray[np.float32]:
    """Unseen neighbours of cases that are there."""
    random = np.random.default_rng(seed)
    near = crowd.vectors[random.integers(len(crowd.vectors), size=QUERIES)]
    moved = near + 0.3 * random.normal(size=near.shape).astype(np.float32) / np.sqrt(SIZE)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), dtype=np.float32)


def filled(folder: Path, crowd: Crowd) -> CaseIndex:
    """An index that holds them all, tidied."""
    settings = IndexSettings()
    index = CaseIndex.make(
        folder, ENCODER, {"scan": SIZE, "finding": SIZE, "change": SIZE}, settings=settings
    )
    for start in range(0, len(crowd.vectors), BATCH):
        stop = min(start + BATCH, len(crowd.vectors))
        index.add([_case(n, crowd) for n in range(start, stop)])
    index.settle(keep_versions=False)
    return index


def asked(
    index: CaseIndex, crowd: Crowd, queries: NDArray[np.float32], where: str | None
) -> tuple[float, NDArray[np.float64]]:
    """Recall of the nearest, and seconds of each question."""
    passing = np.arange(len(crowd.vectors))
    if where is not None:
        passing = np.flatnonzero(crowd.kinds == KINDS_OF_SCAN.index("CT"))
    allowed = crowd.vectors[passing]
    hits, seconds = 0, []
    for query in queries:
        truth = passing[np.argpartition(-(allowed @ query), NEIGHBOURS)[:NEIGHBOURS]]
        began = time.perf_counter()
        found = index.search(query, count=NEIGHBOURS, where=where)
        seconds.append(time.perf_counter() - began)
        hits += len({int(each.case.series_uid.rpartition(".")[2]) for each in found} & set(truth.tolist()))
    return hits / (NEIGHBOURS * len(queries)), np.array(seconds)


def _case(number: int, crowd: Crowd) -> Case:
    case_id = case_id_of(str(number), ENCODER)
    return Case(
        case_id=case_id,
        scan_id=case_id,
        vector=crowd.vectors[number],
        patient_key=case_id[:20],
        series_uid=f"1.2.3.{number}",
        modality=KINDS_OF_SCAN[crowd.kinds[number]],
        age=float(number % 90),
    )


def _size_rows(folder: Path, cases: int) -> Iterator[Score]:
    """Bytes for each stored number: vectors and their codes, and with all words besides."""
    files = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    codes = sum(size for path, size in files.items() if "_indices" in path.parts)
    numbers = cases * SIZE
    yield Score("bytes a stored number, vectors and codes", 2.0 + codes / numbers, "", "<= 4")
    yield Score(
        "bytes a stored number, the whole folder", sum(files.values()) / numbers, "2.5 (512 each)", "<= 4"
    )
