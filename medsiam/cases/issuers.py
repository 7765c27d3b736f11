"""Who issued the patients' numbers of an index, so that a number alone finds its patient.

Patients stand in an index under a hash of number and issuer together. The issuers' names, which
are those of hospitals, stand beside it, so that a number can be tried with each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from medsiam.cases.filters import equal
from medsiam.cases.folder import only_writer, write_private
from medsiam.cases.index import CaseIndex
from medsiam.errors import IndexRefused
from medsiam.reading import patient_key

FILE = "issuers.json"


def known_issuers(folder: Path) -> tuple[str, ...]:
    """The issuers of an index, () where none was told. Raises IndexRefused where the list is damaged."""
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise IndexRefused(
            f"{FILE} of the index in {folder} cannot be read; delete it, and give --issuer with numbers"
        ) from error
    return tuple(str(name) for name in told) if isinstance(told, list) else ()


def remember_issuers(folder: Path, issuers: Iterable[str]) -> None:
    """Adds issuers to those of an index."""
    fresh = {name for name in issuers if name}
    if fresh <= set(known_issuers(folder)):
        return
    with only_writer(folder):
        write_private(folder / FILE, json.dumps(sorted(fresh.union(known_issuers(folder)))) + "\n")


def issuer_of(index: CaseIndex, number: str, key: bytes) -> str:
    """The issuer under which the index has a patient's number, "" where it has it under none.

    Raises IndexRefused where it has the number under several: these may be several patients.
    """
    found = [
        issuer
        for issuer in ("", *known_issuers(index.folder))
        if index.store.count("scan", equal("patient_key", patient_key(number, issuer, key) or ""))
    ]
    if len(found) > 1:
        names = ", ".join(repr(name[:64]) if name else "no issuer" for name in found)
        raise IndexRefused(
            f"the index holds that number {len(found)} times ({names}), which may be several patients; say "
            "which one: --issuer NAME, or to `index remove` the patient key as `medsiam index list` tells it"
        )
    return found[0] if found else ""
