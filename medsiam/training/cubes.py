"""Cubes cut from heads for the change head: where they lie, what tissue they hold.

a label map, or a scan with the brain finder's tissues -> Head
-> a point of the brain's own tissue, turned, mirrored, wider or longer -> Cube
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from medsiam.pairing.region import find_region
from medsiam.sampling import smooth
from medsiam.training.acquisition import AcquisitionSettings, View, sampled, turned
from medsiam.training.chance import Random, chance, choice, uniform
from medsiam.training.lesions import LesionSettings, Shape
from medsiam.training.sources import Source
from medsiam.training.tissues import AIR, BRAIN, NUMBER, PARENCHYMA, tissue_map
from medsiam.volume import Grid, Volume

# The classes of the brain finder in the order that it tells them.
FOUND = ("soft", "csf", "cortex", "white", "stem")

# Lesions of multiple sclerosis lie within this of the ventricles more often than elsewhere.
PERIVENTRICULAR_MM = 9.0

# Places of a head that a cube may lie around are kept; all of them would be millions.
MOST_PLACES = 20_000


@dataclass(frozen=True)
class PatchSettings:
    """How cubes are made.

    spacing_mm       finest and coarsest spacing
    real             share of cubes from scans without a label map, where there are any
    flair            share of painted contrasts that imitate FLAIR
    same_contrast    share of follow-ups with one contrast
    other_contrast   share of follow-ups whose contrasts have nothing in common; the rest
                     differ by `jitter`
    jitter           deviation of a tissue's signal between two scanners, relative
    inverted         share of scans without a label map that are shown inverted
    scale            largest relative change of a head's size, each axis for itself
    misplaced_mm     largest shift that is left between the visits
    bent_mm          deviation of the smooth displacement that is left
    leftover_bias    deviation of the log sensitivity that is left
    equalised        share of follow-ups whose contrast curves are made equal
    alike_sharpness  share in which the sharper scan is blurred along the slices of the other
    same_axis        share in which both visits have their slices along one axis
    """

    spacing_mm: tuple[float, float] = field(default=(1.0, 1.5), metadata={"range": (0.3, 6.0)})
    real: float = field(default=0.45, metadata={"range": (0.0, 1.0)})
    flair: float = field(default=0.65, metadata={"range": (0.0, 1.0)})
    same_contrast: float = field(default=0.5, metadata={"range": (0.0, 1.0)})
    other_contrast: float = field(default=0.06, metadata={"range": (0.0, 1.0)})
    jitter: float = field(default=0.08, metadata={"range": (0.0, 1.0)})
    inverted: float = field(default=0.06, metadata={"range": (0.0, 1.0)})
    scale: float = field(default=0.15, metadata={"range": (0.0, 0.4)})
    misplaced_mm: float = field(default=0.7, metadata={"range": (0.0, 5.0)})
    bent_mm: float = field(default=0.25, metadata={"range": (0.0, 3.0)})
    leftover_bias: float = field(default=0.05, metadata={"range": (0.0, 1.0)})
    equalised: float = field(default=0.85, metadata={"range": (0.0, 1.0)})
    alike_sharpness: float = field(default=0.85, metadata={"range": (0.0, 1.0)})
    same_axis: float = field(default=0.8, metadata={"range": (0.0, 1.0)})
    acquisition: AcquisitionSettings = field(
        default_factory=lambda: AcquisitionSettings(thick_slices=0.75, thickest_mm=5.0, blur_mm=2.0)
    )
    lesions: LesionSettings = field(
        default_factory=lambda: LesionSettings(
            count=(1, 7), unchanged=0.45, mass=0.02, contrast=(0.12, 0.8), bright=0.85
        )
    )


@dataclass(frozen=True, eq=False)
class Head:
    """One head that cubes are cut from.

    image    (K, J, I) float16, 0..1; None where its contrast is made up
    tissue   (K, J, I) uint8, index into TISSUES
    places   (n, 3) voxels of the brain's own tissue
    is_real  whether the image is shown as it was scanned
    """

    image: torch.Tensor | None
    tissue: torch.Tensor
    places: torch.Tensor
    spacing_mm: float
    is_real: bool


@dataclass(frozen=True, eq=False)
class Cube:
    """A cut of a head: image as in Head but float32, tissue uint8, both (K, J, I)."""

    image: torch.Tensor | None
    tissue: torch.Tensor
    spacing_mm: float
    is_real: bool

    @property
    def shape(self) -> Shape:
        """(K, J, I) voxels."""
        return self.tissue.shape[0], self.tissue.shape[1], self.tissue.shape[2]

    @property
    def spacings_mm(self) -> tuple[float, float, float]:
        """Along each axis; they are equal."""
        return (self.spacing_mm,) * 3

    @cached_property
    def brain(self) -> torch.Tensor:
        """bool (K, J, I): everything inside the skull."""
        return (self.tissue >= BRAIN[0]) & (self.tissue <= BRAIN[-1])

    @cached_property
    def parenchyma(self) -> torch.Tensor:
        """bool (K, J, I): the brain's own tissue."""
        return _own_tissue(self.tissue)


def head_of(source: Source) -> Head:
    """The head of a scan; where there is no label map the brain finder tells the tissues."""
    if source.labels is None:
        tissue = _found_tissue(source)
    else:
        image = None if source.is_label_map else source.image.float()
        tissue = tissue_map(source.labels, source.label_scheme, image)
    places = _own_tissue(tissue).nonzero()
    kept = places[:: max(1, len(places) // MOST_PLACES)].clone()
    image = None if source.is_label_map else source.image
    return Head(image, tissue, kept, source.spacing_mm, source.labels is None)


def cube_of(head: Head, size: int, settings: PatchSettings, random: Random) -> Cube:
    """A cube around a point of the brain's own tissue: turned, mirrored, wider or longer."""
    spacing_mm = uniform(*settings.spacing_mm, random)
    limit = settings.acquisition.rotation_deg
    turn = turned([uniform(-limit, limit, random) for _ in range(3)])
    sizes = torch.tensor([uniform(1.0 - settings.scale, 1.0 + settings.scale, random) for _ in range(3)])
    mirrored = torch.tensor([1.0 if chance(0.5, random) else -1.0 for _ in range(3)])
    middle = (torch.tensor(head.tissue.shape) - 1) / 2
    point = head.places[choice(len(head.places), random)] if len(head.places) else middle
    # Not always in the middle, where a network would learn to look.
    aside = 0.12 * size * spacing_mm * (2.0 * torch.rand(3, generator=random) - 1.0)
    view = View(size, spacing_mm, turn * (sizes * mirrored), (point - middle) * head.spacing_mm + aside)
    box, view = _box_of(view, head)
    tissue = sampled(head.tissue[box], head.spacing_mm, view, nearest=True).to(torch.uint8)
    image = None if head.image is None else sampled(head.image[box], head.spacing_mm, view)
    return Cube(image, tissue, spacing_mm, head.is_real)


def lesion_places(cube: Cube, random: Random) -> torch.Tensor:
    """bool (K, J, I): all of the brain's own tissue, white matter alone, or that near the ventricles."""
    white = (cube.tissue == NUMBER["white"]) | (cube.tissue == NUMBER["cerebellar white"])
    kind = choice(3, random)
    if kind == 0 or float(white.sum()) < 1000:
        return cube.parenchyma
    if kind == 1:
        return white
    # The brain finder has one class of fluid; what is deep inside is ventricle.
    fluid = cube.tissue == NUMBER["csf" if cube.is_real else "ventricle"]
    near = smooth(fluid.float(), (0.5 * PERIVENTRICULAR_MM / cube.spacing_mm,) * 3) > 0.05
    wanted: torch.Tensor = white & near
    return wanted if float(wanted.sum()) > 300 else white


def _found_tissue(source: Source) -> torch.Tensor:
    """uint8 (K, J, I), index into TISSUES; what is no air counts as white matter where no brain is seen."""
    shape = source.image.shape
    matrix = np.eye(4)
    matrix[:3, :3] = np.fliplr(np.eye(3)) * source.spacing_mm
    volume = Volume(source.image.float().numpy(), Grid((shape[0], shape[1], shape[2]), matrix))
    found = find_region(volume).tissue_on(volume.grid, np.eye(4))
    if found is None:
        content = source.image.float() > float(source.image.float().mean())
        return torch.where(content, NUMBER["white"], NUMBER["air"]).to(torch.uint8)
    table = torch.tensor([NUMBER[name] for name in FOUND], dtype=torch.uint8)
    # Beyond the brain finder's box every probability is 0, and the first one stands.
    tissue = table[found.argmax(dim=0)]
    outside = (tissue == NUMBER["soft"]) & (source.image < AIR)
    return tissue.masked_fill_(outside, NUMBER["air"])


def _own_tissue(tissue: torch.Tensor) -> torch.Tensor:
    return torch.isin(tissue, torch.tensor(PARENCHYMA, dtype=torch.uint8))


def _box_of(view: View, head: Head) -> tuple[tuple[slice, slice, slice], View]:
    """The box of the head that a view sees, and the view as from the box's own centre."""
    middle = (torch.tensor(head.tissue.shape) - 1) / 2
    reach = view.turn.abs().sum(1) * (0.5 * view.size * view.spacing_mm / head.spacing_mm) + 1.0
    centre = view.centre_mm / head.spacing_mm + middle
    low = (centre - reach).floor().int().tolist()
    high = (centre + reach).ceil().int().tolist()
    sides = [
        slice(min(max(0, a), size - 2), max(min(b + 1, size), 2))
        for a, b, size in zip(low, high, head.tissue.shape, strict=True)
    ]
    own_middle = torch.tensor([(side.start + side.stop - 1) / 2 for side in sides])
    moved = replace(view, centre_mm=(centre - own_middle) * head.spacing_mm)
    return (sides[0], sides[1], sides[2]), moved
