"""What changes in a chest: opacities of the lungs, and fluid that stands from below.

    image -> lung_fields: roughly where -> opacities: patches, wide haze, fluid
          -> each with a size at both visits -> thickness -> absorbed: the image through it
          -> truth: what changed enough to be seen

Images are (J, I), 0..1, bright where much is absorbed. All randomness comes from the
generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional

from medsiam.training.chance import Random, chance, choice, log_uniform, uniform
from medsiam.training.radiograph_geometry import place, splines

# Lungs are large: so many pixels along each axis tell where they are.
COARSE = 64

# Where the chest's box ends: rows and columns with this share brighter than black.
EXPOSED_LEVEL, EXPOSED_SHARE = 0.05, 0.3

# Each lung lies in an ellipse about (across from the midline, down), with half axes across
# and down; all are shares of the chest's box, wide enough for any position.
LUNG_CENTRE, LUNG_REACH = (0.21, 0.42), (0.19, 0.33)

# The spine is the brightest column so near to the middle of the box.
SPINE_WITHIN = 0.12

# Less than this share of its ellipse, and a lung is too opaque to be found by its
# darkness: the middle of the ellipse stands for it.
FOUND_SHARE = 0.2

# Differences of brightness, of the range 0..1: below the first nobody sees them, from
# the second on everybody does.
FAINT, PLAIN = 0.02, 0.08

# Fluid reaches so much beyond the lung seen above it, in pixels of the coarse image.
FLUID_WIDTH = 5

# An opacity at its full size; at other sizes it reaches further or less far.
FULL_SIZE = 1.0

KINDS = ("patch", "haze", "fluid")
CHANGES = ("unchanged", "new", "resolved", "enlarged", "shrunk")


@dataclass(frozen=True)
class DiseaseSettings:
    """Which opacities there are.

    most        opacities in one chest
    patch, haze, fluid  weights of the kinds
    unchanged, new, resolved, enlarged, shrunk  weights of what becomes of them
    weakest, strongest  attenuation of the thickest part, natural logarithm
    growth      largest ratio of sizes between two visits
    """

    most: int = field(default=4, metadata={"range": (1, 20)})
    patch: float = field(default=0.6, metadata={"range": (0.0, 1.0)})
    haze: float = field(default=0.15, metadata={"range": (0.0, 1.0)})
    fluid: float = field(default=0.25, metadata={"range": (0.0, 1.0)})
    unchanged: float = field(default=0.25, metadata={"range": (0.0, 1.0)})
    new: float = field(default=0.2, metadata={"range": (0.0, 1.0)})
    resolved: float = field(default=0.2, metadata={"range": (0.0, 1.0)})
    enlarged: float = field(default=0.175, metadata={"range": (0.0, 1.0)})
    shrunk: float = field(default=0.175, metadata={"range": (0.0, 1.0)})
    weakest: float = field(default=0.2, metadata={"range": (0.01, 3.0)})
    strongest: float = field(default=1.2, metadata={"range": (0.01, 3.0)})
    growth: float = field(default=2.0, metadata={"range": (1.0, 5.0)})


@dataclass(frozen=True, eq=False)
class Opacity:
    """One disease, and how large it is at both visits; 0 where it is not.

    distance   (J, I) from its middle, FULL_SIZE at its border
    substance  (J, I) attenuation where it is thickest
    edge       over which the border fades, as `distance` is measured
    """

    distance: torch.Tensor
    substance: torch.Tensor
    edge: float
    prior_size: float
    current_size: float

    def thickness(self, size: float) -> torch.Tensor:
        """Attenuation (J, I) at a size: nowhere less than at a smaller one."""
        if size == 0.0:
            return torch.zeros_like(self.substance)
        return self.substance * torch.sigmoid((size - self.distance) / self.edge)


def lung_fields(image: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
    """0..1 (J, I): where the lungs probably are, dark regions on both sides of the spine.

    Coarse: it only says where opacities may be put. A lung that is not dark is guessed.

    shape  of the answer, the image's own where None
    """
    small = _shrunk(image, COARSE)
    across, down, inside = _box_frame(small)
    # Ribs and uneven exposure are taken out: lungs are between the two in size.
    flat = _mean_around(small, 3) - _grown(_mean_around(_shrunk(small, COARSE // 4), 7), small.shape)
    lungs = torch.zeros_like(small)
    for side in (-1.0, 1.0):
        far = ((across - side * LUNG_CENTRE[0]) / LUNG_REACH[0]).square() + down.square()
        zone = far < 1.0
        if bool(zone.any()):
            lung = ((flat < _otsu(flat[far < 1.5])) & zone & inside).float()
            lungs += lung if float(lung.sum()) > FOUND_SHARE * float(zone.sum()) else (far < 0.5).float()
    lungs = _mean_around(lungs.clamp_(max=1.0), 5)
    return _grown(lungs, image.shape if shape is None else shape)


def draw_opacities(lungs: torch.Tensor, settings: DiseaseSettings, random: Random) -> tuple[Opacity, ...]:
    """One opacity or more in the lungs (J, I), each of a kind and with a change by chance.

    They are smooth: lungs at half the image's resolution serve as well, four times as fast.
    """
    return tuple(_drawn(lungs, settings, random) for _ in range(1 + choice(settings.most, random)))


def thickness(opacities: Sequence[Opacity], which: str, shape: Sequence[int]) -> torch.Tensor:
    """Attenuation of this shape (J, I), of all of them at the visit "prior" or "current"."""
    total = torch.zeros(1, 1)
    for one in opacities:
        total = total + one.thickness(one.prior_size if which == "prior" else one.current_size)
    return _grown(total, shape)


def absorbed(image: torch.Tensor, attenuation: torch.Tensor) -> torch.Tensor:
    """The image seen through an attenuation: least is added where most is absorbed already."""
    return image + (1.0 - image) * -torch.expm1(-attenuation)


def truth(
    image: torch.Tensor, prior: torch.Tensor, current: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """0..1 (J, I) each: what appeared, what resolved between two attenuations, as far as it can be seen."""
    change = absorbed(image, current) - absorbed(image, prior)
    appearing, resolving = (((way - FAINT) / (PLAIN - FAINT)).clamp(0.0, 1.0) for way in (change, -change))
    return appearing, resolving


def _drawn(lungs: torch.Tensor, settings: DiseaseSettings, random: Random) -> Opacity:
    kind = KINDS[_weighted([getattr(settings, name) for name in KINDS], random)]
    change = CHANGES[_weighted([getattr(settings, name) for name in CHANGES], random)]
    distance, substance, edge = {"patch": _patch, "haze": _haze, "fluid": _fluid}[kind](lungs, random)
    small = FULL_SIZE / uniform(min(1.3, settings.growth), settings.growth, random)
    prior, current = {
        "unchanged": (FULL_SIZE, FULL_SIZE),
        "new": (0.0, FULL_SIZE),
        "resolved": (FULL_SIZE, 0.0),
        "enlarged": (small, FULL_SIZE),
        "shrunk": (FULL_SIZE, small),
    }[change]
    strength = log_uniform(settings.weakest, settings.strongest, random)
    return Opacity(distance, strength * substance, edge, prior, current)


def _patch(lungs: torch.Tensor, random: Random) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A spot with an uneven border, from a nodule to a lobe."""
    offset = place(lungs.shape) - _spot(lungs, random)
    i, j = offset.unbind(2)
    radius, angle = log_uniform(0.06, 0.4, random), uniform(0.0, math.pi, random)
    long, short = radius * uniform(1.0, 1.5, random), radius * uniform(0.7, 1.0, random)
    along, across = i * math.cos(angle) + j * math.sin(angle), j * math.cos(angle) - i * math.sin(angle)
    distance = ((along / long).square() + (across / short).square()).sqrt()
    # Small spots are round, consolidations are not.
    uneven = uniform(0.1, 0.4, random) * min(1.0, radius / 0.15)
    distance = distance + uneven * splines(lungs.shape, 6 + choice(10, random), random)[0]
    return distance, _tissue(lungs, random), uniform(0.08, 0.3, random)


def _haze(lungs: torch.Tensor, random: Random) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Much of one lung or of both, here more and there less."""
    distance = (
        FULL_SIZE + 0.5 * splines(lungs.shape, 4 + choice(3, random), random)[0] - uniform(0.0, 0.6, random)
    )
    reach = lungs
    if chance(0.5, random):
        middle = _middle(lungs)
        side = 1.0 if chance(0.5, random) else -1.0
        reach = lungs * torch.sigmoid(20.0 * side * (place(lungs.shape)[..., 0] - middle))
    return distance, _tissue(reach, random), uniform(0.2, 0.5, random)


def _fluid(lungs: torch.Tensor, random: Random) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Fluid at the base of one lung, whose level climbs at the chest wall; lying, it fades upwards."""
    i, j = place(lungs.shape).unbind(2)
    side = 1.0 if chance(0.5, random) else -1.0
    outwards = side * (i - _middle(lungs))
    lung = lungs * (outwards > 0.0)
    if float(lung.sum()) == 0.0:
        lung = lungs
    held = lung > 0.3
    rows, columns = held.any(dim=1).nonzero(), held.any(dim=0).nonzero()
    if len(rows) == 0:
        return torch.full_like(i, 9.0), torch.zeros_like(i), 1.0
    top, bottom = float(j[int(rows[0]), 0]), float(j[int(rows[-1]), 0])
    width = max(float(i[0, int(columns[-1])] - i[0, int(columns[0])]), 0.05)
    level = (bottom - top) * uniform(0.15, 0.6, random)
    climb = uniform(0.3, 1.0, random) * (outwards.clamp(min=0.0) / width).square().clamp(max=2.0)
    distance = (bottom - j) / max(level, 0.05) - climb
    # It fills the angle beside the diaphragm, a little lower than the dark lung.
    wide = functional.max_pool2d(_shrunk(lung, COARSE)[None, None], FLUID_WIDTH, 1, FLUID_WIDTH // 2)[0, 0]
    return distance, _tissue(_grown(wide, lungs.shape), random), uniform(0.05, 0.5, random)


def _tissue(where: torch.Tensor, random: Random) -> torch.Tensor:
    """0 and up (J, I): as much as there is lung, uneven as diseased lung is."""
    coarse = splines(where.shape, 12 + choice(12, random), random)[0]
    fine = splines(where.shape, 30 + choice(30, random), random)[0]
    rough = uniform(0.0, 0.35, random)
    return where * (1.0 + rough * (coarse + 0.6 * fine)).clamp_(0.1, 2.0)


def _spot(lungs: torch.Tensor, random: Random) -> torch.Tensor:
    """(2,) a position within the lungs, or anywhere in the middle where there are none."""
    step = max(1, lungs.shape[0] // COARSE)
    weight = lungs[::step, ::step].flatten()
    if float(weight.sum()) <= 0.0:
        return torch.rand(2, generator=random) - 0.5
    spots = place(lungs.shape)[::step, ::step].reshape(-1, 2)
    return spots[int(weight.multinomial(1, generator=random))]


def _middle(lungs: torch.Tensor) -> float:
    """Where along i both lungs together have their middle."""
    columns = lungs.sum(dim=0)
    total = float(columns.sum())
    return float(columns @ place(lungs.shape)[0, :, 0]) / total if total > 0.0 else 0.0


def _weighted(weights: list[float], random: Random) -> int:
    return int(torch.tensor(weights).multinomial(1, generator=random))


def _box_frame(small: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Across from the spine, down from the lungs' middle in their half heights, and the chest's box."""
    shown = small > EXPOSED_LEVEL
    inside, sides = torch.zeros_like(shown), []
    for axis in (0, 1):
        lines = (shown.float().mean(dim=1 - axis) > EXPOSED_SHARE).nonzero()
        first, last = (int(lines[0]), int(lines[-1])) if len(lines) else (0, COARSE - 1)
        sides.append((first, last - first + 1))
    (top, height), (left, width) = sides
    # A lung may be as black as what lies beyond: only the box tells them apart.
    inside[top : top + height, left : left + width] = True
    columns = _mean_around(small, 5)[top + height // 5 : top + height // 5 * 3 + 1].mean(dim=0)
    across = (torch.arange(COARSE) - left + 0.5) / width - 0.5
    near = columns.masked_fill(across.abs() > SPINE_WITHIN, -1.0)
    across = across - across[int(near.argmax())]
    down = ((torch.arange(COARSE) - top + 0.5) / height - LUNG_CENTRE[1]) / LUNG_REACH[1]
    return across[None, :], down[:, None], inside


def _mean_around(image: torch.Tensor, width: int) -> torch.Tensor:
    """Means over a square of this odd width; at the border over what there is of it."""
    return functional.avg_pool2d(image[None, None], width, 1, width // 2, count_include_pad=False)[0, 0]


def _shrunk(image: torch.Tensor, size: int) -> torch.Tensor:
    """(size, size) means."""
    return functional.adaptive_avg_pool2d(image[None, None], size)[0, 0]


def _grown(image: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(J, I), linear between the pixels' centres."""
    return functional.interpolate(image[None, None], size=tuple(shape), mode="bilinear")[0, 0]


def _otsu(values: torch.Tensor) -> float:
    """The level that parts the values best in two (Otsu 1979, IEEE Transactions SMC 9)."""
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values, bins=COARSE, min=low, max=high)
    middles = low + (torch.arange(COARSE) + 0.5) * ((high - low) / COARSE)
    below = counts.cumsum(0)
    sums = (counts * middles).cumsum(0)
    apart = (sums * below[-1] - sums[-1] * below).square() / (below * (below[-1] - below)).clamp(min=1e-6)
    return float(middles[int(apart.argmax())])
