"""Scans made by chance keep the laws of scanning, and a follow-up's truth is what differs."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.errors import TrainingRefused
from medsiam.training.acquisition import (
    AcquisitionSettings,
    Protocol,
    View,
    acquired,
    blur_matrix,
    coverage,
    draw_protocol,
    draw_view,
    ghosted,
    noisy,
    normalised,
    sampled,
    sensitivity,
    slice_matrices,
    turned,
)
from medsiam.training.contrast import (
    CURVE_POINTS,
    SEQUENCES,
    Contrast,
    ContrastSettings,
    draw_contrast,
    painted,
    tissue_means,
)
from medsiam.training.lesions import KINDS, LesionSettings
from medsiam.training.synthesis import (
    Anatomy,
    SynthesisSettings,
    another_person,
    follow_up,
    scanned,
    tissue_share,
)
from medsiam.training.tissues import BRAIN, NUMBER, SCHEMES, TISSUES, share_of_brain, tissue_map

SIZE, STEP = 32, 4.0
SEEDS = st.integers(0, 10_000)
QUICK = settings(max_examples=12, deadline=None)

# From the middle outwards, in parts of half the grid.
SHELLS = (("ventricle", 0.2), ("white", 0.55), ("cortex", 0.66), ("csf", 0.7), ("dark", 0.76), ("fat", 0.86))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def far(size=SIZE):
    """Distance of each voxel from the middle, in parts of half the grid."""
    line = ((torch.arange(size) - (size - 1) / 2) / (size / 2)) ** 2
    return (line[:, None, None] + line[:, None] + line).sqrt()


def balls():
    """A head of balls in balls, as indices into TISSUES."""
    tissue = torch.zeros((SIZE,) * 3, dtype=torch.uint8)
    for name, radius in reversed(SHELLS):
        tissue[far() < radius] = NUMBER[name]
    return tissue


TISSUE = balls()
T1 = torch.tensor(SEQUENCES["t1"]) / 100.0
# One value a tissue, so that the tissue can be told from the image again.
FLAT = Anatomy(T1[TISSUE.long()], TISSUE, STEP)
HEAD = Anatomy((FLAT.image + 0.03 * torch.randn(FLAT.shape, generator=seeded(0))).clamp(0, 1), TISSUE, STEP)

# A scanner that does nothing but count voxels.
PLAIN = AcquisitionSettings(
    rotation_deg=0.0, shift_mm=0.0, thick_slices=0.0, blur_mm=0.0, bias=0.0, noise=0.0, ghosts=0.0,
    ringing=0.0, cut=0.0,
    contrast=ContrastSettings(curve=0.0, known=1.0, jitter=0.0, detail=0.0, grain=0.0, scalp=0.0),
)  # fmt: skip
STILL = SynthesisSettings(same_protocol=1.0, misregistered_mm=0.0, atrophy=0.0, acquisition=PLAIN)


def contrast_of(sequence="t1", **more):
    """A sequence's own means, without detail and grain."""
    means = torch.tensor(SEQUENCES[sequence]) / 100.0
    line = torch.linspace(0, 1, CURVE_POINTS)
    plain = Contrast(means, 0.0, torch.zeros(len(TISSUES)), line, False, is_ct=sequence == "ct")
    return replace(plain, **more)


def only(kind, **more):
    """Follow-ups whose lesions are all of one kind, without any error of the scanner."""
    return replace(STILL, lesions=LesionSettings(**{name: float(name == kind) for name in KINDS}, **more))


def numbers(contrast):
    return torch.cat([contrast.means, contrast.grain, contrast.curve, torch.tensor([contrast.detail])])


def scan_of(anatomy, made, random):
    """With a protocol and a view by chance."""
    protocol = draw_protocol(made.acquisition, random)
    return scanned(anatomy, protocol, draw_view(24, 5.0, made.acquisition, random), made, random)


MOVED = AcquisitionSettings(ghosts=1.0, ringing=1.0, cut=1.0, thick_slices=1.0)
GENERATORS = {
    "contrast": lambda r: numbers(draw_contrast(ContrastSettings(), r)),
    "protocol": lambda r: torch.tensor(draw_protocol(MOVED, r).thickness_mm),
    "view": lambda r: draw_view(24, 3.0, MOVED, r).turn,
    "painted": lambda r: painted(HEAD.image, TISSUE, contrast_of(grain=torch.full((len(TISSUES),), 0.05)), r),
    "sensitivity": lambda r: sensitivity((9, 10, 11), 0.3, r),
    "ghosts": lambda r: ghosted(HEAD.image, axis=1, strength=0.1, random=r),
    "noise": lambda r: noisy(HEAD.image, 0.1, r),
    "coverage": lambda r: coverage((30, 30, 30), r).squeeze(),
    "acquired": lambda r: acquired(HEAD.image, draw_protocol(MOVED, r), STEP, MOVED, r),
    "scanned": lambda r: scan_of(HEAD, SynthesisSettings(acquisition=MOVED), r),
    "person": lambda r: another_person(HEAD, SynthesisSettings(), r).image,
    "follow-up": lambda r: torch.stack([*vars(follow_up(HEAD, 24, 5.0, SynthesisSettings(), r)).values()]),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name):
    """A run that is resumed sees what it would have seen; nothing hangs on the global generator."""
    make = GENERATORS[name]
    first, again = make(seeded(3)), make(seeded(3))
    assert torch.equal(first, again)
    others = [make(seeded(seed)) for seed in range(4, 10)]
    assert any(other.shape != first.shape or not torch.equal(first, other) for other in others)


# Tissues


def test_a_scheme_that_is_known_passes_and_another_is_refused():
    """Numbers without a scheme mean nothing."""
    labels = torch.tensor([[[4, 2, 3, 999, -1, 5000]]])
    told = [TISSUES[n] for n in tissue_map(labels, "synthseg").flatten()]
    assert told == ["ventricle", "white", "cortex", "air", "air", "air"]
    with pytest.raises(TrainingRefused, match="column label_scheme"):
        tissue_map(labels, "atlas of mine")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_number_means_one_tissue(scheme):
    """Else the order of the table would decide."""
    every = [number for several in SCHEMES[scheme].values() for number in several]
    assert len(every) == len(set(every))


def test_outside_the_labels_the_image_tells_air_bone_soft_and_fat():
    """And inside them it is not asked."""
    labels, image = torch.tensor([[[0, 0, 0, 0, 4]]]), torch.tensor([[[0.01, 0.1, 0.4, 0.9, 0.9]]])
    told = [TISSUES[n] for n in tissue_map(labels, "muse", image).flatten()]
    assert told == ["air", "dark", "soft", "fat", "ventricle"]
    assert int(tissue_map(labels, "muse").count_nonzero()) == 1


def test_the_shares_of_the_brain_add_up_to_one():
    """Scalp, bone and the fluid outside have no part in it."""
    shares = [share_of_brain(TISSUE, TISSUES[n]) for n in BRAIN if TISSUES[n] != "csf"]
    assert sum(shares) == pytest.approx(1.0)
    assert share_of_brain(TISSUE, "ventricle") == pytest.approx((0.2 / 0.66) ** 3, rel=0.1)
    assert math.isnan(share_of_brain(torch.zeros_like(TISSUE), "ventricle"))


# Contrast


def test_labels_alone_are_painted_with_the_means():
    """Without grain, to the bit."""
    contrast = contrast_of("t2")
    assert torch.equal(painted(None, TISSUE, contrast, seeded(0)), contrast.means[TISSUE.long()])


def test_an_images_own_contrast_is_bent_and_never_turned():
    """A scan as it is teaches what no invented contrast has; where it is not asked for, nothing changes."""
    own = [draw_contrast(ContrastSettings(own=1.0), seeded(n)) for n in range(20)]
    assert all(each.by_curve and bool((each.curve.diff() > 0).all()) for each in own)
    assert max(float((each.curve - torch.linspace(0, 1, 256)).abs().max()) for each in own) < 0.15
    alone = painted(None, TISSUE, own[0], seeded(0))
    means = tissue_means(alone, TISSUE)
    assert float(means[NUMBER["white"]]) > float(means[NUMBER["cortex"]])
    usual, again = (draw_contrast(ContrastSettings(**told), seeded(3)) for told in ({}, {"own": 0.0}))
    assert torch.equal(usual.means, again.means)


@pytest.mark.parametrize("tissue", [None, TISSUE])
def test_an_image_follows_the_curve(tissue):
    """Without a label map, or where the contrast says so."""
    inverted = contrast_of(curve=1.0 - torch.linspace(0, 1, CURVE_POINTS), by_curve=True)
    out = painted(HEAD.image, tissue, inverted, seeded(0))
    assert torch.allclose(out, 1.0 - HEAD.image, atol=1.0 / (CURVE_POINTS - 1) + 1e-6)


@pytest.mark.parametrize("detail", [-0.8, 0.0, 1.0])
def test_with_both_each_tissue_has_its_mean_and_the_images_detail(detail):
    """Kept, left out or turned over."""
    out = painted(HEAD.image, TISSUE, contrast_of("pd", detail=detail), seeded(0))
    index = TISSUE.long()
    rest = out - contrast_of("pd").means[index]
    own = HEAD.image - tissue_means(HEAD.image, TISSUE)[index]
    # What would fall below 0 is cut.
    positive = out > 0.0
    assert torch.allclose(rest[positive], detail * own[positive], atol=1e-5)
    assert torch.allclose(tissue_means(HEAD.image, TISSUE)[NUMBER["white"]], T1[NUMBER["white"]], atol=0.01)


def test_neither_image_nor_labels_is_our_own_mistake():
    """Nothing can be painted."""
    with pytest.raises(ValueError, match="neither"):
        painted(None, None, contrast_of(), seeded(0))


@given(SEEDS)
@QUICK
def test_air_is_dark_in_every_contrast(seed):
    """And no tissue is far beyond the range."""
    contrast = draw_contrast(ContrastSettings(), seeded(seed))
    assert float(contrast.means[NUMBER["air"]]) == float(contrast.curve[0]) == 0.0
    assert 0.0 <= float(contrast.means.min()) <= float(contrast.means.max()) <= 1.5
    out = painted(HEAD.image, TISSUE, contrast, seeded(seed))
    assert float(out.min()) >= 0.0
    assert bool(torch.isfinite(out).all())


def test_a_ct_shows_the_same_units_on_every_scanner():
    """No coil scales Hounsfield units; the same head as an MR is scaled."""
    biased = replace(PLAIN, bias=0.5)
    for sequence, is_kept in (("ct", True), ("t1", False)):
        signal = painted(None, TISSUE, contrast_of(sequence), seeded(0))
        out = acquired(signal, Protocol(contrast_of(sequence), 0, 0.0, 0.0, 0.0), STEP, biased, seeded(1))
        assert torch.allclose(out, signal, atol=1e-6) == is_kept


def test_known_contrasts_come_in_their_share_and_keep_near_their_sequence():
    """A CT's means may not wander; the scalp of an MR may."""
    drawn = [draw_contrast(replace(ContrastSettings(), known=1.0), seeded(n)) for n in range(120)]
    every_ct = [contrast.means for contrast in drawn if contrast.is_ct]
    assert len(every_ct) / len(drawn) == pytest.approx(1 / len(SEQUENCES), abs=0.1)
    assert torch.allclose(torch.stack(every_ct), contrast_of("ct").means, rtol=0.1)
    assert not any(draw_contrast(ContrastSettings(known=0.0), seeded(n)).is_ct for n in range(20))


# Where the scanner looks


def held(signal, size, *, degrees=(0.0, 0.0, 0.0), centre_mm=(0.0, 0.0, 0.0), nearest=False):
    view = View(size, 2.0, turned(degrees), torch.tensor(centre_mm))
    return sampled(signal, 2.0, view, nearest=nearest)


@pytest.mark.parametrize("size", [8, 9])
def test_looking_straight_gives_the_signal(size):
    """Even and odd; a shorter axis lies in the middle of the cube."""
    signal = torch.rand(size, size - 2, size - 4, generator=seeded(0))
    out = held(signal, size)
    assert torch.allclose(out[:, 1:-1, 2:-2], signal, atol=1e-5)
    assert float(out.sum()) == pytest.approx(float(signal.sum()), rel=1e-5)


@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_a_quarter_turn_is_a_quarter_turn(axis, plane):
    """The matrix says head from scanner: at the scanner's (a, b) lies the head's (-b, a)."""
    signal = torch.rand(8, 8, 8, generator=seeded(0))
    degrees = [90.0 if n == axis else 0.0 for n in range(3)]
    assert torch.allclose(held(signal, 8, degrees=degrees), torch.rot90(signal, -1, plane), atol=1e-5)


def test_the_centre_of_the_view_moves_in_mm_of_the_head():
    """Two voxels up the first axis, three down the last; outside is nothing."""
    signal = torch.rand(10, 10, 10, generator=seeded(0))
    out = held(signal, 10, centre_mm=(4.0, 0.0, -6.0))
    assert torch.allclose(out[:8, :, 3:], signal[2:, :, :7], atol=1e-5)
    assert float(out[8:].abs().max()) < 1e-5


@given(SEEDS)
@QUICK
def test_nearest_keeps_whole_labels(seed):
    """A mean of two labels would be a third."""
    view = draw_view(24, 5.0, AcquisitionSettings(rotation_deg=40.0), seeded(seed))
    assert set(sampled(TISSUE, STEP, view, nearest=True).unique().tolist()) <= set(TISSUE.unique().tolist())
    assert torch.allclose(view.turn @ view.turn.T, torch.eye(3), atol=1e-6)
    assert float(torch.linalg.det(view.turn)) == pytest.approx(1.0, abs=1e-5)


# Slices and blur


@given(st.integers(16, 40), st.floats(1.0, 3.0), st.floats(1.05, 4.0), st.floats(-0.5, 0.5))
@QUICK
def test_slices_are_means_and_keep_a_constant_and_a_ramp(size, spacing_mm, ratio, offset):
    """Where slices lie on both sides; a row is 0 only for a slice outside the grid.

    A slice that ends within voxels knows only their means: its centre of mass may lie
    off its middle by an eighth of a voxel times voxel / thickness.
    """
    thickness = ratio * spacing_mm
    mean, rebuild = slice_matrices(size, spacing_mm, thickness, offset * thickness)
    sums = mean.sum(1)
    assert bool((torch.isclose(sums, torch.ones(1), atol=1e-4) | (sums == 0.0)).all())
    assert torch.allclose(rebuild.sum(1), torch.ones(size), atol=1e-5)
    inner = slice(math.ceil(2 * ratio), -math.ceil(2 * ratio))
    for line, off in ((torch.ones(size), 0.0), (torch.arange(size) * 1.0, 1 / (8 * ratio))):
        again = rebuild @ (mean @ line)
        assert torch.allclose(again[inner], line[inner], rtol=0.0, atol=off + 1e-4)


@pytest.mark.parametrize("offset", [0.0, 0.2, -0.5, 0.5])
def test_a_constant_stays_constant_to_the_ends(offset):
    """Whether or not the offset puts a slice outside the grid."""
    mean, rebuild = slice_matrices(30, 1.0, 4.0, 4.0 * offset)
    assert torch.allclose(rebuild @ (mean @ torch.ones(30)), torch.ones(30), atol=1e-5)


def test_a_thin_plate_shows_in_the_slice_that_holds_it_and_in_no_other():
    """A quarter of the slice is the plate; an offset of a voxel moves all slices by one."""
    for offset, first in ((0.0, 14), (1.0, 15), (-2.0, 12)):
        mean, _ = slice_matrices(32, 1.0, 4.0, offset)
        holding = mean[:, first].nonzero().flatten().tolist()
        assert len(holding) == 1
        assert mean[holding[0]].nonzero().flatten().tolist() == [first, first + 1, first + 2, first + 3]
        assert float(mean[holding[0], first]) == 0.25


def test_a_plate_between_two_slices_is_shared_by_them():
    """By how much of it lies in each."""
    mean, _ = slice_matrices(32, 1.0, 4.0, 0.25)
    assert mean[4:6, 17].tolist() == pytest.approx([0.25 * 1.0, 0.0])
    assert mean[3:5, 14].tolist() == pytest.approx([0.25 * 0.25, 0.25 * 0.75])


def test_slices_no_thicker_than_the_voxels_are_none():
    """The guard's border."""
    assert slice_matrices(20, 2.0, 2.0, 0.0) is None
    assert slice_matrices(20, 2.0, 2.01, 0.0) is not None


@pytest.mark.parametrize("width", [2.5, 4.0, 7.0])
def test_a_blurred_point_is_as_wide_as_was_asked(width):
    """Full width at half maximum, measured between the voxels."""
    point = torch.zeros(41)
    point[20] = 1.0
    profile = blur_matrix(41, width) @ point
    half = profile[20] / 2
    last = int((profile[20:] >= half).nonzero()[-1]) + 20
    reach = last - 20 + float((profile[last] - half) / (profile[last] - profile[last + 1]))
    assert 2 * reach == pytest.approx(width, rel=0.05)
    assert float(profile.sum()) == pytest.approx(1.0, abs=1e-4)


def test_blur_keeps_a_constant_and_spares_what_is_narrow():
    """Up to the ends."""
    assert torch.allclose(blur_matrix(24, 3.0).sum(1), torch.ones(24), atol=1e-5)
    assert blur_matrix(24, 0.49) is None
    assert blur_matrix(24, 0.5) is not None


# What the scanner adds


@pytest.mark.parametrize("deviation", [0.02, 0.1])
def test_noise_in_air_has_the_mean_of_rayleigh(deviation):
    """Magnitudes cannot be negative: deviation times the root of pi / 2."""
    noise = noisy(torch.zeros(32, 32, 32), deviation, seeded(0))
    assert float(noise.mean()) == pytest.approx(deviation * math.sqrt(math.pi / 2), rel=0.02)
    assert float(noise.std()) == pytest.approx(deviation * math.sqrt(2 - math.pi / 2), rel=0.02)


@pytest.mark.parametrize("signal", [0.0, 0.05, 0.2, 1.0])
def test_noise_adds_twice_its_variance_to_the_mean_square(signal):
    """The law of Rice at every signal."""
    out = noisy(torch.full((32, 32, 32), signal), 0.05, seeded(1))
    assert float(out.square().mean()) == pytest.approx(signal**2 + 2 * 0.05**2, rel=0.02)


def test_noise_in_bright_tissue_is_gaussian():
    """Mean, deviation and no skew."""
    out = noisy(torch.ones(32, 32, 32), 0.05, seeded(2))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.003)
    assert float(out.std()) == pytest.approx(0.05, rel=0.02)
    assert float(((out - out.mean()) / out.std()).pow(3).mean()) == pytest.approx(0.0, abs=0.1)


def test_no_deviation_is_no_noise():
    """The image itself."""
    image = torch.rand(4, 4, 4, generator=seeded(0))
    assert noisy(image, 0.0, seeded(0)) is image


@given(SEEDS)
@QUICK
def test_sensitivity_is_positive_and_smooth(seed):
    """Four control points at most: no edge that could be taken for anatomy."""
    field = sensitivity((32, 32, 32), 0.3, seeded(seed))
    assert float(field.min()) > 0.0
    assert all(float(field.log().diff(dim=axis).abs().max()) < 0.2 for axis in range(3))
    assert torch.equal(sensitivity((8, 8, 8), 0.0, seeded(seed)), torch.ones(8, 8, 8))


@given(SEEDS, st.integers(0, 2))
@QUICK
def test_ghosts_lie_along_their_axis_alone(seed, axis):
    """And carry the share of the signal that was asked."""
    image = torch.zeros(24, 24, 24)
    image[12, 10, 8] = 1.0
    added = ghosted(image, axis=axis, strength=0.2, random=seeded(seed)) - image
    assert float(added.sum()) == pytest.approx(0.2)
    assert float(added.min()) == 0.0
    others = [n for n in range(3) if n != axis]
    assert (added.nonzero()[:, others] == torch.tensor([12, 10, 8])[others]).all()


@given(SEEDS)
@QUICK
def test_coverage_leaves_most_of_one_axis_and_all_of_the_others(seed):
    """One slab without gaps."""
    inside = coverage((30, 30, 30), seeded(seed))
    assert sorted(inside.shape)[:2] == [1, 1]
    assert set(inside.unique().tolist()) <= {0.0, 1.0}
    assert float(inside.mean()) >= 0.6
    assert int(inside.flatten().diff().abs().sum()) <= 2


@given(SEEDS, st.floats(0.2, 50.0), st.floats(-20.0, 20.0))
@QUICK
def test_normalised_forgets_gain_and_offset(seed, gain, offset):
    """MR has no unit."""
    image = torch.rand(12, 12, 12, generator=seeded(seed))
    plain = normalised(image)
    assert (float(plain.min()), float(plain.max())) == (0.0, 1.0)
    assert torch.allclose(normalised(image * gain + offset), plain, atol=1e-3)


@given(SEEDS)
@QUICK
def test_every_scan_is_finite_and_within_range(seed):
    """With all that a scanner does wrong at once, with and without image and labels."""
    random = seeded(seed)
    for anatomy in (HEAD, replace(HEAD, image=None), replace(HEAD, tissue=None)):
        scan = scan_of(anatomy, SynthesisSettings(acquisition=MOVED), random)
        assert scan.shape == (24, 24, 24)
        assert 0.0 <= float(scan.min()) <= float(scan.max()) <= 1.0


# People and follow-ups


@given(SEEDS)
@QUICK
def test_another_person_is_bent_alike_in_image_and_tissue(seed):
    """Far from borders the image still has its tissue's value."""
    other = another_person(FLAT, SynthesisSettings(), seeded(seed))
    expected = T1[other.tissue.long()]
    off = (other.image - expected).abs() > 1e-3
    inner = torch.nn.functional.max_pool3d(border(other.tissue)[None, None], 3, 1, 1)[0, 0] == 0
    assert other.tissue.dtype == torch.uint8
    assert not bool((off & inner).any())


def test_other_people_have_other_shares_of_tissue():
    """Else a label that is measured would be the same for all who are made of one."""
    made = [another_person(FLAT, SynthesisSettings(), seeded(seed)) for seed in range(8)]
    shares = [tissue_share(each, "ventricle") for each in made]
    assert max(shares) / min(shares) > 1.3


def test_ventricles_that_grew_show_in_the_scan_and_in_the_share():
    """By less than a voxel, in image and measure alike."""
    grown = SynthesisSettings(other_ventricles=1.0, ventricle_growth=(0.5, 0.5))
    still = replace(grown, other_ventricles=0.0)
    one, other = (another_person(FLAT, each, seeded(3)) for each in (still, grown))
    assert torch.equal(one.tissue, other.tissue) and one.ageing is None
    assert tissue_share(other, "ventricle") / tissue_share(one, "ventricle") == pytest.approx(1.5, abs=0.12)
    protocol = Protocol(contrast_of("t1"), 0, 0.0, 0.0, 0.0)
    view = draw_view(24, 5.0, PLAIN, seeded(0))
    before, after = (scanned(each, protocol, view, STILL, seeded(1)) for each in (one, other))
    assert not torch.equal(before, after)


def border(tissue):
    """1 where a neighbour along an axis is of another tissue."""
    out = torch.zeros(tissue.shape)
    for axis in range(3):
        size = tissue.shape[axis]
        differs = (tissue.int().diff(dim=axis) != 0).float()
        for start in (0, 1):
            view = out.narrow(axis, start, size - 1)
            view.copy_(torch.maximum(view, differs))
    return out


@given(SEEDS)
@QUICK
def test_a_follow_up_has_the_encoders_size_and_range(seed):
    """With image and labels or with either; a voxel does not come and go at once."""
    for anatomy in (HEAD, replace(HEAD, image=None), replace(HEAD, tissue=None)):
        made = follow_up(anatomy, 24, 5.0, SynthesisSettings(), seeded(seed))
        for map_ in (made.prior, made.current, made.appearing, made.resolving):
            assert map_.shape == (24, 24, 24)
            assert 0.0 <= float(map_.min()) <= float(map_.max()) <= 1.0 + 1e-6
        assert not bool(((made.appearing > 0.5) & (made.resolving > 0.5)).any())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_lesion_shows_on_its_own_map(kind):
    """What is unchanged shows on neither."""
    made = [follow_up(HEAD, 24, 5.0, only(kind), seeded(seed)) for seed in range(4)]
    appearing = sum(float(each.appearing.sum()) for each in made)
    resolving = sum(float(each.resolving.sum()) for each in made)
    assert (appearing > 0.0) == (kind in ("new", "enlarged"))
    assert (resolving > 0.0) == (kind in ("shrunk", "resolved"))


@given(SEEDS)
@QUICK
def test_without_any_error_of_the_scanner_only_the_truth_differs(seed):
    """Two visits with one protocol. Dark lesions: the percentiles that become 1 cut bright ones."""
    made = only("new", count=(1, 1), contrast=(0.4, 0.4), bright=0.0, mass=0.0, hollow=0.0)
    pair = follow_up(FLAT, 24, 5.0, replace(made, fine_spacing_mm=5.0), seeded(seed))
    darker = pair.prior - pair.current
    assert float(darker[pair.appearing == 0.0].abs().max()) < 0.05
    assert not bool((pair.appearing > 0.5).any()) or float(darker[pair.appearing > 0.5].mean()) > 0.008


@given(SEEDS)
@QUICK
def test_nothing_new_and_no_error_give_the_same_scan_twice(seed):
    """To the bit: a scan against itself has no findings."""
    made = follow_up(HEAD, 24, 5.0, only("unchanged"), seeded(seed))
    assert torch.equal(made.prior, made.current)
    assert float(made.appearing.max()) == float(made.resolving.max()) == 0.0


def test_a_head_without_room_for_lesions_still_has_two_visits():
    """No parenchyma: no lesion, and no truth."""
    bare = Anatomy(None, torch.full((SIZE,) * 3, NUMBER["soft"], dtype=torch.uint8), STEP)
    made = follow_up(bare, 24, 5.0, SynthesisSettings(), seeded(0))
    assert float(made.appearing.max()) == float(made.resolving.max()) == 0.0
