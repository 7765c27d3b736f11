"""How well findings agree with the experts' change masks, and what is found where nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsiam.bench.ms_pairs import MsPair, data_folder, ms_pairs
from medsiam.bench.scores import Score, Scores
from medsiam.change.comparison import Comparison
from medsiam.compare import compare
from medsiam.pairing.motion import about, translation
from medsiam.pairing.sampling import sample
from medsiam.reading import read_volume
from medsiam.volume import Volume

# Voxel Dice and average precision of others on the same masks.
DICE = {
    "patient01": ("LST-AI XOR .451; plain subtraction, best threshold in hindsight .54", ">= .45"),
    "patient19": ("LST-AI XOR .486; plain subtraction, best threshold in hindsight .41", ">= .40"),
}
PRECISION = {"patient01": "plain subtraction .42", "patient19": "plain subtraction .35"}
# Change smaller than this is not asked of anyone.
SMALLEST_LESION_MM3 = 30.0


def measure(data: Path | None, seed: int) -> Scores:
    """Dice, average precision and lesions on the MS pairs; findings on pairs without change."""
    rows = [row for pair in ms_pairs(data) for row in _ms_rows(pair, seed)]
    rows += _same_day_rows(data_folder(data), seed)
    for pair in ms_pairs(data):
        rows += _self_rows(pair, seed)
    return Scores("change", "ms-longitudinal, mr-same-day", seed, tuple(rows))


def _ms_rows(pair: MsPair, seed: int) -> Iterator[Score]:
    comparison = compare(pair.prior, pair.current, seed=seed)
    found = found_on_common(comparison, pair)
    strength = _on_common(np.abs(comparison.change_map), pair)
    inside, truth = pair.brain, pair.change & pair.brain
    reference, target = DICE.get(pair.name, ("", ""))
    yield Score(f"{pair.name}: Dice of findings", dice(found & inside, truth), reference, target)
    yield Score(
        f"{pair.name}: average precision of the map",
        average_precision(strength[inside], truth[inside]),
        PRECISION.get(pair.name, ""),
    )
    met, lesions = lesions_met(truth, found, pair.common.voxel_ml * 1000.0)
    yield Score(f"{pair.name}: lesions over 30 mm3 met, of {lesions}", met)
    yield Score(f"{pair.name}: found places without truth", _without_truth(found & inside, truth))


def found_on_common(comparison: Comparison, pair: MsPair) -> NDArray[np.bool_]:
    """Where findings lie, bool (K, J, I) on the pair's common grid."""
    return _on_common(comparison.labels > 0, pair) > 0.5


def dice_of(comparison: Comparison, pair: MsPair) -> float:
    """Voxel Dice of all findings to the experts' mask, inside the brain."""
    return dice(found_on_common(comparison, pair) & pair.brain, pair.change & pair.brain)


def _same_day_rows(data: Path, seed: int) -> Iterator[Score]:
    folder = data / "mr-same-day"
    if folder.is_dir():
        one, other = read_volume(folder / "HFS"), read_volume(folder / "HFP")
        result = compare(one, other, seed=seed)
        yield Score(f"same day, supine to prone: findings ({result.verdict})", len(result.findings), "", "0")


def _self_rows(pair: MsPair, seed: int) -> Iterator[Score]:
    scan = pair.current
    middle = scan.grid.centre_mm
    turn = np.deg2rad(10.0)
    rotation = np.array(
        [[np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), np.cos(turn), 0.0], [0.0, 0.0, 1.0]]
    )
    motion = translation(np.array([9.0, -10.0, 6.7])) @ about(middle, rotation)
    moved = Volume(scan.array, scan.grid.moved(motion), scan.acquisition)
    for name, other in (("itself", scan), ("itself moved by 10 degrees and 15 mm", moved)):
        result = compare(scan, other, seed=seed)
        yield Score(f"{pair.name} against {name}: findings ({result.verdict})", len(result.findings), "", "0")


def _on_common(field: NDArray[np.generic], pair: MsPair) -> NDArray[np.float32]:
    values = torch.from_numpy(field.astype(np.float32))
    out: NDArray[np.float32] = sample(
        values, pair.current.grid, pair.common, pair.current_from_common
    ).numpy()
    return out


def dice(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Twice the common voxels over the sum of both; 1 where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2.0 * int((found & truth).sum()) / total if total else 1.0


def average_precision(strength: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Mean precision over the true voxels, ranked by strength."""
    ranked = truth[np.argsort(-strength, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, ranked.size + 1)
    return float((precision * ranked).sum() / max(int(ranked.sum()), 1))


def lesions_met(truth: NDArray[np.bool_], found: NDArray[np.bool_], voxel_mm3: float) -> tuple[int, int]:
    """How many true lesions over SMALLEST_LESION_MM3 a finding touches, and how many there are."""
    labels, _ = ndimage.label(truth, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:] * voxel_mm3
    large = 1 + np.flatnonzero(sizes >= SMALLEST_LESION_MM3)
    touched = np.unique(labels[found & (labels > 0)])
    return int(np.isin(large, touched).sum()), int(large.size)


def _without_truth(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> int:
    labels, count = ndimage.label(found, structure=np.ones((3, 3, 3)))
    return count - int(np.unique(labels[truth & (labels > 0)]).size)
