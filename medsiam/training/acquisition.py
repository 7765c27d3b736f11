"""What a scanner makes of an anatomy: the same head, acquired again.

    signal on the working grid -> where the patient lies -> resolution and slices
    -> coil sensitivity -> motion ghosts -> Rician noise -> coverage -> normalised

Each step is a public function, so that each has its own law. Tensors are (K, J, I)
towards Superior, Posterior, Left; lengths in mm. All randomness comes from the
generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional
from monai.transforms import GibbsNoise

from medsiam.encoding.preparation import HIGH_PERCENT, LOW_PERCENT
from medsiam.training.chance import Random, chance, choice, smooth_field, uniform
from medsiam.training.contrast import Contrast, ContrastSettings, draw_contrast
from medsiam.training.tissues import NUMBER

# Every such voxel decides on the percentiles of a scan: all of them would take ten
# times as long and move the result by less than the noise.
PERCENTILE_STEP = 11

# Tissues whose signals describe a contrast.
DESCRIBED = [NUMBER[name] for name in ("ventricle", "csf", "cortex", "white", "dark", "soft", "fat")]

# The noise of a CT in soft tissue, relative to that of an MR on the same scale.
CT_NOISE = 0.15


@dataclass(frozen=True)
class AcquisitionSettings:
    """How far two acquisitions of one head may lie apart.

    rotation_deg, shift_mm    largest turn about each axis and largest shift, of the head
    thick_slices, thickest_mm share of scans with thick slices, and the thickest
    blur_mm                   largest full width at half maximum in the plane
    bias                      largest deviation of the log sensitivity
    noise                     largest deviation of the noise, of the range 0..1
    ghosts, ringing           share of scans with motion ghosts, with truncated k-space
    cut                       share of scans that leave out a part of the head
    """

    rotation_deg: float = field(default=15.0, metadata={"range": (0.0, 180.0)})
    shift_mm: float = field(default=12.0, metadata={"range": (0.0, 60.0)})
    thick_slices: float = field(default=0.6, metadata={"range": (0.0, 1.0)})
    thickest_mm: float = field(default=6.5, metadata={"range": (1.0, 20.0)})
    blur_mm: float = field(default=4.0, metadata={"range": (0.0, 20.0)})
    bias: float = field(default=0.3, metadata={"range": (0.0, 2.0)})
    noise: float = field(default=0.07, metadata={"range": (0.0, 1.0)})
    ghosts: float = field(default=0.12, metadata={"range": (0.0, 1.0)})
    ringing: float = field(default=0.05, metadata={"range": (0.0, 1.0)})
    cut: float = field(default=0.3, metadata={"range": (0.0, 1.0)})
    contrast: ContrastSettings = field(default_factory=ContrastSettings)


@dataclass(frozen=True, eq=False)
class Protocol:
    """What a department sets once and scans everybody with.

    axis          of the slices: 0 axial, 1 coronal, 2 sagittal
    thickness_mm  of a slice, 0 where the scan is isotropic
    blur_mm       full width at half maximum in the plane
    noise         deviation, of the range 0..1
    """

    contrast: Contrast
    axis: int
    thickness_mm: float
    blur_mm: float
    noise: float

    def described(self) -> tuple[float, ...]:
        """Numbers that tell this protocol from others: slices, resolution, noise and contrast."""
        contrast = self.contrast
        thick = [self.thickness_mm * (self.axis == axis) for axis in range(3)]
        kind = [float(contrast.is_ct), float(contrast.by_curve), contrast.detail]
        middle = contrast.curve[[len(contrast.curve) // 4, len(contrast.curve) // 2]].tolist()
        return (*thick, self.blur_mm, self.noise, *kind, *middle, *contrast.means[DESCRIBED].tolist())


@dataclass(frozen=True, eq=False)
class View:
    """Where the scanner looks: a cube of voxels around a point of the working grid.

    size               voxels along each axis
    spacing_mm         between them
    turn               (3, 3), head from scanner
    centre_mm          (3,) the cube's centre, from the working grid's centre
    """

    size: int
    spacing_mm: float
    turn: torch.Tensor
    centre_mm: torch.Tensor


def draw_protocol(settings: AcquisitionSettings, random: Random) -> Protocol:
    """A protocol by chance."""
    axis = int(torch.tensor([0.6, 0.2, 0.2]).multinomial(1, generator=random))
    thick = chance(settings.thick_slices, random)
    thickness = uniform(min(2.0, settings.thickest_mm), settings.thickest_mm, random) if thick else 0.0
    return Protocol(
        contrast=draw_contrast(settings.contrast, random),
        axis=axis,
        thickness_mm=thickness,
        blur_mm=uniform(0.0, settings.blur_mm, random) if chance(0.5, random) else 0.0,
        noise=settings.noise * uniform(0.0, 1.0, random) ** 2,
    )


def draw_view(size: int, spacing_mm: float, settings: AcquisitionSettings, random: Random) -> View:
    """A patient's position by chance, around the head's centre."""
    degrees = [uniform(-settings.rotation_deg, settings.rotation_deg, random) for _ in range(3)]
    shift = [uniform(-settings.shift_mm, settings.shift_mm, random) for _ in range(3)]
    return View(size, spacing_mm, turned(degrees), torch.tensor(shift))


def acquired(
    seen: torch.Tensor, protocol: Protocol, spacing_mm: float, settings: AcquisitionSettings, random: Random
) -> torch.Tensor:
    """The scan (K, J, I), 0..1, of a signal already sampled where the scanner looks."""
    noise = protocol.noise * (CT_NOISE if protocol.contrast.is_ct else float(seen.amax()))
    image = seen
    if not protocol.contrast.is_ct:
        image = image * sensitivity(image.shape, settings.bias * uniform(0.0, 1.0, random), random)
    if chance(settings.ghosts, random):
        image = ghosted(image, axis=choice(3, random), strength=uniform(0.03, 0.2, random), random=random)
    if chance(settings.ringing, random):
        image = GibbsNoise(alpha=uniform(0.2, 0.5, random))(image[None])[0].clamp(min=0.0)
    offset_mm = uniform(-0.5, 0.5, random) * protocol.thickness_mm
    image = sliced(image, protocol, spacing_mm, offset_mm=offset_mm, noise=noise, random=random)
    if chance(settings.cut, random):
        image = image * coverage(image.shape, random)
    return image.clamp_(0.0, 1.0) if protocol.contrast.is_ct else normalised(image)


def sampled(
    signal: torch.Tensor,
    spacing_mm: float,
    view: View,
    *,
    nearest: bool = False,
    bend: torch.Tensor | None = None,
) -> torch.Tensor:
    """The signal (K, J, I) or signals (C, K, J, I) at the view's voxels, 0 outside.

    spacing_mm  of the signal, whose centre is the origin
    nearest     for label maps
    bend        (3, K, J, I) mm on the signal's grid: sampled at place + displacement
    """
    reach = torch.tensor(signal.shape[-3:]) * spacing_mm / 2.0
    matrix = view.turn * (view.size * view.spacing_mm / 2.0) / reach[:, None]
    # torch's order is (i, j, k) on both sides.
    rows = torch.cat([matrix.flip(0, 1), (view.centre_mm / reach).flip(0)[:, None]], dim=1)
    grid = functional.affine_grid(rows[None].float(), [1, 1, *(view.size,) * 3], align_corners=False)
    if bend is not None:
        steps = (bend / reach[:, None, None, None]).flip(0)[None]
        moved = functional.grid_sample(steps, grid, padding_mode="border", align_corners=False)
        grid = grid + moved.movedim(1, -1)
    mode = "nearest" if nearest else "bilinear"
    channels = signal if signal.dim() == 4 else signal[None]
    out = functional.grid_sample(
        channels[None].float(), grid, mode=mode, padding_mode="zeros", align_corners=False
    )[0]
    return out if signal.dim() == 4 else out[0]


def sliced(
    image: torch.Tensor,
    protocol: Protocol,
    spacing_mm: float,
    *,
    offset_mm: float,
    noise: float,
    random: Random,
) -> torch.Tensor:
    """The image as slices of a thickness, with noise, brought back to its grid by linear interpolation."""
    size = image.shape[protocol.axis]
    through = slice_matrices(size, spacing_mm, protocol.thickness_mm, offset_mm)
    in_plane = blur_matrix(size, protocol.blur_mm / spacing_mm)
    ways: list[torch.Tensor | None] = [in_plane, in_plane, in_plane]
    ways[protocol.axis] = through[0] if through else None
    image = noisy(along_axes(image, ways), noise, random)
    if through is None:
        return image
    back: list[torch.Tensor | None] = [None, None, None]
    back[protocol.axis] = through[1]
    return along_axes(image, back)


def slice_matrices(
    size: int, spacing_mm: float, thickness_mm: float, offset_mm: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(n, size) means over slices and (size, n) linear interpolation between them.

    None where the slices are no thicker than the voxels.
    """
    if thickness_mm <= spacing_mm:
        return None
    count = math.ceil(size * spacing_mm / thickness_mm) + 1
    centres = (torch.arange(count) - (count - 1) / 2) * thickness_mm + offset_mm
    places = (torch.arange(size) - (size - 1) / 2) * spacing_mm
    away = (centres[:, None] - places).abs()
    mean = ((thickness_mm + spacing_mm) / 2 - away).clamp(0, spacing_mm)
    # The offset may put a slice at one end wholly outside.
    seen = mean.sum(1) > 0.0
    mean, rebuild = mean[seen], (1 - away[seen].T / thickness_mm).clamp(min=0)
    # Beyond the last slice's centre nothing is between: its value goes on.
    bare = rebuild.sum(1) <= 0.0
    rebuild[bare, away[seen].T[bare].argmin(1)] = 1.0
    return mean / mean.sum(1, keepdim=True), rebuild / rebuild.sum(1, keepdim=True)


def blur_matrix(size: int, width_voxels: float) -> torch.Tensor | None:
    """(size, size) Gaussian of this full width at half maximum; None where there is nothing to blur."""
    if width_voxels < 0.5:
        return None
    sigma = width_voxels / (2.0 * math.sqrt(2.0 * math.log(2.0)))
    places = torch.arange(size, dtype=torch.float32)
    weight = torch.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return weight / weight.sum(1, keepdim=True)


def sensitivity(shape: Sequence[int], strength: float, random: Random) -> torch.Tensor:
    """A smooth positive factor around 1: what a coil, or its correction, leaves behind."""
    return smooth_field(shape, 2 + choice(3, random), random, span=strength)[0].exp_()


def ghosted(image: torch.Tensor, *, axis: int, strength: float, random: Random) -> torch.Tensor:
    """The image with faint copies of itself along the phase direction, as periodic motion leaves them."""
    shift = image.shape[axis] // (2 + choice(4, random))
    copies = image.roll(shift, axis) + image.roll(-shift, axis)
    return image + 0.5 * strength * copies


def noisy(image: torch.Tensor, deviation: float, random: Random) -> torch.Tensor:
    """The magnitude of the image with complex Gaussian noise (Gudbjartsson and Patz 1995, MRM 34)."""
    if deviation <= 0.0:
        return image
    real = image + deviation * torch.randn(image.shape, generator=random)
    return torch.hypot(real, deviation * torch.randn(image.shape, generator=random))


def coverage(shape: Sequence[int], random: Random) -> torch.Tensor:
    """0 or 1: a slab that leaves out up to a fifth at one or both ends of an axis, mostly the lower."""
    axis = 0 if chance(0.8, random) else choice(3, random)
    size = shape[axis]
    low = int(size * uniform(0.0, 0.2, random)) if chance(0.8, random) else 0
    high = int(size * uniform(0.0, 0.12, random)) if chance(0.4, random) else 0
    inside = torch.zeros(size)
    inside[low : size - high] = 1.0
    return inside.reshape([-1 if n == axis else 1 for n in range(3)])


def normalised(image: torch.Tensor) -> torch.Tensor:
    """0..1 by the percentiles of the preparation, which this stands for."""
    some = image.flatten()[::PERCENTILE_STEP]
    low = some.quantile(LOW_PERCENT / 100.0)
    high = some[some >= some.mean()].quantile(HIGH_PERCENT / 100.0)
    return ((image - low) / (high - low).clamp(min=1e-6)).clamp_(0.0, 1.0)


def along_axes(image: torch.Tensor, ways: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The image with a matrix (n, size) applied along each of its axes."""
    if ways[2] is not None:
        image = image @ ways[2].T
    if ways[1] is not None:
        image = ways[1] @ image
    if ways[0] is not None:
        rows, columns = image.shape[1:]
        image = (ways[0] @ image.reshape(image.shape[0], -1)).reshape(-1, rows, columns)
    return image


def turned(degrees: Sequence[float]) -> torch.Tensor:
    """(3, 3): turns about the axes k, j and i, one after the other."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(degrees):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        a, b = [n for n in range(3) if n != axis]
        turn = torch.eye(3)
        turn[a, a] = turn[b, b] = cosine
        turn[a, b], turn[b, a] = -sine, sine
        matrix = matrix @ turn
    return matrix
