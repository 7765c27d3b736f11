"""Pairs and trajectories built by hand, whose sums are known."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np

from medsiam.change.comparison import Change, Comparison, Finding, Kind
from medsiam.change.tracking import follow_lesions
from medsiam.change.trajectory import (
    FoundPlace,
    PairChange,
    Trajectory,
    closure_of,
    net_since_first,
    planned_pairs,
    repeatability_of,
    verdict_over_time,
)
from medsiam.pairing.values import Comparability
from medsiam.volume import Volume
from tests import comparison_maker as maker

DAYS = (0.0, 100.0, 200.0, 300.0, 400.0)
POINTS_MM = np.array([(0.0, 0.0, 0.0), (30.0, 0.0, 0.0), (0.0, 40.0, 10.0)])
REGISTERED = maker.registration(prior_from_current=np.eye(4))


def shift(x_mm: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = x_mm
    return matrix


def place(
    before_ml: float,
    after_ml: float,
    *,
    at_mm=(0.0, 0.0, 0.0),
    radius_mm: float = 4.0,
    label: int = 1,
    uid="",
) -> FoundPlace:
    """A finding that is a ball of points of 1 mm."""
    kind: Kind = "new" if before_ml == 0 else "resolved" if after_ml == 0 else "enlarged"
    kind = "shrunk" if 0 < after_ml < before_ml else kind
    finding = Finding(
        label, uid or f"2.25.{label}", kind, at_mm, before_ml, after_ml, after_ml - before_ml, 0.01
    )
    axis = np.arange(-8.0, 8.5)
    ball = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    ball = ball[np.linalg.norm(ball, axis=1) <= radius_mm]
    return FoundPlace(finding, ball + np.array(at_mm), float(np.sqrt(3.0)))


def pair(prior: int, current: int, *places: FoundPlace, **changes: Any) -> PairChange:
    """A pair whose figures are the sums of its findings."""
    deltas = [each.finding.delta_ml for each in places]
    came, went = sum(d for d in deltas if d > 0), -sum(d for d in deltas if d < 0)
    verdict = "mixed" if came and went else "progressed" if came else "improved" if went else "stable"
    total = came + went
    change = Change((came - went) / (total + 1.0), total / (total + 1.0), 0.01, None, came, went, None)
    made = PairChange(
        prior=prior,
        current=current,
        interval_days=DAYS[current - 1] - DAYS[prior - 1],
        verdict=verdict,
        summary="Made by hand.",
        comparability=Comparability("same-protocol"),
        registration=REGISTERED,
        change=change,
        findings=tuple(each.finding for each in places),
        places=places,
    )
    return replace(made, **changes)


def one_lesion(volumes_ml, *, at_mm=(0.0, 0.0, 0.0), all_pairs: bool = True) -> list[PairChange]:
    """The pairs of scans in which one lesion has these volumes, measured without error."""
    out = []
    for prior, current in planned_pairs(len(volumes_ml), all_pairs=all_pairs):
        before, after = volumes_ml[prior - 1], volumes_ml[current - 1]
        found = [place(before, after, at_mm=at_mm, uid=f"2.25.{prior}{current}")] if before != after else []
        out.append(pair(prior, current, *found))
    return out


def silent(made: PairChange) -> PairChange:
    """The pair without a verdict."""
    doubtful = maker.registration(quality="doubtful", reasons=("few edges",))
    return replace(
        made, verdict="indeterminate", summary="No verdict: few edges.", places=(), registration=doubtful
    )


def scans(count: int) -> tuple[Volume, ...]:
    """Small scans DAYS apart."""
    grid = maker.grid_of(shape_kji=(4, 6, 5))
    start = maker.acquisition(1)
    made = []
    for n in range(count):
        acquired = start.acquired + timedelta(days=DAYS[n])
        told = replace(start, acquired=acquired, series_uid=f"1.2.{n}", sha256=f"{n + 1}" * 64)
        made.append(Volume(np.full(grid.shape, 100.0, np.float32), grid, told))
    return tuple(made)


def trajectory(pairs: list[PairChange], count: int = 3, **changes: Any) -> Trajectory:
    """What these pairs amount to."""
    lesions = follow_lesions(pairs, DAYS[:count])
    made = Trajectory(
        scans=scans(count),
        given=tuple(range(1, count + 1)),
        is_ordered_by_time=True,
        days=DAYS[:count],
        verdict=verdict_over_time(pairs, count),
        summary="Some lesions followed.",
        pairs=tuple(pairs),
        closure=closure_of(pairs, count, POINTS_MM),
        lesions=lesions,
        net=net_since_first(pairs, count),
        rate=lesions[0].rate if lesions else None,
        repeatability=repeatability_of(lesions),
        provenance={
            "medsiam": "0.1.0",
            "device": "cpu",
            "seed": 0,
            "config": {},
            "weights_sha256": {},
            "seconds": {},
        },
        notes=("Made by hand.",),
    )
    return replace(made, **changes)


def comparisons(count: int = 3) -> dict[tuple[int, int], Comparison]:
    """A comparison of each pair, with images."""
    return {key: maker.comparison() for key in planned_pairs(count, all_pairs=True)}
