"""The pictures: the patient's left on the right, and the same grey for the same tissue."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medsiam.report import drawing, pictures
from medsiam.report.display import GreyWindow, letters, place_text, view_of, view_of_grid, window_of
from medsiam.volume import Acquisition, Volume
from tests import comparison_maker as maker

L, P, H = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
LEFT_ANTERIOR_HEAD = (22.0, -20.0, 24.0)

# Every way a scanner can store a box: which axis k, j, i lie on, and which way each runs.
ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations((L, P, H))
    for signs in itertools.product((1, -1), repeat=3)
]
# Where the marker must stand in the picture, (right half, lower half), by the axis of the slices.
EXPECTED = {H: ("axial", True, False), P: ("coronal", True, False), L: ("sagittal", False, False)}


def marked_volume(axes, signs) -> Volume:
    directions = tuple(tuple(sign * x for x in axis) for axis, sign in zip(axes, signs, strict=True))
    grid = maker.grid_of(directions, (4.0, 1.5, 2.0), (20, 44, 36))
    return Volume(maker.ball(grid, LEFT_ANTERIOR_HEAD, 6.0).astype(np.float32), grid, Acquisition("MR"))


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_a_marker_at_left_anterior_head_stands_where_radiologists_expect_it(axes, signs):
    """Axial: right and up. Coronal: right and up. Sagittal, facing left: left and up.

    All 48 ways to store the same box must give the same picture.
    """
    volume = marked_volume(axes, signs)
    view = view_of(volume)
    _, _, k = view.locate(np.array(LEFT_ANTERIOR_HEAD))

    shown = view.slice(volume.array, k)
    rows, columns = np.nonzero(shown)

    plane, is_right, is_low = EXPECTED[axes[0]]
    assert view.plane == plane
    assert (columns.mean() > shown.shape[1] / 2) == is_right
    assert (rows.mean() > shown.shape[0] / 2) == is_low


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_the_letters_at_the_edges_agree_with_the_world(axes, signs):
    """Walking to the right edge must raise L (or P), whatever the letters' origin."""
    view = view_of(marked_volume(axes, signs))

    left, right, top, bottom = view.edges
    step_right, step_down = view.world_from_picture[:3, 0], view.world_from_picture[:3, 1]

    assert (right, bottom) == (letters(step_right), letters(step_down))
    assert (left, top) == (letters(-step_right), letters(-step_down))
    assert view.edges == {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "H", "F")}.get(
        view.plane, ("A", "P", "H", "F")
    )


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS[::5])
def test_a_place_in_the_world_is_found_in_the_picture(axes, signs):
    """Findings carry LPS millimetres; the viewer jumps to pixels."""
    volume = marked_volume(axes, signs)
    view = view_of(volume)

    x, y, k = view.locate(np.array(LEFT_ANTERIOR_HEAD))

    assert view.slice(volume.array, k)[round(y), round(x)] == 1
    back = view.world_from_picture @ (x, y, k, 1)
    assert np.abs(back[:3] - LEFT_ANTERIOR_HEAD).max() < 2.1


def test_a_slightly_oblique_scan_keeps_one_letter_and_a_strongly_oblique_one_gets_two():
    tilt = np.deg2rad(30)
    grid = maker.grid_of(((0, -np.sin(tilt), np.cos(tilt)), (0, np.cos(tilt), np.sin(tilt)), L))

    assert view_of_grid(grid).edges == ("R", "L", "AF", "PH")
    assert letters(np.array([0.98, 0.2, 0.0])) == "L"


def test_a_radiograph_is_shown_as_stored_and_letters_only_as_told():
    """Its matrix says nothing of the patient, so no side may be derived from it."""
    made = maker.radiograph()
    view = view_of(made.current)
    told = replace(made.current.acquisition, protocol={"patient_orientation": "L\\F"})

    assert view.plane == "projection" and view.edges == ("", "", "", "")
    assert np.array_equal(view.slice(made.current.array, 0), made.current.array[0])
    assert view_of(replace(made.current, acquisition=told)).edges == ("R", "L", "H", "F")
    centre = np.array(made.findings[0].centre_lps_mm)
    assert "mm from the left" in place_text(view, centre) and "px from the left" in place_text(
        view, centre, "px"
    )


@pytest.mark.parametrize("told", ["", "L", "<b>\\F", 7, ("L", 3)])
def test_an_orientation_that_makes_no_sense_gives_no_letters(told):
    """Letters come from the header and stand on the picture: nothing else may."""
    volume = maker.radiograph().current
    acquisition = replace(volume.acquisition, protocol={"patient_orientation": told})

    assert view_of(replace(volume, acquisition=acquisition)).edges == ("", "", "", "")


def test_pixels_that_are_higher_than_wide_are_shown_square_in_millimetres():
    grid = maker.grid_of((H, P, L), (4.0, 3.0, 1.0), (20, 32, 96))
    scene = pictures.scene_of(maker.comparison(grid))

    tile = pictures.overview_pictures(scene)[0]

    height_mm, width_mm = (n * mm for n, mm in zip(scene.box.shape, (3.0, 1.0), strict=True))
    assert tile.width / tile.height == pytest.approx(width_mm / height_mm, rel=0.02)


def opened(picture: drawing.Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(int)


def test_a_new_finding_is_bright_in_current_and_not_in_prior():
    """The two pictures of one place, in one window."""
    made = maker.comparison()
    shown = pictures.finding_pictures(pictures.scene_of(made), made.findings[0])

    prior, current = opened(shown.prior), opened(shown.current)
    middle = current.shape[0] // 2

    assert current[middle, middle, 0] > prior[middle, middle, 0] + 30


def test_outlines_differ_in_colour_and_in_line():
    """Solid orange for what appears, dashed blue for what goes: never by colour alone."""
    mask = np.hypot(*(np.indices((60, 60)) - 30)) < 12

    solid = drawing.outline(mask, (300, 300), dashed=False)
    dashed = drawing.outline(mask, (300, 300), dashed=True)

    assert 0.4 < dashed.sum() / solid.sum() < 0.8
    assert not (dashed & ~solid).any()


def test_an_outline_hides_nothing_of_its_finding():
    mask = np.zeros((40, 40), bool)
    mask[15:25, 12:30] = True

    line = drawing.outline(mask, (40, 40), dashed=False)

    assert line.any() and not (line & mask).any()


def test_where_the_prior_did_not_reach_there_is_a_hatch():
    """Black would read as air."""
    made = maker.comparison(prior_on_current=np.full((24, 48, 48), np.nan, np.float32))
    scene = pictures.scene_of(made)

    shown = scene.prior(12, scene.box)

    assert set(np.unique(shown)) == {20, 62}


def test_scanners_with_other_units_get_windows_of_their_own_and_ct_never_does():
    """Twice the gain is no change in MR; in CT it is another tissue."""
    made = maker.comparison()
    louder = replace(made, prior_on_current=made.prior_on_current * 4)

    assert not pictures.scene_of(made).is_matched
    assert pictures.scene_of(louder).is_matched
    in_ct = maker.comparison(modality="CT")
    assert not pictures.scene_of(replace(in_ct, prior_on_current=in_ct.prior_on_current * 4)).is_matched


@pytest.mark.parametrize(
    ("part", "window"), [("HEAD", (0, 80)), ("CHEST", (-1350, 150)), ("ABDOMEN", (-160, 240))]
)
def test_ct_is_shown_in_the_window_of_its_body_part(part, window):
    assert window_of(np.zeros((1, 1, 1)), "CT", part) == GreyWindow(*window)


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_an_empty_scan_still_gives_a_window(value):
    window = window_of(np.full((2, 3, 4), value, np.float32), "MR", "")

    assert window.high > window.low


def test_the_crop_holds_the_head_and_every_finding():
    """A finding outside the head's box, however odd, must not be cut off."""
    made = maker.comparison()
    labels = made.labels.copy()
    labels[0, 0, 0] = 1
    scene = pictures.scene_of(replace(made, labels=labels))

    assert (scene.box.top, scene.box.left, scene.slices.start) == (0, 0, 0)
    assert pictures.scene_of(made).box.top > 0


def test_a_finding_whose_centre_lies_beside_it_is_shown_where_it_is():
    """A ring or a crescent does not hold its own centre."""
    made = maker.comparison()
    labels = np.where(made.labels == 2, 2, 0).astype(np.uint16)
    labels[18, 20:24, 20:24] = 1
    scene = pictures.scene_of(replace(made, labels=labels))

    assert scene.place(made.findings[0])[2] == 18


def test_two_runs_give_the_same_pictures():
    made = maker.comparison()
    first, second = (pictures.finding_pictures(pictures.scene_of(made), made.findings[1]) for _ in range(2))

    assert first == second


@pytest.mark.parametrize(
    ("numbers_from", "name"),
    [(lambda n: range(1, n + 1), "13/24"), (lambda n: range(n, 0, -1), "13/24 (image 12)")],
)
def test_the_archive_s_number_stands_beside_ours_where_it_counts_otherwise(numbers_from, name):
    """A radiologist scrolls to the instance number, which often runs the other way."""
    made = maker.comparison()
    count = made.current.grid.shape[0]
    told = replace(made.current.acquisition, image_numbers=tuple(numbers_from(count)))

    scene = pictures.scene_of(replace(made, current=replace(made.current, acquisition=told)))

    assert pictures.slice_name(scene, scene.place(made.findings[0])[2]) == name
