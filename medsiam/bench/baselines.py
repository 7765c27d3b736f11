"""What is reached without any training: raw intensities, principal axes, edges, an untrained network.

Brains are taken at RAW_MM, where a small turn of the head still leaves most of a voxel
in place; radiographs at RADIOGRAPH_PIXELS squared after adaptive equalisation.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import ArrayLike, NDArray

from medsiam.bench.retrieval import NEIGHBOURS, Numbers, cosines
from medsiam.encoding.encoder import Encoder, EncoderSettings, TwinEncoder
from medsiam.encoding.preparation import PreparationSettings, prepare
from medsiam.volume import Volume

# Of the developers' first trial, kept so that figures can be set side by side.
RAW_MM = 8.0
BRAIN_AXES = 30
RADIOGRAPH_PIXELS = 96
RADIOGRAPH_AXES = 40

# 28 voxels of 8 mm hold a large head.
RAW = PreparationSettings(size_voxels=28, spacing_mm=RAW_MM)

# Adaptive equalisation (Zuiderveld 1994, Graphics Gems IV): tiles a side, levels, and the
# largest height of a level over the mean, beyond which contrast is no longer raised.
TILES, LEVELS, CLIP = 8, 128, 4.0

# Shifts in pixels of 96 and magnifications that are tried; further than this,
# two radiographs of one patient seldom lie apart after cropping to the chest.
SHIFTS = (-6, -3, 0, 3, 6)
SCALES = (0.94, 1.0, 1.06)
# Pixels that no shift moves out of the picture.
RIM = 10

# Dalal and Triggs 2005, CVPR: 8 pixel cells, 9 unsigned directions, blocks of 2 x 2
# cells, their norm cut at .2.
CELL_PIXELS, DIRECTIONS, BLOCK_CELLS, LARGEST_SHARE = 8, 9, 2, 0.2

# Random neighbours that chance is averaged over, for each person.
CHANCE_DRAWS = 2000


def untrained(settings: EncoderSettings, seed: int) -> Encoder:
    """The same architecture with drawn weights: what the architecture knows by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(TwinEncoder(settings).eval(), "untrained@0")


def raw_brain(volume: Volume) -> Numbers:
    """The volume at 8 mm as the encoder would get it, flat."""
    return prepare(volume, RAW).values.numpy().ravel().astype(np.float64)


def raw_inside(volume: Volume, inside: NDArray[np.bool_]) -> Numbers:
    """The same of what lies inside a mask (K, J, I), centred on it."""
    held = Volume(np.where(inside, volume.array, np.float32(0)), volume.grid, volume.acquisition)
    return raw_brain(held)


def principal(rows: Numbers, axes: int, fitted_to: ArrayLike) -> Numbers:
    """Rows (n, axes) along the principal axes of those for which fitted_to is true."""
    seen = rows[np.asarray(fitted_to, dtype=bool)]
    middle = seen.mean(axis=0)
    directions = np.linalg.svd(seen - middle, full_matrices=False)[2][:axes]
    return (rows - middle) @ directions.T


def chance_errors(values: ArrayLike, on_offer: NDArray[np.bool_], own: ArrayLike, seed: int) -> Numbers:
    """For each query, the mean error when NEIGHBOURS of the gallery are taken by chance.

    values    of the gallery
    on_offer  (queries, gallery)
    own       values of the queries
    """
    random, held = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    errors = []
    for allowed, value in zip(on_offer, np.asarray(own, dtype=np.float64), strict=True):
        order = random.random((CHANCE_DRAWS, int(allowed.sum()))).argsort(axis=1)[:, :NEIGHBOURS]
        errors.append(np.abs(held[allowed][order].mean(axis=1) - value).mean())
    return np.array(errors)


def equalised_radiograph(volume: Volume) -> NDArray[np.float32]:
    """The radiograph (96, 96), 0..1, stretched to a square and adaptively equalised."""
    size = (RADIOGRAPH_PIXELS, RADIOGRAPH_PIXELS)
    small = functional.interpolate(
        torch.tensor(volume.array)[None], size, mode="bilinear", antialias=True, align_corners=False
    )[0, 0]
    return adaptively_equalised(small.numpy())


def adaptively_equalised(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image (j, i) as 0..1, each pixel ranked among its neighbourhood, contrast limited."""
    low, high = float(image.min()), float(image.max())
    level = ((image - low) / max(high - low, 1e-12) * (LEVELS - 1)).round().astype(int)
    curves = np.empty((TILES, TILES, LEVELS), np.float32)
    edges = [np.linspace(0, size, TILES + 1).astype(int) for size in image.shape]
    for j, i in product(range(TILES), repeat=2):
        tile = level[edges[0][j] : edges[0][j + 1], edges[1][i] : edges[1][i + 1]]
        height = np.bincount(tile.ravel(), minlength=LEVELS).astype(np.float64)
        most = CLIP * height.mean()
        spread = np.minimum(height, most) + np.maximum(height - most, 0.0).sum() / LEVELS
        curves[j, i] = np.cumsum(spread) / spread.sum()
    return _between_tiles(curves, level)


def _between_tiles(curves: NDArray[np.float32], level: NDArray[Any]) -> NDArray[np.float32]:
    """Each pixel by the curves of the four tiles around it, linear between their middles."""
    places = [np.clip((np.arange(n) + 0.5) / n * TILES - 0.5, 0, TILES - 1) for n in level.shape]
    (j, i), (v, u) = (
        [np.minimum(p.astype(int), TILES - 2) for p in places],
        [p - np.minimum(p.astype(int), TILES - 2) for p in places],
    )
    out = np.zeros(level.shape, np.float32)
    for down, right in product((0, 1), repeat=2):
        share = np.outer(v if down else 1 - v, u if right else 1 - u)
        out += share.astype(np.float32) * curves[(j + down)[:, None], (i + right)[None], level]
    return out


def correlations(one: Numbers, other: Numbers) -> Numbers:
    """Correlation of the values of every two pictures (queries, …) and (gallery, …), as they lie."""
    return cosines(_centred(one), _centred(other))


def shifted_correlations(images: NDArray[np.float32]) -> Numbers:
    """The same under the best small shift and magnification of either, rim left out."""
    still = images[:, RIM:-RIM, RIM:-RIM]
    best = np.full((len(images), len(images)), -np.inf)
    for scale, down, right in product(SCALES, SHIFTS, SHIFTS):
        moved = _moved(images, scale, down, right)[:, RIM:-RIM, RIM:-RIM]
        best = np.maximum(best, correlations(still, moved))
    return np.maximum(best, best.T)


def edges(image: NDArray[np.float32]) -> Numbers:
    """Histograms of gradient directions (HOG) of a picture (j, i), in blocks of unit norm."""
    down, right = np.gradient(image.astype(np.float64))
    strength = np.hypot(down, right)
    turn = np.mod(np.arctan2(down, right), np.pi) / np.pi * DIRECTIONS - 0.5
    lower = np.floor(turn).astype(int)
    shares = np.zeros((DIRECTIONS, *image.shape))
    rows, columns = np.indices(image.shape)
    for bin_of, weight in ((lower, lower + 1 - turn), (lower + 1, turn - lower)):
        np.add.at(shares, (bin_of % DIRECTIONS, rows, columns), strength * weight)
    count = [size // CELL_PIXELS for size in image.shape]
    cut = shares[:, : count[0] * CELL_PIXELS, : count[1] * CELL_PIXELS]
    cells = cut.reshape(DIRECTIONS, count[0], CELL_PIXELS, count[1], CELL_PIXELS).sum((2, 4))
    blocks = np.lib.stride_tricks.sliding_window_view(cells, (BLOCK_CELLS, BLOCK_CELLS), axis=(1, 2))
    flat = np.moveaxis(blocks, 0, 2).reshape(-1, DIRECTIONS * BLOCK_CELLS**2)
    return _unit(np.minimum(_unit(flat), LARGEST_SHARE)).ravel()


def _unit(rows: Numbers) -> Numbers:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)


def _centred(images: Numbers) -> Numbers:
    rows = images.reshape(len(images), -1).astype(np.float64)
    return rows - rows.mean(axis=1, keepdims=True)


def _moved(images: NDArray[np.float32], scale: float, down: int, right: int) -> NDArray[np.float32]:
    """The pictures magnified about their middle, then shifted by whole pixels, edges repeated."""
    size = images.shape[1:]
    shift = torch.tensor([2.0 * right / size[1], 2.0 * down / size[0]])
    theta = torch.cat([torch.eye(2), -shift[:, None]], dim=1)[None] / scale
    points = functional.affine_grid(theta, [1, 1, *size], align_corners=False)
    held = torch.from_numpy(images)[None]
    moved: NDArray[np.float32] = functional.grid_sample(
        held, points, padding_mode="border", align_corners=False
    )[0].numpy()
    return moved
