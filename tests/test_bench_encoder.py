"""The scoreboard of encoders measures what it says: metrics, intervals, rescans, probe."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medsiam.bench import baselines, registry, retrieval
from medsiam.bench import encoder as bench
from medsiam.bench.rescan import SCANNER_GAIN, Technique, recontrasted, rescan
from medsiam.bench.scores import Score, Scores
from medsiam.encoding import weights as weights_module
from medsiam.encoding.encoder import EncoderSettings
from medsiam.encoding.preparation import PreparationSettings
from medsiam.errors import WeightsRefused
from medsiam.pairing.motion import rotation_degrees
from medsiam.volume import Volume, transform
from tests.phantoms import ball, box_grid, position, radiograph, small_head

DATA = Path(os.environ.get("MEDSIAM_DATA") or Path(__file__).parents[2] / "shared" / "data")
SHIPPED = all(each.path.is_file() for each in weights_module.SHIPPED.values())
QUIET = Technique(noise=0.0, bias=0.0)
TINY = EncoderSettings(
    channels=(8, 16), embedding_size=8, preparation=PreparationSettings(size_voxels=16, spacing_mm=12.0)
)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def centre_of_mass_mm(volume):
    index = np.argwhere(volume.array > 0)
    weight = volume.array[tuple(index.T)].astype(np.float64)
    return (volume.grid.world(index) * weight[:, None]).sum(axis=0) / weight.sum()


# Two scans each of three people, as angles: nearest neighbours can be seen with the eye.
ANGLES = {"a": (0.0, 5.0), "b": (40.0, 47.0), "c": (90.0, 99.0)}
NAMES = np.repeat(list(ANGLES), 2)


def on_circle(degrees):
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1)


def test_everyone_is_found_where_scans_of_one_person_lie_together():
    """And nobody where each lies beside a stranger."""
    rows = on_circle(np.concatenate(list(ANGLES.values())))
    similarity = retrieval.without(retrieval.cosines(rows, rows), np.eye(6))
    assert retrieval.hits(similarity, NAMES, NAMES).tolist() == [1.0] * 6
    crossed = NAMES[[0, 2, 1, 4, 3, 5]]
    assert retrieval.hits(similarity, crossed, crossed).tolist() == [0.0] * 6


def test_an_encoder_that_says_the_same_of_all_finds_nobody():
    """A tie must not be won by the order of the rows."""
    same = retrieval.cosines(np.ones((6, 3)), np.ones((6, 3)))
    assert retrieval.hits(retrieval.without(same, np.eye(6)), NAMES, NAMES).sum() == 0.0
    everyone = np.arange(6)
    assert retrieval.verification_auc_of(same, NAMES)(everyone) == pytest.approx(0.5)


def test_verification_counts_pairs_of_one_person_over_pairs_of_two():
    """1 where all of them are nearer, 0 where none is, and between by hand."""
    rows = on_circle(np.concatenate(list(ANGLES.values())))
    auc = retrieval.verification_auc_of(retrieval.cosines(rows, rows), NAMES)
    assert auc(np.arange(6)) == 1.0
    assert retrieval.verification_auc_of(-retrieval.cosines(rows, rows), NAMES)(np.arange(6)) == 0.0
    # Strangers lie 10, 20, 40 and 50 apart: a's 10 wins 3 and a half of them, b's 30 wins 2.
    rows, names = on_circle(np.array([0.0, 10.0, 20.0, 50.0])), np.array(list("aabb"))
    auc = retrieval.verification_auc_of(retrieval.cosines(rows, rows), names)
    assert auc(np.arange(4)) == pytest.approx((3.5 + 2.0) / 8.0)


def test_a_person_drawn_twice_is_no_pair_of_two_people():
    """The copies would be strangers of similarity one, and spoil a perfect encoder."""
    rows = on_circle(np.concatenate(list(ANGLES.values())))
    auc = retrieval.verification_auc_of(retrieval.cosines(rows, rows), NAMES)
    assert auc(np.array([0, 1, 0, 1, 2, 3])) == 1.0
    assert np.isnan(auc(np.array([0, 1, 0, 1])))


def test_neighbours_tell_their_mean_and_the_left_out_have_no_say():
    """Values along a line: the mean of the two nearest."""
    places = np.array([[0.0], [1.0], [2.0], [10.0]])
    similarity = retrieval.without(retrieval.closeness(places, places), np.eye(4))
    assert retrieval.neighbour_means(similarity, [0, 1, 2, 10], 2).tolist() == [1.5, 1.0, 0.5, 1.5]


def test_rank_correlation_follows_the_order_alone():
    """One for any rising curve, less where two are exchanged, nothing for a constant."""
    rows, values = np.arange(5), np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert retrieval.rank_correlation_of(values, np.exp(values))(rows) == pytest.approx(1.0)
    assert retrieval.rank_correlation_of(values, values[[1, 0, 2, 3, 4]])(rows) == pytest.approx(0.9)
    assert np.isnan(retrieval.rank_correlation_of(values, np.ones(5))(rows))


def test_an_interval_is_repeated_by_its_seed_and_holds_the_figure():
    """So that a table can be printed again."""
    statistic = retrieval.mean_of(np.random.default_rng(0).normal(size=40))
    people = [str(n) for n in range(40)]
    first = retrieval.estimate(statistic, people, 1)
    assert first == retrieval.estimate(statistic, people, 1)
    assert first.interval != retrieval.estimate(statistic, people, 2).interval
    assert first.interval[0] < first.value < first.interval[1]
    # Four standard errors of the mean of forty are its width.
    assert first.interval[1] - first.interval[0] == pytest.approx(3.92 / np.sqrt(40), rel=0.25)


def test_more_scans_of_the_same_people_make_no_interval_narrower():
    """People are drawn, not scans; taken for people of their own, scans would promise too much."""
    values = np.random.default_rng(0).normal(size=12)
    people = [str(n) for n in range(12)]
    once = retrieval.estimate(retrieval.mean_of(values), people, 0).interval
    often = retrieval.mean_of(np.repeat(values, 9))
    assert retrieval.estimate(often, np.repeat(people, 9), 0).interval == pytest.approx(once)
    as_strangers = retrieval.estimate(often, [str(n) for n in range(108)], 0).interval
    assert as_strangers[1] - as_strangers[0] < 0.5 * (once[1] - once[0])


@pytest.mark.parametrize(("planted", "low", "high"), [(2.5, 0.9, 1.0), (0.0, 0.3, 0.7)])
def test_the_probe_finds_a_planted_class_and_nothing_in_noise(planted, low, high):
    """More features than rows, where any reader fits its own people perfectly."""
    rows = np.random.default_rng(0).normal(size=(60, 200))
    classes = np.repeat([0, 1], 30)
    rows[:, :6] += planted * classes[:, None]
    found = retrieval.probe(rows, classes, [str(n) for n in range(30)] * 2, 0)
    assert low <= found.value <= high
    assert found.interval[0] <= found.value <= found.interval[1]


def test_the_probe_never_learns_from_the_person_it_is_asked_about():
    """A class that belongs to the person could be read off the person's other scans."""
    people = np.repeat([str(n) for n in range(40)], 4)
    face = np.random.default_rng(0).normal(size=(40, 30))
    classes = np.repeat(np.arange(40) % 2, 4)
    assert retrieval.probe(np.repeat(face, 4, axis=0), classes, people, 0).value < 0.75
    # The scans taken for people of their own, the same reader knows them all.
    assert retrieval.probe(np.repeat(face, 4, axis=0), classes, np.arange(160).astype(str), 0).value > 0.95


def test_a_rescan_puts_the_anatomy_where_it_says():
    """A ball off the middle of an oblique scan goes through the stated motion, and through no other."""
    grid = box_grid(
        (70, 80, 75), (2.0, 2.0, 2.0), world_from_grid=position((20.0, -15.0, 5.0), (5.0, 3.0, -8.0))
    )
    scan = ball(grid, (30.0, -25.0, 20.0), 15.0)
    again = rescan(scan, QUIET, drawn())
    expected = transform(again.rescan_from_world, [centre_of_mass_mm(scan)])[0]
    assert centre_of_mass_mm(again.volume) == pytest.approx(expected, abs=0.15)
    assert np.linalg.norm(expected - centre_of_mass_mm(scan)) > 3.0
    assert again.volume.array.sum() / SCANNER_GAIN * again.volume.grid.voxel_ml == pytest.approx(
        scan.array.sum() * scan.grid.voxel_ml, rel=0.02
    )


def test_a_rescan_turns_and_shifts_by_what_was_asked():
    """On a grid that stands straight in the scanner, whichever way the head lies."""
    scan = small_head().volume
    again = rescan(scan, QUIET, drawn())
    assert rotation_degrees(again.rescan_from_world) == pytest.approx(10.0)
    moved = transform(again.rescan_from_world, [scan.grid.centre_mm])[0] - scan.grid.centre_mm
    assert np.linalg.norm(moved) == pytest.approx(10.0)
    assert again.volume.grid.spacing_mm == pytest.approx([5.0, 1.8, 1.8])
    assert np.allclose(again.volume.grid.world_from_index[:3, :3], np.fliplr(np.diag([1.8, 1.8, 5.0])))


@pytest.mark.parametrize("slice_mm", [1.0, 5.0, 8.0])
def test_a_slice_is_the_mean_over_its_thickness(slice_mm):
    """A bright layer of 2 mm gives 2 mm of signal, spread over as much as one slice holds."""
    array = np.zeros((60, 20, 20), np.float32)
    array[30:32] = 1.0
    scan = Volume(array, box_grid(array.shape, (1.0, 4.0, 4.0)))
    still = replace(QUIET, slice_mm=slice_mm, pixel_mm=4.0, turn_deg=0.0, shift_mm=0.0)
    again = rescan(scan, still, drawn(1)).volume
    line = again.array[:, again.grid.shape[1] // 2, again.grid.shape[2] // 2] / SCANNER_GAIN
    assert line.sum() * slice_mm == pytest.approx(2.0, rel=0.02)
    assert line.max() <= min(1.0, 2.0 / slice_mm) + 0.02
    assert np.count_nonzero(line > 0.01) <= 4.0 / slice_mm + 2


def test_a_bent_contrast_keeps_the_order_and_an_inverted_one_turns_it():
    """Fluid, grey and white inside the brain; air stays dark in both."""
    values = np.zeros((4, 6, 6), np.float32)
    values[1:] = np.array([20.0, 55.0, 90.0], np.float32)[:, None, None]
    brain = values > 0
    bent = recontrasted(values, "curve", drawn())
    told = [float(np.median(bent[n])) for n in range(4)]
    assert told == sorted(told)
    assert abs(told[2] - 55.0 / 90.0) > 0.05
    turned = recontrasted(values, "inverted", drawn(), brain=brain)
    fluid, grey, white = (float(np.median(turned[n, 2:4, 2:4])) for n in (1, 2, 3))
    assert fluid > grey > white
    assert float(recontrasted(values, "inverted", drawn())[0].max()) == 0.0
    assert recontrasted(values, "same", drawn())[3] == pytest.approx(1.0)


def test_a_rescan_is_repeated_by_its_generator():
    """And another draw is another session."""
    scan = small_head().volume
    one, same, other = (rescan(scan, Technique(), drawn(seed)).volume for seed in (3, 3, 4))
    assert np.array_equal(one.array, same.array)
    assert not np.array_equal(one.array, other.array)


def test_noise_is_rician_and_the_coil_uneven():
    """Air has the mean of a Rayleigh law, and twice the noise twice that."""
    scan = ball(box_grid((40, 40, 40), (2.0, 2.0, 2.0)), (0.0, 0.0, 0.0), 30.0)
    for noise in (0.05, 0.1):
        corner = rescan(scan, replace(QUIET, noise=noise), drawn()).volume.array[:, :6, :6]
        assert corner.mean() / SCANNER_GAIN == pytest.approx(noise * np.sqrt(np.pi / 2.0), rel=0.05)
    flat, uneven = (rescan(scan, replace(QUIET, bias=bias), drawn()).volume.array for bias in (0.0, 0.3))
    inside = flat > 0.97 * flat.max()
    assert flat[inside].std() < 0.01 * SCANNER_GAIN < uneven[inside].std()


@pytest.mark.parametrize("wrong", [{"contrast": "purple"}, {"slice_mm": 0.0}])
def test_a_technique_that_cannot_be_is_refused(wrong):
    """Before anything is scanned."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Technique(**wrong)


def test_adaptive_equalisation_undoes_gain_offset_and_shows_what_is_faint():
    """A shadow of a hundredth of the range beside a bright bone."""
    image = np.random.default_rng(0).normal(0.0, 0.02, (96, 96)).astype(np.float32)
    image[:, 60:] += 10.0
    image[30:40, 10:20] += 0.1
    shown = baselines.adaptively_equalised(image)
    assert 0.0 <= shown.min() < shown.max() <= 1.0 + 1e-6
    assert np.abs(baselines.adaptively_equalised(3.0 * image + 7.0) - shown).mean() < 0.01
    plain = (image - image.min()) / (image.max() - image.min())
    faint = [each[32:38, 12:18].mean() - each[60:66, 12:18].mean() for each in (shown, plain)]
    assert faint[0] > 3.0 * faint[1]


def test_a_shifted_picture_is_recognised_only_by_who_tries_shifts():
    """The baseline that registers is the harder one to beat."""
    fine = np.random.default_rng(0).normal(size=(3, 32, 32))
    pictures = np.repeat(np.repeat(fine, 3, axis=1), 3, axis=2).astype(np.float32)
    pictures[1] = np.roll(pictures[0], (3, -3), axis=(0, 1))
    assert baselines.correlations(pictures, pictures)[0, 1] < 0.5
    found = baselines.shifted_correlations(pictures)
    assert found[0, 1] == pytest.approx(1.0, abs=0.02)
    assert found[0, 2] < 0.5


def test_edge_histograms_know_direction_and_not_brightness():
    """Stripes lie apart from stripes across them, not from brighter ones."""
    stripes = np.sin(np.arange(96) / 3.0)[:, None].repeat(96, axis=1).astype(np.float32)
    rows = np.stack([baselines.edges(each) for each in (stripes, 3.0 * stripes + 1.0, stripes.T)])
    likeness = retrieval.cosines(rows, rows)
    assert likeness[0, 1] == pytest.approx(1.0, abs=1e-3)
    assert likeness[0, 2] < 0.2


def test_principal_axes_are_those_of_the_people_they_were_fitted_to():
    """What only a test patient shows has no axis."""
    rows = np.zeros((6, 3))
    rows[:4, 0] = [-1.0, 1.0, -2.0, 2.0]
    rows[4:, 2] = [5.0, -5.0]
    fitted = np.array([True] * 4 + [False] * 2)
    assert np.abs(baselines.principal(rows, 1, fitted)[:, 0]) == pytest.approx([1, 1, 2, 2, 0, 0])


def test_chance_is_the_error_of_neighbours_taken_blindly():
    """Where the gallery is all of one age, the distance to that age."""
    offered = np.array([[True] * 6 + [False], [True] * 7])
    errors = baselines.chance_errors([30.0] * 6 + [90.0], offered, [50.0, 30.0], 0)
    assert errors[0] == pytest.approx(20.0)
    assert errors[1] == pytest.approx(5.0 / 7.0 * 12.0, rel=0.05)


def made_up_brains(own, *, jitter=0.0):
    """Brains whose rows are told, twelve people of whom six are held out; rescans lie `jitter` off."""
    random = np.random.default_rng(0)
    people = tuple(
        bench.Person(f"p{n}", Path(), Path(), n % 2 == 0, 20.0 + 5.0 * n, 0.01 * n, random.normal(size=40))
        for n in range(12)
    )
    views = {
        bench.OURS: own,
        bench.UNTRAINED: random.normal(size=own.shape),
        bench.RAW: random.normal(size=own.shape),
    }
    again = {
        name: {
            viewer: rows[::2] + jitter * random.normal(size=rows[::2].shape) for viewer, rows in views.items()
        }
        for name in bench.TECHNIQUES
    }
    return bench.Brains(people, views, again, 0)


def own_rows(rows):
    return {row.subject: row for row in rows if row.target}


def test_rescans_that_lie_on_their_originals_are_all_found():
    """And next to none where they lie anywhere."""
    own = np.random.default_rng(1).normal(size=(12, 8))
    for jitter, low, high in ((0.01, 1.0, 1.0), (100.0, 0.0, 0.5)):
        rows = own_rows(bench.found_again_rows(made_up_brains(own, jitter=jitter)))
        assert {subject.split()[-1] for subject in rows} == {"6", "12"}
        assert all(low <= row.measured <= high for row in rows.values())


def test_neighbours_of_like_age_are_told_by_an_embedding_that_orders_age():
    """Six held-out people ten years apart: the five others' mean; among all, the five nearest."""
    rows = own_rows(bench.neighbour_rows(made_up_brains(on_circle(np.arange(12) * 10.0))))
    ages = 20.0 + 10.0 * np.arange(6)
    expected = np.abs((ages.sum() - ages) / 5.0 - ages).mean()
    told = {subject: row.measured for subject, row in rows.items()}
    assert told["5 nearest neighbours' age error (years), the other held-out"] == pytest.approx(expected)
    assert told["5 nearest neighbours' age error (years), all others"] < 0.5 * expected
    assert told["ventricle share of 5 neighbours, rho, all others"] > 0.9


def test_the_probe_rows_tell_a_technique_that_shows_in_the_embedding():
    """Each against the usual one."""
    brains = made_up_brains(np.random.default_rng(1).normal(size=(12, 8)), jitter=0.01)
    brains.again["noisy"][bench.OURS][:, 0] += 50.0
    told = {
        subject.split(",")[0]: row.measured for subject, row in own_rows(bench.probe_rows(brains)).items()
    }
    assert told["probe for noise"] == 1.0
    assert told["probe for thickness"] < 0.8


def test_a_rescanned_head_is_seen_by_every_viewer():
    """Volumes to rows, through the encoder itself."""
    viewers = {bench.OURS: bench.viewer_of(baselines.untrained(TINY, 0)), bench.RAW: baselines.raw_brain}
    heads = [small_head().volume, rescan(small_head().volume, Technique(), drawn()).volume]
    rows = bench.seen(heads, viewers)
    assert rows[bench.OURS].shape == (2, 8)
    assert rows[bench.RAW].shape == (2, 28**3)
    assert baselines.correlations(rows[bench.RAW], rows[bench.RAW])[0, 1] > 0.5


def test_an_untrained_network_is_drawn_from_its_seed_alone():
    """And leaves the global generator as it was."""
    before = torch.random.get_rng_state()
    one, same, other = (baselines.untrained(TINY, seed).network.project.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_radiograph_becomes_a_square_picture():
    """As each baseline takes it."""
    picture = baselines.equalised_radiograph(radiograph())
    assert picture.shape == (96, 96)
    assert picture.std() > 0.1


def test_an_interval_stands_beside_its_figure_and_nowhere_else():
    """Benchmarks without one print what they always did."""
    scores = Scores("trial", "none", 0, (Score("a", 0.5, interval=(0.25, 0.75)), Score("b", 0.5)))
    lines = scores.table().splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["0.5 [0.25, 0.75]", "0.5"]
    assert scores.as_dict()["rows"][0]["interval"] == (0.25, 0.75)


def test_without_weights_the_benchmark_refuses_with_the_remedy(monkeypatch, tmp_path):
    """A random network has a row, but none of its own."""
    assert "encoder" in registry.BENCHMARKS
    monkeypatch.setattr(weights_module, "SHIPPED_FOLDER", tmp_path)
    with pytest.raises(WeightsRefused, match="no trained weights ship"):
        registry.run("encoder", data=tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not SHIPPED, reason="no trained weights ship yet")
@pytest.mark.skipif(not (DATA / "brains-t1").is_dir(), reason="real scans are not here; set MEDSIAM_DATA")
def test_the_shipped_encoders_know_people_better_than_no_training_does():
    """Every held-out person scanned again; the scoreboard itself tells how much better."""
    rows = {row.subject: row.measured for row in bench.measure(DATA, 0).rows}
    for words in bench.FOUND_AGAIN.values():
        subject = f"re-acquired brain, {words}, P@1 among 30"
        assert rows[subject] > max(rows[f"{subject}: {other}"] for other in (bench.UNTRAINED, bench.RAW))
