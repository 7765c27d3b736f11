"""Which series of two visits belong together: all pairs scored, the best one told with its reasons."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

from medsiam.errors import SeriesAmbiguous
from medsiam.pairing.body_parts import EVERYWHERE, regions_of
from medsiam.pairing.comparability import judge
from medsiam.pairing.identity_check import are_two_patients, order_of_time
from medsiam.pairing.sequences import agent_was_given, sequence_family, words_of
from medsiam.volume import Acquisition


class Candidate(Protocol):
    """A series before its pixels are read; spacing (k, j, i) in mm, 0 where it is not known."""

    @property
    def acquisition(self) -> Acquisition: ...
    @property
    def shape_kji(self) -> tuple[int, int, int]: ...
    @property
    def spacing_kji_mm(self) -> tuple[float, float, float]: ...


# What counts, and how much: the contrast before all, then what makes voxels alike.
WEIGHTS = {
    "sequence": 0.30,
    "plane": 0.15,
    "resolution": 0.15,
    "description": 0.15,
    "contrast agent": 0.10,
    "body part": 0.05,
    "fineness": 0.10,
}

# A pair that must be refused is still ranked, below every pair that may be compared.
REFUSED_SHARE = 0.1

# What counts for a mark where one side does not tell.
UNKNOWN = 0.5

# A series of this many slices is half as fine as could be.
HALF_FINE_SLICES = 40.0

# Pairs named after the choice; more would hide it.
MOST_RUNNERS_UP = 5

_PLANES = {
    "axial": re.compile(r"(?<![A-Z])(AX(IAL)?|TRA(NS\w*)?)(?![A-Z])"),
    "sagittal": re.compile(r"(?<![A-Z])SAG(ITTAL)?(?![A-Z])"),
    "coronal": re.compile(r"(?<![A-Z])COR(ONAL)?(?![A-Z])"),
}


@dataclass(frozen=True)
class Match:
    """Two series that could be compared.

    prior, current  their places in the two lists
    score           likeness 0..1
    reasons         what they share or do not, a few words each
    """

    prior: int
    current: int
    score: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class BestMatch(Match):
    """The pair chosen, the next best ones, and a sentence that tells the choice."""

    runners_up: tuple[Match, ...]
    sentence: str


def match_series(priors: Sequence[Candidate], currents: Sequence[Candidate]) -> BestMatch:
    """The pair of series that are most alike; equal scores are decided by time, then by their UIDs.

    The same pair is chosen when the two sides are swapped, unless time decides. One series on both sides,
    or two of two patients, is chosen only where there is nothing else. A pair that cannot be
    compared is chosen only where there is no other: judge() then says why. Raises
    SeriesAmbiguous where a side is empty.
    """
    for side, series in (("prior", priors), ("current", currents)):
        if not series:
            raise SeriesAmbiguous(f"the {side} holds 0 series that can be compared; give another folder")

    def rank(match: Match) -> tuple[bool, float, bool, list[str], str]:
        prior, current = priors[match.prior], currents[match.current]
        names = [_identity(prior), _identity(current)]
        # Rounded: sums that differ by their last bit are equal. Sorted: the same pair both ways.
        score = -round(match.score, 9)
        return _are_no_visits(prior, current), score, _is_reversed(prior, current), sorted(names), names[0]

    pairs = [
        Match(m, n, series_likeness(prior, current), _reasons(prior, current))
        for m, prior in enumerate(priors)
        for n, current in enumerate(currents)
    ]
    best, *others = sorted(pairs, key=rank)
    return BestMatch(
        **vars(best),
        runners_up=tuple(others[:MOST_RUNNERS_UP]),
        sentence=_sentence([best, *others], priors, currents),
    )


def match_many(sides: Sequence[Sequence[Candidate]]) -> tuple[tuple[int, ...], str]:
    """One series of each of several scans, the most alike, and a sentence that tells the choice.

    Each series in turn is taken as the model, with what is most like it on every
    other side; of these choices the one whose pairs are most alike is taken, equal
    ones decided by their UIDs. One series on two sides, or series of two patients, are taken only
    where there is nothing else. Raises SeriesAmbiguous where a side is empty.
    """
    if any(not side for side in sides):
        raise SeriesAmbiguous("a scan holds 0 series that can be compared; give another folder")
    choices = {
        tuple(_most_like(model, side) if n != own else place for n, side in enumerate(sides))
        for own, models in enumerate(sides)
        for place, model in enumerate(models)
    }

    def rank(choice: tuple[int, ...]) -> tuple[int, float, list[str]]:
        taken = [side[place] for side, place in zip(sides, choice, strict=True)]
        pairs = list(combinations(taken, 2))
        score = sum(series_likeness(a, b) for a, b in pairs)
        wrong = sum(_are_no_visits(a, b) for a, b in pairs)
        return wrong, -round(score, 9), [_identity(series) for series in taken]

    best = min(choices, key=rank)
    names = [_name(side[place]) for side, place in zip(sides, best, strict=True)]
    likeness = -rank(best)[1] / max(1, len(sides) * (len(sides) - 1) // 2)
    counts = _and([str(len(side)) for side in sides])
    return best, f"Of {counts} series, {_and(names)} were taken (mean likeness {likeness:.2f})."


def _most_like(model: Candidate, side: Sequence[Candidate]) -> int:
    def rank(place: int) -> tuple[bool, float, str]:
        series = side[place]
        return _are_no_visits(model, series), -round(series_likeness(model, series), 9), _identity(series)

    return min(range(len(side)), key=rank)


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def series_likeness(a: Candidate, b: Candidate) -> float:
    """How well two series would compare, 0..1; 0 for two modalities, at most REFUSED_SHARE where refused."""
    verdict = judge(a.acquisition, b.acquisition, a.spacing_kji_mm, b.spacing_kji_mm)
    if any(difference.what == "modality" for difference in verdict.differences):
        return 0.0
    marks = _marks(a, b)
    score = sum(WEIGHTS[name] * mark for name, mark in marks.items())
    return score * REFUSED_SHARE if verdict.category == "not-comparable" else score


def _are_no_visits(a: Candidate, b: Candidate) -> bool:
    """Whether these cannot be two visits of one patient: one series twice, or two patients."""
    return _is_one_series(a, b) or are_two_patients(a.acquisition, b.acquisition)


def _is_one_series(a: Candidate, b: Candidate) -> bool:
    return bool(a.acquisition.series_uid) and _identity(a) == _identity(b)


def _is_reversed(prior: Candidate, current: Candidate) -> bool:
    return order_of_time([prior.acquisition, current.acquisition]) == (1, 0)


def _identity(series: Candidate) -> str:
    acquisition = series.acquisition
    part = acquisition.protocol.get("part", "")
    told = (acquisition.series_uid, part, acquisition.description, series.shape_kji, series.spacing_kji_mm)
    return " ".join(map(str, told))


def _marks(a: Candidate, b: Candidate) -> dict[str, float]:
    return {
        "sequence": _family_mark(a.acquisition, b.acquisition),
        "plane": _agreement(plane_of(a.acquisition), plane_of(b.acquisition)),
        "resolution": _resolution_mark(a.spacing_kji_mm, b.spacing_kji_mm),
        "description": _description_mark(a.acquisition, b.acquisition),
        # What no header mentions was not given: two silent headers agree.
        "contrast agent": float(bool(agent_was_given(a.acquisition)) == bool(agent_was_given(b.acquisition))),
        "body part": _body_part_mark(a.acquisition, b.acquisition),
        "fineness": _fineness_mark(a, b),
    }


def plane_of(acquisition: Acquisition) -> str:
    """The plane that the description names: axial, sagittal, coronal, or "" where none or several are."""
    found = [name for name, pattern in _PLANES.items() if pattern.search(words_of(acquisition))]
    return found[0] if len(found) == 1 else ""


def _family_mark(a: Acquisition, b: Acquisition) -> float:
    families = sequence_family(a), sequence_family(b)
    if "localiser" in families:
        return 0.0
    # With and without agent are akin; the agent has a mark of its own.
    first, second = (family.removesuffix("-contrast") for family in families)
    return _agreement(first, second)


def _agreement(a: str, b: str) -> float:
    return UNKNOWN if not a or not b else float(a == b)


def _resolution_mark(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    if min(*a, *b) <= 0.0:
        return UNKNOWN
    return math.prod(min(x, y) / max(x, y) for x, y in zip(a, b, strict=True))


def _description_mark(a: Acquisition, b: Acquisition) -> float:
    first, second = (set(re.findall(r"[A-Z0-9*]+", scan.description.upper())) for scan in (a, b))
    if not first or not second:
        return UNKNOWN
    return len(first & second) / len(first | second)


def _body_part_mark(a: Acquisition, b: Acquisition) -> float:
    first, second = regions_of(a.body_part), regions_of(b.body_part)
    if not first or not second:
        return UNKNOWN
    if EVERYWHERE in (first, second):
        return 1.0
    return len(first & second) / len(first | second)


def _fineness_mark(a: Candidate, b: Candidate) -> float:
    slices = min(a.shape_kji[0], b.shape_kji[0])
    return slices / (slices + HALF_FINE_SLICES)


def _reasons(prior: Candidate, current: Candidate) -> tuple[str, ...]:
    a, b = prior.acquisition, current.acquisition
    reasons = []
    for what, first, second in (
        ("sequence", sequence_family(a), sequence_family(b)),
        ("plane", plane_of(a), plane_of(b)),
    ):
        if first and second:
            reasons.append(f"{what} {first}" if first == second else f"{what} {first} and {second}")
    if a.description and a.description == b.description:
        reasons.append("same description")
    slices = prior.shape_kji[0], current.shape_kji[0]
    reasons.append(f"{slices[0]} and {slices[1]} slices" if max(slices) > 1 else "radiographs")
    return tuple(reasons)


def _sentence(pairs: Sequence[Match], priors: Sequence[Candidate], currents: Sequence[Candidate]) -> str:
    def named(match: Match) -> str:
        return f"{_name(priors[match.prior])} and {_name(currents[match.current])}"

    choice = pairs[0]
    if len(pairs) == 1:
        return f"Each side holds one series: {named(choice)}."
    told = f"Of {len(priors)} and {len(currents)} series, {named(choice)} were taken"
    told = f"{told} ({', '.join(choice.reasons)}; likeness {choice.score:.2f})"
    if choice.score <= REFUSED_SHARE:
        return f"{told}, though no two series show the same."
    equals = sum(round(pair.score, 9) == round(choice.score, 9) for pair in pairs[1:])
    if equals:
        others = "other pairs are" if equals > 1 else "other pair is"
        return f"{told}; {equals} {others} as alike, time or the UID decided."
    return f"{told}; next {named(pairs[1])} ({pairs[1].score:.2f})."


def _name(series: Candidate) -> str:
    acquisition = series.acquisition
    return repr(acquisition.description or acquisition.series_uid or acquisition.modality or "unnamed series")
