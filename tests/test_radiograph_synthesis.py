"""Synthetic radiographs keep the laws that a training relies on: seeded, one to one, true to their truth."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.encoding.preparation import PreparationSettings, normalised, prepare
from medsiam.training import radiograph_synthesis as recipe
from medsiam.training.radiograph_change import (
    CHANGES,
    KINDS,
    DiseaseSettings,
    absorbed,
    draw_opacities,
    lung_fields,
    thickness,
    truth,
)
from medsiam.training.radiograph_geometry import (
    PersonSettings,
    PoseSettings,
    composed,
    frame,
    held,
    person_warp,
    place,
    pose,
    splines,
    warped,
)
from medsiam.training.radiograph_nuisance import (
    DeviceSettings,
    ExposureSettings,
    acquired,
    curved,
    renormalised,
    with_devices,
)
from tests.phantoms import radiograph

SIZE = 96
SHAPE = (SIZE, SIZE)

# The bounds of every setting about the person, so that the law holds for all of them.
STRONG = PersonSettings(bend=0.3, stretch=0.4, lopsided=0.3, mirrored=0.0)

seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=15, deadline=None)


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def jacobian(position):
    """Determinant (J - 1, I - 1) of positions (J, I, 2), 1 where nothing is changed."""
    rows, columns = position.shape[:2]
    down = position.diff(dim=0)[:, :-1] * rows / 2.0
    right = position.diff(dim=1)[:-1] * columns / 2.0
    return right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]


def only(change, **others):
    """Diseases that all change in this way, strong enough to be seen."""
    weights = {name: float(name == change) for name in CHANGES}
    return DiseaseSettings(**weights, weakest=0.6, strongest=1.2, **others)


@pytest.fixture(scope="module")
def chest():
    volume = radiograph((192, 160))
    return prepare(volume, PreparationSettings(size_voxels=SIZE)).values[0]


@pytest.fixture(scope="module")
def lung_distance():
    """1 at the border of the phantom's lungs, 0 in their middle, in the field of its prepared image."""
    i, j = place(SHAPE).unbind(2)
    # The phantom is 160 wide in a field of 192.
    i = i * 192 / 160
    return (((i.abs() - 0.42) / 0.38).square() + (j / 0.75).square()).sqrt()


# Where it looks


@few
@given(seeds)
def test_another_person_is_made_one_to_one(seed):
    """The determinant is positive everywhere, at the strongest settings too: nothing folds."""
    assert float(jacobian(person_warp(SHAPE, STRONG, drawn(seed))).min()) > 0.0


@few
@given(seeds)
def test_a_mirrored_person_is_one_to_one_as_well(seed):
    """With the other sign: left and right have changed places."""
    settings = PersonSettings(mirrored=1.0)
    assert float(jacobian(person_warp(SHAPE, settings, drawn(seed))).max()) < 0.0


@few
@given(seeds)
def test_a_pose_folds_nothing(seed):
    """A patient may lie anyhow, but in one piece."""
    assert float(jacobian(pose(SHAPE, PoseSettings(), drawn(seed))).min()) > 0.0


def test_another_person_differs_by_a_tenth_of_the_half_field_or_more():
    """Small deformations would make the same person again."""
    plain = PersonSettings(mirrored=0.0)
    moved = [(person_warp(SHAPE, plain, drawn(n)) - place(SHAPE)).norm(dim=2).amax() for n in range(20)]
    assert 0.1 < float(torch.stack(moved).median()) < 0.5


def test_settings_of_nothing_change_nothing(chest):
    """Neither the place nor, therefore, the image."""
    still = PersonSettings(0.0, 0.0, 0.0, 0.0)
    assert torch.allclose(person_warp(SHAPE, still, drawn(0)), place(SHAPE), atol=1e-6)
    assert torch.allclose(warped(chest, place(SHAPE)), chest, atol=1e-4)


def test_one_interpolation_stands_for_two(chest):
    """Composed positions look where one warp after the other looks."""
    first, second = person_warp(SHAPE, STRONG, drawn(1)), 0.9 * place(SHAPE)
    smooth = splines(SHAPE, 5, drawn(2))[0]
    twice = warped(warped(smooth, first), second)
    at_once = composed(first, second)
    # Beyond the image's edge there is nothing to compare.
    seen = (at_once.abs() < 0.9).all(dim=2)
    assert float((warped(smooth, at_once) - twice)[seen].abs().max()) < 0.02


@few
@given(seeds)
def test_positions_are_held_within_the_scan(seed):
    """No black border is warped into view: its shape would tell the person."""
    scan = torch.zeros(SHAPE)
    scan[20:80] = 0.5
    position, inside = held(scan, person_warp(SHAPE, PersonSettings(), drawn(seed)))
    seen = warped(scan, position)
    assert float(seen.min()) == pytest.approx(0.5)
    assert 0.0 < float(inside.mean()) < 1.0


def test_a_frame_has_straight_sides_and_leaves_half_of_the_field():
    """Shutters are a rectangle, and a view without a chest teaches nothing."""
    for seed in range(20):
        shown = frame(torch.ones(SHAPE), 1.0, drawn(seed))
        assert 0.2 < float(shown.mean()) <= 1.0
        assert float(((shown > 0.0) & (shown < 1.0)).float().mean()) < 0.15


# What changes


def test_the_lungs_of_a_chest_are_found_on_both_sides(chest, lung_distance):
    """Nearly all of what is called lung lies in one, and most of each lung's dark middle is met."""
    lungs = lung_fields(chest) > 0.5
    assert float((lungs & (lung_distance < 1.0)).sum() / lungs.sum()) > 0.9
    # At half the way to the border the phantom's lungs are still four fifths as dark.
    for half in (slice(0, SIZE // 2), slice(SIZE // 2, SIZE)):
        middle = lung_distance[:, half] < 0.5
        assert float(lungs[:, half][middle].float().mean()) > 0.7


def test_lungs_are_found_at_any_exposure(chest):
    """A gain, a curve or an uneven field moves them little, as long as what is beyond stays black."""
    lungs = lung_fields(chest)
    for other in (0.5 * chest, chest.sqrt(), chest * (1.0 + 0.3 * place(SHAPE)[..., 1])):
        assert float((lung_fields(other) - lungs).abs().mean()) < 0.05


@pytest.mark.parametrize(
    "image", [torch.zeros(SHAPE), torch.ones(SHAPE), torch.rand(SHAPE, generator=drawn(0))]
)
def test_an_image_without_lungs_still_gets_opacities(image):
    """A white lung is still a lung: it is guessed, never an error."""
    found = draw_opacities(lung_fields(image), DiseaseSettings(), drawn(1))
    assert torch.isfinite(thickness(found, "current", SHAPE)).all()


@few
@given(seeds, st.sampled_from(KINDS))
def test_a_larger_opacity_is_nowhere_thinner(seed, kind):
    """So that what grew has appeared everywhere, and resolved nowhere."""
    lungs = torch.ones(SHAPE)
    disease = DiseaseSettings(most=1, **{name: float(name == kind) for name in KINDS})
    (one,) = draw_opacities(lungs, disease, drawn(seed))
    assert bool((one.thickness(1.0) >= one.thickness(0.6)).all())
    assert float(one.thickness(0.0).abs().max()) == 0.0


@few
@given(seeds)
def test_unchanged_disease_has_no_truth(seed):
    """It is in both twins and is no finding."""
    chest = torch.full(SHAPE, 0.4)
    found = draw_opacities(torch.ones(SHAPE), only("unchanged"), drawn(seed))
    prior, current = (thickness(found, which, SHAPE) for which in ("prior", "current"))
    assert float(current.max()) > 0.0
    assert all(float(each.max()) == 0.0 for each in truth(chest, prior, current))


@few
@given(seeds, st.sampled_from([("new", "enlarged"), ("resolved", "shrunk")]))
def test_a_change_has_one_sign_and_brightens_where_it_appears(seed, changes):
    """Appearing absorbs more at the second visit, resolving at the first."""
    chest = torch.full(SHAPE, 0.4)
    for change in changes:
        found = draw_opacities(torch.ones(SHAPE), only(change), drawn(seed))
        prior, current = (thickness(found, which, SHAPE) for which in ("prior", "current"))
        appearing, resolving = truth(chest, prior, current)
        came, other = (appearing, resolving) if changes[0] == "new" else (resolving, appearing)
        brighter = absorbed(chest, current) - absorbed(chest, prior)
        assert float(other.max()) == 0.0
        assert bool(((brighter if changes[0] == "new" else -brighter)[came > 0.0] > 0.0).all())


@few
@given(seeds)
def test_swapping_the_visits_swaps_the_truth(seed):
    """Comparison is antisymmetric, and so is what it learns from."""
    chest = torch.rand(SHAPE, generator=drawn(seed))
    prior, current = torch.rand(2, *SHAPE, generator=drawn(seed + 1))
    appearing, resolving = truth(chest, prior, current)
    again = truth(chest, current, prior)
    assert torch.equal(appearing, again[1]) and torch.equal(resolving, again[0])


def test_what_absorbs_most_already_shows_an_opacity_least():
    """Attenuation saturates: an opacity before the spine is no finding."""
    image = torch.tensor([[0.1, 0.5, 0.95, 1.0]])
    added = absorbed(image, torch.ones(1, 4)) - image
    assert bool((added.diff() < 0.0).all())
    assert float(added[0, -1]) == 0.0
    assert float(truth(image, torch.zeros(1, 4), torch.full((1, 4), 0.3))[0][0, -2]) == 0.0


# What else it shows


@few
@given(seeds)
def test_an_acquired_image_is_finite_and_within_its_range(seed):
    """Whatever is drawn, the encoder meets 0..1."""
    strong = ExposureSettings(uneven=0.5, noise=0.5, processing=1.0, curve=1.5, levelling=1.0)
    for exposure in (ExposureSettings(), strong):
        image = acquired(torch.rand(SHAPE, generator=drawn(seed)), exposure, drawn(seed))
        assert torch.isfinite(image).all()
        assert float(image.min()) >= 0.0 and float(image.max()) <= 1.0


@few
@given(seeds)
def test_a_contrast_curve_rises(seed):
    """Bone stays brighter than lung, whatever a display does."""
    ramp = torch.linspace(0.0, 1.0, 200)[None]
    assert bool((curved(ramp, ExposureSettings(curve=1.5), drawn(seed)).diff() >= 0.0).all())


@few
@given(seeds)
def test_devices_only_absorb(seed):
    """Nothing that lies on a patient makes the patient more transparent."""
    image = torch.rand(SHAPE, generator=drawn(seed))
    seen = with_devices(image, DeviceSettings(present=1.0, plates=1.0), drawn(seed))
    assert bool((seen >= image - 1e-6).all()) and float(seen.max()) <= 1.0 + 1e-6


def test_images_without_devices_are_left_alone(chest):
    """And with them they are not."""
    assert torch.equal(with_devices(chest, DeviceSettings(present=0.0), drawn(0)), chest)
    always = DeviceSettings(present=1.0)
    changed = [not torch.equal(with_devices(chest, always, drawn(n)), chest) for n in range(10)]
    assert sum(changed) >= 8


def test_the_end_is_normalised_as_the_preparation_does(chest):
    """What is trained on must look like what is encoded."""
    image = 3.0 * chest + 1.0
    assert torch.allclose(renormalised(image), torch.from_numpy(normalised(image.numpy(), "CR")), atol=0.03)


# The recipe


def test_a_seed_gives_the_same_bits_and_another_seed_does_not(chest):
    """A training can be repeated."""
    made = recipe.RadiographSettings()

    def view(seed):
        random = drawn(seed)
        person = recipe.person_warp(SHAPE, made, random)
        return recipe.make_view(chest, person, made, random)

    assert torch.equal(view(3), view(3))
    assert not torch.equal(view(3), view(4))
    first, again = (recipe.make_follow_up(chest, made, drawn(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))


@few
@given(seeds)
def test_views_and_follow_ups_are_finite_and_within_their_range(seed):
    """For an image of any content, also an empty one."""
    made, random = recipe.RadiographSettings(), drawn(seed)
    image = torch.rand(SHAPE, generator=random) * (seed % 3)
    shown = recipe.make_follow_up(image.clamp(max=1.0), made, random)
    for each in (recipe.make_view(image.clamp(max=1.0), None, made, random), *vars(shown).values()):
        assert each.shape == SHAPE and torch.isfinite(each).all()
        assert float(each.min()) >= 0.0 and float(each.max()) <= 1.0


def test_two_visits_differ_where_nothing_changed_too(chest):
    """Else a network would learn that any difference is disease."""
    shown = recipe.make_follow_up(chest, recipe.RadiographSettings(), drawn(1))
    unchanged = (shown.appearing + shown.resolving) == 0.0
    assert float((shown.prior - shown.current)[unchanged].abs().mean()) > 0.01


def test_the_global_generator_is_left_alone(chest):
    """All randomness comes from the one that is passed in."""
    before = torch.get_rng_state()
    recipe.make_follow_up(chest, recipe.RadiographSettings(), drawn(0))
    disease = replace(DiseaseSettings(), most=2)
    draw_opacities(lung_fields(chest), disease, drawn(0))
    acquired(with_devices(chest, DeviceSettings(), drawn(0)), ExposureSettings(), drawn(0))
    assert torch.equal(torch.get_rng_state(), before)
