"""Series of an archive to visits, and visits to lines of scans that can be compared.

    patient -> persons (two may share a number) -> kinds of scan -> visits in time
            -> one series a visit, most alike over the whole history -> each scan's prior

A prior is the latest earlier visit whose series is like enough: a visit in between that shows
something else does not break the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from medsiam.batch.listing import Found, digest_of
from medsiam.pacs.settings import PriorSettings
from medsiam.pairing.body_parts import regions_of
from medsiam.pairing.identity_check import order_of_time
from medsiam.pairing.series_match import match_many, series_likeness

# No scanner of this kind ran before; clocks that lost their battery begin at 1970 or earlier.
EARLIEST = datetime(1980, 1, 2)
# Clocks of two time zones, and one of ours that lags by a day.
FUTURE_ALLOWED = timedelta(days=2)
PROJECTION = frozenset({"CR", "DX", "RG"})


@dataclass(frozen=True, eq=False)
class Visit:
    """The series of one kind that one visit holds, and the chosen one."""

    chosen: Found
    others: tuple[Found, ...] = ()

    @property
    def at(self) -> datetime | None:
        return self.chosen.acquisition.acquired


@dataclass(frozen=True, eq=False)
class Step:
    """A scan and its prior; or, where it has none, why.

    prior  None where `why` tells what stood against the earlier visits
    """

    current: Visit
    prior: Visit | None
    likeness: float
    why: str = ""


def why_no_date(found: Found, now: datetime) -> tuple[str, str]:
    """(code, reason) where a scan cannot be put in the order of time, else two empty texts."""
    at = found.acquisition.acquired
    if at is None:
        return "date", (
            "it tells no date, so it cannot be put in order; compare it by name with `medsiam compare`"
        )
    at = at.replace(tzinfo=None)
    if at > now + FUTURE_ALLOWED or at < EARLIEST:
        return "clock", (
            f"its date is {at:%Y-%m-%d}, which cannot be: the scanner's clock was wrong; "
            "correct the date in the archive"
        )
    return "", ""


def persons_of(found: Sequence[Found]) -> list[list[Found]]:
    """The series under one number by person: birth date and sex tell, the name where they are missing."""
    births = {each.name_token: each.birth for each in found if each.birth and each.name_token}
    told = {each.birth for each in found if each.birth}
    groups: dict[str, list[Found]] = {}
    for each in found:
        who = each.birth or births.get(each.name_token or "")
        if who is None:
            # Nothing that contradicts is no second person.
            who = next(iter(told)) if len(told) == 1 and each.name_token is None else each.name_token
        groups.setdefault(who or "", []).append(each)
    nameless = groups.pop("", [])
    if nameless and len(groups) == 1:
        next(iter(groups.values())).extend(nameless)
    elif nameless:
        groups[""] = nameless
    return [groups[who] for who in sorted(groups)]


def kinds_of(found: Sequence[Found]) -> list[list[Found]]:
    """Series by what they show: the modality and the region of the body."""
    groups: dict[tuple[str, tuple[str, ...]], list[Found]] = {}
    for each in found:
        modality = each.acquisition.modality
        kind = "projection" if modality in PROJECTION else modality
        groups.setdefault((kind, tuple(sorted(regions_of(each.acquisition.body_part)))), []).append(each)
    for kind, regions in list(groups):
        known = [key for key in groups if key[0] == kind and key[1]]
        # Where all that is known is one region, what does not tell is taken for it.
        if not regions and len(known) == 1:
            groups[known[0]].extend(groups.pop((kind, ())))
    return [groups[key] for key in sorted(groups)]


def visits_of(found: Sequence[Found]) -> tuple[list[list[Found]], list[tuple[str, str]]]:
    """Series by visit, earliest first, and the copies: (study, why) of a visit that is there twice."""
    studies: dict[str, list[Found]] = {}
    for each in sorted(found, key=lambda one: (_second(one) or EARLIEST, one.scan.name)):
        study = each.acquisition.study_uid or each.scan.name
        # A study that is reopened on a later day is two visits.
        day = f"{each.acquisition.acquired:%Y-%m-%d}"
        studies.setdefault(f"{study} {day}", []).append(each)
    kept: list[list[Found]] = []
    copies = []
    moments: set[tuple[datetime | None, str]] = set()
    for together in studies.values():
        # Fractions of a second and tools' rounding apart, one moment is one scan.
        scan = [(_second(each), each.acquisition.modality) for each in together]
        if all(_time_is_told(each) for each in together) and moments.issuperset(scan):
            name = together[0].scan.study_uid or together[0].scan.name
            copies.append((name, "acquired at the very moment of another study: one visit is there twice"))
            continue
        moments.update(scan)
        kept.append(together)
    return kept, copies


def strands_of(visits: Sequence[Sequence[Found]], *, all_series: bool) -> Iterator[list[Visit]]:
    """One series of each visit, the most alike over all; with all_series again with those left."""
    left = [list(visit) for visit in visits]
    while True:
        left = [visit for visit in left if visit]
        if len(left) < 2:
            return
        # Most archives have one series of a kind a visit, and then there is nothing to choose.
        taken = match_many(left)[0] if any(len(visit) > 1 for visit in left) else (0,) * len(left)
        strand = [
            Visit(visit[place], tuple(other for other in visit if other is not visit[place]))
            for visit, place in zip(left, taken, strict=True)
        ]
        yield strand
        if not all_series:
            return
        left = [list(visit.others) for visit in strand]


def steps_of(strand: Sequence[Visit], rule: PriorSettings) -> Iterator[Step]:
    """Each visit of a strand but the first, with its prior or the reason why there is none."""
    for n in range(1, len(strand)):
        current = strand[n]
        reasons = []
        for earlier in reversed(strand[max(0, n - rule.most_studies) : n]):
            likeness = series_likeness(earlier.chosen, current.chosen)
            why = _why_not(earlier, current) or (
                f"its series are not like enough ({likeness:.2f} of {rule.least_likeness:g})"
                if likeness < rule.least_likeness
                else ""
            )
            if not why:
                yield Step(current, earlier, likeness)
                break
            reasons.append(f"the visit of {earlier.at:%Y-%m-%d}: {why}")
        else:
            yield Step(current, None, 0.0, reasons[0])


def chains_of(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Steps that follow on each other, two or more: what a trajectory is made of."""
    made = [step for step in steps if step.prior is not None]
    after = {id(step.current): step for step in made}
    priors = {id(step.prior) for step in made}
    for last in made:
        if id(last.current) in priors:
            continue
        chain = [last]
        while id(chain[0].prior) in after:
            chain.insert(0, after[id(chain[0].prior)])
        if len(chain) > 1:
            yield chain


def id_of(visits: Sequence[Visit]) -> str:
    """The name of a comparison's folder: what is compared, whatever the settings."""
    scans = [visit.chosen.scan for visit in visits]
    return digest_of(*(word for scan in scans for word in (scan.study_uid, scan.name, scan.acquired or "")))


def _why_not(prior: Visit, current: Visit) -> str:
    """Why the order of two visits cannot be told, "" where it can."""
    scans = [prior.chosen.acquisition, current.chosen.acquisition]
    if order_of_time(scans[::-1]) != (1, 0):
        return "their times do not tell which is the earlier one; correct the date, or use `medsiam compare`"
    began = prior.chosen.study_at, current.chosen.study_at
    if began[0] and began[1] and began[0].date() > began[1].date():
        return (
            "the scanner's clock and the dates of the studies put them in opposite orders; correct the "
            "dates in the archive"
        )
    return ""


def _second(found: Found) -> datetime | None:
    """The local time of a scan to the second, without its zone."""
    at = found.acquisition.acquired
    return at.replace(microsecond=0, tzinfo=None) if at else None


def _time_is_told(found: Found) -> bool:
    at = found.acquisition.acquired
    return bool(
        at and found.acquisition.protocol.get("acquired_time_known", at.hour or at.minute or at.second)
    )
