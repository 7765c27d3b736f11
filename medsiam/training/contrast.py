"""Any contrast of one anatomy: from a label map, from the image, or from both.

    tissues -> a mean signal each, of a known sequence or invented
            -> the image's own detail within a tissue, kept, weakened or inverted -> grain
    image   -> a random curve, monotonic or not

After SynthSeg (Billot et al. 2023, Medical Image Analysis 86): an encoder that saw
every contrast is tied to none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from medsiam.training.chance import Random, chance, choice, normal, uniform
from medsiam.training.tissues import NUMBER, TISSUES

# Mean signals of common sequences in percent, white matter of T1 near 80. CT as the
# encoder sees its Hounsfield units (preparation.CT_HU). In the order of TISSUES.
# fmt: off
SEQUENCES = {
    "t1":          (0, 20, 22, 52, 78, 62, 52, 76, 70, 10, 45, 90, 35, 15, 52, 22),
    "t1 contrast": (0, 18, 20, 50, 68, 55, 52, 66, 62, 10, 55, 90, 100, 15, 55, 20),
    "flair":       (0, 8, 12, 58, 50, 55, 56, 50, 52, 7, 40, 42, 30, 12, 25, 12),
    "t2":          (0, 95, 90, 55, 38, 44, 52, 38, 42, 6, 30, 55, 20, 95, 30, 90),
    "pd":          (0, 78, 80, 85, 68, 76, 82, 68, 70, 8, 60, 75, 40, 75, 50, 80),
    "ct":          (0, 46.7, 46.8, 51, 49.6, 51, 50.5, 49.6, 50, 92, 52, 34, 53, 47, 86, 46.8),
}
# fmt: on

# Tissues of one kind differ a little in an invented contrast, not wholly.
KINDS = (
    ("cortex", "deep grey", "cerebellar grey"),
    ("white", "cerebellar white", "stem"),
    ("ventricle", "csf", "outer csf"),
)

CURVE_POINTS = 256
# The logarithm of the largest power that bends an image's own contrast.
OWN_BEND = 0.35

# Hounsfield units hardly differ between people, and carry little of an MR's detail.
CT_JITTER, CT_DETAIL = 0.004, 0.04


@dataclass(frozen=True)
class ContrastSettings:
    """How a scan's contrast is drawn.

    own         share of contrasts that are the image's own, bent by a power alone
    curve       share of the rest that are a curve of the image's own values
    known       share of the rest that imitates a known sequence
    jitter      deviation of a known sequence's means, relative
    detail      largest factor on the image's own detail within a tissue
    grain       largest deviation of a tissue's own grain
    scalp       share of contrasts whose fat is suppressed or enhanced
    """

    own: float = field(default=0.0, metadata={"range": (0.0, 1.0)})
    curve: float = field(default=0.3, metadata={"range": (0.0, 1.0)})
    known: float = field(default=0.6, metadata={"range": (0.0, 1.0)})
    jitter: float = field(default=0.12, metadata={"range": (0.0, 1.0)})
    detail: float = field(default=1.2, metadata={"range": (0.0, 3.0)})
    grain: float = field(default=0.04, metadata={"range": (0.0, 0.5)})
    scalp: float = field(default=0.5, metadata={"range": (0.0, 1.0)})


@dataclass(frozen=True, eq=False)
class Contrast:
    """One contrast, the same for every head that is scanned with it.

    means   (T,) signal of each tissue
    detail  factor on the image's deviation from its tissue's mean
    grain   (T,) deviation of the grain
    curve   (CURVE_POINTS,) signal over the image's values 0..1; used without a label map
    by_curve  whether the curve is used even where there is a label map
    is_ct     whether the values stand for Hounsfield units, which no scanner scales
    """

    means: torch.Tensor
    detail: float
    grain: torch.Tensor
    curve: torch.Tensor
    by_curve: bool
    is_ct: bool = False


def draw_contrast(settings: ContrastSettings, random: Random) -> Contrast:
    """A contrast by chance."""
    detail = uniform(-settings.detail, settings.detail, random)
    grain = settings.grain * torch.rand(len(TISSUES), generator=random)
    # Drawn only where it is asked for: other recipes keep their numbers.
    if settings.own > 0.0 and chance(settings.own, random):
        power = math.exp(uniform(-OWN_BEND, OWN_BEND, random))
        # A label map alone, which has no contrast of its own, is painted as a T1.
        means = _imitated("t1", settings.jitter, random).clamp_(0.0, 1.5)
        return Contrast(means, detail, grain, torch.linspace(0, 1, CURVE_POINTS) ** power, True)
    by_curve = chance(settings.curve, random)
    sequence = list(SEQUENCES)[choice(len(SEQUENCES), random)] if chance(settings.known, random) else ""
    if sequence == "ct":
        means = _imitated(sequence, CT_JITTER, random)
        return Contrast(means, CT_DETAIL * detail, CT_DETAIL * grain, _curve(random), False, is_ct=True)
    means = _imitated(sequence, settings.jitter, random) if sequence else _invented(random)
    if chance(settings.scalp, random):
        for name in ("fat", "soft"):
            means[NUMBER[name]] *= uniform(0.1, 2.2, random)
    means[NUMBER["air"]] = 0.0
    return Contrast(means.clamp_(0.0, 1.5), detail, grain, _curve(random), by_curve)


def painted(
    image: torch.Tensor | None,
    tissue: torch.Tensor | None,
    contrast: Contrast,
    random: Random,
    *,
    detail: torch.Tensor | None = None,
) -> torch.Tensor:
    """The anatomy (K, J, I) in this contrast, from 0 up.

    image   0..1, or None where there is a label map alone
    tissue  index into TISSUES, or None where there is an image alone
    detail  what `detail_of` gives for them, where it is at hand
    """
    if image is None and tissue is None:
        raise ValueError("neither image nor tissue")
    if tissue is None or (contrast.by_curve and image is not None):
        assert image is not None
        return contrast.curve[(image * (CURVE_POINTS - 1)).long().clamp_(0, CURVE_POINTS - 1)]
    index = tissue.long()
    signal = contrast.means[index]
    if image is not None:
        signal = signal + contrast.detail * (detail_of(image, tissue) if detail is None else detail)
    grain = contrast.grain * (contrast.means > 0)
    return signal.add_(grain[index] * torch.randn(signal.shape, generator=random)).clamp_(min=0.0)


def detail_of(image: torch.Tensor, tissue: torch.Tensor) -> torch.Tensor:
    """The image's deviation (K, J, I) from the mean of each voxel's tissue."""
    return image - tissue_means(image, tissue)[tissue.long()]


def tissue_means(image: torch.Tensor, tissue: torch.Tensor) -> torch.Tensor:
    """(T,) mean of the image in each tissue, 0 where there is none."""
    index = tissue.flatten().long()
    sums = torch.zeros(len(TISSUES)).index_add_(0, index, image.flatten().float())
    counts = torch.bincount(index, minlength=len(TISSUES))
    return sums / counts.clamp(min=1)


def _imitated(sequence: str, jitter: float, random: Random) -> torch.Tensor:
    table = torch.tensor(SEQUENCES[sequence], dtype=torch.float32) / 100.0
    return table * (1.0 + jitter * torch.randn(len(TISSUES), generator=random))


def _invented(random: Random) -> torch.Tensor:
    means = torch.rand(len(TISSUES), generator=random)
    for first, *others in KINDS:
        for other in others:
            means[NUMBER[other]] = means[NUMBER[first]] + 0.06 * normal(random)
    if chance(0.8, random):
        means[NUMBER["dark"]] *= 0.25
    return means


def _curve(random: Random) -> torch.Tensor:
    """A random curve through 0: a power, a monotonic line of pieces, or one that turns back."""
    kind = choice(3, random)
    places = torch.linspace(0, 1, CURVE_POINTS)
    if kind == 0:
        return places ** float(2.0 ** uniform(-1.2, 1.2, random))
    knots = torch.rand(6, generator=random)
    if kind == 1:
        knots = knots.cumsum(0) / knots.sum()
    knots = torch.cat([torch.zeros(1), knots])
    # Air stays dark in magnitude images, whatever the tissues do.
    position = (places * (len(knots) - 1)).clamp(max=len(knots) - 1.001)
    low = position.long()
    return knots[low] + (position - low) * (knots[low + 1] - knots[low])
