"""Erasing cases so that nothing of them is left on the disk, and proving it.

    what to look for -> erase -> search every file for it -> receipt

Embeddings tell people apart as names do, so a deletion that leaves the bytes is none.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from medsiam import __version__
from medsiam.cases.case import KINDS, Case, Kind
from medsiam.cases.filters import Filter, Some, equal, one_of
from medsiam.cases.folder import only_writer, write_private
from medsiam.cases.index import CaseIndex
from medsiam.errors import IndexDamaged, IndexRefused
from medsiam.reading.identity import keyed_hash

SCHEMA = "medsiam.erasure/1"
RECEIPTS = "receipts"

# Shorter texts ("MR", "F") are in every case and tell nobody apart.
SHORTEST_TELLING = 8

# Enough to tell two pictures or vectors apart.
PIECE_BYTES = 48
PIECES_AT = (0.1, 0.25, 0.5, 0.75)
# Different values in a piece: zeros, as where a part of an embedding has faded, tell nobody apart.
LEAST_VARIED = 12

# Stands while an erasure runs: where one was killed, rows are gone whose bytes are not.
PENDING = ".erasing"

IDENTIFIERS = ("case_id", "prior_id", "patient_key", "study_uid", "series_uid", "sha256", "source_key")


@dataclass(frozen=True)
class Proof:
    """How often the bytes of one kind of thing stood in the files, before and after.

    sought        different byte strings
    found_before  of these, how many were seen: a search that sees nothing proves nothing
    found_after   0, or the erasure has failed
    """

    sought: int
    found_before: int
    found_after: int


@dataclass(frozen=True)
class Receipt:
    """What was erased. It names nobody: whoever holds the key can tell whom it was.

    person     keyed hash of the patient's key, another one than the index had
    cases      how many, by kind
    proof      by what was sought: vectors, thumbnails, identifiers
    is_proven  False where the files lie on a server that this command cannot search
    """

    erased_at: str
    person: str
    cases: Mapping[str, int]
    proof: Mapping[str, Proof]
    is_proven: bool
    file: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        told = asdict(self)
        told.pop("file")
        return {"schema": SCHEMA, "medsiam": __version__, **told}


def erase_patient(index: CaseIndex, patient_key: str, *, key: bytes, now: datetime) -> Receipt:
    """The receipt of erasing a patient's scans, findings and changes: vectors, pictures, words, old versions.

    Raises IndexRefused where the index holds none, IndexDamaged where bytes were still
    found afterwards.
    """
    return _erase(index, equal("patient_key", patient_key), keyed_hash(key, "erasure", patient_key), now)


def erase_scan(index: CaseIndex, case_id: str, *, key: bytes, now: datetime) -> Receipt:
    """Likewise, of one scan and all that was made from it."""
    where = Some((equal("scan_id", case_id), equal("prior_id", case_id)))
    return _erase(index, where, keyed_hash(key, "erasure", case_id), now)


def _erase(index: CaseIndex, where: Filter, person: str, now: datetime) -> Receipt:
    with only_writer(index.folder):
        index.sweep()
        cases = {kind: index.store.find(kind, where, vectors=True, thumbnails=True) for kind in KINDS}
        if not any(cases.values()):
            _finish_interrupted(index)
            raise IndexRefused(
                f"the index in {index.folder} holds nothing of that patient or case; check the number "
                "and the issuer"
            )
        needles = _needles(index, cases)
        before = {name: _seen(index.folder, sought) for name, sought in needles.items()}
        (index.folder / PENDING).touch(mode=0o600)
        # All kinds, also those without a case of this patient: an old version may have had one.
        for kind in KINDS:
            index.store.erase(kind, [case.case_id for case in cases[kind]])
        index.store.close()
        (index.folder / PENDING).unlink()
        proof = {
            name: Proof(len(sought), len(before[name]), len(_seen(index.folder, sought)))
            for name, sought in needles.items()
        }
    left = sum(each.found_after for each in proof.values())
    if left:
        raise IndexDamaged(
            f"{left} traces of the erased cases are still in the files of {index.folder}; close every other "
            "program that has the index open and run the command again"
        )
    is_proven = not index.settings.qdrant_url
    receipt = Receipt(
        now.isoformat(timespec="seconds"),
        person,
        {kind: len(found) for kind, found in cases.items()},
        proof,
        is_proven,
        f"{RECEIPTS}/erasure-{now:%Y%m%dT%H%M%S}-{person[:8]}.json",
    )
    return receipt


def file_receipt(index: CaseIndex, receipt: Receipt, text: str) -> Path:
    """Where the receipt was written, in the index's own folder."""
    path = index.folder / receipt.file
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(path, text)
    return path


def _finish_interrupted(index: CaseIndex) -> None:
    if (index.folder / PENDING).exists():
        for kind in KINDS:
            index.store.erase(kind, ())
        (index.folder / PENDING).unlink()


def _needles(index: CaseIndex, cases: Mapping[Kind, Sequence[Case]]) -> dict[str, frozenset[bytes]]:
    """What to look for, less what a case that stays rightly has too: another scan of the same
    patient, or the same scan stored under another number."""
    scans = cases["scan"]
    kin = Some(
        (
            one_of("sha256", [case.sha256 for case in scans]),
            one_of("patient_key", {case.patient_key for case in scans if case.patient_key}),
        )
    )
    goes, stays = _Traces(), _Traces()
    for kind in KINDS:
        ours = {case.case_id for case in cases[kind]}
        found = index.store.find(kind, kin, vectors=True, thumbnails=True)
        goes.take(index, cases[kind])
        stays.take(index, [case for case in found if case.case_id not in ours])
    goes.identifiers -= _begun_by_others(index, scans)
    return {name: frozenset(getattr(goes, name) - getattr(stays, name)) for name in vars(goes)}


class _Traces:
    """Byte strings that tell cases apart."""

    def __init__(self) -> None:
        self.vectors: set[bytes] = set()
        self.thumbnails: set[bytes] = set()
        self.identifiers: set[bytes] = set()

    def take(self, index: CaseIndex, cases: Sequence[Case]) -> None:
        for case in cases:
            vector, thumbnails = index.store.written(case)
            self.vectors |= _pieces(vector)
            self.thumbnails |= _pieces(thumbnails)
            texts = {getattr(case, column) for column in IDENTIFIERS}
            self.identifiers |= {text.encode() for text in texts if len(text) >= SHORTEST_TELLING}


def _pieces(whole: bytes) -> set[bytes]:
    """Samples from within: an engine may break long values at a page, and pictures begin alike."""
    starts = {round(share * max(0, len(whole) - PIECE_BYTES)) for share in PIECES_AT}
    pieces = {whole[start : start + PIECE_BYTES] for start in starts}
    return {piece for piece in pieces if len(set(piece)) >= min(LEAST_VARIED, len(whole))} - {b""}


def _begun_by_others(index: CaseIndex, scans: Sequence[Case]) -> set[bytes]:
    """UIDs that a file may show without holding them: another's, and the one stored behind it.

    1.2.3 followed by 1.2.4 reads 1.2.31.2.4, in which 1.2.31 stands.
    """
    own = {case.case_id for case in scans}
    met = set()
    for column in ("series_uid", "study_uid"):
        for uid in {getattr(case, column) for case in scans}:
            beginnings = [uid[:n] for n in range(1, len(uid))]
            others = index.store.find("scan", one_of(column, beginnings)) if beginnings else []
            if any(case.case_id not in own for case in others):
                met.add(uid.encode())
    return met


def _seen(folder: Path, sought: Collection[bytes]) -> set[bytes]:
    """Which byte strings stand in any file of the folder, hidden ones too."""
    seen: set[bytes] = set()
    for path in _files(folder):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            seen |= {each for each in sought if content.find(each) >= 0}
    return seen


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 0)
