"""Smooth deformations with known truth: another person's head, and atrophy.

A displacement is a float32 tensor (3, K, J, I) in mm, ordered (k, j, i). It says
where each voxel of the output samples its source: source = place + displacement.

Each field is limited so that no part of the head folds: where the gradient of the
displacement stays below 1 (Frobenius), place + displacement has a positive
Jacobian determinant and meets no point twice. `jacobian` shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as functional

from medsiam.sampling import smooth
from medsiam.training.chance import Random, uniform

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

# Largest Frobenius norm of the displacement's gradient. Below 1 nothing folds; the
# margin keeps the least Jacobian determinant above (1 - .7)^3 = .027.
STEEPEST = 0.7

# How much more one side of a deformation may move than the other, about its mean.
UNEVEN = 0.35

# The ventricles push what lies next to them, and a little of what lies further
# away: widths (mm) of the two Gaussians that make the potential.
NEAR_MM, FAR_MM = 4.0, 10.0

# Weight of the wide potential against the narrow one, per mm of its slope.
FAR_WEIGHT = 2.0

# How smoothly the brain's border is known, mm; also how far from it the push fades.
BORDER_MM = 3.5

# The push is over where the smoothed brain falls below this: about 4 mm outside the
# border, which is where the inner table of the skull begins.
SKULL_AT = 0.12

# Steps of the secant method at most, and the relative error at which it may stop.
SECANT_STEPS, CLOSE_ENOUGH = 5, 0.02

# The volume is measured in a box about the ventricles, which take a small part of a
# head; the steepness allows them to grow by a few mm.
MARGIN_VOXELS = 8


@dataclass(frozen=True)
class WarpSettings:
    """How different another person may be.

    elastic_mm  largest elastic displacement that may be drawn
    points      fewest and most control points along an axis
    scale       largest relative change of size, each axis for itself
    """

    elastic_mm: float = 8.0
    points: tuple[int, int] = (4, 7)
    scale: float = 0.1

    def __post_init__(self) -> None:
        if self.elastic_mm < 0.0:
            raise ValueError(f"elastic_mm is {self.elastic_mm}; it must not be negative")
        if not 2 <= self.points[0] <= self.points[1]:
            raise ValueError(f"points is {self.points}; it must be two rising numbers from 2 on")
        if not 0.0 <= self.scale <= 0.3:
            raise ValueError(f"scale is {self.scale}; it must be from 0 to 0.3")


@dataclass(frozen=True, eq=False)
class Atrophy:
    """A deformation that changes the ventricles' volume, and by how much it does.

    displacement  (3, K, J, I) mm
    asked         relative change of volume that was asked for
    growth        relative change that the displacement makes: .2 is a fifth more
    """

    displacement: torch.Tensor
    asked: float
    growth: float


def person_warp(shape: Shape, spacing_mm: Spacing, settings: WarpSettings, random: Random) -> torch.Tensor:
    """The displacement (3, K, J, I) in mm that makes another person of a head.

    Cubic B-splines on few control points, and a size for each axis about the middle
    of the grid. After Rueckert et al. 1999, IEEE Transactions on Medical Imaging 18.
    """
    low, high = settings.points
    points = low + int(torch.randint(high - low + 1, (1,), generator=random))
    field = torch.randn(3, points, points, points, generator=random)
    for axis, size in enumerate(shape):
        field = _along(field, _splines(size, points), axis)
    largest = float(field.square().sum(0).max().sqrt())
    field = field * (settings.elastic_mm * math.sqrt(uniform(0.0, 1.0, random)) / max(largest, 1e-6))
    for axis, place in enumerate(_places(shape, spacing_mm)):
        field[axis] += uniform(-settings.scale, settings.scale, random) * place
    return _limited(field, spacing_mm)


def atrophy(
    ventricles: torch.Tensor,
    brain: torch.Tensor,
    spacing_mm: Spacing,
    growth: float,
    random: Random | None = None,
) -> Atrophy:
    """The deformation that grows the ventricles by a fraction; a negative one shrinks them.

    ventricles, brain  shares 0..1 (K, J, I); the brain holds the ventricles or not
    random             where given, the growth is uneven and the brain's border retreats
                       a little; without it the border stays

    Where the asked growth would fold the brain the largest that does not is made.
    Nothing moves where there are no ventricles. The volume is measured by sampling.
    """
    held = ventricles.float()
    still = Atrophy(torch.zeros(3, *held.shape), growth, 0.0)
    if growth == 0.0 or float(held.sum()) <= 0.0:
        return still
    push = _push(held, torch.maximum(brain.float(), held), spacing_mm, random)
    steepest = float(_steepness(push, spacing_mm))
    if steepest <= 0.0:
        return still
    amplitude, achieved = _calibrated(held, push, spacing_mm, growth, STEEPEST / steepest)
    return Atrophy(amplitude * push, growth, achieved)


def uneven(displacement: torch.Tensor, spacing_mm: Spacing, random: Random) -> torch.Tensor:
    """The displacement (3, K, J, I), larger on one side than on another, and never folding."""
    return _limited(displacement * (1.0 + UNEVEN * _uneven(displacement.shape[1:], random)), spacing_mm)


def composed(first: torch.Tensor, second: torch.Tensor, spacing_mm: Spacing) -> torch.Tensor:
    """The one displacement that does what warping by the first, then by the second does."""
    return second + warped(first, second, spacing_mm)


def warped(
    image: torch.Tensor, displacement: torch.Tensor, spacing_mm: Spacing, *, nearest: bool = False
) -> torch.Tensor:
    """The image (K, J, I) or (C, K, J, I) sampled at place + displacement, edges repeated.

    nearest  for label maps; the type of the image stays
    """
    channels = image if image.ndim == 4 else image[None]
    points = torch.empty(*displacement.shape[1:], 3)
    for axis, size in enumerate(image.shape[-3:]):
        steps = torch.arange(displacement.shape[axis + 1], dtype=torch.float32)
        index = displacement[axis] / spacing_mm[axis] + steps.view([-1 if n == axis else 1 for n in range(3)])
        # torch orders (i, j, k) and runs from -1 to 1 between the outermost voxels.
        points[..., 2 - axis] = index * (2.0 / max(size - 1, 1)) - 1.0
    out = functional.grid_sample(
        channels[None].float(),
        points[None],
        mode="nearest" if nearest else "bilinear",
        padding_mode="border",
        align_corners=True,
    )[0]
    out = out if image.ndim == 4 else out[0]
    return out.to(image.dtype) if nearest else out


def jacobian(displacement: torch.Tensor, spacing_mm: Spacing) -> torch.Tensor:
    """Determinant (K, J, I) of the gradient of place + displacement: 1 keeps a volume.

    Below 1 the output shows its place larger than the source, at 0 or less it is folded.
    """
    (kk, kj, ki), (jk, jj, ji), (ik, ij, ii) = (
        torch.gradient(component, spacing=list(spacing_mm)) for component in displacement
    )
    kk, jj, ii = kk + 1.0, jj + 1.0, ii + 1.0
    return kk * (jj * ii - ji * ij) - kj * (jk * ii - ji * ik) + ki * (jk * ij - jj * ik)


def _limited(displacement: torch.Tensor, spacing_mm: Spacing) -> torch.Tensor:
    """The displacement, made smaller where it would come near to folding."""
    return displacement * min(1.0, STEEPEST / max(float(_steepness(displacement, spacing_mm)), 1e-6))


def _steepness(displacement: torch.Tensor, spacing_mm: Spacing) -> torch.Tensor:
    """A bound of the largest Frobenius norm of the displacement's gradient.

    Differences between neighbours, which bound the central ones of `jacobian` too.
    """
    total = torch.zeros(displacement.shape[1:])
    for axis, step in enumerate(spacing_mm):
        size = displacement.shape[axis + 1]
        slope = displacement.diff(dim=axis + 1).div_(step).square_().sum(0)
        # A voxel answers for the steeper of its two sides.
        sides = torch.zeros_like(total)
        sides.narrow(axis, 0, size - 1).copy_(slope)
        behind = sides.narrow(axis, 1, size - 1)
        behind.copy_(torch.maximum(behind, slope))
        total += sides
    return total.max().sqrt()


def _push(
    ventricles: torch.Tensor, brain: torch.Tensor, spacing_mm: Spacing, random: Random | None
) -> torch.Tensor:
    """The direction of growth (3, K, J, I): sampling nearer to the ventricles makes them larger."""
    stretch = 1.0 if random is None else uniform(0.8, 1.4, random)
    near = _smooth_mm(ventricles, NEAR_MM * stretch, spacing_mm)
    potential = near + FAR_WEIGHT * _smooth_mm(ventricles, FAR_MM * stretch, spacing_mm)
    border = _smooth_mm(brain, BORDER_MM, spacing_mm)
    push = _slope(potential, spacing_mm) * _eased((border - 0.5) / 0.4)
    if random is None:
        return push
    push = push * (1.0 + UNEVEN * _uneven(ventricles.shape, random))
    # As the brain shrinks its border retreats too: what lies outside is sampled.
    retreat = _slope(border, spacing_mm) * _eased((border - SKULL_AT) / (0.5 - SKULL_AT))
    size = uniform(0.0, 0.35, random) * _longest(push) / max(_longest(retreat), 1e-6)
    return push - size * retreat


def _uneven(shape: torch.Size, random: Random) -> torch.Tensor:
    """A smooth field (K, J, I) from -1 to 1: one side may grow more than the other."""
    field = 2.0 * torch.rand(1, 4, 4, 4, generator=random) - 1.0
    for axis, size in enumerate(shape):
        field = _along(field, _splines(size, 4), axis)
    return field[0]


def _calibrated(
    ventricles: torch.Tensor, push: torch.Tensor, spacing_mm: Spacing, growth: float, most: float
) -> tuple[float, float]:
    """The amplitude within -most..most whose growth comes nearest, and that growth."""
    ventricles, push = _near(ventricles, push)
    volume = float(ventricles.sum())

    def growth_at(amplitude: float) -> float:
        return float(warped(ventricles, amplitude * push, spacing_mm).sum()) / volume - 1.0

    # The first step follows the slope at rest: sampling v at x + a g gains a g . grad v.
    slope = float((push * _slope(ventricles, spacing_mm)).sum()) / volume
    if slope <= 0.0:
        return 0.0, 0.0
    before, at_before = 0.0, 0.0
    amplitude = _within(growth / slope, most)
    for _ in range(SECANT_STEPS):
        achieved = growth_at(amplitude)
        rise = achieved - at_before
        done = abs(achieved - growth) <= CLOSE_ENOUGH * abs(growth) or abs(rise) < 1e-9
        step = 0.0 if done else (growth - achieved) * (amplitude - before) / rise
        following = _within(amplitude + step, most)
        if following == amplitude:
            break
        before, at_before, amplitude = amplitude, achieved, following
    return amplitude, growth_at(amplitude)


def _near(ventricles: torch.Tensor, push: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both, cut to a box that the ventricles do not leave."""
    held = (ventricles > 0.0).nonzero()
    size = torch.tensor(ventricles.shape)
    low = (held.min(0).values - MARGIN_VOXELS).clamp_min(0).tolist()
    high = torch.minimum(held.max(0).values + MARGIN_VOXELS + 1, size).tolist()
    k, j, i = (slice(a, b) for a, b in zip(low, high, strict=True))
    return ventricles[k, j, i], push[:, k, j, i]


def _within(value: float, most: float) -> float:
    return max(-most, min(most, value))


def _longest(field: torch.Tensor) -> float:
    return float(field.square().sum(0).max().sqrt())


def _eased(share: torch.Tensor) -> torch.Tensor:
    """0 below 0, 1 above 1, and between them without a corner."""
    share = share.clamp(0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _smooth_mm(field: torch.Tensor, sigma_mm: float, spacing_mm: Spacing) -> torch.Tensor:
    k, j, i = (round(sigma_mm / step, 2) for step in spacing_mm)
    return smooth(field, (k, j, i))


def _slope(field: torch.Tensor, spacing_mm: Spacing) -> torch.Tensor:
    """Gradient (3, K, J, I) per mm."""
    return torch.stack(torch.gradient(field, spacing=list(spacing_mm)))


def _places(shape: Shape, spacing_mm: Spacing) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distances in mm from the middle of the grid along k, j and i, to be broadcast."""
    k, j, i = (
        (torch.arange(size) - (size - 1) / 2.0) * step for size, step in zip(shape, spacing_mm, strict=True)
    )
    return k[:, None, None], j[None, :, None], i[None, None, :]


def _along(field: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """The field (C, …) with a matrix applied along one of its three axes."""
    moved = field.movedim(axis + 1, -1) @ matrix.T
    return moved.movedim(-1, axis + 1).contiguous()


@lru_cache(maxsize=64)
def _splines(size: int, points: int) -> torch.Tensor:
    """(size, points): the weight of each control point at each voxel, rows sum to one."""
    place = torch.linspace(0.0, points - 1.0, size)[:, None] - torch.arange(points)
    far = place.abs()
    inner = 2.0 / 3.0 - far**2 + far**3 / 2.0
    outer = (2.0 - far).clamp_min(0.0) ** 3 / 6.0
    weight = torch.where(far < 1.0, inner, outer)
    return weight / weight.sum(1, keepdim=True)
