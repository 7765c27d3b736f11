"""Robust Gauss-Newton alignment of two locally normalised images in their halfway space.

The two images are warped by a motion and by its inverse, each by half, and the
update is shared between them, so that neither scan is the reference. After
Reuter, Rosas and Fischl, "Highly accurate inverse consistent registration: a
robust approach", NeuroImage 53 (2010), with local normalisation in the place
of a global gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medsiam.kernels import HARDLY, normal_sums
from medsiam.pairing.intensity import median
from medsiam.pairing.motion import exponential, half_of
from medsiam.sampling import Field, covering, cropped, downsampled, in_loops, isotropic, sample, smooth
from medsiam.volume import Grid, Matrix

# Tukey's biweight at this many robust standard deviations keeps 95 % efficiency
# on normal noise and takes true change and unpaired tissue out of the fit.
TUKEY_CUTOFF = 4.685
# Fewer voxels than this tell no motion.
FEWEST_VOXELS = 100
# Updates below this share of a voxel at the rim of a head end a level; the next would be a third of it.
SETTLED_VOXELS = 0.005
# Half the extent of a head in mm: scales the linear part like the shift.
LEVER_MM = 80.0
# Local correlations are taken over about this Gaussian sigma.
CORRELATION_SIGMA_VOXELS = 2.0
# Local means and deviations over about this Gaussian sigma, at least two voxels.
NORMALISING_SIGMA_MM = 5.0


@dataclass(frozen=True, eq=False)
class Level:
    """One scan at one resolution: locally normalised values and where they count."""

    grid: Grid
    field: Field
    """(2, K, J, I): normalised values and weight 0..1"""


def normalised(field: Field, weight: Field, sigma_voxels: float) -> Field:
    """The field with local mean zero and local deviation about one, weighted.

    Contrast and bias vanish where they are smooth over the window. A floor on
    the deviation keeps empty regions from being blown up into noise.
    """
    sigma = (sigma_voxels,) * 3
    mass = smooth(weight, sigma).clamp_min(1e-3)
    mean = smooth(field * weight, sigma) / mass
    square = smooth(field * field * weight, sigma) / mass
    deviation = (square - mean * mean).clamp_min(0.0).sqrt()
    inside = weight > 0.5
    floor = 0.25 * median(deviation[inside]) if inside.any() else deviation.max()
    return (field - mean) / (deviation + floor + 1e-6)


def level_of(field: Field, weight: Field, grid: Grid, spacing_mm: float) -> Level:
    """One scan and its weight brought to a resolution and locally normalised."""
    return levels_of(field, weight, grid, (spacing_mm,))[0]


def levels_of(field: Field, weight: Field, grid: Grid, spacings_mm: Sequence[float]) -> list[Level]:
    """One scan at several resolutions, in the order given; each is thinned from the next finer one.

    The variances of the two smoothings add up to that of one from the scan itself.
    """
    both, found = torch.stack([field, weight]), {}
    for spacing_mm in sorted(spacings_mm):
        both, grid = downsampled(both, grid, spacing_mm)
        found[spacing_mm] = _level(both, grid, spacing_mm)
    return [found[spacing_mm] for spacing_mm in spacings_mm]


def _level(both: Field, target: Grid, spacing_mm: float) -> Level:
    sigma = max(2.0, NORMALISING_SIGMA_MM / spacing_mm)
    values = normalised(both[0], both[1].clamp(0.0, 1.0), sigma)
    kept, box = cropped(torch.stack([values, both[1].clamp(0.0, 1.0)]), target, both[1])
    return Level(box, kept)


def halfway_grid(prior: Grid, current: Grid, half: Matrix, spacing_mm: float) -> Grid:
    """A grid over both scans as they lie in the halfway space of a motion."""
    if prior.is_flat:
        return isotropic(prior.moved(np.linalg.inv(half)), spacing_mm)
    return covering([(prior, np.linalg.inv(half)), (current, half)], (spacing_mm,) * 3)


def align(
    prior: Level, current: Level, prior_from_current: Matrix, *, affine: bool, signed: bool, iterations: int
) -> Matrix:
    """The refined prior_from_current (4 x 4 LPS mm) after at most `iterations` steps.

    signed  bright is taken to be bright in both; otherwise each neighbourhood
            may have its contrast inverted (two MR sequences)
    """
    basis = motion_basis(affine=affine, flat=prior.grid.is_flat)
    spacing_mm = float(prior.grid.spacing_mm[-1])
    half = half_of(prior_from_current)
    grid = halfway_grid(prior.grid, current.grid, half, spacing_mm)
    # All arithmetic is about the middle of the halfway grid, for conditioning.
    for _ in range(iterations):
        step = _step(prior, current, half, grid, basis, signed)
        prior_from_current = half @ exponential(step) @ half
        half = half_of(prior_from_current)
        if _reach_mm(step, grid.centre_mm) < SETTLED_VOXELS * spacing_mm:
            break
    return prior_from_current


def motion_basis(*, affine: bool, flat: bool) -> Matrix:
    """Generators (n, 4, 4) about the origin: rigid or affine, in space or in the plane.

    The linear part is scaled so that a unit of each moves a point LEVER_MM away by 1 mm.
    """
    axes = (0, 1) if flat else (0, 1, 2)
    out = []
    for axis in axes:
        out.append(_unit(axis, 3))
    for row in axes:
        for column in axes:
            if affine:
                out.append(_unit(row, column) / LEVER_MM)
            elif row < column:
                out.append((_unit(row, column) - _unit(column, row)) / LEVER_MM)
    return np.array(out)


def _unit(row: int, column: int) -> Matrix:
    matrix = np.zeros((4, 4))
    matrix[row, column] = 1.0
    return matrix


def _reach_mm(step: Matrix, centre_mm: Matrix) -> float:
    moved = step[:3, :3] @ centre_mm + step[:3, 3]
    return float(np.linalg.norm(moved) + LEVER_MM * np.linalg.norm(step[:3, :3], 2))


def _step(prior: Level, current: Level, half: Matrix, grid: Grid, basis: Matrix, signed: bool) -> Matrix:
    """The generator (4 x 4) of the update, from one weighted least-squares solve."""
    one = sample(prior.field, prior.grid, grid, half)
    other = sample(current.field, current.grid, grid, np.linalg.inv(half))
    weight = one[1] * other[1]
    mate = other[0]
    if not signed:
        likeness = local_correlation(one[0], other[0], weight)
        mate = torch.sign(likeness) * mate
        weight = weight * likeness**2
    residual = one[0] - mate
    cutoff = _cutoff(residual, weight)
    if cutoff is None:
        return np.zeros((4, 4))
    signs = torch.ones_like(residual) if signed else torch.sign(likeness)
    sums = _sums((one[0], other[0]), signs, residual, weight, cutoff, grid)
    return _solve((sums[:, :12], sums[:, 12]), grid.centre_mm, basis)


def local_correlation(one: Field, other: Field, weight: Field) -> Field:
    """Correlation -1..1 of two locally centred fields over a Gaussian neighbourhood."""
    sigma = (CORRELATION_SIGMA_VOXELS,) * 3
    products = torch.stack([one * other, one * one, other * other]) * weight
    cross, square_one, square_other = smooth(products, sigma)
    return cross / (square_one * square_other).clamp_min(1e-12).sqrt().clamp_min(1e-3)


def likeness(prior: Level, current: Level, prior_from_current: Matrix) -> tuple[float, float]:
    """Mean squared local correlation 0..1, blind to contrast, and the share of weight both see."""
    one, other, weight, share = _halfway(prior, current, prior_from_current)
    if share <= 0.0:
        return 0.0, 0.0
    squared = local_correlation(one, other, weight) ** 2
    return float((weight * squared).sum() / weight.sum()), share


def _cutoff(residual: Field, weight: Field) -> float | None:
    """The residual from which on Tukey's biweight is nought; None where too little is left to tell."""
    spread = residual[weight > 0.25].abs()
    if spread.numel() < FEWEST_VOXELS:
        return None
    return TUKEY_CUTOFF * 1.4826 * max(median(spread), 1e-3)


def _per_step(field: Field) -> Field:
    """Slopes (3, K, J, I) per voxel along k, j, i, central differences; nought at the walls."""
    slope = torch.zeros((3, *field.shape), dtype=field.dtype, device=field.device)
    for axis, size in enumerate(field.shape):
        if size > 2:
            ahead, behind = field.narrow(axis, 2, size - 2), field.narrow(axis, 0, size - 2)
            slope[axis].narrow(axis, 1, size - 2).copy_(0.5 * (ahead - behind))
    return slope


def _sums(
    pair: tuple[Field, Field], signs: Field, residual: Field, weight: Field, cutoff: float, grid: Grid
) -> Matrix:
    """Normal equations (12, 13) for the full 12 generators about the grid's centre, right side last."""
    world_from_step = np.linalg.inv(grid.world_from_index[:3, :3]).T
    lever = grid.world_from_index[:3] / LEVER_MM
    lever[:, 3] -= grid.centre_mm / LEVER_MM
    if in_loops(residual):
        images = pair[0].numpy(), pair[1].numpy()
        rest = signs.numpy(), residual.numpy(), weight.numpy()
        return normal_sums(images, *rest, cutoff, world_from_step, lever)
    return _sums_by_torch(pair, signs, residual, weight, cutoff, world_from_step, lever)


def _sums_by_torch(
    pair: tuple[Field, Field],
    signs: Field,
    residual: Field,
    weight: Field,
    cutoff: float,
    world_from_step: Matrix,
    lever: Matrix,
) -> Matrix:
    weight = weight * (1.0 - (residual / cutoff) ** 2).clamp_min(0.0) ** 2
    chosen = weight > HARDLY
    around, at = (
        torch.as_tensor(m, dtype=torch.float32, device=weight.device) for m in (world_from_step, lever)
    )
    per_step = 0.5 * (_per_step(pair[0]) + signs * _per_step(pair[1]))
    slopes = per_step[:, chosen].T @ around.T
    places = chosen.nonzero().to(torch.float32) @ at[:, :3].T + at[:, 3]
    ones = torch.ones_like(places[:, :1])
    # d residual / d generator[row, column] = slope[row] * (x, y, z, 1)[column]
    jacobian = (slopes[:, :, None] * torch.cat([places, ones], dim=1)[:, None, :]).reshape(-1, 12)
    both = torch.cat([jacobian, residual[chosen][:, None]], dim=1)
    # All that leaves the device in a step: these 156 numbers.
    return ((jacobian * weight[chosen][:, None]).T @ both).double().cpu().numpy()


def _solve(moments: tuple[Matrix, Matrix], centre_mm: Matrix, basis: Matrix) -> Matrix:
    normal, right = moments
    # The moments are in generators about the centre with linear parts per LEVER_MM.
    flat = basis[:, :3, :].copy()
    flat[:, :, :3] *= LEVER_MM
    columns = flat.reshape(len(basis), 12)
    system = columns @ normal @ columns.T
    ridge = 1e-9 * np.trace(system) / len(system) + 1e-12
    amounts = -np.linalg.solve(system + ridge * np.eye(len(system)), columns @ right)
    about_centre = np.tensordot(amounts, basis, axes=1)
    to_centre, back = np.eye(4), np.eye(4)
    to_centre[:3, 3], back[:3, 3] = -centre_mm, centre_mm
    return np.asarray(back @ about_centre @ to_centre)


def correlation(prior: Level, current: Level, prior_from_current: Matrix) -> tuple[float, float]:
    """Weighted correlation -1..1 of the normalised images, and the share of weight both see."""
    one, other, weight, share = _halfway(prior, current, prior_from_current)
    if share <= 0.0:
        return -1.0, 0.0
    total = weight.sum()
    a, b = one - (weight * one).sum() / total, other - (weight * other).sum() / total
    norm = ((weight * a * a).sum() * (weight * b * b).sum()).sqrt().clamp_min(1e-6)
    return float((weight * a * b).sum() / norm), share


def _halfway(prior: Level, current: Level, prior_from_current: Matrix) -> tuple[Field, Field, Field, float]:
    """Both normalised images in the halfway space, their common weight, and its share of the smaller one."""
    half = half_of(prior_from_current)
    grid = halfway_grid(prior.grid, current.grid, half, float(prior.grid.spacing_mm[-1]))
    one = sample(prior.field, prior.grid, grid, half)
    other = sample(current.field, current.grid, grid, np.linalg.inv(half))
    weight = one[1] * other[1]
    smaller = min(float(one[1].sum()), float(other[1].sum()))
    share = float(weight.sum()) / smaller if smaller >= 1.0 and float(weight.sum()) >= 1.0 else 0.0
    return one[0], other[0], weight, share
