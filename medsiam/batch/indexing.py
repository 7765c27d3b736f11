"""What a batch compared, into the index of cases: each scan once, with the findings of its comparison.

It stands at the end: the neighbours that a report tells are then those of earlier nights, whatever
the order of the cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsiam.batch.reading import entry_of
from medsiam.batch.remote import is_address
from medsiam.batch.values import BatchSettings, Case, Plan, Row, Scan
from medsiam.cases.filters import equal
from medsiam.cases.index import CaseIndex
from medsiam.cases.intake import Hints, add_series, results_in, source_key
from medsiam.encoding.encoder import Encoder
from medsiam.errors import InputRefused
from medsiam.reading import SeriesEntry, load_key
from medsiam.similar import open_index

# Headers of so many scans are held at once.
SCANS_AT_ONCE = 500


@dataclass(frozen=True)
class Indexed:
    """How many scans were new to the index, known to it before, or could not be taken."""

    new: int = 0
    known: int = 0
    refused: int = 0


def check_index(archive: str, settings: BatchSettings) -> None:
    """Raises InputRefused or IndexRefused where nothing could be added, before hours are spent."""
    if settings.index is None:
        raise InputRefused("no index is named that scans could be added to; name one with --index DIR")
    if is_address(archive):
        raise InputRefused(
            "scans of an archive behind an address cannot be added to an index, since they are not kept; "
            "leave --add-to-index out, or give a folder"
        )
    open_index(Path(settings.index), weights=settings.weights, device=settings.device)


def add_compared(plan: Plan, rows: Sequence[Row], out: Path, settings: BatchSettings) -> Indexed:
    """Adds the scans of all comparisons that have a result; what the index holds is not even read.

    rows  of the worklist

    Raises IndexRefused where the index is not to be written, ResourceExhausted without room; what
    was stored stays, and the next run adds the rest.
    """
    assert settings.index is not None, "check_index was asked"
    index, encoder = open_index(Path(settings.index), weights=settings.weights, device=settings.device)
    made = {row.case_id: row for row in rows if row.state == "compared"}
    fitting = (case for case in plan.comparisons if case.spatial_dims == index.spatial_dims)
    compared = [case for case in fitting if case.case_id in made]
    results = _results(compared, made, out)
    scans = list(dict.fromkeys(scan for case in compared for scan in case.scans))
    fresh = list(_fresh(index, scans, results))
    new = refused = 0
    for start in range(0, len(fresh), SCANS_AT_ONCE):
        some = fresh[start : start + SCANS_AT_ONCE]
        stored, missed = _added(index, encoder, some, results)
        new, refused = new + stored, refused + missed
    return Indexed(new, len(scans) - new - refused, refused)


def _results(compared: Sequence[Case], rows: Mapping[str, Row], out: Path) -> dict[str, Path]:
    """Findings images by the digest of their scan, where there are findings."""
    found: dict[str, Path] = {}
    for case in compared:
        if rows[case.case_id].findings:
            found |= results_in(out / case.patient_key / case.case_id)
    return found


def _fresh(index: CaseIndex, scans: Sequence[Scan], results: Mapping[str, Path]) -> Iterator[Scan]:
    """The scans that the index does not know, or not with their findings; no file is read."""
    named = {_source_key(scan): scan for scan in scans}
    known = index.known_sources(named)
    for name, scan in named.items():
        case = known.get(name)
        has_findings = case is not None and case.sha256 in results
        if case is None or (
            has_findings and not index.store.count("finding", equal("scan_id", case.case_id))
        ):
            yield scan


def _source_key(scan: Scan) -> str:
    """What the index knows a scan's files by; a word of its own where one of them is gone."""
    try:
        return source_key(load_key(), scan.name, [Path(path) for path, _ in scan.files])
    except OSError:
        return f"gone {scan.signature}"


def _added(
    index: CaseIndex, encoder: Encoder, scans: Sequence[Scan], results: Mapping[str, Path]
) -> tuple[int, int]:
    """How many were stored, and how many could not be read any more."""
    key, entries = load_key(), list[SeriesEntry]()
    for scan in scans:
        try:
            entries.append(entry_of(scan, key))
        except InputRefused:
            # Changed or taken away since it was compared.
            continue
    intake = add_series(index, encoder, entries, Hints(results=results), key=key)
    return intake.added.new, len(scans) - len(entries) + len(intake.refused)
