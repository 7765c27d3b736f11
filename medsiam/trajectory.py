"""Several scans of one patient as one function: each read once, compared in pairs, added up.

    read -> order of time -> identity and comparability of all pairs
         -> compare: each step, first to last, or all pairs -> closure, lesions, rates

It says of several scans what compare says of two, by comparing them two by two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from medsiam.change.comparison import Comparison, Provenance, Verdict
from medsiam.change.growth import Estimate, growth_rate
from medsiam.change.tracking import follow_lesions
from medsiam.change.trajectory import (
    MOST_SCANS_ALL_PAIRS,
    Closure,
    FollowedLesion,
    PairChange,
    PairKey,
    Trajectory,
    closure_of,
    days_between,
    days_for_rates,
    net_since_first,
    pair_change,
    planned_pairs,
    repeatability_of,
    verdict_over_time,
)
from medsiam.compare import Progress, compare, silent, usable_series
from medsiam.config import CompareSettings, load_settings
from medsiam.errors import IdentityRefused, InputRefused, NotComparable
from medsiam.pairing.comparability import check_comparable, judge
from medsiam.pairing.identity_check import check_identity, order_of_time
from medsiam.pairing.region import find_region
from medsiam.pairing.series_match import match_many
from medsiam.reading import load_key, read_series
from medsiam.volume import Matrix, Volume

# Takes each comparison as soon as it is made: its images are too large to keep them all.
Keep = Callable[[PairKey, Comparison], None]

FEWEST_SCANS = 3
# Points of the last scan's region at which motions are compared.
MOST_REGION_POINTS = 20_000
REGION_SHARE = 0.5


@dataclass(frozen=True)
class Rules:
    """What is allowed, and how much is compared.

    keep_order  take the scans in the order given, whatever their times say
    all_pairs   compare all pairs also of many scans
    fast        a coarser noise floor for each pair
    """

    allow_different_patients: bool = False
    keep_order: bool = False
    all_pairs: bool = False
    fast: bool = False


@dataclass(frozen=True, eq=False)
class Ordered:
    """Scans in the order of time; given[n] is the place that scan n had, from 1."""

    scans: tuple[Volume, ...]
    given: tuple[int, ...]
    is_by_time: bool
    notes: tuple[str, ...] = ()


def forget(key: PairKey, comparison: Comparison) -> None:
    """Keeps nothing."""


def follow_series(
    paths: Sequence[str | Path],
    *,
    config: str | Path | None = None,
    device: str = "auto",
    weights: str | None = None,
    seed: int = 0,
    rules: Rules | None = None,
    keep: Keep = forget,
    progress: Progress = silent,
) -> Trajectory:
    """What `medsiam trajectory` does: reads three or more scans from disk and follows them.

    paths  of each scan, as for compare_series; in any order
    keep   takes each comparison as it is made

    Raises InputRefused where no true answer can be given, ConfigRefused for
    settings that do not exist.
    """
    started = time.perf_counter()
    settings = load_settings(config, CompareSettings)
    progress("reading")
    volumes, told = read_scans([Path(path) for path in paths])
    read_seconds = round(time.perf_counter() - started, 3)
    trajectory = follow(
        volumes,
        settings,
        device=device,
        weights=weights,
        seed=seed,
        rules=rules,
        keep=keep,
        progress=progress,
    )
    seconds = {"read": read_seconds, **trajectory.provenance["seconds"]}
    return replace(
        trajectory,
        notes=(*told, *trajectory.notes),
        provenance={**trajectory.provenance, "seconds": seconds},
    )


def follow(
    volumes: Sequence[Volume],
    settings: CompareSettings | None = None,
    *,
    device: str = "auto",
    weights: str | None = None,
    seed: int = 0,
    rules: Rules | None = None,
    keep: Keep = forget,
    known: Mapping[PairKey, PairChange] | None = None,
    progress: Progress = silent,
) -> Trajectory:
    """The trajectory of volumes given in any order; nothing is read or written but the weights.

    known  pairs, by their numbers in the order of time, that were compared before with the same
           settings; the last pair is always compared

    Raises IdentityRefused, NotComparable and ResourceExhausted as a single comparison does.
    """
    rules, settings = rules or Rules(), settings or CompareSettings()
    if len(volumes) < FEWEST_SCANS:
        raise InputRefused(
            f"a trajectory needs {FEWEST_SCANS} scans, {len(volumes)} given; use compare for two"
        )
    digests = [volume.acquisition.sha256 for volume in volumes if volume.acquisition.sha256]
    if len(set(digests)) < len(digests):
        raise InputRefused(
            "the same scan is given twice: it is one measurement and not two; give each scan once"
        )
    if len({volume.spatial_dims for volume in volumes}) > 1:
        raise NotComparable("radiographs and volumes are among the scans; give scans of one kind")
    started = time.perf_counter()
    ordered = in_order(volumes, rules)
    count = len(ordered.scans)
    keys = planned_pairs(count, all_pairs=rules.all_pairs or count <= MOST_SCANS_ALL_PAIRS)
    notes = {key: _identity(ordered, key, rules) for key in combinations(range(1, count + 1), 2)}
    _check_comparable(ordered, keys)

    def compared(key: PairKey) -> tuple[PairChange, Provenance | None]:
        if known and key in known and key != keys[-1]:
            return known[key], None
        prior, current = key
        comparison = compare(
            ordered.scans[prior - 1],
            ordered.scans[current - 1],
            settings,
            device=device,
            weights=weights,
            seed=seed,
            fast=rules.fast,
            notes=notes[key],
            progress=lambda step: progress(f"{step} {prior}-{current}"),
        )
        keep(key, comparison)
        return pair_change(comparison, prior, current), comparison.provenance

    pairs, provenances = zip(*map(compared, keys), strict=True)
    assert provenances[-1] is not None, "the last pair is never taken from before"
    made = _provenance(provenances[-1], time.perf_counter() - started)
    return _added_up(ordered, pairs, made, (*ordered.notes, *_told_once(notes)))


def read_scans(paths: Sequence[Path]) -> tuple[tuple[Volume, ...], tuple[str, ...]]:
    """The volumes, each read once, and sentences that tell which series were taken."""
    key = load_key()
    sides = [usable_series(path, None, key) for path in paths]
    if all(len(side) == 1 for side in sides):
        return tuple(read_series(side[0]) for side in sides), ()
    places, sentence = match_many(sides)
    taken = (side[place] for side, place in zip(sides, places, strict=True))
    return tuple(read_series(entry) for entry in taken), (sentence,)


def in_order(volumes: Sequence[Volume], rules: Rules) -> Ordered:
    """The volumes by their time of acquisition, or as given where asked or where a time is missing."""
    order = order_of_time([volume.acquisition for volume in volumes])
    given = tuple(range(len(volumes)))
    note = ""
    if rules.keep_order:
        order, note = given, "The scans stand in the order given, as asked."
    elif order is None:
        order, note = (
            given,
            "Not every scan tells its time of acquisition; the scans stand in the order given.",
        )
    elif order != given:
        places = ", ".join(str(place + 1) for place in order)
        note = f"The scans were put in the order of time: as given they are number {places}."
    return Ordered(
        scans=tuple(volumes[place] for place in order),
        given=tuple(place + 1 for place in order),
        is_by_time=order_of_time([volumes[place].acquisition for place in order]) == given,
        notes=(note,) if note else (),
    )


def region_points_mm(volume: Volume) -> Matrix:
    """LPS positions (n, 3) in mm spread over the scan's brain, or its body."""
    index = np.argwhere(find_region(volume).weight > REGION_SHARE)
    return volume.grid.world(index[:: max(1, len(index) // MOST_REGION_POINTS)])


def _provenance(last: Provenance, seconds: float) -> dict[str, Any]:
    return {
        "medsiam": last.medsiam,
        "device": last.device,
        "seed": last.seed,
        "config": last.config,
        "weights_sha256": last.weights_sha256,
        "seconds": {"compare": round(seconds, 3)},
    }


def _identity(ordered: Ordered, key: PairKey, rules: Rules) -> tuple[str, ...]:
    prior, current = (ordered.scans[number - 1].acquisition for number in key)
    try:
        return check_identity(
            prior,
            current,
            allow_different_patients=rules.allow_different_patients,
            keep_order=rules.keep_order,
        )
    except IdentityRefused as error:
        raise IdentityRefused(f"{_name_of(ordered, key)}: {error}") from error


def _check_comparable(ordered: Ordered, keys: Sequence[PairKey]) -> None:
    """Raises NotComparable before any pair costs time."""
    for key in keys:
        prior, current = (ordered.scans[number - 1] for number in key)
        try:
            check_comparable(
                judge(
                    prior.acquisition,
                    current.acquisition,
                    tuple(float(mm) for mm in prior.grid.spacing_mm),  # type: ignore[arg-type]
                    tuple(float(mm) for mm in current.grid.spacing_mm),  # type: ignore[arg-type]
                )
            )
        except NotComparable as error:
            raise NotComparable(f"{_name_of(ordered, key)}: {error}") from error


def _name_of(ordered: Ordered, key: PairKey) -> str:
    prior, current = (ordered.given[number - 1] for number in key)
    return f"scans {prior} and {current} of those given"


def _told_once(notes: dict[PairKey, tuple[str, ...]]) -> list[str]:
    """Each sentence once, with the pairs that it speaks of unless it holds for all."""
    pairs: dict[str, list[str]] = {}
    for (prior, current), sentences in notes.items():
        for sentence in sentences:
            pairs.setdefault(sentence, []).append(f"{prior}-{current}")
    return [
        sentence if len(told) == len(notes) else f"{', '.join(told)}: {sentence}"
        for sentence, told in pairs.items()
    ]


def _added_up(
    ordered: Ordered, pairs: Sequence[PairChange], provenance: dict[str, Any], notes: tuple[str, ...]
) -> Trajectory:
    scans, count = ordered.scans, len(ordered.scans)
    days = tuple(days_between(scans[0], scan) for scan in scans)
    closure = closure_of(pairs, count, region_points_mm(scans[-1]))
    known = days_for_rates(days)
    lesions = follow_lesions(pairs, known)
    net = net_since_first(pairs, count)
    dated = [(day, volume.volume_ml) for volume in net if (day := known[volume.scan - 1]) is not None]
    rate = growth_rate([day for day, _ in dated], [ml for _, ml in dated])
    verdict = verdict_over_time(pairs, count)
    left_out = [
        f"{name}: {pair.summary} It is left out of lesions and rates."
        for name, pair in _silent(pairs).items()
    ]
    undated = ("A time of acquisition is missing, so no rates are given.",) if None in days else ()
    return Trajectory(
        scans=scans,
        given=ordered.given,
        is_ordered_by_time=ordered.is_by_time,
        days=days,
        verdict=verdict,
        summary=_summary(verdict, pairs, lesions, closure, rate),
        pairs=tuple(pairs),
        closure=closure,
        lesions=lesions,
        net=net,
        rate=rate,
        repeatability=repeatability_of(lesions),
        provenance=provenance,
        notes=(*notes, *left_out, *undated),
    )


def _silent(pairs: Sequence[PairChange]) -> dict[str, PairChange]:
    """The pairs without a verdict, by name."""
    return {f"{pair.prior}-{pair.current}": pair for pair in pairs if not pair.is_determinate}


def _summary(
    verdict: Verdict,
    pairs: Sequence[PairChange],
    lesions: tuple[FollowedLesion, ...],
    closure: Closure,
    rate: Estimate | None,
) -> str:
    """One plain sentence."""
    silent_pairs = ", ".join(_silent(pairs))
    if verdict == "indeterminate":
        return f"No verdict over time: none was given for {silent_pairs}."
    if verdict == "stable":
        without = f"; none was given for {silent_pairs}" if silent_pairs else ""
        return f"No change beyond the noise in any pair that has a verdict{without}."
    if lesions:
        told = [f"{len(lesions)} lesion{'s' if len(lesions) > 1 else ''} followed"]
    else:
        # A radiograph's opacities have no volume that could be followed.
        changed = ", ".join(f"{p.prior}-{p.current}" for p in pairs if p.is_determinate and p.findings)
        told = [f"Findings beyond the noise in {changed}; none could be followed over time"]
    if closure.direct_ml is not None:
        told.append(f"{closure.direct_ml:+.3f} ml from first to last")
    if rate is not None:
        interval = "" if rate.low is None else f" (95 % interval {rate.low:+.3f} to {rate.high:+.3f})"
        told.append(f"{rate.value:+.3f} ml a month{interval}")
    if closure.error_ml is not None:
        told.append(f"steps and direct comparison differ by {closure.error_ml:.3f} ml")
    return f"{'; '.join(told)}."
