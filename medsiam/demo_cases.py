"""Further made-up patients for the demo, an index of all, and who looks like the last visit.

heads of other seeds -> write_series -> add_to_index -> search_index -> search.html
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from medsiam.cases.folder import CARD
from medsiam.cases.search import SearchOutcome, Wish
from medsiam.evidence.series import SeriesIdentity, derived_uid, write_series
from medsiam.phantom import Lesion, Scan, flair_acquisition, head_phantom, position
from medsiam.report.search_writer import write_search
from medsiam.similar import add_to_index, search_index

INDEX, SEARCH, LABELS = "index", "similar", "labels.csv"

# Coarser than the compared visits: the encoder sees 2.25 mm, and the demo stays quick.
SCAN = Scan(spacing_mm=(5.0, 2.5, 2.5))


@dataclass(frozen=True)
class Neighbour:
    """A made-up patient: the head's seed, the lesions of each visit, and what became of it."""

    number: int
    head_seed: int
    visits: tuple[tuple[Lesion, ...], ...]
    outcome: str


FEW = (Lesion((22.0, 24.0, 27.0), (4.0, 4.0, 4.0)),)
MORE = (*FEW, Lesion((-28.0, 10.0, 30.0), (5.0, 5.0, 5.0)))
MANY = (*MORE, Lesion((24.0, -20.0, 28.0), (6.0, 5.0, 5.0)), Lesion((-22.0, -22.0, 24.0), (5.0, 6.0, 5.0)))
NEIGHBOURS = (
    Neighbour(2, 1, (FEW, MORE), "new lesion"),
    Neighbour(3, 2, (FEW, FEW), "no change"),
    Neighbour(4, 3, (MANY,), "not followed"),
)


def show_similar(out: Path, seed: int, progress: Callable[[str], None] = lambda step: None) -> SearchOutcome:
    """The search for cases like the last visit, its report written under `out`.

    out  holds the demo's own visits as DICOM already
    """
    table = out / LABELS
    progress("scanning other patients")
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["series_uid", "lesions", "outcome"])
        for neighbour in NEIGHBOURS:
            for visit, lesions in enumerate(neighbour.visits):
                series_uid = _scan(neighbour, visit, out / "dicom" / f"patient{neighbour.number}", seed)
                rows.writerow([series_uid, len(lesions), neighbour.outcome])
    index = out / INDEX
    if (index / CARD).is_file():
        # An earlier demo's, perhaps by another encoder.
        shutil.rmtree(index)
    progress("indexing all of them")
    add_to_index([out / "dicom"], index, labels=table)
    progress("searching for cases like the last visit")
    outcome = search_index(out / "dicom" / "visit3", index, Wish(count=5, seed=seed))
    write_search(outcome, out / SEARCH)
    return outcome


def _scan(neighbour: Neighbour, visit: int, folder: Path, seed: int) -> str:
    """The series UID of one visit, written as DICOM."""
    parts = ("medsiam demo", str(seed), f"patient {neighbour.number}", f"visit {visit}")
    scan = Scan(spacing_mm=SCAN.spacing_mm, seed=100 * neighbour.number + 10 * visit + seed)
    acquired = datetime(2023, 2 + neighbour.number, 6 + visit, 9, 30)
    if visit:
        acquired = acquired.replace(year=2024)
    phantom = head_phantom(
        neighbour.visits[visit],
        scan=scan,
        world_from_head=position((2.0 * visit, -1.0, 3.0), (1.0, 2.0 * visit, -2.0)),
        head_seed=neighbour.head_seed,
        acquisition=flair_acquisition(scan, acquired),
    )
    identity = SeriesIdentity(
        patient_name=f"Phantom^Number{neighbour.number}",
        patient_id=f"DEMO-{neighbour.number:04d}",
        issuer="MEDSIAM-DEMO",
        birth_date=f"{1960 + 7 * neighbour.number}0101",
        sex="F" if neighbour.number % 2 else "M",
        study_uid=derived_uid(*parts, "study"),
        series_uid=derived_uid(*parts, "series"),
        frame_of_reference_uid=derived_uid(*parts, "frame of reference"),
        study_id=f"visit{visit + 1}",
        study_description="Made-up head MR",
    )
    write_series(phantom.volume, identity, folder / f"visit{visit + 1}")
    return identity.series_uid
