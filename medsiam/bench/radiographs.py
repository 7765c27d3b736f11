"""Chest radiographs: the change score beside the patients' course, and opacities put in by ourselves.

    successive radiographs of one patient -> score of change
          -> rank correlation with the change of the clinical state, beside pixel differences
    one radiograph taken again by synthesis -> false findings; with an opacity -> is it found

The clinical state is made of what the table tells on both days: the logarithm of CRP and of
LDH taken within two days of the image, and whether the patient lay in intensive care. The
table holds no oxygen flow; its partial pressures are partly venous and are not used.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from medsiam.bench.ms_pairs import data_folder
from medsiam.bench.scores import Score, Scores
from medsiam.change.radiograph import RadiographChange, measure_radiograph_change, radiograph_on_current
from medsiam.config import CompareSettings
from medsiam.lungs import find_lungs, lung_masks
from medsiam.pairing.comparability import judge
from medsiam.pairing.radiograph_pair import RadiographPair, pair_up_radiographs
from medsiam.reading import read_volume
from medsiam.training.chance import Random, choice, uniform
from medsiam.training.public_manifests import radiograph_rows
from medsiam.training.radiograph_change import absorbed
from medsiam.training.radiograph_geometry import PoseSettings, held, pose, warped
from medsiam.training.radiograph_nuisance import ExposureSettings, acquired
from medsiam.volume import Grid, Volume

# A laboratory value tells of the day of the image when it was taken so near to it.
NEAR_DAYS = 2.0
# What makes one unit of clinical change: CRP times e, LDH by a third, intensive care or not.
LDH_UNIT = 0.3
# Draws of patients for the interval.
BOOTSTRAPS = 2000
# Opacities put in: sizes in % of lung area, and how much they absorb (a plain consolidation).
SIZES_PERCENT = (1.0, 2.0, 5.0, 10.0, 20.0)
ATTENUATION = 0.8
# Radiographs made to carry them, and pixels along their longer side.
MADE, MADE_PIXELS = 10, 448
# An opacity is found where a finding of its direction covers this share of it.
COVERED = 0.25
# A patient who comes again the next day: turned, nearer and breathing a little differently.
RESCAN_POSE = PoseSettings(
    rotation_deg=2.0, shift=0.05, scale=0.05, shear=0.02, perspective=0.02, breath=0.05, turned=0.04
)
# The same ward's system on another day: training meets far stronger differences than this.
RESCAN_EXPOSURE = ExposureSettings(
    uneven=0.05, noise=0.02, processing=0.12, curve=0.2, levelling=0.0, collimated=0.0, letters=2
)


@dataclass(frozen=True)
class ClinicalState:
    """How ill a patient was on the day of an image; None where the table does not tell."""

    crp: float | None
    ldh: float | None
    intensive_care: float


@dataclass(frozen=True, eq=False)
class FollowUp:
    """Two successive radiographs of one patient with all that is set against each other.

    state    change of CRP, LDH, intensive care and of all together; None where not told
    figures  ours and the pixel differences, by name
    """

    patient: str
    seen_in_training: bool
    state: dict[str, float | None]
    figures: dict[str, float]
    abstains: bool


OURS = "change score"
BASELINES = (
    "pixel difference, plain",
    "pixel difference in the lungs, registered",
    "absolute pixel difference",
)
STATES = {"all": "clinical state", "crp": "CRP", "ldh": "LDH", "intensive_care": "intensive care"}


def measure(data: Path | None, seed: int) -> Scores:
    """Correlation with the clinical course, and what is found of opacities of known size."""
    folder = data_folder(data)
    follow_ups = list(_follow_ups(folder))
    rows = list(_course_rows(follow_ups, seed))
    rows += _made_rows(folder, torch.Generator().manual_seed(seed))
    return Scores("radiographs", "cxr-longitudinal", seed, tuple(rows))


def clinical_state(row: dict[str, str]) -> ClinicalState:
    """The state that one line of the table tells."""
    crp, ldh = _near(row, "crp"), _near(row, "ldh")
    came, left = _number(row.get("icu_admission_offset")), _number(row.get("icu_release_offset"))
    inside = came is not None and came <= 0.0 and (left is None or left >= 0.0)
    return ClinicalState(
        math.log(max(crp, 1.0)) if crp is not None else None,
        math.log(ldh) / LDH_UNIT if ldh is not None and ldh > 0.0 else None,
        float(inside),
    )


def state_change(prior: ClinicalState, current: ClinicalState) -> dict[str, float | None]:
    """Change of each part, + worse, and the mean of those that are told; staying in a ward tells nothing."""
    parts: dict[str, float | None] = {}
    for name in ("crp", "ldh"):
        before, after = getattr(prior, name), getattr(current, name)
        parts[name] = None if before is None or after is None else after - before
    moved = current.intensive_care - prior.intensive_care
    parts["intensive_care"] = moved if moved else None
    told = [value for value in parts.values() if value is not None]
    return {**parts, "all": float(np.mean(told)) if told else None}


def _near(row: dict[str, str], name: str) -> float | None:
    offset, value = _number(row.get(f"{name}_offset")), _number(row.get(f"{name}_val"))
    return value if offset is not None and abs(offset) <= NEAR_DAYS else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _follow_ups(folder: Path) -> Iterator[FollowUp]:
    """All successive pairs of all patients."""
    with (folder / "cxr-longitudinal" / "data.csv").open(encoding="utf-8-sig", newline="") as file:
        told = {row["image_id"]: clinical_state(row) for row in csv.DictReader(file)}
    rows = radiograph_rows(folder)
    for before, after in itertools.pairwise(rows):
        if before["patient"] != after["patient"]:
            continue
        prior, current = (_read(folder, row["path"], row["projection"]) for row in (before, after))
        states = [told[Path(row["path"]).stem] for row in (before, after)]
        radiograph, change = compared(prior, current)
        yield FollowUp(
            patient=before["patient"],
            seen_in_training=before["split"] == "train",
            state=state_change(*states),
            figures=_figures(radiograph, change),
            abstains=bool(change.reasons),
        )


def _read(folder: Path, path: str, projection: str) -> Volume:
    volume = read_volume(folder / path)
    protocol = {**volume.acquisition.protocol, "view_position": projection.upper()}
    return replace(volume, acquisition=replace(volume.acquisition, protocol=protocol))


def compared(prior: Volume, current: Volume) -> tuple[RadiographPair, RadiographChange]:
    """The chain for radiographs at its default settings."""
    spacings = [tuple(float(x) for x in volume.grid.spacing_mm) for volume in (prior, current)]
    comparability = judge(prior.acquisition, current.acquisition, spacings[0], spacings[1])  # type: ignore[arg-type]
    settings = CompareSettings().pairing()
    radiograph = pair_up_radiographs(prior, current, comparability, settings, torch.device("cpu"))
    return radiograph, measure_radiograph_change(radiograph)


def _figures(radiograph: RadiographPair, change: RadiographChange) -> dict[str, float]:
    """Ours and the baselines; brightness in deviations of each radiograph."""
    pair = radiograph.pair
    halves = [_normal(values) for values in (pair.prior_half, pair.current_half)]
    gap = halves[1] - halves[0]
    lungs = gap[pair.tissue] if pair.tissue.any() else gap.ravel()
    # As bytes they come: a mean of what is normalised would always be zero.
    raw = float(pair.current.array.mean() - pair.prior.array.mean()) / float(pair.prior.array.std() + 1e-6)
    values = (change.score, raw, float(lungs.mean()), float(np.abs(lungs).mean()))
    return dict(zip((OURS, *BASELINES), values, strict=True))


def _normal(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (values - values.mean()) / (values.std() + 1e-6)


def _course_rows(follow_ups: Sequence[FollowUp], seed: int) -> Iterator[Score]:
    unseen = [one for one in follow_ups if not one.seen_in_training]
    for who, chosen in (("unseen patients", unseen), ("all patients, seen ones too", follow_ups)):
        for state, name in STATES.items():
            told = [one for one in chosen if one.state[state] is not None]
            if len(told) < 5:
                continue
            for figure in (OURS, *BASELINES) if state == "all" else (OURS, BASELINES[1]):
                value, interval = rank_correlation(told, figure, state, seed)
                subject = f"{who}: {figure} against {name}, {len(told)} pairs of {_people(told)}"
                yield Score(subject, value, interval=interval)
        certain = [one for one in chosen if one.state["all"] is not None and not one.abstains]
        if len(certain) >= 5:
            value, interval = rank_correlation(certain, OURS, "all", seed)
            subject = f"{who}: {OURS} where no abstention, {len(certain)} pairs of {_people(certain)}"
            yield Score(subject, value, interval=interval)
    share = float(np.mean([one.abstains for one in unseen])) if unseen else math.nan
    yield Score(f"unseen patients: share of {len(unseen)} pairs on which no verdict is given", share)


def _people(told: Sequence[FollowUp]) -> int:
    return len({one.patient for one in told})


def rank_correlation(
    told: Sequence[FollowUp], figure: str, state: str, seed: int
) -> tuple[float, tuple[float, float]]:
    """Spearman's rho and its 95 % interval over draws of whole patients."""
    patients = sorted({one.patient for one in told})
    values = {p: [(o.figures[figure], o.state[state]) for o in told if o.patient == p] for p in patients}
    every = np.array([pair for p in patients for pair in values[p]], dtype=float)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(BOOTSTRAPS):
        some = [
            pair for n in random.integers(len(patients), size=len(patients)) for pair in values[patients[n]]
        ]
        one, other = np.array(some, dtype=float).T
        if np.ptp(one) > 0.0 and np.ptp(other) > 0.0:
            drawn.append(float(stats.spearmanr(one, other)[0]))
    low, high = np.percentile(drawn, (2.5, 97.5)) if drawn else (math.nan, math.nan)
    return float(stats.spearmanr(every[:, 0], every[:, 1])[0]), (float(low), float(high))


def _made_rows(folder: Path, random: Random) -> Iterator[Score]:
    """False findings on rescans without change, then opacities found by size; on unseen patients' images."""
    first = {row["patient"]: row["path"] for row in radiograph_rows(folder) if row["split"] != "train"}
    volumes = [read_volume(folder / path) for path in list(first.values())[:MADE]]
    volumes = [volume for volume in volumes if find_lungs(volume).found]
    still = [compared(*rescans(volume, 0.0, random)[:2])[1] for volume in volumes]
    judged = [change for change in still if not change.reasons]
    yield Score(f"made rescans without change: abstentions of {len(still)}", len(still) - len(judged))
    count = sum(len(change.findings) for change in judged)
    yield Score(f"made rescans without change: false findings in {len(judged)}", count, "", "0")
    for size in SIZES_PERCENT:
        met = [_met(volume, size, random) for volume in volumes]
        told = [one for one in met if one is not None]
        found = float(np.mean(told)) if told else math.nan
        yield Score(f"new opacity of {size:g} % of lung area: share found of {len(told)}", found)


def _met(volume: Volume, size_percent: float, random: Random) -> bool | None:
    """Whether the opacity is found; None where the tool abstains."""
    prior, current, truth = rescans(volume, size_percent, random)
    radiograph, change = compared(prior, current)
    if change.reasons:
        return None
    _, labels = radiograph_on_current(radiograph, change)
    grown = [finding.label for finding in change.findings if finding.delta_percent > 0.0]
    return bool((np.isin(labels, grown) & truth).sum() >= COVERED * truth.sum())


def rescans(volume: Volume, size_percent: float, random: Random) -> tuple[Volume, Volume, NDArray[np.bool_]]:
    """A chest taken twice by synthesis, the second time with an opacity, and where it lies then.

    size_percent  area of the opacity in % of both lungs; 0 for none
    """
    image, lungs = _small(volume)
    spot = _spot(lungs, size_percent, random)
    made = []
    for extra in (torch.zeros_like(spot), spot):
        position = pose(image.shape, RESCAN_POSE, random)
        position, inside = held(image, position)
        chest = absorbed(warped(image, position), ATTENUATION * warped(extra, position))
        values = acquired(chest, RESCAN_EXPOSURE, random, exposed=inside)
        made.append(_volume(values, volume))
    seen: NDArray[np.float32] = warped(spot, position).numpy()
    return made[0], made[1], np.asarray(seen > 0.5)[None]


def _small(volume: Volume) -> tuple[torch.Tensor, torch.Tensor]:
    """The image (J, I) as 0..1 with MADE_PIXELS along its longer side, and its lungs."""
    shape = [max(32, round(n * MADE_PIXELS / max(volume.grid.shape))) for n in volume.grid.shape[1:]]
    lungs = lung_masks(find_lungs(volume).outlines_mm, volume.grid)[:, 0].any(axis=0)
    both = torch.stack([torch.tensor(volume.array[0]), torch.tensor(lungs, dtype=torch.float32)])
    small = torch.nn.functional.interpolate(both[None], size=shape, mode="area")[0]
    low, high = small[0].quantile(0.01), small[0].quantile(0.99)
    return ((small[0] - low) / (high - low)).clamp(0.0, 1.0), small[1] > 0.5


def _spot(lungs: torch.Tensor, size_percent: float, random: Random) -> torch.Tensor:
    """0..1 (J, I): a round opacity with a soft edge in the lungs, of this size."""
    if size_percent == 0.0:
        return torch.zeros(lungs.shape)
    held_at = lungs.nonzero()
    j, i = held_at[choice(len(held_at), random)].tolist()
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in lungs.shape), indexing="ij")
    far = ((rows - j) ** 2 + ((columns - i) * uniform(0.8, 1.25, random)) ** 2).float().sqrt()
    wanted = size_percent / 100.0 * float(lungs.sum())
    # The disc whose part within the lungs has the size asked for.
    radius = float(far[lungs].sort().values[min(int(wanted), int(lungs.sum()) - 1)])
    return torch.sigmoid((radius - far) / max(0.12 * radius, 1.0)) * lungs


def _volume(values: torch.Tensor, like: Volume) -> Volume:
    array = (values.numpy() * 255.0).round()[None].astype(np.float32)
    return Volume(array, Grid((1, array.shape[1], array.shape[2]), np.eye(4)[[2, 1, 0, 3]]), like.acquisition)
