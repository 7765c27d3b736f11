"""The lungs of a chest radiograph are found where they are, and nowhere in another radiograph."""

import os
from pathlib import Path

import numpy as np
import pytest

from medsiam.encoding.preparation import PreparationSettings, prepare
from medsiam.lungs import chest_field, find_lungs, lung_masks
from medsiam.reading import read_volume
from medsiam.volume import Acquisition, Volume
from tests.phantoms import box_grid

DATA = Path(os.environ.get("MEDSIAM_DATA") or Path(__file__).parents[2] / "shared" / "data")


SIZE = 224


def places(shift, turn_deg):
    """x and y, each (SIZE, SIZE), in half widths of the film, as the chest sees them."""
    y, x = np.meshgrid(*(np.linspace(-1.0, 1.0, SIZE) for _ in range(2)), indexing="ij")
    angle = np.radians(turn_deg)
    x, y = x - shift[0], y - shift[1]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def lung_depth(x, y):
    """Above 0 inside a lung: an egg cut off by the spine and by the dome of the diaphragm."""
    egg = 1.0 - np.hypot((np.abs(x) - 0.38) / 0.33, (y - 0.05) / 0.85)
    dome = 0.42 + 0.5 * (np.abs(x) - 0.40) ** 2 - y
    heart = np.hypot((x - 0.12) / 0.3, (y - 0.3) / 0.28) - 1.0
    return np.minimum.reduce([egg, dome, np.abs(x) - 0.13, heart])


def lung_truth(*, shift=(0.0, 0.0), turn_deg=0.0):
    """Where the lungs of `chest` lie, bool (SIZE, SIZE)."""
    return lung_depth(*places(shift, turn_deg)) > 0.0


def opacity(x, y, spot):
    """0..1: a disc ((x, y), radius, strength) with a soft edge, within the lungs."""
    (x0, y0), radius, _ = spot
    inside = np.clip(20.0 * lung_depth(x, y), 0.0, 1.0)
    return inside * np.clip(0.5 + (radius - np.hypot(x - x0, y - y0)) / 0.06, 0.0, 1.0)


def film(values, acquisition, spacing_mm=1.0, seed=0):
    """A radiograph of values 0..1 with grain, in the units of no scanner."""
    grain = np.random.default_rng(seed).normal(0.0, 0.01, values.shape)
    grid = box_grid((1, *values.shape), (1.0, spacing_mm, spacing_mm))
    return Volume((1000.0 * (values + grain))[None].astype(np.float32), grid, acquisition)


def chest(*, opacities=(), shift=(0.0, 0.0), turn_deg=0.0, curve=1.0, spacing_mm=1.0, seed=0, view="PA"):
    """Two lungs, ribs, spine, heart and belly by geometry, exposed through a power curve.

    opacities  ((x, y), radius, strength) in half widths of the film, strength 0..1
    """
    x, y = places(shift, turn_deg)
    body = np.clip(0.5 + (0.95 - np.hypot(x, 0.6 * (y - 0.3))) / 0.05, 0.0, 1.0)
    air = np.clip(0.5 + 20.0 * lung_depth(x, y), 0.0, 1.0)
    ribs = np.clip(np.sin(2.0 * np.pi * (3.2 * y - 1.6 * x * x + 0.15 * np.abs(x))) - 0.3, 0.0, 1.0)
    spine = np.exp(-((x / 0.09) ** 2))
    vessels = 0.1 * np.exp(-(((np.abs(x) - 0.24) / 0.07) ** 2) - ((y + 0.05) / 0.16) ** 2)
    values = body * (0.62 + 0.12 * spine + 0.05 * np.clip(y - 0.4, 0.0, 1.0)) - 0.45 * air
    values = values + body * (0.09 * ribs + vessels) * (np.abs(x) < 0.8)
    for spot in opacities:
        values = values + (0.75 - values) * spot[2] * opacity(x, y, spot)
    told = Acquisition(modality="CR", body_part="CHEST", protocol={"view_position": view})
    return film(np.clip(values, 0.0, 1.0) ** curve, told, spacing_mm, seed)


def hand():
    """Five fingers and a palm, bright on black."""
    x, y = places((0.0, 0.0), 0.0)
    values = 0.5 * (np.hypot(x / 0.45, (y - 0.5) / 0.4) < 1.0)
    for n in range(5):
        across, top = 0.2 * (n - 2), -0.75 + 0.12 * abs(n - 2)
        values = np.maximum(values, 0.5 * ((np.abs(x - across) < 0.075) & (y > top) & (y < 0.5)))
        values = np.maximum(values, 0.8 * ((np.abs(x - across) < 0.035) & (y > top + 0.03) & (y < 0.6)))
    return film(values, Acquisition(modality="CR"))


def lateral():
    """A chest from its side: one dark field between breast bone and spine."""
    x, y = places((0.0, 0.0), 0.0)
    body = np.clip(0.5 + (0.7 - np.hypot(x, 0.6 * (y - 0.3))) / 0.05, 0.0, 1.0)
    lung = np.clip(0.5 + 6.0 * (1.0 - np.hypot(x / 0.42, (y + 0.05) / 0.6)), 0.0, 1.0)
    values = body * (0.65 + 0.2 * np.exp(-(((x + 0.5) / 0.1) ** 2))) - 0.4 * lung
    return film(np.clip(values, 0.0, 1.0), Acquisition(modality="CR"))


def overlap(volume, truth):
    """Dice of what is found with the truth (J, I)."""
    found = lung_masks(find_lungs(volume).outlines_mm, volume.grid).any(axis=0)[0]
    return 2.0 * (found & truth).sum() / (found.sum() + truth.sum())


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.06, -0.04), (-0.08, 0.05)])
def test_the_lungs_of_a_phantom_are_found_where_they_were_put(shift):
    """Anywhere near the middle of the film, by geometry."""
    assert overlap(chest(shift=shift), lung_truth(shift=shift)) > 0.85


def test_an_opaque_lung_is_bridged_by_its_shape():
    """Pneumonia must not make a lung smaller: its share would be of the wrong area."""
    opacity = ((0.4, 0.0), 0.2, 0.8)
    assert overlap(chest(opacities=(opacity,)), lung_truth()) > 0.8


def test_gain_and_offset_change_no_outline():
    """Exposure says nothing of where the lungs lie."""
    volume = chest()
    brighter = Volume(volume.array * 2.5 + 300.0, volume.grid, volume.acquisition)
    one, other = find_lungs(volume), find_lungs(brighter)
    np.testing.assert_allclose(one.outlines_mm, other.outlines_mm, atol=1.0)


def test_the_outlines_lie_in_the_grids_own_world():
    """Pixels of 0.4 mm give outlines in millimetres, not in pixels."""
    whole, small = find_lungs(chest()), find_lungs(chest(spacing_mm=0.4))
    np.testing.assert_allclose(0.4 * whole.outlines_mm[..., :2], small.outlines_mm[..., :2], atol=0.5)


def test_a_chest_is_believed():
    """The guard's passing input."""
    assert find_lungs(chest()).found


@pytest.mark.parametrize("other", [hand, lateral], ids=["hand", "side view"])
def test_no_lungs_are_believed_in_another_radiograph(other):
    """A verdict on the lungs of a hand would be worse than none; the reason is told."""
    lungs = find_lungs(other())
    assert not lungs.found
    assert all(lungs.reasons)


BY_LUNGS = PreparationSettings(size_voxels=96, by_lungs=True)


def test_a_shifted_and_turned_chest_fills_the_same_field():
    """Its picture for an encoder is the same one, which that of the whole film is not."""
    still, moved = chest(), chest(shift=(0.07, -0.05), turn_deg=4.0, seed=1)

    def likeness(settings):
        one, other = (prepare(each, settings).values.numpy()[0, 12:-12, 12:-12] for each in (still, moved))
        return np.corrcoef(one.ravel(), other.ravel())[0, 1]

    assert likeness(BY_LUNGS) > 0.9
    assert likeness(PreparationSettings(size_voxels=96)) < 0.8


def test_the_field_of_a_chest_lies_about_its_lungs():
    """With a margin on each side, in the world of the scan, and with the outlines' own turn."""
    volume = chest(spacing_mm=0.4, turn_deg=6.0)
    lungs = find_lungs(volume)
    field = chest_field(lungs, 96)
    places = field.index(lungs.outlines_mm.reshape(-1, 3))[:, 1:]
    assert field.shape == (1, 96, 96)
    assert places.min() > 5.0
    assert places.max() < 90.0
    assert np.allclose(places.mean(axis=0), 47.5, atol=5.0)
    across = field.world_from_index[:3, 2]
    assert np.degrees(np.arctan2(across[1], across[0])) == pytest.approx(6.0, abs=2.5)


def test_a_radiograph_without_lungs_keeps_its_whole_frame():
    """A hand is prepared as it always was."""
    one, other = (prepare(hand(), settings) for settings in (BY_LUNGS, PreparationSettings(size_voxels=96)))
    assert np.array_equal(one.values, other.values)
    assert np.array_equal(one.grid.world_from_index, other.grid.world_from_index)


def test_noise_alone_has_no_lungs():
    """Shapes can be laid into anything; the border must be there."""
    volume = chest()
    noise = np.random.default_rng(0).normal(1000.0, 100.0, volume.array.shape)
    assert not find_lungs(Volume(noise.astype(np.float32), volume.grid)).found


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cxr-longitudinal").is_dir(), reason="no radiographs here; set MEDSIAM_DATA")
def test_lungs_are_found_in_nine_of_ten_real_chests():
    """Ward radiographs with tubes and opaque lungs, the first twenty of the folder."""
    paths = sorted((DATA / "cxr-longitudinal" / "png").glob("*.png"))[:20]
    found = [find_lungs(read_volume(path)).found for path in paths]
    assert np.mean(found) >= 0.9
