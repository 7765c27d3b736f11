"""Which findings of several pairs are one lesion, and how large it is at each scan.

Findings are carried into one frame by the registrations that are good. Two are
one lesion where a quarter of the smaller one's voxels lie on the other, or
their centres are within CENTRE_MM. A pair gives each lesion one finding at most, the
best overlap first, so two lesions that flow together stay two: the larger
overlap goes on, the other ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import KDTree

from medsiam.change.growth import doubling_time, growth_rate
from medsiam.change.trajectory import (
    FollowedLesion,
    FoundPlace,
    Measurement,
    PairChange,
    PairKey,
    ScanVolume,
    Sighting,
)
from medsiam.volume import Matrix, transform

# Registration, and a centre of change that wanders as a lesion grows to one side, stay within this.
CENTRE_MM = 4.0
# A growing lesion's change is a rim around what was there before: a quarter of it touches that.
OVERLAP_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class _Seen:
    """A finding in the common frame."""

    pair: PairKey
    place: FoundPlace
    frame: int
    points_mm: Matrix
    centre_mm: Matrix


@dataclass
class _Track:
    members: list[_Seen] = field(default_factory=list)


def follow_lesions(pairs: Sequence[PairChange], days: Sequence[float | None]) -> tuple[FollowedLesion, ...]:
    """The lesions of all pairs that have a verdict, the earliest found first.

    pairs  in the order of planned_pairs
    days   of each scan since the first, None where not told
    """
    frames = frames_of(pairs, len(days))
    tracks: list[_Track] = []
    for pair in pairs:
        seen = [_seen(pair, place, frames) for place in pair.places]
        joined = _joined(tracks, seen)
        for n, one in enumerate(seen):
            track = tracks[joined[n]] if n in joined else _Track()
            if n not in joined:
                tracks.append(track)
            track.members.append(one)
    return tuple(_lesion(number, track, days) for number, track in enumerate(tracks, start=1))


def frames_of(pairs: Sequence[PairChange], count: int) -> dict[int, tuple[int, Matrix]]:
    """For each scan, the first scan that good registrations link it to, and frame_from_scan."""
    links: list[tuple[int, int, Matrix]] = []
    for pair in pairs:
        if pair.registration.quality == "good":
            matrix = pair.registration.prior_from_current
            links += [(pair.prior, pair.current, matrix), (pair.current, pair.prior, np.linalg.inv(matrix))]
    frames: dict[int, tuple[int, Matrix]] = {}
    for root in range(1, count + 1):
        if root in frames:
            continue
        frames[root] = (root, np.eye(4))
        queue = [root]
        for known in queue:
            for near, far, near_from_far in links:
                if near == known and far not in frames:
                    frames[far] = (root, frames[near][1] @ near_from_far)
                    queue.append(far)
    return frames


def _seen(pair: PairChange, place: FoundPlace, frames: dict[int, tuple[int, Matrix]]) -> _Seen:
    frame, frame_from_scan = frames[pair.current]
    centre = transform(frame_from_scan, [place.finding.centre_lps_mm])[0]
    return _Seen(pair.key, place, frame, transform(frame_from_scan, place.points_mm), centre)


def _joined(tracks: Sequence[_Track], seen: Sequence[_Seen]) -> dict[int, int]:
    """Place in `seen` to place in `tracks`, one to one, the surest first."""
    candidates = []
    for n, one in enumerate(seen):
        for t, track in enumerate(tracks):
            fits = [fit for member in track.members if (fit := _fit(member, one)) is not None]
            if fits:
                share, distance_mm = max(fits, key=lambda fit: (fit[0], -fit[1]))
                candidates.append((-share, distance_mm, t, n))
    joined: dict[int, int] = {}
    for _, _, t, n in sorted(candidates):
        if n not in joined and t not in joined.values():
            joined[n] = t
    return joined


def _fit(a: _Seen, b: _Seen) -> tuple[float, float] | None:
    """Overlap 0..1 and distance of centres in mm where both are one lesion, else None."""
    if a.frame != b.frame:
        return None
    distance_mm = float(np.linalg.norm(a.centre_mm - b.centre_mm))
    share = overlap_share(a.points_mm, b.points_mm, 0.5 * max(a.place.voxel_mm, b.place.voxel_mm))
    return (share, distance_mm) if share >= OVERLAP_SHARE or distance_mm <= CENTRE_MM else None


def overlap_share(a_mm: Matrix, b_mm: Matrix, reach_mm: float) -> float:
    """Share of the smaller set of points (n, 3) that lies within reach of the other."""
    smaller, larger = (a_mm, b_mm) if len(a_mm) <= len(b_mm) else (b_mm, a_mm)
    nearest, _ = KDTree(larger).query(smaller, distance_upper_bound=reach_mm)
    return float(np.isfinite(nearest).mean())


def _lesion(number: int, track: _Track, days: Sequence[float | None]) -> FollowedLesion:
    founding = track.members[0]
    volumes = _volumes(track)
    dated = [(days[v.scan - 1], v) for v in volumes]
    told = [(day, v.volume_ml, v.is_absent) for day, v in dated if day is not None]
    # What is not there cannot double: a new lesion's growth counts from when it is seen.
    there = [(day, ml) for day, ml, is_absent in told if not is_absent]
    x, y, z = (float(mm) for mm in founding.centre_mm)
    return FollowedLesion(
        number=number,
        tracking_uid=founding.place.finding.tracking_uid,
        frame=founding.frame,
        centre_lps_mm=(x, y, z),
        sightings=tuple(
            Sighting(m.pair, m.place.finding.label, m.place.finding.kind, m.place.finding.delta_ml or 0.0)
            for m in track.members
        ),
        volumes=volumes,
        rate=growth_rate([day for day, _, _ in told], [ml for _, ml, _ in told]),
        doubling=doubling_time([day for day, _ in there], [ml for _, ml in there]),
    )


def _volumes(track: _Track) -> tuple[ScanVolume, ...]:
    found: dict[int, list[Measurement]] = {}
    for member in track.members:
        finding = member.place.finding
        sides = (
            (member.pair[0], finding.volume_prior_ml, finding.kind == "new"),
            (member.pair[1], finding.volume_current_ml, finding.kind == "resolved"),
        )
        for scan, volume_ml, is_absent in sides:
            found.setdefault(scan, []).append(Measurement(member.pair, volume_ml or 0.0, is_absent))
    return tuple(ScanVolume(scan, tuple(found[scan])) for scan in sorted(found))
