"""Radiographs of one chest taken again, and follow-ups with known change.

    image -> another person by a smooth deformation, or the same -> position and breath
          -> opacities that come and go -> tubes and cables
          -> exposure, processing, frame, letters -> normalised

The parts are radiograph_geometry.py (where it looks), radiograph_change.py (disease and
its truth) and radiograph_nuisance.py (devices and systems). Images are (J, I), 0..1,
bright where much is absorbed. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from medsiam.training import radiograph_geometry as geometry
from medsiam.training.chance import Random, chance
from medsiam.training.radiograph_change import (
    DiseaseSettings,
    absorbed,
    draw_opacities,
    lung_fields,
    thickness,
    truth,
)
from medsiam.training.radiograph_geometry import (
    PersonSettings,
    PoseSettings,
    composed,
    held,
    nudged,
    pose,
    warped,
)
from medsiam.training.radiograph_nuisance import (
    DeviceSettings,
    ExposureSettings,
    acquired,
    field_of,
    with_devices,
)


@dataclass(frozen=True)
class RadiographSettings:
    """How far two radiographs of one chest may lie apart; the parts have their own sections.

    blended        share of other persons that are the chests of two patients laid over each other
    ill            share of views with opacities that the patient does not always have
    misregistered  largest shift left between the visits of a follow-up, share of the half field
    other_person   share of follow-ups that are of another person made of the image
    """

    blended: float = field(default=0.5, metadata={"range": (0.0, 1.0)})
    ill: float = field(default=0.5, metadata={"range": (0.0, 1.0)})
    misregistered: float = field(default=0.015, metadata={"range": (0.0, 0.2)})
    other_person: float = field(default=0.5, metadata={"range": (0.0, 1.0)})
    person: PersonSettings = field(default_factory=PersonSettings)
    pose: PoseSettings = field(default_factory=PoseSettings)
    disease: DiseaseSettings = field(default_factory=DiseaseSettings)
    devices: DeviceSettings = field(default_factory=DeviceSettings)
    exposure: ExposureSettings = field(default_factory=ExposureSettings)


@dataclass(frozen=True, eq=False)
class RadiographFollowUp:
    """Two visits in one frame, and what truly changed; all (J, I), 0..1."""

    prior: torch.Tensor
    current: torch.Tensor
    appearing: torch.Tensor
    resolving: torch.Tensor


def person_warp(shape: Sequence[int], settings: RadiographSettings, random: Random) -> torch.Tensor:
    """Positions (J, I, 2) that make another person of a chest."""
    return geometry.person_warp(shape, settings.person, random)


def laid_over(chests: Sequence[tuple[torch.Tensor, torch.Tensor]], shares: Sequence[float]) -> torch.Tensor:
    """One chest (J, I) of several, each bent by its own positions: what they absorb adds up.

    A network that knows few patients by heart meets nobody twice this way.
    """
    bent = [warped(image, held(image, bend)[0]) for image, bend in chests]
    return torch.stack([share * each for share, each in zip(shares, bent, strict=True)]).sum(0)


def make_view(
    image: torch.Tensor, person: torch.Tensor | None, settings: RadiographSettings, random: Random
) -> torch.Tensor:
    """A radiograph (J, I) of the chest, taken again.

    person  positions from `person_warp`, None for the patient as imaged
    """
    position, inside = _looked_at(image, person, settings, random)
    chest = warped(image, position)
    if chance(settings.ill, random):
        opacities = draw_opacities(_lungs(chest), settings.disease, random)
        chest = absorbed(chest, thickness(opacities, "current", chest.shape))
    chest = with_devices(chest, settings.devices, random)
    exposed = field_of(inside, settings.exposure, random)
    return acquired(chest, settings.exposure, random, exposed=exposed)


def make_follow_up(image: torch.Tensor, settings: RadiographSettings, random: Random) -> RadiographFollowUp:
    """Two visits of the chest in one position, but for a small shift, with opacities of every kind.

    The truth lies in the prior's frame, and only where both frames show the chest.
    """
    bend = person_warp(image.shape, settings, random) if chance(settings.other_person, random) else None
    position, inside = _looked_at(image, bend, settings, random)
    chest = warped(image, position)
    opacities = draw_opacities(_lungs(chest), settings.disease, random)
    layers = [thickness(opacities, which, chest.shape) for which in ("prior", "current")]
    shift = nudged(image.shape, settings.misregistered, random)
    moved = warped(image, held(image, composed(position, shift))[0])
    later = warped(layers[1], shift)
    images, shown = [], inside
    for body, layer in ((chest, layers[0]), (moved, later)):
        body = with_devices(absorbed(body, layer), settings.devices, random)
        exposed = field_of(inside, settings.exposure, random)
        images.append(acquired(body, settings.exposure, random, exposed=exposed))
        shown = torch.minimum(shown, exposed)
    appearing, resolving = truth(chest, layers[0], layers[1])
    return RadiographFollowUp(images[0], images[1], shown * appearing, shown * resolving)


def _lungs(chest: torch.Tensor) -> torch.Tensor:
    """Where opacities may lie, at half the resolution: they are smooth."""
    return lung_fields(chest, (chest.shape[0] // 2, chest.shape[1] // 2))


def _looked_at(
    image: torch.Tensor, person: torch.Tensor | None, settings: RadiographSettings, random: Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions within the scan, and 0 or 1 (J, I): where it goes no further."""
    position = pose(image.shape, settings.pose, random)
    return held(image, position if person is None else composed(person, position))
