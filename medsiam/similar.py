"""Similar prior cases from paths to results: what `medsiam index` and `medsiam search` do.

add_to_index(scans, index)   an archive into an index, made where there is none
search_index(scan, index)    who looked like this before, or changed like this
similar_cases(volume, index) the neighbours of a scan, as a comparison's report tells them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medsiam.cases.case import Case
from medsiam.cases.index import CaseIndex
from medsiam.cases.intake import Hints, Intake, Progress, Refused, add_series, results_in, series_of
from medsiam.cases.issuers import issuer_of
from medsiam.cases.labels import LabelTable, read_labels
from medsiam.cases.query import change_query, finding_query, scan_query
from medsiam.cases.rebuild import embed_anew, rebuild, sizes_of
from medsiam.cases.search import SearchOutcome, Wish, search_cases
from medsiam.cases.settings import IndexSettings
from medsiam.encoding.encoder import Encoder
from medsiam.encoding.weights import load_encoder, warm_encoder
from medsiam.errors import IndexRefused, InputRefused, named, spoken
from medsiam.reading import SeriesEntry, load_key, read_volume
from medsiam.report.search_json import result_json
from medsiam.volume import Volume

# A comparison's report has room for so many.
BESIDE_A_COMPARISON = 5


@dataclass(frozen=True)
class Place:
    """Where a finding lies in the query: a place and radius, or a number of a label map."""

    at_mm: tuple[float, float, float] | None = None
    radius_mm: float = 6.0
    mask: Path | None = None
    number: int = 1


def nobody(done: int, total: int) -> None:
    """Tells nobody."""


def add_to_index(
    scans: Sequence[Path],
    folder: Path,
    *,
    labels: Path | None = None,
    results: Path | None = None,
    config: Path | None = None,
    weights: str | None = None,
    device: str = "auto",
    allow_shared: bool = False,
    progress: Progress = nobody,
) -> tuple[CaseIndex, Intake]:
    """The index with these scans in it, and what became of each.

    labels   a table of labels, outcomes and masks (see medsiam.cases.labels)
    results  folder of comparisons whose findings are stored too

    Raises InputRefused where no scan can be taken, IndexRefused where the index is not to be
    written, ResourceExhausted without room; what was stored stays.
    """
    key = load_key()
    table = read_labels(labels, key) if labels else LabelTable()
    settings = _settings(config)
    entries, refused = series_of(scans, key)
    usable = [entry for entry in entries if entry.is_usable]
    if not usable:
        raise _nothing_usable(entries, refused)
    encoder = _encoder_for(folder, usable, weights, device)
    index = CaseIndex.make(
        folder,
        encoder.encoder_id,
        sizes_of(encoder),
        spatial_dims=encoder.settings.spatial_dims,
        settings=settings,
        allow_shared=allow_shared,
    )
    hints = Hints(table, results_in(results) if results else {})
    intake = add_series(index, encoder, entries, hints, key=key, progress=progress)
    return index, replace(intake, refused=(*refused, *intake.refused))


def rebuild_index(
    folder: Path,
    scans: Sequence[Path] = (),
    *,
    weights: str | None = None,
    device: str = "auto",
    leave_out_missing: bool = False,
    progress: Progress = nobody,
) -> tuple[CaseIndex, Intake | None]:
    """The index with its files tidied; or, with scans given, embedded anew by these weights.

    Raises IndexRefused where scans of its cases are missing; then it is as it was.
    """
    index = CaseIndex.open(folder)
    if not scans:
        rebuild(index)
        return index, None
    key = load_key()
    entries, refused = series_of(scans, key)
    encoder = load_encoder(weights, spatial_dims=index.spatial_dims, device=_device(device))
    fresh, intake = embed_anew(
        index, encoder, entries, Hints(), key=key, leave_out_missing=leave_out_missing, progress=progress
    )
    return fresh, replace(intake, refused=(*refused, *intake.refused))


def search_index(
    scan: Path,
    folder: Path,
    wish: Wish | None = None,
    *,
    series: str | None = None,
    prior: Path | None = None,
    place: Place | None = None,
    patient: str = "",
    issuer: str = "",
    weights: str | None = None,
    device: str = "auto",
) -> SearchOutcome:
    """What `medsiam search` finds.

    series   which series of the scan
    prior    of a change: the earlier scan; otherwise the patient's latest in the index
    place    of a finding
    patient  the patient's number, where the file tells none
    issuer   of the number; needed where the index holds the number of several

    Raises InputRefused where the scan or the index cannot be taken.
    """
    wish, key = wish or Wish(), load_key()
    index = CaseIndex.open(folder)
    if wish.where.strip():
        # Refused before the scan is read.
        index.filter(wish.where)
    if patient and not issuer:
        issuer = issuer_of(index, patient, key)
    volume = read_volume(scan, series_uid=series, key=key)
    encoder = _fitting_encoder(index, volume, weights, device)
    if wish.by == "finding":
        where = place or Place()
        query = finding_query(
            volume,
            encoder,
            key=key,
            at_mm=where.at_mm,
            radius_mm=where.radius_mm,
            mask=where.mask,
            number=where.number,
            patient=patient,
            issuer=issuer,
        )
        return search_cases(index, query, wish)
    query = scan_query(volume, encoder, key=key, patient=patient, issuer=issuer)
    if wish.by == "scan":
        return search_cases(index, query, wish)
    before = _prior_case(prior, encoder, key, patient, issuer)
    change, earlier = change_query(index, query, before)
    return search_cases(index, change, wish, query_prior=earlier)


def similar_cases(
    volume: Volume, folder: Path, *, weights: str | None = None, device: str = "auto", seed: int = 0
) -> list[dict[str, Any]]:
    """The neighbours of a scan as search.json tells them, its own patient left out."""
    index = CaseIndex.open(folder)
    encoder = _fitting_encoder(index, volume, weights, device)
    query = scan_query(volume, encoder, key=load_key())
    outcome = search_cases(index, query, Wish(count=BESIDE_A_COMPARISON, controls=0, seed=seed))
    return [result_json(each) for each in outcome.results]


def open_index(folder: Path, *, weights: str | None, device: str) -> tuple[CaseIndex, Encoder]:
    """An index and the encoder of its embeddings.

    Raises IndexRefused where there is none, or it holds another encoder's.
    """
    index = CaseIndex.open(folder)
    return index, _encoder_of(index, weights, device)


def _settings(config: Path | None) -> IndexSettings:
    if config is None:
        return IndexSettings()
    # It knows the settings of every room, whose libraries a search need not wait for.
    from medsiam.config import load_settings

    return load_settings(config, IndexSettings)


def _device(name: str) -> str:
    """The first GPU, or the CPU where there is none, for "auto"."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _prior_case(prior: Path | None, encoder: Encoder, key: bytes, patient: str, issuer: str) -> Case | None:
    if prior is None:
        return None
    return scan_query(read_volume(prior, key=key), encoder, key=key, patient=patient, issuer=issuer)


def _encoder_for(folder: Path, usable: Sequence[SeriesEntry], weights: str | None, device: str) -> Encoder:
    """Of the dimensions that the index has; a new one takes those of the first scan."""
    try:
        spatial_dims = CaseIndex.open(folder).spatial_dims
    except IndexRefused:
        spatial_dims = 2 if usable[0].shape_kji[0] == 1 else 3
    return load_encoder(weights, spatial_dims=spatial_dims, device=_device(device))


def _fitting_encoder(index: CaseIndex, volume: Volume, weights: str | None, device: str) -> Encoder:
    if volume.spatial_dims != index.spatial_dims:
        kinds = {2: "radiographs", 3: "volumes"}
        raise IndexRefused(
            f"the index holds {kinds[index.spatial_dims]}, the scan is one of {kinds[volume.spatial_dims]}; "
            "search in an index of its kind"
        )
    return _encoder_of(index, weights, device)


def _encoder_of(index: CaseIndex, weights: str | None, device: str) -> Encoder:
    encoder = warm_encoder(weights, index.spatial_dims, _device(device))
    index.check_encoder(encoder.encoder_id)
    return encoder


def _nothing_usable(entries: Sequence[SeriesEntry], refused: Sequence[Refused]) -> InputRefused:
    told = [(each.message, each.spoken) for each in refused]
    told += [(str(e.refusal or e.reason), spoken(e.refusal) if e.refusal else "") for e in entries]
    reason, names = told[0] if told else ("nothing was found", "")
    error = InputRefused(f"no scan can be added ({len(told)} refused, the first: {reason})")
    # What is spoken repeats the reason before the names.
    names = names.removeprefix(reason).strip(" ()")
    return named(error, names) if names else error
