"""Two scans' intensities made equal on what did not change, jointly and in favour of neither.

The slow bias field and the gain are the smooth part of the log ratio; the
contrast curve is the typical difference at each brightness. Both are fitted
robustly, so that real change is left alone, and each scan is taken half the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from medsiam import kernels
from medsiam.sampling import Field, in_loops, local_mean, smooth


@dataclass(frozen=True)
class IntensitySettings:
    """How intensities are equalised.

    bias_sigma_mm  smoothness of the bias field; lesions are far smaller
    rounds         robust re-weightings of the bias fit
    curve_bins     points of the contrast curve
    """

    bias_sigma_mm: float = field(default=20.0, metadata={"range": (1.0, 500.0)})
    rounds: int = field(default=3, metadata={"range": (1, 100)})
    curve_bins: int = field(default=64, metadata={"range": (2, 4096)})


# Below this share of the typical tissue signal a logarithm would amplify noise.
LOG_FLOOR = 0.05
# Noise is smoothed away over the larger of these lengths before the contrast curve is read.
CURVE_SIGMA_MM, CURVE_SIGMA_VOXELS = 1.0, 0.7
TUKEY_CUTOFF = 4.685
# Quantiles are drawn from this many voxels, evenly spaced, or up to twice as many.
MOST_SAMPLES = 60_000


def robust_deviation(values: Field) -> float:
    """1.4826 times the median absolute deviation of some values."""
    values = thinned(values)
    return 1.4826 * median((values - median(values)).abs())


def median(values: Field) -> float:
    """The middle one of some values, the lower of two; NaN where there are none."""
    if values.device.type != "cpu" or not values.numel():
        return float(values.median())
    middle = (values.numel() - 1) // 2
    return float(np.partition(values.reshape(-1).numpy(), middle)[middle])


def thinned(values: Field, most: int = MOST_SAMPLES) -> Field:
    """Every n-th of many values, so that fewer than twice as many as `most` are left."""
    return values.reshape(-1)[:: max(1, values.numel() // most)]


def some_of(inside: Field, most: int = MOST_SAMPLES) -> Callable[[Field], Field]:
    """What `thinned(field[inside])` gives, for many fields and one mask, which is looked through once."""
    flat = inside.reshape(-1)
    # On the CPU numpy is several times as fast at this.
    found = (
        torch.from_numpy(np.flatnonzero(flat.numpy())) if flat.device.type == "cpu" else flat.nonzero()[:, 0]
    )
    places = thinned(found, most)
    return lambda field: field.reshape(-1)[places]


def equalise(
    prior: Field,
    current: Field,
    tissue: Field,
    spacing_mm: float,
    settings: IntensitySettings,
    *,
    signed: bool,
) -> tuple[Field, Field]:
    """Both fields with equal gain, bias and contrast curve, in units of the typical tissue value.

    prior, current  (K, J, I) on one grid;  tissue  bool, where the fit is made
    signed          values may be negative and have a fixed scale (HU): no gain and no
                    bias is fitted, and the unit is 100 HU
    """
    if signed:
        return prior / 100.0, current / 100.0
    one, other = _without_bias(prior, current, tissue, settings.bias_sigma_mm / spacing_mm, settings.rounds)
    sigma = max(CURVE_SIGMA_MM / spacing_mm, CURVE_SIGMA_VOXELS)
    return _with_one_curve(one, other, tissue, settings.curve_bins, sigma)


def _without_bias(
    prior: Field, current: Field, tissue: Field, sigma_voxels: float, rounds: int
) -> tuple[Field, Field]:
    some = some_of(tissue)
    logs = [_log(field, some) for field in (prior, current)]
    ratio = logs[1] - logs[0]
    fitted = torch.full_like(ratio, median(some(ratio)))
    inside = tissue.to(ratio.dtype)
    for _ in range(rounds):
        left = ratio - fitted
        scale = max(robust_deviation(some(left)), 1e-6)
        weight = inside * (1.0 - (left / (TUKEY_CUTOFF * scale)) ** 2).clamp_min(0.0) ** 2
        fitted = fitted + local_mean(left, weight, sigma_voxels)
    one, other = torch.exp(logs[0] + fitted / 2.0), torch.exp(logs[1] - fitted / 2.0)
    unit = median(some(0.5 * (one + other)))
    return one / unit, other / unit


def _log(field: Field, some: Callable[[Field], Field]) -> Field:
    typical = median(some(field))
    return torch.log(field.clamp_min(max(LOG_FLOOR * typical, 1e-6)))


def _with_one_curve(
    one: Field, other: Field, tissue: Field, bins: int, sigma_voxels: float
) -> tuple[Field, Field]:
    """Both fields less half the typical difference at their mean brightness.

    Read off smoothed fields: where one scan is noisier than the other its noise would
    pass for a contrast curve, since a voxel too bright in one is too bright in the mean.
    """
    calm = [smooth(field, (sigma_voxels,) * 3) for field in (one, other)]
    quiet, gap = 0.5 * (calm[0] + calm[1]), calm[1] - calm[0]
    some = some_of(tissue)
    brightness, typical = curve(some(quiet), some(gap), bins)
    mean = 0.5 * (one + other)
    expected = interpolated(mean, brightness, typical)
    return one + expected / 2.0, other - expected / 2.0


def curve(where: Field, values: Field, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The median of `values` in `bins` classes of `where` with equal counts, lightly smoothed."""
    places, amounts = where.cpu().numpy(), values.cpu().numpy()
    order = _rising(places)
    groups = np.array_split(order, max(1, min(bins, len(order))))
    centres = np.array([np.median(places[group]) for group in groups])
    medians = np.array([np.median(amounts[group]) for group in groups])
    padded = np.pad(medians, 2, mode="edge")
    return centres, np.convolve(padded, np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0, mode="valid")


def _rising(values: NDArray[np.float32]) -> NDArray[np.uint64]:
    """The order (n,) in which values rise, of equal ones the first first, as a stable argsort has it."""
    # A whole number that rises as the value does, beside its place: those are sorted in half the time.
    bits = (values.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # -0 becomes 0
    keys = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    keys = keys << np.uint64(32) | np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    return keys & np.uint64(0xFFFFFFFF)


def interpolated(field: Field, places: np.ndarray, values: np.ndarray) -> Field:
    """values(places) read at each voxel of a field, constant beyond both ends."""
    if in_loops(field):
        known = places.astype(np.float32), values.astype(np.float32)
        return torch.from_numpy(kernels.interpolated(field.contiguous().numpy(), *known))
    steps = torch.as_tensor(places, dtype=field.dtype, device=field.device)
    heights = torch.as_tensor(values, dtype=field.dtype, device=field.device)
    if len(steps) == 1:
        return torch.full_like(field, float(heights[0]))
    above = torch.searchsorted(steps, field.contiguous()).clamp(1, len(steps) - 1)
    low, high = steps[above - 1], steps[above]
    share = ((field - low) / (high - low).clamp_min(1e-9)).clamp(0.0, 1.0)
    return heights[above - 1] * (1.0 - share) + heights[above] * share
