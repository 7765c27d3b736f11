"""How the brain moved between two scans: a symmetric deformation in their halfway space.

    two scans -> working grid, gains equal -> local least squares -> displacement
              -> both warped by half of it -> again, robustly -> Deformation

In a Gaussian window about each node the difference of the scans is explained by a
shift of the tissue (Lucas and Kanade 1981), by the brain's surface going back along its
own normal, and by a gain and an offset. The second is what atrophy does: both banks of
a sulcus and both walls of a ventricle part, which no smooth displacement can show.
Nothing is penalised but what the window does not determine, so that little is held back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import fft

from medsiam.kernels import looked_up, product_sums
from medsiam.pairing.intensity import median, thinned
from medsiam.sampling import Field, smooth, stretched

# Smallest share of a feature's largest power that a window must hold to determine it.
RIDGE = 1e-3
# Tukey's biweight at this many robust deviations takes lesions out of the fit.
TUKEY_CUTOFF = 4.685
# The network's brain, smoothed by RIM_MM, ends between these probabilities: its 3 mm
# voxels blur the rim, and below lie the meninges.
RIM_MM, RIM = 1.0, (0.3, 0.7)
# Fluid around the brain belongs to the fit as far as this probability reaches.
AROUND_MM, AROUND = 1.5, 0.25
# Normals are those of a surface this smooth.
SURFACE_MM = 1.0
# Atrophy differs from place to place by this factor (deviation of its logarithm).
UNEVEN = 0.5
# Voxels whose products are added up together along two axes: far fewer than a window holds.
BLOCK = 2
# Fluid takes up what tissue near it gives, over this sigma.
SHARED_MM = 6.0


@dataclass(frozen=True)
class DeformationSettings:
    """How finely the deformation is sought.

    spacing_mm  of the working grid, where the pair's own is not coarser
    window_mm   sigma of the windows over which the displacement is nearly one
    node_mm     distance of the windows' centres
    passes      times that both scans are warped and fitted again
    """

    spacing_mm: float = field(default=1.5, metadata={"range": (0.5, 8.0)})
    window_mm: float = field(default=8.0, metadata={"range": (1.0, 100.0)})
    node_mm: float = field(default=6.0, metadata={"range": (1.0, 100.0)})
    passes: int = field(default=2, metadata={"range": (1, 20)})


@dataclass(frozen=True, eq=False)
class BrainScans:
    """Two scans of a brain on one cubic working grid in the halfway space.

    prior, current  (K, J, I) in one unit;  brain  probability, fluid within it counted
    fluid, tissue   values of pure fluid and of the brain's own tissue beside it
    """

    prior: Field
    current: Field
    brain: Field
    fluid: float
    tissue: float
    spacing_mm: float


@dataclass(frozen=True, eq=False)
class Deformation:
    """Where the tissue went: from place - displacement / 2 to place + displacement / 2.

    displacement  (3, K, J, I) mm along k, j, i, from the prior to the current scan
    parenchyma    (K, J, I) share of brain tissue at the midway place
    mean          of both scans, each warped by half the way
    residual      current minus prior that the displacement, gain and offset leave
    """

    displacement: Field
    parenchyma: Field
    mean: Field
    residual: Field


class Windows:
    """Gaussian windows on a coarse lattice of nodes over a grid, made once for all sums."""

    def __init__(self, shape: tuple[int, ...], spacing_mm: float, settings: DeformationSettings) -> None:
        self.gather: list[Field] = []
        self.spread: list[Field] = []
        for size in shape:
            place = np.arange(size) * spacing_mm
            nodes = np.arange(math.ceil(place[-1] / settings.node_mm) + 1) * settings.node_mm
            nodes = nodes - (nodes[-1] - place[-1]) / 2.0
            away = nodes[:, None] - place[None, :]
            gaussian = np.exp(-0.5 * (away / settings.window_mm) ** 2)
            if len(self.gather) < 2:  # a sum over a block counts as if it lay evenly in it
                starts = np.arange(0, size, BLOCK)
                gaussian = np.add.reduceat(gaussian, starts, axis=1) / np.diff([*starts, size])
            linear = np.clip(1.0 - np.abs(away.T) / settings.node_mm, 0.0, None)
            linear /= linear.sum(axis=1, keepdims=True)
            self.gather.append(torch.from_numpy(gaussian.astype(np.float32)))
            self.spread.append(torch.from_numpy(linear.astype(np.float32)))

    def sums(self, blocks: Field) -> Field:
        """Weighted sums in the window of each node, of fields (C, k, j, I) summed over blocks of K and J."""
        return _mapped(self.gather, blocks)

    def between(self, values: Field) -> Field:
        """Values (C, nodes …) at every voxel, linear between the nodes."""
        return _mapped(self.spread, values)


def deformation(scans: BrainScans, settings: DeformationSettings) -> Deformation:
    """The displacement that takes the prior to the current scan, and what it leaves.

    Exchanging the scans changes the sign of the displacement and of nothing else.
    """
    step = scans.spacing_mm
    around = (smooth(scans.brain, (AROUND_MM / step,) * 3) > AROUND).float()
    windows = Windows(scans.prior.shape, step, settings)
    way = torch.zeros(3, *scans.prior.shape)
    weight, residual = around, torch.zeros_like(scans.prior)
    mean = 0.5 * (scans.prior + scans.current)
    for count in range(settings.passes):
        prior, current = scans.prior, scans.current
        if count:
            prior, current = displaced(prior, -0.5 * way, step), displaced(current, 0.5 * way, step)
            weight = around * _biweight(residual, around)
        mean = 0.5 * (prior + current)
        update, residual = _fitted(mean, current - prior, weight, scans, windows)
        way = way + update
    return Deformation(way, parenchyma(mean, scans), mean, residual)


def parenchyma(image: Field, scans: BrainScans) -> Field:
    """Share 0..1 of brain tissue in each voxel of an image: linear from fluid to tissue."""
    share = ((image - scans.fluid) / (scans.tissue - scans.fluid)).clamp(0.0, 1.0)
    low, high = RIM
    rim = (smooth(scans.brain, (RIM_MM / scans.spacing_mm,) * 3) - low) / (high - low)
    return share * rim.clamp(0.0, 1.0)


def displaced(image: Field, way_mm: Field, spacing_mm: float) -> Field:
    """The image (K, J, I) sampled at place + way (3, K, J, I), linear, edges repeated."""
    way = (way_mm / spacing_mm).expand(3, *image.shape).contiguous()
    return torch.from_numpy(looked_up(image.contiguous().numpy(), way.numpy()))


def slope(field: Field, spacing_mm: float) -> Field:
    """Gradient (3, K, J, I) per mm."""
    return torch.stack(torch.gradient(field)) / spacing_mm


def flux(share: Field, way_mm: Field, step_mm: float) -> float:
    """Volume (voxels) by which tissue of this share grows: its surface moved along the way."""
    return -float((slope(share, step_mm) * way_mm).sum(dtype=torch.float64))


def shrinking_way(share: Field, scans: BrainScans, percent: float, random: torch.Generator) -> Field:
    """A displacement (3, K, J, I) in mm that changes the tissue's volume by so many percent.

    Tissue shrinks, unevenly, and the fluid next to it takes its place: the gradient of the
    potential whose Laplacian is that, after Karaçali and Davatzikos 2006, IEEE
    Transactions on Medical Imaging 25.
    """
    step = scans.spacing_mm
    sigma = (SHARED_MM / step,) * 3
    fluid = (scans.brain.clamp(0.0, 1.0) - share).clamp_min(0.0)
    given = share * torch.exp(UNEVEN * waves(share.shape, 40.0 / step, random))
    taken = fluid * smooth(smooth(given, sigma) / smooth(fluid, sigma).clamp_min(0.02), sigma)
    taken = taken * (given.sum() / taken.sum().clamp_min(1e-6))
    way = slope(_potential(taken - given, step), step)
    within = smooth((scans.brain > 0.3).float(), (2.0 / step,) * 3)
    way = way * ((within - 0.02) / 0.3).clamp(0.0, 1.0)
    ratio = math.log1p(percent / 100.0) if percent else 0.0
    return way * (ratio * float(share.double().sum()) / flux(share, way, step))


def _potential(laplacian: Field, step_mm: float) -> Field:
    """The field whose discrete Laplacian is given, flat at the box's walls."""
    waves = [2.0 * np.cos(np.pi * np.arange(n) / n) - 2.0 for n in laplacian.shape]
    power = (waves[0][:, None, None] + waves[1][None, :, None] + waves[2][None, None, :]) / step_mm**2
    power[0, 0, 0] = 1.0
    spectrum = fft.dctn(laplacian.numpy()) / power.astype(np.float32)
    spectrum[0, 0, 0] = 0.0
    return torch.from_numpy(fft.idctn(spectrum).astype(np.float32))


def waves(shape: Sequence[int], length_voxels: float, random: torch.Generator) -> Field:
    """A smooth field (K, J, I) of deviation about one that changes over this length."""
    knots = [max(2, math.ceil(size / length_voxels) + 1) for size in shape]
    drawn = stretched(torch.randn(knots, generator=random), shape, corners=True)
    return drawn / drawn.square().mean().sqrt().clamp_min(1e-6)


def _mapped(matrices: list[Field], field: Field) -> Field:
    k, j, i = matrices
    moved = j @ (field @ i.T)
    flat = k @ moved.reshape(*moved.shape[:-3], moved.shape[-3], -1)
    return flat.reshape(*moved.shape[:-3], k.shape[0], *moved.shape[-2:])


def _fitted(
    mean: Field, difference: Field, weight: Field, scans: BrainScans, windows: Windows
) -> tuple[Field, Field]:
    """The displacement (3, K, J, I) in mm that explains a difference, and what it leaves."""
    step = scans.spacing_mm
    edges = slope(mean, step)
    inward = slope(smooth(parenchyma(mean, scans), (SURFACE_MM / step,) * 3), step)
    features = torch.stack([*edges, (edges * inward).sum(0), mean, torch.ones_like(mean)])
    values = windows.between(_solved(features, -difference, weight, windows))
    residual = difference + (values * features).sum(0)
    return values[:3] + values[3] * inward, residual


def _solved(features: Field, target: Field, weight: Field, windows: Windows) -> Field:
    """Weighted least squares at each node: (C, nodes …) coefficients of the features."""
    count = len(features)
    wanted, trust = (field.contiguous().numpy() for field in (target, weight))
    products = product_sums(features.numpy(), wanted, trust, BLOCK)
    sums = windows.sums(torch.from_numpy(products)).double()
    # In the order of `product_sums`: of each row the right side, then the upper half of the matrix.
    starts = [row * (2 * count + 3 - row) // 2 for row in range(count)]
    right = sums[starts]
    rows, columns = np.triu_indices(count)
    upper = [starts[row] + 1 + column - row for row, column in zip(rows, columns, strict=True)]
    places = np.zeros((count, count), dtype=np.int64)
    places[rows, columns] = places[columns, rows] = upper
    matrix = sums[torch.from_numpy(places)].permute(2, 3, 4, 0, 1)
    power = matrix.diagonal(dim1=-2, dim2=-1).amax((0, 1, 2))
    matrix = matrix + torch.diag_embed(RIDGE * power + 1e-12)
    solved: Field = torch.linalg.solve(matrix, right.permute(1, 2, 3, 0)).float()
    return solved.permute(3, 0, 1, 2)


def _biweight(residual: Field, inside: Field) -> Field:
    spread = 1.4826 * median(thinned(residual[inside > 0].abs()))
    return (1.0 - (residual / (TUKEY_CUTOFF * max(spread, 1e-6))) ** 2).clamp_min(0.0) ** 2
