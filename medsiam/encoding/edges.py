"""What a radiograph's plain edges tell: histograms of their directions, all over the chest.

    input -> EDGE_PIXELS squared -> slopes -> a histogram of directions in each cell
          -> blocks of 2 x 2 cells, each of unit norm, so that exposure tells little -> one row

Nothing here is learnt; ribs, clavicles and borders of one person fall into the same cells as long
as the lungs lie in the same place. After Dalal and Triggs 2005, CVPR.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional

# Side of the picture, pixels in a cell, unsigned directions, cells along a block's side.
EDGE_PIXELS, CELL_PIXELS, DIRECTIONS, BLOCK_CELLS = 96, 8, 9, 2
# A direction has at most this share of its block: one tube must not hide the ribs.
LARGEST_SHARE = 0.2
# Of the largest block's norm: what is flat is noise and must not be raised to unit norm.
FLAT = 1e-3

_BLOCKS = EDGE_PIXELS // CELL_PIXELS - BLOCK_CELLS + 1
EDGE_NUMBERS = _BLOCKS**2 * BLOCK_CELLS**2 * DIRECTIONS


def edge_histograms(images: torch.Tensor) -> torch.Tensor:
    """(B, EDGE_NUMBERS), unit norm, of pictures (B, 1, J, I); 0 where a picture has no edge."""
    size = (EDGE_PIXELS, EDGE_PIXELS)
    small = functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    around = functional.pad(small, (1, 1, 1, 1), mode="replicate")[:, 0]
    along_j = (around[:, 2:, 1:-1] - around[:, :-2, 1:-1]) / 2.0
    along_i = (around[:, 1:-1, 2:] - around[:, 1:-1, :-2]) / 2.0
    strength = (along_i.square() + along_j.square()).sqrt()
    # Each edge is shared by the two directions that it lies between.
    turn = (torch.atan2(along_j, along_i) / math.pi * DIRECTIONS) % DIRECTIONS
    first = turn.floor()
    share = turn - first
    shares = strength.new_zeros((len(images), DIRECTIONS, *size))
    for number, weight in ((first, 1.0 - share), (first + 1.0, share)):
        shares.scatter_add_(1, (number.long() % DIRECTIONS)[:, None], (strength * weight)[:, None])
    cells = functional.avg_pool2d(shares, CELL_PIXELS)
    corners = [(j, i) for j in range(BLOCK_CELLS) for i in range(BLOCK_CELLS)]
    blocks = torch.cat([cells[:, :, j : j + _BLOCKS, i : i + _BLOCKS] for j, i in corners], dim=1)
    norms = blocks.norm(dim=1, keepdim=True)
    blocks = blocks / (norms + FLAT * norms.amax(dim=(2, 3), keepdim=True)).clamp(min=1e-12)
    return functional.normalize(
        functional.normalize(blocks.clamp(max=LARGEST_SHARE), dim=1).flatten(1), dim=1
    )
