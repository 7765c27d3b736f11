"""A step's batch: views of several people, and follow-ups with known change.

    people drawn -> some made into other people -> each seen under several protocols
    -> who it is, its labels -> follow-ups of some

All views of a batch share a few protocols, so that who it is can never be told by
how it was scanned: the likest stranger was scanned alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from typing import Protocol as Interface

import torch

from medsiam.training import radiograph_synthesis as flat
from medsiam.training.acquisition import draw_protocol, draw_view
from medsiam.training.chance import Random, chance, choice, uniform
from medsiam.training.sources import Source
from medsiam.training.synthesis import (
    Anatomy,
    FollowUp,
    SynthesisSettings,
    another_person,
    follow_up,
    plainly_seen,
    scanned,
    shares_seen,
    tissue_share,
)
from medsiam.training.tissues import tissue_map


@dataclass(frozen=True)
class BatchSettings:
    """What one step sees.

    people      different people; 0 for follow-ups alone
    views       of each, twins and more
    protocols   that the views share
    warped      share of people who are another person made of a scan at hand
    follow_ups  pairs with known change
    """

    people: int = field(default=8, metadata={"range": (0, 512)})
    views: int = field(default=4, metadata={"range": (2, 64)})
    protocols: int = field(default=4, metadata={"range": (1, 64)})
    warped: float = field(default=0.5, metadata={"range": (0.0, 1.0)})
    follow_ups: int = field(default=2, metadata={"range": (0, 64)})

    def __post_init__(self) -> None:
        if self.people == 1:
            raise ValueError("people is 1; nobody can be told from others, use 0 or at least 2")
        if self.people == 0 and self.follow_ups == 0:
            raise ValueError("people and follow_ups are 0; a step must see something")


@dataclass(frozen=True, eq=False)
class Batch:
    """Tensors of one step.

    views      (people x views, 1, [K,] J, I) 0..1
    people     (people x views,) who it is
    labels     (people x views, L), nan where unknown
    acquisition  (people x views, Z), numbers that describe how each was made
    tissues    (people x views, TISSUES + 1, K, J, I) float16, the share of each of the encoder's TISSUES
               in each voxel, the last of what is not known; (people x views, 0) where none are told
    prior, current, appearing, resolving  (F, 1, [K,] J, I); F may be 0
    """

    views: torch.Tensor
    people: torch.Tensor
    labels: torch.Tensor
    acquisition: torch.Tensor
    tissues: torch.Tensor
    prior: torch.Tensor
    current: torch.Tensor
    appearing: torch.Tensor
    resolving: torch.Tensor


class Studio(Interface):
    """Makes people, views and follow-ups of one kind of scan.

    count  patients there are
    """

    @property
    def count(self) -> int: ...

    def patients(self, count: int, random: Random) -> Sequence[int]: ...

    def person(self, patient: int, warp: bool, random: Random) -> Person: ...

    def follow_up(self, patient: int, random: Random) -> FollowUp: ...

    def protocols(self, count: int, random: Random) -> Sequence[object]: ...

    def described(self, protocol: object) -> tuple[float, ...]: ...


class Seen(NamedTuple):
    """A view ([K,] J, I), 0..1, and the tissues' shares in each of its voxels, as a Batch has them."""

    image: torch.Tensor
    tissues: torch.Tensor


class Person(Interface):
    """Somebody who can be scanned."""

    @property
    def labels(self) -> tuple[float, ...]: ...

    def view(self, protocol: object, random: Random) -> Seen: ...


def draw_batch(studio: Studio, settings: BatchSettings, random: Random) -> Batch:
    """A batch of people.

    A patient stands for two people of a batch only where the second is warped.
    """
    protocols = studio.protocols(settings.protocols, random)
    views, labels, made = [], [], []
    seen: set[int] = set()
    for n, patient in enumerate(studio.patients(settings.people, random)):
        person = studio.person(patient, patient in seen or chance(settings.warped, random), random)
        seen.add(patient)
        for v in range(settings.views):
            protocol = protocols[(n + v) % len(protocols)]
            views.append(person.view(protocol, random))
            made.append(torch.tensor(studio.described(protocol)))
            labels.append(torch.tensor(person.labels))
    pairs = [studio.follow_up(choice(studio.count, random), random) for _ in range(settings.follow_ups)]
    if settings.people == 0:
        return _without_views(pairs)
    people = torch.arange(settings.people).repeat_interleave(settings.views)
    images = torch.stack([view.image for view in views])[:, None]
    told = torch.stack(labels), torch.stack(made), torch.stack([view.tissues for view in views])
    return Batch(images, people, *told, *_stacked(pairs, images.shape[2:]))


def _without_views(pairs: Sequence[FollowUp]) -> Batch:
    """A batch of follow-ups alone. Of at least one: its shape is theirs."""
    shape = pairs[0].prior.shape
    nobody = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0), torch.zeros(0, 0)
    return Batch(torch.zeros(0, 1, *shape), *nobody, torch.zeros(0, 0), *_stacked(pairs, shape))


def _stacked(pairs: Sequence[FollowUp], shape: torch.Size) -> tuple[torch.Tensor, ...]:
    if not pairs:
        return (torch.zeros(0, 1, *shape),) * 4
    return tuple(
        torch.stack([getattr(pair, name) for pair in pairs])[:, None]
        for name in ("prior", "current", "appearing", "resolving")
    )


class HeadStudio:
    """Views and follow-ups of volumes.

    size, spacing_mm  of the encoder's input
    labels            columns of the manifest
    measured          tissues whose share of the brain is a label, on a logarithmic scale
    tissues           whether each view tells the tissues in its voxels
    """

    def __init__(
        self,
        sources: Sequence[Source],
        settings: SynthesisSettings,
        *,
        size: int,
        spacing_mm: float,
        labels: Sequence[str] = (),
        measured: Sequence[str] = (),
        tissues: bool = False,
    ) -> None:
        self.settings, self.size, self.spacing_mm, self.tissues = settings, size, spacing_mm, tissues
        self.labels, self.measured = tuple(labels), tuple(measured)
        self._scans = _by_patient(sources)
        self._anatomies: dict[int, Anatomy] = {}

    @property
    def count(self) -> int:
        """Patients there are."""
        return len(self._scans)

    def patients(self, count: int, random: Random) -> Sequence[int]:
        """Patients by chance, each before any comes again."""
        order = torch.randperm(self.count, generator=random).tolist()
        return [order[n % self.count] for n in range(count)]

    def protocols(self, count: int, random: Random) -> Sequence[object]:
        """Protocols by chance."""
        return [draw_protocol(self.settings.acquisition, random) for _ in range(count)]

    def described(self, protocol: object) -> tuple[float, ...]:
        """The protocol in numbers."""
        return protocol.described()  # type: ignore[attr-defined, no-any-return]

    def person(self, patient: int, warp: bool, random: Random) -> Head:
        """The patient, or another person made of one of the patient's scans."""
        scans = self._scans[patient]
        source = scans[choice(len(scans), random)]
        anatomy = self._anatomy(source)
        if warp:
            anatomy = another_person(anatomy, self.settings, random)
        # Who is bent is nobody, and nobody's age is known; volumes are measured on the bent head.
        told = [math.nan if warp else source.known.get(name, math.nan) for name in self.labels]
        shares = [_log_share(anatomy, name) for name in self.measured]
        return Head(self, anatomy, (*told, *shares))

    def follow_up(self, patient: int, random: Random) -> FollowUp:
        """Two visits of the patient."""
        scans = self._scans[patient]
        anatomy = self._anatomy(scans[choice(len(scans), random)])
        return follow_up(anatomy, self.size, self.spacing_mm, self.settings, random)

    def _anatomy(self, source: Source) -> Anatomy:
        found = self._anatomies.get(id(source))
        if found is None:
            found = self._anatomies[id(source)] = anatomy_of(source)
        return found


@dataclass(frozen=True, eq=False)
class Head:
    """Somebody whose head can be scanned."""

    studio: HeadStudio
    anatomy: Anatomy
    labels: tuple[float, ...]

    def view(self, protocol: object, random: Random) -> Seen:
        """A scan under a protocol, in a position by chance."""
        settings = self.studio.settings
        place = draw_view(self.studio.size, self.studio.spacing_mm, settings.acquisition, random)
        image = scanned(self.anatomy, protocol, place, settings, random)  # type: ignore[arg-type]
        return Seen(image, shares_seen(self.anatomy, place) if self.studio.tissues else torch.zeros(0))

    def as_it_is(self) -> torch.Tensor | None:
        """The scan itself (K, J, I) as the encoder sees it; None where only a label map is known."""
        return plainly_seen(self.anatomy, self.studio.size, self.studio.spacing_mm)


class RadiographStudio:
    """Views and follow-ups of radiographs; twins of a patient come from different images where there are."""

    def __init__(
        self,
        sources: Sequence[Source],
        settings: flat.RadiographSettings,
        *,
        labels: Sequence[str] = (),
    ) -> None:
        self.settings, self.labels = settings, tuple(labels)
        self._scans = _by_patient(sources)

    @property
    def count(self) -> int:
        """Patients there are."""
        return len(self._scans)

    def patients(self, count: int, random: Random) -> Sequence[int]:
        """Patients by chance, those with more images more often: true twins teach most."""
        weights = torch.tensor([math.sqrt(len(scans)) for scans in self._scans])
        drawn: list[int] = weights.multinomial(count, replacement=True, generator=random).tolist()
        return drawn

    def protocols(self, count: int, random: Random) -> Sequence[object]:
        """Nothing: radiographs share no protocol here, each view draws its own exposure."""
        return [None] * count

    def described(self, protocol: object) -> tuple[float, ...]:
        """Nothing, as there is no protocol."""
        return ()

    def person(self, patient: int, warp: bool, random: Random) -> Person:
        """The patient, or another person made of the images of one patient or of two."""
        known = self._scans[patient][0].known
        told = tuple(math.nan if warp else known.get(name, math.nan) for name in self.labels)
        chests = [self._chest(patient, warp, random)]
        if warp and self.count > 1 and chance(self.settings.blended, random):
            other = (patient + 1 + choice(self.count - 1, random)) % self.count
            chests.append(self._chest(other, True, random))
        share = uniform(0.5, 0.7, random) if len(chests) == 2 else 1.0
        return _Person2D(self.settings, tuple(chests), share, told)

    def _chest(self, patient: int, warp: bool, random: Random) -> _Chest:
        scans = self._scans[patient]
        bend = flat.person_warp(scans[0].image.shape[-2:], self.settings, random) if warp else None
        order = torch.randperm(len(scans), generator=random).tolist()
        return _Chest(itertools.cycle([scans[n] for n in order]), bend)

    def follow_up(self, patient: int, random: Random) -> FollowUp:
        """Two visits of the patient."""
        scans = self._scans[patient]
        image = scans[choice(len(scans), random)].image[0].float()
        made = flat.make_follow_up(image, self.settings, random)
        return FollowUp(made.prior, made.current, made.appearing, made.resolving)


@dataclass(frozen=True, eq=False)
class _Chest:
    """A patient's images, one after the other, and how they are bent."""

    scans: Iterator[Source]
    bend: torch.Tensor | None

    def image(self) -> torch.Tensor:
        return next(self.scans).image[0].float()


@dataclass(frozen=True, eq=False)
class _Person2D:
    settings: flat.RadiographSettings
    chests: tuple[_Chest, ...]
    share: float
    labels: tuple[float, ...]

    def view(self, protocol: object, random: Random) -> Seen:
        image = self._view(random)
        return Seen(image, torch.zeros(0))

    def _view(self, random: Random) -> torch.Tensor:
        if len(self.chests) == 1:
            return flat.make_view(self.chests[0].image(), self.chests[0].bend, self.settings, random)
        bent = [(chest.image(), chest.bend) for chest in self.chests if chest.bend is not None]
        image = flat.laid_over(bent, (self.share, 1.0 - self.share))
        return flat.make_view(image, None, self.settings, random)


def anatomy_of(source: Source) -> Anatomy:
    """The anatomy of a scan; a label map that is its own image has no image."""
    if source.labels is None:
        return Anatomy(source.image.float(), None, source.spacing_mm)
    image = None if source.is_label_map else source.image.float()
    tissue = tissue_map(source.labels, source.label_scheme, image)
    return Anatomy(image, tissue, source.spacing_mm)


def _by_patient(sources: Sequence[Source]) -> list[list[Source]]:
    found: dict[int, list[Source]] = {}
    for source in sources:
        found.setdefault(source.patient_index, []).append(source)
    return [found[index] for index in sorted(found)]


def _log_share(anatomy: Anatomy, name: str) -> float:
    share = tissue_share(anatomy, name)
    return math.log(share) if share > 0 else math.nan
