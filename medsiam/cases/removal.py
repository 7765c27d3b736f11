"""Removing by what a person types: a patient's number, a key or a case id as listed."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

from medsiam.cases.changes import link_changes
from medsiam.cases.erase import Receipt, erase_patient, erase_scan, file_receipt
from medsiam.cases.filters import equal
from medsiam.cases.index import CaseIndex, walk
from medsiam.cases.issuers import issuer_of
from medsiam.errors import IndexRefused
from medsiam.reading import load_key, patient_key
from medsiam.reading.identity import KEY_DIGITS

# A shorter beginning of an id could be anybody's.
SHORTEST_BEGINNING = 8


def remove_patient(folder: Path, patient: str, *, issuer: str = "", now: datetime) -> tuple[Receipt, Path]:
    """The receipt of erasing a patient, and where it was filed.

    patient  the number that the scans tell, or the patient key as listed
    issuer   of the number; needed where the index holds the number of several

    Raises IndexRefused where the index holds none of that patient, or several with the number.
    """
    index, key = CaseIndex.open(folder), load_key()
    whose = patient_key(patient, issuer or issuer_of(index, patient, key), key) or ""
    if not index.store.count("scan", equal("patient_key", whose)) and _is_key(patient):
        whose = patient
    return _filed(index, erase_patient(index, whose, key=key, now=now))


def remove_case(folder: Path, case_id: str, *, now: datetime) -> tuple[Receipt, Path]:
    """Likewise, of one case, by its id or the beginning of it; its patient's changes are linked anew."""
    index, key = CaseIndex.open(folder), load_key()
    found = [case for case in walk(index) if case.case_id.startswith(case_id)]
    if len(case_id) < SHORTEST_BEGINNING or len(found) != 1:
        raise IndexRefused(
            f"{len(found)} cases have an id that begins with {case_id[:40]!r}; give one as "
            "`medsiam index list` tells it"
        )
    receipt = erase_scan(index, found[0].case_id, key=key, now=now)
    link_changes(index, {found[0].patient_key})
    return _filed(index, receipt)


def _filed(index: CaseIndex, receipt: Receipt) -> tuple[Receipt, Path]:
    text = json.dumps(receipt.as_dict(), indent=2) + "\n"
    return receipt, file_receipt(index, receipt, text)


def _is_key(text: str) -> bool:
    return re.fullmatch(rf"[0-9a-f]{{{KEY_DIGITS}}}", text) is not None
