"""Laws of several scans together: what adds up, what grows how fast, which findings are one lesion."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.change.growth import DAYS_A_MONTH, doubling_time, growth_rate
from medsiam.change.tracking import follow_lesions
from medsiam.change.trajectory import (
    closure_of,
    days_for_rates,
    motion_closure_mm,
    net_since_first,
    planned_pairs,
    repeatability_of,
    verdict_over_time,
)
from medsiam.errors import IdentityRefused, InputRefused, NotComparable
from medsiam.pairing.identity_check import order_of_time
from medsiam.pairing.series_match import match_many
from medsiam.reading.entry import SeriesEntry
from medsiam.trajectory import Rules, _summary, follow, in_order
from medsiam.volume import Acquisition, Grid, Volume
from tests import comparison_maker as maker
from tests.trajectory_maker import (
    DAYS,
    POINTS_MM,
    one_lesion,
    pair,
    place,
    scans,
    shift,
    silent,
)

volumes = st.lists(st.floats(0.0, 50.0), min_size=3, max_size=5)


@given(volumes)
@settings(max_examples=30, deadline=None)
def test_volumes_that_add_up_close_exactly(volumes_ml):
    """The closure error is an error of measurement, never one of arithmetic."""
    closure = closure_of(one_lesion(volumes_ml, all_pairs=False), len(volumes_ml), POINTS_MM)
    assert closure.error_ml == pytest.approx(0.0, abs=1e-9)
    assert closure.direct_ml == pytest.approx(volumes_ml[-1] - volumes_ml[0], abs=1e-9)
    assert closure.registration_mm == 0.0


def test_a_step_that_measures_too_much_shows_in_the_closure():
    """0.2 ml too much in one of two steps of 1 ml each."""
    pairs = [pair(1, 2, place(1.0, 2.2)), pair(2, 3, place(2.0, 3.0)), pair(1, 3, place(1.0, 3.0))]
    closure = closure_of(pairs, 3, POINTS_MM)
    assert closure.error_ml == pytest.approx(0.2)
    assert closure.share == pytest.approx(0.2 / 2.2)


def test_without_change_there_is_nothing_to_be_a_share_of():
    """0 of 0 is not 0."""
    closure = closure_of(one_lesion([1.0, 1.0, 1.0]), 3, POINTS_MM)
    assert (closure.error_ml, closure.share, closure.error_score) == (0.0, None, 0.0)


def test_a_pair_without_a_verdict_opens_the_sum_and_says_so():
    """Its figures may be wrong, so no sum is made with them; the motions are still told."""
    first, second, direct = one_lesion([1.0, 2.0, 3.0])
    closure = closure_of([first, silent(second), direct], 3, POINTS_MM)
    assert closure.error_ml is None and closure.error_score is None
    assert "2-3" in closure.reason
    assert closure.registration_mm is not None


def test_radiographs_close_without_volumes():
    """They show no millilitres: the motions are told, and why no sum is."""

    def flat(pair):
        return replace(pair, change=replace(pair.change, appearing_ml=None, resolving_ml=None))

    pairs = [flat(each) for each in one_lesion([1.0, 2.0, 3.0])]
    closure = closure_of(pairs, 3, POINTS_MM)
    assert closure.steps_ml is None and "radiographs" in closure.reason
    assert closure.registration_mm is not None and net_since_first(pairs, 3) == ()


def test_findings_that_cannot_be_followed_are_told_all_the_same():
    """ "0 lesions followed" beside "progressed" read as if nothing was there."""
    pairs = [replace(each, places=()) for each in one_lesion([1.0, 2.0, 3.0])]
    closure = closure_of(pairs, 3, POINTS_MM)
    told = _summary("progressed", pairs, (), closure, None)
    changed = ", ".join(f"{each.prior}-{each.current}" for each in pairs if each.findings)
    assert told.startswith(f"Findings beyond the noise in {changed};") and changed
    assert "0 lesion" not in told


def test_motions_that_compose_close_and_others_do_not():
    """Each step shifts by 2 mm; a direct motion of 5 mm is 1 mm off everywhere."""
    assert motion_closure_mm([shift(2.0), shift(2.0)], shift(4.0), POINTS_MM) == 0.0
    assert motion_closure_mm([shift(2.0), shift(2.0)], shift(5.0), POINTS_MM) == pytest.approx(1.0)


@given(st.lists(st.floats(0.1, 30.0), min_size=3, max_size=6))
@settings(max_examples=30, deadline=None)
def test_reversing_time_negates_the_rate(volumes_ml):
    """Growth seen backwards is shrinking, with the same certainty."""
    days = [50.0 * n for n in range(len(volumes_ml))]
    forth, back = growth_rate(days, volumes_ml), growth_rate(days, volumes_ml[::-1])
    assert back.value == pytest.approx(-forth.value, abs=1e-9)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=1e-9)


def test_a_line_is_recovered_in_ml_a_month():
    """The unit is told, so it is tested."""
    days = [0.0, DAYS_A_MONTH, 3 * DAYS_A_MONTH]
    rate = growth_rate(days, [1.0, 1.5, 2.5])
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("doubling_days", [20.0, 150.0, 900.0])
def test_the_doubling_time_of_an_exponential_is_recovered(doubling_days):
    """At uneven times."""
    days = np.array([0.0, 30.0, 200.0, 260.0])
    found = doubling_time(days, 0.3 * 2.0 ** (days / doubling_days))
    assert (found.value, found.low, found.high) == pytest.approx((doubling_days,) * 3)


@pytest.mark.parametrize("volumes_ml", [[2.0, 1.0, 0.5], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0], []])
def test_what_does_not_grow_or_was_not_there_has_no_doubling_time(volumes_ml):
    """A number would be read as one."""
    assert doubling_time(DAYS[: len(volumes_ml)], volumes_ml) is None


def test_growth_that_is_not_certain_has_an_open_doubling_time():
    """The slowest growth that fits is none at all, so the time may be endless."""
    found = doubling_time([0.0, 100.0, 200.0], [1.0, 3.0, 1.5])
    assert found.low is not None and found.low < found.value
    assert found.high is None


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """95 % of 3000 seeded trials, within three standard errors of the trial itself."""
    rng = np.random.default_rng(11)
    days = np.array([0.0, 90.0, 200.0, 330.0])
    held = []
    for noise in rng.normal(0.0, 0.2, (3000, days.size)):
        rate = growth_rate(days, 2.0 + 0.1 * days / DAYS_A_MONTH + noise)
        held.append(rate.low <= 0.1 <= rate.high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_two_points_give_a_rate_without_an_interval_and_one_day_none():
    """No residual, no interval; no time, no rate."""
    rate = growth_rate([0.0, 100.0], [1.0, 2.0])
    assert (rate.low, rate.high, rate.points) == (None, None, 2)
    assert growth_rate([0.0, 0.5], [1.0, 2.0]) is None
    assert growth_rate([0.0], [1.0]) is None


def test_a_lesion_of_several_pairs_is_one_with_the_uid_of_the_earliest():
    """So that a later scan does not rename it."""
    three, four = one_lesion([1.0, 2.0, 3.0]), one_lesion([1.0, 2.0, 3.0, 4.0])
    first, later = follow_lesions(three, DAYS[:3]), follow_lesions(four, DAYS[:4])
    assert [lesion.tracking_uid for lesion in (*first, *later)] == ["2.25.12", "2.25.12"]
    assert [v.volume_ml for v in later[0].volumes] == [1.0, 2.0, 3.0, 4.0]
    assert len(later[0].sightings) == 6


def test_pairs_of_more_scans_begin_with_those_of_fewer():
    """What was told before a further scan came stays as it was."""
    three, four = (planned_pairs(n, all_pairs=True) for n in (3, 4))
    assert three == ((1, 2), (2, 3), (1, 3)) == four[:3]
    assert planned_pairs(5, all_pairs=False) == ((1, 2), (2, 3), (3, 4), (4, 5), (1, 5))


def moved_pairs():
    """A lesion at x = 0 of scan 1; scan 2 lies 30 mm to the left, scan 3 another 30 mm."""
    step = maker.registration(prior_from_current=shift(-30.0))
    direct = maker.registration(prior_from_current=shift(-60.0))
    return [
        pair(1, 2, place(0.0, 1.0, at_mm=(30.0, 0.0, 0.0)), registration=step),
        pair(2, 3, place(1.0, 2.0, at_mm=(61.0, 0.0, 0.0)), registration=step),
        pair(1, 3, place(0.0, 2.1, at_mm=(60.0, 1.0, 0.0)), registration=direct),
    ]


def test_findings_are_matched_in_one_frame_and_not_where_their_scanners_put_them():
    """Each finding's centre lies in its own current scan."""
    (lesion,) = follow_lesions(moved_pairs(), DAYS[:3])
    assert lesion.centre_lps_mm == pytest.approx((0.0, 0.0, 0.0))
    assert lesion.frame == 1


def test_without_a_good_registration_nothing_is_matched():
    """Where scans do not lie on each other, one place may be two."""
    first, second, direct = moved_pairs()
    doubtful = replace(second.registration, quality="doubtful")
    lone = [first, replace(second, registration=doubtful), silent(direct)]
    assert [lesion.frame for lesion in follow_lesions(lone, DAYS[:3])] == [1, 3]


@pytest.mark.parametrize(("apart_mm", "count"), [(3.0, 1), (4.6, 1), (9.0, 2), (20.0, 2)])
def test_near_findings_are_one_lesion_and_distant_ones_two(apart_mm, count):
    """Balls of 4 mm: at 4.6 mm they overlap by over a quarter, at 9 mm they do not touch."""
    pairs = [
        pair(1, 2, place(0.0, 1.0)),
        pair(2, 3, place(1.0, 2.0, at_mm=(apart_mm, 0.0, 0.0))),
        pair(1, 3),
    ]
    assert len(follow_lesions(pairs, DAYS[:3])) == count


def test_two_lesions_side_by_side_stay_two():
    """A pair gives each lesion one finding at most, the one that overlaps most."""
    both = [place(0.0, 1.0, label=1), place(0.0, 0.5, at_mm=(5.0, 0.0, 0.0), label=2)]
    grown = [
        place(0.5, 0.9, at_mm=(5.5, 0.0, 0.0), label=1),
        place(1.0, 1.5, at_mm=(-0.5, 0.0, 0.0), label=2),
    ]
    lesions = follow_lesions([pair(1, 2, *both), pair(2, 3, *grown), pair(1, 3)], DAYS[:3])
    courses = [[sighting.label for sighting in lesion.sightings] for lesion in lesions]
    assert courses == [[1, 2], [2, 1]]


def test_slow_growth_that_only_first_to_last_shows_is_a_lesion():
    """This is what the direct pair is for."""
    (lesion,) = follow_lesions([pair(1, 2), pair(2, 3), pair(1, 3, place(1.0, 1.3))], DAYS[:3])
    assert [volume.scan for volume in lesion.volumes] == [1, 3]
    assert (lesion.rate.low, lesion.rate.points) == (None, 2)


def test_measurements_of_one_scan_in_two_pairs_give_its_spread_and_others_none():
    """An uncertainty that was not measured is not made up."""
    pairs = [pair(1, 2, place(0.0, 1.0)), pair(2, 3, place(1.2, 2.0)), pair(1, 3)]
    (lesion,) = follow_lesions(pairs, DAYS[:3])
    assert [v.sd_ml for v in lesion.volumes] == [None, pytest.approx(0.2 / np.sqrt(2)), None]
    assert [v.volume_ml for v in lesion.volumes] == pytest.approx([0.0, 1.1, 2.0])
    assert repeatability_of([lesion]).sd_ml == pytest.approx(0.2 / np.sqrt(2))
    assert repeatability_of([lesion]).sets == 1


def test_a_new_lesion_s_doubling_counts_from_when_it_is_there():
    """Nothing doubles from nothing."""
    (lesion,) = follow_lesions(one_lesion([0.0, 1.0, 2.0, 4.0]), DAYS[:4])
    assert lesion.volumes[0].is_absent
    assert (lesion.doubling.value, lesion.doubling.points) == (pytest.approx(100.0), 3)
    assert lesion.rate.points == 4


def test_a_pair_without_a_verdict_is_left_out_of_lesions_and_net_change():
    """The chain breaks there; the direct pair bridges it."""
    first, second, direct = one_lesion([0.0, 1.0, 3.0])
    pairs = [first, silent(second), direct]
    (lesion,) = follow_lesions(pairs, DAYS[:3])
    assert {sighting.pair for sighting in lesion.sightings} == {(1, 2), (1, 3)}
    net = net_since_first(pairs, 3)
    assert [(v.scan, v.volume_ml, v.sd_ml) for v in net] == [(1, 0.0, None), (2, 1.0, None), (3, 3.0, None)]


def test_one_missing_date_leaves_no_rate_at_all():
    """The order is then the given one, which nothing confirms."""
    assert days_for_rates((0.0, None, 20.0)) == (None, None, None)
    assert days_for_rates((0.0, 10.0, 20.0)) == (0.0, 10.0, 20.0)


def test_without_dates_there_are_no_rates():
    """Volumes are still told."""
    (lesion,) = follow_lesions(one_lesion([0.0, 1.0, 2.0]), (0.0, None, None))
    assert len(lesion.volumes) == 3 and lesion.rate is None and lesion.doubling is None


@pytest.mark.parametrize(
    ("volumes_ml", "verdict"),
    [([0, 1, 2], "progressed"), ([2, 1, 0], "improved"), ([1, 2, 1], "mixed"), ([1, 1, 1], "stable")],
)
def test_the_verdict_over_time_is_what_the_pairs_say_together(volumes_ml, verdict):
    """Growth that went back is mixed, though first and last are alike."""
    assert verdict_over_time(one_lesion(volumes_ml), 3) == verdict


def test_a_step_without_a_verdict_leaves_none_over_time():
    """What happened meanwhile is not known; without the direct verdict the steps still tell."""
    first, second, direct = one_lesion([0.0, 1.0, 2.0])
    assert verdict_over_time([first, silent(second), direct], 3) == "indeterminate"
    assert verdict_over_time([first, second, silent(direct)], 3) == "progressed"


def test_scans_are_ordered_by_time_and_the_given_order_is_kept_where_it_cannot_be_told():
    """Undated ones have no place in time; scans of one day without hours stay as given."""
    days = [datetime(2023, 1, 1), datetime(2021, 1, 1), datetime(2022, 1, 1), datetime(2022, 1, 1)]
    dated = [Acquisition(acquired=day) for day in days]
    assert order_of_time(dated) == (1, 2, 3, 0)
    assert order_of_time([*dated, Acquisition()]) is None


def test_the_order_taken_is_told():
    """With the numbers they had when given."""
    first, second, third = scans(3)
    by_time = in_order((third, first, second), Rules())
    assert by_time.given == (2, 3, 1) and by_time.scans == (first, second, third)
    assert "2, 3, 1" in by_time.notes[0]
    kept = in_order((third, first, second), Rules(keep_order=True))
    assert kept.given == (1, 2, 3) and not kept.is_by_time and "as asked" in kept.notes[0]
    undated = Volume(second.array, second.grid, replace(second.acquisition, acquired=None))
    assert "order given" in in_order((first, undated, third), Rules()).notes[0]


def changed(volume, **told):
    return Volume(volume.array, volume.grid, replace(volume.acquisition, **told))


def test_scans_that_cannot_be_followed_are_refused_before_any_is_compared():
    """The message names the scans by their place in the command."""
    first, second, third = scans(3)
    with pytest.raises(IdentityRefused, match=r"scans 1 and 3 of those given: .*different patient numbers"):
        follow([first, second, changed(third, patient_key="other")])
    with pytest.raises(NotComparable, match="scans 1 and 2 of those given"):
        follow([changed(first, modality="CT"), second, third])
    with pytest.raises(IdentityRefused, match="after the current"):
        follow([third, changed(second, acquired=None), first])
    with pytest.raises(InputRefused, match="needs 3 scans, 2 given"):
        follow([first, second])


def test_one_scan_given_twice_is_refused():
    """It would count as two measurements, and growth would look certain."""
    acquisition = Acquisition(modality="MR", sha256="a" * 64)
    scans = [
        Volume(np.zeros((4, 4, 4), np.float32), Grid((4, 4, 4), np.eye(4)), acquisition) for _ in range(3)
    ]
    with pytest.raises(InputRefused, match="given twice"):
        follow(scans)


def test_of_several_series_the_same_kind_is_taken_in_every_scan():
    """Three scans, FLAIR and T1 in different places; the sentence tells the choice."""

    def series(uid, description):
        acquisition = Acquisition(modality="MR", body_part="HEAD", series_uid=uid, description=description)
        return SeriesEntry(uid, (), acquisition, (30, 64, 64), (3.0, 1.0, 1.0), "dicom")

    sides = [
        [series("1", "FLAIR axial"), series("2", "T1 sagittal")],
        [series("3", "T2 axial"), series("4", "FLAIR axial")],
        [series("5", "FLAIR axial")],
    ]
    places, sentence = match_many(sides)
    assert places == (0, 1, 0)
    assert sentence.startswith("Of 2, 2 and 1 series, 'FLAIR axial', 'FLAIR axial' and 'FLAIR axial'")
    assert match_many(sides[::-1])[0] == (0, 1, 0)


@pytest.mark.parametrize(
    ("others", "expected"),
    [(("b", "a"), (0, 1, 0)), (("b", "b"), (0, 0, 0))],
    ids=["own there", "none there"],
)
def test_another_patients_series_is_taken_only_where_there_is_no_other(others, expected):
    """However like it is: a folder may hold a stranger's scan."""

    def series(uid, patient, description="FLAIR axial"):
        acquisition = Acquisition(
            modality="MR", body_part="HEAD", series_uid=uid, description=description, patient_key=patient
        )
        return SeriesEntry(uid, (), acquisition, (30, 64, 64), (3.0, 1.0, 1.0), "dicom")

    second = [series("2", others[0]), series("3", others[1], "T2 FLAIR")]
    assert match_many([[series("1", "a")], second, [series("4", "a")]])[0] == expected


def test_the_steps_follow_each_other():
    """A helper of these tests, held to what it says."""
    assert [p.key for p in one_lesion([0, 1, 2, 3], all_pairs=False)][:2] == list(pairwise((1, 2, 3)))
