"""Two volumes to one pair: registered, in their halfway space, intensities equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medsiam.pairing.intensity import IntensitySettings, equalise
from medsiam.pairing.motion import half_of
from medsiam.pairing.region import Region, find_region
from medsiam.pairing.registration import RegistrationSettings, Scan, register
from medsiam.pairing.sampling import Field, coverage, covering, cropped, isotropic, sample, smooth
from medsiam.pairing.values import Comparability, Pair, Registration
from medsiam.volume import Grid, Matrix, Volume

# The halfway grid's finest spacing: change smaller than this is not claimed.
FINEST_MM = 1.0
# and its largest size in voxels, which bounds time and memory.
MOST_VOXELS = 8_000_000
# A radiograph's halfway grid has about this many pixels along its longer side.
RADIOGRAPH_PIXELS = 768
# Probability from which a voxel counts as tissue, in both scans.
TISSUE_SHARE = 0.5


@dataclass(frozen=True)
class PairSettings:
    """How two scans are brought together."""

    registration: RegistrationSettings
    intensity: IntensitySettings


def pair_up(
    prior: Volume,
    current: Volume,
    comparability: Comparability,
    settings: PairSettings,
    device: torch.device,
) -> Pair:
    """Both volumes in their halfway space, each interpolated once, with how well they fit."""
    regions = find_region(prior), find_region(current)
    if {regions[0].kind, regions[1].kind} == {"brain", "body"}:
        regions = find_region(prior, brain=False), find_region(current, brain=False)
    scans = [_scan(v, r, device) for v, r in zip((prior, current), regions, strict=True)]
    registration = register(scans[0], scans[1], settings.registration)
    return bring_together(prior, current, regions, registration, comparability, settings.intensity, device)


def _scan(volume: Volume, region: Region, device: torch.device) -> Scan:
    return Scan(
        torch.tensor(volume.array, device=device), torch.tensor(region.weight, device=device), volume.grid
    )


def bring_together(
    prior: Volume,
    current: Volume,
    regions: tuple[Region, Region],
    registration: Registration,
    comparability: Comparability,
    settings: IntensitySettings,
    device: torch.device,
) -> Pair:
    """The pair for a given registration."""
    half = half_of(registration.prior_from_current)
    motions = half, np.linalg.inv(half)
    grid = _halfway_grid((prior, current), regions, motions)
    weights = [
        sample(torch.tensor(r.weight, device=device), v.grid, grid, m) * coverage(v.grid, grid, m, device)
        for v, r, m in zip((prior, current), regions, motions, strict=True)
    ]
    tissue = torch.minimum(*weights) > TISSUE_SHARE
    fields = [
        sample(_like_sharpness(v, o, device), v.grid, grid, m, outside="border")
        for v, o, m in zip((prior, current), (current, prior), motions, strict=True)
    ]
    spacing_mm = float(grid.spacing_mm[-1])
    if tissue.any():
        signed = prior.acquisition.modality == "CT"
        fields = list(equalise(fields[0], fields[1], tissue, spacing_mm, settings, signed=signed))
    kinds = [
        sample(torch.tensor(r.tissue, device=device), v.grid, grid, m)
        for v, r, m in zip((prior, current), regions, motions, strict=True)
        if r.tissue is not None
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
        notes=tuple(dict.fromkeys(region.note for region in regions)),
    )


def _halfway_grid(
    volumes: tuple[Volume, Volume], regions: tuple[Region, Region], motions: tuple[Matrix, Matrix]
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
    spacing = max(FINEST_MM, finest, float((millilitres * 1000.0 / MOST_VOXELS) ** (1.0 / 3.0)))
    return covering(boxes, (spacing,) * 3)


def _like_sharpness(volume: Volume, other: Volume, device: torch.device) -> Field:
    """The volume, smoothed along its slice axis where the other's slices are thicker.

    A slice of thickness t blurs like a Gaussian of variance t^2 / 12 along its
    normal; the sharper scan gets the difference. Only where both slice axes agree
    within 30 degrees: elsewhere the blurs lie across each other.
    """
    field = torch.tensor(volume.array, device=device)
    own, others = volume.grid, other.grid
    if own.is_flat:
        return field
    axis = int(np.argmax(own.spacing_mm))
    partner = int(np.argmax(others.spacing_mm))
    normals = [
        grid.world_from_index[:3, a] / grid.spacing_mm[a] for grid, a in ((own, axis), (others, partner))
    ]
    if abs(float(normals[0] @ normals[1])) < np.cos(np.radians(30.0)):
        return field
    excess = float(others.spacing_mm[partner] ** 2 - own.spacing_mm[axis] ** 2) / 12.0
    if excess <= 0.0:
        return field
    sigma = [0.0, 0.0, 0.0]
    sigma[axis] = float(np.sqrt(excess) / own.spacing_mm[axis])
    return smooth(field, (sigma[0], sigma[1], sigma[2]))
