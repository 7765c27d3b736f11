"""Draws that the generators share. All randomness comes from the generator that is passed in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional

Random = torch.Generator


def chance(probability: float, random: Random) -> bool:
    """True with this probability."""
    return float(torch.rand(1, generator=random)) < probability


def uniform(low: float, high: float, random: Random) -> float:
    """A number between the two."""
    return low + (high - low) * float(torch.rand(1, generator=random))


def log_uniform(low: float, high: float, random: Random) -> float:
    """A number between the two, every ratio alike."""
    return math.exp(uniform(math.log(low), math.log(high), random))


def normal(random: Random) -> float:
    """A number of mean 0 and deviation 1."""
    return float(torch.randn(1, generator=random))


def choice(count: int, random: Random) -> int:
    """A whole number from 0 to count - 1."""
    return int(torch.randint(count, (1,), generator=random))


def smooth_field(
    shape: Sequence[int], points: int, random: Random, *, channels: int = 1, span: float = 1.0
) -> torch.Tensor:
    """(channels, *shape): Gaussian numbers at points^n control points, linear between them.

    span  deviation at the control points; between them it is less
    """
    grid = (1, channels, *([points] * len(shape)))
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape)]
    control = span * torch.randn(grid, generator=random)
    return functional.interpolate(control, size=tuple(shape), mode=mode, align_corners=True)[0]
