"""Lesions of known size put into a pair without change: which sizes are found, and where.

places in the tissue -> soft ellipsoids -> blurred as that scan's slices blur -> added to one scan
found or not, by volume -> a logistic curve -> the volume that is found with a given chance
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special

from medsiam.change.kept import depth_voxels
from medsiam.change.volumes import widened
from medsiam.pairing.slicing import slicings_of, with_like_slices
from medsiam.pairing.values import Pair


@dataclass(frozen=True)
class InjectionSettings:
    """The lesions that are put in.

    count      in one rescan, at most; fewer where they would come near each other
    apart_mm   least distance between two centres
    contrast   to the tissue, in units of the typical tissue value (CT: of 100 HU)
    share      chance to be found that makes a volume the smallest detectable
    """

    count: int = field(default=30, metadata={"range": (3, 200)})
    apart_mm: float = field(default=14.0, metadata={"range": (5.0, 100.0)})
    contrast: float = field(default=0.3, metadata={"range": (0.05, 2.0)})
    share: float = field(default=0.9, metadata={"range": (0.5, 0.99)})


@dataclass(frozen=True, eq=False)
class Injected:
    """A pair with lesions in one of its scans.

    labels  (K, J, I) int32 on the halfway grid, n where lesion n - 1 fills half a voxel or more
    volumes_mm3, thirds   of each: its volume, and the third of the region it lies in
                          (0 lower, 1 middle, 2 upper)
    """

    pair: Pair
    labels: NDArray[np.int32]
    volumes_mm3: tuple[float, ...]
    thirds: tuple[int, ...]


THIRDS = ("lower", "middle", "upper")
# Volumes lie between these multiples of the larger native voxel, and not below the first, mm3.
LEAST_MM3, LEAST_VOXELS, SPAN = 15.0, 4.0, 60.0
# Deviation of the logarithm of an ellipsoid's axes, and half the width of its soft edge in mm.
UNEQUAL, EDGE_MM = 0.2, 0.4
# A lesion's centre lies in parenchyma of this probability, this far inside the region.
PARENCHYMA, DEPTH_MM = 0.7, 5.0
# Slices spread a lesion over this many of their thicknesses beyond it, but for a thousandth of it.
SLICES_REACHED = 1.0
# Where fewer lesions than this could be placed, nothing is said of a region.
FEWEST = 6
# A weak prior that detection rises with the logarithm of the volume, so that a curve of only
# found or only missed lesions stays finite.
RIDGE = 0.05


def injected(
    pair: Pair, settings: InjectionSettings, *, into_prior: bool, bright: bool, random: np.random.Generator
) -> Injected:
    """The pair with lesions in its prior or its current scan.

    bright  all lesions are brighter than the tissue; otherwise each is by chance brighter or darker
    """
    least = max(LEAST_MM3, LEAST_VOXELS * max(v.grid.voxel_ml for v in (pair.prior, pair.current)) * 1e3)
    centres = _centres(pair, settings, random)
    volumes = least * SPAN ** random.random(len(centres))
    signs = np.ones(len(centres)) if bright else random.choice([-1.0, 1.0], len(centres))
    halves = pair.prior_half.copy(), pair.current_half.copy()
    labels = np.zeros(pair.grid.shape, dtype=np.int32)
    for n, (centre, volume, sign) in enumerate(zip(centres, volumes, signs, strict=True), start=1):
        box, share = _ellipsoid(pair, centre, float(volume), random)
        labels[box][share >= 0.5] = n
        wide, added = _as_scanned(pair, box, sign * settings.contrast * share, into_prior=into_prior)
        for half, more in zip(halves, added, strict=True):
            half[wide] += more
    changed = replace(pair, prior_half=halves[0], current_half=halves[1])
    low, high = _extent(pair)
    thirds = np.clip((centres[:, 0] - low) * 3 // max(high - low, 1), 0, 2) if len(centres) else centres
    return Injected(changed, labels, tuple(volumes.tolist()), tuple(int(third) for third in thirds.ravel()))


def met(candidate_labels: NDArray[np.int32], kept: Sequence[int], made: Injected) -> tuple[bool, ...]:
    """Whether one of the kept candidates touches each lesion."""
    touched = np.unique(made.labels[np.isin(candidate_labels, kept) & (made.labels > 0)])
    return tuple(n in touched for n in range(1, len(made.volumes_mm3) + 1))


def volume_found_with(share: float, volumes_mm3: Sequence[float], found: Sequence[bool]) -> float | None:
    """The volume in ml that is found with this chance; None where no such volume was put in.

    From a logistic curve over the logarithm of the volume, by maximum likelihood.
    """
    if len(volumes_mm3) < FEWEST or not any(found):
        return None
    logs, hits = np.log(volumes_mm3), np.array(found, dtype=np.float64)
    middle = float(logs.mean())

    def loss(weights: NDArray[np.float64]) -> float:
        steep, offset = float(np.exp(weights[0])), float(weights[1])
        score = steep * (logs - middle) + offset
        likelihood = hits * special.log_expit(score) + (1.0 - hits) * special.log_expit(-score)
        return float(-likelihood.sum() + RIDGE * (weights @ weights))

    fitted = optimize.minimize(loss, np.array([1.0, 0.0]), method="BFGS").x
    wanted = middle + (special.logit(share) - fitted[1]) / np.exp(fitted[0])
    # Beyond the largest lesion that was put in nothing is known; below the smallest neither.
    if wanted > logs.max():
        return None
    return float(np.exp(max(wanted, logs.min()))) / 1000.0


def _centres(pair: Pair, settings: InjectionSettings, random: np.random.Generator) -> NDArray[np.int64]:
    """Places (n, 3) in voxels, of the three thirds of the region alike."""
    inside = pair.tissue
    if pair.tissue_kinds is not None:
        inside = inside & (pair.tissue_kinds[2:].sum(axis=0) > PARENCHYMA)
    spacing_mm = float(pair.grid.spacing_mm[-1])
    inside = inside & (depth_voxels(pair.tissue) * spacing_mm > DEPTH_MM)
    low, high = _extent(pair)
    edges = np.linspace(low, high, 4).round().astype(int)
    chosen: list[NDArray[np.int64]] = []
    for third in range(3):
        places = np.argwhere(inside[edges[third] : edges[third + 1]])
        places[:, 0] += edges[third]
        begun = len(chosen)
        for place in places[random.permutation(len(places))[: 40 * settings.count]]:
            if len(chosen) - begun >= settings.count // 3:
                break
            near = [float(np.sum((place - other) ** 2)) * spacing_mm**2 for other in chosen]
            if all(distance >= settings.apart_mm**2 for distance in near):
                chosen.append(place)
    return np.array(chosen, dtype=np.int64).reshape(-1, 3)


def _as_scanned(
    pair: Pair, box: tuple[slice, ...], relief: NDArray[np.float32], *, into_prior: bool
) -> tuple[tuple[slice, ...], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """A box around `box`, and what each half shows there of a relief in one of both scans.

    All that is done to a pair's slices is linear, so each lesion goes through it alone: a brain is
    a hundred times larger.
    """
    spacing_mm = float(pair.grid.spacing_mm[-1])
    thickest_mm = max(float(volume.grid.spacing_mm.max()) for volume in (pair.prior, pair.current))
    reach = int(np.ceil(SLICES_REACHED * thickest_mm / spacing_mm)) + 2
    wide = widened(box, reach, pair.grid.shape, flat=False)
    grid = pair.grid.part(wide)
    field = torch.zeros(grid.shape)
    place = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))
    field[place] = torch.from_numpy(relief).float()
    slicings = slicings_of(pair.seen, (pair.prior_from_half, pair.current_from_half), grid)
    shown = slicings[0 if into_prior else 1].shows(field)
    nothing = torch.zeros_like(shown)
    # What the other scan's slices make of it goes through the same step as the pair did.
    prior, current = with_like_slices(*((shown, nothing) if into_prior else (nothing, shown)), slicings)
    return wide, (prior.numpy(), current.numpy())


def _extent(pair: Pair) -> tuple[int, int]:
    """First slice of the region and the one after its last; the halfway grid's k runs upwards."""
    held = np.flatnonzero(pair.tissue.any(axis=(1, 2)))
    return (int(held[0]), int(held[-1]) + 1) if held.size else (0, 1)


def _ellipsoid(
    pair: Pair, centre: NDArray[np.int64], volume_mm3: float, random: np.random.Generator
) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """A box of the halfway grid and each of its voxels' share 0..1 of a soft-edged ellipsoid."""
    axes = np.exp(random.normal(0.0, UNEQUAL, 3))
    radii_mm = (3.0 * volume_mm3 / (4.0 * np.pi)) ** (1.0 / 3.0) * axes / np.prod(axes) ** (1.0 / 3.0)
    spacing_mm = float(pair.grid.spacing_mm[-1])
    middle = centre + random.uniform(-0.5, 0.5, 3)
    margin = int(np.ceil((radii_mm.max() + 4.0 * EDGE_MM) / spacing_mm)) + 1
    box = tuple(
        slice(max(0, int(c) - margin), min(size, int(c) + margin + 1))
        for c, size in zip(centre, pair.grid.shape, strict=True)
    )
    steps = np.ogrid[box]
    squares = [
        ((at - c) * spacing_mm / radius) ** 2 for at, c, radius in zip(steps, middle, radii_mm, strict=True)
    ]
    distance_mm = (np.sqrt(sum(squares)) - 1.0) * float(radii_mm.mean())
    return box, special.expit(-distance_mm / EDGE_MM).astype(np.float32)
