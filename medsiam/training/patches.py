"""Follow-ups as the dense change head meets them: small cubes of a pair's halfway grid.

    a head: a label map, or a scan with the brain finder's tissues -> a cube somewhere in it
    -> two contrasts -> the same lesions at two visits -> what was left of the motion
    -> two acquisitions -> equalised -> in units of the typical tissue value

What `pairing` would have done is done here too, with its leftovers: training looks
like use. Nothing is clipped, so that what is true can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from medsiam.change.dense import centred
from medsiam.pairing.intensity import curve, interpolated
from medsiam.sampling import smooth
from medsiam.training.acquisition import (
    AcquisitionSettings,
    Protocol,
    along_axes,
    blur_matrix,
    ghosted,
    noisy,
    sensitivity,
    slice_matrices,
)
from medsiam.training.chance import Random, chance, choice, normal, smooth_field, uniform
from medsiam.training.contrast import SEQUENCES, ContrastSettings, draw_contrast
from medsiam.training.cubes import Cube, Head, PatchSettings, cube_of, head_of, lesion_places
from medsiam.training.deformation import warped
from medsiam.training.lesions import Lesion, draw_lesions, truth
from medsiam.training.lesions import painted as with_lesions
from medsiam.training.pairs import Person
from medsiam.training.sources import Source
from medsiam.training.synthesis import FollowUp
from medsiam.training.tissues import NUMBER, TISSUES

# Beyond a cube's border, voxels: what is shifted, blurred or sliced is not seen to end there.
MARGIN = 6

# Points of the contrast curve that is made equal, and voxels that it is measured on.
CURVE_BINS, CURVE_VOXELS = 32, 20_000

# Full width at half maximum, mm: no scanner is as sharp as a label map's steps.
LEAST_BLUR_MM = 0.8

# Noise is smoothed away over this before the contrast curve is read, as in pairing.intensity.
CURVE_SIGMA_MM = 1.0

# A slice of thickness t blurs like a Gaussian of variance t^2 / 12, as in pair_up.
SLICE_VARIANCE = 12.0


class PatchStudio:
    """Cubes with known change. It makes no views of people: a recipe asks it for follow-ups alone.

    size  voxels along each axis of a cube
    """

    def __init__(self, sources: Sequence[Source], settings: PatchSettings, *, size: int) -> None:
        self.settings, self.size = settings, size
        self._sources = tuple(sources)
        self._real = [n for n, each in enumerate(sources) if each.labels is None]
        self._made_up = [n for n, each in enumerate(sources) if each.labels is not None]
        self._heads: dict[int, Head] = {}

    @property
    def count(self) -> int:
        """Patients there are."""
        return len({source.patient_index for source in self._sources})

    def patients(self, count: int, random: Random) -> Sequence[int]:
        """None of them is asked for."""
        return [choice(self.count, random) for _ in range(count)]

    def person(self, patient: int, warp: bool, random: Random) -> Person:
        """Nobody: cubes cannot tell who it is."""
        raise ValueError("cubes show nobody as a whole; set batch.people to 0")

    def protocols(self, count: int, random: Random) -> Sequence[object]:
        """None: each visit draws its own."""
        return [None] * count

    def described(self, protocol: object) -> tuple[float, ...]:
        """Nothing, as there is no protocol."""
        return ()

    def follow_up(self, patient: int, random: Random) -> FollowUp:
        """Two visits of somebody; who it is hangs on `real`, as the kinds of heads count unalike."""
        real = self._real if chance(self.settings.real, random) else self._made_up
        among = real or self._real or self._made_up
        number = among[choice(len(among), random)]
        found = self._heads.get(number)
        if found is None:
            found = self._heads[number] = head_of(self._sources[number])
        return patch_follow_up(found, self.size, self.settings, random)


def patch_follow_up(head: Head, size: int, settings: PatchSettings, random: Random) -> FollowUp:
    """A cube of two visits in units of the typical tissue value less 1, and what truly changed."""
    cube = cube_of(head, size + 2 * MARGIN, settings, random)
    places = lesion_places(cube, random)
    lesions = draw_lesions(places, cube.shape, cube.spacings_mm, settings.lesions, random)
    signals = _signals(cube, lesions, settings, random)
    signals = _misplaced(signals, cube, settings, random)
    seen = _acquired(signals, cube, settings, random)
    prior, current = (centred(each) for each in _equalised(seen, cube, settings, random))
    appearing, resolving = truth(lesions, cube.shape)
    inner = (slice(MARGIN, MARGIN + size),) * 3
    return FollowUp(*(each[inner].contiguous() for each in (prior, current, appearing, resolving)))


# Contrast


def _signals(
    cube: Cube, lesions: Sequence[Lesion], settings: PatchSettings, random: Random
) -> list[torch.Tensor]:
    """Both visits' signals in typical tissue values, with their lesions."""
    bare = _scanned(cube, settings, random) if cube.is_real else _painted(cube, settings, random)
    made = []
    strength = uniform(0.7, 1.4, random)
    for signal, which in zip(bare, ("prior", "current"), strict=True):
        # Scanners show one lesion more or less clearly.
        shown = strength * math.exp(0.12 * normal(random))
        relit = [replace(each, relief=each.relief * shown) for each in lesions]
        made.append(with_lesions(signal / _typical(signal, cube), relit, which))  # type: ignore[arg-type]
    return made


def _typical(signal: torch.Tensor, cube: Cube) -> float:
    inside = signal[cube.parenchyma]
    if inside.numel() < 100:
        inside = signal[signal > signal.mean()]
    return max(float(inside[:: max(1, inside.numel() // CURVE_VOXELS)].median()), 1e-3)


def _scanned(cube: Cube, settings: PatchSettings, random: Random) -> list[torch.Tensor]:
    """Both visits as the scan is, each through a curve of its own."""
    assert cube.image is not None
    image = cube.image
    if chance(settings.inverted, random):
        image = torch.where(cube.tissue == NUMBER["air"], image, 1.1 - image)
    image = image * (1.0 + 0.02 * smooth_field(image.shape, 8, random)[0])
    powers = [math.exp(0.15 * normal(random)) for _ in range(2)]
    if chance(settings.same_contrast, random):
        powers[1] = powers[0]
    return [image.clamp_min(0.0) ** power for power in powers]


def _painted(cube: Cube, settings: PatchSettings, random: Random) -> list[torch.Tensor]:
    """Both visits in contrasts that are made up, with one texture."""
    index = cube.tissue.long()
    texture = sum(
        uniform(0.0, 0.06, random) * smooth_field(index.shape, points, random)[0] for points in (5, 14, 32)
    )
    if cube.image is not None:
        flat = cube.image - _means(cube.image, index)[index]
        texture = texture + uniform(-0.6, 0.9, random) * flat
    both = _means_of_visits(settings, random)
    return [(means[index] + texture * (means > 0.05)[index]).clamp_(min=0.0) for means in both]


def _means_of_visits(settings: PatchSettings, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """(T,) signals of the tissues at both visits."""
    first = _means_drawn(settings, random)
    if chance(settings.same_contrast, random):
        return first, first
    if chance(settings.other_contrast / max(1e-6, 1.0 - settings.same_contrast), random):
        return first, _means_drawn(settings, random)
    second = first * (1.0 + settings.jitter * torch.randn(len(TISSUES), generator=random))
    # Fluid is suppressed to another degree, and scalp and fat to any.
    fluid, outside = uniform(0.4, 2.5, random), uniform(0.5, 1.6, random)
    for name in ("ventricle", "csf", "outer csf"):
        second[NUMBER[name]] *= fluid
    for name in ("fat", "soft", "marrow"):
        second[NUMBER[name]] *= outside
    return first, second.clamp_(0.0, 1.5)


def _means_drawn(settings: PatchSettings, random: Random) -> torch.Tensor:
    if chance(settings.flair, random):
        table = torch.tensor(SEQUENCES["flair"], dtype=torch.float32) / 100.0
        jitter = 0.1 * torch.randn(len(TISSUES), generator=random)
        return (table * (1.0 + jitter)).clamp_(0.0, 1.5)
    while True:
        contrast = draw_contrast(ContrastSettings(curve=0.0), random)
        if not contrast.is_ct:
            return contrast.means


def _means(image: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros(len(TISSUES)).index_add_(0, index.flatten(), image.flatten())
    return sums / torch.bincount(index.flatten(), minlength=len(TISSUES)).clamp(min=1)


# Two acquisitions


def _misplaced(
    signals: list[torch.Tensor], cube: Cube, settings: PatchSettings, random: Random
) -> list[torch.Tensor]:
    """Each visit moved half the way of what registration leaves, and interpolated once."""
    shape = cube.shape
    shift = settings.misplaced_mm * (2.0 * torch.rand(3, generator=random) - 1.0)
    shift = shift * uniform(0.0, 1.0, random)
    bent = smooth_field(shape, 4 + choice(4, random), random, channels=3, span=settings.bent_mm)
    half = 0.5 * (bent * uniform(0.0, 1.0, random) + shift[:, None, None, None])
    common = cube.spacing_mm * (torch.rand(3, generator=random) - 0.5)[:, None, None, None]
    return [
        warped(signal, common + way * half, cube.spacings_mm)
        for signal, way in zip(signals, (-1.0, 1.0), strict=True)
    ]


def _protocols(settings: PatchSettings, random: Random) -> tuple[Protocol, Protocol]:
    """Slices, sharpness and noise of both visits; the contrast is not theirs."""
    told = settings.acquisition
    contrast = draw_contrast(told.contrast, random)
    first, second = (_protocol(told, contrast, random) for _ in range(2))
    if chance(settings.same_contrast, random):
        return first, first
    return first, replace(second, axis=first.axis) if chance(settings.same_axis, random) else second


def _protocol(told: AcquisitionSettings, contrast: object, random: Random) -> Protocol:
    thick = chance(told.thick_slices, random)
    return Protocol(
        contrast=contrast,  # type: ignore[arg-type]
        axis=int(torch.tensor([0.6, 0.2, 0.2]).multinomial(1, generator=random)),
        thickness_mm=uniform(2.0, told.thickest_mm, random) if thick else 0.0,
        blur_mm=uniform(LEAST_BLUR_MM, max(LEAST_BLUR_MM, told.blur_mm), random),
        noise=told.noise * uniform(0.1, 1.0, random) ** 1.5,
    )


def _acquired(
    signals: list[torch.Tensor], cube: Cube, settings: PatchSettings, random: Random
) -> list[torch.Tensor]:
    told = settings.acquisition
    protocols = _protocols(settings, random)
    made = []
    for own, other, signal in zip(protocols, protocols[::-1], signals, strict=True):
        image = signal * sensitivity(signal.shape, settings.leftover_bias * uniform(0.0, 1.0, random), random)
        if chance(told.ghosts, random):
            image = ghosted(
                image, axis=choice(3, random), strength=uniform(0.02, 0.15, random), random=random
            )
        image = _sliced(image, own, cube, random)
        if own.axis == other.axis and chance(settings.alike_sharpness, random):
            image = _like_sharpness(image, own, other, cube)
        made.append(image)
    return made


def _sliced(image: torch.Tensor, own: Protocol, cube: Cube, random: Random) -> torch.Tensor:
    size = image.shape[own.axis]
    # Real scans bring their own sharpness and noise; a little is added, for each visit another.
    blur_mm, noise = own.blur_mm, own.noise
    if cube.is_real:
        blur_mm, noise = blur_mm - LEAST_BLUR_MM, 0.4 * noise
    offset_mm = uniform(-0.5, 0.5, random) * own.thickness_mm
    through = slice_matrices(size, cube.spacing_mm, own.thickness_mm, offset_mm)
    in_plane = blur_matrix(size, blur_mm / cube.spacing_mm)
    ways: list[torch.Tensor | None] = [in_plane] * 3
    if through is not None:
        ways[own.axis] = through[0]
    image = noisy(along_axes(image, ways), noise, random)
    if through is None:
        return image
    back: list[torch.Tensor | None] = [None] * 3
    back[own.axis] = through[1]
    return along_axes(image, back)


def _like_sharpness(image: torch.Tensor, own: Protocol, other: Protocol, cube: Cube) -> torch.Tensor:
    """The thinner slices blurred as `pair_up` does it."""
    excess = max(other.thickness_mm, cube.spacing_mm) ** 2 - max(own.thickness_mm, cube.spacing_mm) ** 2
    if excess <= 0.0:
        return image
    sigma = [0.0, 0.0, 0.0]
    sigma[own.axis] = math.sqrt(excess / SLICE_VARIANCE) / cube.spacing_mm
    return smooth(image, (sigma[0], sigma[1], sigma[2]))


def _equalised(
    seen: list[torch.Tensor], cube: Cube, settings: PatchSettings, random: Random
) -> list[torch.Tensor]:
    """Both with one gain and mostly one curve, as after `pairing.intensity.equalise`."""
    one, other = (image / _typical(image, cube) for image in seen)
    # A cube may hold more grey than the whole, and the whole's median is what counts.
    unit = math.exp(0.08 * normal(random))
    gap = math.exp(0.01 * normal(random))
    if chance(settings.equalised, random) and int(cube.brain.sum()) > 1000:
        calm = [smooth(image, (CURVE_SIGMA_MM / cube.spacing_mm,) * 3)[cube.brain] for image in (one, other)]
        some = slice(None, None, max(1, len(calm[0]) // CURVE_VOXELS))
        told = curve((0.5 * (calm[0] + calm[1]))[some], (calm[1] - calm[0])[some], CURVE_BINS)
        expected = interpolated(0.5 * (one + other), *told)
        one, other = one + expected / 2.0, other - expected / 2.0
    return [one * unit * gap, other * unit / gap]
