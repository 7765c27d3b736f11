"""CaseIndex: the cases of one encoder, found again by what they look like.

    index = CaseIndex.open("cases/")
    index.search(encoder(volume), count=5, where="modality = 'MR'")

The folder holds index.json (schema, encoder, engine), the engine's files and the
receipts of erasures. One writer at a time, under a lock; readers need none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsiam.cases.case import KINDS, Case, Kind
from medsiam.cases.filters import Filter, differs, every, one_of, parse
from medsiam.cases.folder import make_private, only_writer, read_card, write_card
from medsiam.cases.settings import IndexSettings
from medsiam.cases.store import CaseStore, Near
from medsiam.errors import IndexDamaged, IndexRefused

if TYPE_CHECKING:  # torch, which listing cases need not wait for
    from medsiam.encoding.encoder import Features

SCHEMA = "medsiam.index/1"

# Readers page through what they are shown; more neighbours are no neighbours.
MOST_WANTED = 1000

DATA = "cases"


@dataclass(frozen=True)
class Added:
    """How many cases were new, told something new, or were there already."""

    new: int = 0
    updated: int = 0
    unchanged: int = 0

    def __add__(self, other: Added) -> Added:
        return Added(self.new + other.new, self.updated + other.updated, self.unchanged + other.unchanged)


@dataclass(frozen=True, eq=False)
class CaseIndex:
    """An index in a folder.

    encoder_id    whose embeddings it holds; no other's can be compared with them
    sizes         numbers in a vector, by kind
    spatial_dims  3 for volumes, 2 for radiographs
    data          name of the engine's folder within; a rebuilt index has another
    """

    folder: Path
    encoder_id: str
    sizes: Mapping[Kind, int]
    spatial_dims: int
    settings: IndexSettings
    data: str = DATA

    @classmethod
    def open(cls, folder: str | Path) -> CaseIndex:
        """The index in a folder, to read and to write.

        Raises IndexRefused where there is none or it is of another version, IndexDamaged
        where its card cannot be read.
        """
        folder = Path(folder)
        return _from_card(folder, read_card(folder))

    @classmethod
    def make(
        cls,
        folder: str | Path,
        encoder_id: str,
        sizes: Mapping[Kind, int],
        *,
        spatial_dims: int = 3,
        settings: IndexSettings | None = None,
        allow_shared: bool = False,
    ) -> CaseIndex:
        """The index in a folder, made where there is none; an encoder's own.

        Raises IndexRefused where the folder is open to others, or holds another encoder's cases.
        """
        folder = Path(folder)
        make_private(folder, allow_shared=allow_shared)
        with only_writer(folder):
            try:
                found = cls.open(folder)
            except IndexDamaged:
                raise
            except IndexRefused:
                found = cls(folder, encoder_id, dict(sizes), spatial_dims, settings or IndexSettings())
                _refuse_other_files(folder)
                (folder / found.data).mkdir(mode=0o700, exist_ok=True)
                write_card(folder, found.card())
        found.check_encoder(encoder_id)
        return found

    def add(self, cases: Sequence[Case], kind: Kind = "scan") -> Added:
        """Stores cases; what is there and says the same is left as it is.

        When this returns they are on the disk. Raises IndexRefused where a vector does not
        fit, ResourceExhausted where the disk is full; then none of them was stored.
        """
        unique = {case.case_id: self._checked(case, kind) for case in cases}
        with only_writer(self.folder):
            known = self.store.digests(kind, unique)
            fresh = [case for case in unique.values() if known.get(case.case_id) != case.digest]
            self.store.put(kind, fresh)
        updated = sum(case.case_id in known for case in fresh)
        return Added(len(fresh) - updated, updated, len(unique) - len(fresh))

    def search(
        self,
        query: NDArray[np.floating[Any]] | Features,
        *,
        count: int = 5,
        where: str | Filter | None = None,
        encoder_id: str | None = None,
        without_patient: str = "",
        kind: Kind = "scan",
    ) -> tuple[Near, ...]:
        """The nearest cases by cosine, best first; fewer where fewer pass.

        query            an embedding (D,), or the features of a scan
        where            a filter as `medsiam search --where` takes it
        encoder_id       of a bare embedding, to be checked
        without_patient  the key of a patient who is left out

        Raises IndexRefused where the query is of another encoder or size, FilterRefused
        where the filter cannot be read.
        """
        bare = getattr(query, "embedding", query)
        encoder_id = getattr(query, "encoder_id", encoder_id)
        if encoder_id is not None:
            self.check_encoder(encoder_id)
        if not 1 <= count <= MOST_WANTED:
            raise IndexRefused(f"{count} neighbours were asked for; ask for 1 to {MOST_WANTED}")
        vector = self._vector(np.asarray(bare), kind)
        condition = self.filter(where) if isinstance(where, str) else where
        if without_patient:
            condition = every(condition, differs("patient_key", without_patient))
        return tuple(self.store.nearest(kind, vector.tolist(), count, condition))

    def filter(self, text: str) -> Filter:
        """The filter that a text means for this index. Raises FilterRefused."""
        return parse(text, self.store.labels())

    def __len__(self) -> int:
        """How many scans it holds."""
        return self.store.count("scan")

    def known_sources(self, keys: Collection[str]) -> dict[str, Case]:
        """Source key to its scan, of those that are there."""
        found = self.store.find("scan", one_of("source_key", keys)) if keys else []
        return {case.source_key: case for case in found}

    def drop(self, ids: Collection[str], kind: Kind) -> None:
        """Takes cases out of every answer. To erase them from the disk, see medsiam.cases.erase."""
        with only_writer(self.folder):
            self.store.drop(kind, ids)

    def settle(self, *, keep_versions: bool = True) -> None:
        """Joins small files and refreshes the search index; answers stay the same.

        keep_versions  those of the last minutes stay, for readers that have them open
        """
        with only_writer(self.folder):
            self.store.settle(keep_versions=keep_versions)

    def check_encoder(self, encoder_id: str) -> None:
        """Raises IndexRefused where the index holds another encoder's embeddings."""
        if encoder_id != self.encoder_id:
            raise IndexRefused(
                f"the index holds embeddings of {self.encoder_id!r}, these are from {encoder_id!r}; pass the "
                "first one's --weights, or embed its scans anew with `medsiam index rebuild SCAN... --index "
                f"{self.folder}`"
            )

    def card(self) -> dict[str, Any]:
        """What index.json holds."""
        return {
            "schema": SCHEMA,
            "encoder": self.encoder_id,
            "sizes": dict(self.sizes),
            "spatial_dims": self.spatial_dims,
            "data": self.data,
            "settings": asdict(self.settings),
        }

    def sweep(self) -> None:
        """Removes what a rebuild has left behind. The lock must be held."""
        for path in (self.folder / DATA, *self.folder.glob(f"{DATA}-*")):
            if path.name != self.data:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Lets go of the engine's files."""
        self.store.close()
        self.__dict__.pop("store", None)

    @cached_property
    def store(self) -> CaseStore:
        """The engine; opened when it is first asked."""
        if self.settings.engine == "qdrant":
            # Only who chose it needs its client.
            from medsiam.cases.qdrant_store import QdrantStore

            return QdrantStore(self.folder / self.data, self.sizes, self.settings)
        # A tenth of a second that `medsiam --help` need not wait for.
        from medsiam.cases.lance_store import LanceStore

        return LanceStore(self.folder / self.data, self.sizes, self.settings)

    def _checked(self, case: Case, kind: Kind) -> Case:
        self._vector(case.vector, kind)
        return case

    def _vector(self, vector: NDArray[Any], kind: Kind) -> NDArray[Any]:
        size = self.sizes[kind]
        if vector.shape != (size,):
            raise IndexRefused(
                f"a {kind} of this index has {size} numbers, the one given {vector.shape}; "
                f"embed it with {self.encoder_id!r}"
            )
        if not np.isfinite(vector).all() or not np.any(vector):
            raise IndexRefused(
                f"the embedding of a {kind} is not finite or all zeros; the scan may be empty, check it"
            )
        return vector


def walk(index: CaseIndex, kind: Kind = "scan", where: Filter | None = None) -> Iterator[Case]:
    """The cases of an index by patient and date, without vectors and thumbnails."""
    yield from sorted(
        index.store.find(kind, where), key=lambda case: (case.patient_key, case.acquired, case.case_id)
    )


def _from_card(folder: Path, card: Mapping[str, Any]) -> CaseIndex:
    if card.get("schema") != SCHEMA:
        raise IndexRefused(
            f"the index in {folder} has schema {str(card.get('schema'))[:40]!r}, this version reads "
            f"{SCHEMA!r}; "
            "use the version that wrote it, or add its scans to a new index"
        )
    try:
        sizes: dict[Kind, int] = {kind: int(card["sizes"][kind]) for kind in KINDS}
        settings = IndexSettings(**card["settings"])
        data = str(card["data"])
        if not re.fullmatch(r"cases(-[0-9a-f]+)?", data):
            raise ValueError("data")
        return CaseIndex(folder, str(card["encoder"]), sizes, int(card["spatial_dims"]), settings, data)
    except (KeyError, TypeError, ValueError) as error:
        raise IndexDamaged(
            f"the card of the index in {folder} lacks or garbles {error}; restore index.json from a backup"
        ) from error


def _refuse_other_files(folder: Path) -> None:
    """A new index begins in an empty folder: tables without their card are someone's lost index."""
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others:
        raise IndexRefused(
            f"{folder} is not empty ({others[0][:40]!r}) and holds no index; choose another folder, or "
            "restore "
            "index.json from a backup"
        )
