"""Cases in Lance tables, the format and engine of LanceDB, in a folder of their own.

scan.lance, finding.lance and change.lance lie beside each other. A table is a list of
immutable files and a manifest that is exchanged in one rename: a writer that is killed
leaves the table as it was. `lancedb.connect(folder)` opens the same tables.

Vectors are float16 (the cosine of unit vectors keeps three digits). Up to `exact_below`
rows every vector is looked at; above, an inverted file with 8-bit codes (IVF_SQ) is
asked, and what it finds is ranked again by the vectors themselves.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medsiam.cases.case import LABEL_PREFIX, NUMBERS, TEXTS, Case, Kind
from medsiam.cases.filters import Every, Filter, Some, Test, one_of
from medsiam.cases.settings import IndexSettings
from medsiam.cases.store import Near
from medsiam.errors import IndexDamaged, IndexRefused, ResourceExhausted

T = TypeVar("T")

# Its Rust side warns on standard error, where one line is promised; read when it loads.
os.environ.setdefault("LANCE_LOG", "error")

VECTOR, THUMBNAILS, DIGEST, DISTANCE = "vector", "thumbnails", "digest", "_distance"
INDEX_NAME = "vector_idx"

# Ids in one `in (...)`; longer lists are asked in turns.
IDS_AT_ONCE = 500

# So few are read from where they lie faster than the search index is looked through for them.
FEW_PASSING = 2000

# A reader that opened a version keeps it at least this long while a writer tidies up.
KEPT_FOR = timedelta(minutes=10)
# A reader whose version was taken away in spite of that opens the newest and asks again.
TRIES = 3

# Rows that come in after the search index was built are looked at one by one until it is
# refreshed; past this share the refresh pays.
STALE_SHARE = 0.05

_NO_ROOM = ("no space left", "disk quota", "file too large", "os error 28", "os error 27", "os error 122")
_CLOSED = ("permission denied", "read-only file system")


class LanceStore:
    """The default engine. Reading needs no lock; writing needs the index's."""

    def __init__(self, folder: Path, sizes: Mapping[Kind, int], settings: IndexSettings) -> None:
        """folder: where the tables lie; sizes: numbers in a vector of each kind."""
        self._folder, self._sizes, self._settings = folder, sizes, settings
        self._open: dict[Kind, Any] = {}

    def put(self, kind: Kind, cases: Sequence[Case]) -> None:
        """Appends them, or replaces those that are there, in one commit."""
        import lance  # a tenth of a second, only where an index is used

        if not cases:
            return
        uri = self._uri(kind)
        with self._told():
            table = self._latest(kind)
            if table is None:
                names = sorted({name for case in cases for name in case.labels})
                schema = _schema(self._sizes[kind], names)
                lance.write_dataset(_rows(cases, schema), uri, schema=schema)
                return
            self._widen(table, cases)
            table = self._latest(kind)
            rows = _rows(cases, table.schema)
            if self.digests(kind, [case.case_id for case in cases]):
                merge = table.merge_insert("case_id")
                merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
            else:
                lance.write_dataset(rows, uri, mode="append")

    def digests(self, kind: Kind, ids: Collection[str]) -> Mapping[str, str]:
        """Case id to digest, of those that are there."""
        found: dict[str, str] = {}
        for some in _in_turns(sorted(ids), IDS_AT_ONCE):
            rows = self._rows(kind, one_of("case_id", some), ["case_id", DIGEST])
            found.update((row["case_id"], row[DIGEST]) for row in rows)
        return found

    def nearest(self, kind: Kind, vector: Sequence[float], count: int, where: Filter | None) -> list[Near]:
        """By cosine: exact in a small table, by the search index in a large one."""

        def ask(table: Any) -> list[dict[str, Any]]:
            near = {
                "column": VECTOR,
                "q": np.asarray(vector, dtype=np.float32),
                "k": count,
                "metric": "cosine",
                **self._way(table, where),
            }
            columns = [name for name in table.schema.names if name not in (VECTOR, THUMBNAILS)]
            rows: list[dict[str, Any]] = table.to_table(
                columns=[*columns, DISTANCE], nearest=near, filter=as_sql(where), prefilter=True
            ).to_pylist()
            return rows

        rows: list[dict[str, Any]] = self._reading(kind, ask, [])
        return [Near(_case(row), float(np.clip(1.0 - row[DISTANCE], -1.0, 1.0))) for row in rows]

    def find(
        self,
        kind: Kind,
        where: Filter | None,
        *,
        limit: int | None = None,
        vectors: bool = False,
        thumbnails: bool = False,
    ) -> list[Case]:
        """The cases that pass a filter, in no order."""
        left_out = [name for name, wanted in ((VECTOR, vectors), (THUMBNAILS, thumbnails)) if not wanted]
        return [_case(row) for row in self._rows(kind, where, None, left_out=left_out, limit=limit)]

    def sample(self, kind: Kind, where: Filter | None, count: int, seed: int) -> list[Case]:
        """Drawn without replacement from all that pass."""
        ids = [row["case_id"] for row in self._rows(kind, where, ["case_id"])]
        # In the order of the ids, so that the draw does not hang on how the files lie.
        ids.sort()
        chosen = np.random.default_rng(seed).permutation(len(ids))[:count]
        found: list[Case] = []
        for some in _in_turns([ids[n] for n in chosen], IDS_AT_ONCE):
            rows = self._rows(kind, one_of("case_id", some), None, left_out=(THUMBNAILS,))
            found += [_case(row) for row in rows]
        return sorted(found, key=lambda case: case.case_id)

    def count(self, kind: Kind, where: Filter | None = None) -> int:
        """How many pass."""
        return self._reading(kind, lambda table: int(table.count_rows(filter=as_sql(where))), 0)

    def labels(self) -> tuple[str, ...]:
        """The user's own columns, of all tables."""
        names: set[str] = set()
        for kind in self._sizes:
            names |= self._reading(kind, lambda table: set(table.schema.names), set())
        return tuple(sorted(name[len(LABEL_PREFIX) :] for name in names if name.startswith(LABEL_PREFIX)))

    def drop(self, kind: Kind, ids: Collection[str]) -> None:
        """Marked as deleted; the bytes stay until the files are joined."""
        for some in _in_turns(sorted(ids), IDS_AT_ONCE):
            with self._told():
                table = self._latest(kind)
                if table is not None:
                    table.delete(as_sql(one_of("case_id", some)))
        self._open.pop(kind, None)

    def erase(self, kind: Kind, ids: Collection[str]) -> None:
        """Every file that held one of them is written anew, and every older version removed.

        Deleting alone leaves the bytes where they were: measured, not guessed.
        """
        self.drop(kind, ids)
        with self._told():
            table = self._latest(kind)
            if table is None:
                return
            if table.count_rows() == 0:
                # The last one: an empty table needs no files.
                self._open.pop(kind, None)
                shutil.rmtree(self._uri(kind))
                return
            if _has_search_index(table):
                # Its codes are made from the vectors.
                table.drop_index(INDEX_NAME)
                table = self._latest(kind)
            table.optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
            self._build(kind)
            table = self._latest(kind)
            table.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
        self._open.pop(kind, None)

    def written(self, case: Case) -> tuple[bytes, bytes]:
        """Half-precision numbers, and the picture's own bytes."""
        return case.vector.astype(np.float16).tobytes(), case.thumbnails

    def settle(self, *, keep_versions: bool = True) -> None:
        """Small files joined, the search index fresh, versions older than KEPT_FOR gone, or all old ones."""
        for kind in self._sizes:
            with self._told():
                table = self._latest(kind)
                if table is None:
                    continue
                table.optimize.compact_files()
                self._build(kind)
                table = self._latest(kind)
                # What this writer made itself is verified; no other can be at work under its lock.
                kept = KEPT_FOR if keep_versions else timedelta(0)
                table.cleanup_old_versions(older_than=kept, delete_unverified=not keep_versions)

    def close(self) -> None:
        """Forgets the open tables."""
        self._open.clear()

    def _build(self, kind: Kind) -> None:
        """The search index over all rows, where the table is large enough to need one."""
        table = self._latest(kind)
        rows = table.count_rows()
        if rows < self._settings.exact_below:
            return
        if not _has_search_index(table):
            table.create_index(
                VECTOR, "IVF_SQ", name=INDEX_NAME, metric="cosine", num_partitions=partitions_of(rows)
            )
        elif table.stats.index_stats(INDEX_NAME)["num_unindexed_rows"] > STALE_SHARE * rows:
            table.optimize.optimize_indices()

    def _way(self, table: Any, where: Filter | None) -> dict[str, Any]:
        """Every vector where few pass; else the search index, the deeper the fewer pass."""
        rows = table.count_rows()
        if rows < self._settings.exact_below or not _has_search_index(table):
            return {"use_index": False}
        passing = rows if as_sql(where) is None else table.count_rows(filter=as_sql(where))
        if passing < FEW_PASSING:
            return {"use_index": False}
        # Of the parts that are looked into only this share is allowed to answer.
        probes = min(math.ceil(self._settings.probes * rows / passing), partitions_of(rows))
        return {"nprobes": probes, "refine_factor": self._settings.refine}

    def _widen(self, table: Any, cases: Sequence[Case]) -> None:
        """Makes columns for labels that are new to the table."""
        import pyarrow as pa  # comes with lance

        names = {LABEL_PREFIX + name for case in cases for name in case.labels}
        missing = sorted(names - set(table.schema.names))
        if missing:
            table.add_columns([pa.field(name, pa.string()) for name in missing])

    def _rows(
        self,
        kind: Kind,
        where: Filter | None,
        columns: list[str] | None,
        *,
        left_out: Collection[str] = (),
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        def ask(table: Any) -> list[dict[str, Any]]:
            wanted = columns or [name for name in table.schema.names if name not in left_out]
            rows: list[dict[str, Any]] = table.to_table(
                columns=wanted, filter=as_sql(where), limit=limit
            ).to_pylist()
            return rows

        return self._reading(kind, ask, [])

    def _reading(self, kind: Kind, ask: Callable[[Any], T], empty: T) -> T:
        """The answer of the newest version; `empty` where the table is not there yet."""
        for left in reversed(range(TRIES)):
            with self._told(last=not left):
                table = self._latest(kind)
                return empty if table is None else ask(table)
            self._open.pop(kind, None)
        raise AssertionError("the last try returns or raises")

    def _latest(self, kind: Kind) -> Any:
        """The newest version of a table, None where there is none."""
        import lance  # as above

        if not (Path(self._uri(kind)) / "_versions").is_dir():
            return None
        held = self._open.get(kind)
        if held is None or held.latest_version != held.version:
            self._open[kind] = held = lance.dataset(self._uri(kind))
        return held

    def _uri(self, kind: Kind) -> str:
        return str(self._folder / f"{kind}.lance")

    @contextmanager
    def _told(self, *, last: bool = True) -> Iterator[None]:
        """An engine's error as one of ours; swallowed where another try is left."""
        import pyarrow as pa  # for its errors

        try:
            yield
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            text = str(error)
            if any(sign in text.lower() for sign in _NO_ROOM):
                raise ResourceExhausted(
                    f"the disk is full: {self._folder.name!r} took no more cases; free some space and run "
                    "again, "
                    "what was stored stays"
                ) from error
            if any(sign in text.lower() for sign in _CLOSED):
                raise IndexRefused(
                    f"the index in {self._folder.name!r} may not be written or read; check its permissions"
                ) from error
            if last:
                raise IndexDamaged(
                    f"the index in {self._folder.name!r} cannot be read ({text.splitlines()[0][:120]}); "
                    "restore it from a backup, or remove the folder and add the scans again"
                ) from error


def partitions_of(rows: int) -> int:
    """Parts of the inverted file: about the root of the rows, a power of two."""
    return int(2 ** round(math.log2(max(math.sqrt(rows), 16.0))))


def as_sql(where: Filter | None) -> str | None:
    """The filter in the engine's words: columns from our list, values quoted, nothing else."""
    if where is None or (isinstance(where, Every) and not where.parts):
        return None
    return _sql(where)


def _sql(where: Filter) -> str:
    if isinstance(where, Every):
        return "(" + " and ".join(map(_sql, where.parts)) + ")" if where.parts else "true"
    if isinstance(where, Some):
        return "(" + " or ".join(map(_sql, where.parts)) + ")" if where.parts else "false"
    return _test(where)


def _test(test: Test) -> str:
    column = f"`{test.column}`"
    if test.operator in ("known", "unknown"):
        return f"{column} is {'not ' if test.operator == 'known' else ''}null"
    if test.operator in ("in", "not in"):
        listed = ", ".join(_quoted(value) for value in test.values)
        # An empty list is no SQL, but it is a question: nothing is in it.
        return f"{column} {test.operator} ({listed})" if listed else "false"
    if test.is_number and test.is_label:
        column = f"try_cast({column} as double)"
    return f"{column} {test.operator} {_quoted(test.values[0])}"


def _quoted(value: str | float) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(float(value))


def _schema(size: int, labels: Sequence[str]) -> Any:
    import pyarrow as pa  # as above

    return pa.schema(
        [
            *(pa.field(name, pa.string()) for name in TEXTS),
            *(pa.field(name, pa.float64()) for name in (*NUMBERS, "acquired_day")),
            pa.field(DIGEST, pa.string()),
            pa.field(VECTOR, pa.list_(pa.float16(), size)),
            pa.field(THUMBNAILS, pa.binary()),
            *(pa.field(LABEL_PREFIX + name, pa.string()) for name in labels),
        ]
    )


def _rows(cases: Sequence[Case], schema: Any) -> Any:
    """The cases as a table of a schema. An unknown text is null there, as SQL has it."""
    import pyarrow as pa  # as above

    size = schema.field(VECTOR).type.list_size
    vectors = np.stack([case.vector for case in cases]).astype(np.float16)
    columns: dict[str, Any] = {
        **{name: [getattr(case, name) or None for case in cases] for name in TEXTS},
        **{name: [getattr(case, name) for case in cases] for name in (*NUMBERS, "acquired_day", DIGEST)},
        VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), size),
        THUMBNAILS: [case.thumbnails or None for case in cases],
    }
    for name in schema.names:
        if name.startswith(LABEL_PREFIX):
            columns[name] = [case.labels.get(name[len(LABEL_PREFIX) :]) for case in cases]
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _case(row: Mapping[str, Any]) -> Case:
    labels = {
        name[len(LABEL_PREFIX) :]: value
        for name, value in row.items()
        if name.startswith(LABEL_PREFIX) and value is not None
    }
    told: dict[str, Any] = {name: row.get(name) or "" for name in TEXTS}
    return Case(
        **told | {name: row.get(name) for name in NUMBERS},
        vector=np.asarray(row.get(VECTOR) or (), dtype=np.float32),
        labels=labels,
        thumbnails=row.get(THUMBNAILS) or b"",
    )


def _has_search_index(table: Any) -> bool:
    return any(index.name == INDEX_NAME for index in table.describe_indices())


def _in_turns(ids: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), count):
        yield ids[start : start + count]
