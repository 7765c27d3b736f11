"""The dense Siamese head: from the pyramids of two scans to where they differ.

    per level: greater of both, and their difference -> upwards, coarse to fine
    -> with the images themselves -> one map of logits

Called as (prior, current) it tells what appears, as (current, prior) what resolves:
one network, so exchanging the scans exchanges the maps, exactly. The greater of both
keeps what either shows without telling which (cf. Daudt et al. 2018, ICIP, on
Siamese difference networks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import nn

KERNEL = 3
GROUPS = 4
FINE_WIDTH = 8


class ChangeLogits(NamedTuple):
    """Logits (B, 1, [K,] J, I) at the images' size: what came, and what went."""

    appearing: torch.Tensor
    resolving: torch.Tensor


class ChangeHead(nn.Module):
    """The head for pyramids of these channels.

    channels  of each level, finest first, as in EncoderSettings
    width     channels of the way up
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int], *, width: int = 16) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        self.spatial_dims, self.channels, self.width = spatial_dims, tuple(channels), width
        self.laterals = nn.ModuleList(conv(2 * count, width, 1) for count in channels)
        self.merges = nn.ModuleList(_merge(conv, width, width) for _ in channels)
        # Full resolution is where a dense head costs most: few channels go there.
        self.narrow = conv(width, FINE_WIDTH, 1)
        self.finish = nn.Sequential(_merge(conv, FINE_WIDTH + 2, FINE_WIDTH), conv(FINE_WIDTH, 1, 1))

    def forward(
        self,
        images: tuple[torch.Tensor, torch.Tensor],
        pyramids: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    ) -> ChangeLogits:
        """The maps of a batch of pairs, prior first; images (B, 1, [K,] J, I), levels finest first."""
        (prior, current), (before, after) = images, pyramids
        # Both directions are one batch: rows are pairs, then the same pairs exchanged.
        first = [torch.cat([a, b]) for a, b in zip(before, after, strict=True)]
        second = [torch.cat([b, a]) for a, b in zip(before, after, strict=True)]
        logits = self._one_way(torch.cat([prior, current]), torch.cat([current, prior]), first, second)
        appearing, resolving = logits.chunk(2)
        return ChangeLogits(appearing, resolving)

    def _one_way(
        self, a: torch.Tensor, b: torch.Tensor, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        way: torch.Tensor | None = None
        for level in reversed(range(len(self.laterals))):
            here = self.laterals[level](_both(first[level], second[level]))
            if way is not None:
                here = here + _finer(way, here.shape[2:])
            way = self.merges[level](here)
        assert way is not None
        fine = _finer(self.narrow(way), a.shape[2:])
        return self.finish(torch.cat([fine, _both(a, b)], dim=1))


def _finer(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The level at twice its size: its voxel n lies on voxel 2n of the finer one, as `level_grid` says.

    The usual resizing takes levels for boxes side by side, and would shift them by a
    half, one and a half, three and a half voxels of the input.
    """
    between = [2 * n - 1 for n in values.shape[2:]]
    mode = "trilinear" if len(between) == 3 else "bilinear"
    fine = functional.interpolate(values, size=between, mode=mode, align_corners=True)
    # An even size has one voxel more, beyond the last of the coarser level.
    pad = [after for n, wanted in zip(between, size, strict=True) for after in (wanted - n, 0)]
    return functional.pad(fine, pad[::-1], mode="replicate")


def _both(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.maximum(a, b), b - a], dim=1)


def _merge(conv: type[nn.Module], source: int, target: int) -> nn.Module:
    return nn.Sequential(
        conv(source, target, KERNEL, padding=KERNEL // 2, bias=False),
        nn.GroupNorm(GROUPS, target),
        nn.LeakyReLU(0.1),
    )
