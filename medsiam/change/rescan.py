"""A scan as it would look had the patient been scanned again and nothing had changed.

    this pair's difference -> its noise, and how far its edges lie off each other
    one scan, its edges moved so far, noise made on the other scan's own voxels -> its pseudo-rescan
    (scan, pseudo-rescan) -> the same steps as the pair itself

What two acquisitions leave of their difference after registration and equalising is
measured in the pair, not assumed: the part that grows with the steepness of the image
(registration, slice position, resolution) and the part that does not (noise, contrast).
The typical difference is used, which real change, rare among the voxels, does not move.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from medsiam.change.difference import steepness
from medsiam.pairing.deformable import displaced
from medsiam.pairing.intensity import curve, median, some_of
from medsiam.pairing.values import Pair
from medsiam.sampling import Field, sample, smooth, stretched
from medsiam.volume import Matrix, Volume

Base = Literal["prior", "current"]

# Classes of steepness in which the typical difference is read off.
CLASSES = 40
# How far edges lie off each other differs from place to place. Lengths (mm) over which it does, and
# each one's share of the variance, read off windowed displacements of two real pairs, which halve
# in variance with each doubling of the window. What is left moves all alike (SHIFT_SHARE), or is told
# apart from voxel to voxel (GRAIN_SHARE): noise in proportion to the edge.
WAVES_MM, WAVE_SHARES, SHIFT_SHARE, GRAIN_SHARE = (8.0, 16.0), (0.25, 0.15), 0.1, 0.5
# The deviation that Immerkaer's mask makes of noise of deviation one.
ROUGHNESS_GAIN = 6.0
# A median of absolute values times this is the deviation of a normal distribution.
TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class AcquisitionGap:
    """What the acquisitions alone make of a pair's difference, smoothed as `measure_difference` smooths.

    noise    deviation where the image is flat, in units of the typical tissue value
    edge_mm  how far edges lie off each other: deviation along the gradient
    """

    noise: float
    edge_mm: float


def measured_gap(pair: Pair, contrast: Field, mean: Field) -> AcquisitionGap:
    """The gap of a pair: a line fitted to the squared typical difference over squared steepness.

    contrast  (K, J, I) current minus prior, smoothed;  mean  of both, smoothed alike
    """
    tissue = torch.from_numpy(pair.tissue)
    per_mm = steepness(mean) / float(pair.grid.spacing_mm[-1])
    some = some_of(tissue)
    places, medians = curve(some(per_mm), some(contrast).abs(), CLASSES)
    variance = (TO_DEVIATION * medians) ** 2
    # The steepest tenth holds the rim of the brain, where the region itself is uncertain.
    kept = slice(0, max(2, int(0.9 * len(places))))
    design = np.stack([np.ones_like(places), places**2], axis=1)[kept]
    flat, slope = np.linalg.lstsq(design, variance[kept], rcond=None)[0]
    flat = flat if flat > 0.0 else float(variance[: max(1, len(variance) // 10)].mean())
    return AcquisitionGap(noise=float(np.sqrt(flat)), edge_mm=float(np.sqrt(max(slope, 0.0))))


def own_noise(pair: Pair, rescanner: Rescanner) -> float:
    """The noise that both scans bring along, as it would stand in `AcquisitionGap.noise`.

    What differs between neighbours in more than a plane's slope is noise (Immerkaer 1996,
    Computer Vision and Image Understanding 64); it is then smoothed as everything is.
    """
    total = 0.0
    for number, volume, motion in rescanner.ways:
        values = torch.tensor(volume.array)
        rough = _bent(_bent(values, 1), 2).abs()
        some = some_of(torch.from_numpy(pair.tissue))
        told = [some(sample(field, volume.grid, pair.grid, motion)) for field in (rough, values)]
        typical = median(told[1])
        noise = TO_DEVIATION * median(told[0]) / ROUGHNESS_GAIN
        total += (noise / max(typical, 1e-6) * rescanner.grain_deviation(number, volume, motion)) ** 2
    return float(np.sqrt(total))


def _bent(values: Field, axis: int) -> Field:
    """Second differences along an axis; along both of a slice they are Immerkaer's mask."""
    before = torch.roll(values, 1, axis)
    before.select(axis, 0).zero_()
    after = torch.roll(values, -1, axis)
    after.select(axis, -1).zero_()
    return before.add_(after).sub_(values, alpha=2.0)


class Rescanner:
    """Makes pseudo-rescans of one pair; what they share is made once.

    gap          of the pair, which every rescan reproduces
    smoothing    sigma in voxels with which the gap was measured
    """

    def __init__(self, pair: Pair, gap: AcquisitionGap, smoothing: tuple[float, float, float]) -> None:
        self.pair, self.gap, self.smoothing = pair, gap, smoothing
        # The digest of a scan that brings none takes as long as a rescan of it.
        numbers = _number_of(pair.prior), _number_of(pair.current)
        self._number = {"prior": numbers[0], "current": numbers[1]}
        motions = pair.prior_from_half, pair.current_from_half
        # Each scan's number, voxels and scan_from_half; in an order that neither as prior or current tells.
        self.ways = sorted(zip(numbers, pair.seen, motions, strict=True), key=lambda way: way[0])

    def rescan(self, base: Base, seed: int) -> Pair:
        """A scan of the pair beside its pseudo-rescan, in the places that the pair has for them.

        The same scan and seed give the same rescan whether it is the prior or the current.
        """
        pair = self.pair
        half = pair.prior_half if base == "prior" else pair.current_half
        random = np.random.default_rng([seed, self._number[base]])
        still = torch.tensor(half)
        moved = still + self._edges(still, random) + self.gap.noise * self._grain(random)
        both = (still, moved) if base == "prior" else (moved, still)
        return replace(pair, prior_half=both[0].numpy(), current_half=both[1].numpy())

    def grain_deviation(self, number: int, volume: Volume, motion: Matrix) -> float:
        """What is left of noise of deviation one once a scan is brought here and smoothed."""
        random = np.random.default_rng(number)
        grains = torch.from_numpy(random.standard_normal(volume.grid.shape, dtype=np.float32))
        here = smooth(sample(grains, volume.grid, self.pair.grid, motion), self.smoothing)
        return float(here[torch.from_numpy(self.pair.tissue)].std())

    def _edges(self, still: Field, random: np.random.Generator) -> Field:
        """The difference that edges lying off by the gap's distance make."""
        shift = torch.from_numpy(random.standard_normal((3, 1, 1, 1)).astype(np.float32))
        way_mm = shift * np.sqrt(SHIFT_SHARE)
        for length_mm, share in zip(WAVES_MM, WAVE_SHARES, strict=True):
            way_mm = way_mm + self._waves(3, length_mm, random) * np.sqrt(share)
        way_mm = way_mm * self.gap.edge_mm
        spacing_mm = float(self.pair.grid.spacing_mm[-1])
        made = displaced(still, way_mm, spacing_mm) - still
        grain = self._grain(random) * steepness(smooth(still, self.smoothing)) / spacing_mm
        made = made + np.sqrt(GRAIN_SHARE) * self.gap.edge_mm * grain
        achieved = measured_gap(self.pair, smooth(made, self.smoothing), smooth(still, self.smoothing))
        return made * (self.gap.edge_mm / max(achieved.edge_mm, 1e-3))

    def _grain(self, random: np.random.Generator) -> Field:
        """Noise made on both scans' own voxels, brought here as they were; smoothed, its deviation is 1."""
        pair = self.pair
        made = torch.zeros(pair.grid.shape)
        for _, volume, motion in self.ways:
            grains = torch.from_numpy(random.standard_normal(volume.grid.shape, dtype=np.float32))
            made += sample(grains, volume.grid, pair.grid, motion)
        inside = smooth(made, self.smoothing)[torch.from_numpy(pair.tissue)]
        return made / max(float(inside.std()), 1e-6)

    def _waves(self, count: int, length_mm: float, random: np.random.Generator) -> Field:
        """Smooth fields (count, K, J, I) of mean 0 and deviation 1, told apart over this length."""
        grid = self.pair.grid
        coarse = [
            max(4, int(np.ceil(size * step / length_mm)) + 3) if size > 1 else 1
            for size, step in zip(grid.shape, grid.spacing_mm, strict=True)
        ]
        knots = torch.from_numpy(random.standard_normal((count, *coarse)).astype(np.float32))
        fields = stretched(knots, grid.shape, corners=True)
        return (fields - fields.mean()) / fields.std().clamp_min(1e-6)


def _number_of(volume: Volume) -> int:
    """A number that only this scan has, so that its rescan hangs on nothing else."""
    known = volume.acquisition.sha256 or hashlib.sha256(volume.array.tobytes()).hexdigest()
    return int(known[:15], 16)
