"""What a radiograph shows beside the patient: devices, exposure, processing, frame, letters.

    chest -> with_devices: tubes, cables, electrodes
          -> exposure: resolution, uneven field, grid, noise
          -> processing: the weight of each scale, local spread, the contrast curve
          -> frame -> letters burnt in -> renormalised

Images are (J, I), 0..1, bright where much is absorbed. All randomness comes from the
generator that is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional

from medsiam.encoding.preparation import HIGH_PERCENT, LOW_PERCENT
from medsiam.training.chance import Random, chance, choice, log_uniform, normal, uniform
from medsiam.training.radiograph_change import absorbed
from medsiam.training.radiograph_geometry import frame, place, splines

# Scales of the processing: the finest is two pixels, the coarsest 32.
SCALES = 5

# The curve of a film or a display, as a table over 0..1.
CURVE_ENTRIES, CURVE_KNOTS = 1024, 7

# Every such pixel along each axis decides on the percentiles of an image.
PERCENTILE_STEP = 3

# Dots on a curve, closer than pixels on any that fits the field.
DOTS = 500

# A Gaussian is cut so many deviations from its middle, where it has fallen to a twentieth.
GAUSSIAN_REACH = 2.5

# Letters of 5 x 7 dots, as markers of the side; other writing is drawn at random.
LETTERS = {
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
}


@dataclass(frozen=True)
class ExposureSettings:
    """How differently a chest may be exposed, processed and framed.

    blur       share of images of lower resolution
    uneven     largest deviation of the uneven field, of the range 0..1
    grid       share of images with the lines of a grid
    noise      largest deviation of the noise
    processing deviation of the logarithm of a scale's weight
    levelling  share of images whose local spread is evened out
    curve      deviation of the logarithm of the contrast curve's slopes
    collimated share of images whose frame is cut further
    collimation most that a side is cut, share of the half field
    letters    most markers and lines of writing
    """

    blur: float = field(default=0.3, metadata={"range": (0.0, 1.0)})
    uneven: float = field(default=0.12, metadata={"range": (0.0, 1.0)})
    grid: float = field(default=0.08, metadata={"range": (0.0, 1.0)})
    noise: float = field(default=0.04, metadata={"range": (0.0, 1.0)})
    processing: float = field(default=0.35, metadata={"range": (0.0, 2.0)})
    levelling: float = field(default=0.4, metadata={"range": (0.0, 1.0)})
    curve: float = field(default=0.45, metadata={"range": (0.0, 3.0)})
    collimated: float = field(default=0.6, metadata={"range": (0.0, 1.0)})
    collimation: float = field(default=0.22, metadata={"range": (0.0, 1.0)})
    letters: int = field(default=4, metadata={"range": (0, 20)})


@dataclass(frozen=True)
class DeviceSettings:
    """What lies on or in the patient.

    present     share of images with devices
    lines       most cables, tubes and catheters
    electrodes  most electrodes
    plates      share of images with one large thing: a pacemaker, a ring of tubing
    faintest, strongest  attenuation of a line, natural logarithm
    """

    present: float = field(default=0.7, metadata={"range": (0.0, 1.0)})
    lines: int = field(default=8, metadata={"range": (0, 50)})
    electrodes: int = field(default=5, metadata={"range": (0, 50)})
    plates: float = field(default=0.12, metadata={"range": (0.0, 1.0)})
    faintest: float = field(default=0.1, metadata={"range": (0.01, 5.0)})
    strongest: float = field(default=1.2, metadata={"range": (0.01, 5.0)})


def with_devices(image: torch.Tensor, settings: DeviceSettings, random: Random) -> torch.Tensor:
    """The image with tubes, cables, electrodes and plates over it, or with none."""
    if not chance(settings.present, random):
        return image
    metal = torch.zeros_like(image)
    for _ in range(choice(settings.electrodes + 1, random)):
        _add_disc(metal, uniform(0.006, 0.022, random), log_uniform(0.15, 1.5, random), random)
    if chance(settings.plates, random):
        metal = metal + _plate(image, random)
    count = choice(settings.lines + 1, random)
    if count:
        metal = metal + _lines(image, count, settings, random)
    return absorbed(image, metal)


def acquired(
    image: torch.Tensor, settings: ExposureSettings, random: Random, *, exposed: torch.Tensor | None = None
) -> torch.Tensor:
    """The image (J, I) as a system delivers it: exposed, processed, framed, lettered, 0..1.

    exposed  0..1 (J, I) from `field_of`; None draws one about the whole image
    """
    if exposed is None:
        exposed = field_of(torch.ones_like(image), settings, random)
    image = _exposed(image, settings, random)
    image = _weighted_scales(image, settings, random)
    if chance(settings.levelling, random):
        image = levelled(image, 2 ** (3 + choice(3, random)), uniform(0.1, 0.6, random))
    image = renormalised(image)
    image = curved(image, settings, random)
    # Beyond the shutters all is black, but for a system that leaves them as it saw them.
    beyond = uniform(0.5, 1.0, random) if chance(0.04, random) else uniform(0.0, 0.05, random)
    image = renormalised(torch.lerp(torch.full_like(image, beyond), image, exposed))
    for _ in range(choice(settings.letters + 1, random)):
        image = _lettered(image, random)
    return image


def field_of(inside: torch.Tensor, settings: ExposureSettings, random: Random) -> torch.Tensor:
    """0..1 (J, I): what the shutters leave of what is inside the scan."""
    cut = settings.collimation * uniform(0.1, 1.0, random) if chance(settings.collimated, random) else 0.0
    return frame(inside, cut, random)


def curved(image: torch.Tensor, settings: ExposureSettings, random: Random) -> torch.Tensor:
    """The image through a contrast curve that rises everywhere."""
    slopes = torch.exp(settings.curve * torch.randn(1, 1, CURVE_KNOTS, generator=random))
    slopes = functional.interpolate(slopes, size=CURVE_ENTRIES, mode="linear", align_corners=True)[0, 0]
    table = slopes.cumsum(0)
    table = (table / table[-1]) ** (2.0 ** (settings.curve * normal(random)))
    return table[(image.clamp(0.0, 1.0) * (CURVE_ENTRIES - 1)).long()]


def levelled(image: torch.Tensor, width: int, strength: float) -> torch.Tensor:
    """The image with its local spread evened out, as adaptive equalisation does.

    width  of the neighbourhood in pixels, 4 or more
    """
    small = functional.avg_pool2d(image[None, None], width // 2, ceil_mode=True)
    square = functional.avg_pool2d(image.square()[None, None], width // 2, ceil_mode=True)
    mean, square = (functional.avg_pool2d(each, 3, 1, 1, count_include_pad=False) for each in (small, square))
    spread = (square - mean.square()).clamp_(min=1e-4).sqrt_()
    mean, spread = (
        functional.interpolate(each, size=image.shape, mode="bilinear")[0, 0] for each in (mean, spread)
    )
    # The usual spread in a chest; a floor keeps the noise of what is even from rising.
    gain = ((0.18 + 0.05) / (spread + 0.05)) ** strength
    return mean + (image - mean) * gain


def renormalised(image: torch.Tensor) -> torch.Tensor:
    """0..1 by the percentiles of the preparation, which this stands for."""
    some = image[::PERCENTILE_STEP, ::PERCENTILE_STEP].flatten()
    low = _percentile(some, LOW_PERCENT)
    body = some[some >= some.mean()]
    high = _percentile(body, HIGH_PERCENT) if len(body) else low
    return ((image - low) / max(high - low, 1e-6)).clamp_(0.0, 1.0)


def _exposed(image: torch.Tensor, settings: ExposureSettings, random: Random) -> torch.Tensor:
    if chance(settings.blur, random):
        image = _softened(image, uniform(0.4, 1.6, random))
    uneven = settings.uneven * uniform(0.0, 1.0, random)
    image = image + uneven * splines(image.shape, 2 + choice(3, random), random)[0]
    if chance(settings.grid, random):
        across = place(image.shape)[..., choice(2, random)]
        image = image + uniform(0.005, 0.025, random) * torch.sin(across * uniform(100.0, 330.0, random))
    # Where more is absorbed fewer photons arrive, and the noise is stronger.
    grain = torch.randn(image.shape, generator=random)
    if chance(0.4, random):
        grain = 1.8 * _softened(grain, 0.7)
    noise = settings.noise * uniform(0.0, 1.0, random) ** 2
    return image + noise * (0.5 + 0.7 * image.clamp(0.0, 1.0)) * grain


def _weighted_scales(image: torch.Tensor, settings: ExposureSettings, random: Random) -> torch.Tensor:
    """The image with another weight for each scale of detail.

    After Vuylsteke and Schoeters 1994, Multiscale image contrast amplification, SPIE 2167.
    """
    tilt, lift = settings.processing * normal(random), settings.processing * normal(random)
    levels = [image[None, None]]
    for _ in range(SCALES):
        if min(levels[-1].shape[2:]) < 4:
            break
        levels.append(functional.avg_pool2d(levels[-1], 2, ceil_mode=True))
    mean = image.mean()
    made = mean + (levels[-1] - mean) * math.exp(-0.5 * abs(lift))
    for n in reversed(range(len(levels) - 1)):
        up, size = levels[n + 1], levels[n].shape[2:]
        detail = levels[n] - functional.interpolate(up, size=size, mode="bilinear")
        weight = math.exp(lift - tilt * (n - 1.5) / 1.5 + 0.5 * settings.processing * normal(random))
        made = functional.interpolate(made, size=size, mode="bilinear") + min(weight, 4.0) * detail
    return made[0, 0]


def _lettered(image: torch.Tensor, random: Random) -> torch.Tensor:
    """The image with a letter, a letter in a box, a label or a line of writing near its edge."""
    kind = choice(4, random)
    if kind < 2:
        dots = torch.tensor([[float(dot) for dot in row] for row in LETTERS["LR"[choice(2, random)]]])
    elif kind == 2:
        dots = torch.ones(7 + choice(6, random), 3 + choice(5, random))
    else:
        dots = (torch.rand(6, 8 + choice(24, random), generator=random) < 0.5).float()
    if kind == 1:
        dots = functional.pad(dots, (2, 2, 2, 2))
    size = uniform(0.7, 2.2, random) * min(image.shape) / 256.0
    height, width = (
        max(2, min(round(size * n), m // 2)) for n, m in zip(dots.shape, image.shape, strict=True)
    )
    dots = functional.interpolate(dots[None, None], size=(height, width), mode="bilinear")[0, 0]
    j, i = _near_edge(image.shape[0], height, random), choice(image.shape[1] - width, random)
    if chance(0.6, random):
        j, i = choice(image.shape[0] - height, random), _near_edge(image.shape[1], width, random)
    image = image.clone()
    under = image[j : j + height, i : i + width]
    behind = torch.full_like(under, uniform(0.0, 0.4, random)) if kind == 1 else under
    image[j : j + height, i : i + width] = torch.lerp(
        behind, torch.ones(()), dots * uniform(0.6, 1.0, random)
    )
    return image


def _near_edge(size: int, length: int, random: Random) -> int:
    """A start within a fifth of the size of either end."""
    start = choice(max(1, size // 5), random)
    return min(start, size - length) if chance(0.5, random) else max(0, size - length - start)


def _lines(image: torch.Tensor, count: int, settings: DeviceSettings, random: Random) -> torch.Tensor:
    """Attenuation (J, I) of smooth curves, thin and thick ones, single and with two walls."""
    dots, weight = _curves(count, settings, random)
    # Two layers, each of one width.
    layer = torch.randint(2, (count, 1), generator=random)
    widths = [uniform(0.5, 0.9, random), uniform(0.9, 2.3, random)]
    thin, thick = _splashed(dots, weight, layer, image.shape)
    # A line of this width is as strong in its middle as it was drawn.
    thin, thick = (
        _softened(one, w) * (w * math.sqrt(2.0 * math.pi))
        for one, w in zip((thin, thick), widths, strict=True)
    )
    return thin + thick


def _splashed(
    dots: torch.Tensor, weight: torch.Tensor, layer: torch.Tensor, shape: torch.Size
) -> torch.Tensor:
    """(2, J, I): the weight of each dot on the four pixels about it, in its curve's layer, 0 or 1."""
    rows, columns = shape
    total = torch.zeros(2 * rows * columns)
    at = (dots + 1.0) * 0.5 * torch.tensor([columns, rows]) - 0.5
    low = at.floor()
    part = at - low
    for dj, di in ((0, 0), (0, 1), (1, 0), (1, 1)):
        i, j = (low[..., 0] + di).long(), (low[..., 1] + dj).long()
        share = (part[..., 0] if di else 1 - part[..., 0]) * (part[..., 1] if dj else 1 - part[..., 1])
        seen = (i >= 0) & (i < columns) & (j >= 0) & (j < rows)
        flat = (layer * rows + j.clamp(0, rows - 1)) * columns + i.clamp(0, columns - 1)
        total.index_add_(0, flat.flatten(), (share * weight * seen * (rows / 2.0)).flatten())
    return total.view(2, rows, columns)


def _curves(count: int, settings: DeviceSettings, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (count, 2 DOTS, 2) of dots on curves with one or two walls, and attenuation times length."""
    along = torch.linspace(0.0, 1.0, DOTS)[:, None]
    weights = torch.cat(
        [(1 - along) ** 3, 3 * along * (1 - along) ** 2, 3 * along**2 * (1 - along), along**3], dim=1
    )
    ends = 2.4 * torch.rand(count, 4, 2, generator=random) - 1.2
    # Tubes and catheters come from above and run down along the spine.
    inner = torch.rand(count, generator=random) < 0.35
    sideways = 0.25 * torch.randn(count, 4, generator=random)
    down = torch.linspace(-1.1, 0.6, 4) + 0.2 * torch.randn(count, 4, generator=random)
    centre = torch.stack([sideways, down], dim=2)
    ends = torch.where(inner[:, None, None], centre, ends)
    dots = weights @ ends
    step = functional.pad(dots.diff(dim=1), (0, 0, 0, 1), mode="replicate")
    length = step.norm(dim=2)
    across = torch.stack([-step[..., 1], step[..., 0]], dim=2) / length.clamp(min=1e-6)[..., None]
    wall = (
        0.02 * torch.rand(count, 1, 1, generator=random) * (torch.rand(count, 1, 1, generator=random) < 0.3)
    )
    spread = math.log(settings.strongest / settings.faintest)
    strength = settings.faintest * torch.exp(spread * torch.rand(count, 1, generator=random))
    both = torch.cat([dots + wall * across, dots - wall * across], dim=1)
    return both, torch.cat([0.5 * strength * length] * 2, dim=1)


def _add_disc(metal: torch.Tensor, radius: float, strength: float, random: Random) -> None:
    """A soft-edged disc with a snap in its middle, added in place."""
    rows, columns = metal.shape
    reach = math.ceil(radius * rows) + 2
    j, i = choice(rows, random), choice(columns, random)
    top, left = max(0, j - reach), max(0, i - reach)
    part = metal[top : j + reach + 1, left : i + reach + 1]
    far_j = torch.arange(top, top + part.shape[0])[:, None] - j
    far_i = torch.arange(left, left + part.shape[1])[None, :] - i
    far = (far_j.square() + far_i.square()).float().sqrt_()
    part += strength * (0.4 * torch.sigmoid(2.0 * (radius * rows - far)) + torch.sigmoid(3.0 * (1.3 - far)))


def _plate(image: torch.Tensor, random: Random) -> torch.Tensor:
    """Attenuation (J, I) of a pacemaker or of a wide ring of tubing."""
    offset = place(image.shape) - (1.6 * torch.rand(2, generator=random) - 0.8)
    if chance(0.5, random):
        far = (offset / torch.tensor([uniform(0.08, 0.14, random), uniform(0.08, 0.14, random)])).abs()
        # Between an ellipse and a box, as their housings are.
        return uniform(0.8, 2.5, random) * torch.sigmoid(20.0 * (1.0 - far.pow(3).sum(dim=2)))
    ring = (offset.norm(dim=2) - uniform(0.15, 0.5, random)).abs()
    return uniform(0.2, 1.0, random) * torch.sigmoid((uniform(0.01, 0.03, random) - ring) * 150.0)


def _softened(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """The image (J, I) under a Gaussian of this deviation in pixels, edges repeated."""
    reach = math.ceil(GAUSSIAN_REACH * sigma)
    steps = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (steps / sigma).square())
    kernel = (kernel / kernel.sum())[None, None]
    out = functional.pad(image[None, None], (reach,) * 4, mode="replicate")
    out = functional.conv2d(out, kernel[:, :, None])
    return functional.conv2d(out, kernel[..., None])[0, 0]


def _percentile(values: torch.Tensor, percent: float) -> float:
    rank = max(1, round(percent / 100.0 * len(values)))
    return float(values.kthvalue(rank).values)
