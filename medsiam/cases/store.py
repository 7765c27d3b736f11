"""What an engine must do to hold the cases: the only way that the index speaks to one.

Two are made: Lance (embedded, the default) and Qdrant (a server, for more than one box
holds). The same contract tests run on both. The index sees to the rest: one writer at a
time, one encoder, no case twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from medsiam.cases.case import Case, Kind
from medsiam.cases.filters import Filter


class Near(NamedTuple):
    """A case and the cosine of its vector to the query's, -1..1."""

    case: Case
    similarity: float


class CaseStore(Protocol):
    """Rows by kind. Raises IndexDamaged where they cannot be read, ResourceExhausted without room."""

    def put(self, kind: Kind, cases: Sequence[Case]) -> None:
        """Writes all of them or none; one whose id is there is replaced."""

    def digests(self, kind: Kind, ids: Collection[str]) -> Mapping[str, str]:
        """Case id to digest, of those that are there."""

    def nearest(self, kind: Kind, vector: Sequence[float], count: int, where: Filter | None) -> list[Near]:
        """The nearest that pass the filter, best first, without vectors and thumbnails."""

    def find(
        self,
        kind: Kind,
        where: Filter | None,
        *,
        limit: int | None = None,
        vectors: bool = False,
        thumbnails: bool = False,
    ) -> list[Case]:
        """The cases that pass a filter, with their vectors and thumbnails where they are asked for."""

    def sample(self, kind: Kind, where: Filter | None, count: int, seed: int) -> list[Case]:
        """Up to so many cases that pass, drawn at random, with vectors, without thumbnails."""

    def count(self, kind: Kind, where: Filter | None = None) -> int:
        """How many pass."""

    def labels(self) -> tuple[str, ...]:
        """Names of the user's own columns."""

    def drop(self, kind: Kind, ids: Collection[str]) -> None:
        """Takes cases out of every answer; their bytes may stay until erase."""

    def erase(self, kind: Kind, ids: Collection[str]) -> None:
        """Takes cases out, and their bytes off the disk."""

    def written(self, case: Case) -> tuple[bytes, bytes]:
        """A case's vector and thumbnails as they stand in the engine's files, to look for them."""

    def settle(self, *, keep_versions: bool = True) -> None:
        """Joins small files, refreshes the search index, lets old versions go.

        keep_versions  those of the last minutes stay, for readers that have them open
        """

    def close(self) -> None:
        """Lets go of files and connections."""
