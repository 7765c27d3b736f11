"""Laws of the noise floor: what noise alone finds, what a rescan shares with its pair, what is seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medsiam.change import injection
from medsiam.change.certificate import BEYOND_MM, EDGE_MM, Measured, _with_prior_at, erase_test
from medsiam.change.difference import measure_difference
from medsiam.change.findings import find_candidates, find_changes
from medsiam.change.injection import InjectionSettings, injected, volume_found_with
from medsiam.change.noise_floor import NoiseFloorSettings, measure_noise_floor
from medsiam.change.noise_rate import LEAST_TOLD, NoiseRate
from medsiam.change.rescan import Rescanner, measured_gap
from medsiam.config import CompareSettings
from medsiam.pairing.comparability import judge
from medsiam.pairing.pair_up import HalfwaySettings, pair_up
from medsiam.pairing.values import Pair
from medsiam.phantom import Lesion, Scan, flair_acquisition, head_phantom, position

CPU = torch.device("cpu")
SETTINGS = CompareSettings()
STEPS = SETTINGS.change().steps
QUICK = NoiseFloorSettings(rescans=4, injected=2, lesions=InjectionSettings(count=15))
LESION = Lesion((-30.0, 10.0, 30.0), (6.0, 6.0, 6.0))
STRENGTHS = st.lists(st.floats(3.5, 12.0), min_size=0, max_size=60)


def visit(lesions=(), *, seed, turn=(0.0, 0.0, 0.0)):
    scan = Scan((4.0, 2.0, 2.0), noise=8.0, bias=0.05, seed=seed)
    pose = position(turn, (3.0, -4.0, 2.0))
    return head_phantom(lesions, scan=scan, world_from_head=pose, acquisition=flair_acquisition(scan)).volume


def paired(prior, current) -> Pair:
    told = judge(prior.acquisition, current.acquisition, (4.0, 2.0, 2.0), (4.0, 2.0, 2.0))
    return pair_up(prior, current, told, SETTINGS.pairing(), CPU)


@pytest.fixture(scope="module")
def grown() -> Pair:
    """A head, and the same head turned with one lesion more."""
    return paired(visit(seed=0), visit((LESION,), seed=1, turn=(5.0, 0.0, 3.0)))


@pytest.fixture(scope="module")
def difference(grown):
    return measure_difference(grown, STEPS.difference, CPU)


@pytest.fixture(scope="module")
def rescanner(grown, difference) -> Rescanner:
    gap = measured_gap(grown, torch.tensor(difference.contrast), torch.tensor(difference.mean))
    return Rescanner(grown, gap, difference.smoothing_voxels)


@given(STRENGTHS, st.integers(1, 20), st.floats(3.5, 15.0), st.floats(0.0, 5.0))
@settings(max_examples=60, deadline=None)
def test_stronger_candidates_are_never_likelier_noise(strengths, rescans, strength, more):
    """And none is impossible: what was not seen in a few rescans may still happen."""
    rate = NoiseRate.of([strengths, *([()] * (rescans - 1))], 3.5)
    assert 0.0 < rate.per_scan(strength + more) <= rate.per_scan(strength)
    for told in (rate.any_in_scan, rate.at_a_place):
        assert LEAST_TOLD <= told(strength + more) <= told(strength) <= 1.0


def test_no_chance_is_told_that_a_few_rescans_cannot_tell():
    """Nought, or one in a sextillion, would be the exponential's own."""
    rate = NoiseRate.of([[4.0, 4.2], [4.1], [], []], 3.5)
    assert rate.any_in_scan(7.0) == pytest.approx(rate.per_scan(7.0), rel=0.01)
    for strength in (20.0, 80.0):
        assert rate.per_scan(strength) < LEAST_TOLD
        assert rate.any_in_scan(strength) == rate.at_a_place(strength) == LEAST_TOLD


@given(STRENGTHS, st.floats(0.001, 0.5))
@settings(max_examples=60, deadline=None)
def test_the_strength_for_a_rate_has_that_rate_or_less(strengths, rate):
    """It is the bar that a lone finding has to pass."""
    noise = NoiseRate.of([strengths, ()], 3.5)
    bar = noise.strength_for(rate)
    assert noise.per_scan(bar) <= rate
    assert bar == 3.5 or noise.per_scan(bar - 0.01) > 0.9 * rate


def test_weak_candidates_of_the_pair_itself_raise_the_bar():
    """Where a pair shows more weak candidates than its rescans, the rescans lack some of its noise."""
    rescans = [(4.0, 3.8), (3.6,), (4.2,), ()]
    few, many = (NoiseRate.of(rescans, 3.5, [3.7] * count + [9.0]) for count in (0, 15))
    assert many.strength_for(0.05) > few.strength_for(0.05) + 0.3
    assert many.per_scan(9.0) < 0.05


def test_false_findings_stay_under_the_nominal_rate():
    """Scans without change, their candidates drawn as the rescans' are: at most .05 a scan."""
    random = np.random.default_rng(0)

    def scan():
        return tuple(3.5 + random.exponential(0.4, random.poisson(6)))

    false = 0
    for _ in range(400):
        bar = NoiseRate.of([scan() for _ in range(12)], 3.5).strength_for(0.05)
        false += sum(strength >= bar for strength in scan())
    assert false / 400 < 0.08


def test_a_rescan_differs_from_its_scan_as_the_pair_does(grown, rescanner):
    """The same noise, and edges as far off: that is what makes its candidates a null distribution."""
    for base in ("prior", "current"):
        again = measure_difference(rescanner.rescan(base, 0), STEPS.difference, CPU)
        gap = measured_gap(grown, torch.tensor(again.contrast), torch.tensor(again.mean))
        assert gap.noise == pytest.approx(rescanner.gap.noise, rel=0.25)
        assert gap.edge_mm == pytest.approx(rescanner.gap.edge_mm, rel=0.3)


def test_fine_voxels_are_taken_together_where_the_halfway_grid_is_coarser():
    """Else what lies between two samples is thrown away, and its noise stays."""
    scans = visit(seed=0), visit(seed=1, turn=(5.0, 0.0, 3.0))
    told = judge(scans[0].acquisition, scans[1].acquisition, (4.0, 2.0, 2.0), (4.0, 2.0, 2.0))
    coarse = dataclasses.replace(SETTINGS, halfway=HalfwaySettings(finest_mm=4.0))
    fine, thick = (pair_up(*scans, told, each.pairing(), CPU) for each in (SETTINGS, coarse))
    assert fine.seen == (fine.prior, fine.current)
    for scan, seen in zip(scans, thick.seen, strict=True):
        assert seen.grid.spacing_mm == pytest.approx([4.0, 4.0, 4.0])
        assert seen.array[3, 5, 6] == pytest.approx(scan.array[3, 10:12, 12:14].mean(), rel=1e-5)
        assert seen.grid.world([[3, 5, 6]])[0] == pytest.approx(scan.grid.world([[3, 10.5, 12.5]])[0])
    noise = [np.std((pair.current_half - pair.prior_half)[pair.tissue]) for pair in (fine, thick)]
    assert noise[1] < 0.8 * noise[0]


def test_a_rescan_hangs_on_its_scan_and_seed_alone(grown, rescanner):
    """Whether a scan is the prior or the current, its rescan is the same to the bit."""
    turned = dataclasses.replace(
        grown,
        prior=grown.current,
        current=grown.prior,
        prior_half=grown.current_half,
        current_half=grown.prior_half,
        prior_from_half=grown.current_from_half,
        current_from_half=grown.prior_from_half,
    )
    other = Rescanner(turned, rescanner.gap, rescanner.smoothing).rescan("current", 3)
    same = rescanner.rescan("prior", 3)
    assert np.array_equal(same.current_half, other.prior_half)
    assert not np.array_equal(same.current_half, rescanner.rescan("prior", 4).current_half)


def test_a_lesion_passes_its_slices_alone_as_it_would_within_the_whole(grown, monkeypatch):
    """Each is looked at in a box of its own, which holds all but a thousandth of what slices spread."""

    def made():
        told = injected(grown, QUICK.lesions, into_prior=True, bright=True, random=np.random.default_rng(0))
        return told.pair.prior_half - grown.prior_half, told.pair.current_half - grown.current_half

    alone = made()
    monkeypatch.setattr(injection, "SLICES_REACHED", 100.0)
    whole = made()
    assert float(np.abs(whole[0]).max()) > 0.2
    for one, other in zip(alone, whole, strict=True):
        assert float(np.abs(one - other).max()) < 2e-3 * float(np.abs(whole[0]).max())


def test_nothing_is_found_in_rescans_but_the_lesion_is_in_the_pair(grown, difference):
    """The floor lets the real change pass and holds its own noise back."""
    floor = measure_noise_floor(grown, difference, STEPS, QUICK, seed=0, device=CPU)
    fresh = Rescanner(grown, measured_gap(grown, *_smoothed(difference)), difference.smoothing_voxels)
    for base in ("prior", "current"):
        still = fresh.rescan(base, 999)
        quiet = find_candidates(still, measure_difference(still, STEPS.difference, CPU), STEPS.findings)
        assert find_changes(still, quiet, floor.rate, STEPS.findings).findings == ()
    found = find_changes(
        grown, find_candidates(grown, difference, STEPS.findings), floor.rate, STEPS.findings
    )
    assert [finding.kind for finding in found.findings] == ["new"]


@pytest.mark.parametrize(("voxels", "found"), [(3, 0), (12, 1)])
def test_a_place_smaller_than_some_voxels_of_the_scan_is_no_candidate(grown, difference, voxels, found):
    """In coarse slices a single voxel differs by chance of where the slices lie."""
    least = np.sort(difference.evidence.ravel())[-voxels]
    evidence = np.where(difference.evidence >= least, difference.evidence, 0.0)
    cut = dataclasses.replace(difference, evidence=evidence)
    assert len(find_candidates(grown, cut, STEPS.findings).each) == found


def test_a_larger_lesion_is_never_harder_to_see(grown, difference):
    """Half of the times needs less than nine times in ten, and both lie among what was put in."""
    told = measure_noise_floor(grown, difference, STEPS, QUICK, seed=0, device=CPU).told
    assert told.injected >= 20
    assert 0.0 < told.half_ml <= (told.smallest_ml or np.inf)


def test_the_erased_finding_takes_its_change_along(grown, difference):
    """What is left was not the finding's: here next to nothing."""
    noise = NoiseRate.of([(), ()], STEPS.findings.least_strength)
    found = find_changes(grown, find_candidates(grown, difference, STEPS.findings), noise, STEPS.findings)
    erased = erase_test(Measured(grown, difference, found), noise, STEPS, CPU, most=1)
    assert erased.magnitude > 0.1
    assert erased.all_erased < 0.2 * erased.magnitude
    assert erased.each[0].label == 1


def test_places_are_erased_as_one_though_each_has_a_box_of_its_own(grown):
    """Two that touch, one at the wall of the grid, and a number that none has."""
    labels = np.zeros(grown.grid.shape, np.int32)
    labels[10:13, 10:13, 10:13], labels[10:13, 13:16, 11:12], labels[:2, -2:, 20:24] = 1, 2, 4
    far_mm = ndimage.distance_transform_edt(labels == 0) * float(grown.grid.spacing_mm[-1])
    share = np.clip((BEYOND_MM + EDGE_MM - far_mm) / EDGE_MM, 0.0, 1.0)
    expected = share * grown.prior_half + (1.0 - share) * grown.current_half
    erased = _with_prior_at(grown, labels)
    assert np.allclose(erased.current_half, expected, atol=1e-5) and 0.0 < share.mean() < 0.5
    assert np.array_equal(erased.prior_half, grown.prior_half)


def test_injected_lesions_have_the_volume_they_claim(grown):
    """And lie apart, within the tissue, in all thirds."""
    made = injected(
        grown, InjectionSettings(), into_prior=False, bright=True, random=np.random.default_rng(0)
    )
    voxel_mm3 = grown.grid.voxel_ml * 1000.0
    counts = np.bincount(made.labels.ravel(), minlength=len(made.volumes_mm3) + 1)[1:] * voxel_mm3
    large = np.array(made.volumes_mm3) > 500.0
    assert large.any()
    np.testing.assert_allclose(counts[large], np.array(made.volumes_mm3)[large], rtol=0.2)
    assert grown.tissue[made.labels > 0].mean() > 0.98
    assert set(made.thirds) == {0, 1, 2}
    added = [
        np.abs(after - before).sum()
        for after, before in (
            (made.pair.prior_half, grown.prior_half),
            (made.pair.current_half, grown.current_half),
        )
    ]
    # The slices' share of the lesions is taken out by halves, so that a trace stands in the other scan.
    assert added[0] < 0.25 * added[1]


@given(st.floats(0.02, 0.5), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_volume_found_with_a_chance_is_that_of_the_curve(middle_ml, seed):
    """Lesions drawn from a known curve give it back within a factor."""
    random = np.random.default_rng(seed)
    volumes = middle_ml * 1000.0 * 20.0 ** random.uniform(-1.0, 1.0, 400)
    found = random.random(400) < 1.0 / (1.0 + np.exp(-2.0 * np.log(volumes / (middle_ml * 1000.0))))
    half = volume_found_with(0.5, volumes.tolist(), found.tolist())
    assert half == pytest.approx(middle_ml, rel=0.35)
    assert volume_found_with(0.9, volumes.tolist(), found.tolist()) > half


def test_where_nothing_is_found_no_volume_is_told():
    """A smallest detectable change that was never seen would be made up."""
    volumes = np.geomspace(20.0, 2000.0, 30).tolist()
    assert volume_found_with(0.9, volumes, [False] * 30) is None
    assert volume_found_with(0.9, volumes, [True] * 30) == pytest.approx(0.02, rel=1e-6)


def _smoothed(difference):
    return torch.tensor(difference.contrast), torch.tensor(difference.mean)
