"""A small network that says of each voxel which tissue it is, whatever the contrast.

    image -> itself, its local contrast, its relative edges -> down and up again -> a score for each class

A U-Net (Ronneberger et al. 2015, MICCAI) whose first level
keeps every voxel: at 3 mm a cortex is thinner than one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import nn

CHANNELS = (8, 16, 32, 64)
# Three halvings: each axis of an image must be a multiple.
MULTIPLE = 8


class VoxelNet(nn.Module):
    """Class scores of each voxel of an image of about 3 mm.

    in (B, 1, K, J, I), values 0..1, sizes divisible by 8; out (B, classes, K, J, I) logits
    """

    def __init__(self, classes: int, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        first, *deeper = channels
        self.stem = _conv(3, first)
        self.down = nn.ModuleList(
            nn.Sequential(_conv(a, b, strides=2), _conv(b, b))
            for a, b in zip(channels[:-1], deeper, strict=True)
        )
        self.floor = _conv(channels[-1], channels[-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(b, a, kernel_size=2, stride=2)
            for a, b in zip(channels[:-1], deeper, strict=True)
        )
        self.merge = nn.ModuleList(_conv(2 * a, a) for a in channels[:-1])
        self.score = nn.Conv3d(first, classes, kernel_size=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, K, J, I); an axis that cannot be halved as often is continued by its edge."""
        shape, factor = image.shape[2:], 2 ** len(self.down)
        beyond = [n for size in reversed(shape) for n in (0, -size % factor)]
        if any(beyond):
            image = functional.pad(image, beyond, mode="replicate")
        # In half precision the mean of squares less the square of the mean is noise.
        with torch.autocast(image.device.type, enabled=False):
            seen = local_contrast(image.float()).to(image.dtype)
        skips = [self.stem(seen)]
        for step in self.down:
            skips.append(step(skips[-1]))
        field = self.floor(skips.pop())
        for level in reversed(range(len(skips))):
            field = self.merge[level](torch.cat([self.up[level](field), skips[level]], dim=1))
        scores: torch.Tensor = self.score(field)
        return scores[:, :, : shape[0], : shape[1], : shape[2]]


def local_contrast(image: torch.Tensor) -> torch.Tensor:
    """Three channels (B, 3, K, J, I): the image, its local contrast, its relative edges.

    Brain lies in a narrow band of a scan's range where fat or fluid is bright. The
    second channel is the distance from the mean of 21 mm in local deviations; the
    third, the gradient in units of its mean over 45 mm, knows no contrast at all.
    """
    mean = _box_mean(image, 7)
    spread = (_box_mean(image * image, 7) - mean * mean).clamp(min=0.0).sqrt()
    contrast = ((image - mean) / (spread + 0.03)).clamp(-3.0, 3.0)
    wide = functional.pad(image, (1,) * 6, mode="replicate")
    inner = [slice(None), slice(None)] + [slice(1, -1)] * 3
    squares = torch.zeros_like(image)
    for axis in (2, 3, 4):
        after, before = list(inner), list(inner)
        after[axis], before[axis] = slice(2, None), slice(None, -2)
        squares = squares + (wide[tuple(after)] - wide[tuple(before)]) ** 2
    edge = squares.sqrt()
    relative = (edge / (_box_mean(edge, 15) + 0.01)).clamp(max=4.0)
    return torch.cat([image, contrast, relative], dim=1)


def _box_mean(image: torch.Tensor, size: int) -> torch.Tensor:
    """Mean over a cube, one axis after the other; at the rim over what there is."""
    for axis in (2, 3, 4):
        means = torch.from_numpy(_window_means(int(image.shape[axis]), size // 2)).to(image)
        image = torch.tensordot(image, means, dims=([axis], [1])).movedim(-1, axis)
    return image


@lru_cache(maxsize=16)
def _window_means(count: int, reach: int) -> NDArray[np.float32]:
    """(count, count): each row's mean over the voxels within reach of its own.

    No tensor: one made while a network is traced or in inference could not be used again elsewhere.
    """
    place = np.arange(count)
    near = np.abs(place[:, None] - place) <= reach
    return (near / near.sum(axis=1, keepdims=True)).astype(np.float32)


def _conv(source: int, target: int, strides: int = 1) -> nn.Module:
    # monai takes seconds to import, which a refusal or a help text need not wait for.
    from monai.networks.blocks import Convolution

    norm = ("INSTANCE", {"affine": True})
    return Convolution(
        3, source, target, strides=strides, act="LEAKYRELU", norm=norm, adn_ordering="NA", bias=False
    )
