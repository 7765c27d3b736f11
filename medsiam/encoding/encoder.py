"""One network for both twins: a scan to its embedding and its pyramid of features.

    Volume -> prepare -> stem, stride 2 -> stages, stride 2 each -> pyramid
                                        -> means and maximum of the deepest -> embedding

and where it was taught to tell tissues, by a network beside the first that knows nothing of who it is,
the last part of the embedding is their volumes:

    prepared -> tissue of every voxel -> volumes -> a few scores, fitted to labels -> who is alike,
                                              unless no brain has such volumes

In radiographs the last part can be told by plain edges (edges.py) instead, on axes that were fitted.

The first layers at full resolution are what a 3D network costs on a CPU, so the twins
have none: 4.7 GFLOP for 96 voxels cubed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import nn

from medsiam.encoding.edges import EDGE_NUMBERS, EDGE_PIXELS, edge_histograms
from medsiam.encoding.fitting import encoded_that_fits
from medsiam.encoding.preparation import PreparationSettings, Prepared, prepare
from medsiam.errors import WeightsRefused
from medsiam.volume import Grid, Volume
from medsiam.voxel_net import MULTIPLE, VoxelNet

KERNEL = 3
STRIDE = 2

# What an encoder of heads may tell apart at every voxel.
TISSUES = ("outside", "ventricle", "csf", "cortex", "white", "deep grey", "hind brain")
FLUID = TISSUES.index("csf")
# Volumes below this share of the field are told alike.
LEAST_VOLUME = 1e-5
# Standard scores beyond this are as good as this: 1 in 80. It is a right angle.
LARGEST_SCORE = 2.5
# One person in fifteen lies farther, in the squared Mahalanobis distance of six volumes. What lies farther
# still is a scan whose tissues cannot be told: its last part then fades, and who it is speaks alone.
USUAL_DISTANCE = 12.0

# Bounds that keep a settings file, or a foreign weight file, from asking for all memory.
MOST_CHANNELS, MOST_STAGES, LARGEST_EMBEDDING = 512, 6, 4096
MOST_PARTS, MOST_CELLS, MOST_SCORES = 8, 8, 64
FEWEST_TRUNK_VOXELS = 16


@dataclass(frozen=True)
class EncoderSettings:
    """The architecture, as it is recorded in a weight file.

    spatial_dims    3 for volumes, 2 for radiographs
    channels        of the stem and of each stage, multiples of norm_groups
    embedding_size  numbers in an embedding
    norm_groups     groups of channels that are normalised together
    shares          the embedding's parts, equally long: what each adds to the cosine. What one
                    part was taught (who it is) does not compete with another (how it looks);
                    the last one's goes to the first where tissues cannot be told
    summary_cells   cells along each axis whose means are kept: 1 forgets where, 2 keeps
                    the halves apart
    tissues         whether TISSUES are told at every voxel, and the last part is their volumes
    likeness        how many scores these are brought to
    edges           whether the last part are histograms of a radiograph's edges, on fitted axes
    trunk_voxels    side of what the twins see, of which the input is a finer picture; 0 for the input itself
    preparation     the size and spacing of the input
    """

    spatial_dims: int = 3
    channels: tuple[int, ...] = (24, 48, 96, 192)
    embedding_size: int = 256
    norm_groups: int = 8
    shares: tuple[float, ...] = (1.0,)
    summary_cells: int = 2
    tissues: bool = False
    likeness: int = 4
    edges: bool = False
    trunk_voxels: int = 0
    preparation: PreparationSettings = field(default_factory=PreparationSettings)

    def __post_init__(self) -> None:
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {self.spatial_dims}; it must be 2 or 3")
        if not 2 <= len(self.channels) <= MOST_STAGES:
            raise ValueError(f"channels has {len(self.channels)} stages; it must have 2 to {MOST_STAGES}")
        if self.norm_groups < 1 or any(n % self.norm_groups for n in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of norm_groups {self.norm_groups}")
        if not all(1 <= n <= MOST_CHANNELS for n in self.channels):
            raise ValueError(f"channels {self.channels} must be between 1 and {MOST_CHANNELS}")
        if not 2 <= self.embedding_size <= LARGEST_EMBEDDING:
            raise ValueError(f"embedding_size {self.embedding_size} must be from 2 to {LARGEST_EMBEDDING}")
        if not 1 <= self.parts <= MOST_PARTS or self.embedding_size % self.parts:
            raise ValueError(
                f"shares has {self.parts} parts; it must have 1 to {MOST_PARTS}, "
                f"and their number must divide {self.embedding_size}"
            )
        if min(self.shares) <= 0.0 or abs(sum(self.shares) - 1.0) > 1e-6:
            raise ValueError(f"shares is {self.shares}; they must be above 0 and add up to 1")
        if not 1 <= self.summary_cells <= MOST_CELLS:
            raise ValueError(f"summary_cells is {self.summary_cells}; it must be from 1 to {MOST_CELLS}")
        if not 1 <= self.likeness <= MOST_SCORES:
            raise ValueError(f"likeness is {self.likeness}; it must be from 1 to {MOST_SCORES}")
        size = self.preparation.size_voxels
        if self.trunk_voxels and not FEWEST_TRUNK_VOXELS <= self.trunk_voxels <= size:
            raise ValueError(
                f"trunk_voxels is {self.trunk_voxels}; it must be 0 or from {FEWEST_TRUNK_VOXELS} "
                f"to the {size} of preparation.size_voxels"
            )
        if self.preparation.by_lungs and self.spatial_dims != 2:
            raise ValueError("preparation.by_lungs is for radiographs; set spatial_dims to 2")
        if self.tissues:
            self._check_tissues()
        if self.edges and (self.parts < 2 or self.spatial_dims != 2 or size < EDGE_PIXELS):
            raise ValueError(
                f"edges needs radiographs of {EDGE_PIXELS} pixels or more and at least 2 parts; there are "
                f"{self.parts} in {self.spatial_dims} dimensions, of {size}"
            )

    def _check_tissues(self) -> None:
        if self.parts < 2 or self.spatial_dims != 3:
            raise ValueError(
                f"tissues needs volumes and at least 2 parts; there are {self.parts} "
                f"in {self.spatial_dims} dimensions"
            )
        if self.preparation.size_voxels % MULTIPLE:
            raise ValueError(
                f"tissues needs a preparation.size_voxels divisible by {MULTIPLE}; "
                f"it is {self.preparation.size_voxels}"
            )
        if 2 * self.likeness > self.embedding_size // self.parts:
            raise ValueError(
                f"likeness is {self.likeness}; a part of {self.embedding_size // self.parts} numbers "
                "has room for half as many scores"
            )

    @property
    def parts(self) -> int:
        """How many parts an embedding has."""
        return len(self.shares)


# A radiograph is one slice: many more pixels cost little, and small signs need them.
RADIOGRAPH = EncoderSettings(spatial_dims=2, preparation=PreparationSettings(size_voxels=256))


class Encoded(NamedTuple):
    """What the network gives for a batch, with gradients where they are on.

    embedding  (B, D), unit norm
    pyramid    (B, C, [k,] j, i) each, finest first
    tissues    (B, TISSUES, K, J, I) logits at the input's voxels; None where none are told
    """

    embedding: torch.Tensor
    pyramid: tuple[torch.Tensor, ...]
    tissues: torch.Tensor | None = None


class TwinEncoder(nn.Module):
    """The network. Both scans of a pair go through this one set of weights.

    in (B, 1, [K,] J, I), values 0..1
    """

    def __init__(self, settings: EncoderSettings | None = None) -> None:
        super().__init__()
        self.settings = told = settings or EncoderSettings()
        first, *deeper = told.channels
        self.stem = _block(told, 1, first, strides=STRIDE)
        pairs = zip(told.channels[:-1], deeper, strict=True)
        self.stages = nn.ModuleList(_stage(told, source, target) for source, target in pairs)
        cells = told.summary_cells**told.spatial_dims
        part = told.embedding_size // told.parts
        summed = told.embedding_size - part * (told.tissues or told.edges)
        self.project = nn.Linear((cells + 1) * told.channels[-1], summed)
        if told.tissues:
            self.reader = VoxelNet(len(TISSUES))
            # Fitted to labels once the tissues are told; no gradient reaches it.
            self.alike = nn.Linear(len(TISSUES) - 1, told.likeness).requires_grad_(False)
            self.unusual = nn.Linear(len(TISSUES) - 1, len(TISSUES) - 1).requires_grad_(False)
            nn.init.zeros_(self.unusual.weight)
            nn.init.zeros_(self.unusual.bias)
        if told.edges:
            # Fitted to the edges of people and of made-up ones; no gradient reaches it.
            self.edges = nn.Linear(EDGE_NUMBERS, part).requires_grad_(False)

    def forward(self, images: torch.Tensor) -> Encoded:
        """Embeddings and pyramids of a batch."""
        levels = [self.stem(self._seen(images))]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        tissues = self.reader(images) if self.settings.tissues else None
        return Encoded(self._embedding(images, levels[-1], tissues), tuple(levels), tissues)

    def _seen(self, images: torch.Tensor) -> torch.Tensor:
        """What the twins see of the input."""
        size = self.settings.trunk_voxels
        if not size:
            return images
        for axis in range(2, images.dim()):
            means = torch.from_numpy(_area_means(int(images.shape[axis]), size)).to(images)
            images = torch.tensordot(images, means, dims=([axis], [1])).movedim(-1, axis)
        return images

    def _embedding(
        self, images: torch.Tensor, deepest: torch.Tensor, tissues: torch.Tensor | None
    ) -> torch.Tensor:
        # The means tell the whole and its sides, the maximum keeps what is small.
        means = _cell_means(deepest, self.settings.summary_cells).flatten(1)
        summary = torch.cat([means, deepest.flatten(2).amax(dim=2)], dim=1)
        # Neighbours differ by less than half precision tells apart.
        with torch.autocast("cuda" if summary.is_cuda else "cpu", enabled=False):
            joined = self.project(summary.float())
            shares = joined.new_tensor(self.settings.shares).expand(len(joined), -1)
            if tissues is not None:
                told = log_shares(tissues.detach().float().softmax(dim=1))
                around = on_circles(self.alike(told))
                room = self.settings.embedding_size // self.settings.parts - around.shape[1]
                joined = torch.cat([joined, functional.pad(around, (0, room))], dim=1)
                shares = _where_credible(shares, self.unusual(told).square().sum(1))
            if self.settings.edges:
                joined = torch.cat([joined, self.edges(edge_histograms(images.detach().float()))], dim=1)
            parts = joined.unflatten(1, (self.settings.parts, -1))
            return (functional.normalize(parts, dim=2) * shares.sqrt()[:, :, None]).flatten(1)


def _where_credible(shares: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """The shares (B, parts) with the last one's given to the first where volumes are no brain's.

    distance  (B,) Mahalanobis distance, squared, of the volumes from those of the people it was fitted to
    """
    credible = torch.exp(-(distance - USUAL_DISTANCE).clamp(min=0.0) / USUAL_DISTANCE)
    last = shares[:, -1] * credible
    first = shares[:, 0] + shares[:, -1] - last
    return torch.cat([first[:, None], shares[:, 1:-1], last[:, None]], dim=1)


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """One level of a pyramid: values (C, k, j, i) and where they lie; k is 1 for a radiograph."""

    values: torch.Tensor
    grid: Grid


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder knows of one scan.

    embedding   (D,) float32, unit norm, read-only
    pyramid     finest level first
    encoder_id  name and digest of the weights; only features of one encoder can be compared
    """

    embedding: NDArray[np.float32]
    pyramid: tuple[FeatureMap, ...]
    encoder_id: str


@dataclass(frozen=True)
class SamePatient:
    """From the distance of two scans to the probability that both are of one patient.

    even_at    distance of the first parts at which one patient and two are as likely
    steepness  of the logistic curve, per unit of distance
    region     of the body that it was measured on; elsewhere it means nothing
    """

    even_at: float
    steepness: float
    region: str

    def probability(self, distance: float) -> float:
        """0..1, where beforehand both were as likely."""
        return 1.0 / (1.0 + math.exp(min(700.0, self.steepness * (distance - self.even_at))))


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network with its weights, ready to encode volumes.

    encoder_id      "name@first12" of the weight file's SHA-256
    weights_sha256  "" where the network was never stored
    same_patient    measured after training; None where it was not
    """

    network: TwinEncoder
    encoder_id: str
    weights_sha256: str = ""
    same_patient: SamePatient | None = None

    @property
    def settings(self) -> EncoderSettings:
        """The architecture."""
        return self.network.settings

    def __call__(self, volume: Volume) -> Features:
        """The features of one volume. Raises WeightsRefused where it is of other dimensions."""
        return self.encode([volume])[0]

    def encode_pair(self, prior: Volume, current: Volume) -> tuple[Features, Features]:
        """The features of two volumes that went through the network together."""
        first, second = self.encode([prior, current])
        return first, second

    def encode(self, volumes: Sequence[Volume]) -> tuple[Features, ...]:
        """The features of each volume, in one batch, or in parts where memory is short.

        Raises WeightsRefused where one is of other dimensions, Unreadable where a
        voxel is not finite, ResourceExhausted where not even one fits.
        """
        for volume in volumes:
            self._check_dimensions(volume)
        if not volumes:
            return ()
        prepared = [prepare(volume, self.settings.preparation) for volume in volumes]
        images = torch.stack([self._image(each) for each in prepared])
        done = zip(encoded_that_fits(self.network, images), prepared, strict=True)
        return tuple(self._features(encoded, n, each.grid) for (encoded, n), each in done)

    def same_patient_probability(self, first: Features, second: Features) -> float | None:
        """The probability that two scans are of one patient; None where it was never measured."""
        if self.same_patient is None:
            return None
        part = len(first.embedding) // self.settings.parts
        return self.same_patient.probability(cosine_distance(first.embedding[:part], second.embedding[:part]))

    def _check_dimensions(self, volume: Volume) -> None:
        if not isinstance(volume, Volume):
            raise TypeError(
                f"an encoder takes a Volume, as read_volume gives it, not {type(volume).__name__}"
            )
        if volume.spatial_dims != self.settings.spatial_dims:
            kinds = {2: "radiographs", 3: "volumes"}
            raise WeightsRefused(
                f"encoder {self.encoder_id!r} is for {kinds[self.settings.spatial_dims]}, the scan has "
                f"{volume.grid.shape[0]} slices; give weights trained on {kinds[volume.spatial_dims]}"
            )

    def _image(self, prepared: Prepared) -> torch.Tensor:
        return prepared.values if self.settings.spatial_dims == 2 else prepared.values[None]

    def _features(self, encoded: Encoded, n: int, grid: Grid) -> Features:
        embedding = encoded.embedding[n].float().cpu().numpy().copy()
        embedding.flags.writeable = False
        maps, seen = [], _coarser(grid, self.settings.trunk_voxels)
        for depth, level in enumerate(encoded.pyramid, 1):
            values = level[n] if self.settings.spatial_dims == 3 else level[n][:, None]
            maps.append(FeatureMap(values, level_grid(seen, tuple(values.shape[1:]), STRIDE**depth)))
        return Features(embedding, tuple(maps), self.encoder_id)


def cosine_distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """1 minus the cosine of two embeddings (D,): 0 alike, 1 unrelated, 2 opposite."""
    product = float(first.astype(np.float64) @ second.astype(np.float64))
    return 1.0 - product / float(np.linalg.norm(first) * np.linalg.norm(second))


def _coarser(grid: Grid, voxels: int) -> Grid:
    """The grid of so many voxels along each axis over the same box; the grid itself for 0."""
    if not voxels:
        return grid
    shape = (1 if grid.is_flat else voxels, voxels, voxels)
    ratio = np.array(grid.shape) / shape
    matrix = grid.world_from_index @ np.diag([*ratio, 1.0])
    matrix[:3, 3] = grid.world([(ratio - 1.0) / 2.0])[0]
    return Grid(shape, matrix)


def level_grid(grid: Grid, shape: tuple[int, ...], stride: int) -> Grid:
    """Where a level of the pyramid lies: every stride-th voxel of the input, from the first.

    Odd kernels padded by half keep the centre of the first output on the first voxel.
    """
    steps = np.array([1 if size == 1 else stride for size in grid.shape], dtype=np.float64)
    return Grid((shape[0], shape[1], shape[2]), grid.world_from_index @ np.diag([*steps, 1.0]))


def log_shares(tissues: torch.Tensor) -> torch.Tensor:
    """(B, TISSUES - 1): logarithms of each tissue's volume over that of the brain.

    tissues  (B, TISSUES, ...), 0..1, of each voxel
    """
    volumes = tissues.flatten(2).mean(2) + LEAST_VOLUME
    # Fluid outside is not counted below the line: label maps differ in how far it reaches.
    brain = volumes[:, 1:].sum(1, keepdim=True) - volumes[:, FLUID : FLUID + 1]
    return (volumes[:, 1:] / brain).log()


def on_circles(scores: torch.Tensor) -> torch.Tensor:
    """(B, 2 L): each standard score (B, L) as a point of a circle, LARGEST_SCORE a right angle.

    The cosine of two such rows is the mean cosine of their scores' angles: people of like scores lie near.
    """
    angles = scores.clamp(-LARGEST_SCORE, LARGEST_SCORE) * (0.5 * math.pi / LARGEST_SCORE)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


@lru_cache(maxsize=8)
def _area_means(size: int, fewer: int) -> NDArray[np.float32]:
    """(fewer, size): what each of fewer voxels over the same length sees of the others, as shares."""
    ends = np.arange(fewer + 1) * size / fewer
    voxels = np.arange(size)
    low = np.maximum(ends[:-1, None], voxels)
    high = np.minimum(ends[1:, None], voxels + 1)
    return ((high - low).clip(min=0.0) * fewer / size).astype(np.float32)


def _cell_means(values: torch.Tensor, cells: int) -> torch.Tensor:
    """(B, C, cells…): means over equal cells that overlap where the size is no multiple."""
    if values.dim() == 4:
        return functional.adaptive_avg_pool2d(values, cells)
    return functional.adaptive_avg_pool3d(values, cells)


def _stage(settings: EncoderSettings, source: int, target: int) -> nn.Module:
    """A strided block and a residual one behind it."""
    return nn.Sequential(_block(settings, source, target, strides=STRIDE), _residual(settings, target))


def _block(settings: EncoderSettings, source: int, target: int, *, strides: int) -> nn.Module:
    # monai takes seconds to import, which a refusal or a help text need not wait for.
    from monai.networks.blocks import Convolution

    return Convolution(settings.spatial_dims, source, target, strides=strides, **_common(settings, target))


def _residual(settings: EncoderSettings, channels: int) -> nn.Module:
    # As above: only who builds a network pays for it.
    from monai.networks.blocks import ResidualUnit

    return ResidualUnit(settings.spatial_dims, channels, channels, subunits=1, **_common(settings, channels))


def _common(settings: EncoderSettings, channels: int) -> dict[str, Any]:
    return {
        "kernel_size": KERNEL,
        "act": "LEAKYRELU",
        "norm": ("GROUP", {"num_groups": settings.norm_groups, "num_channels": channels}),
        "adn_ordering": "NA",
        # The normalisation that follows takes any bias away.
        "bias": False,
    }
