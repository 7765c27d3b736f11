"""Which earlier study is the prior: the rule of PriorSettings, and a sentence that tells the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medsiam.errors import NotComparable
from medsiam.pacs.settings import PriorSettings
from medsiam.pacs.values import SeriesFound, StudyFound
from medsiam.pairing.body_parts import EVERYWHERE, regions_of
from medsiam.pairing.series_match import series_likeness

# Studies named beside the chosen one.
MOST_TOLD = 5


@dataclass(frozen=True)
class Offer:
    """A study that could be the prior, with its series most like one of the current's.

    likeness  0..1; 0 where no series goes with one of the current study
    """

    study: StudyFound
    prior: SeriesFound | None
    current: SeriesFound | None
    likeness: float


@dataclass(frozen=True)
class Choice:
    """The prior that was chosen, those that were not, and both in one sentence."""

    offer: Offer
    others: tuple[Offer, ...]
    sentence: str

    @property
    def series(self) -> tuple[SeriesFound, SeriesFound]:
        """The prior's series and the current's."""
        assert self.offer.prior is not None and self.offer.current is not None, "a chosen prior has series"
        return self.offer.prior, self.offer.current


def earlier_studies(
    current: StudyFound, studies: Sequence[StudyFound], settings: PriorSettings
) -> tuple[StudyFound, ...]:
    """The patient's studies that are early enough and not too old, most recent first."""
    found = []
    for study in studies:
        same_person = study.patient_id == current.patient_id and (
            not study.issuer or not current.issuer or study.issuer == current.issuer
        )
        if study.uid == current.uid or not same_person or study.when is None or current.when is None:
            continue
        days = (current.when - study.when).total_seconds() / 86400.0
        if days > 0.0 and settings.shortest_days <= days <= settings.longest_days:
            found.append(study)
    found.sort(key=lambda study: (study.when, study.uid), reverse=True)
    return tuple(found[: settings.most_studies])


def offer_of(
    study: StudyFound, priors: Sequence[SeriesFound], currents: Sequence[SeriesFound], settings: PriorSettings
) -> Offer:
    """What a study has to offer: its best pair of series."""
    best = Offer(study, None, None, 0.0)
    for prior in sorted(priors, key=lambda series: series.uid):
        for current in sorted(currents, key=lambda series: series.uid):
            if not _go_together(prior, current, settings):
                continue
            likeness = series_likeness(prior, current)
            # Rounded: sums that differ by their last bit are equal.
            if round(likeness, 9) > round(best.likeness, 9):
                best = Offer(study, prior, current, likeness)
    return best


def choose(offers: Sequence[Offer], settings: PriorSettings) -> Choice:
    """The most recent offer that is like enough. Offers come most recent first.

    Raises NotComparable where none is, and says what there was.
    """
    for n, offer in enumerate(offers):
        if offer.prior is not None and offer.likeness >= settings.least_likeness:
            others = (*offers[:n], *offers[n + 1 :])
            return Choice(offer, others, _sentence(offer, others))
    seen = f"; seen: {_told(offers)}" if offers else ""
    raise NotComparable(
        f"the study has no prior in the archive: {len(offers)} earlier studies of this patient within reach, "
        f"none with a series like enough ({settings.least_likeness:g} of 1){seen}; "
        "name both scans yourself, or change `prior` in --pacs-config"
    )


def _go_together(prior: SeriesFound, current: SeriesFound, settings: PriorSettings) -> bool:
    if not prior.is_comparable or not current.is_comparable:
        return False
    if prior.acquisition.modality != current.acquisition.modality:
        return False
    parts = regions_of(prior.acquisition.body_part), regions_of(current.acquisition.body_part)
    if not settings.same_body_part or not all(parts) or EVERYWHERE in parts:
        return True
    return bool(parts[0] & parts[1])


def _sentence(offer: Offer, others: Sequence[Offer]) -> str:
    assert offer.prior is not None and offer.current is not None, "a chosen prior has series"
    names = (offer.prior.acquisition.description, offer.current.acquisition.description)
    told = (
        f"The study of {offer.study.day} was taken as the prior, its series {names[0]!r} with {names[1]!r} "
        f"(likeness {offer.likeness:.2f})"
    )
    return f"{told}; not taken: {_told(others)}." if others else f"{told}; there was no other."


def _told(offers: Sequence[Offer]) -> str:
    words = [f"{offer.study.day} ({_worth(offer)})" for offer in offers[:MOST_TOLD]]
    more = len(offers) - MOST_TOLD
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _worth(offer: Offer) -> str:
    return "no series that goes with it" if offer.prior is None else f"{offer.likeness:.2f}"
