"""The difference of a pair in units of this pair's own noise.

What the scanner, the interpolation and a remaining misregistration change is
learnt from the pair itself: how large differences typically are at edges of
this steepness, and how large in this neighbourhood. Every step treats both
scans alike, so that exchanging them changes the sign and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from medsiam.change.kept import last_kept
from medsiam.pairing.intensity import TUKEY_CUTOFF, curve, interpolated, median, robust_deviation, some_of
from medsiam.pairing.sequences import sequence_family
from medsiam.pairing.values import Pair
from medsiam.sampling import Field, local_mean, smooth


@dataclass(frozen=True)
class DifferenceSettings:
    """How the noise is measured and what a lesion looks like.

    smoothing_mm       Gaussian sigma of the matched filter
    neighbourhood_mm   sigma over which local noise is measured
    least_deviation    smallest noise assumed, in units of the typical tissue value
    bright_onset       where the sequence shows lesions bright: deviations above the
                       typical tissue from which brightness counts as abnormal
    surround_mm        sigma of the neighbourhood a structure stands out from
    noticeable_deviations  where nothing is known of lesions' brightness, the noise
                       deviations that count as evidence of one
    """

    smoothing_mm: float = field(default=1.0, metadata={"range": (0.1, 20.0)})
    neighbourhood_mm: float = field(default=10.0, metadata={"range": (1.0, 100.0)})
    least_deviation: float = field(default=0.01, metadata={"range": (1e-6, 10.0)})
    bright_onset: float = 1.0
    surround_mm: float = field(default=8.0, metadata={"range": (1.0, 100.0)})
    noticeable_deviations: float = field(default=3.0, metadata={"range": (0.01, 100.0)})


@dataclass(frozen=True, eq=False)
class DifferenceMap:
    """Signed differences on the halfway grid.

    contrast   (K, J, I) float32, current minus prior after smoothing, in units of the
               typical tissue value
    noise      likewise, the deviation that this pair's noise has there
    slices     likewise, what the slices made of the difference there, before it was taken out:
               it is known to within itself
    evidence   likewise, one is noticeable: contrast over noise, and where lesions are known
               to be bright only as far as the brighter scan is abnormal there
    mean       likewise, of both scans after smoothing, not zero outside
    standing   likewise, how much more the place stands out in the current scan
               than in the prior; its sign tells appearing from resolving
    bright     whether the sequence shows lesions brighter than tissue
    smoothing_voxels  sigma (k, j, i) of the matched filter
    """

    contrast: NDArray[np.float32]
    noise: NDArray[np.float32]
    slices: NDArray[np.float32]
    evidence: NDArray[np.float32]
    standing: NDArray[np.float32]
    mean: NDArray[np.float32]
    bright: bool
    smoothing_voxels: tuple[float, float, float]


# Steepness classes of the noise curve.
NOISE_BINS = 40
# Clipped at this many deviations, real change does not pass for local noise.
CLIP_DEVIATIONS = 3.0
# Width, in deviations, of the soft onset of abnormal brightness.
ONSET_WIDTH = 0.5
# Tissue probability that counts as pure when tissue values are averaged.
PURE = 0.5
# Fewer such voxels tell nothing of a tissue.
FEWEST_PURE = 100
# The fit of what the protocols changed: rounds of re-weighting, the width (voxels) over which a
# tissue tells on its neighbours, and what keeps it solvable.
FIT_ROUNDS, KIND_SIGMA_VOXELS, RIDGE = 4, 2.0, 1e-6
# FLAIR: fluid at most, and grey matter at least, this share of white matter's value.
DARK_FLUID, BRIGHT_GREY = 0.9, 1.05
FLUID, GREY, WHITE = 1, 2, 3


def measure_difference(pair: Pair, settings: DifferenceSettings, device: torch.device) -> DifferenceMap:
    """The pair's difference in units of its own noise; zero outside the common tissue."""
    prior, current = (torch.tensor(x, device=device) for x in (pair.prior_half, pair.current_half))
    tissue = torch.tensor(pair.tissue, device=device)
    spacing_mm = float(pair.grid.spacing_mm[-1])
    sigma = _voxels(max(settings.smoothing_mm, 0.7 * spacing_mm), spacing_mm)
    one, other = smooth(prior, sigma), smooth(current, sigma)
    contrast = _without_protocol(other - one, 0.5 * (one + other), pair, tissue) * tissue
    slices = torch.zeros_like(contrast)
    if pair.slice_gap is not None:
        slices = smooth(torch.tensor(pair.slice_gap, device=device).abs(), sigma) * tissue
    noise = _noise(contrast, steepness(0.5 * (one + other)), tissue, spacing_mm, settings).hypot(slices)
    evidence = contrast / noise
    bright = shows_lesions_bright(pair)
    if bright:
        change = _abnormality(other, tissue, settings) - _abnormality(one, tissue, settings)
        # Geometric mean: abnormal and beyond the noise, signed alike or nothing.
        agree = (change * evidence).clamp_min(0.0).sqrt()
        evidence = torch.sign(contrast) * agree
        standing = contrast
    else:
        evidence = evidence / settings.noticeable_deviations
        standing = _standing_out(other, tissue, spacing_mm, settings) - _standing_out(
            one, tissue, spacing_mm, settings
        )
    return DifferenceMap(
        contrast=contrast.cpu().numpy(),
        noise=noise.cpu().numpy(),
        slices=slices.cpu().numpy(),
        evidence=(evidence * tissue).cpu().numpy(),
        standing=(standing * tissue).cpu().numpy(),
        mean=(0.5 * (one + other)).cpu().numpy(),
        bright=bright,
        smoothing_voxels=sigma,
    )


def _without_protocol(contrast: Field, mean: Field, pair: Pair, tissue: Field) -> Field:
    """The contrast less what another sharpness and another weighting of the tissues make of it.

    A robust linear fit to the whole scan on what both scans show alike: second
    derivatives of their mean (a blur adds a share of them: the heat equation), its
    brightness, and each kind of tissue. Lesions are too few to bend it.
    """
    if not bool(tissue.any()):
        return contrast
    axes = [axis for axis, size in enumerate(mean.shape) if size > 2]
    parts = [torch.gradient(torch.gradient(mean, dim=axis)[0], dim=axis)[0] for axis in axes]
    parts += [torch.ones_like(mean), mean, mean * mean]
    for share, spread in () if pair.tissue_kinds is None else _tissues(pair.tissue_kinds, mean.device):
        parts += [share, spread, share * mean]
    some = some_of(tissue)
    rows = torch.stack([some(part) for part in parts], dim=1).double()
    weights = _robust_weights(rows, some(contrast).double())
    left = contrast.clone()
    for part, weight in zip(parts, weights.tolist(), strict=True):
        left.sub_(part, alpha=weight)
    return left


@last_kept
def _tissues(kinds: NDArray[np.float32], device: torch.device) -> list[tuple[Field, Field]]:
    """The share (K, J, I) of each tissue but the background, and what it spreads to its neighbours."""
    shares = [torch.tensor(kind, device=device) for kind in kinds[1:]]
    return [(share, smooth(share, (KIND_SIGMA_VOXELS,) * 3)) for share in shares]


def _robust_weights(rows: Field, values: Field) -> Field:
    """Tukey's biweight regression of values (n,) on rows (n, p), by re-weighted least squares."""
    ridge = RIDGE * rows.square().mean(dim=0).diag() * len(rows)
    trust = torch.ones_like(values)
    for _ in range(FIT_ROUNDS):
        weighted = rows * trust[:, None]
        weights: Field = torch.linalg.solve(weighted.T @ rows + ridge, weighted.T @ values)
        left = values - rows @ weights
        scale = max(robust_deviation(left), 1e-9)
        trust = (1.0 - (left / (TUKEY_CUTOFF * scale)) ** 2).clamp_min(0.0) ** 2
    return weights


def _voxels(sigma_mm: float, spacing_mm: float) -> tuple[float, float, float]:
    return (sigma_mm / spacing_mm,) * 3


def steepness(field: Field) -> Field:
    """Magnitude of the gradient per voxel; a flat axis adds nothing."""
    axes = [axis for axis, size in enumerate(field.shape) if size > 1]
    total = torch.zeros_like(field)
    for slope in torch.gradient(field, dim=axes):
        total.addcmul_(slope, slope)
    return total.sqrt_()


def _noise(
    contrast: Field, steepness: Field, tissue: Field, spacing_mm: float, settings: DifferenceSettings
) -> Field:
    """The deviation of the contrast at each voxel: by edge steepness, then by neighbourhood."""
    if not tissue.any():
        return torch.ones_like(contrast)
    some = some_of(tissue)
    places, medians = curve(some(steepness), some(contrast).abs(), NOISE_BINS)
    noise = (1.4826 * interpolated(steepness, places, medians)).clamp_min(settings.least_deviation)
    ratio = (contrast / noise).clamp(-CLIP_DEVIATIONS, CLIP_DEVIATIONS)
    local = local_mean(ratio * ratio, tissue.to(ratio.dtype), settings.neighbourhood_mm / spacing_mm).sqrt()
    noise = (noise * local).clamp_min(settings.least_deviation)
    # What is left is scaled so that the typical deviation is one.
    scale = robust_deviation(some(contrast / noise))
    return (noise * max(scale, 1e-6)).clamp_min(settings.least_deviation)


def _abnormality(field: Field, tissue: Field, settings: DifferenceSettings) -> Field:
    """How far, in deviations, each voxel is brighter than tissue ever is; softly zero below."""
    values = some_of(tissue)(field)
    deviations = (field - median(values)) / max(robust_deviation(values), 1e-6)
    return torch.nn.functional.softplus((deviations - settings.bright_onset) / ONSET_WIDTH) * ONSET_WIDTH


def _standing_out(field: Field, tissue: Field, spacing_mm: float, settings: DifferenceSettings) -> Field:
    """How much each voxel differs, either way, from its surroundings in the tissue."""
    return (field - local_mean(field, tissue.to(field.dtype), settings.surround_mm / spacing_mm)).abs()


def shows_lesions_bright(pair: Pair) -> bool:
    """Whether both scans are FLAIR of a brain, where lesions are brighter than any tissue.

    No other sequence allows to say so. Where the files do not tell their sequence,
    FLAIR is known by fluid darker than white matter and grey matter brighter.
    """
    if pair.tissue_kinds is None or pair.prior.acquisition.modality == "CT":
        return False
    told = {sequence_family(volume.acquisition) for volume in (pair.prior, pair.current)} - {""}
    if told:
        return told == {"FLAIR"}
    pure = _pure(pair.tissue, pair.tissue_kinds)
    return all(_looks_like_flair(field, pure) for field in (pair.prior_half, pair.current_half))


def _pure(tissue: NDArray[np.bool_], kinds: NDArray[np.float32]) -> list[NDArray[np.intp]]:
    """Flat places of the tissue's voxels that hold fluid, grey matter and white matter alone."""
    held = np.flatnonzero(tissue)
    return [held[kinds[kind].reshape(-1)[held] >= PURE] for kind in (FLUID, GREY, WHITE)]


def _looks_like_flair(field: NDArray[np.float32], pure: list[NDArray[np.intp]]) -> bool:
    if min(map(len, pure)) < FEWEST_PURE:
        return False
    fluid, grey, white = (float(np.median(field.reshape(-1)[places])) for places in pure)
    return fluid < DARK_FLUID * white and grey > BRIGHT_GREY * white
