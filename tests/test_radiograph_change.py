"""Opacities of the lungs: found with their area, quiet where nothing changed, signs that only flip."""

import os
from pathlib import Path

import numpy as np
import pytest

from medsiam.bench.radiographs import FollowUp, clinical_state, compared, rank_correlation, state_change
from medsiam.change.radiograph import decide_radiograph, radiograph_on_current
from medsiam.pairing.radiograph_pair import prior_on_current
from medsiam.reading import read_volume
from tests.test_lungs import chest, hand, lung_truth, opacity, places

DATA = Path(os.environ.get("MEDSIAM_DATA") or Path(__file__).parents[2] / "shared" / "data")
SPOT = ((-0.42, -0.05), 0.16, 0.7)
# The same person on another day: shifted, turned, exposed otherwise.
MOVED = {"shift": (0.05, 0.03), "turn_deg": 2.0, "curve": 1.25, "seed": 1}


@pytest.fixture(scope="module")
def appearing():
    """Pair and change where one opacity is new."""
    return compared(chest(), chest(opacities=(SPOT,), **MOVED))


@pytest.fixture(scope="module")
def resolving():
    return compared(chest(opacities=(SPOT,), **MOVED), chest())


@pytest.fixture(scope="module")
def still():
    return compared(chest(), chest(**MOVED))


def share_percent(spot):
    """Area of a spot in % of both lungs, by geometry."""
    x, y = places((0.0, 0.0), 0.0)
    return 100.0 * (opacity(x, y, spot) > 0.5).sum() / lung_truth().sum()


def test_a_new_opacity_is_found_with_its_area_in_its_zone(appearing):
    """One finding, of the area that geometry gives, and nothing else."""
    _, change = appearing
    assert [finding.kind for finding in change.findings] == ["new"]
    finding = change.findings[0]
    assert finding.zone == "right middle"
    assert finding.area_current_percent == pytest.approx(share_percent(SPOT), rel=0.5)
    assert finding.p_value <= 0.05
    assert decide_radiograph(change) == ("progressed", "")


def test_the_finding_lies_where_the_opacity_was_put(appearing):
    """In the current scan's own world, through pose and bend."""
    pair, change = appearing
    x, y = places(MOVED["shift"], MOVED["turn_deg"])
    truth = opacity(x, y, SPOT) > 0.5
    grid = pair.pair.current.grid
    wanted = grid.world([[0.0, *np.argwhere(truth).mean(axis=0)]])[0]
    assert np.linalg.norm(np.array(change.findings[0].centre_lps_mm) - wanted) < 12.0
    _, labels = radiograph_on_current(pair, change)
    assert labels.shape == grid.shape
    assert ((labels[0] > 0) & truth).sum() > 0.4 * truth.sum()


def test_swapping_prior_and_current_only_flips_the_sign(appearing, resolving):
    """To the last bit: the score, the zones, the map, and new <-> resolved."""
    (_, one), (_, other) = appearing, resolving
    assert other.score == -one.score and other.magnitude == one.magnitude
    np.testing.assert_array_equal(other.evidence, -one.evidence)
    assert [zone.delta for zone in other.zones] == [-zone.delta for zone in one.zones]
    assert [finding.kind for finding in other.findings] == ["resolved"]
    assert other.findings[0].centre_lps_mm == one.findings[0].centre_prior_lps_mm


def test_more_opacity_is_a_higher_score(appearing, resolving, still):
    """+ is more opaque."""
    assert resolving[1].score < still[1].score < appearing[1].score


def test_no_change_stays_quiet_through_pose_and_exposure(still):
    """A shift, a turn and another contrast curve are no disease."""
    _, change = still
    assert change.findings == ()
    assert abs(change.score) < 0.1
    assert decide_radiograph(change) == ("stable", "")


def test_a_radiograph_against_itself_is_zero():
    """The simplest law."""
    volume = chest()
    _, change = compared(volume, volume)
    assert change.score == 0.0 and change.findings == ()
    assert not change.evidence.any()


def test_the_prior_lies_upon_the_current_for_display(still):
    """Ribs upon ribs: what a reader sees beside the map."""
    pair, _ = still
    shown = prior_on_current(pair)
    seen = np.isfinite(shown[0]) & lung_truth(shift=MOVED["shift"], turn_deg=MOVED["turn_deg"])
    assert np.corrcoef(shown[0][seen], pair.pair.current.array[0][seen])[0, 1] > 0.8


@pytest.mark.parametrize("pair", [(hand(), chest()), (hand(), hand())])
def test_another_body_part_abstains_with_a_reason(pair):
    """No lungs, no verdict on lungs; nothing breaks on the way."""
    radiograph, change = compared(*pair)
    verdict, reason = decide_radiograph(change)
    assert verdict == "indeterminate" and "no lungs" in reason
    assert change.findings == () and not radiograph.lungs.any()


def test_another_projection_abstains():
    """Lying and standing: the heart alone would be a finding."""
    _, change = compared(chest(), chest(view="AP", seed=1))
    assert decide_radiograph(change)[0] == "indeterminate"
    assert any("AP" in reason for reason in change.reasons)


def test_the_clinical_state_takes_values_near_the_image_alone():
    """A CRP of last week says nothing of today's image."""
    near = {"crp_offset": "1.0", "crp_val": "100", "icu_admission_offset": "-3", "icu_release_offset": "2"}
    far = {**near, "crp_offset": "-6.0", "icu_release_offset": "-1"}
    assert clinical_state(near).crp == pytest.approx(np.log(100.0)) and clinical_state(near).intensive_care
    assert clinical_state(far).crp is None and not clinical_state(far).intensive_care
    assert state_change(clinical_state(near), clinical_state(far))["all"] == -1.0


def test_the_interval_holds_the_rank_correlation():
    """Of whole patients: one who comes often counts once in each draw."""
    told = [
        FollowUp(str(n // 3), False, {"all": float(n)}, {"x": float(n + n % 2)}, False) for n in range(30)
    ]
    value, (low, high) = rank_correlation(told, "x", "all", 0)
    assert 0.9 < low <= high <= 1.0 and value > 0.9


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cxr-longitudinal").is_dir(), reason="no radiographs here; set MEDSIAM_DATA")
def test_two_real_visits_swap_to_the_last_bit():
    """The law holds on a ward's radiographs, with tubes and a bend."""
    one, other = (
        read_volume(DATA / "cxr-longitudinal" / "png" / f"{n}.png") for n in ("23823ebc", "e87352fc")
    )
    there, back = compared(one, other)[1], compared(other, one)[1]
    assert back.score == -there.score
    np.testing.assert_array_equal(back.evidence, -there.evidence)
    assert len(back.findings) == len(there.findings)
