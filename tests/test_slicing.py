"""What slices alone make of a difference is taken out, and a change is left. The anatomy is a formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsiam.pairing.slicing import slice_gap, slicings_of, with_like_slices
from medsiam.sampling import sample
from medsiam.volume import Acquisition, Grid, Volume

SIZE_MM = 40
BLOB_MM, BLOB_RADIUS_MM = (20.0, 20.0, 20.0), 4.0


def grid_of(shape, spacing_mm):
    """Axes k, j, i along z, y, x; the first voxel's centre at half a spacing."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.fliplr(np.diag(spacing_mm[::-1]))
    matrix[:3, 3] = 0.5 * np.array(spacing_mm[::-1])
    return Grid(shape, matrix)


def anatomy(places_mm, lesion):
    """Folds 9 to 14 mm wide across all axes, and a lesion where it is asked for."""
    x, y, z = places_mm.T
    folds = np.sin(x / 1.6) * np.cos(y / 1.9) + np.sin(z / 1.5 + x / 4.0) + np.cos(y / 2.2 - z / 2.1)
    far = np.linalg.norm(places_mm - BLOB_MM, axis=1)
    return 10.0 + folds + 3.0 * lesion / (1.0 + np.exp((far - BLOB_RADIUS_MM) / 0.4))


def scan(spacing_mm, *, lesion=False):
    """The anatomy as a scan shows it: each voxel the mean over its own extent, by 5 points an axis."""
    shape = tuple(round(SIZE_MM / step) for step in spacing_mm)
    grid = grid_of(shape, spacing_mm)
    centres = grid.world(np.indices(shape).reshape(3, -1).T)
    offsets = (np.arange(5) + 0.5) / 5 - 0.5
    total = np.zeros(len(centres))
    for k in offsets:
        for j in offsets[::2]:
            for i in offsets[::2]:
                total += anatomy(centres + np.array([i, j, k]) * spacing_mm[::-1], lesion)
    values = (total / (5 * 3 * 3)).reshape(shape).astype(np.float32)
    return Volume(values, grid, Acquisition(modality="MR"))


def halves(prior, current):
    """Both scans on the halfway grid, as pair_up samples them, and their slicings."""
    half = grid_of((SIZE_MM, SIZE_MM, SIZE_MM), (1.0, 1.0, 1.0))
    fields = [
        sample(torch.tensor(v.array), v.grid, half, np.eye(4), outside="border") for v in (prior, current)
    ]
    return fields, slicings_of((prior, current), (np.eye(4), np.eye(4)), half)


def inner(field):
    """Away from the border, where scans end."""
    return field[6:-6, 6:-6, 6:-6]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((4.0, 1.0, 1.0), (1.0, 4.0, 1.0)),
        ((2.5, 1.0, 1.0), (5.0, 1.0, 1.0)),
        ((4.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ],
    ids=["turned", "thicker", "thick and thin"],
)
def test_slices_of_one_anatomy_differ_by_half_as_much_or_less(one, other):
    """Nothing changed; what is left of the difference is what neither scan could show."""
    (prior, current), slicings = halves(scan(one), scan(other))
    alike = with_like_slices(prior, current, slicings)
    before, after = (float(inner(b - a).square().mean().sqrt()) for a, b in ((prior, current), alike))
    assert after < 0.5 * before


def test_a_change_is_left():
    """A lesion is in one scan alone: no common anatomy explains it."""
    (prior, current), slicings = halves(scan((4.0, 1.0, 1.0)), scan((1.0, 4.0, 1.0), lesion=True))
    (_, plain), _ = halves(scan((4.0, 1.0, 1.0)), scan((1.0, 4.0, 1.0)))
    without = with_like_slices(prior, plain, slicings)
    with_lesion = with_like_slices(prior, current, slicings)
    lesion = (with_lesion[1] - with_lesion[0]) - (without[1] - without[0])
    seen = current - plain
    assert float(lesion.sum() / seen.sum()) == pytest.approx(1.0, abs=0.05)
    assert float(lesion.max()) > 0.8 * float(seen.max())


def test_exchanging_the_scans_turns_the_sign_to_the_last_bit():
    """The law of the whole pipeline."""
    (prior, current), (first, second) = halves(scan((4.0, 1.0, 1.0)), scan((1.0, 4.0, 1.0), lesion=True))
    forward = slice_gap(prior, current, (first, second))
    assert torch.equal(forward, -slice_gap(current, prior, (second, first)))


def test_equal_slices_make_no_gap():
    """Two scans with one slicing, in one place, have nothing to explain."""
    (prior, current), slicings = halves(scan((4.0, 1.0, 1.0)), scan((4.0, 1.0, 1.0), lesion=True))
    assert float(slice_gap(prior, current, slicings).abs().max()) < 1e-4
