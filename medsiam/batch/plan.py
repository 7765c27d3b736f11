"""An archive to the comparisons and trajectories that it is worth, and to what is refused."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from medsiam.batch.headers_kept import HeadersKept
from medsiam.batch.listing import Found, Listing, always_read, digest_of, list_folder
from medsiam.batch.remote import is_address, list_archive
from medsiam.batch.values import BatchSettings, Case, Plan, Row
from medsiam.batch.visits import (
    Step,
    chains_of,
    id_of,
    kinds_of,
    persons_of,
    steps_of,
    strands_of,
    visits_of,
    why_no_date,
)
from medsiam.reading import load_key

Progress = Callable[[str], None]

NO_PATIENT = (
    "it tells no patient number, so it cannot be told whose scan it is; compare it by name with "
    "`medsiam compare`"
)


def silent(step: str) -> None:
    """Tells nobody."""


def plan_archive(
    archive: str | Path,
    out: str | Path,
    settings: BatchSettings | None = None,
    *,
    now: datetime | None = None,
    keep: bool = False,
    progress: Progress = silent,
) -> Plan:
    """What an archive holds to compare, from headers alone.

    archive  a folder tree, a zip, a DICOMDIR, or the address of a DICOMweb or DIMSE archive
    out      where results go; it is not searched
    now      dates beyond it are not believed
    keep     whether what headers say is kept in OUT, so that the next run asks only what changed

    Raises InputRefused where nothing is there, ArchiveRefused where an archive cannot be asked.
    """
    settings, key = settings or BatchSettings(), load_key()
    now = now or datetime.now()
    if is_address(str(archive)):
        listing = list_archive(str(archive), settings.pacs, key=key, progress=progress)
    else:
        kept = HeadersKept(out, key)
        listing = list_folder(
            Path(archive), key=key, leave_out=Path(out), progress=progress,
            recall=kept.read if keep else always_read,
        )  # fmt: skip
        if keep:
            kept.forget_others()
    return planned(listing, settings, now)


def planned(listing: Listing, settings: BatchSettings, now: datetime) -> Plan:
    """The plan of what was found."""
    refused, aside, cases = list(listing.refused), list(listing.aside), []
    patients, unplaced = _by_patient(listing.found, now)
    refused += unplaced
    visits = 0
    for patient in sorted(patients):
        persons = persons_of(patients[patient])
        if len(persons) > 1:
            refused.append(_shared_number(persons))
        for person in persons:
            dated, copies = visits_of(person)
            aside += copies
            visits += len(dated)
            made, none = _of_person(patient, dated, settings)
            cases += made
            refused += none
    counts = {
        "files": listing.files,
        "series": len(listing.found) + len(listing.refused) + listing.left_out + len(listing.aside),
        "usable_series": len(listing.found),
        "left_out_series": listing.left_out,
        "patients": len(patients),
        "visits": visits,
    }
    return Plan(tuple(cases), tuple(_once(refused)), tuple(aside), counts)


def _by_patient(found: Sequence[Found], now: datetime) -> tuple[dict[str, list[Found]], list[Row]]:
    """The series of each patient key, and those that tell no patient or no date."""
    patients: dict[str, list[Found]] = {}
    refused = []
    for each in found:
        code, why = why_no_date(each, now)
        patient = each.acquisition.patient_key
        if not patient:
            code, why = "identity", NO_PATIENT
        if why:
            refused.append(_refused([each], code, why))
        else:
            patients.setdefault(patient or "", []).append(each)
    return _issuers_joined(patients), refused


def _issuers_joined(patients: dict[str, list[Found]]) -> dict[str, list[Found]]:
    """The same; one number under one issuer and under none is one patient, by the earliest scan's key."""
    joined, by_number = dict(patients), defaultdict(list)
    for patient, found in patients.items():
        by_number[found[0].acquisition.number_key].append(patient)
    for number, keys in by_number.items():
        is_untold = [not patients[key][0].acquisition.issuer for key in keys]
        if number is None or sorted(is_untold) != [False, True]:
            continue
        both = [each for key in keys for each in joined.pop(key)]
        joined[min(both, key=_moment).acquisition.patient_key or ""] = both
    return joined


def _moment(found: Found) -> tuple[str, str]:
    at = found.acquisition.acquired
    return at.replace(tzinfo=None).isoformat() if at else "", found.acquisition.patient_key or ""


def _of_person(
    patient: str, visits: Sequence[Sequence[Found]], settings: BatchSettings
) -> tuple[list[Case], list[Row]]:
    cases: list[Case] = []
    refused = []
    for kind in kinds_of([each for visit in visits for each in visit]):
        ours = {id(each) for each in kind}
        of_kind = [[each for each in visit if id(each) in ours] for visit in visits]
        for n, strand in enumerate(strands_of(of_kind, all_series=settings.all_series)):
            steps = list(steps_of(strand, settings.pacs.prior))
            cases += [_comparison(patient, step) for step in steps if step.prior]
            cases += [_trajectory(patient, chain) for chain in chains_of(steps)]
            # A strand of what the best one left over refuses nothing: it was not asked for.
            refused += [_no_prior(step) for step in steps if not step.prior and n == 0]
    return cases, refused


def _comparison(patient: str, step: Step) -> Case:
    assert step.prior is not None, "a step without a prior is refused"
    visits = (step.prior, step.current)
    offered = [1 + len(visit.others) for visit in visits]
    notes: tuple[str, ...] = ()
    if max(offered) > 1:
        notes = (
            f"Of {offered[0]} and {offered[1]} series of this kind, those most alike over the patient's "
            f"visits were taken (likeness {step.likeness:.2f}).",
        )
    return Case(id_of(visits), patient, tuple(visit.chosen.scan for visit in visits), notes=notes)


def _trajectory(patient: str, chain: Sequence[Step]) -> Case:
    assert chain[0].prior is not None, "a chain begins with a prior"
    visits = [chain[0].prior, *(step.current for step in chain)]
    steps = tuple(id_of((step.prior, step.current)) for step in chain if step.prior)
    return Case(f"course-{id_of(visits)}", patient, tuple(visit.chosen.scan for visit in visits), steps)


def _no_prior(step: Step) -> Row:
    return _refused([step.current.chosen], "not-comparable", f"no earlier visit can be its prior; {step.why}")


def _shared_number(persons: Sequence[Sequence[Found]]) -> Row:
    firsts = [person[0] for person in persons]
    return _refused(
        firsts,
        "identity",
        f"{len(persons)} people share one patient number (birth dates, sexes or names differ); each one's "
        "scans were compared among themselves; correct the number in the archive",
    )


def _refused(found: Sequence[Found], code: str, reason: str) -> Row:
    scans = [each.scan for each in found]
    return Row(
        case_id=digest_of(code, *(f"{scan.name} {scan.signature}" for scan in scans)),
        kind="input",
        state="refused",
        patient_key=found[0].acquisition.patient_key,
        summary="It was not compared.",
        code=code,
        reason=reason,
        current=scans[-1].told(),
        prior=scans[0].told() if len(scans) > 1 else None,
        spoken="" if scans[-1].series_uid or not scans[-1].files else scans[-1].files[0][0],
    )


def _once(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows with ids that differ: two damaged files of one name in one zip are two lines."""
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row.case_id] += 1
        count = seen[row.case_id]
        yield row if count == 1 else replace(row, case_id=f"{row.case_id}-{count}")
