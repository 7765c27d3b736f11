"""Two frontal chest radiographs to one pair: lungs upon lungs, in favour of neither.

    lungs of both -> similarity of the outlines -> affine on locally normalised ribs, vessels
    and borders of the chest -> a smooth bend for breath and turn, each scan bent half the way
          -> RadiographPair: the halfway fields, both lungs, and how well they fit

The scans are taken in an order of their own, by their pixels, so that exchanging them
gives the same numbers with the opposite sign, to the last bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from torch.nn import functional

from medsiam.lungs import Lungs, LungSettings, find_lungs, lung_masks, similarity
from medsiam.pairing.alignment import Level, align, level_of, likeness, local_correlation
from medsiam.pairing.motion import about, half_of, mean_distance_mm, translation
from medsiam.pairing.pair_up import PairSettings, pair_up
from medsiam.pairing.values import Comparability, Pair, Quality, Registration
from medsiam.sampling import Field, isotropic, sample, smooth
from medsiam.volume import Grid, Matrix, Volume, transform

# Pixels along the longer side of both lungs together: while aligning, while bending, afterwards.
ALIGNING_PIXELS, BENDING_PIXELS, HALFWAY_PIXELS = (64, 112), 112, 320
# The chest about the lungs that is aligned and compared, as a multiple of their size.
CHEST_REACH = 1.14
# Shares of the lungs' size: the smoothness of the bend, the most it may move, a start off the mark.
BEND_WIDTH, MOST_BEND, NUDGE = 0.1, 0.06, 0.02
# Differences beyond so many robust deviations are change and not position (Tukey's biweight).
TUKEY_CUTOFF = 4.685
# Rounds in which the place of a pixel is looked up backwards through a bend whose slope is below 1.
BACKWARD_ROUNDS = 8
# Views that differ this way show heart and lungs magnified otherwise.
FRONTAL = ("AP", "PA")


@dataclass(frozen=True)
class RadiographPairSettings:
    """How two chest radiographs are brought together and when that is believed.

    bends              rounds in which the bend is refined
    least_likeness     mean squared local correlation below which it has failed
    doubtful_likeness  and below which it is doubtful
    least_overlap      share of the smaller chest seen by both, below which it has failed
    most_stretch       ratio of the two axes of the affine beyond which it has failed
    doubtful_drift     distance of a second run, as a share of the lungs' size
    """

    bends: int = field(default=20, metadata={"range": (0, 500)})
    least_likeness: float = field(default=0.1, metadata={"range": (0.0, 1.0)})
    doubtful_likeness: float = field(default=0.15, metadata={"range": (0.0, 1.0)})
    least_overlap: float = field(default=0.6, metadata={"range": (0.0, 1.0)})
    most_stretch: float = field(default=1.35, metadata={"range": (1.0, 3.0)})
    doubtful_drift: float = field(default=0.02, metadata={"range": (0.0, 1.0)})
    lungs: LungSettings = field(default_factory=LungSettings)


@dataclass(frozen=True, eq=False)
class RadiographPair:
    """Two radiographs in their halfway space.

    pair      its tissue is both lungs together, its fields are in units of each scan
    lungs     (2, K, J, I) bool on the halfway grid, [0] on the left of the image
    chest     (K, J, I) bool, the lungs and what lies about them, seen by both
    bend_mm   (2, J, I) along world x and y: the place x of the halfway space is
              prior_from_half(x - bend) in the prior and current_from_half(x + bend) in the current
    reasons   why no change may be told, () where it may
    """

    pair: Pair
    lungs: NDArray[np.bool_]
    chest: NDArray[np.bool_]
    bend_mm: Matrix
    reasons: tuple[str, ...]

    def exchanged(self) -> RadiographPair:
        """The same pair with prior and current in each other's place."""
        pair = self.pair
        registration = replace(
            pair.registration,
            prior_from_current=np.linalg.inv(pair.registration.prior_from_current),
            determinant=1.0 / pair.registration.determinant,
        )
        other = replace(
            pair,
            prior=pair.current,
            current=pair.prior,
            registration=registration,
            prior_half=pair.current_half,
            current_half=pair.prior_half,
            prior_from_half=pair.current_from_half,
            current_from_half=pair.prior_from_half,
        )
        return replace(self, pair=other, bend_mm=-self.bend_mm)


def is_in_order(prior: Volume, current: Volume) -> bool:
    """Whether the two scans stand in the order in which they are worked on, told by their pixels."""
    return _digest(prior) <= _digest(current)


def _digest(volume: Volume) -> bytes:
    state = hashlib.sha256(np.ascontiguousarray(volume.array).tobytes())
    state.update(np.ascontiguousarray(volume.grid.world_from_index).tobytes())
    return state.digest()


def pair_up_radiographs(
    prior: Volume,
    current: Volume,
    comparability: Comparability,
    settings: PairSettings,
    device: torch.device,
    *,
    radiograph: RadiographPairSettings | None = None,
) -> RadiographPair:
    """Both radiographs in their halfway space; other body parts by the outlines of nothing, with a reason.

    settings    how two radiographs are registered in which no lungs are found
    radiograph  how those are in which there are
    """
    chosen = radiograph or RadiographPairSettings()
    if not is_in_order(prior, current):
        return _paired(current, prior, comparability, settings, device, chosen).exchanged()
    return _paired(prior, current, comparability, settings, device, chosen)


def _paired(
    prior: Volume,
    current: Volume,
    comparability: Comparability,
    settings: PairSettings,
    device: torch.device,
    chosen: RadiographPairSettings,
) -> RadiographPair:
    lungs = find_lungs(prior, chosen.lungs), find_lungs(current, chosen.lungs)
    reasons = tuple(dict.fromkeys(reason for one in lungs for reason in one.reasons))
    if reasons:
        pair = pair_up(prior, current, comparability, settings, device)
        nothing = np.zeros(pair.grid.shape, dtype=bool)
        told = ("no lungs were found in " + _which(lungs) + ": " + "; ".join(reasons),)
        bend = np.zeros((2, *pair.grid.shape[1:]))
        return RadiographPair(pair, np.stack([nothing, nothing]), nothing, bend, told)
    motion, drift_mm = _affine((prior, current), lungs)
    half = half_of(motion)
    motions = half, np.linalg.inv(half)
    grid = _halfway_grid(lungs, motions, prior.grid)
    bend_mm, found, overlap = _bend((prior, current), lungs, motions, grid, chosen)
    registration = _judged(
        motion, found, overlap, drift_mm / _size_mm(lungs[1].outlines_mm), drift_mm, chosen
    )
    return _brought(prior, current, lungs, registration, comparability, motions, grid, bend_mm)


def _which(lungs: tuple[Lungs, Lungs]) -> str:
    return "both scans" if not (lungs[0].found or lungs[1].found) else "one of the scans"


def _size_mm(outlines_mm: Matrix) -> float:
    """The longer side of the box about both lungs."""
    flat = outlines_mm.reshape(-1, 3)
    return float((flat.max(axis=0) - flat.min(axis=0)).max())


def _affine(scans: tuple[Volume, Volume], lungs: tuple[Lungs, Lungs]) -> tuple[Matrix, float]:
    """prior_from_current, and how far a second run from off the mark ends from it, in mm."""
    start = similarity(lungs[0].outlines_mm, lungs[1].outlines_mm)
    size_mm = _size_mm(lungs[1].outlines_mm)
    scale = np.sqrt(abs(np.linalg.det(start[:2, :2])))
    # Both scans are taken at the pixels of the halfway space, however large their own millimetres.
    sides = [
        [_level(scan, own, size_mm * ratio / pixels) for pixels in ALIGNING_PIXELS]
        for scan, own, ratio in zip(scans, lungs, (scale, 1.0), strict=True)
    ]
    found = _aligned(sides, start)
    points = lungs[1].outlines_mm.reshape(-1, 3)
    turn = np.array([[1.0, -NUDGE, 0.0], [NUDGE, 1.0, 0.0], [0.0, 0.0, 1.0]])
    off = translation(np.array([NUDGE, -NUDGE, 0.0]) * size_mm * scale)
    again = _aligned(sides, off @ found @ about(points.mean(axis=0), turn))
    return found, mean_distance_mm(found, again, points) / scale


def _aligned(sides: list[list[Level]], start: Matrix) -> Matrix:
    motion = start
    for one, other in zip(*sides, strict=True):
        for affine in (False, True):
            moved = align(one, other, motion, affine=affine, signed=True, iterations=15)
            if likeness(one, other, moved)[0] > likeness(one, other, motion)[0]:
                motion = moved
    return motion


def _level(scan: Volume, lungs: Lungs, spacing_mm: float) -> Level:
    weight = _chest(lungs.outlines_mm, scan.grid)
    return level_of(
        torch.tensor(scan.array), torch.from_numpy(weight.astype(np.float32)), scan.grid, spacing_mm
    )


def _chest(outlines_mm: Matrix, grid: Grid) -> NDArray[np.bool_]:
    """(K, J, I): the hull of both lungs, made larger about its middle."""
    points = outlines_mm.reshape(-1, 3)
    hull = points[ConvexHull(points[:, :2]).vertices]
    middle = 0.5 * (hull.max(axis=0) + hull.min(axis=0))
    return np.asarray(lung_masks((middle + CHEST_REACH * (hull - middle))[None], grid)[0])


def _halfway_grid(lungs: tuple[Lungs, Lungs], motions: tuple[Matrix, Matrix], like: Grid) -> Grid:
    """The box about the chest as both scans show it, along the axes of the plane."""
    points = np.concatenate(
        [o.moved(np.linalg.inv(m)).reshape(-1, 3) for o, m in zip(lungs, motions, strict=True)]
    )
    axes = like.world_from_index[:3, :3] / like.spacing_mm
    along = (points @ axes)[:, 1:]
    low, high = along.min(axis=0), along.max(axis=0)
    margin = (CHEST_REACH - 1.0) * (high - low)
    spacing = float((high - low).max()) / HALFWAY_PIXELS
    shape = np.ceil((high - low + margin) / spacing).astype(int) + 1
    matrix = np.eye(4)
    matrix[:3, :3] = axes * (like.spacing_mm[0], spacing, spacing)
    corner = 0.5 * (low + high) - 0.5 * (shape - 1) * spacing
    matrix[:3, 3] = axes @ np.concatenate([[(points @ axes)[:, 0].mean()], corner])
    return Grid((1, int(shape[0]), int(shape[1])), matrix)


def _bend(
    scans: tuple[Volume, Volume],
    lungs: tuple[Lungs, Lungs],
    motions: tuple[Matrix, Matrix],
    grid: Grid,
    chosen: RadiographPairSettings,
) -> tuple[Matrix, float, float]:
    """The bend (2, J, I) in mm on the grid, the likeness with it, and the share of chest seen by both.

    From no bend and from the one that lays the outlines upon each other, the likelier.
    """
    size_mm = float(
        np.mean([_size_mm(o.moved(np.linalg.inv(m))) for o, m in zip(lungs, motions, strict=True)])
    )
    coarse = isotropic(grid, size_mm / BENDING_PIXELS)
    sides = []
    for scan, own, motion in zip(scans, lungs, motions, strict=True):
        scale = float(np.sqrt(abs(np.linalg.det(motion[:2, :2]))))
        sides.append((_level(scan, own, scale * size_mm / BENDING_PIXELS), motion))
    starts = torch.zeros((2, *coarse.shape[1:])), _outline_bend(lungs, motions, coarse, size_mm)
    tried = [_refined(sides, coarse, start, size_mm, chosen.bends) for start in starts]
    bend, value, share = max(tried, key=lambda one: one[1])
    fine = sample(bend[:, None], coarse, grid, np.eye(4), outside="border")[:, 0]
    return fine.numpy().astype(np.float64), value, share


def _outline_bend(
    lungs: tuple[Lungs, Lungs], motions: tuple[Matrix, Matrix], grid: Grid, size_mm: float
) -> Field:
    """(2, J, I) in mm: half the way from the prior's outline to the current's, fading away from both."""
    one, other = (o.moved(np.linalg.inv(m)).reshape(-1, 3) for o, m in zip(lungs, motions, strict=True))
    places = np.rint(grid.index(0.5 * (one + other))).astype(int)
    way = 0.5 * (other - one)[:, :2]
    total, mass = torch.zeros((2, *grid.shape[1:])), torch.zeros((1, *grid.shape[1:]))
    for (_, j, i), shift in zip(places, way, strict=True):
        if 0 <= j < grid.shape[1] and 0 <= i < grid.shape[2]:
            total[:, j, i] += torch.as_tensor(shift, dtype=torch.float32)
            mass[0, j, i] += 1.0
    width = BEND_WIDTH * size_mm / float(grid.spacing_mm[-1])
    sigma = (0.0, width, width)
    mass = smooth(mass, sigma)
    return smooth(total, sigma) / (mass + 0.05 * mass.max())


def _refined(
    sides: list[tuple[Level, Matrix]], grid: Grid, bend: Field, size_mm: float, rounds: int
) -> tuple[Field, float, float]:
    """The bend after symmetric steps of Thirion's demons (1998, Medical Image Analysis 2), its likeness."""
    spacing = float(grid.spacing_mm[-1])
    sigma = (0.0, BEND_WIDTH * size_mm / spacing, BEND_WIDTH * size_mm / spacing)
    most = MOST_BEND * size_mm
    best = bend, *_likeness(sides, grid, bend)
    for n in range(rounds):
        one, other = _both(sides, grid, bend)
        residual = other[0] - one[0]
        weight = one[1] * other[1]
        weight = weight * _tukey(residual, weight)
        slope = 0.5 * torch.stack(torch.gradient(one[0] + other[0]))
        steep = (slope * slope).sum(dim=0)
        step = -0.5 * residual * slope / (steep + 0.25 * residual * residual + 1e-3) * spacing
        smoothed = smooth(torch.stack([*(step * weight), weight]), sigma)
        # (j, i) of the gradient are y and x of the world.
        moved = smoothed[:2].flip(0) / (smoothed[2] + 0.02)
        bend = bend + 2.0 * moved
        bend = bend * (most / bend.norm(dim=0).clamp_min(most))
        if n % 5 == 4:
            now = bend, *_likeness(sides, grid, bend)
            best = max(best, now, key=lambda tried: tried[1])
    return best


def _both(sides: list[tuple[Level, Matrix]], grid: Grid, bend: Field) -> tuple[Field, Field]:
    """Values and weights (2, J, I) of prior and current at the places of the halfway grid."""
    (one, to_one), (other, to_other) = sides
    return (
        looked_up(one.field, one.grid, grid, to_one, -bend)[:, 0],
        looked_up(other.field, other.grid, grid, to_other, bend)[:, 0],
    )


def _likeness(sides: list[tuple[Level, Matrix]], grid: Grid, bend: Field) -> tuple[float, float]:
    one, other = _both(sides, grid, bend)
    weight = one[1] * other[1]
    smaller = min(float(one[1].sum()), float(other[1].sum()))
    if smaller < 1.0:
        return 0.0, 0.0
    agreed = local_correlation(one[:1], other[:1], weight[None])[0]
    # Only what agrees in sign is likeness: both are bright where much is absorbed.
    value = float((weight * agreed.clamp_min(0.0) ** 2).sum() / weight.sum().clamp_min(1.0))
    return value, float(weight.sum()) / smaller


def _tukey(residual: Field, weight: Field) -> Field:
    held = residual[weight > 0.25].abs()
    scale = 1.4826 * float(held.median()) if held.numel() else 1.0
    return (1.0 - (residual / (TUKEY_CUTOFF * max(scale, 1e-3))) ** 2).clamp_min(0.0) ** 2


def looked_up(values: Field, grid: Grid, target: Grid, world_from_target: Matrix, shift_mm: Field) -> Field:
    """Values (C, K, J, I) of a flat grid at the pixels of another, each shifted in the target's world.

    shift_mm  (2, J, I) along world x and y
    """
    rows, columns = target.shape[1:]
    index = np.stack(np.meshgrid([0], range(rows), range(columns), indexing="ij"), axis=-1).reshape(-1, 3)
    places = target.world(index)
    places[:, :2] += shift_mm.reshape(2, -1).T.double().numpy()
    found = grid.index(transform(world_from_target, places))
    sizes = np.array(grid.shape[1:], dtype=np.float64)
    unit = (found[:, 1:] * 2.0 / (sizes - 1.0) - 1.0)[:, ::-1].reshape(1, rows, columns, 2)
    points = torch.as_tensor(np.ascontiguousarray(unit), dtype=torch.float32)
    return functional.grid_sample(values[:, 0][None], points, align_corners=True)[0][:, None]


def _judged(
    motion: Matrix,
    found: float,
    overlap: float,
    drift: float,
    drift_mm: float,
    chosen: RadiographPairSettings,
) -> Registration:
    stretch = np.linalg.svd(motion[:2, :2], compute_uv=False)
    ratio = float(stretch[0] / stretch[1])
    failures = [
        text
        for failed, text in (
            (
                found < chosen.least_likeness,
                f"local correlation² of the chests {found:.2f} < {chosen.least_likeness}",
            ),
            (overlap < chosen.least_overlap, f"only {overlap:.0%} of the chest is seen in both"),
            (ratio > chosen.most_stretch, f"one chest would be stretched {ratio:.2f} times"),
        )
        if failed
    ]
    doubts = [
        text
        for doubtful, text in (
            (found < chosen.doubtful_likeness, f"local correlation² of the chests {found:.2f} is low"),
            (drift > chosen.doubtful_drift, f"a second run ended {drift:.1%} of the lungs' size away"),
        )
        if doubtful
    ]
    quality: Quality = "failed" if failures else "doubtful" if doubts else "good"
    return Registration(
        prior_from_current=motion,
        overlap=overlap,
        residual=1.0 - float(np.sqrt(max(found, 0.0))),
        determinant=float(np.linalg.det(motion[:3, :3])),
        inverse_consistency_mm=drift_mm,
        quality=quality,
        kind="affine, bent smoothly",
        reasons=tuple(failures or doubts),
    )


def _brought(
    prior: Volume,
    current: Volume,
    lungs: tuple[Lungs, Lungs],
    registration: Registration,
    comparability: Comparability,
    motions: tuple[Matrix, Matrix],
    grid: Grid,
    bend_mm: Matrix,
) -> RadiographPair:
    shift = torch.as_tensor(bend_mm, dtype=torch.float32)
    halves, masks, seen = [], [], []
    for scan, own, motion, way in zip((prior, current), lungs, motions, (-shift, shift), strict=True):
        inside = lung_masks(own.outlines_mm, scan.grid).astype(np.float32)
        chest = _chest(own.outlines_mm, scan.grid).astype(np.float32)
        layers = torch.cat(
            [torch.tensor(scan.array)[None], torch.from_numpy(inside), torch.from_numpy(chest)[None]]
        )
        there = looked_up(layers, scan.grid, grid, motion, way)
        halves.append(there[0].numpy())
        masks.append(there[1:3].numpy())
        seen.append(there[3].numpy())
    # Where the outlines differ, half of what either holds for lung.
    both = 0.5 * (masks[0] + masks[1]) > 0.5
    chest_half = np.minimum(*seen) > 0.5
    pair = Pair(
        prior=prior,
        current=current,
        comparability=comparability,
        registration=registration,
        region="field",
        grid=grid,
        prior_half=halves[0],
        current_half=halves[1],
        tissue=both.any(axis=0),
        tissue_kinds=None,
        prior_from_half=motions[0],
        current_from_half=motions[1],
        notes=("two lungs are seen; change is looked for inside them",),
    )
    views = [str(scan.acquisition.protocol.get("view_position", "")).upper() for scan in (prior, current)]
    reasons = []
    if views[0] != views[1] and all(view in FRONTAL for view in views):
        reasons.append(
            f"one scan is {views[0]} and the other {views[1]}: heart and lungs are projected differently"
        )
    if registration.quality != "good":
        reasons.append("the registration is not good: " + "; ".join(registration.reasons))
    return RadiographPair(pair, both, chest_half, bend_mm, tuple(reasons))


def halfway_places(radiograph: RadiographPair) -> Matrix:
    """(J, I, 2) LPS mm x and y of each pixel of the current scan in the halfway space."""
    pair = radiograph.pair
    grid = pair.current.grid
    index = np.stack(np.meshgrid([0], range(grid.shape[1]), range(grid.shape[2]), indexing="ij"), axis=-1)
    straight = transform(np.linalg.inv(pair.current_from_half), grid.world(index.reshape(-1, 3)))
    places = straight.copy()
    bend = torch.as_tensor(radiograph.bend_mm, dtype=torch.float32)
    for _ in range(BACKWARD_ROUNDS):
        places[:, :2] = straight[:, :2] - _read(bend, pair.grid, places, "border").T
    return np.asarray(places[:, :2].reshape(grid.shape[1], grid.shape[2], 2))


def on_current(radiograph: RadiographPair, fields: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fields (C, K, J, I) of the halfway grid on the current's own grid, 0 beyond."""
    places = halfway_places(radiograph)
    flat = np.column_stack([places.reshape(-1, 2), np.zeros(places[..., 0].size)])
    read = _read(torch.from_numpy(fields[:, 0]), radiograph.pair.grid, flat, "zeros")
    return np.asarray(read.reshape(len(fields), *radiograph.pair.current.grid.shape), dtype=np.float32)


def prior_on_current(radiograph: RadiographPair) -> NDArray[np.float32]:
    """The prior on the current's grid (K, J, I), bent, for display; NaN where it does not reach."""
    pair = radiograph.pair
    places = halfway_places(radiograph).reshape(-1, 2)
    flat = np.column_stack([places, np.zeros(len(places))])
    bend = _read(torch.as_tensor(radiograph.bend_mm, dtype=torch.float32), pair.grid, flat, "border")
    flat[:, :2] -= bend.T
    there = transform(pair.prior_from_half, flat)
    read = _read(torch.tensor(pair.prior.array), pair.prior.grid, there, "border")[0]
    index = pair.prior.grid.index(there)[:, 1:]
    inside = ((index >= -0.5) & (index <= np.array(pair.prior.grid.shape[1:]) - 0.5)).all(axis=1)
    return np.where(inside, read, np.nan).reshape(pair.current.grid.shape).astype(np.float32)


def _read(values: Field, grid: Grid, places_mm: Matrix, outside: str) -> Matrix:
    """Values (C, J, I) of a flat grid at places (n, 3) in its world: (C, n)."""
    sizes = np.array(grid.shape[1:], dtype=np.float64)
    unit = (grid.index(places_mm)[:, 1:] * 2.0 / (sizes - 1.0) - 1.0)[:, ::-1]
    points = torch.as_tensor(np.ascontiguousarray(unit), dtype=torch.float32)[None, None]
    return functional.grid_sample(values[None], points, align_corners=True, padding_mode=outside)[
        0, :, 0
    ].numpy()
