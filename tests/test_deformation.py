"""Deformations do what they say: nothing folds, and the ventricles grow by what is told."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.training.deformation import (
    STEEPEST,
    WarpSettings,
    atrophy,
    composed,
    jacobian,
    person_warp,
    warped,
)

SIZE, STEP = 40, 2.5
SHAPE, SPACING = (SIZE,) * 3, (STEP,) * 3
SEEDS = st.integers(0, 10_000)
QUICK = settings(max_examples=12, deadline=None)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def ball(radius_mm, shape=SHAPE, spacing_mm=SPACING):
    """Share 0..1 of each voxel that a ball in the middle takes."""
    k, j, i = ((torch.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm, strict=True))
    far = (k[:, None, None] ** 2 + j[None, :, None] ** 2 + i[None, None, :] ** 2).sqrt()
    return (0.5 + (radius_mm - far) / max(spacing_mm)).clamp(0, 1)


VENTRICLES, BRAIN = ball(12.0), ball(35.0)


def test_staying_in_place_changes_nothing():
    """And keeps every volume; torch's unit coordinates are rounded."""
    still = torch.zeros(3, *SHAPE)
    assert torch.allclose(warped(BRAIN, still, SPACING), BRAIN, atol=1e-4)
    assert torch.equal(jacobian(still, SPACING), torch.ones(SHAPE))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_displacement_points_at_the_source_in_mm(axis):
    """A shift by two voxels along one axis, on a grid whose axes all differ."""
    image, spacing = torch.rand(9, 10, 11, generator=seeded(0)), (3.0, 1.0, 0.5)
    shift = torch.zeros(3, *image.shape)
    shift[axis] = 2 * spacing[axis]
    rest = image.shape[axis] - 2
    moved = warped(image, shift, spacing)
    assert torch.allclose(moved.narrow(axis, 0, rest), image.narrow(axis, 2, rest), atol=1e-5)


@pytest.mark.parametrize("factors", [(1.1, 0.9, 1.0), (0.8, 1.2, 1.3)])
def test_the_jacobian_of_a_stretch_is_the_product_of_its_factors(factors):
    """Whatever the spacing."""
    spacing = (3.0, 1.0, 2.0)
    field = torch.zeros(3, 6, 7, 8)
    for axis, factor in enumerate(factors):
        place = torch.arange(field.shape[axis + 1]) * spacing[axis] * (factor - 1.0)
        field[axis] = place.view([-1 if n == axis else 1 for n in range(3)])
    assert torch.allclose(jacobian(field, spacing), torch.tensor(math.prod(factors)), atol=1e-5)


def test_a_fold_shows_in_the_jacobian():
    """The check would be worth nothing if it never failed."""
    field = torch.zeros(3, *SHAPE)
    field[1] = -2.0 * (torch.arange(SIZE) * STEP)[None, :, None]
    assert float(jacobian(field, SPACING).max()) < 0.0


@given(SEEDS, st.sampled_from([8.0, 60.0]))
@QUICK
def test_another_person_is_never_folded(seed, elastic_mm):
    """Not even where far too much was asked for."""
    field = person_warp(SHAPE, SPACING, WarpSettings(elastic_mm=elastic_mm), seeded(seed))
    assert float(jacobian(field, SPACING).min()) > (1.0 - STEEPEST) ** 3


def test_the_same_seed_gives_the_same_person_and_another_seed_another():
    """To the bit."""
    first, again, other = (person_warp(SHAPE, SPACING, WarpSettings(), seeded(n)) for n in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


def test_people_differ_in_the_size_of_their_ventricles():
    """Else the network could tell a person by a volume that never changes."""
    volumes = [
        float(warped(VENTRICLES, person_warp(SHAPE, SPACING, WarpSettings(), seeded(n)), SPACING).sum())
        for n in range(8)
    ]
    assert max(volumes) / min(volumes) > 1.2


def test_without_elasticity_a_person_differs_in_size_alone():
    """Each axis for itself, about the middle."""
    field = person_warp(SHAPE, SPACING, WarpSettings(elastic_mm=0.0, scale=0.1), seeded(1))
    determinant = jacobian(field, SPACING)
    assert float(determinant.std()) < 1e-4
    assert 0.9**3 < float(determinant.mean()) < 1.1**3
    assert float(field.mean(dim=(1, 2, 3)).abs().max()) < 1e-3


@given(st.sampled_from([-0.4, -0.1, 0.1, 0.3, 0.5]), SEEDS)
@QUICK
def test_the_ventricles_grow_by_what_was_asked(growth, seed):
    """Measured again on the whole grid; the truth that is told is the one that was made."""
    change = atrophy(VENTRICLES, BRAIN, SPACING, growth, seeded(seed))
    made = float(warped(VENTRICLES, change.displacement, SPACING).sum() / VENTRICLES.sum()) - 1.0
    assert made == pytest.approx(growth, rel=0.15)
    assert change.growth == pytest.approx(made, abs=1e-3)
    assert float(jacobian(change.displacement, SPACING).min()) > 0.0


def test_more_than_can_be_made_without_folding_is_made_in_part():
    """And told truly."""
    change = atrophy(VENTRICLES, BRAIN, SPACING, 5.0)
    assert 0.4 < change.growth < 5.0
    assert change.asked == 5.0
    assert float(jacobian(change.displacement, SPACING).min()) > 0.0


def test_atrophy_leaves_the_skull_in_place():
    """The head does not change its size."""
    outside = ball(46.0) == 0.0
    for random in (None, seeded(0)):
        field = atrophy(VENTRICLES, BRAIN, SPACING, 0.3, random).displacement
        assert float(field[:, outside].abs().max()) < 1e-4


def test_the_brains_border_stays_or_retreats_a_little():
    """It retreats with a generator, as sulci widen; it stays without one."""
    for random, least in ((None, -0.002), (seeded(2), -0.05)):
        field = atrophy(VENTRICLES, BRAIN, SPACING, 0.3, random).displacement
        lost = float(warped(BRAIN, field, SPACING).sum() / BRAIN.sum()) - 1.0
        assert least < lost < 0.002


def test_without_ventricles_or_growth_nothing_moves():
    """A slab below the brain is no error."""
    for ventricles, growth in ((torch.zeros(SHAPE), 0.3), (VENTRICLES, 0.0)):
        change = atrophy(ventricles, BRAIN, SPACING, growth)
        assert change.growth == 0.0
        assert float(change.displacement.abs().max()) == 0.0


def test_masks_serve_as_well_as_shares():
    """Label maps give masks."""
    change = atrophy(VENTRICLES > 0.5, BRAIN > 0.5, SPACING, 0.2, seeded(1))
    assert change.growth == pytest.approx(0.2, rel=0.15)


@given(SEEDS)
@QUICK
def test_a_composition_is_one_warp_after_the_other(seed):
    """A ramp shows it: linear interpolation of it is exact. The other order is another warp."""
    ramp, random = (torch.arange(SIZE) * STEP).expand(SHAPE), seeded(seed)
    first, second = (person_warp(SHAPE, SPACING, WarpSettings(), random) for _ in range(2))
    twice, once, wrong = (
        image[12:-12, 12:-12, 12:-12]
        for image in (
            warped(warped(ramp, first, SPACING), second, SPACING),
            warped(ramp, composed(first, second, SPACING), SPACING),
            warped(ramp, composed(second, first, SPACING), SPACING),
        )
    )
    assert torch.allclose(once, twice, atol=1e-3)
    assert not torch.allclose(wrong, twice, atol=1e-3)


def test_labels_stay_labels():
    """No mixture of two numbers is a third tissue."""
    labels = (3 * (BRAIN > 0.5) + 4 * (VENTRICLES > 0.5)).to(torch.uint8)
    field = person_warp(SHAPE, SPACING, WarpSettings(), seeded(5))
    moved = warped(labels, field, SPACING, nearest=True)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) == {0, 3, 7}


def test_channels_are_warped_alike():
    """Shares of all tissues at once."""
    field = person_warp(SHAPE, SPACING, WarpSettings(), seeded(6))
    both = warped(torch.stack([BRAIN, VENTRICLES]), field, SPACING)
    assert torch.allclose(both[1], warped(VENTRICLES, field, SPACING), atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"elastic_mm": -1.0}, {"points": (1, 4)}, {"points": (6, 4)}, {"scale": 0.5}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    """By their name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WarpSettings(**wrong)
