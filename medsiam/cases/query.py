"""A scan, a place in it, or a pair as the query of a search; it need not be in the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medsiam.cases.case import Case
from medsiam.cases.changes import change_of
from medsiam.cases.describe import finding_cases, scan_case
from medsiam.cases.filters import equal
from medsiam.cases.index import CaseIndex
from medsiam.cases.labels import Told
from medsiam.cases.region import Region, ball_region, check_inside, regions_of_labels
from medsiam.encoding.encoder import Encoder
from medsiam.errors import IndexRefused
from medsiam.reading import read_volume
from medsiam.volume import Volume


def scan_query(volume: Volume, encoder: Encoder, *, key: bytes, patient: str = "", issuer: str = "") -> Case:
    """The query of a whole scan.

    patient  its patient's number, where the file tells none, and who issued it
    """
    return scan_case(volume, encoder(volume), Told(patient=patient, issuer=issuer), key=key)


def finding_query(
    volume: Volume,
    encoder: Encoder,
    *,
    key: bytes,
    at_mm: Sequence[float] | None = None,
    radius_mm: float = 6.0,
    mask: Path | None = None,
    number: int = 1,
    patient: str = "",
    issuer: str = "",
) -> Case:
    """The query of one lesion: a ball around a place (LPS mm), or one number of a label map.

    Raises IndexRefused where neither is given, or it lies outside of the scan.
    """
    region = _region(at_mm, radius_mm, mask, number, key)
    check_inside(region, volume)
    features = encoder(volume)
    scan = scan_case(volume, features, Told(patient=patient, issuer=issuer), key=key)
    return next(finding_cases(scan, volume, features, [region]))


def change_query(index: CaseIndex, current: Case, prior: Case | None) -> tuple[Case, Case]:
    """The query of a change, and its prior: the one given, or the latest earlier scan in the index.

    Raises IndexRefused where there is none, or the two are not apart in time.
    """
    before = prior or _latest_before(index, current)
    if before is None:
        raise IndexRefused(
            "the index holds no earlier scan of this patient, so there is no change to search by; give "
            "one with "
            "--prior SCAN"
        )
    change = change_of(before, current)
    if change is None:
        raise IndexRefused(
            "the prior is not older than the scan by a day or more, or one of them tells no date; give "
            "them in "
            "order, with dates"
        )
    return replace(change, thumbnails=current.thumbnails), before


def _latest_before(index: CaseIndex, current: Case) -> Case | None:
    if not current.patient_key or current.acquired_day is None:
        return None
    own = index.store.find("scan", equal("patient_key", current.patient_key), vectors=True, thumbnails=True)
    alike = (current.modality, current.body_part, current.sequence)
    earlier = [
        scan
        for scan in own
        if (scan.modality, scan.body_part, scan.sequence) == alike
        and scan.acquired_day is not None
        and scan.acquired_day < current.acquired_day
    ]
    return max(earlier, key=lambda scan: scan.acquired_day or 0.0, default=None)


def _region(
    at_mm: Sequence[float] | None, radius_mm: float, mask: Path | None, number: int, key: bytes
) -> Region:
    if at_mm is not None:
        return ball_region(at_mm, radius_mm)
    if mask is None:
        raise IndexRefused(
            "a search by finding needs a place; give --at X,Y,Z in LPS mm, as report.json tells it, or "
            "--mask FILE"
        )
    regions = {region.number: region for region in regions_of_labels(read_volume(mask, key=key))}
    if number not in regions:
        raise IndexRefused(
            f"{mask.name} has no finding {number}; it has "
            f"{', '.join(map(str, sorted(regions)[:20])) or 'none'}"
        )
    return regions[number]
