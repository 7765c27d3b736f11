"""Where a radiograph looks: another person's chest, another position, the frame.

    place -> person_warp: a smooth deformation that meets no point twice
          -> pose: rotation, shift, distance, breath, the patient turned
    composed -> held within the scan -> warped: interpolated once -> frame: straight borders anew

Positions are (J, I, 2), ordered (i, j), -1..1 from edge to edge; a position says where
a pixel looks. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as functional

from medsiam.training.chance import Random, chance, choice, normal, uniform

# Largest norm of a warp's gradient. Below 1 a place and its displacement meet no point
# twice (a Lipschitz bound); the margin leaves the least Jacobian determinant above 0.06.
STEEPEST = 0.75

# The fewest control points along an axis, and by how many there may be more.
FEWEST_POINTS, MORE_POINTS = 4, 4

# Rows and columns belong to the scan where this share of them is brighter than black.
SCAN_LEVEL, SCAN_SHARE = 0.02, 0.1

# A frame's side lies where this share of the row or column shows the scan.
FRAMED_SHARE = 0.6

# No frame leaves less than this of the field's height or width (-1..1).
SMALLEST_FRAME = 1.0


@dataclass(frozen=True)
class PersonSettings:
    """How different another person may be. Lengths are shares of the half field.

    bend      deviation of the smooth deformation; its largest is two to three times that
    stretch   largest change of width and of height
    lopsided  largest difference between the halves, left and right, above and below
    mirrored  share of persons that are mirror images
    """

    bend: float = field(default=0.1, metadata={"range": (0.0, 0.3)})
    stretch: float = field(default=0.15, metadata={"range": (0.0, 0.4)})
    lopsided: float = field(default=0.12, metadata={"range": (0.0, 0.3)})
    mirrored: float = field(default=0.25, metadata={"range": (0.0, 1.0)})


@dataclass(frozen=True)
class PoseSettings:
    """How differently one patient may lie. Lengths are shares of the half field.

    rotation_deg  deviation; twice that is the most
    shift         largest shift along each axis
    scale         typical largest change of size, as a ratio
    shear         largest shear and change of aspect
    perspective   largest narrowing from one edge to the other: the tube is not upright
    breath        largest stretch of the lower half
    turned        largest stretch of one side against the other
    slack         deviation of what else moves: shoulders, soft tissue
    """

    rotation_deg: float = field(default=6.0, metadata={"range": (0.0, 45.0)})
    shift: float = field(default=0.14, metadata={"range": (0.0, 1.0)})
    scale: float = field(default=0.16, metadata={"range": (0.0, 0.9)})
    shear: float = field(default=0.05, metadata={"range": (0.0, 0.3)})
    perspective: float = field(default=0.06, metadata={"range": (0.0, 0.3)})
    breath: float = field(default=0.12, metadata={"range": (0.0, 0.3)})
    turned: float = field(default=0.1, metadata={"range": (0.0, 0.3)})
    slack: float = field(default=0.015, metadata={"range": (0.0, 0.1)})


def place(shape: Sequence[int]) -> torch.Tensor:
    """The positions (J, I, 2) that change nothing."""
    return _place(int(shape[0]), int(shape[1]))


def person_warp(shape: Sequence[int], settings: PersonSettings, random: Random) -> torch.Tensor:
    """Positions (J, I, 2) that make another person of a chest: one to one, now and then mirrored.

    Cubic B-splines on few control points, and a size for each half of the chest. After
    Rueckert et al. 1999, IEEE Transactions on Medical Imaging 18.
    """
    points = FEWEST_POINTS + choice(MORE_POINTS, random)
    at = place(shape)
    moved = splines(shape, points, random, channels=2).permute(1, 2, 0)
    moved = moved * (settings.bend * uniform(0.5, 1.2, random))
    stretch = settings.stretch * _signed(2, random)
    lopsided = settings.lopsided * _signed(2, random)
    moved = moved + at * stretch + at.abs() * lopsided
    # The middle stays in the middle: where a chest lies is a matter of pose.
    moved = moved - moved.mean(dim=(0, 1))
    warp = at + moved * min(1.0, STEEPEST / max(steepness(moved), 1e-6))
    return warp * torch.tensor([-1.0, 1.0]) if chance(settings.mirrored, random) else warp


def pose(shape: Sequence[int], settings: PoseSettings, random: Random) -> torch.Tensor:
    """Positions (J, I, 2) of the same chest lying, breathing and aimed at otherwise."""
    (ii, ij), (ji, jj) = _turn(settings, random)
    lean_i, lean_j = (settings.perspective * _signed(2, random)).tolist()
    shift_i, shift_j = (settings.shift * _signed(2, random)).tolist()
    i, j = place(shape).unbind(2)
    nearer = 1.0 / (1.0 + lean_i * i + lean_j * j)
    i, j = (ii * i + ij * j) * nearer + shift_i, (ji * i + jj * j) * nearer + shift_j
    # The diaphragm moves, the top of the lungs does not.
    j = j + uniform(-settings.breath, settings.breath, random) * (j + 0.4).clamp(0.0, 1.2).square()
    # A patient turned to one side shows that side wider.
    i = i + uniform(-settings.turned, settings.turned, random) * (1.0 - i.clamp(-1.2, 1.2).square())
    slack_i, slack_j = settings.slack * splines(shape, FEWEST_POINTS, random, channels=2)
    return torch.stack([i + slack_i, j + slack_j], dim=2)


def nudged(shape: Sequence[int], share: float, random: Random) -> torch.Tensor:
    """Positions (J, I, 2) shifted by at most this share of the half field along each axis."""
    return place(shape) + share * _signed(2, random)


def composed(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Positions that look at `first` where `second` says; beyond the edge they go on as at the edge."""
    inside = second.clamp(-1.0, 1.0)
    there = functional.grid_sample(
        first.permute(2, 0, 1)[None], inside[None], padding_mode="border", align_corners=False
    )[0].permute(1, 2, 0)
    return there + (second - inside)


def warped(image: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The image at the positions, 0 outside, interpolated once."""
    return functional.grid_sample(image[None, None], position[None], align_corners=False)[0, 0]


def held(image: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions brought into the scan, whose edge goes on beyond, and 0 or 1 (J, I): where it lay within.

    A warped border would tell which warp was used, and with it the person.
    """
    shown = image > SCAN_LEVEL
    kept, inside = [], torch.ones(position.shape[:2], dtype=torch.bool)
    for axis, way in ((1, position[..., 0]), (0, position[..., 1])):
        first, last = _ends(shown.float().mean(dim=1 - axis) > SCAN_SHARE)
        # The scan's last pixel may be mixed with the black beside it.
        low, high = (2 * first + 3) / image.shape[axis] - 1.0, (2 * last - 1) / image.shape[axis] - 1.0
        kept.append(way.clamp(min(low, high), max(low, high)))
        inside &= kept[-1] == way
    return torch.stack(kept, dim=2), inside.float()


def frame(inside: torch.Tensor, cut: float, random: Random) -> torch.Tensor:
    """0..1 (J, I): a rectangle about what is inside, a little turned, each side cut by up to `cut`."""
    sides = []
    for axis in (0, 1):
        first, last = _ends(inside.mean(dim=1 - axis) > FRAMED_SHARE)
        size = inside.shape[axis]
        sides.append((2.0 * first / size - 1.0, 2.0 * (last + 1) / size - 1.0))
    i, j = place(inside.shape).unbind(2)
    tilt = math.tan(math.radians(2.5 * normal(random))) if chance(0.5, random) else 0.0
    shown = torch.ones_like(i)
    for (low, high), along in zip(sides, (j + tilt * i, i - tilt * j), strict=True):
        spare = max(0.0, min(cut, (high - low - SMALLEST_FRAME) / 2.0))
        low, high = low + spare * uniform(0.0, 1.0, random), high - spare * uniform(0.0, 1.0, random)
        # One pixel of penumbra.
        shown = shown * ((torch.minimum(along - low, high - along)) * 0.5 * len(j)).add_(0.5).clamp_(0.0, 1.0)
    return shown


def splines(shape: Sequence[int], points: int, random: Random, *, channels: int = 1) -> torch.Tensor:
    """(channels, J, I): a smooth field of mean 0 and deviation 1 everywhere, from points^2 control points."""
    control = torch.randn(channels, points + 2, points + 2, generator=random)
    return _basis(int(shape[0]), points) @ control @ _basis(int(shape[1]), points).T


def steepness(moved: torch.Tensor) -> float:
    """A bound of the norm of a displacement's gradient, (J, I, 2) as shares of the half field."""
    bounds = []
    for axis in (0, 1):
        slope = moved.diff(dim=axis) * (moved.shape[axis] / 2.0)
        bounds.append(slope.square().sum(dim=2).max())
    return float(torch.stack(bounds).sum().sqrt())


def _turn(settings: PoseSettings, random: Random) -> tuple[tuple[float, float], tuple[float, float]]:
    """2 x 2: rotation, size and shear of (i, j)."""
    angle = math.radians(settings.rotation_deg * max(-2.0, min(2.0, normal(random))))
    # Rather nearer than farther: a scan fills its field, or nearly.
    size = (1.0 + settings.scale) ** uniform(-1.3, 0.6, random)
    aspect = 1.0 + settings.shear * uniform(-1.0, 1.0, random)
    shear = settings.shear * uniform(-1.0, 1.0, random)
    cos, sin = size * math.cos(angle), size * math.sin(angle)
    return (cos * aspect, -sin + shear), (sin * aspect, cos)


def _ends(lines: torch.Tensor) -> tuple[int, int]:
    """The first and the last line that is true; where none is, the outermost ones."""
    true = lines.nonzero()
    return (int(true[0]), int(true[-1])) if len(true) else (0, len(lines) - 1)


def _signed(count: int, random: Random) -> torch.Tensor:
    """(count,) numbers from -1 to 1."""
    return 2.0 * torch.rand(count, generator=random) - 1.0


@lru_cache(maxsize=16)
def _place(rows: int, columns: int) -> torch.Tensor:
    j, i = (torch.linspace(-1.0 + 1.0 / n, 1.0 - 1.0 / n, n) for n in (rows, columns))
    return torch.stack([i[None, :].expand(rows, -1), j[:, None].expand(-1, columns)], dim=2)


@lru_cache(maxsize=64)
def _basis(size: int, points: int) -> torch.Tensor:
    """(size, points + 2): cubic B-splines, rows of unit length so that noise keeps its deviation."""
    far = (torch.linspace(1.0, float(points), size)[:, None] - torch.arange(points + 2)).abs()
    inner = 2.0 / 3.0 - far**2 + far**3 / 2.0
    outer = (2.0 - far).clamp_min(0.0) ** 3 / 6.0
    weight = torch.where(far < 1.0, inner, outer)
    return weight / weight.norm(dim=1, keepdim=True)
