"""Lesions that come, grow, shrink, go or stay: change whose truth is known to the voxel.

    tissue -> centre with room -> wobbly ellipsoid -> share of each voxel at both visits
    -> painted into the prior and the current image; truth = what was gained and lost

A lesion is kept as a small box, so that many of them are cheap. Lesions do not
overlap. All randomness comes from the generator that is passed in, and the same
numbers are drawn for every kind: with the kinds exchanged the truth is exchanged.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as functional

from medsiam.training.chance import Random, chance, choice, log_uniform, smooth_field, uniform

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Kind = Literal["new", "enlarged", "shrunk", "resolved", "unchanged"]
Visit = Literal["prior", "current"]

KINDS: tuple[Kind, ...] = ("new", "enlarged", "shrunk", "resolved", "unchanged")
REVERSED: dict[Kind, Kind] = {
    "new": "resolved",
    "enlarged": "shrunk",
    "shrunk": "enlarged",
    "resolved": "new",
    "unchanged": "unchanged",
}

# Volumes (mm3) below which a share of all changes lies. Measured on the experts'
# masks of white-matter lesion change between two visits of 16 patients with multiple
# sclerosis (Lesjak et al. 2016, Neuroinformatics 14; patients 01 and 19 left out, on
# which this package is tested): 677 pieces, joined over faces, edges and corners, in
# voxels of .9 x .9 x 3.0 mm. The logarithm has mean 3.99 and deviation 1.29, but more
# large ones than a normal distribution would; hence the table.
CHANGE_SHARES = (0.0, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
CHANGE_MM3 = (1.1, 8.4, 12.1, 24.2, 46.0, 113.8, 276.9, 579.0, 1743.1, 6034.0)

# Voxels tried for a centre, and how many of those that hold tissue are looked at.
TRIES, CANDIDATES = 256, 6

# The share of tissue about a centre that makes it good enough to stop looking.
ROOM = 0.8

# Where tissue is scarce a lesion may stretch to this multiple of its radius to reach
# its volume; beyond it would wrap round the folds of the brain, and stays smaller.
LARGEST_LEVEL = 1.4

# Halvings that find the level of a volume: to a thousandth of a radius.
HALVINGS = 12

# What takes less than this share of the volume that was asked is not drawn at all.
LEAST_ACHIEVED = 0.1


@dataclass(frozen=True)
class LesionSettings:
    """How lesions may be.

    count        fewest and most lesions
    new … unchanged  weights of the kinds; they need not add up to 1
    change_ml    smallest and largest change, else drawn as measured (CHANGE_MM3)
    mass         probability of a large lesion in place of a measured size
    mass_ml      its smallest and largest volume
    growth       least and greatest ratio of the larger to the smaller volume
    contrast     least and greatest contrast, in parts of the tissues' range of signal
    bright       probability of a lesion brighter than its tissue
    elongation   greatest ratio of the longest to the shortest axis
    wobble       deviation of the surface from an ellipsoid, in parts of the radius
    edge_mm      narrowest and widest soft edge; at least a voxel, at most a radius
    texture      deviation of the signal inside, in parts of the contrast
    hollow       probability of a core that has lost most of its contrast
    """

    count: tuple[int, int] = (1, 6)
    new: float = 0.3
    enlarged: float = 0.2
    shrunk: float = 0.12
    resolved: float = 0.18
    unchanged: float = 0.2
    change_ml: tuple[float, float] = (0.02, 6.0)
    mass: float = 0.08
    mass_ml: tuple[float, float] = (1.0, 15.0)
    growth: tuple[float, float] = (1.3, 3.0)
    contrast: tuple[float, float] = (0.1, 0.6)
    bright: float = 0.7
    elongation: float = 2.0
    wobble: float = 0.15
    edge_mm: tuple[float, float] = (1.0, 3.0)
    texture: float = 0.2
    hollow: float = 0.2

    def __post_init__(self) -> None:
        if min(self.weights) < 0.0 or sum(self.weights) <= 0.0:
            raise ValueError(f"weights of the kinds are {self.weights}; use 0 or more, and one above 0")
        for name in ("count", "change_ml", "mass_ml", "growth", "contrast", "edge_mm"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} is {(low, high)}; it must be two rising numbers, none negative")
        if min(self.change_ml[0], self.mass_ml[0], self.edge_mm[0]) <= 0.0:
            raise ValueError("change_ml, mass_ml and edge_mm must be above 0")
        if self.growth[0] <= 1.0:
            raise ValueError(f"growth is {self.growth}; it must be above 1, or nothing would change")
        if self.elongation < 1.0:
            raise ValueError(f"elongation is {self.elongation}; it must be 1 or more")

    @property
    def weights(self) -> tuple[float, ...]:
        """One for each of KINDS."""
        return (self.new, self.enlarged, self.shrunk, self.resolved, self.unchanged)


@dataclass(frozen=True, eq=False)
class Lesion:
    """One lesion at both visits, in the box [corner, corner + shape of the shares) of the grid.

    polarity       1 brighter than its tissue, -1 darker
    contrast       mean difference to the tissue, in parts of the tissues' range of signal
    corner         (k, j, i) voxel where the box begins
    prior_share, current_share  0..1 (k, j, i): how much of each voxel it takes
    relief         (k, j, i) difference to the tissue with its sign and texture, same parts
    prior_ml, current_ml        its volumes, sums of the shares
    """

    kind: Kind
    polarity: int
    contrast: float
    corner: Shape
    prior_share: torch.Tensor
    current_share: torch.Tensor
    relief: torch.Tensor
    prior_ml: float
    current_ml: float

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Where in the grid the shares lie."""
        k, j, i = (slice(at, at + n) for at, n in zip(self.corner, self.relief.shape, strict=True))
        return k, j, i

    @property
    def larger_share(self) -> torch.Tensor:
        """The share at the visit at which the lesion is larger; it holds the other."""
        return torch.maximum(self.prior_share, self.current_share)

    def reversed(self) -> Lesion:
        """The same lesion with prior and current exchanged."""
        return replace(
            self,
            kind=REVERSED[self.kind],
            prior_share=self.current_share,
            current_share=self.prior_share,
            prior_ml=self.current_ml,
            current_ml=self.prior_ml,
        )


def draw_lesions(
    places: torch.Tensor, shape: Shape, spacing_mm: Spacing, settings: LesionSettings, random: Random
) -> tuple[Lesion, ...]:
    """Lesions on a grid of the shape, inside the tissue; () where there is none.

    places  bool, or share 0..1 of tissue that lesions may take: (K, J, I), or coarser
            over the same box
    """
    free = places.to(torch.float32, copy=True)
    if tuple(free.shape) != tuple(shape):
        free = functional.interpolate(free[None, None], size=shape, mode="trilinear")[0, 0]
    low, high = settings.count
    lesions = []
    for _ in range(low + choice(high - low + 1, random)):
        lesion = _lesion(free, spacing_mm, settings, random)
        if lesion is not None:
            # Each voxel belongs to one lesion, or its truth would be in doubt.
            free[lesion.box].mul_(lesion.larger_share == 0.0)
            lesions.append(lesion)
    return tuple(lesions)


def painted(
    image: torch.Tensor, lesions: Sequence[Lesion], which: Visit, *, signal_range: float = 1.0
) -> torch.Tensor:
    """The image (K, J, I) with the lesions as they are at one visit.

    signal_range  between the darkest and the brightest tissue, in the image's units

    Paint both visits into one image, before it is deformed: what a lesion looks like
    hangs on the tissue under it, and must be the same twice. No lesion is darker than
    the image's darkest voxel.
    """
    out = image.to(torch.float32, copy=True)
    floor = float(image.min()) if lesions else 0.0
    for lesion in lesions:
        share = lesion.prior_share if which == "prior" else lesion.current_share
        tissue, weight = image[lesion.box], lesion.larger_share
        reference = float((tissue * weight).sum() / weight.sum())
        target = (reference + signal_range * lesion.relief).clamp_min_(floor)
        view = out[lesion.box]
        view += share * (target - view)
    return out


def truth(lesions: Sequence[Lesion], shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """What appears and what resolves from prior to current: shares 0..1 (K, J, I) each."""
    appearing, resolving = torch.zeros(shape), torch.zeros(shape)
    for lesion in lesions:
        gained = lesion.current_share - lesion.prior_share
        for total, share in ((appearing, gained), (resolving, -gained)):
            view = total[lesion.box]
            view.copy_(torch.maximum(view, share))
    return appearing, resolving


def change_ml(random: Random) -> float:
    """The volume of a change in ml, distributed as in patients (CHANGE_MM3)."""
    share = uniform(0.0, 1.0, random)
    after = min(max(bisect.bisect_right(CHANGE_SHARES, share), 1), len(CHANGE_SHARES) - 1)
    low, high = CHANGE_SHARES[after - 1], CHANGE_SHARES[after]
    within = (share - low) / (high - low)
    return CHANGE_MM3[after - 1] ** (1.0 - within) * CHANGE_MM3[after] ** within / 1000.0


@dataclass(frozen=True)
class _Site:
    """Where a lesion comes to lie (a voxel), how large it is, and the grid's spacing."""

    centre: Shape
    radius_mm: float
    spacing_mm: Spacing

    def box(self, reach_mm: torch.Tensor, shape: torch.Size) -> tuple[Shape, Shape]:
        """First and behind the last voxel of what lies within reach (k, j, i) in the grid."""
        half = [math.ceil(mm / step) for mm, step in zip(reach_mm.tolist(), self.spacing_mm, strict=True)]
        low = [max(0, at - n) for at, n in zip(self.centre, half, strict=True)]
        high = [min(size, at + n + 1) for size, at, n in zip(shape, self.centre, half, strict=True)]
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])


@dataclass(frozen=True, eq=False)
class _Blob:
    """A shape before its volume is chosen.

    distance  (k, j, i) from the centre in radii, 1 on the surface
    allowed   (k, j, i) share of tissue that may be taken
    softness  width of the edge in radii
    """

    corner: Shape
    distance: torch.Tensor
    allowed: torch.Tensor
    softness: float

    def share(self, level: float) -> torch.Tensor:
        """Share 0..1 of each voxel within the level."""
        inside = (level - self.distance).div_(self.softness).add_(0.5)
        return inside.clamp_(0.0, 1.0).mul_(self.allowed)

    def share_of_volume(self, voxels: float, within: torch.Tensor | None = None) -> torch.Tensor:
        """The share whose sum is this many voxels, as far as there is room."""
        low, high = -LARGEST_LEVEL, LARGEST_LEVEL
        share = self._bounded(high, within)
        if float(share.sum()) <= voxels:
            return share
        for _ in range(HALVINGS):
            middle = (low + high) / 2.0
            share = self._bounded(middle, within)
            low, high = (middle, high) if float(share.sum()) < voxels else (low, middle)
        return share

    def _bounded(self, level: float, within: torch.Tensor | None) -> torch.Tensor:
        share = self.share(level)
        return share if within is None else torch.minimum(share, within)


def _lesion(
    free: torch.Tensor, spacing_mm: Spacing, settings: LesionSettings, random: Random
) -> Lesion | None:
    """One lesion in what is free; None where no room for it was found."""
    kind = _kind(settings, random)
    larger_ml, ratio = _sizes(kind, settings, random)
    radius_mm = (larger_ml * 1000.0 * 3.0 / (4.0 * math.pi)) ** (1.0 / 3.0)
    centre = _centre(free, radius_mm, spacing_mm, random)
    if centre is None:
        return None
    voxel_ml = math.prod(spacing_mm) / 1000.0
    blob = _blob(free, _Site(centre, radius_mm, spacing_mm), settings, random)
    lopsided = _lopsided(blob, random)
    relief, polarity, contrast = _relief(blob, settings, random)
    larger = blob.share_of_volume(larger_ml / voxel_ml)
    achieved = float(larger.sum())
    if achieved < LEAST_ACHIEVED * larger_ml / voxel_ml:
        return None
    if kind in ("enlarged", "shrunk"):
        other = lopsided.share_of_volume(achieved / ratio, larger)
    else:
        other = larger if kind == "unchanged" else torch.zeros_like(larger)
    prior, current = (larger, other) if kind in ("shrunk", "resolved") else (other, larger)
    volumes = float(prior.sum()) * voxel_ml, float(current.sum()) * voxel_ml
    return _trimmed(Lesion(kind, polarity, contrast, blob.corner, prior, current, relief, *volumes))


def _kind(settings: LesionSettings, random: Random) -> Kind:
    left = uniform(0.0, sum(settings.weights), random)
    for kind, weight in zip(KINDS, settings.weights, strict=True):
        left -= weight
        if left < 0.0:
            return kind
    return max(zip(settings.weights, KINDS, strict=True))[1]


def _sizes(kind: Kind, settings: LesionSettings, random: Random) -> tuple[float, float]:
    """The larger of the two volumes in ml, and its ratio to the smaller where both exist."""
    change = min(max(change_ml(random), settings.change_ml[0]), settings.change_ml[1])
    ratio = log_uniform(*settings.growth, random)
    mass_ml = log_uniform(*settings.mass_ml, random)
    if chance(settings.mass, random):
        return mass_ml, ratio
    # What was measured is the change; of a lesion that grew it is the crust.
    return (change / (1.0 - 1.0 / ratio) if kind in ("enlarged", "shrunk") else change), ratio


def _centre(free: torch.Tensor, radius_mm: float, spacing_mm: Spacing, random: Random) -> Shape | None:
    """A free voxel with room about it, or the roomiest of those looked at."""
    tried = torch.stack([torch.randint(n, (TRIES,), generator=random) for n in free.shape])
    held = free[tuple(tried)] > torch.rand(TRIES, generator=random)
    found = tried[:, held].T[:CANDIDATES].tolist()
    if not found:
        rare = (free > 0.5).nonzero()
        if len(rare) == 0:
            return None
        found = rare[torch.randint(len(rare), (CANDIDATES,), generator=random)].tolist()
    # The cube that fits in the ball.
    half = [round(radius_mm / math.sqrt(3.0) / step) for step in spacing_mm]
    best, most = found[0], -1.0
    for place in found:
        cube = tuple(slice(max(0, at - n), at + n + 1) for at, n in zip(place, half, strict=True))
        room = float(free[cube].mean())
        if room > most:
            best, most = place, room
        if room >= ROOM:
            break
    return best[0], best[1], best[2]


def _blob(free: torch.Tensor, site: _Site, settings: LesionSettings, random: Random) -> _Blob:
    """A wobbly ellipsoid about the site, and the tissue it may take."""
    turn, axes = _ellipsoid(settings, random)
    narrowest = max(site.spacing_mm)
    edge_mm = max(min(uniform(*settings.edge_mm, random), site.radius_mm), narrowest)
    reach = (turn.T.square() * axes.square()).sum(1).sqrt()
    low, high = site.box(reach * (LARGEST_LEVEL * site.radius_mm + edge_mm / 2.0), free.shape)
    place = [
        (torch.arange(a, b) - at - uniform(-0.5, 0.5, random)) * (step / site.radius_mm)
        for a, b, at, step in zip(low, high, site.centre, site.spacing_mm, strict=True)
    ]
    k, j, i = place[0][:, None, None], place[1][None, :, None], place[2][None, None, :]
    square = torch.zeros(1)
    for row, axis in zip(turn.tolist(), axes.tolist(), strict=True):
        square = square + ((row[0] * k + row[1] * j) + row[2] * i).div_(axis).square_()
    wobble = smooth_field(square.shape, 4, random, span=settings.wobble)[0]
    allowed = free[low[0] : high[0], low[1] : high[1], low[2] : high[2]].clone()
    return _Blob(low, square.sqrt_().add_(wobble), allowed, edge_mm / site.radius_mm)


def _ellipsoid(settings: LesionSettings, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (3, 3), one a row, and half axes (3,) of an ellipsoid as large as the unit ball."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=random))[0]
    axes = torch.rand(3, generator=random).mul_(math.log(settings.elongation))
    return turn, (axes - axes.mean()).exp()


def _lopsided(blob: _Blob, random: Random) -> _Blob:
    """The shape of the smaller lesion inside: growth is not the same on all sides."""
    lean = smooth_field(blob.distance.shape, 2, random, span=0.25)[0]
    return replace(blob, distance=blob.distance + lean)


def _relief(blob: _Blob, settings: LesionSettings, random: Random) -> tuple[torch.Tensor, int, float]:
    """The signal against the tissue for each voxel, its sign and its mean size."""
    polarity = 1 if chance(settings.bright, random) else -1
    contrast = uniform(*settings.contrast, random)
    relief = smooth_field(blob.distance.shape, 6, random, span=settings.texture)[0].add_(1.0)
    core = uniform(0.4, 0.9, random)
    if chance(settings.hollow, random):
        relief.sub_((1.0 - blob.distance / 0.7).clamp_(0.0, 1.0).mul_(core))
    # Texture may weaken a lesion, not turn it inside out.
    return relief.clamp_(0.1, 2.0).mul_(polarity * contrast), polarity, contrast


def _trimmed(lesion: Lesion) -> Lesion:
    """The same in the smallest box that holds it."""
    held = lesion.larger_share > 0.0
    sides = []
    for axis in range(3):
        line = held.any(dim=(axis + 1) % 3, keepdim=True).any(dim=(axis + 2) % 3, keepdim=True)
        used = line.flatten().nonzero().flatten()
        sides.append(slice(int(used[0]), int(used[-1]) + 1))
    box = (sides[0], sides[1], sides[2])
    corner = [at + side.start for at, side in zip(lesion.corner, box, strict=True)]
    return replace(
        lesion,
        corner=(corner[0], corner[1], corner[2]),
        prior_share=lesion.prior_share[box].clone(),
        current_share=lesion.current_share[box].clone(),
        relief=lesion.relief[box].clone(),
    )
