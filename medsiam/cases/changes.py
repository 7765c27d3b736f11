"""Change as a vector: the difference of the embeddings of two successive scans of one patient.

The index makes them by itself from the scans that it holds; no comparison is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np

from medsiam.cases.case import Case, case_id_of, unit
from medsiam.cases.filters import one_of
from medsiam.cases.index import CaseIndex

# Two scans of one day show the scanner's doing, not the patient's.
SHORTEST_INTERVAL_DAYS = 1.0

PATIENTS_AT_ONCE = 200


def link_changes(index: CaseIndex, patients: Collection[str]) -> int:
    """How many changes these patients have now: those of successive scans, and no others.

    Call it after scans of these patients were added.
    """
    known = sorted(patient for patient in patients if patient)
    count = 0
    for start in range(0, len(known), PATIENTS_AT_ONCE):
        whose = one_of("patient_key", known[start : start + PATIENTS_AT_ONCE])
        changes = list(changes_of(index.store.find("scan", whose, vectors=True)))
        stale = {case.case_id for case in index.store.find("change", whose)} - {c.case_id for c in changes}
        if stale:
            index.drop(stale, "change")
        if changes:
            index.add(changes, "change")
        count += len(changes)
    return count


def changes_of(scans: Sequence[Case]) -> Iterator[Case]:
    """Each scan's change from the one before, of the same patient and kind of scan."""
    dated = sorted((scan for scan in scans if scan.acquired and scan.patient_key), key=_series)
    for _, group in groupby(dated, key=lambda scan: _series(scan)[:4]):
        for prior, current in pairwise(group):
            change = change_of(prior, current)
            if change is not None:
                yield change


def change_of(prior: Case, current: Case) -> Case | None:
    """The change between two scans; None where they are of one day, or embedded alike to the bit.

    The direction is the vector, its length the magnitude; words and labels are the current's.
    """
    if prior.acquired_day is None or current.acquired_day is None:
        return None
    days = current.acquired_day - prior.acquired_day
    difference = current.vector.astype(np.float64) - prior.vector.astype(np.float64)
    magnitude = float(np.linalg.norm(difference))
    if days < SHORTEST_INTERVAL_DAYS or magnitude == 0.0:
        return None
    told = {name: getattr(current, name) for name in current.__dataclass_fields__}
    return Case(
        **{
            **told,
            "case_id": case_id_of(prior.case_id, "change", current.case_id),
            "vector": unit(difference),
            "scan_id": current.case_id,
            "prior_id": prior.case_id,
            "source_key": "",
            "interval_days": round(days, 3),
            "magnitude": round(magnitude, 6),
            "thumbnails": b"",
        }
    )


def _series(scan: Case) -> tuple[str, str, str, str, str, str]:
    return scan.patient_key, scan.modality, scan.body_part, scan.sequence, scan.acquired, scan.case_id
