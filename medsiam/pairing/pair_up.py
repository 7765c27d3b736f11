"""Two volumes to one pair: registered, in their halfway space, intensities equal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from medsiam.pairing.intensity import IntensitySettings, equalise
from medsiam.pairing.motion import half_of
from medsiam.pairing.region import Region, find_region
from medsiam.pairing.registration import RegistrationSettings, Scan, register, register_both_ways
from medsiam.pairing.side_by_side import side_by_side
from medsiam.pairing.slicing import less_gap, slice_gap, slicings_of
from medsiam.pairing.values import Comparability, Pair, Registration
from medsiam.sampling import Field, block_means, coverage, covering, cropped, isotropic, sample
from medsiam.volume import Grid, Matrix, Volume

# The halfway grid's largest size in voxels, which bounds time and memory.
MOST_VOXELS = 8_000_000
# A radiograph's halfway grid has about this many pixels along its longer side.
RADIOGRAPH_PIXELS = 768
# What lies further from the tissue than this has no part in it: no slice and no narrow blur is as wide.
SURROUND_MM = 8.0
# Voxels are taken together where they are together at most this much longer than the halfway grid's.
ROUNDED_UP = 1.05
# Where less of the larger scan's brain or body is seen in both, the rest would pass for unchanged.
LEAST_SEEN = 0.15
# Probability from which a voxel counts as tissue, in both scans.
TISSUE_SHARE = 0.5


@dataclass(frozen=True)
class HalfwaySettings:
    """How fine the space between two scans is at most: change smaller than a voxel is not claimed.

    finest_mm, fast_finest_mm  spacing, by default and in the fast mode; bars of contrast rise by the
                               third root of what is coarser than 1 mm and than the scans
    """

    finest_mm: float = field(default=1.0, metadata={"range": (0.5, 8.0)})
    fast_finest_mm: float = field(default=1.4, metadata={"range": (0.5, 8.0)})


@dataclass(frozen=True)
class PairSettings:
    """How two scans are brought together.

    finest_mm  the halfway space's spacing, where neither the scans nor their size make it coarser
    """

    registration: RegistrationSettings
    intensity: IntensitySettings
    finest_mm: float = HalfwaySettings.finest_mm


def pair_up(
    prior: Volume,
    current: Volume,
    comparability: Comparability,
    settings: PairSettings,
    device: torch.device,
    *,
    regions: tuple[Region, Region] | None = None,
) -> Pair:
    """Both volumes in their halfway space, each interpolated once, with how well they fit.

    regions  as find_regions gives them, where they are known
    """
    regions = regions or find_regions(prior, current)
    scans = _scans(prior, current, regions, device)
    registration = register(*scans, settings.registration)
    return bring_together(prior, current, regions, registration, comparability, settings, device)


def register_regions(
    prior: Volume,
    current: Volume,
    regions: tuple[Region, Region],
    settings: PairSettings,
    device: torch.device,
) -> tuple[Registration, Registration]:
    """The registration of two volumes by their regions, and that of them exchanged."""
    return register_both_ways(*_scans(prior, current, regions, device), settings.registration)


def find_regions(prior: Volume, current: Volume) -> tuple[Region, Region]:
    """Where change is looked for in both: the brain where both show one."""
    with side_by_side(2) as pool:
        first, second = pool.map(find_region, (prior, current))
    if {first.kind, second.kind} == {"brain", "body"}:
        return find_region(prior, brain=False), find_region(current, brain=False)
    return first, second


def _scans(
    prior: Volume, current: Volume, regions: tuple[Region, Region], device: torch.device
) -> tuple[Scan, Scan]:
    def scan(volume: Volume, region: Region) -> Scan:
        values, weight = (torch.tensor(each, device=device) for each in (volume.array, region.weight))
        return Scan(values, weight, volume.grid)

    return scan(prior, regions[0]), scan(current, regions[1])


def bring_together(
    prior: Volume,
    current: Volume,
    regions: tuple[Region, Region],
    registration: Registration,
    comparability: Comparability,
    settings: PairSettings,
    device: torch.device,
) -> Pair:
    """The pair for a given registration."""
    half = half_of(registration.prior_from_current)
    motions = half, np.linalg.inv(half)
    grid = _halfway_grid((prior, current), regions, motions, settings.finest_mm)
    weights = [
        sample(torch.tensor(r.weight, device=device), v.grid, grid, m) * coverage(v.grid, grid, m, device)
        for v, r, m in zip((prior, current), regions, motions, strict=True)
    ]
    tissue = torch.minimum(*weights) > TISSUE_SHARE
    margin = int(np.ceil(SURROUND_MM / grid.spacing_mm[-1]))
    tissue, grid = cropped(tissue, grid, tissue.float(), margin)
    registration = _doubted(registration, tissue, grid, (prior, current), regions)
    spacing_mm = float(grid.spacing_mm[-1])
    coarse = _hardly_finer(prior, spacing_mm), _hardly_finer(current, spacing_mm)
    fields = [
        sample(torch.tensor(v.array, device=device), v.grid, grid, m, outside="border")
        for v, m in zip(coarse, motions, strict=True)
    ]
    if tissue.any():
        signed = prior.acquisition.modality == "CT"
        fields = list(equalise(fields[0], fields[1], tissue, spacing_mm, settings.intensity, signed=signed))
    gap = None
    if not grid.is_flat:
        gap = slice_gap(fields[0], fields[1], slicings_of(coarse, motions, grid))
        fields = list(less_gap(fields[0], fields[1], gap))
    kinds = [
        found
        for region, motion in zip(regions, motions, strict=True)
        if (found := region.tissue_on(grid, motion)) is not None
    ]
    return Pair(
        prior=prior,
        current=current,
        comparability=comparability,
        registration=registration,
        region=regions[0].kind,
        grid=grid,
        prior_half=fields[0].cpu().numpy(),
        current_half=fields[1].cpu().numpy(),
        tissue=tissue.cpu().numpy(),
        tissue_kinds=torch.stack(kinds).mean(dim=0).cpu().numpy() if len(kinds) == 2 else None,
        prior_from_half=motions[0],
        current_from_half=motions[1],
        slice_gap=None if gap is None else gap.cpu().numpy(),
        notes=tuple(dict.fromkeys(region.note for region in regions)),
        coarse=coarse,
    )


def _doubted(
    registration: Registration,
    tissue: Field,
    grid: Grid,
    volumes: tuple[Volume, Volume],
    regions: tuple[Region, Region],
) -> Registration:
    """The registration, doubtful where only a sliver of what the larger scan shows is seen in both."""
    shown_ml = [float(r.weight.sum()) * v.grid.voxel_ml for v, r in zip(volumes, regions, strict=True)]
    share = float(tissue.sum()) * grid.voxel_ml / max(*shown_ml, 1e-6)
    if share >= LEAST_SEEN or registration.quality != "good" or grid.is_flat:
        return registration
    told = f"only {share:.0%} of the {regions[0].kind} that the larger scan shows is seen in both"
    return replace(registration, quality="doubtful", reasons=(told,))


def _hardly_finer(volume: Volume, spacing_mm: float) -> Volume:
    """The volume in means of as many voxels along each axis as this spacing holds; often itself.

    What lies between two samples would otherwise be thrown away, and its noise kept.
    """
    blocks = np.floor(ROUNDED_UP * spacing_mm / volume.grid.spacing_mm).astype(int)
    blocks = np.clip(blocks, 1, volume.grid.shape)
    if volume.grid.is_flat or blocks.max() == 1:
        return volume
    means, grid = block_means(torch.tensor(volume.array), volume.grid, blocks.tolist())
    return Volume(means.numpy(), grid, volume.acquisition)


def _halfway_grid(
    volumes: tuple[Volume, Volume],
    regions: tuple[Region, Region],
    motions: tuple[Matrix, Matrix],
    finest_mm: float,
) -> Grid:
    """The grid around what both scans may see of the region, as fine as the bounds allow."""
    boxes = []
    for volume, region, motion in zip(volumes, regions, motions, strict=True):
        weight = torch.from_numpy(region.weight)
        boxes.append((cropped(weight, volume.grid, weight)[1], np.linalg.inv(motion)))
    if volumes[0].grid.is_flat:
        box, half_from_world = boxes[0]
        extent = float((np.array(box.shape) * box.spacing_mm).max())
        return isotropic(box.moved(half_from_world), extent / RADIOGRAPH_PIXELS)
    coarse = covering(boxes, (8.0, 8.0, 8.0))
    millilitres = np.prod(coarse.shape) * coarse.voxel_ml
    finest = min(float(volume.grid.spacing_mm.min()) for volume in volumes)
    spacing = max(finest_mm, finest, float((millilitres * 1000.0 / MOST_VOXELS) ** (1.0 / 3.0)))
    return covering(boxes, (spacing,) * 3)
