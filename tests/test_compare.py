"""Laws of the whole comparison, on phantoms whose truth is known."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from medsiam.change.comparison import Comparison
from medsiam.compare import compare as compare_fully
from medsiam.config import CompareSettings
from medsiam.errors import ConfigRefused, NotComparable
from medsiam.pairing.pair_up import HalfwaySettings
from medsiam.phantom import Lesion, Scan, flair_acquisition, head_phantom, position
from medsiam.volume import Grid, Volume, transform
from tests.phantoms import radiograph

# The laws hold at any number of pseudo-rescans.
compare = functools.partial(compare_fully, fast=True)

SCAN = Scan((4.0, 2.0, 2.0), noise=8.0, bias=0.05)
OLD = (Lesion((20.0, 26.0, 26.0), (5.0, 6.0, 5.0)),)
NEW = Lesion((-30.0, 10.0, 30.0), (6.0, 6.0, 6.0))
POSE = position((4.0, -3.0, 5.0), (6.0, -5.0, 4.0))
OPPOSITE = {"new": "resolved", "resolved": "new", "enlarged": "shrunk", "shrunk": "enlarged"}


def visit(lesions, *, pose=None, seed=0) -> Volume:
    scan = dataclasses.replace(SCAN, seed=seed)
    return head_phantom(lesions, scan=scan, world_from_head=pose, acquisition=flair_acquisition(scan)).volume


@pytest.fixture(scope="module")
def before() -> Volume:
    return visit(OLD)


@pytest.fixture(scope="module")
def after() -> Volume:
    return visit((*OLD, NEW), pose=POSE, seed=1)


@pytest.fixture(scope="module")
def progressed(before, after) -> Comparison:
    return compare(before, after)


def test_a_new_lesion_is_found_where_it_is_and_as_large_as_it_is(progressed):
    """Place in the current's world within 2 mm, volume within a third."""
    assert progressed.verdict == "progressed"
    assert [finding.kind for finding in progressed.findings] == ["new"]
    finding = progressed.findings[0]
    true_centre = transform(POSE, [NEW.centre_mm])[0]
    assert np.linalg.norm(np.array(finding.centre_lps_mm) - true_centre) < 2.0
    assert finding.volume_current_ml == pytest.approx(NEW.volume_ml, rel=0.34)


def test_the_label_image_holds_the_finding_where_it_says(progressed):
    """report.json and findings.nii.gz tell one story."""
    grid, finding = progressed.current.grid, progressed.findings[0]
    held = grid.world(np.argwhere(progressed.labels == finding.label))
    assert np.linalg.norm(held.mean(axis=0) - np.array(finding.centre_lps_mm)) < 2.0
    assert (progressed.change_map[progressed.labels == finding.label] > 0).all()


def test_exchanging_the_scans_only_exchanges_appearing_and_resolving(progressed, before, after):
    """The law: the same magnitudes with opposite signs, through the whole pipeline."""
    swapped = compare(after, before)
    assert swapped.verdict == "improved"
    assert [f.kind for f in swapped.findings] == [OPPOSITE[f.kind] for f in progressed.findings]
    assert swapped.change.score == pytest.approx(-progressed.change.score, abs=1e-3)
    assert swapped.change.magnitude == pytest.approx(progressed.change.magnitude, abs=1e-3)
    one, other = progressed.findings[0], swapped.findings[0]
    assert other.volume_prior_ml == pytest.approx(one.volume_current_ml, rel=0.01)
    assert other.delta_ml == pytest.approx(-one.delta_ml, rel=0.01)


def test_a_scan_against_itself_is_stable(before):
    """Nothing changed, and nothing may be said to have."""
    same = compare(before, before)
    assert same.verdict == "stable"
    assert same.findings == ()
    assert same.change.p_value == 1.0
    assert same.change.score == same.change.appearing_ml == 0.0


def test_a_scan_against_itself_moved_is_stable(before):
    """A head that moved is no change, however its voxels are cut."""
    again = visit(OLD, pose=position((10.0, 0.0, 0.0), (0.0, 15.0, 0.0)), seed=5)
    result = compare(before, again)
    assert result.verdict == "stable", result.findings
    assert result.findings == ()


def test_a_failed_registration_gives_no_verdict(before):
    """The method abstains, and says why."""
    rng = np.random.default_rng(3)
    noise = rng.normal(500.0, 80.0, before.grid.shape).astype(np.float32)
    result = compare(before, Volume(noise, before.grid, before.acquisition))
    assert result.registration.quality == "failed"
    assert result.verdict == "indeterminate"
    assert "registered" in result.summary
    assert result.findings == () and not result.labels.any() and not result.change_map.any()
    assert result.change.score is None


def test_a_radiograph_without_lungs_is_not_judged():
    """Change is told of lung fields; where none are seen there is no verdict, and no ml ever."""
    film = radiograph((256, 220))
    ramp = np.linspace(0.0, 1000.0, film.array.size, dtype=np.float32).reshape(film.array.shape)
    plain = Volume(ramp, film.grid, film.acquisition)
    spotted = ramp.copy()
    spotted[0, 60:80, 40:60] -= 900.0
    result = compare(plain, Volume(spotted, film.grid, film.acquisition))
    assert result.verdict == "indeterminate" and "lung" in result.summary
    assert result.findings == () and result.change.appearing_ml is None


def test_a_radiograph_beside_a_volume_is_refused_before_any_weights_are_asked(before):
    """Else the answer is to train others."""
    flat = Volume(before.array[:1], Grid((1, *before.grid.shape[1:]), before.grid.world_from_index))
    for pair in ((before, flat), (flat, before)):
        with pytest.raises(NotComparable, match=r"a radiograph.*give two scans of one kind"):
            compare(*pair)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 2**32}, {"device": "bogus"}, {"device": "cuda:x"}])
def test_a_seed_or_device_that_cannot_be_is_refused_at_once(before, wrong):
    """From Python as from the command line."""
    with pytest.raises(ConfigRefused, match=r"must be from 0 to|choose auto, cpu"):
        compare(before, before, **wrong)


def test_a_sliver_of_the_other_scan_gives_no_verdict(before):
    """Three slices are registered well, and say nothing of the rest of the head."""
    box = [slice(18, 21), slice(0, before.grid.shape[1]), slice(0, before.grid.shape[2])]
    sliver = Volume(before.array[18:21], before.grid.part(box), before.acquisition)
    for pair in ((sliver, before), (before, sliver)):
        comparison = compare(*pair)
        assert comparison.verdict == "indeterminate" and comparison.registration.quality != "good"
        # "0 ml" would read as no change.
        assert comparison.findings == () and comparison.change.appearing_ml is None


def test_two_modalities_are_refused(before):
    """CT against MR shows different things."""
    ct = Volume(before.array, before.grid, dataclasses.replace(before.acquisition, modality="CT"))
    with pytest.raises(NotComparable):
        compare(before, ct)


def test_the_same_comparison_twice_is_the_same_bit_for_bit(before, after, progressed):
    """A result that cannot be repeated cannot be trusted."""
    again = compare(before, after)
    assert np.array_equal(again.change_map, progressed.change_map)
    assert again.findings == progressed.findings


def test_a_result_carries_its_noise_floor_and_both_certificates(progressed):
    """What could not have been seen, what the reverse says, and what is left without the finding."""
    floor, reversal, erased = progressed.noise_floor, progressed.order_reversal, progressed.erase_test
    assert floor.fast and floor.rescans == 4
    assert progressed.change.smallest_detectable_ml == floor.smallest_ml
    assert progressed.change.order_reversal_error == reversal.error < 1e-3
    assert reversal.dice > 0.95
    assert erased.all_erased < 0.2 * erased.magnitude


def test_the_fast_mode_says_in_what_voxels_it_looked(before, after, progressed):
    """They are the settings' coarser ones; by default nothing is said."""
    coarse = CompareSettings(halfway=HalfwaySettings(fast_finest_mm=4.0))
    told = compare(before, after, coarse)
    assert "fast mode: change was measured in voxels of 4 mm" in told.notes
    assert "fast mode: change was measured in voxels of 2 mm" in progressed.notes
    assert CompareSettings().pairing().finest_mm == 1.0
    assert CompareSettings().pairing(fast=True).finest_mm == 1.4


def test_arrays_of_a_result_lie_on_the_current_grid(progressed):
    """What viewers overlay must fit the current scan's voxels."""
    shape = progressed.current.grid.shape
    assert progressed.change_map.shape == progressed.labels.shape == shape
    assert progressed.prior_on_current.shape == shape
    assert np.abs(progressed.change_map).max() <= 1.0
    assert progressed.labels.dtype == np.uint16
