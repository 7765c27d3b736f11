"""Registration of two scans of one body part, in favour of neither, with its quality.

Starts from several poses (as the headers say, centres of mass, turned axes),
refines the best by robust Gauss-Newton on locally normalised images in the
halfway space, rigid first and affine where it earns it, and measures how far
the result can be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsiam.pairing.alignment import Level, align, level_of, likeness
from medsiam.pairing.motion import about, axis_rotations, mean_distance_mm, rotation_degrees, translation
from medsiam.pairing.sampling import Field
from medsiam.pairing.values import Quality, Registration
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

    levels_mm: tuple[float, ...] = (8.0, 4.0, 2.0)
    iterations: tuple[int, ...] = (20, 15, 10)
    affine_gain: float = 0.06
    convincing_likeness: float = 0.65
    least_likeness: float = 0.15
    doubtful_likeness: float = 0.35
    least_overlap: float = 0.35
    doubtful_overlap: float = 0.7
    most_volume_change: float = 0.06
    doubtful_consistency_mm: float = 1.0


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
        weight = self.weight.double().cpu().numpy()
        total = weight.sum()
        if total <= 0:
            return self.grid.centre_mm
        sums = [weight.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        index = [float((line * np.arange(line.size)).sum() / total) for line in sums]
        return self.grid.world([index])[0]


# Weight thinned to about this many points is where distances are averaged.
DISTANCE_POINTS = 2000
# The independent run starts this far off, to see whether it finds back.
NUDGE_MM, NUDGE_DEGREES = 2.0, 1.5


def register(prior: Scan, current: Scan, settings: RegistrationSettings) -> Registration:
    """Where the prior lies seen from the current scan, with its quality."""
    levels = [_levels(prior, current, spacing) for spacing in _spacings_mm(prior.grid, settings)]
    starts = _coarse_poses(prior, current, levels[0], settings)
    start = _best_pose(levels[1], starts, settings.iterations[1])
    rigid = _refine(levels[2:], start, settings.iterations[2:], affine=False)
    affine = _refine(levels[-1:], rigid, settings.iterations[-1:], affine=True)
    finest = levels[-1]
    rigid_likeness, affine_likeness = likeness(*finest, rigid)[0], likeness(*finest, affine)[0]
    earned = (affine_likeness - rigid_likeness) / max(1.0 - rigid_likeness, 1e-3)
    best, kind = (affine, "affine") if earned >= settings.affine_gain else (rigid, "rigid")
    drift_mm = _drift_mm(current, levels[1:-1] or levels, rigid, settings)
    return _judged(finest, best, kind, drift_mm, settings)


def _spacings_mm(grid: Grid, settings: RegistrationSettings) -> tuple[float, ...]:
    if not grid.is_flat:
        return settings.levels_mm
    # A radiograph's millimetres may be nominal: levels follow its extent instead.
    extent = float((np.array(grid.shape) * grid.spacing_mm)[1:].max())
    finest = extent / 192.0
    return tuple(finest * level / settings.levels_mm[-1] for level in settings.levels_mm)


def _levels(prior: Scan, current: Scan, spacing_mm: float) -> tuple[Level, Level]:
    return (
        level_of(prior.field, prior.weight, prior.grid, spacing_mm),
        level_of(current.field, current.weight, current.grid, spacing_mm),
    )


def _coarse_poses(
    prior: Scan, current: Scan, level: tuple[Level, Level], settings: RegistrationSettings
) -> list[Matrix]:
    """Poses worth a closer look: header pose, centres of mass and turned axes, raw and refined."""
    starts = _starts(prior.centre_of_mass_mm(), current.centre_of_mass_mm(), flat=prior.grid.is_flat)
    likely = starts[:2]
    refined = [_coarse(level, start, settings, signed=True) for start in likely]
    if max(_merit(level, pose) for pose in refined) >= settings.convincing_likeness:
        return likely + refined
    turned = sorted(starts[2:], key=lambda start: -_merit(level, start))[:2]
    refined += [_coarse(level, start, settings, signed=True) for start in turned]
    refined += [_coarse(level, start, settings, signed=False) for start in likely + turned]
    return likely + refined


def _coarse(
    level: tuple[Level, Level], start: Matrix, settings: RegistrationSettings, *, signed: bool
) -> Matrix:
    return align(*level, start, affine=False, signed=signed, iterations=settings.iterations[0])


def _best_pose(level: tuple[Level, Level], poses: list[Matrix], iterations: int) -> Matrix:
    """The pose of greatest likeness once the three best at this level are refined.

    The coarsest level cannot tell poses apart across two sequences, so the
    choice is made here.
    """
    ranked = sorted(poses, key=lambda pose: -_merit(level, pose))
    distinct: list[Matrix] = []
    for pose in ranked:
        if all(mean_distance_mm(pose, held, _points_mm(level[1])) > 2.0 for held in distinct):
            distinct.append(pose)
    refined = [_refine([level], pose, (iterations,), affine=False) for pose in distinct[:3]]
    return max(refined, key=lambda pose: _merit(level, pose))


def _starts(prior_mm: Matrix, current_mm: Matrix, *, flat: bool) -> list[Matrix]:
    to_centre = translation(prior_mm - current_mm)
    starts = [np.eye(4), to_centre]
    for turn in axis_rotations()[1:]:
        if not flat or turn[2, 2] > 0.5:
            starts.append(to_centre @ about(current_mm, turn))
    return starts


def _merit(level: tuple[Level, Level], motion: Matrix) -> float:
    """Likeness, reduced where little is seen by both: a sliver can agree by chance."""
    value, share = likeness(*level, motion)
    return value * min(1.0, share / 0.5)


def _refine(
    levels: list[tuple[Level, Level]], motion: Matrix, iterations: tuple[int, ...], *, affine: bool
) -> Matrix:
    """The motion after each level, which keeps a result only where likeness did not fall."""
    for level, count in zip(levels, iterations, strict=True):
        moved = align(*level, motion, affine=affine, signed=False, iterations=count)
        if _merit(level, moved) >= _merit(level, motion):
            motion = moved
    return motion


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
    held = (level.field[1] > 0.5).nonzero().cpu().numpy()
    if len(held) == 0:
        return level.grid.corners_mm()
    return level.grid.world(held[:: max(1, len(held) // DISTANCE_POINTS)])


def _judged(
    level: tuple[Level, Level], motion: Matrix, kind: str, drift_mm: float, settings: RegistrationSettings
) -> Registration:
    value, overlap = likeness(*level, motion)
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
