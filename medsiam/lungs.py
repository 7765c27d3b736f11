"""Where the lungs lie in a frontal chest radiograph, or that there are none.

    values -> slopes in units of the local contrast -> many outlines of two lungs, drawn from
    what chests look like -> the outline whose border is dark inside and bright outside
          -> Lungs: both outlines, and whether they can be believed

An outline is a hand-drawn pair of lungs with some ways to differ (size, place, breath, heart,
shoulders), after the active shapes of Cootes et al. 1995, Computer Vision and Image
Understanding 61; it is searched for with the cross-entropy method (Rubinstein 1999), on
numbers that are fixed, so that the same pixels give the same lungs. A shape that is whole
bridges what an opaque lung or a tube hides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medsiam.sampling import Field, downsampled, smooth
from medsiam.volume import Grid, Matrix, Volume, transform

# Pixels along the longer side of the image in which lungs are searched for.
SEARCH_PIXELS = 128
# Gaussian widths in such pixels: from a sharp border to one that only parts lung from belly,
# and what "local contrast" means.
EDGE_WIDTHS, CONTRAST_WIDTH = (1.2, 3.0, 6.0, 10.0), 9.0
# A slope of this many local deviations a pixel is a plain border; steeper ones count no more.
PLAIN_SLOPE = 0.15
# Rows and columns whose values spread less than this share of the whole are beyond the shutters.
EXPOSED_SPREAD = 0.12

# One lung, across from the midline in half widths of the rib cage and down from the apex (0) to
# the angle beside the diaphragm (1): apex and outer border, base, inner border. Right, then left.
OUTER = ((0.36, 0.0), (0.56, 0.055), (0.73, 0.17), (0.86, 0.35), (0.945, 0.56), (0.985, 0.78), (1.0, 0.96))
RIGHT_BASE = ((0.87, 0.87), (0.65, 0.80), (0.42, 0.80), (0.26, 0.84))
LEFT_BASE = ((0.90, 0.89), (0.76, 0.835), (0.62, 0.83), (0.50, 0.84))
RIGHT_INNER = ((0.24, 0.70), (0.20, 0.53), (0.18, 0.36), (0.17, 0.19), (0.22, 0.06))
LEFT_INNER = ((0.44, 0.70), (0.30, 0.53), (0.19, 0.36), (0.18, 0.19), (0.22, 0.06))
# Places on the smooth outline from one drawn point to the next.
FINER = 2
# How much each part of the border tells at each of the widths. A rib looks like a base from
# nearby; the inner border has another lung too near for the softest view.
OUTER_TELLS, BASE_TELLS, INNER_TELLS = (1.0, 1.0, 1.0, 0.0), (0.6, 0.8, 1.2, 1.4), (1.0, 1.0, 0.6, 0.0)
# Heights of the lungs to start from, in deviations: lungs end at any of several ribs else.
STARTS = (-1.0, 0.3, 1.6)

# The typical chest, as shares of the exposed field: middle across and apex down, half width and
# height; and by how much each differs. Then turns in radians.
TYPICAL = (0.5, 0.12, 0.37, 0.65)
DIFFERS = (0.06, 0.06, 0.05, 0.12)
TURNS = 0.05
# Which of them is the height.
HEIGHT = 3
# Half the rib cage's width over the lungs' height, the mean of 84 radiographs of 24 patients.
CHEST_BROAD = 0.675
# How far the field of a chest reaches, half of the lungs' width or height being 1.
CHEST_FIELD = 1.35
# Size of the ways to differ, in half widths of the rib cage or heights of the lungs.
BASE_SHIFT, HEART_SHIFT, VESSEL_SHIFT = 0.10, 0.09, 0.05
MIDLINE_SHIFT, TAPER_SHIFT, APEX_SHIFT, FLARE_SHIFT = 0.08, 0.06, 0.03, 0.05


@dataclass(frozen=True)
class LungSettings:
    """How the search is done and when its result is believed.

    outlines        drawn in each round
    rounds          of the search, each about the best of the last
    best            outlines that each round keeps
    caution         what a squared deviation from the typical shape costs, in border found
    least_border    mean support of the border, below which there are no lungs
    least_side      likewise of each of the two lungs
    least_darkness  of the lungs against what lies between and below them, deviations
    """

    outlines: int = field(default=512, metadata={"range": (64, 4096)})
    rounds: int = field(default=14, metadata={"range": (1, 100)})
    best: int = field(default=40, metadata={"range": (4, 400)})
    caution: float = field(default=0.008, metadata={"range": (0.0, 1.0)})
    least_border: float = field(default=0.42, metadata={"range": (0.0, 1.0)})
    least_side: float = field(default=0.15, metadata={"range": (0.0, 1.0)})
    least_darkness: float = field(default=0.3, metadata={"range": (0.0, 5.0)})


@dataclass(frozen=True, eq=False)
class Lungs:
    """The two lung fields of a radiograph.

    outlines_mm  (2, P, 3) LPS mm, closed, [0] on the left of the image; the same place of
                 the border has the same number in every radiograph
    shape        deviations from the typical chest, one a way to differ
    border       mean support of the border, -1..1
    darkness     of the lungs against what lies between and below them, deviations
    reasons      why they cannot be believed, () where they can
    """

    outlines_mm: Matrix
    shape: NDArray[np.float64]
    border: float
    darkness: float
    reasons: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether there are lungs that can be believed."""
        return not self.reasons

    def moved(self, target_from_world: Matrix) -> Matrix:
        """The outlines (2, P, 3) after a motion of the world (4 x 4, LPS mm)."""
        return transform(target_from_world, self.outlines_mm.reshape(-1, 3)).reshape(self.outlines_mm.shape)


@dataclass(frozen=True, eq=False)
class _Sight:
    """One radiograph as the search sees it.

    slopes    (2 widths * 2, J, I) slopes along i and j, in local deviations a pixel
    values    (J, I) deviations from the mean of the exposed field
    exposed   (i, j, width, height) of the exposed field in pixels
    """

    slopes: Field
    values: Field
    exposed: tuple[float, float, float, float]


def find_lungs(volume: Volume, settings: LungSettings | None = None) -> Lungs:
    """The lung fields of a radiograph that is bright where much is absorbed."""
    settings = settings or LungSettings()
    grid = volume.grid
    spacing_mm = float((np.array(grid.shape) * grid.spacing_mm)[1:].max()) / SEARCH_PIXELS
    small, frame = downsampled(torch.tensor(volume.array), grid, spacing_mm)
    sight = _sight(small[0])
    drawn = _searched(sight, settings)
    points = _outlines(drawn[None], sight.exposed)
    sides = _support(sight, points)[0]
    darkness = _darkness(sight, points[0])
    flat = points[0].reshape(-1, 2)
    index = np.column_stack([np.zeros(len(flat)), flat[:, 1], flat[:, 0]])
    world = frame.world(index).reshape(2, -1, 3)
    return Lungs(world, drawn, float(sides.mean()), darkness, _doubts(sides, darkness, settings))


def chest_field(lungs: Lungs, size: int) -> Grid:
    """A grid of size x size pixels over the chest: turned, placed and as large as the lungs are.

    The same place of two chests has the same pixel in both, as far as a turn, a shift and a size can do.
    """
    typical = _ways()[0] - (0.0, 0.5)
    flat = np.concatenate([typical * (CHEST_BROAD, 1.0), np.zeros((*typical.shape[:2], 1))], axis=2)
    reach = CHEST_FIELD * np.array([1.0, 0.5, CHEST_BROAD])
    steps = np.array([1.0, 2.0 * reach[1] / size, 2.0 * reach[2] / size])
    # Axes k, j, i of the field to x, y, z of the typical chest.
    field = np.eye(4)
    field[:3, :3] = np.fliplr(np.diag(steps[::-1]))
    field[:3, 3] = (steps[2] / 2.0 - reach[2], steps[1] / 2.0 - reach[1], 0.0)
    return Grid((1, size, size), similarity(lungs.outlines_mm, flat) @ field)


def similarity(target: Matrix, source: Matrix) -> Matrix:
    """The turn, shift and size (4 x 4) that bring outlines upon others; its inverse for exchanged ones.

    After Kabsch 1976, Acta Crystallographica A32, with the ratio of spreads for the size.
    """
    to, of = (outlines.reshape(-1, 3) for outlines in (target, source))
    middle_to, middle_of = to.mean(axis=0), of.mean(axis=0)
    far_to, far_of = to - middle_to, of - middle_of
    angle = np.arctan2(
        (far_of[:, 0] * far_to[:, 1] - far_of[:, 1] * far_to[:, 0]).sum(),
        (far_of[:, :2] * far_to[:, :2]).sum(),
    )
    size = np.linalg.norm(far_to) / np.linalg.norm(far_of)
    cosine, sine = size * np.cos(angle), size * np.sin(angle)
    motion = np.eye(4)
    motion[:2, :2] = (cosine, -sine), (sine, cosine)
    motion[:3, 3] = middle_to - motion[:3, :3] @ middle_of
    return motion


def lung_masks(outlines_mm: Matrix, grid: Grid) -> NDArray[np.bool_]:
    """(2, K, J, I) on a flat grid: inside each outline (2, P, 3) given in the grid's world."""
    index = grid.index(outlines_mm.reshape(-1, 3)).reshape(outlines_mm.shape)
    return np.stack([_filled(one[:, 1:], grid.shape[1:]) for one in index])[:, None]


def _filled(outline: Matrix, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(J, I) inside a closed outline (P, 2) of (j, i): an odd number of crossings to the left."""
    inside = np.zeros(shape, dtype=bool)
    ahead = np.roll(outline, -1, axis=0)
    columns = np.arange(shape[1])
    for j in range(shape[0]):
        meets = (outline[:, 0] > j) != (ahead[:, 0] > j)
        one, other = outline[meets], ahead[meets]
        at = one[:, 1] + (j - one[:, 0]) / (other[:, 0] - one[:, 0]) * (other[:, 1] - one[:, 1])
        inside[j] = (at[:, None] < columns).sum(axis=0) % 2 == 1
    return inside


def _sight(image: Field) -> _Sight:
    exposed = _exposed(image)
    values = image[None]
    width = (CONTRAST_WIDTH,) * 3
    mean = smooth(values, width)
    deviation = (smooth(values * values, width) - mean * mean).clamp_min(0.0).sqrt()
    deviation = deviation + 0.3 * deviation.median() + 1e-6
    slopes = []
    for sigma in EDGE_WIDTHS:
        down, along = torch.gradient(smooth(values, (sigma,) * 3)[0])
        # A soft border has gentle slopes: its width makes up for it.
        slopes += [along * (sigma / EDGE_WIDTHS[0]) ** 0.5, down * (sigma / EDGE_WIDTHS[0]) ** 0.5]
    left, top, wide, high = (round(x) for x in exposed)
    inner = image[top : top + high, left : left + wide]
    normal = (image - inner.mean()) / (inner.std() + 1e-6)
    return _Sight(torch.stack(slopes) / deviation, normal, exposed)


def _exposed(image: Field) -> tuple[float, float, float, float]:
    """(i, j, width, height) of the rows and columns that show more than shutters."""
    found = []
    for axis in (0, 1):
        spread = image.std(dim=axis)
        shown = (spread > EXPOSED_SPREAD * spread.max()).nonzero()
        first, last = (int(shown[0]), int(shown[-1])) if len(shown) else (0, len(spread) - 1)
        found.append((first, max(last - first + 1, 8)))
    return float(found[0][0]), float(found[1][0]), float(found[0][1]), float(found[1][1])


def _searched(sight: _Sight, settings: LungSettings) -> NDArray[np.float64]:
    """The deviations of the outline that the image supports best, of several searches."""
    found = [_searched_from(start, sight, settings) for start in STARTS]
    return max(found, key=lambda one: one[0])[1]


def _searched_from(height: float, sight: _Sight, settings: LungSettings) -> tuple[float, NDArray[np.float64]]:
    """The merit and the deviations found by the cross-entropy method from a height of the lungs."""
    ways = len(_ways()[1]) + len(TYPICAL) + 1
    numbers = _numbers(ways, settings.outlines)
    middle, spread = np.zeros(ways), np.ones(ways)
    middle[HEIGHT], spread[HEIGHT] = height, 0.5
    best, best_merit = middle, -np.inf
    for _ in range(settings.rounds):
        drawn = middle + spread * numbers
        drawn[0] = best
        merit = _merit(sight, drawn, settings.caution)
        order = np.argsort(-merit, kind="stable")[: settings.best]
        best, best_merit = drawn[order[0]], float(merit[order[0]])
        # Some of the old is kept, so that the search does not settle on its first luck.
        middle = 0.4 * middle + 0.6 * drawn[order].mean(axis=0)
        spread = 0.5 * spread + 0.5 * drawn[order].std(axis=0)
    return best_merit, best


@lru_cache(maxsize=4)
def _numbers(ways: int, count: int) -> NDArray[np.float64]:
    """(count, ways) of mean 0 and deviation 1, evenly spread, always the same."""
    # Takes a third of a second to import, which only radiographs are worth.
    from scipy import stats

    even = stats.qmc.Halton(ways, scramble=False).random(count + 1)[1:]
    return np.asarray(stats.norm.ppf(np.clip(even, 1e-4, 1.0 - 1e-4)))


def _merit(sight: _Sight, drawn: NDArray[np.float64], caution: float) -> NDArray[np.float64]:
    sides = _support(sight, _outlines(drawn, sight.exposed))
    return sides.mean(axis=1) - caution * (drawn**2).sum(axis=1)


def _support(sight: _Sight, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) per lung of outlines (n, 2, P, 2): how far the border is dark inside and bright outside."""
    along = np.roll(points, -1, axis=2) - np.roll(points, 1, axis=2)
    # Seen from the image's left, the first lung runs counter-clockwise: the other way round.
    turn = np.array([-1.0, 1.0])[None, :, None]
    normal = np.stack([along[..., 1] * turn, -along[..., 0] * turn], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    rows, columns = sight.values.shape
    places = torch.as_tensor(points, dtype=torch.float32) / torch.tensor([columns - 1.0, rows - 1.0]) * 2.0
    flat = (places - 1.0).reshape(1, points.shape[0], -1, 2)
    slopes = functional.grid_sample(sight.slopes[None], flat, align_corners=True, padding_mode="zeros")[0]
    shaped = slopes.reshape(len(EDGE_WIDTHS), 2, *points.shape[:3]).permute(0, 2, 3, 4, 1).numpy()
    outwards = (shaped * normal).sum(axis=-1)
    tells = _ways()[2]
    return np.asarray(np.einsum("wnsp,wp->ns", np.tanh(outwards / PLAIN_SLOPE), tells) / tells.sum())


def _outlines(drawn: NDArray[np.float64], exposed: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """(n, 2, P, 2) points (i, j) in pixels, of deviations (n, ways)."""
    left, top, wide, high = exposed
    typical, ways, _ = _ways()
    place, turn, bends = drawn[:, :4], drawn[:, 4] * TURNS, drawn[:, 5:]
    middle, apex, half, tall = (TYPICAL[n] + DIFFERS[n] * place[:, n, None, None] for n in range(4))
    shape = typical + np.tensordot(bends, ways, axes=1)
    # No draw may turn a chest inside out.
    i = half.clip(0.15) * wide * shape[..., 0]
    j = tall.clip(0.2) * high * (shape[..., 1] - 0.5)
    cosine, sine = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    return np.stack(
        [
            left + middle * wide + cosine * i - sine * j,
            top + (apex + 0.5 * tall) * high + sine * i + cosine * j,
        ],
        axis=-1,
    )


@lru_cache(maxsize=1)
def _ways() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The typical outlines (2, P, 2), ways to differ (n, 2, P, 2), what each place tells (widths, P)."""
    right = np.array(OUTER + RIGHT_BASE + RIGHT_INNER) * (-1.0, 1.0)
    left = np.array(OUTER + LEFT_BASE + LEFT_INNER)
    finer = _finer(len(left))
    parts = len(OUTER), len(LEFT_BASE), len(LEFT_INNER)
    tells = np.repeat(np.array([OUTER_TELLS, BASE_TELLS, INNER_TELLS]).T, parts, axis=1) @ finer.T
    typical = np.einsum("pq,sqx->spx", finer, np.stack([right, left]))
    across, down = np.abs(typical[..., 0]), typical[..., 1]
    side = np.broadcast_to(np.array([-1.0, 1.0])[:, None], down.shape)
    low = np.clip((down - 0.3) / 0.5, 0.0, 1.0) ** 2
    inner = np.clip((0.75 - across) / 0.4, 0.0, 1.0)
    heart = inner * np.exp(-(((down - 0.72) / 0.2) ** 2))
    high = np.clip((0.5 - down) / 0.4, 0.0, 1.0)
    none = np.zeros_like(down)
    bends = [
        (none, BASE_SHIFT * low * (side < 0)),
        (none, BASE_SHIFT * low * (side > 0)),
        (-HEART_SHIFT * 0.5 * heart * (side < 0), none),
        (HEART_SHIFT * heart * (side > 0), none),
        (VESSEL_SHIFT * side * inner * high, none),
        (MIDLINE_SHIFT * (1.0 - across), none),
        (TAPER_SHIFT * side * high * np.clip(across / 0.5, 0.0, 1.0), none),
        (none, APEX_SHIFT * side * high),
        (FLARE_SHIFT * side * low * np.clip(across / 0.5 - 0.6, 0.0, 1.0), none),
        # The middle of the base against its outer end: a flat or a high dome.
        (none, 0.05 * low * (1.0 - np.clip((across - 0.7) / 0.3, 0.0, 1.0))),
    ]
    return typical, np.stack([np.stack(bend, axis=-1) for bend in bends]), tells


def _finer(count: int) -> NDArray[np.float64]:
    """(count * FINER, count): a closed Catmull-Rom spline through drawn points (1974)."""
    matrix = np.zeros((count * FINER, count))
    for place in range(count * FINER):
        first, t = place // FINER, (place % FINER) / FINER
        weights = (
            -0.5 * t + t**2 - 0.5 * t**3,
            1.0 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2.0 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        )
        for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
            matrix[place, (first + offset) % count] += weight
    return matrix


def _darkness(sight: _Sight, points: NDArray[np.float64]) -> float:
    """How much darker the lungs are than what lies between and below them, in deviations."""
    shape = sight.values.shape
    lungs = [_filled(one[:, ::-1], (shape[0], shape[1])) for one in points]
    inside = torch.from_numpy(lungs[0] | lungs[1])
    top, bottom = (int(np.clip(f(points[..., 1]), 0, shape[0] - 1)) for f in (np.min, np.max))
    inner = points[0, :, 0].max(), points[1, :, 0].min()
    around = torch.zeros_like(inside)
    first, last = (int(np.clip(x, 0, shape[1] - 1)) for x in (min(inner), max(inner)))
    around[top : bottom + 1, first : last + 2] = True
    around &= ~inside
    if not (inside.any() and around.any()):
        return 0.0
    return float(sight.values[around].median() - sight.values[inside].median())


def _doubts(sides: NDArray[np.float64], darkness: float, settings: LungSettings) -> tuple[str, ...]:
    checks = (
        (
            float(sides.mean()) < settings.least_border,
            f"the border of two lungs is not seen (support {sides.mean():.2f} < {settings.least_border})",
        ),
        (
            float(sides.min()) < settings.least_side,
            f"the border of one lung is not seen (support {sides.min():.2f} < {settings.least_side})",
        ),
        (
            darkness < settings.least_darkness,
            f"no dark fields by a bright middle (by {darkness:.2f} < {settings.least_darkness} deviations)",
        ),
    )
    return tuple(text for failed, text in checks if failed)
