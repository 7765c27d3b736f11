"""Longitudinal pairs from single scans, since true pairs are rare.

    one head -> another person by a smooth deformation, or the same
             -> two acquisitions of it: views of one person
             -> lesions and atrophy with known truth, then two acquisitions: a follow-up

The parts are tissues.py and contrast.py (any contrast of an anatomy), acquisition.py
(what a scanner makes of it), deformation.py and lesions.py (what time makes of it).
Radiographs have their own: radiograph_synthesis.py. All randomness comes from the
generator that is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from medsiam.training.acquisition import (
    AcquisitionSettings,
    Protocol,
    View,
    acquired,
    draw_protocol,
    draw_view,
    normalised,
    sampled,
)
from medsiam.training.chance import Random, chance, uniform
from medsiam.training.contrast import detail_of, painted
from medsiam.training.deformation import WarpSettings, atrophy, person_warp, uneven, warped
from medsiam.training.lesions import LesionSettings, Visit, draw_lesions, truth
from medsiam.training.lesions import painted as with_lesions
from medsiam.training.tissues import BRAIN, NUMBER, PARENCHYMA, UNKNOWN, class_map, share_of_brain

# About 60 HU as the encoder sees them: oedema is 20 HU darker, blood 30 HU brighter.
CT_RANGE = 0.08
# Growth for which an anatomy's deformation is kept; other sizes are its multiples, and measured.
TYPICAL_GROWTH = 0.5


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One person on the working grid, whose centre is the head's.

    image   (K, J, I) 0..1 as scanned, None where only a label map is known
    tissue  (K, J, I) uint8, index into TISSUES, None where only an image is known
    ageing  (3, K, J, I) mm, what still bends the signal once it is painted: ventricles grow
            by less than a voxel, which a map of whole voxels cannot show
    """

    image: torch.Tensor | None
    tissue: torch.Tensor | None
    spacing_mm: float
    ageing: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, J, I) voxels."""
        known = self.image if self.image is not None else self.tissue
        assert known is not None
        return (known.shape[0], known.shape[1], known.shape[2])

    @cached_property
    def detail(self) -> torch.Tensor | None:
        """What the image shows within its tissues; every view of one person needs it."""
        if self.image is None or self.tissue is None:
            return None
        return detail_of(self.image, self.tissue)

    @cached_property
    def growing(self) -> torch.Tensor | None:
        """What grows the ventricles by TYPICAL_GROWTH, mm; to find it takes as long as ten views."""
        return _ageing(self, TYPICAL_GROWTH, None)

    @property
    def spacings_mm(self) -> tuple[float, float, float]:
        """Along each axis; they are equal."""
        return (self.spacing_mm,) * 3


@dataclass(frozen=True)
class SynthesisSettings:
    """How pairs are made; the parts have their own sections.

    same_protocol   share of follow-ups whose two visits have one protocol
    misregistered_mm largest shift that is left between the visits of a follow-up
    atrophy         share of follow-ups whose ventricles grow or shrink
    atrophy_growth  largest growth of the ventricles, relative
    other_ventricles, ventricle_growth  share of other persons with larger or smaller ventricles,
                    and their least and greatest growth, relative
    fine_spacing_mm smallest spacing at which follow-ups are shown, for small lesions
    """

    same_protocol: float = field(default=0.4, metadata={"range": (0.0, 1.0)})
    misregistered_mm: float = field(default=0.5, metadata={"range": (0.0, 5.0)})
    atrophy: float = field(default=0.2, metadata={"range": (0.0, 1.0)})
    atrophy_growth: float = field(default=0.3, metadata={"range": (0.0, 1.0)})
    other_ventricles: float = field(default=0.7, metadata={"range": (0.0, 1.0)})
    ventricle_growth: tuple[float, float] = field(default=(-0.4, 0.7), metadata={"range": (-0.6, 1.0)})
    fine_spacing_mm: float = field(default=1.5, metadata={"range": (0.5, 8.0)})
    acquisition: AcquisitionSettings = field(default_factory=AcquisitionSettings)
    warp: WarpSettings = field(default_factory=WarpSettings)
    lesions: LesionSettings = field(default_factory=LesionSettings)


@dataclass(frozen=True, eq=False)
class FollowUp:
    """Two visits of one person in one frame, and what truly changed.

    prior, current        (K, J, I) 0..1, as the encoder's input
    appearing, resolving  (K, J, I) 0..1, the share of each voxel that came, that went
    """

    prior: torch.Tensor
    current: torch.Tensor
    appearing: torch.Tensor
    resolving: torch.Tensor


def another_person(anatomy: Anatomy, settings: SynthesisSettings, random: Random) -> Anatomy:
    """A person with another head: bent, wider or longer, image and tissues alike."""
    bend = person_warp(anatomy.shape, anatomy.spacings_mm, settings.warp, random)
    other = _bent(anatomy, bend)
    growing = anatomy.growing
    if growing is None or not chance(settings.other_ventricles, random):
        return other
    # Else whose head it was tells how large the ventricles are, and nothing is learnt of them.
    size = uniform(*settings.ventricle_growth, random) / TYPICAL_GROWTH
    carried = size * warped(growing, bend, anatomy.spacings_mm)
    return replace(other, ageing=uneven(carried, anatomy.spacings_mm, random))


def tissue_share(anatomy: Anatomy, name: str) -> float:
    """A tissue's volume as `share_of_brain` gives it, after ageing; nan where it is not known."""
    if anatomy.tissue is None:
        return math.nan
    share = share_of_brain(anatomy.tissue, name)
    if anatomy.ageing is None:
        return share
    before = (anatomy.tissue == NUMBER[name]).float()
    after = warped(before, anatomy.ageing, anatomy.spacings_mm)
    return share * float(after.sum() / before.sum().clamp(min=1.0))


def scanned(
    anatomy: Anatomy, protocol: Protocol, view: View, settings: SynthesisSettings, random: Random
) -> torch.Tensor:
    """A scan (K, J, I) of the anatomy, 0..1: its contrast, then what the scanner makes of it."""
    signal = _painted(anatomy, protocol, random)
    seen = sampled(signal, anatomy.spacing_mm, view, bend=anatomy.ageing)
    return acquired(seen, protocol, view.spacing_mm, settings.acquisition, random)


def shares_seen(anatomy: Anatomy, view: View) -> torch.Tensor:
    """float16 (TISSUES + 1, K, J, I), 0..1: the share of each of the encoder's TISSUES in the view's voxels.

    The last is what cannot be told: all of it without a map.
    """
    if anatomy.tissue is None:
        unknown = torch.zeros(UNKNOWN + 1, *(view.size,) * 3, dtype=torch.float16)
        unknown[UNKNOWN] = 1.0
        return unknown
    classes = class_map(anatomy.tissue)
    inside = torch.stack([classes == number for number in range(1, UNKNOWN + 1)])
    shares = sampled(inside, anatomy.spacing_mm, view, bend=anatomy.ageing)
    return torch.cat([1.0 - shares.sum(0, keepdim=True), shares]).clamp_(0.0, 1.0).half()


def plainly_seen(anatomy: Anatomy, size: int, spacing_mm: float) -> torch.Tensor | None:
    """(K, J, I) 0..1: the image itself as the encoder would see it; None without one."""
    if anatomy.image is None:
        return None
    straight = View(size, spacing_mm, torch.eye(3), torch.zeros(3))
    return normalised(sampled(anatomy.image, anatomy.spacing_mm, straight))


def follow_up(
    anatomy: Anatomy, size: int, coarse_mm: float, settings: SynthesisSettings, random: Random
) -> FollowUp:
    """Two visits with lesions of every kind, as the encoder sees them from coarse to fine.

    size       voxels along each axis
    coarse_mm  the encoder's own spacing; it falls to fine_spacing_mm, around a point of the brain
    """
    first = draw_protocol(settings.acquisition, random)
    second = first if chance(settings.same_protocol, random) else draw_protocol(settings.acquisition, random)
    view = _close_view(anatomy, size, uniform(settings.fine_spacing_mm, coarse_mm, random), settings, random)
    shift = settings.misregistered_mm * (2 * torch.rand(3, generator=random) - 1)
    later = replace(view, centre_mm=view.centre_mm + shift)
    found = draw_lesions(_places(anatomy), anatomy.shape, anatomy.spacings_mm, settings.lesions, random)
    ageing = None
    if chance(settings.atrophy, random):
        growth = uniform(-settings.atrophy_growth, settings.atrophy_growth, random)
        ageing = _ageing(anatomy, growth, random)
    images = []
    visits: tuple[tuple[Protocol, View, Visit], ...] = ((first, view, "prior"), (second, later, "current"))
    for protocol, place, which in visits:
        signal = _painted(anatomy, protocol, random)
        # Before the head is bent: what a lesion looks like hangs on the tissue under it.
        signal = with_lesions(signal, found, which, signal_range=_signal_range(protocol))
        if which == "current" and ageing is not None:
            signal = warped(signal, ageing, anatomy.spacings_mm)
        seen = sampled(signal, anatomy.spacing_mm, place)
        images.append(acquired(seen, protocol, place.spacing_mm, settings.acquisition, random))
    appearing, resolving = (sampled(map_, anatomy.spacing_mm, view) for map_ in truth(found, anatomy.shape))
    return FollowUp(images[0], images[1], appearing, resolving)


def _painted(anatomy: Anatomy, protocol: Protocol, random: Random) -> torch.Tensor:
    return painted(anatomy.image, anatomy.tissue, protocol.contrast, random, detail=anatomy.detail)


def _bent(anatomy: Anatomy, bend: torch.Tensor) -> Anatomy:
    image, tissue = anatomy.image, anatomy.tissue
    return Anatomy(
        None if image is None else warped(image, bend, anatomy.spacings_mm),
        None if tissue is None else warped(tissue, bend, anatomy.spacings_mm, nearest=True),
        anatomy.spacing_mm,
    )


def _ageing(anatomy: Anatomy, growth: float, random: Random | None) -> torch.Tensor | None:
    """The displacement that lets the ventricles grow by this share; None where they are not known."""
    if anatomy.tissue is None:
        return None
    brain = (anatomy.tissue >= BRAIN[0]) & (anatomy.tissue <= BRAIN[-1])
    ventricles = anatomy.tissue == NUMBER["ventricle"]
    if not bool(ventricles.any()):
        return None
    return atrophy(ventricles.float(), brain.float(), anatomy.spacings_mm, growth, random).displacement


def _signal_range(protocol: Protocol) -> float:
    """Between tissues of the brain: lesions of a CT differ by some Hounsfield units."""
    return CT_RANGE if protocol.contrast.is_ct else 1.0


def _places(anatomy: Anatomy) -> torch.Tensor:
    """Where lesions may lie: in the brain's own tissue, or in anything that is not air."""
    if anatomy.tissue is not None:
        return torch.isin(anatomy.tissue, torch.tensor(PARENCHYMA, dtype=torch.uint8))
    assert anatomy.image is not None
    return anatomy.image > float(anatomy.image.mean())


def _close_view(
    anatomy: Anatomy, size: int, spacing_mm: float, settings: SynthesisSettings, random: Random
) -> View:
    """A view around a point of the tissue that lesions lie in, turned as patients lie."""
    view = draw_view(size, spacing_mm, settings.acquisition, random)
    places = _places(anatomy).nonzero()
    if len(places) == 0:
        return view
    point = places[int(torch.randint(len(places), (1,), generator=random))]
    middle = (torch.tensor(anatomy.shape) - 1) / 2
    # The finer the view, the nearer to the point: the coarsest holds the whole head anyway.
    reach = 1.0 - (size * spacing_mm) / (2.0 * max(anatomy.shape) * anatomy.spacing_mm)
    return replace(view, centre_mm=(point - middle) * anatomy.spacing_mm * max(0.0, reach))
