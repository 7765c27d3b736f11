"""Whether two scans are of one patient and in the order given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, time, timedelta

from medsiam.errors import IdentityRefused
from medsiam.volume import Acquisition

# Two clocks without and with a time zone can be this far apart at one moment.
WIDEST_ZONE_SHIFT = timedelta(hours=14)


def check_identity(
    prior: Acquisition,
    current: Acquisition,
    *,
    allow_different_patients: bool,
    keep_order: bool,
) -> tuple[str, ...]:
    """What could not be checked or was allowed, each a plain sentence.

    Raises IdentityRefused where the scans are of two patients, or the prior is
    the later one, unless that is allowed.
    """
    return (
        *_patient_notes(prior, current, is_allowed=allow_different_patients),
        *_order_notes(prior, current, is_kept=keep_order),
        *_same_scan_notes(prior, current),
    )


def are_two_patients(a: Acquisition, b: Acquisition) -> bool:
    """Whether the patients' numbers tell two; one number is one patient's where one scan tells no issuer."""
    if a.patient_key is None or b.patient_key is None or a.patient_key == b.patient_key:
        return False
    return a.number_key is None or a.number_key != b.number_key or bool(a.issuer) == bool(b.issuer)


def order_of_time(scans: Sequence[Acquisition]) -> tuple[int, ...] | None:
    """Places of the scans, earliest first; None where one does not tell its time.

    Scans of which the times do not tell the earlier one keep the order given.
    """
    if any(scan.acquired is None for scan in scans):
        return None
    left = list(range(len(scans)))
    order: list[int] = []
    while left:
        first = next(
            (n for n in left if all(_order(scans[n], scans[m]) != 1 for m in left if m != n)), left[0]
        )
        order.append(first)
        left.remove(first)
    return tuple(order)


def _patient_notes(prior: Acquisition, current: Acquisition, *, is_allowed: bool) -> Iterator[str]:
    births = {prior.birth_key, current.birth_key}
    differing = [
        what
        for what, differs in (
            ("patient numbers", are_two_patients(prior, current)),
            ("birth dates or sexes", None not in births and len(births) == 2),
        )
        if differs
    ]
    if differing and not is_allowed:
        raise IdentityRefused(
            f"prior and current have different {' and '.join(differing)}, so they are of two patients; "
            "give two scans of one patient, or --allow-different-patients if this is meant"
        )
    if differing:
        yield f"The {' and '.join(differing)} differ; the comparison of different patients was asked for."
    elif None not in (prior.patient_key, current.patient_key) and prior.patient_key != current.patient_key:
        yield "Only one scan tells who issued the patient number; as both have one, one issuer was assumed."
    sides = [side for side, scan in (("prior", prior), ("current", current)) if scan.patient_key is None]
    if sides:
        who = f"The {sides[0]} does" if len(sides) == 1 else "Prior and current do"
        yield f"{who} not tell a patient number, so it was not checked that both are of one patient."


def _order_notes(prior: Acquisition, current: Acquisition, *, is_kept: bool) -> Iterator[str]:
    if prior.acquired is None or current.acquired is None:
        yield "The time of acquisition is not told by both files; the order given was taken."
        return
    order = _order(prior, current)
    if order is None:
        yield "The times of acquisition do not tell which scan is earlier; the order given was taken."
    elif order > 0 and is_kept:
        yield "The prior was acquired after the current scan; the order given was kept as asked."
    elif order > 0:
        raise IdentityRefused(
            f"the prior was acquired {_day(prior.acquired)}, after the current, {_day(current.acquired)}; "
            "swap the two, or give --keep-order if this is meant"
        )


def _order(prior: Acquisition, current: Acquisition) -> int | None:
    """1 where the prior is the later one, -1 where it is earlier, 0 at one moment, None where not told."""
    assert prior.acquired is not None and current.acquired is not None
    a, b = prior.acquired, current.acquired
    margin = timedelta(0)
    if (a.utcoffset() is None) != (b.utcoffset() is None):
        margin = WIDEST_ZONE_SHIFT
        a, b = a.replace(tzinfo=None), b.replace(tzinfo=None)
    if not (_time_is_known(prior) and _time_is_known(current)):
        # A day without a time stands for any moment of that day.
        if a.date() == b.date():
            return None
        a, b = (datetime.combine(moment.date(), time()) for moment in (a, b))
    if a != b and abs(a - b) <= margin:
        return None
    return (a > b) - (a < b)


def _time_is_known(acquisition: Acquisition) -> bool:
    # Where reading did not say, exactly midnight is a date without a time.
    assert acquisition.acquired is not None
    return bool(acquisition.protocol.get("acquired_time_known", acquisition.acquired.time() != time()))


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M") if moment.time() != time() else moment.strftime("%Y-%m-%d")


def _same_scan_notes(prior: Acquisition, current: Acquisition) -> Iterator[str]:
    if not prior.sha256 or prior.sha256 != current.sha256:
        return
    if prior.series_uid == current.series_uid:
        yield "Prior and current are the very same scan: nothing can have changed."
    else:
        yield "Prior and current hold the very same voxels under two series UIDs: one is a copy."
