"""The picture of the architecture as one function: two scans in, one Comparison out."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from medsiam import __version__
from medsiam.change.comparison import Comparison, EmbeddingDistance, Provenance
from medsiam.change.dense import dense_weights_sha256
from medsiam.change.measure import MeasuredChange, measure_change
from medsiam.change.verdict import Judged, judge_change, judge_radiographs
from medsiam.choices import LARGEST_SEED, is_device
from medsiam.config import CompareSettings, load_settings
from medsiam.encoding.encoder import Encoder, Features, cosine_distance
from medsiam.encoding.weights import warm_encoder
from medsiam.errors import ConfigRefused, InputRefused, NotComparable, ResourceExhausted, named
from medsiam.pairing.body_parts import regions_of
from medsiam.pairing.comparability import check_comparable, judge, unknown_notes
from medsiam.pairing.identity_check import check_identity
from medsiam.pairing.pair_up import PairSettings, bring_together, find_regions, register_regions
from medsiam.pairing.radiograph_pair import pair_up_radiographs
from medsiam.pairing.region import Region, brain_weights_sha256
from medsiam.pairing.registration import pose_sentence
from medsiam.pairing.series_match import match_series
from medsiam.pairing.side_by_side import side_by_side
from medsiam.pairing.values import Comparability, Pair, Registration
from medsiam.reading import SeriesEntry, find_series, load_key, read_series, read_volume
from medsiam.volume import Volume

Progress = Callable[[str], None]


def silent(step: str) -> None:
    """Tells nobody."""


def compare_series(
    prior: str | Path,
    current: str | Path,
    *,
    prior_series: str | None = None,
    current_series: str | None = None,
    config: str | Path | None = None,
    device: str = "auto",
    weights: str | None = None,
    seed: int = 0,
    fast: bool = False,
    allow_different_patients: bool = False,
    keep_order: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """What `medsiam compare` does: reads two scans from disk and compares them.

    prior, current   a folder, file or zip of DICOM, a DICOMDIR, NIfTI, or a radiograph
    prior_series, current_series   which series to take; otherwise the best pair
    weights          an encoder's safetensors file
    fast             a coarser noise floor in less time, for batches; the report says how much coarser

    Raises InputRefused (with the reason and the remedy) where no true answer can
    be given, ConfigRefused for settings that do not exist.
    """
    started = time.perf_counter()
    settings = load_settings(config, CompareSettings)
    progress("reading")
    volumes, told = _read_pair(Path(prior), Path(current), prior_series, current_series)
    notes = check_identity(
        volumes[0].acquisition,
        volumes[1].acquisition,
        allow_different_patients=allow_different_patients,
        keep_order=keep_order,
    )
    read_seconds = time.perf_counter() - started
    comparison = compare(
        volumes[0],
        volumes[1],
        settings,
        device=device,
        weights=weights,
        seed=seed,
        fast=fast,
        notes=(*told, *notes),
        progress=progress,
    )
    seconds = {"read": round(read_seconds, 3), **comparison.provenance.seconds}
    return dataclasses.replace(
        comparison, provenance=dataclasses.replace(comparison.provenance, seconds=seconds)
    )


def compare(
    prior: Volume,
    current: Volume,
    settings: CompareSettings | None = None,
    *,
    device: str = "auto",
    weights: str | None = None,
    seed: int = 0,
    fast: bool = False,
    notes: tuple[str, ...] = (),
    progress: Progress = silent,
) -> Comparison:
    """The comparison of two volumes; nothing is read or written but the weights.

    Raises NotComparable where the two show different things, ResourceExhausted
    where the device cannot hold them.
    """
    settings = settings or CompareSettings()
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigRefused(f"the seed is {str(seed)[:24]}; it must be from 0 to {LARGEST_SEED}")
    chosen = _device(device)
    if prior.spatial_dims != current.spatial_dims:
        kinds = {2: "a radiograph", 3: "a volume"}
        which = f"the prior is {kinds[prior.spatial_dims]} and the current {kinds[current.spatial_dims]}"
        raise NotComparable(f"{which}; give two scans of one kind")
    clock = _Stages()
    comparability = judge(prior.acquisition, current.acquisition, _spacing(prior), _spacing(current))
    check_comparable(comparability)
    with side_by_side(2) as pool:
        # Nothing that is measured hangs on it, and its network takes a second to load.
        encoding = pool.submit(_encoded, prior, current, weights, chosen)
        progress("registering")
        if prior.spatial_dims == current.spatial_dims == 2:
            radiograph = pair_up_radiographs(prior, current, comparability, settings.pairing(), chosen)
            pair, brain = radiograph.pair, None
            clock.ends("pair")
            progress("measuring change")
            judged = judge_radiographs(radiograph)
        else:
            regions = find_regions(prior, current)
            pairing = settings.pairing(fast=fast)
            there, back = register_regions(prior, current, regions, pairing, chosen)
            forward = pool.submit(
                bring_together, prior, current, regions, there, comparability, pairing, chosen
            )
            change = None
            if there.quality == "failed":
                pair = forward.result()
                clock.ends("pair")
            else:
                backward = pool.submit(_reversed, prior, current, regions, back, pairing, chosen)
                pair = forward.result()
                clock.ends("pair")
                steps = settings.change(fast=fast)
                change = measure_change(pair, backward.result, steps, seed=seed, device=chosen, told=progress)
            judged = judge_change(pair, change, settings.findings)
            brain = None if change is None else change.brain_volume
        clock.ends("change")
        progress("embedding")
        encoder, before, after = encoding.result()
    embedding, encoder_notes = _apart(encoder, before, after, pair)
    clock.ends("encode")
    told = judged.certificates
    all_notes = (
        *notes,
        *prior.acquisition.assumptions,
        *current.acquisition.assumptions,
        *unknown_notes(prior.acquisition, current.acquisition),
        *pair.notes,
        pose_sentence(pair.registration),
        *((_voxels_sentence(pair),) if fast and pair.prior.spatial_dims == 3 else ()),
        *((judged.reason,) if judged.reason else ()),
        *((told.note,) if told is not None and told.note else ()),
        *encoder_notes,
    )
    return Comparison(
        prior=prior,
        current=current,
        verdict=judged.verdict,
        summary=_summary(judged, comparability),
        comparability=comparability,
        registration=pair.registration,
        change=judged.figures,
        findings=judged.findings,
        change_map=judged.change_map,
        labels=judged.labels,
        prior_on_current=judged.prior_on_current,
        provenance=Provenance(
            medsiam=__version__,
            config=dataclasses.asdict(settings),
            device=str(chosen),
            seed=seed,
            encoder=encoder.encoder_id,
            weights_sha256={**_weights_of(pair), "encoder": encoder.weights_sha256},
            seconds=clock.seconds,
            peak_memory_mb=_peak_memory_mb(),
        ),
        embedding=embedding,
        noise_floor=None if told is None else told.floor,
        order_reversal=None if told is None else told.order_reversal,
        erase_test=None if told is None else told.erase_test,
        brain_volume=brain,
        notes=tuple(dict.fromkeys(all_notes)),
    )


def _read_pair(
    prior: Path, current: Path, prior_series: str | None, current_series: str | None
) -> tuple[tuple[Volume, Volume], tuple[str, ...]]:
    """Both volumes, and sentences that tell which series were taken."""
    key = load_key()
    sides = [
        usable_series(path, name, key) for path, name in ((prior, prior_series), (current, current_series))
    ]
    if all(len(side) == 1 for side in sides):
        return (read_series(sides[0][0]), read_series(sides[1][0])), ()
    match = match_series(sides[0], sides[1])
    entries = sides[0][match.prior], sides[1][match.current]
    return (read_series(entries[0]), read_series(entries[1])), (match.sentence,)


def usable_series(path: Path, name: str | None, key: bytes) -> list[SeriesEntry]:
    """The usable series of a path; where there is none, or one is named, read_volume's own refusal."""
    entries = find_series(path, key=key)
    if name is not None:
        chosen = [e for e in entries if name in (e.name, e.acquisition.series_uid) and e.is_usable]
        if len(chosen) == 1:
            return chosen
    usable = [entry for entry in entries if entry.is_usable]
    if name is not None or not usable:
        read_volume(path, series_uid=name, key=key)
        refusal = InputRefused("there is no series that can be compared; name another folder")
        raise named(refusal, repr(path.name))
    return usable


def _device(name: str) -> torch.device:
    """The device of a name; "auto" is the first GPU where there is one.

    Raises ConfigRefused where there is no such kind, ResourceExhausted where the named GPU is not there.
    """
    if not is_device(name):
        raise ConfigRefused(f"there is no device {name[:24]!r}; choose auto, cpu or cuda[:N]")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda"):
        number = int(name.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise ResourceExhausted(f"there is no GPU {number} here; use --device cpu or auto")
    return torch.device(name)


def _spacing(volume: Volume) -> tuple[float, float, float]:
    k, j, i = volume.grid.spacing_mm
    return float(k), float(j), float(i)


def _encoded(
    prior: Volume, current: Volume, weights: str | None, device: torch.device
) -> tuple[Encoder, Features, Features]:
    """The encoder, and what it makes of both.

    Raises WeightsRefused where the named weights are not for scans of this kind.
    """
    encoder = warm_encoder(weights, current.spatial_dims, str(device))
    return encoder, *encoder.encode_pair(prior, current)


def _apart(
    encoder: Encoder, before: Features, after: Features, pair: Pair
) -> tuple[EmbeddingDistance, tuple[str, ...]]:
    """How far apart the encoder puts the two scans, and what must be said of it."""
    distance = cosine_distance(before.embedding, after.embedding)
    curve = encoder.same_patient
    if curve is not None and curve.region not in _regions(pair):
        measured_on = curve.region or "unknown"
        told = f"no probability of one patient: the encoder was measured on the {measured_on} alone"
        return EmbeddingDistance(encoder.encoder_id, distance, None), (told,)
    probability = encoder.same_patient_probability(before, after)
    return EmbeddingDistance(encoder.encoder_id, distance, probability), ()


def _regions(pair: Pair) -> frozenset[str]:
    """What both scans show, as far as it is known."""
    if pair.region == "brain":
        return frozenset({"head"})
    return regions_of(pair.prior.acquisition.body_part) & regions_of(pair.current.acquisition.body_part)


def _weights_of(pair: Pair) -> dict[str, str]:
    if pair.region != "brain":
        return {}
    return {"brain": brain_weights_sha256(), "change": dense_weights_sha256()}


def _reversed(
    prior: Volume,
    current: Volume,
    regions: tuple[Region, Region],
    registration: Registration,
    settings: PairSettings,
    device: torch.device,
) -> Pair:
    """The pair with prior and current exchanged, by the registration of these."""
    comparability = judge(current.acquisition, prior.acquisition, _spacing(current), _spacing(prior))
    turned = regions[1], regions[0]
    return bring_together(current, prior, turned, registration, comparability, settings, device)


def _summary(judged: Judged, comparability: Comparability) -> str:
    """One plain sentence."""
    if judged.verdict == "indeterminate":
        return f"No verdict: {judged.reason}."
    changed = "; the protocol changed between the scans" * (comparability.category == "protocol-changed")
    if judged.verdict == "stable":
        return f"No change beyond the noise of this pair{_unseen(judged.certificates)}{changed}."
    kinds = [finding.kind for finding in judged.findings]
    counts = [
        f"{kinds.count(kind)} {kind}" for kind in ("new", "enlarged", "shrunk", "resolved") if kind in kinds
    ]
    places = "finding" if len(kinds) == 1 else "findings"
    return f"{len(kinds)} {places} beyond the noise of this pair: {', '.join(counts)}{changed}."


def _voxels_sentence(pair: Pair) -> str:
    """What the fast mode looks through."""
    return f"fast mode: change was measured in voxels of {pair.grid.spacing_mm[-1]:.2g} mm"


def _unseen(change: MeasuredChange | None) -> str:
    """What a scan without findings may still hide, as the second half of a sentence."""
    if change is None or not change.floor.injected:
        return ""
    smallest_ml = change.floor.smallest_ml
    if smallest_ml is None:
        return "; what could have been seen is uncertain"
    return f"; a lesion of {smallest_ml:.2g} ml would have been seen in {change.floor.share:.0%} of cases"


class _Stages:
    """Seconds of each stage, in the order they end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def ends(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return round(peak / (1024.0 if sys.platform != "darwin" else 1024.0**2), 1)
