"""A read and encoded scan as a row of the index: what may be kept of it, and nothing more.

Free texts of the header (descriptions, comments) are left out: a name may stand in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medsiam.cases.case import Case, case_id_of
from medsiam.cases.labels import Told
from medsiam.cases.region import Region, pooled
from medsiam.cases.thumbnails import packed, strip_of, tile_at
from medsiam.encoding.encoder import Features
from medsiam.pairing.body_parts import regions_of
from medsiam.pairing.sequences import sequence_family
from medsiam.reading import patient_key
from medsiam.volume import Acquisition, Volume

NOTHING_TOLD = Told()


def scan_case(
    volume: Volume, features: Features, told: Told | None, *, key: bytes, source_key: str = ""
) -> Case:
    """The row of a whole scan. What the header tells is believed before the table.

    key  of patient keys
    """
    acquisition = volume.acquisition
    case_id = case_id_of(acquisition.sha256, features.encoder_id, acquisition.series_uid)
    spacing = volume.grid.spacing_mm
    table = told or NOTHING_TOLD
    return Case(
        case_id=case_id,
        scan_id=case_id,
        vector=features.embedding,
        patient_key=acquisition.patient_key or patient_key(table.patient, table.issuer, key) or "",
        study_uid=acquisition.study_uid,
        series_uid=acquisition.series_uid,
        sha256=acquisition.sha256,
        source_key=source_key,
        labels_key=told.digest if told else "",
        modality=acquisition.modality or table.modality,
        body_part=body_part_of(acquisition) or table.body_part,
        sequence=sequence_family(acquisition),
        scanner=scanner_of(acquisition) or table.scanner,
        station=str(acquisition.protocol.get("station", "")),
        sex=str(acquisition.protocol.get("sex", "")) or table.sex,
        acquired=acquisition.acquired.isoformat(timespec="seconds")
        if acquisition.acquired
        else table.acquired,
        outcome=table.outcome,
        age=acquisition.protocol.get("age_years", table.age),
        slice_mm=None if volume.grid.is_flat else round(float(spacing[0]), 3),
        pixel_mm=round(float(spacing[1]), 3),
        labels=dict(table.labels),
        thumbnails=strip_of(volume),
    )


def finding_cases(
    scan: Case, volume: Volume, features: Features, regions: Sequence[Region]
) -> Iterator[Case]:
    """A row for each lesion of a scan; it says what the scan's row says, and its volume."""
    for region in regions:
        yield _derived(
            scan,
            case_id=case_id_of(scan.case_id, "finding", *(f"{mm:.2f}" for mm in region.centre_mm)),
            vector=pooled(features, region),
            volume_ml=round(region.volume_ml, 5),
            thumbnails=packed([tile_at(volume, region.centre_mm)]),
        )


def scanner_of(acquisition: Acquisition) -> str:
    """Manufacturer and model, as far as they are told."""
    protocol = acquisition.protocol
    return " ".join(str(protocol[name]) for name in ("manufacturer", "model") if protocol.get(name))


def body_part_of(acquisition: Acquisition) -> str:
    """The regions that the scan shows, in words of our own; "" where they are not known."""
    return " ".join(sorted(regions_of(acquisition.body_part)))


def _derived(scan: Case, **changes: object) -> Case:
    told = {name: getattr(scan, name) for name in scan.__dataclass_fields__}
    return Case(**{**told, "scan_id": scan.case_id, "source_key": "", **changes})
