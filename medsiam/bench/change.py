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
from medsiam.errors import InputRefused
from medsiam.pairing.motion import about, translation
from medsiam.phantom import Lesion, Scan, flair_acquisition, head_phantom, position
from medsiam.reading import read_volume
from medsiam.sampling import sample
from medsiam.volume import Volume

# Voxel Dice and average precision of others on the same masks.
DICE = {
    "patient01": ("LST-AI XOR .451; plain subtraction, best threshold in hindsight .54", ">= .45"),
    "patient19": ("LST-AI XOR .486; plain subtraction, best threshold in hindsight .41", ">= .40"),
}
PRECISION = {"patient01": "plain subtraction .42", "patient19": "plain subtraction .35"}
# Change smaller than this is not asked of anyone.
SMALLEST_LESION_MM3 = 30.0
# Scans made anew of each visit, and their noise as a share of the brightest tissue.
RESCANS_OF_EACH, NOISE_OF_TOP = 3, 0.02
# Made-up heads: pairs, voxel sizes (k, j, i) in mm, the share of pairs with one of them alone, and the
# lesions, which do not change.
MADE_UP_PAIRS, SAME_SLICES = 20, 0.5
SPACINGS_MM = ((4.0, 2.0, 2.0), (5.0, 2.0, 2.0), (3.0, 1.5, 1.5), (2.0, 2.0, 4.0), (2.0, 4.0, 2.0))
OLD_LESIONS = (Lesion((20.0, 26.0, 26.0), (5.0, 6.0, 5.0)),)


def measure(data: Path | None, seed: int) -> Scores:
    """Dice, average precision and lesions on the MS pairs; findings on pairs without change."""
    pairs = list(ms_pairs(data))
    rows = [row for pair in pairs for row in _ms_rows(pair, seed)]
    rows += _same_day_rows(data_folder(data), seed)
    rows += [row for pair in pairs for row in _self_rows(pair, seed)]
    rows += _rescan_rows(pairs, seed)
    rows += _made_up_rows(seed)
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
    yield from _certificate_rows(pair.name, comparison)
    met, lesions = lesions_met(truth, found, pair.common.voxel_ml * 1000.0)
    yield Score(f"{pair.name}: lesions over 30 mm3 met, of {lesions}", met)
    yield Score(f"{pair.name}: found places without truth", _without_truth(found & inside, truth))


def _certificate_rows(name: str, comparison: Comparison) -> Iterator[Score]:
    """What the comparison says of its own noise and of its reverse."""
    floor, reversal, erased = comparison.noise_floor, comparison.order_reversal, comparison.erase_test
    if floor is None or reversal is None or erased is None:
        return
    unseen = float("nan")
    half, most = (value if value is not None else unseen for value in (floor.half_ml, floor.smallest_ml))
    contrast = f"lesions of {floor.contrast:.0%} contrast put in"
    yield Score(f"{name}: found half of the times, ml", half, contrast, "<= .05")
    yield Score(f"{name}: found in {floor.share:.0%} of cases, ml", most, contrast, "<= .15")
    for third, value in floor.by_third_ml.items():
        yield Score(f"{name}: likewise, {third} third, ml", unseen if value is None else value)
    yield Score(f"{name}: order reversal, error of the score", reversal.error, "", "< 1e-5")
    yield Score(f"{name}: order reversal, Dice of the maps", reversal.dice, "", "> .95")
    yield Score(
        f"{name}: magnitude left once findings are erased, of {erased.magnitude:.2f}", erased.all_erased
    )


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


def _rescan_rows(pairs: list[MsPair], seed: int) -> Iterator[Score]:
    """Findings between each scan and itself scanned again: another pose, grid, gain, curve and noise."""
    findings = made = abstained = 0
    for pair in pairs:
        for number, scan in enumerate((pair.prior, pair.current)):
            for n in range(RESCANS_OF_EACH):
                random = np.random.default_rng([seed, number, n])
                result = compare(scan, scanned_again(scan, random), seed=seed, fast=True)
                made += 1
                abstained += result.verdict == "indeterminate"
                findings += len(result.findings)
    if not made:
        raise InputRefused("no MS pair is in this folder; set MEDSIAM_DATA or give --data DIR")
    yield Score(f"false findings a pair, of {made} scans made anew", findings / made, "nominal .05", "<= .05")
    yield Score("of them, without a verdict", abstained / made)


def _made_up_rows(seed: int) -> Iterator[Score]:
    """Findings between two scans of one made-up head, in coarse slices along any axis and in another pose."""
    findings = abstained = 0
    for n in range(MADE_UP_PAIRS):
        random = np.random.default_rng([seed, n])
        spacing = [SPACINGS_MM[i] for i in random.integers(len(SPACINGS_MM), size=2)]
        if random.random() < SAME_SLICES:
            spacing[1] = spacing[0]
        noise = random.uniform(3.0, 9.0) * np.array([1.0, random.uniform(0.7, 1.4)])
        pose = position(tuple(random.uniform(-6.0, 6.0, 3)), tuple(random.uniform(-8.0, 8.0, 3)))
        scans: list[Volume] = []
        for step, level, where in zip(spacing, noise, (None, pose), strict=True):
            scan = Scan(step, noise=float(level), bias=0.05, seed=2 * n + len(scans))
            made = head_phantom(
                OLD_LESIONS, scan=scan, world_from_head=where, acquisition=flair_acquisition(scan)
            )
            scans.append(made.volume)
        result = compare(scans[0], scans[1], seed=seed, fast=True)
        abstained += result.verdict == "indeterminate"
        findings += len(result.findings)
    what = f"false findings a pair, of {MADE_UP_PAIRS} made-up heads in coarse slices"
    yield Score(what, findings / MADE_UP_PAIRS, "nominal .05", "<= .05")
    yield Score("of them, without a verdict", abstained / MADE_UP_PAIRS)


def scanned_again(scan: Volume, random: np.random.Generator) -> Volume:
    """The scan in another pose on a grid of its own, with another gain, contrast curve and noise."""
    turn, shift = np.radians(random.uniform(-8.0, 8.0, 3)), random.uniform(-8.0, 8.0, 3)
    motion = translation(shift) @ about(scan.grid.centre_mm, _turned(turn))
    values = sample(torch.tensor(scan.array), scan.grid, scan.grid, motion, outside="border").numpy()
    top = float(np.percentile(values, 99.5))
    curved = top * np.clip(values / top, 0.0, None) ** random.uniform(0.85, 1.18)
    noise = NOISE_OF_TOP * top * random.standard_normal((2, *values.shape))
    # Magnitude images have Rician noise (Gudbjartsson and Patz 1995).
    noisy = np.hypot(random.uniform(0.6, 1.7) * curved + noise[0], noise[1]).astype(np.float32)
    return Volume(noisy, scan.grid, scan.acquisition)


def _turned(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    (a, b, c), (x, y, z) = np.cos(angles), np.sin(angles)
    around_x = np.array([[1.0, 0.0, 0.0], [0.0, a, -x], [0.0, x, a]])
    around_y = np.array([[b, 0.0, y], [0.0, 1.0, 0.0], [-y, 0.0, b]])
    return around_x @ around_y @ np.array([[c, -z, 0.0], [z, c, 0.0], [0.0, 0.0, 1.0]])


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
