"""Global change in the brain's volume between two MR head scans, with its noise floor.

    pair -> working grid, gains equal -> deformation -> flux through the brain's surface
         -> pseudo-rescans of this very pair with known change -> how sure it is
         -> change in percent, its noise and its interval

The volume change is the divergence of the deformation summed over the brain's own tissue,
written as the flux through its surface, and the boundary shift integral (Freeborough and
Fox 1997, IEEE Transactions on Medical Imaging 16) of what the deformation leaves
unexplained: what smoothness held back. The tissue's share follows the probabilistic
form of Prados et al. 2015, Neurobiology of Aging 36.

Volumes are in the scanner's millimetres: where the registration is affine its volume
ratio counts. A wrong scale of the scanner's gradients cannot be told from atrophy; the
interval allows for one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as functional

from medsiam.pairing.deformable import (
    BrainScans,
    Deformation,
    DeformationSettings,
    deformation,
    displaced,
    flux,
    shrinking_way,
    waves,
)
from medsiam.pairing.intensity import robust_deviation, thinned
from medsiam.pairing.slicing import slicings_of, with_like_slices
from medsiam.pairing.values import Pair
from medsiam.sampling import Field, local_mean, sample, smooth
from medsiam.volume import transform

FLUID, GREY, WHITE = 1, 2, 3
# Below this probability of brain nothing is kept; the margin in voxels holds the fluid around.
KEPT, MARGIN_VOXELS = 0.05, 4
# Share of the brain's probability within which values are taken for pure.
INSIDE = 0.8
# Fluid's value is read at this quantile towards pure fluid: the rest is mixed with tissue.
PURE_FLUID = 0.2
# Tissue in which the gain is read holds at most this probability of fluid.
NO_FLUID = 0.4
# Fluid must differ from tissue by this share of tissue's value to mark the surface.
LEAST_CONTRAST = 0.2
# Fewer voxels than this give no value.
LEAST_VOXELS = 200
# The gain between the scans varies over this sigma and is fitted to tissue brighter than this share.
GAIN_MM, GAIN_ROUNDS, BRIGHT = 20.0, 3, 0.8
TUKEY_CUTOFF = 4.685
# What the deformation leaves counts where tissue and fluid mix, and not beyond so many deviations.
MIXED, RESIDUAL_CLIP = 0.1, 4.0
# Changes put into the pseudo-rescans, percent, in turn.
INJECTED_PERCENT = (-1.5, 0.0, 1.0, -0.7)
# The pair's own residual, with a random factor that changes over this length, is the rescan's noise.
NOISE_MM = 15.0
# What is left of two sessions' gain, and of their registration, in a rescan.
GAIN_LEFT, SHIFT_LEFT_MM = 0.01, 0.15
# Lengths agree between two sessions of a scanner to about 0.05 %, along each axis for itself.
SCALE_PERCENT = 100.0 * math.sqrt(3.0) * 0.0005
# A noise floor above this says nothing of a year's atrophy, which is 0.1 to 1 %.
USEFUL_PERCENT = 0.5
# How much of a change is found differs with its pattern by this share (deviation): diffuse
# or ventricular atrophy put into one head.
PATTERN = 0.08
# Slices lie elsewhere in each visit: percent per mm of thickness beyond 1 mm, and per mm by which
# two thicknesses differ. Coarse, set by hand with one person's same-day pair in view: there is no other.
THICK_PERCENT, UNLIKE_PERCENT = 0.1, 0.2
# The gradients' field is not straight: away from where the head lay before lengths differ.
# Percent of volume per mm between the two places, up to a headrest's reach.
ELSEWHERE_PERCENT, FARTHEST_MM = 0.007, 60.0
# Five scans of MS patients, made anew in another pose with another contrast curve and noise, came
# out .5 to .9 % smaller, which none of the above explains: nothing below that is called a change.
UNEXPLAINED_PERCENT = 0.8
# Recovery outside this range means that the pair's surface is not seen.
CREDIBLE_RECOVERY = (0.5, 1.6)


@dataclass(frozen=True)
class BrainVolumeSettings:
    """How the change of volume is measured.

    rescans  pseudo-rescans of the pair that tell its noise and its recovery
    """

    rescans: int = field(default=4, metadata={"range": (3, 60)})
    deformation: DeformationSettings = field(default_factory=DeformationSettings)


@dataclass(frozen=True)
class BrainVolumeChange:
    """How the volume of the brain's own tissue changed from the prior to the current scan.

    percent             of the prior's volume, negative where tissue was lost
    interval95_percent  from the noise, the recovery's and the scanner's uncertainty
    noise_percent       deviation of the same measure over pseudo-rescans: the noise floor
    log_ratio           natural logarithm of current over prior volume
    recovery            share of an injected change that is found; what it lacks of one widens the
                        interval and is not made up for: in heads of known change that did harm
    prior_ml            about how much tissue the prior shows (grey, white, hind brain)
    significant         whether the interval leaves out 0
    note                what limits the result, empty where nothing does
    """

    percent: float
    interval95_percent: tuple[float, float]
    noise_percent: float
    log_ratio: float
    recovery: float
    prior_ml: float
    significant: bool
    note: str


def measure_brain_volume_change(
    pair: Pair,
    settings: BrainVolumeSettings,
    *,
    seed: int,
    device: torch.device,
    rescans: int | None = None,
) -> BrainVolumeChange | None:
    """The change of the brain's volume; None where the pair shows no brain in MR.

    Also None where the registration failed or fluid and tissue look alike.
    seed     of the pseudo-rescans
    rescans  number of pseudo-rescans, the settings' where None
    device   the fields are small: they are worked on where numpy can see them
    """
    if rescans is not None:
        settings = replace(settings, rescans=rescans)
    scans = brain_scans(pair, settings.deformation)
    if scans is None:
        return None
    found = deformation(scans, settings.deformation)
    raw = raw_log_ratio(found, scans)
    recovery, noise = _calibrated(scans, found, settings, seed)
    doubt = _Doubt(
        scatter=100.0 * noise,
        pattern=100.0 * math.hypot(PATTERN, 1.0 - recovery) * abs(raw),
        left=100.0 * abs(_left(found, scans)),
        scanner=_scanner_percent(pair),
    )
    log_ratio = raw + _log_determinant(pair)
    return _judged(pair, log_ratio, recovery, doubt, scans, found)


@dataclass(frozen=True)
class _Doubt:
    """What the result's uncertainty is made of, in percent of the volume (deviations).

    scatter  over pseudo-rescans;  pattern  of the recovery;  left  what the deformation left
    scanner  scale, slices and place of the head
    """

    scatter: float
    pattern: float
    left: float
    scanner: float

    @property
    def percent(self) -> float:
        """All of it together, taken for independent."""
        return math.hypot(self.scatter, self.pattern, self.left, self.scanner)


def _judged(
    pair: Pair, log_ratio: float, recovery: float, doubt: _Doubt, scans: BrainScans, found: Deformation
) -> BrainVolumeChange:
    width = 1.96 * doubt.percent / 100.0
    low, high = (100.0 * math.expm1(log_ratio + side) for side in (-width, width))
    volume_ml = float(found.parenchyma.sum()) * scans.spacing_mm**3 / 1000.0
    return BrainVolumeChange(
        percent=100.0 * math.expm1(log_ratio),
        interval95_percent=(low, high),
        noise_percent=doubt.scatter,
        log_ratio=log_ratio,
        recovery=recovery,
        prior_ml=volume_ml * math.exp(-0.5 * log_ratio),
        significant=low > 0.0 or high < 0.0,
        note=_note(pair, recovery, doubt),
    )


def _scanner_percent(pair: Pair) -> float:
    """What scanners and slices may do to a volume, percent (deviation)."""
    thickest = [float(volume.grid.spacing_mm.max()) for volume in (pair.prior, pair.current)]
    thick = THICK_PERCENT * max(0.0, max(thickest) - 1.0)
    unlike = UNLIKE_PERCENT * abs(thickest[0] - thickest[1])
    middle = pair.grid.centre_mm[None]
    apart = transform(pair.current_from_half, middle) - transform(pair.prior_from_half, middle)
    elsewhere = ELSEWHERE_PERCENT * min(float(np.linalg.norm(apart)), FARTHEST_MM)
    return math.hypot(SCALE_PERCENT, UNEXPLAINED_PERCENT, thick, unlike, elsewhere)


def _note(pair: Pair, recovery: float, doubt: _Doubt) -> str:
    """What limits the result, as sentences; empty where nothing does."""
    said = []
    if doubt.percent > USEFUL_PERCENT:
        said.append(
            f"the deviation of this measurement is {doubt.percent:.1f} %, "
            "more than most diseases change in a year: it says nothing of slow atrophy"
        )
    if recovery in CREDIBLE_RECOVERY:
        said.append("the brain's surface is poorly seen: an injected change was not found again as it should")
    if pair.registration.kind == "affine":
        percent = 100.0 * math.expm1(_log_determinant(pair))
        said.append(
            f"{percent:+.2f} % comes from the affine registration: a scanner's scale or a true change"
        )
    return "; ".join(said)


def brain_scans(pair: Pair, settings: DeformationSettings) -> BrainScans | None:
    """Both scans of a pair on the working grid, gains equal; None where no surface can be seen."""
    modalities = {volume.acquisition.modality for volume in (pair.prior, pair.current)}
    if pair.region != "brain" or pair.tissue_kinds is None or not modalities <= {"MR", ""}:
        return None
    if pair.registration.quality == "failed":
        return None
    kinds = torch.from_numpy(pair.tissue_kinds)
    held = (kinds[1:].sum(0) > KEPT).nonzero()
    if len(held) < LEAST_VOXELS:
        return None
    low = (held.min(0).values - MARGIN_VOXELS).clamp_min(0).tolist()
    high = (held.max(0).values + MARGIN_VOXELS + 1).tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    prior, current, kinds = *(image[box] for image in _unequalised(pair)), kinds[(slice(None), *box)]
    levels = _levels(0.5 * (prior + current), kinds)
    if levels is None:
        return None
    spacing_mm = float(pair.grid.spacing_mm[-1])
    step = max(spacing_mm, settings.spacing_mm)
    brain = kinds[1:].sum(0)
    fields = _coarser(torch.stack([prior, current, brain, kinds[FLUID]]), spacing_mm, step)
    prior, current = _equal_gain(fields[0], fields[1], fields[2], fields[3], step)
    return BrainScans(prior, current, fields[2], *levels, step)


def _unequalised(pair: Pair) -> tuple[Field, Field]:
    """Both scans on the halfway grid, equal in their slices and in the typical tissue's value alone.

    The pair's own halves have one contrast curve, which takes every voxel that holds a
    little more fluid than before for one of another contrast: much of the change is lost.
    """
    volumes, motions = pair.seen, (pair.prior_from_half, pair.current_from_half)
    tissue = torch.from_numpy(pair.tissue)
    images = [
        sample(torch.tensor(volume.array), volume.grid, pair.grid, motion, outside="border")
        for volume, motion in zip(volumes, motions, strict=True)
    ]
    prior, current = (image / max(_median(image[tissue]), 1e-6) for image in images)
    return with_like_slices(prior, current, slicings_of(volumes, motions, pair.grid))


def _coarser(fields: Field, spacing_mm: float, step_mm: float) -> Field:
    """Fields (C, K, J, I) on a grid of this step from the same first voxel on."""
    ratio = step_mm / spacing_mm
    if ratio <= 1.0:
        return fields
    sigma = 0.5 * math.sqrt(ratio * ratio - 1.0)
    shape = [int((size - 1) / ratio) + 1 for size in fields.shape[1:]]
    fields = smooth(fields, (sigma, sigma, sigma))
    ends = [2.0 * ratio * (n - 1) / (size - 1) - 1.0 for n, size in zip(shape, fields.shape[1:], strict=True)]
    lines = [torch.linspace(-1.0, end, n) for end, n in zip(ends, shape, strict=True)]
    points = torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1], dim=-1)
    return functional.grid_sample(fields[None], points[None], padding_mode="border", align_corners=True)[0]


def _equal_gain(
    prior: Field, current: Field, brain: Field, fluid: Field, step_mm: float
) -> tuple[Field, Field]:
    """Both scans less half the smooth log ratio of their tissue, fitted robustly.

    Voxels that hold fluid are left out: there a change of volume looks like one of gain.
    """
    mean = 0.5 * (prior + current)
    inside = brain > INSIDE
    typical = _median(mean[inside])
    tissue = (inside & (fluid < NO_FLUID) & (mean > BRIGHT * typical)).float()
    floor = 0.1 * abs(typical) + 1e-6
    ratio = torch.log(current.clamp_min(floor)) - torch.log(prior.clamp_min(floor))
    fitted = torch.full_like(ratio, _median(ratio[tissue > 0]))
    for _ in range(GAIN_ROUNDS):
        left = ratio - fitted
        spread = max(1.4826 * _median(left[tissue > 0].abs()), 1e-6)
        weight = tissue * (1.0 - (left / (TUKEY_CUTOFF * spread)) ** 2).clamp_min(0.0) ** 2
        fitted = fitted + local_mean(left, weight, GAIN_MM / step_mm)
    return prior * torch.exp(0.5 * fitted), current * torch.exp(-0.5 * fitted)


def _levels(mean: Field, kinds: Field) -> tuple[float, float] | None:
    """The values of pure fluid and of tissue beside it; None where nothing parts them."""
    brain, most = kinds[1:].sum(0), kinds.amax(0)
    chosen = [mean[(kinds[kind] == most) & (brain > INSIDE)] for kind in (FLUID, GREY, WHITE)]
    if min(values.numel() for values in chosen) < LEAST_VOXELS:
        return None
    grey, white = _median(chosen[1]), _median(chosen[2])
    # Fluid is darker than tissue in T1 and FLAIR, brighter in T2: its purest are at that end.
    dark = _median(chosen[0]) < 0.5 * (grey + white)
    fluid = float(torch.quantile(thinned(chosen[0]), PURE_FLUID if dark else 1.0 - PURE_FLUID))
    tissue = min(grey, white) if dark else max(grey, white)
    return (fluid, tissue) if abs(tissue - fluid) >= LEAST_CONTRAST * abs(tissue) else None


def _median(values: Field) -> float:
    return float(np.median(thinned(values).numpy())) if values.numel() else 0.0


def raw_log_ratio(found: Deformation, scans: BrainScans) -> float:
    """Logarithm of current over prior tissue volume that a deformation and its residual show."""
    share = (flux(found.parenchyma, found.displacement, scans.spacing_mm) + _shift(found, scans)) / float(
        found.parenchyma.double().sum()
    )
    # Midway volume V: the prior is V - dV / 2, the current V + dV / 2.
    return 2.0 * math.atanh(max(-0.9, min(0.9, 0.5 * share)))


def _shift(found: Deformation, scans: BrainScans) -> float:
    """Boundary shift integral (voxels) of what the deformation left, at the surface alone."""
    share = found.parenchyma
    surface = smooth(4.0 * share * (1.0 - share), (1.0 / scans.spacing_mm,) * 3) > MIXED
    left = found.residual[surface]
    most = RESIDUAL_CLIP * max(robust_deviation(left), 1e-6)
    total = float(left.clamp(-most, most).sum(dtype=torch.float64))
    return total / (scans.tissue - scans.fluid)


def _left(found: Deformation, scans: BrainScans) -> float:
    return _shift(found, scans) / float(found.parenchyma.double().sum())


def _log_determinant(pair: Pair) -> float:
    """What the registration itself says of the volume: zero where it is rigid."""
    ratios = [np.linalg.det(motion[:3, :3]) for motion in (pair.current_from_half, pair.prior_from_half)]
    return float(np.log(abs(ratios[0])) - np.log(abs(ratios[1])))


# Pseudo-rescans: the pair's own anatomy with a change that is known


def _calibrated(
    scans: BrainScans, found: Deformation, settings: BrainVolumeSettings, seed: int
) -> tuple[float, float]:
    """How much of an injected change is found, and the scatter of what is found (log ratios)."""
    random = torch.Generator().manual_seed(seed)
    # The draws meet the same scan whichever is called the prior.
    swapped = float(scans.prior.sum(dtype=torch.float64)) > float(scans.current.sum(dtype=torch.float64))
    residual = -found.residual if swapped else found.residual
    injected, recovered = [], []
    for count in range(settings.rescans):
        percent = INJECTED_PERCENT[count % len(INJECTED_PERCENT)]
        rescan, truth = pseudo_rescan(scans, replace(found, residual=residual), percent, random)
        injected.append(truth)
        recovered.append(raw_log_ratio(deformation(rescan, settings.deformation), rescan))
    known, seen = np.array(injected), np.array(recovered)
    recovery = float(np.clip((known @ seen) / (known @ known), *CREDIBLE_RECOVERY))
    left = seen - recovery * known
    return recovery, float(np.sqrt((left @ left) / max(len(left) - 1, 1)))


def pseudo_rescan(
    scans: BrainScans, found: Deformation, percent: float, random: torch.Generator
) -> tuple[BrainScans, float]:
    """The pair's mean anatomy scanned twice with a known change, and its log volume ratio.

    The noise is the pair's own: what its deformation left, taken with random factors that
    differ from place to place.
    """
    step = scans.spacing_mm
    way = shrinking_way(found.parenchyma, scans, percent, random)
    truth = math.log1p(percent / 100.0) if percent else 0.0
    shift = SHIFT_LEFT_MM * torch.randn(3, 1, 1, 1, generator=random)
    shape = scans.prior.shape
    noise = waves(shape, NOISE_MM / step, random) * found.residual
    gain = torch.exp(GAIN_LEFT * waves(shape, GAIN_MM / step, random))
    # Tissue goes from place - way / 2 to place + way / 2: each scan is sampled against that.
    prior = displaced(found.mean, 0.5 * (way + shift), step) - 0.5 * noise
    current = (displaced(found.mean, -0.5 * (way + shift), step) + 0.5 * noise) * gain
    return replace(scans, prior=prior, current=current), truth
