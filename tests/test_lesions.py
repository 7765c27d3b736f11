"""Lesions are where and as large as they say, and their truth is what changed."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.training.lesions import (
    KINDS,
    REVERSED,
    LesionSettings,
    change_ml,
    draw_lesions,
    painted,
    truth,
)

SIZE, STEP = 40, 2.0
SHAPE, SPACING = (SIZE,) * 3, (STEP,) * 3
VOXEL_ML = STEP**3 / 1000.0
SEEDS = st.integers(0, 10_000)
QUICK = settings(max_examples=20, deadline=None)
# Measured sizes alone: what is asked for then lies within change_ml.
MEASURED = LesionSettings(mass=0.0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def only(kind, **more):
    """Settings that give one kind."""
    weights = {name: float(name == kind) for name in KINDS}
    return replace(MEASURED, **weights, **more)


def ball(radius_mm):
    """Share of a ball of tissue in the middle."""
    far = ((torch.arange(SIZE) - (SIZE - 1) / 2) * STEP) ** 2
    return (0.5 + (radius_mm - (far[:, None, None] + far[:, None] + far).sqrt()) / STEP).clamp(0, 1)


TISSUE = ball(34.0) * (1.0 - ball(10.0))


def drawn(made, seed=0, places=TISSUE):
    return draw_lesions(places, SHAPE, SPACING, made, seeded(seed))


def whole(lesion, share):
    """A share on the whole grid."""
    out = torch.zeros(SHAPE)
    out[lesion.box] = share
    return out


def test_the_same_seed_gives_the_same_lesions():
    """To the bit, truth and picture."""
    first, again = drawn(MEASURED, 7), drawn(MEASURED, 7)
    image = torch.rand(SHAPE, generator=seeded(1))
    assert [lesion.kind for lesion in first] == [lesion.kind for lesion in again]
    assert torch.equal(painted(image, first, "current"), painted(image, again, "current"))
    assert torch.equal(truth(first, SHAPE)[0], truth(again, SHAPE)[0])


@given(SEEDS)
@QUICK
def test_what_is_unchanged_leaves_no_truth_and_two_equal_pictures(seed):
    """An old lesion is no change, however bright it is."""
    lesions, image = drawn(only("unchanged"), seed), torch.rand(SHAPE, generator=seeded(seed))
    appearing, resolving = truth(lesions, SHAPE)
    assert float(appearing.max()) == float(resolving.max()) == 0.0
    assert torch.equal(painted(image, lesions, "prior"), painted(image, lesions, "current"))


@given(SEEDS, st.sampled_from(["new", "enlarged"]))
@QUICK
def test_exchanging_the_kinds_exchanges_the_truth(seed, kind):
    """New is resolved backwards, enlarged is shrunk backwards."""
    there, back = drawn(only(kind), seed), drawn(only(REVERSED[kind]), seed)
    appearing, resolving = truth(there, SHAPE)
    assert torch.equal(appearing, truth(back, SHAPE)[1])
    assert float(resolving.max()) == float(truth(back, SHAPE)[0].max()) == 0.0


@given(SEEDS)
@QUICK
def test_a_reversed_lesion_exchanges_truth_and_pictures(seed):
    """The same pair in the other order needs no second drawing."""
    lesions, image = drawn(MEASURED, seed), torch.rand(SHAPE, generator=seeded(seed))
    back = [lesion.reversed() for lesion in lesions]
    assert all(map(torch.equal, truth(lesions, SHAPE), reversed(truth(back, SHAPE))))
    assert torch.equal(painted(image, lesions, "prior"), painted(image, back, "current"))
    assert [lesion.reversed().kind for lesion in back] == [lesion.kind for lesion in lesions]


@given(SEEDS, st.sampled_from([0.03, 0.2, 1.0]), st.sampled_from(["new", "enlarged", "shrunk", "resolved"]))
@QUICK
def test_the_change_is_as_large_as_was_asked(seed, ml, kind):
    """Summed over the voxels, not read from the lesion."""
    (lesion,) = drawn(only(kind, count=(1, 1), change_ml=(ml, ml), wobble=0.1), seed, ball(39.0))
    appearing, resolving = truth([lesion], SHAPE)
    assert float((appearing + resolving).sum()) * VOXEL_ML == pytest.approx(ml, rel=0.1)
    change = float(appearing.sum() - resolving.sum()) * VOXEL_ML
    assert lesion.current_ml - lesion.prior_ml == pytest.approx(change, abs=1e-4)


@given(SEEDS, st.floats(1.3, 3.0))
@QUICK
def test_an_enlarged_lesion_holds_the_old_one_and_grew_by_its_factor(seed, ratio):
    """It grows, it does not wander."""
    (lesion,) = drawn(only("enlarged", count=(1, 1), growth=(ratio, ratio), change_ml=(0.1, 1.0)), seed)
    assert bool((lesion.current_share >= lesion.prior_share).all())
    assert lesion.current_ml / lesion.prior_ml == pytest.approx(ratio, rel=0.05)


@given(SEEDS)
@QUICK
def test_lesions_keep_to_their_tissue_and_apart_from_each_other(seed):
    """A voxel's share of lesion is never more than its share of tissue."""
    lesions = drawn(replace(LesionSettings(), count=(4, 8)), seed)
    together = sum((whole(lesion, lesion.larger_share) for lesion in lesions), torch.zeros(SHAPE))
    assert len(lesions) > 0
    assert bool((together <= TISSUE + 1e-6).all())
    assert bool((sum(whole(x, x.larger_share > 0) for x in lesions) <= 1).all())


@given(SEEDS)
@QUICK
def test_a_lesion_lies_mostly_where_there_is_room_for_it(seed):
    """Not as a thin crust along the border of the tissue."""
    (lesion,) = drawn(only("new", count=(1, 1), change_ml=(0.1, 0.3)), seed)
    assert float(lesion.current_share.max()) > 0.8
    assert lesion.prior_ml == 0.0


def test_a_lesion_outside_the_middle_is_painted_where_its_truth_lies():
    """Corner and box are counted from the grid's first voxel."""
    places = torch.zeros(SHAPE)
    places[4:14, 20:32, 25:38] = 1.0
    lesions, image = drawn(only("new", count=(1, 1), bright=1.0, hollow=0.0), 3, places), torch.zeros(SHAPE)
    moved = painted(image, lesions, "current") - painted(image, lesions, "prior")
    assert torch.equal(moved > 0, truth(lesions, SHAPE)[0] > 0)
    assert bool((places[moved > 0] == 1.0).all())


@pytest.mark.parametrize(("bright", "polarity"), [(1.0, 1), (0.0, -1)])
def test_a_lesion_differs_from_its_tissue_by_its_contrast(bright, polarity):
    """In parts of the tissues' range of signal, here 200 units."""
    made = only("new", count=(1, 1), bright=bright, hollow=0.0, change_ml=(1.0, 2.0), contrast=(0.3, 0.3))
    lesions = drawn(made, 1)
    image = torch.full(SHAPE, 100.0)
    image[0] = 0.0
    inside = truth(lesions, SHAPE)[0] == 1.0
    difference = (painted(image, lesions, "current", signal_range=200.0) - image)[inside]
    assert float(difference.mean()) == pytest.approx(polarity * 60.0, rel=0.25)
    assert lesions[0].polarity == polarity


def test_the_texture_is_the_same_at_both_visits():
    """Where a lesion filled the voxel both times, nothing changed."""
    lesions = drawn(only("enlarged", count=(1, 1), change_ml=(1.0, 2.0)), 2)
    image = torch.rand(SHAPE, generator=seeded(0))
    full = whole(lesions[0], lesions[0].prior_share) == TISSUE.round()
    full &= TISSUE == 1.0
    before, after = (painted(image, lesions, which)[full] for which in ("prior", "current"))
    assert torch.equal(before, after)
    assert float(before.std()) > 0.0


def test_no_lesion_is_darker_than_the_image():
    """Magnitude images have no negative signal."""
    image = TISSUE * 0.1
    made = only("new", bright=0.0, contrast=(0.6, 0.6))
    assert float(painted(image, drawn(made), "current").min()) >= 0.0


def test_painting_leaves_the_image_it_was_given():
    """The clean image is painted twice."""
    image = torch.rand(SHAPE, generator=seeded(0))
    before = image.clone()
    painted(image, drawn(MEASURED), "current")
    assert torch.equal(image, before)
    assert torch.equal(painted(image, (), "prior"), image)


def test_sizes_are_those_of_patients():
    """The table gives its own quantiles back: a tenth above 277 mm3, half below 46."""
    random = seeded(0)
    volumes = torch.tensor([change_ml(random) for _ in range(4000)]) * 1000.0
    for share, mm3 in ((0.25, 24.2), (0.5, 46.0), (0.9, 276.9)):
        assert float(volumes.quantile(share)) == pytest.approx(mm3, rel=0.15)


def test_every_kind_is_drawn_as_often_as_its_weight():
    """Twenty lesions at once are cheap."""
    made = replace(MEASURED, count=(20, 20), change_ml=(0.02, 0.03))
    kinds = [lesion.kind for seed in range(12) for lesion in drawn(made, seed)]
    for kind, weight in zip(KINDS, made.weights, strict=True):
        assert kinds.count(kind) / len(kinds) == pytest.approx(weight, abs=0.1)


def test_places_may_be_a_mask_or_coarser_than_the_grid():
    """Label maps give masks, networks give coarse maps."""
    coarse = torch.zeros(10, 10, 10)
    coarse[3:7, 3:7, 3:7] = 1.0
    for places in (coarse, TISSUE > 0.5):
        lesions = drawn(MEASURED, 0, places)
        assert lesions and truth(lesions, SHAPE)[0].shape == torch.Size(SHAPE)


def test_a_few_voxels_of_tissue_are_found_and_none_give_no_lesion():
    """Chance alone would miss one part in ten thousand."""
    rare = torch.zeros(SHAPE, dtype=torch.bool)
    rare[30:32, 5:7, 20:22] = True
    found = drawn(only("new", count=(1, 1), change_ml=(0.02, 0.03)), 0, rare)
    assert float(truth(found, SHAPE)[0][rare].sum()) > 0.0
    assert drawn(MEASURED, 0, torch.zeros(SHAPE)) == ()


def test_a_lesion_is_kept_in_a_small_box():
    """Hundreds of them must fit beside the scan."""
    for lesion in drawn(replace(MEASURED, count=(6, 6), change_ml=(0.02, 0.1))):
        voxels = math.prod(lesion.relief.shape)
        assert lesion.prior_share.shape == lesion.current_share.shape == lesion.relief.shape
        assert voxels < 0.05 * SIZE**3


@pytest.mark.parametrize(
    "wrong",
    [{"new": -0.1}, {"count": (3, 2)}, {"change_ml": (0.0, 1.0)}, {"growth": (1.0, 2.0)},
     {"contrast": (-0.2, 0.4)}, {"elongation": 0.5}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong):
    """By their name, and the defaults are not."""
    name = "weights" if "new" in wrong else next(iter(wrong))
    with pytest.raises(ValueError, match=name):
        replace(LesionSettings(), **wrong)
