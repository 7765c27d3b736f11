"""Cases in Qdrant: a server with shards and replicas, for more than one machine holds.

Each kind is a collection. Without a URL a small one lies in the index's own folder, for
trials and tests: its search looks at every vector. The key of a server comes from the
environment, never from a file.
"""

from __future__ import annotations

import base64
import os
import sqlite3
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from medsiam.cases.case import LABEL_PREFIX, NUMBERS, TEXTS, Case, Kind
from medsiam.cases.filters import Every, Filter, Some, Test
from medsiam.cases.settings import IndexSettings
from medsiam.cases.store import Near
from medsiam.errors import IndexDamaged, ResourceExhausted, one_line

KEY_VARIABLE = "MEDSIAM_QDRANT_KEY"
LOCAL_FOLDER = "qdrant"
PAGE = 1000
TIMEOUT_S = 60

# A label that reads as a number is kept as one too, for < and >.
NUMBER_SUFFIX = "__number"


class QdrantStore:
    """The distributed engine. The writer's lock is the index folder's, so writers share that folder."""

    def __init__(self, folder: Path, sizes: Mapping[Kind, int], settings: IndexSettings) -> None:
        """folder: of the index; sizes: numbers in a vector of each kind."""
        self._folder, self._sizes, self._settings = folder, sizes, settings

    def put(self, kind: Kind, cases: Sequence[Case]) -> None:
        """Upserts them; Qdrant answers when they are stored."""
        from qdrant_client import models  # only who chose this engine has it

        if not cases:
            return
        points = [
            models.PointStruct(id=_point(case.case_id), vector=case.vector.tolist(), payload=_payload(case))
            for case in cases
        ]
        with self._told():
            self._made(kind)
            self._client.upsert(self._name(kind), points, wait=True)

    def digests(self, kind: Kind, ids: Collection[str]) -> Mapping[str, str]:
        """Case id to digest, of those that are there."""
        if not self._is_there(kind):
            return {}
        with self._told():
            found = self._client.retrieve(
                self._name(kind), [_point(each) for each in ids], with_payload=["case_id", "digest"]
            )
        return {record.payload["case_id"]: record.payload["digest"] for record in found}

    def nearest(self, kind: Kind, vector: Sequence[float], count: int, where: Filter | None) -> list[Near]:
        """By cosine; the server's own search index decides how exact."""
        if not self._is_there(kind):
            return []
        with self._told():
            found = self._client.query_points(
                self._name(kind),
                query=list(vector),
                limit=count,
                query_filter=as_conditions(where),
                with_payload=_without_thumbnails(),
            ).points
        return [Near(_case(point), float(np.clip(point.score, -1.0, 1.0))) for point in found]

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
        return list(self._pages(kind, where, limit=limit, vectors=vectors, thumbnails=thumbnails))

    def sample(self, kind: Kind, where: Filter | None, count: int, seed: int) -> list[Case]:
        """Drawn without replacement from all that pass."""
        ids = sorted(case.case_id for case in self._pages(kind, where))
        chosen = [ids[n] for n in np.random.default_rng(seed).permutation(len(ids))[:count]]
        if not chosen:
            return []
        with self._told():
            found = self._client.retrieve(
                self._name(kind),
                [_point(each) for each in chosen],
                with_payload=_without_thumbnails(),
                with_vectors=True,
            )
        return sorted(map(_case, found), key=lambda case: case.case_id)

    def count(self, kind: Kind, where: Filter | None = None) -> int:
        """How many pass."""
        if not self._is_there(kind):
            return 0
        with self._told():
            return int(
                self._client.count(self._name(kind), count_filter=as_conditions(where), exact=True).count
            )

    def labels(self) -> tuple[str, ...]:
        """The user's own columns: Qdrant keeps no list, so each collection has a row that does."""
        names: set[str] = set()
        for kind in self._sizes:
            for case in self._pages(kind, None):
                names |= set(case.labels)
        return tuple(sorted(names))

    def drop(self, kind: Kind, ids: Collection[str]) -> None:
        """Deleted in every answer."""
        from qdrant_client import models  # as above

        if not ids or not self._is_there(kind):
            return
        with self._told():
            self._client.delete(
                self._name(kind), models.PointIdsList(points=[_point(each) for each in ids]), wait=True
            )

    def erase(self, kind: Kind, ids: Collection[str]) -> None:
        """Deleted; a local one's file is written anew. A server frees the bytes when it next optimises."""
        self.drop(kind, ids)
        if self._settings.qdrant_url:
            return
        self.close()
        for path in (self._folder / LOCAL_FOLDER).rglob("*.sqlite"):
            connection = sqlite3.connect(path)
            connection.execute("VACUUM")
            connection.close()

    def written(self, case: Case) -> tuple[bytes, bytes]:
        """A local one keeps pickled doubles, and pictures as text."""
        doubles = b"".join(b"G" + struct.pack(">d", float(number)) for number in case.vector)
        return doubles, base64.b64encode(case.thumbnails)

    def settle(self, *, keep_versions: bool = True) -> None:
        """Nothing: the server does that by itself."""

    def close(self) -> None:
        """Closes the connection; the next question opens it again."""
        if "_client" in self.__dict__:
            self._client.close()
            del self.__dict__["_client"]

    @cached_property
    def _client(self) -> Any:
        from qdrant_client import QdrantClient  # as above

        if self._settings.qdrant_url:
            key = os.environ.get(KEY_VARIABLE) or None
            return QdrantClient(url=self._settings.qdrant_url, api_key=key, timeout=TIMEOUT_S)
        return QdrantClient(path=str(self._folder / LOCAL_FOLDER))

    def _name(self, kind: Kind) -> str:
        # Several indexes may share a server.
        return f"medsiam-{self._folder.name}-{kind}"

    def _is_there(self, kind: Kind) -> bool:
        with self._told():
            return bool(self._client.collection_exists(self._name(kind)))

    def _made(self, kind: Kind) -> None:
        from qdrant_client import models  # as above

        if not self._client.collection_exists(self._name(kind)):
            params = models.VectorParams(
                size=self._sizes[kind], distance=models.Distance.COSINE, datatype=models.Datatype.FLOAT16
            )
            self._client.create_collection(self._name(kind), vectors_config=params)

    def _pages(
        self,
        kind: Kind,
        where: Filter | None,
        *,
        limit: int | None = None,
        vectors: bool = False,
        thumbnails: bool = False,
    ) -> Iterator[Case]:
        if not self._is_there(kind):
            return
        offset, left = None, limit
        while left is None or left > 0:
            with self._told():
                found, offset = self._client.scroll(
                    self._name(kind),
                    scroll_filter=as_conditions(where),
                    limit=PAGE if left is None else min(PAGE, left),
                    offset=offset,
                    with_payload=True if thumbnails else _without_thumbnails(),
                    with_vectors=vectors,
                )
            yield from map(_case, found)
            left = None if left is None else left - len(found)
            if offset is None:
                return

    @contextmanager
    def _told(self) -> Iterator[None]:
        """An engine's error as one of ours."""
        import httpx  # the client's own
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, httpx.HTTPError, OSError, ValueError, RuntimeError, sqlite3.Error) as error:
            text = one_line(str(error))
            if "no space left" in text.lower() or "disk is full" in text.lower():
                raise ResourceExhausted(
                    "the disk is full: Qdrant took no more cases; free some space and run again, what was "
                    "stored stays"
                ) from error
            raise IndexDamaged(
                f"Qdrant does not answer as it should ({text[:120]}); check that it runs, its address and "
                f"{KEY_VARIABLE}, or restore its snapshot"
            ) from error


def as_conditions(where: Filter | None) -> Any:
    """The filter in the engine's own objects."""
    if where is None or (isinstance(where, Every) and not where.parts):
        return None
    return _conditions(where)


def _conditions(where: Filter) -> Any:
    from qdrant_client import models  # as above

    if isinstance(where, Every):
        return models.Filter(must=[_conditions(part) for part in where.parts])
    if isinstance(where, Some):
        return models.Filter(should=[_conditions(part) for part in where.parts])
    return _test(where)


def _test(test: Test) -> Any:
    from qdrant_client import models  # as above

    key = test.column + NUMBER_SUFFIX if test.is_label and test.is_number else test.column
    absent = models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
    if test.operator == "unknown":
        return models.Filter(must=[absent])
    if test.operator == "known":
        return models.Filter(must_not=[absent])
    within = models.FieldCondition(key=key, **_matching(test))
    # An unknown value passes no test, not even "is not".
    if test.operator in ("!=", "not in"):
        return models.Filter(must_not=[absent, within])
    return models.Filter(must=[within])


def _matching(test: Test) -> dict[str, Any]:
    from qdrant_client import models  # as above

    if not test.is_number:
        return {"match": models.MatchAny(any=[str(value) for value in test.values])}
    value = float(test.values[0])
    ends = {
        "=": {"gte": value, "lte": value}, "!=": {"gte": value, "lte": value},
        "<": {"lt": value}, "<=": {"lte": value}, ">": {"gt": value}, ">=": {"gte": value},
    }  # fmt: skip
    return {"range": models.Range(**ends[test.operator])}


def _point(case_id: str) -> str:
    return str(UUID(hex=case_id))


def _without_thumbnails() -> Any:
    from qdrant_client import models  # as above

    return models.PayloadSelectorExclude(exclude=["thumbnails"])


def _payload(case: Case) -> dict[str, Any]:
    """What is known of a case; what is not is left out, and so passes no test."""
    told: dict[str, Any] = {name: getattr(case, name) or None for name in TEXTS}
    told |= {name: getattr(case, name) for name in (*NUMBERS, "acquired_day", "digest")}
    told["thumbnails"] = base64.b64encode(case.thumbnails).decode("ascii") or None
    for name, value in case.labels.items():
        told[LABEL_PREFIX + name] = value
        told[LABEL_PREFIX + name + NUMBER_SUFFIX] = _number(value)
    return {name: value for name, value in told.items() if value is not None}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _case(point: Any) -> Case:
    told = point.payload or {}
    labels = {
        name[len(LABEL_PREFIX) :]: value
        for name, value in told.items()
        if name.startswith(LABEL_PREFIX) and not name.endswith(NUMBER_SUFFIX)
    }
    plain: dict[str, Any] = {name: told.get(name, "") for name in TEXTS}
    return Case(
        **plain | {name: told.get(name) for name in NUMBERS},
        vector=np.asarray(point.vector if getattr(point, "vector", None) else (), dtype=np.float32),
        labels=labels,
        thumbnails=base64.b64decode(told.get("thumbnails", "")),
    )
