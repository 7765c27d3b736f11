"""Who looked like this before, or changed like this, and what happened to them.

query -> nearest cases -> how alike they are, beside pairs of two patients
                       -> what followed, beside random controls
                       -> vote of labels, share of one's own scanner
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsiam.cases.case import Case, Kind
from medsiam.cases.filters import Every, Filter, Test, differs, equal, every, one_of
from medsiam.cases.index import CaseIndex
from medsiam.cases.store import Near

By = Literal["scan", "finding", "change"]
Scanners = Literal["any", "same", "other"]

# Cases that are drawn, and pairs of two patients among them that tell how alike strangers
# are; a percentile then stands to about 2 %.
DRAWN, STRANGERS = 300, 1000
FEWEST_PAIRS = 20

# Controls are of the query's age within these years.
AGE_MARGIN_YEARS = 5.0

# Neighbours of one patient that may crowd out others before the list is made shorter.
ROOM_FOR_REPEATS = 5


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    where      a filter, as --where takes it
    scanners   rank all cases, those of the query's scanner only, or those of others only
    controls   how many random cases stand beside
    """

    by: By = "scan"
    count: int = 10
    where: str = ""
    scanners: Scanners = "any"
    include_same_patient: bool = False
    controls: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Followed:
    """What came after a case, as far as the index knows.

    days        until the next scan of that patient, None where there is none
    similarity  of the next scan to the case's own, None likewise
    outcome     as the label table told it, "" where it did not
    """

    days: float | None = None
    similarity: float | None = None
    outcome: str = ""


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A case, how alike it is, and what followed.

    percentile  share (0..100) of pairs of two different patients of this index that are less
                alike; None where the index is too small to tell
    """

    rank: int
    case: Case
    similarity: float
    percentile: float | None
    followed: Followed
    prior: Case | None = None


@dataclass(frozen=True)
class Vote:
    """What the neighbours' patients say of one label, each with one voice.

    shares  value to share of the voices; for numbers the mean alone
    """

    label: str
    voices: int
    shares: Mapping[str, float] = field(default_factory=dict)
    mean: float | None = None


@dataclass(frozen=True, eq=False)
class SearchOutcome:
    """Everything a search says.

    query          as a case of its own, with its pictures
    same_scanner   neighbours made on the query's scanner, None where that is not known
    background     cosines of pairs of two patients, sorted; () where too few
    """

    query: Case
    wish: Wish
    index: CaseIndex
    cases: int
    results: tuple[Neighbour, ...]
    controls: tuple[Neighbour, ...]
    votes: tuple[Vote, ...]
    same_scanner: int | None
    background: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    query_prior: Case | None = None


def search_cases(
    index: CaseIndex, query: Case, wish: Wish, *, query_prior: Case | None = None
) -> SearchOutcome:
    """The outcome of one search.

    query  a scan, finding or change with its vector; it need not be in the index

    Raises FilterRefused where the filter cannot be read, IndexRefused where the query does not fit.
    """
    began = time.perf_counter()
    kind: Kind = wish.by
    asked = index.filter(wish.where) if wish.where.strip() else None
    allowed = every(asked, _other_patients(query, wish), _of_scanners(query, wish))
    near = index.search(query.vector, count=wish.count, where=allowed, kind=kind)
    background = _background(index, kind, query, wish.seed)
    controls = _controls(index, query, wish, near)
    followed = _what_followed(index, [each.case for each in (*near, *controls)])
    outcome = SearchOutcome(
        query=query,
        wish=wish,
        index=index,
        cases=index.store.count(kind),
        results=tuple(_neighbour(n, each, background, followed) for n, each in enumerate(near, 1)),
        controls=tuple(_neighbour(n, each, background, followed) for n, each in enumerate(controls, 1)),
        votes=votes_of([each.case for each in near]),
        same_scanner=_same_scanner(query, near),
        background=background,
        query_prior=query_prior,
    )
    outcome = _with_pictures(index, outcome)
    return replace(outcome, notes=_notes(outcome), seconds=round(time.perf_counter() - began, 4))


def votes_of(cases: Sequence[Case]) -> tuple[Vote, ...]:
    """The labels of the nearest case of each patient, counted; numbers are averaged."""
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(case.patient_key or case.case_id, case)
    told: dict[str, list[str]] = {}
    for case in first.values():
        for label, value in (*case.labels.items(), *((("outcome", case.outcome),) if case.outcome else ())):
            told.setdefault(label, []).append(value)
    return tuple(_vote(label, values) for label, values in sorted(told.items()))


def _vote(label: str, values: Sequence[str]) -> Vote:
    numbers = [_number(value) for value in values]
    # Two values are a class, even where they are written as 0 and 1.
    if None not in numbers and len(set(values)) > 2:
        return Vote(label, len(values), mean=float(np.mean([n for n in numbers if n is not None])))
    counted = Counter(values).most_common()
    return Vote(label, len(values), {value: count / len(values) for value, count in counted})


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _other_patients(query: Case, wish: Wish) -> Filter | None:
    """Leaves out the query's patient; where that is not known, at least the very scan."""
    if wish.include_same_patient:
        return None
    if query.patient_key:
        return differs("patient_key", query.patient_key)
    return differs("sha256", query.sha256) if query.sha256 else None


def _of_scanners(query: Case, wish: Wish) -> Filter | None:
    if wish.scanners == "any":
        return None
    test = equal("scanner", query.scanner)
    return test if wish.scanners == "same" else Test("scanner", "!=", (query.scanner,))


def _like_query(query: Case) -> Filter:
    """Of the query's modality, as far as it is known."""
    return every(equal("modality", query.modality) if query.modality else None)


def _background(index: CaseIndex, kind: Kind, query: Case, seed: int) -> tuple[float, ...]:
    drawn = index.store.sample(kind, _like_query(query), DRAWN, seed)
    if len(drawn) < 2:
        return ()
    pairs = np.random.default_rng(seed).integers(len(drawn), size=(STRANGERS, 2))
    two = ((drawn[a], drawn[b]) for a, b in {(min(pair), max(pair)) for pair in pairs.tolist()})
    apart = [_cosine(a.vector, b.vector) for a, b in two if _person(a) != _person(b)]
    return tuple(sorted(apart)) if len(apart) >= FEWEST_PAIRS else ()


def _controls(index: CaseIndex, query: Case, wish: Wish, near: Sequence[Near]) -> list[Near]:
    """Random cases of the same modality and age, of patients who are not among the nearest."""
    if wish.controls < 1:
        return []
    taken = {_person(each.case) for each in near} | {_person(query)}
    of_age: Filter | None = None
    if query.age is not None:
        low, high = query.age - AGE_MARGIN_YEARS, query.age + AGE_MARGIN_YEARS
        of_age = Every((Test("age", ">=", (low,), True), Test("age", "<=", (high,), True)))
    alike = every(_like_query(query), of_age)
    enough = ROOM_FOR_REPEATS * (wish.controls + len(taken))
    drawn = index.store.sample(wish.by, alike, enough, wish.seed + 1)
    found: dict[str, Near] = {}
    for n in np.random.default_rng(wish.seed + 1).permutation(len(drawn)):
        case = drawn[int(n)]
        if _person(case) not in taken:
            found.setdefault(_person(case), Near(case, _cosine(query.vector, case.vector)))
    return sorted(list(found.values())[: wish.controls], key=lambda each: -each.similarity)


def _what_followed(index: CaseIndex, cases: Sequence[Case]) -> dict[str, Followed]:
    """By case id: the next scan of the same patient and kind, and the outcome."""
    patients = {case.patient_key for case in cases if case.patient_key}
    scans: dict[str, list[Case]] = {}
    if patients:
        for scan in index.store.find("scan", one_of("patient_key", patients), vectors=True):
            scans.setdefault(scan.patient_key, []).append(scan)
    return {case.case_id: _followed(case, scans.get(case.patient_key, ())) for case in cases}


def _followed(case: Case, scans: Sequence[Case]) -> Followed:
    own = next((scan for scan in scans if scan.case_id == case.scan_id), None)
    day = case.acquired_day
    later = [
        scan
        for scan in scans
        if day is not None
        and scan.acquired_day is not None
        and scan.acquired_day > day
        and (scan.modality, scan.sequence) == (case.modality, case.sequence)
    ]
    if not later or day is None:
        return Followed(outcome=case.outcome)
    after = min(later, key=lambda scan: scan.acquired_day or 0.0)
    similarity = _cosine(own.vector, after.vector) if own is not None else None
    return Followed(round((after.acquired_day or day) - day, 3), similarity, after.outcome or case.outcome)


def _neighbour(
    rank: int, near: Near, background: Sequence[float], followed: Mapping[str, Followed]
) -> Neighbour:
    percentile = None
    if background:
        percentile = 100.0 * float(np.searchsorted(background, near.similarity)) / len(background)
    return Neighbour(rank, near.case, near.similarity, percentile, followed[near.case.case_id])


def _with_pictures(index: CaseIndex, outcome: SearchOutcome) -> SearchOutcome:
    """The results with their pictures; of a change, those of both scans."""
    kind = outcome.wish.by
    cases = [each.case for each in outcome.results]
    if kind != "change":
        whole = _whole(index, kind, {case.case_id for case in cases})
        results = [replace(each, case=_pictured(each.case, whole)) for each in outcome.results]
        return replace(outcome, results=tuple(results))
    whole = _whole(index, "scan", {scan for case in cases for scan in (case.scan_id, case.prior_id)})
    results = [
        replace(
            each,
            case=replace(each.case, thumbnails=whole[each.case.scan_id].thumbnails)
            if each.case.scan_id in whole
            else each.case,
            prior=whole.get(each.case.prior_id),
        )
        for each in outcome.results
    ]
    return replace(outcome, results=tuple(results))


def _pictured(case: Case, whole: Mapping[str, Case]) -> Case:
    return replace(case, thumbnails=whole[case.case_id].thumbnails) if case.case_id in whole else case


def _whole(index: CaseIndex, kind: Kind, ids: Collection[str]) -> dict[str, Case]:
    found = index.store.find(kind, one_of("case_id", ids), thumbnails=True) if ids else []
    return {case.case_id: case for case in found}


def _same_scanner(query: Case, near: Sequence[Near]) -> int | None:
    if not query.scanner:
        return None
    return sum(each.case.scanner == query.scanner for each in near)


def _notes(outcome: SearchOutcome) -> tuple[str, ...]:
    """What a reader must know of this search."""
    notes = []
    query, wish, found = outcome.query, outcome.wish, len(outcome.results)
    if not found:
        notes.append("No case of the index passes; loosen the filter, or add cases.")
    elif found < wish.count:
        notes.append(f"Only {found} of the {wish.count} cases asked for pass.")
    if not outcome.background and found:
        notes.append("The index is too small to say how alike two strangers are, so no percentile is given.")
    if not query.patient_key and not wish.include_same_patient:
        notes.append("The scan tells no patient number, so only this very scan is left out, not its patient.")
    if not query.scanner:
        notes.append("The scan does not tell its scanner, so no acquisition share is given.")
    elif found and outcome.same_scanner == found and wish.scanners == "any":
        notes.append("All results were made on this scan's scanner: rank across scanners to see past it.")
    if wish.controls and len(outcome.controls) < min(wish.controls, outcome.cases):
        count = len(outcome.controls)
        found_words = f"Only {count} controls" if count else "No controls"
        notes.append(f"{found_words} of the same modality and age are left in the index.")
    return tuple(notes)


def _person(case: Case) -> str:
    return case.patient_key or case.sha256 or case.case_id


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > 0.0 else 0.0
