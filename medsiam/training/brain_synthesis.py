"""Heads of any contrast made from label maps, to train the brain finder on.

    label map -> pose, size, elastic shape -> lesions -> random signal per tissue
    -> coverage, defacing, stripping -> thick slices -> bias -> noise -> 3 mm

No scanner image is used: what the network sees of contrast is what a random
generator invented. After SynthSeg (Billot et al. 2023, Medical Image Analysis 86)
and SynthStrip (Hoopes et al. 2022, NeuroImage 260). All randomness comes from the
generator that is passed in. Axes are (k, j, i) towards Superior, Posterior, Left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from scipy import ndimage

from medsiam.pairing.brain_net import SPACING_MM, normalised
from medsiam.sampling import smooth
from medsiam.training.chance import Random, chance

# Labels are drawn at 2 mm in a box of 240 mm and averaged to the network's 3 mm,
# so that a voxel at a border holds a true mixture.
FINE_MM = 2.0
FINE = 120
COARSE = 80

# FreeSurfer numbers below 100; the extra-cerebral labels are those of SynthSeg.
TISSUES: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("air", 0, (0,)),
    ("ventricle", 1, (4, 5, 14, 15, 43, 44, 72)),
    ("sulcus", 1, ()),
    ("outer csf", 0, (24,)),
    ("cortex", 2, (3, 42)),
    ("white", 3, (2, 41)),
    ("white spot", 3, (25, 57)),
    ("thalamus", 2, (10, 49, 28, 60)),
    ("striatum", 2, (11, 12, 17, 18, 26, 50, 51, 53, 54, 58, 136, 137, 163, 164)),
    ("pallidum", 2, (13, 52)),
    ("cerebellar grey", 4, (8, 47)),
    ("cerebellar white", 4, (7, 46)),
    ("stem", 4, (16,)),
    ("cord", 0, ()),
    ("vessel", 0, (30, 62, 85, 502)),
    ("eye", 0, (506, 508)),
    ("soft", 0, (507,)),
    ("mucosa", 0, (509, 512)),
    ("skin", 0, (511,)),
    ("dura", 0, (514,)),
    ("bone", 0, (515,)),
    ("marrow", 0, (516,)),
    ("fat", 0, (530,)),
    ("lesion", 3, ()),
    ("second lesion", 3, ()),
)
NAMES = tuple(name for name, _, _ in TISSUES)
CLASS_OF = torch.tensor([brain_class for _, brain_class, _ in TISSUES])
WHITE, CORTEX, LESION = NAMES.index("white"), NAMES.index("cortex"), NAMES.index("lesion")
FATTY = [NAMES.index(name) for name in ("skin", "marrow", "fat")]
AIR, STEM, CORD = NAMES.index("air"), NAMES.index("stem"), NAMES.index("cord")

# Mean signals of real contrasts, white matter of T1 near 0.8; CT in a window of
# -100 to 200 HU. In the order of TISSUES.
# fmt: off
CONTRASTS = {
    "t1": (
        0, 20, 22, 22, 52, 78, 60, 63, 60, 70, 52, 76, 70, 68, 35, 15, 45, 45, 75, 35, 10, 55, 90, 45, 60),
    "t1 contrast": (
        0, 18, 20, 20, 50, 68, 55, 58, 55, 62, 52, 66, 62, 62, 100, 15, 50, 85, 80, 80, 10, 55, 90, 40, 100),
    "flair": (
        0, 8, 12, 12, 62, 50, 80, 55, 56, 48, 58, 50, 52, 50, 20, 12, 32, 55, 45, 25, 7, 25, 40, 95, 85),
    "t2": (
        0, 95, 90, 90, 55, 38, 60, 45, 44, 30, 52, 38, 42, 45, 15, 95, 25, 65, 40, 20, 6, 30, 50, 85, 70),
    "pd": (
        0, 78, 80, 80, 85, 68, 80, 75, 76, 66, 82, 68, 70, 70, 35, 75, 55, 75, 65, 45, 8, 45, 75, 90, 85),
    "ct": (
        0, 36, 37, 37, 46, 42, 40, 46, 46, 47, 46, 43, 43, 44, 52, 40, 50, 45, 35, 52, 100, 90, 8, 36, 55),
}
# fmt: on


@dataclass(frozen=True)
class SynthesisSettings:
    """How wide the world of synthetic heads is.

    probabilities are shares 0..1, angles degrees, lengths mm, scales relative
    """

    contrast_table: float = 0.45
    any_rotation: float = 0.3
    small_rotation_deg: float = 25.0
    scale: float = 0.14
    elastic_mm: float = 5.0
    shift_mm: float = 10.0
    lesions: float = 0.5
    thick_slices: float = 0.6
    thickest_mm: float = 7.5
    cut_coverage: float = 0.4
    neck: float = 0.6
    deface: float = 0.2
    strip: float = 0.12
    decoy: float = 0.06
    noise: float = 0.07
    bias: float = 0.35


@dataclass(frozen=True, eq=False)
class HeadMap:
    """One whole head as tissues at 1 mm, and where its brain ends.

    tissue        uint8 (K, J, I), index into TISSUES
    neck_rows     rows at the low end that were added by extending the cut
    brain_points  (n, 3) voxel positions inside the brain
    """

    tissue: torch.Tensor
    neck_rows: int
    brain_points: torch.Tensor


@dataclass(frozen=True, eq=False)
class Example:
    """A normalised image (K, J, I) and the share (5, K, J, I) of each class in each voxel."""

    image: torch.Tensor
    share: torch.Tensor


def synthesise(
    head: HeadMap, settings: SynthesisSettings, random: Random, contrasts: int = 2
) -> list[Example]:
    """Examples that share one shape and differ in contrast, artefacts and coverage."""
    position = _placed(head, settings, random)
    tissue = _with_lesions(_tissue_at(head, position, settings, random), settings, random)
    brain_class = CLASS_OF[tissue.long()]
    brain = _averaged(torch.stack([(brain_class == n).float() for n in range(1, 5)]))
    examples = []
    for _ in range(contrasts):
        seen = _coverage(settings, random) * _with_face_or_not(position, head, settings, random)
        examples.append(_imaged(tissue, brain, seen, settings, random))
    return examples


def _imaged(
    tissue: torch.Tensor, brain: torch.Tensor, seen: torch.Tensor, settings: SynthesisSettings, random: Random
) -> Example:
    """One scan of a shape: tissue and what is seen of it (fine), share of the brain's classes (coarse)."""
    signal = _painted(tissue, settings, random)
    if chance(settings.decoy, random):
        brain = torch.zeros_like(brain)
        signal = _decoy(signal, random)
    elif chance(settings.strip, random):
        signal = _stripped(signal, CLASS_OF[tissue.long()] > 0, random)
    coarse_seen = _averaged(seen)
    brain = brain * coarse_seen
    share = torch.cat([1.0 - brain.sum(0, keepdim=True), brain])
    return Example(_scanned(signal * seen, coarse_seen > 0.5, settings, random), share)


# Shape


def _placed(head: HeadMap, settings: SynthesisSettings, random: Random) -> torch.Tensor:
    """Voxel positions (3, FINE, FINE, FINE) of the head map that the box looks at."""
    turn = _rotation(settings, random) @ torch.diag(1.0 + settings.scale * _uniform(3, random) * 0.6)
    turn = turn * (1.0 + settings.scale * _uniform(1, random))
    if chance(0.5, random):
        turn = turn @ torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    turn = turn + 0.04 * _uniform((3, 3), random)
    middle = torch.tensor([(n - 1) / 2 for n in head.tissue.shape])
    middle[0] = float(head.brain_points[:, 0].mean()) - 15.0
    middle = middle + settings.shift_mm * _uniform(3, random)
    steps = (torch.arange(FINE) - (FINE - 1) / 2) * FINE_MM
    out = torch.empty(3, FINE, FINE, FINE)
    bend = _elastic(settings, random)
    for axis in range(3):
        k, j, i = (turn[axis, n] * steps for n in range(3))
        out[axis] = (k[:, None, None] + j[None, :, None]) + (i[None, None, :] + middle[axis])
    return out.add_(bend)


def _rotation(settings: SynthesisSettings, random: Random) -> torch.Tensor:
    if chance(settings.any_rotation, random):
        if chance(0.5, random):
            # Prone, on the side, or with the axes named the wrong way round.
            half = torch.ones(3)
            half[torch.randperm(3, generator=random)[:2]] = -1.0
            return torch.diag(half) @ _euler(12.0 * _uniform(3, random))
        q, r = torch.linalg.qr(torch.randn(3, 3, generator=random))
        q = q * torch.sign(torch.diagonal(r))
        return q * torch.sign(torch.linalg.det(q))
    return _euler(settings.small_rotation_deg * _uniform(3, random))


def _euler(degrees: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(3)
    for axis, angle in enumerate(torch.deg2rad(degrees).tolist()):
        turn = torch.eye(3)
        a, b = [n for n in range(3) if n != axis]
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def _elastic(settings: SynthesisSettings, random: Random) -> torch.Tensor:
    points = int(torch.randint(4, 9, (1,), generator=random))
    size = settings.elastic_mm * float(torch.rand(1, generator=random))
    return _stretched(size * torch.randn(3, points, points, points, generator=random), FINE)


def _tissue_at(
    head: HeadMap, position: torch.Tensor, settings: SynthesisSettings, random: Random
) -> torch.Tensor:
    """uint8 tissue of each voxel of the fine box; air outside the map and below the neck."""
    sizes = head.tissue.shape
    flat = torch.zeros(position.shape[1:], dtype=torch.int32)
    inside = torch.ones(position.shape[1:], dtype=torch.bool)
    for axis, size in enumerate(sizes):
        place = position[axis].round().to(torch.int32)
        low = 0
        if axis == 0:
            neck = float(torch.rand(1, generator=random)) if chance(settings.neck, random) else 0.0
            low = round(head.neck_rows * (1.0 - neck))
        inside &= (place >= low) & (place < size)
        flat = flat * size + place.clamp_(0, size - 1)
    return head.tissue.view(-1)[flat.view(-1)].view(flat.shape) * inside


def _with_lesions(tissue: torch.Tensor, settings: SynthesisSettings, random: Random) -> torch.Tensor:
    """Spots in the white matter, and now and then one mass anywhere in the brain."""
    if not chance(settings.lesions, random):
        return tissue
    spots = _stretched(torch.randn(1, 24, 24, 24, generator=random), FINE)[0]
    threshold = 1.3 + 1.2 * float(torch.rand(1, generator=random))
    tissue = torch.where((spots > threshold) & (tissue == WHITE), LESION, tissue)
    if chance(0.3, random):
        return _with_mass(tissue, random)
    return tissue


def _with_mass(tissue: torch.Tensor, random: Random) -> torch.Tensor:
    places = ((tissue == WHITE) | (tissue == CORTEX)).nonzero()
    if len(places) == 0:
        return tissue
    centre = places[int(torch.randint(len(places), (1,), generator=random))].float()
    radius = (6.0 + 18.0 * float(torch.rand(1, generator=random))) / FINE_MM
    axes = [((torch.arange(FINE) - centre[n]) / radius) ** 2 for n in range(3)]
    distance = axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]
    wobble = 0.4 * _stretched(torch.randn(1, 16, 16, 16, generator=random), FINE)[0]
    cerebrum = (CLASS_OF[tissue.long()] > 0) & (CLASS_OF[tissue.long()] < 4)
    mass = (distance + wobble < 1.0) & cerebrum
    core = mass & (distance + wobble < 0.45)
    return torch.where(core, LESION + 1, torch.where(mass, LESION, tissue)).to(torch.uint8)


# Signal


def _painted(tissue: torch.Tensor, settings: SynthesisSettings, random: Random) -> torch.Tensor:
    """The signal of each voxel: a Gaussian per tissue, with smooth and fine texture."""
    mean, spread = _signal_table(settings, random)
    index = tissue.long()
    grain = torch.randn(tissue.shape, generator=random)
    return (mean[index] + spread[index] * grain).clamp_(min=0.0)


def _signal_table(settings: SynthesisSettings, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
    count = len(TISSUES)
    if chance(settings.contrast_table, random):
        name = list(CONTRASTS)[int(torch.randint(len(CONTRASTS), (1,), generator=random))]
        table = torch.tensor(CONTRASTS[name]) / 100.0
        if name == "ct":
            mean = table + 0.015 * torch.randn(count, generator=random)
            return mean * (table > 0), torch.full((count,), 0.01) * (table > 0)
        jitter = 1.0 + 0.15 * torch.randn(count, generator=random)
        mean = table * jitter + 0.03 * torch.randn(count, generator=random)
    else:
        mean = torch.rand(count, generator=random)
        _tie_related(mean, random)
    if chance(0.25, random):
        # Fat saturation and diffusion weighting leave little of the scalp.
        outside = 0.1 + 0.5 * torch.rand(1, generator=random)
        mean = torch.where(CLASS_OF == 0, mean * outside, mean)
    elif chance(0.4, random):
        # In spin-echo T1, and near a surface coil, fat is far brighter than brain.
        mean[FATTY] *= 1.0 + 1.5 * torch.rand(1, generator=random)
    spread = 0.06 * torch.rand(count, generator=random)
    if chance(0.85, random):
        mean[AIR] = spread[AIR] = 0.0
    return mean.clamp_(min=0.0), spread


def _tie_related(mean: torch.Tensor, random: Random) -> None:
    """Tissues of one kind differ a little, not wholly."""
    for names in (
        ("cortex", "cerebellar grey", "striatum", "thalamus"),
        ("white", "cerebellar white", "stem", "cord", "pallidum"),
        ("ventricle", "sulcus", "outer csf"),
    ):
        first, *others = (NAMES.index(name) for name in names)
        for other in others:
            mean[other] = mean[first] + 0.06 * torch.randn(1, generator=random)[0]
    if chance(0.8, random):
        mean[NAMES.index("bone")] *= 0.25


def _decoy(signal: torch.Tensor, random: Random) -> torch.Tensor:
    """Something that is no head: a lump, a box or a ball, filled evenly, in patches or with noise."""
    shape, filling = torch.randint(3, (2,), generator=random).tolist()
    radii = (15 + 40 * torch.rand(3, generator=random)).tolist()
    away = [((torch.arange(FINE) - FINE / 2) / radius).abs() for radius in radii]
    k, j, i = away[0][:, None, None], away[1][None, :, None], away[2][None, None, :]
    if shape == 0:
        body = _stretched(torch.randn(1, 4, 4, 4, generator=random), FINE)[0] > 0
    elif shape == 1:
        body = (k < 1) & (j < 1) & (i < 1)
    else:
        body = k**2 + j**2 + i**2 < 1
    noise = torch.rand(signal.shape, generator=random)
    if filling == 0:
        blobs = _stretched(torch.randn(1, 10, 10, 10, generator=random), FINE)[0]
        made = (blobs.mul(2).round() * 0.37).remainder(1.0) + 0.05 * noise
    else:
        made = 0.6 + 0.1 * noise if filling == 1 else noise
    return made * body


# What was taken away


def _with_face_or_not(
    position: torch.Tensor, head: HeadMap, settings: SynthesisSettings, random: Random
) -> torch.Tensor:
    """1, but 0 in front of and below a plane before the brain where the face was removed."""
    if not chance(settings.deface, random):
        return torch.ones(())
    forward = torch.tensor([-0.7, -0.7, 0.0]) + 0.35 * _uniform(3, random)
    forward = forward / forward.norm()
    reach = float((head.brain_points @ forward).quantile(0.999))
    margin = -4.0 + 16.0 * float(torch.rand(1, generator=random))
    depth = forward[0] * position[0] + forward[1] * position[1] + forward[2] * position[2]
    return (depth < reach + margin).float()


def _stripped(signal: torch.Tensor, brain: torch.Tensor, random: Random) -> torch.Tensor:
    size = 1 + 2 * int(torch.randint(0, 3, (1,), generator=random))
    kept = functional.max_pool3d(brain[None, None].float(), size, 1, size // 2)[0, 0]
    return signal * kept


def _coverage(settings: SynthesisSettings, random: Random) -> torch.Tensor:
    """0 or 1 (FINE, FINE, FINE): the slab that was scanned, often tilted."""
    seen = torch.ones(FINE, FINE, FINE)
    if not chance(settings.cut_coverage, random):
        return seen
    axis = 0 if chance(0.7, random) else int(torch.randint(3, (1,), generator=random))
    tilt = 0.25 * _uniform(3, random)
    tilt[axis] = 1.0
    steps = torch.arange(FINE) - (FINE - 1) / 2
    height = (
        (tilt[0] * steps)[:, None, None] + (tilt[1] * steps)[None, :, None] + (tilt[2] * steps)[None, None, :]
    )
    # 0 cuts through the middle of the head, 45 voxels (90 mm) past most of it.
    low, high = (-10.0 - 40.0 * torch.rand(2, generator=random)).tolist()
    if chance(0.6, random):
        low, high = (low, -100.0) if chance(0.5, random) else (-100.0, high)
    return seen * ((height > low) & (height < -high))


# Scanner


def _scanned(
    signal: torch.Tensor, seen: torch.Tensor, settings: SynthesisSettings, random: Random
) -> torch.Tensor:
    """The image at 3 mm, normalised as the network's input is.

    signal fine, seen coarse
    """
    axis = int(torch.tensor([0.6, 0.2, 0.2]).multinomial(1, generator=random))
    acquire, rebuild = _slices(settings, random)
    mean = _area()
    ways = [mean, mean, mean]
    ways[axis] = acquire
    image = _along_axes(signal, ways)
    image = image * _bias(image.shape, settings, random)
    image = _noisy(image, settings, random)
    back: list[torch.Tensor | None] = [None, None, None]
    back[axis] = rebuild
    image = _along_axes(image, back)
    if chance(0.3, random):
        k, j, i = (0.8 * torch.rand(3, generator=random)).tolist()
        image = smooth(image, (k, j, i))
    image = normalised(image * seen)
    return image ** math.exp(0.25 * float(torch.randn(1, generator=random)))


def _slices(settings: SynthesisSettings, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, FINE) means over thick slices and (COARSE, n) linear interpolation between them."""
    thickness = SPACING_MM
    if chance(settings.thick_slices, random):
        thickness += (settings.thickest_mm - SPACING_MM) * float(torch.rand(1, generator=random))
    count = math.floor(FINE * FINE_MM / thickness)
    centres = (torch.arange(count) - (count - 1) / 2) * thickness
    fine = (torch.arange(FINE) - (FINE - 1) / 2) * FINE_MM
    acquire = (0.5 + thickness / (2 * FINE_MM) - (centres[:, None] - fine).abs() / FINE_MM).clamp_(0, 1)
    coarse = (torch.arange(COARSE) - (COARSE - 1) / 2) * SPACING_MM
    place = coarse.clamp(float(centres[0]), float(centres[-1]))
    rebuild = (1 - (place[:, None] - centres).abs() / thickness).clamp_(min=0)
    return acquire / acquire.sum(1, keepdim=True), rebuild / rebuild.sum(1, keepdim=True)


def _area() -> torch.Tensor:
    """(COARSE, FINE) mean over the fine voxels that a coarse voxel covers."""
    fine = (torch.arange(FINE) - (FINE - 1) / 2) * FINE_MM
    coarse = (torch.arange(COARSE) - (COARSE - 1) / 2) * SPACING_MM
    reach = (SPACING_MM + FINE_MM) / 2
    weight = (reach - (coarse[:, None] - fine).abs()).clamp(0, FINE_MM)
    return weight / weight.sum(1, keepdim=True)


def _averaged(field: torch.Tensor) -> torch.Tensor:
    """(C, FINE…) as (C, COARSE…)."""
    return _along_axes(field, (_area(),) * 3)


def _along_axes(field: torch.Tensor, ways: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The field with a matrix applied along each of its last three axes."""
    if ways[2] is not None:
        field = field @ ways[2].T
    if ways[1] is not None:
        field = ways[1] @ field
    if ways[0] is not None:
        lead, (_, rows, columns) = field.shape[:-3], field.shape[-3:]
        field = (ways[0] @ field.reshape(*lead, -1, rows * columns)).reshape(*lead, -1, rows, columns)
    return field


def _bias(shape: torch.Size, settings: SynthesisSettings, random: Random) -> torch.Tensor:
    strength = settings.bias * float(torch.rand(1, generator=random))
    points = int(torch.randint(2, 5, (1,), generator=random))
    field = strength * torch.randn(1, 1, points, points, points, generator=random)
    return functional.interpolate(field, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0].exp()


def _noisy(image: torch.Tensor, settings: SynthesisSettings, random: Random) -> torch.Tensor:
    sigma = settings.noise * float(torch.rand(1, generator=random)) ** 2
    real = image + sigma * torch.randn(image.shape, generator=random)
    if chance(0.5, random):
        return (real**2 + (sigma * torch.randn(image.shape, generator=random)) ** 2).sqrt()
    # Without its background, as after anonymisation, cropping or smoothing filters.
    return real.clamp_(min=0.0) * (image > 0.02)


# Chance


def _uniform(size: int | tuple[int, ...], random: Random) -> torch.Tensor:
    """Even in -1..1."""
    return 2 * torch.rand(size, generator=random) - 1


def _stretched(points: torch.Tensor, size: int) -> torch.Tensor:
    """(C, n, n, n) control points as a smooth field (C, size, size, size)."""
    return functional.interpolate(points[None], size=(size,) * 3, mode="trilinear", align_corners=True)[0]


# Label maps

# Fluid in sulci belongs to a usual brain mask, the space under the skull does not:
# the brain is closed with a ball of this radius.
SULCUS_MM = 6.0
NECK_ROWS = 80


def read_head_map(path: Path) -> HeadMap:
    """The tissues of one SynthSeg head label map (NIfTI, 1 mm), cut to the head."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    # RAS to the (k, j, i) of LPS, once, here at the edge.
    labels = np.asarray(image.dataobj).astype(np.int16).transpose(2, 1, 0)[:, ::-1, ::-1]
    held = np.nonzero(labels)
    labels = labels[tuple(slice(axis.min(), axis.max() + 1) for axis in held)]
    tissue = np.zeros(labels.shape, dtype=np.uint8)
    for index, (_, _, numbers) in enumerate(TISSUES):
        tissue[np.isin(labels, numbers)] = index
    _name_sulci(tissue)
    tissue = np.concatenate([_neck(tissue), tissue])
    points = np.argwhere(np.asarray(CLASS_OF)[tissue] > 0)[::500]
    return HeadMap(torch.from_numpy(tissue), NECK_ROWS, torch.from_numpy(points).float())


def _name_sulci(tissue: NDArray[np.uint8]) -> None:
    brain = np.asarray(CLASS_OF)[tissue] > 0
    box = tuple(slice(max(0, a.min() - 2), a.max() + 3) for a in np.nonzero(brain))
    near = ndimage.distance_transform_edt(~np.pad(brain[box], 8)) <= SULCUS_MM
    closed = (ndimage.distance_transform_edt(near) > SULCUS_MM)[8:-8, 8:-8, 8:-8]
    view = tissue[box]
    view[closed & (view == NAMES.index("outer csf"))] = NAMES.index("sulcus")


def _neck(tissue: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lowest slice drawn on downwards; what was brain there is cord."""
    lowest = tissue[0].copy()
    lowest[lowest == STEM] = CORD
    lowest[np.asarray(CLASS_OF)[lowest] > 0] = NAMES.index("soft")
    return np.repeat(lowest[None], NECK_ROWS, axis=0)
