"""Registration of two scans of one body part, in favour of neither, with its quality.

Starts from several poses (as the headers say, centres of mass, turned axes),
refines the best by robust Gauss-Newton on locally normalised images in the
halfway space, rigid first and affine where it earns it, and measures how far
the result can be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from medsiam.pairing.alignment import Level, align, levels_of, likeness
from medsiam.pairing.motion import about, axis_rotations, mean_distance_mm, rotation_degrees, translation
from medsiam.pairing.side_by_side import side_by_side
from medsiam.pairing.values import Quality, Registration
from medsiam.sampling import Field
from medsiam.volume import Grid, Matrix


@dataclass(frozen=True)
class RegistrationSettings:
    """How registration is done and when it is believed.

    levels_mm             voxel sizes from coarse to fine
    iterations            most steps at each level
    affine_gain           an affine result is kept where it explains at least this
                          share of what the rigid one left unexplained
    convincing_likeness   mean squared local correlation at the coarsest level that ends
                          the search for other poses
    least_likeness        mean squared local correlation below which it has failed
    doubtful_likeness     and below which it is doubtful: six pairs of different people
                          reached .23 at most, one person on two scanners .66
    least_overlap         share of the smaller body seen by both, likewise
    doubtful_overlap
    most_volume_change    |determinant - 1| beyond which it has failed
    doubtful_consistency_mm  distance between two independent runs
    """

    levels_mm: tuple[float, ...] = field(default=(8.0, 4.0, 2.0), metadata={"range": (0.25, 64.0)})
    iterations: tuple[int, ...] = field(default=(20, 15, 10), metadata={"range": (1, 1000)})
    affine_gain: float = field(default=0.06, metadata={"range": (0.0, 1.0)})
    convincing_likeness: float = field(default=0.65, metadata={"range": (0.0, 1.0)})
    least_likeness: float = field(default=0.15, metadata={"range": (0.0, 1.0)})
    doubtful_likeness: float = field(default=0.35, metadata={"range": (0.0, 1.0)})
    least_overlap: float = field(default=0.35, metadata={"range": (0.0, 1.0)})
    doubtful_overlap: float = field(default=0.7, metadata={"range": (0.0, 1.0)})
    most_volume_change: float = field(default=0.06, metadata={"range": (0.0, 1.0)})
    doubtful_consistency_mm: float = field(default=1.0, metadata={"range": (0.0, 100.0)})

    def __post_init__(self) -> None:
        if len(self.levels_mm) < 2 or len(self.iterations) != len(self.levels_mm):
            raise ValueError(
                f"{len(self.levels_mm)} levels_mm and {len(self.iterations)} iterations; "
                "there must be as many of both, at least 2"
            )


@dataclass(frozen=True, eq=False)
class Scan:
    """One side of a registration: values, where they count, and where they lie.

    field, weight   (K, J, I) float32 tensors; weight 0..1
    """

    field: Field
    weight: Field
    grid: Grid

    def centre_of_mass_mm(self) -> Matrix:
        """LPS position (3,) in mm of the weight's centre, the box's middle where it is empty."""
        # Summed where they lie: what leaves the device are three lines.
        over_i, over_j = self.weight.sum(dim=2).double(), self.weight.sum(dim=1).double()
        lines = [line.cpu().numpy() for line in (over_i.sum(1), over_i.sum(0), over_j.sum(0))]
        total = lines[0].sum()
        if total <= 0:
            return self.grid.centre_mm
        index = [float((line * np.arange(line.size)).sum() / total) for line in lines]
        return self.grid.world([index])[0]


class Fit(NamedTuple):
    """A motion and how well it fits at one level: what `likeness` tells."""

    motion: Matrix
    likeness: float
    overlap: float

    @property
    def merit(self) -> float:
        """Likeness, reduced where little is seen by both: a sliver can agree by chance."""
        return self.likeness * min(1.0, self.overlap / 0.5)


# Weight thinned to about this many points is where distances are averaged.
DISTANCE_POINTS = 2000
# The independent run starts this far off, to see whether it finds back.
NUDGE_MM, NUDGE_DEGREES = 2.0, 1.5


def register(prior: Scan, current: Scan, settings: RegistrationSettings) -> Registration:
    """Where the prior lies seen from the current scan, with its quality."""
    priors, currents = _levels(prior, current, settings)
    return _registered(prior, current, priors, currents, settings)


def register_both_ways(
    prior: Scan, current: Scan, settings: RegistrationSettings
) -> tuple[Registration, Registration]:
    """What `register` gives, and what it gives with prior and current exchanged.

    Neither knows of the other; they share only what is made of each scan alone.
    """
    priors, currents = _levels(prior, current, settings)
    with side_by_side(2) as pool:
        there = pool.submit(_registered, prior, current, priors, currents, settings)
        back = pool.submit(_registered, current, prior, currents, priors, settings)
        return there.result(), back.result()


def _levels(prior: Scan, current: Scan, settings: RegistrationSettings) -> tuple[list[Level], list[Level]]:
    """Both scans at each resolution, coarse to fine."""
    spacings_mm = _spacings_mm(prior.grid, settings)
    with side_by_side(2) as pool:
        priors, currents = pool.map(
            lambda scan: levels_of(scan.field, scan.weight, scan.grid, spacings_mm), (prior, current)
        )
    return priors, currents


def _registered(
    prior: Scan, current: Scan, priors: list[Level], currents: list[Level], settings: RegistrationSettings
) -> Registration:
    levels = list(zip(priors, currents, strict=True))
    starts = _coarse_poses(prior, current, levels[0], settings)
    rigid = _best_pose(levels[1], starts, settings.iterations[1])
    for level, iterations in zip(levels[2:], settings.iterations[2:], strict=True):
        rigid = _refined(level, _fit(level, rigid.motion), iterations, affine=False)
    affine = _refined(levels[-1], rigid, settings.iterations[-1], affine=True)
    earned = (affine.likeness - rigid.likeness) / max(1.0 - rigid.likeness, 1e-3)
    best, kind = (affine, "affine") if earned >= settings.affine_gain else (rigid, "rigid")
    drift_mm = _drift_mm(current, levels[1:-1] or levels, rigid.motion, settings)
    return _judged(best, kind, drift_mm, settings)


def _spacings_mm(grid: Grid, settings: RegistrationSettings) -> tuple[float, ...]:
    if not grid.is_flat:
        return settings.levels_mm
    # A radiograph's millimetres may be nominal: levels follow its extent instead.
    extent = float((np.array(grid.shape) * grid.spacing_mm)[1:].max())
    finest = extent / 192.0
    return tuple(finest * level / settings.levels_mm[-1] for level in settings.levels_mm)


def _coarse_poses(
    prior: Scan, current: Scan, level: tuple[Level, Level], settings: RegistrationSettings
) -> list[Matrix]:
    """Poses worth a closer look: header pose, centres of mass and turned axes, raw and refined."""
    starts = _starts(prior.centre_of_mass_mm(), current.centre_of_mass_mm(), flat=prior.grid.is_flat)
    likely = starts[:2]
    refined = [_coarse(level, start, settings, signed=True) for start in likely]
    if max(_fit(level, pose).merit for pose in refined) >= settings.convincing_likeness:
        return likely + refined
    turned = sorted(starts[2:], key=lambda start: -_fit(level, start).merit)[:2]
    refined += [_coarse(level, start, settings, signed=True) for start in turned]
    refined += [_coarse(level, start, settings, signed=False) for start in likely + turned]
    return likely + refined


def _coarse(
    level: tuple[Level, Level], start: Matrix, settings: RegistrationSettings, *, signed: bool
) -> Matrix:
    return align(*level, start, affine=False, signed=signed, iterations=settings.iterations[0])


def _best_pose(level: tuple[Level, Level], poses: list[Matrix], iterations: int) -> Fit:
    """The pose of greatest likeness once the three best at this level are refined.

    The coarsest level cannot tell poses apart across two sequences, so the
    choice is made here.
    """
    ranked = sorted((_fit(level, pose) for pose in poses), key=lambda fit: -fit.merit)
    points_mm = _points_mm(level[1])
    distinct: list[Fit] = []
    for fit in ranked:
        if all(mean_distance_mm(fit.motion, held.motion, points_mm) > 2.0 for held in distinct):
            distinct.append(fit)
    refined = [_refined(level, fit, iterations, affine=False) for fit in distinct[:3]]
    return max(refined, key=lambda fit: fit.merit)


def _starts(prior_mm: Matrix, current_mm: Matrix, *, flat: bool) -> list[Matrix]:
    to_centre = translation(prior_mm - current_mm)
    starts = [np.eye(4), to_centre]
    for turn in axis_rotations()[1:]:
        if not flat or turn[2, 2] > 0.5:
            starts.append(to_centre @ about(current_mm, turn))
    return starts


def _fit(level: tuple[Level, Level], motion: Matrix) -> Fit:
    return Fit(motion, *likeness(*level, motion))


def _refined(level: tuple[Level, Level], start: Fit, iterations: int, *, affine: bool) -> Fit:
    """The fit after refinement at its level, or the start itself where likeness fell."""
    moved = align(*level, start.motion, affine=affine, signed=False, iterations=iterations)
    found = _fit(level, moved)
    return found if found.merit >= start.merit else start


def _drift_mm(
    current: Scan, levels: list[tuple[Level, Level]], found: Matrix, settings: RegistrationSettings
) -> float:
    """Mean distance in mm between the result and an independent run from B to A, started off the mark."""
    nudge = about(current.centre_of_mass_mm(), _turn(NUDGE_DEGREES, flat=current.grid.is_flat))
    start = np.linalg.inv(found @ translation(np.array([NUDGE_MM, -NUDGE_MM, 0.0])) @ nudge)
    prior_level, current_level = levels[-1]
    back = align(
        current_level, prior_level, start, affine=False, signed=False, iterations=settings.iterations[0]
    )
    there = align(prior_level, current_level, found, affine=False, signed=False, iterations=10)
    return mean_distance_mm(there, np.linalg.inv(back), _points_mm(current_level))


def _turn(degrees: float, *, flat: bool) -> Matrix:
    angle = np.radians(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    in_plane = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    if flat:
        return in_plane
    return in_plane @ np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])


def _points_mm(level: Level) -> Matrix:
    held = (level.field[1] > 0.5).nonzero()
    if len(held) == 0:
        return level.grid.corners_mm()
    return level.grid.world(held[:: max(1, len(held) // DISTANCE_POINTS)].cpu().numpy())


def _judged(fit: Fit, kind: str, drift_mm: float, settings: RegistrationSettings) -> Registration:
    motion, value, overlap = fit
    determinant = float(np.linalg.det(motion[:3, :3]))
    failures = _reasons(
        (value < settings.least_likeness, f"local correlation² {value:.2f} < {settings.least_likeness}"),
        (overlap < settings.least_overlap, f"overlap {overlap:.2f} < {settings.least_overlap}"),
        (
            abs(determinant - 1.0) > settings.most_volume_change,
            f"volume ratio {determinant:.3f} is not that of one body",
        ),
    )
    doubts = _reasons(
        (value < settings.doubtful_likeness, f"local correlation² {value:.2f} is low"),
        (overlap < settings.doubtful_overlap, f"only {overlap:.0%} of the body is seen in both"),
        (
            drift_mm > settings.doubtful_consistency_mm,
            f"a second run from the current scan to the prior ended {drift_mm:.1f} mm away",
        ),
    )
    quality: Quality = "failed" if failures else "doubtful" if doubts else "good"
    return Registration(
        prior_from_current=motion,
        overlap=overlap,
        residual=1.0 - float(np.sqrt(max(value, 0.0))),
        determinant=determinant,
        inverse_consistency_mm=drift_mm,
        quality=quality,
        kind=kind,
        reasons=failures or doubts,
    )


def _reasons(*checks: tuple[bool, str]) -> tuple[str, ...]:
    return tuple(text for failed, text in checks if failed)


def pose_sentence(registration: Registration) -> str:
    """How the head or body lay differently, in words for a report."""
    motion = registration.prior_from_current
    degrees = rotation_degrees(motion)
    return f"{registration.kind} registration, {degrees:.1f} degrees between the two positions"
