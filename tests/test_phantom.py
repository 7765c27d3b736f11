"""The made-up head holds what it promises, since other tests trust it."""

import numpy as np
import pytest
from scipy.ndimage import center_of_mass

from medsiam.demo import LARGER, OLD_LESIONS, SMALL
from medsiam.phantom import Lesion, Scan, head_phantom, position
from tests.phantoms import box_grid, position_encoded, small_head

WHITE_MATTER_LESION = Lesion((-30.0, 10.0, 30.0), (7.0, 7.0, 7.0))


@pytest.fixture(scope="module")
def head():
    return head_phantom((WHITE_MATTER_LESION,), scan=Scan((3.0, 2.0, 2.0), noise=0.0, bias=0.0))


def test_the_lesion_has_the_volume_that_its_radii_give():
    """On small voxels the truth mask must agree with geometry."""
    scan = Scan((1.0, 1.0, 1.0), (24.0, 24.0, 24.0), WHITE_MATTER_LESION.centre_mm, noise=0.0, bias=0.0)
    fine = head_phantom((WHITE_MATTER_LESION,), scan=scan)
    measured_ml = (fine.lesion_labels == 1).sum() * fine.volume.grid.voxel_ml
    assert measured_ml == pytest.approx(WHITE_MATTER_LESION.volume_ml, rel=0.03)


def test_the_lesion_lies_where_the_position_puts_it():
    """A moved head carries its lesions along, by the same matrix."""
    world_from_head = position((5.0, -4.0, 8.0), (6.0, -9.0, 4.0))
    scan = Scan((3.0, 2.0, 2.0), noise=0.0, bias=0.0)
    moved = head_phantom((WHITE_MATTER_LESION,), scan=scan, world_from_head=world_from_head)
    found_mm = moved.volume.grid.world([center_of_mass(moved.lesion_labels == 1)])[0]
    expected_mm = world_from_head[:3, :3] @ WHITE_MATTER_LESION.centre_mm + world_from_head[:3, 3]
    assert found_mm == pytest.approx(expected_mm, abs=0.5)


def test_the_brain_is_as_large_as_a_brain(head):
    """Between 1.1 and 1.7 litres: the outer bounds of adults."""
    assert 1.1 < head.brain.sum() * head.volume.grid.voxel_ml / 1000.0 < 1.7


def test_the_same_seed_gives_the_same_head_and_another_seed_another_one():
    """Everything drawn at random is drawn by the seeds."""
    first, again, other = (small_head(noise=3.0, seed=s).volume.array for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_another_head_seed_folds_the_cortex_otherwise():
    """Two patients must not share their sulci."""
    scan = Scan((12.0, 4.0, 4.0), noise=0.0, bias=0.0)
    one, two = (head_phantom(scan=scan, head_seed=s).volume.array for s in (0, 1))
    assert np.abs(one - two).max() > 100.0


def test_lesions_are_brighter_than_all_tissue_around_them(head):
    """Otherwise it would be no FLAIR."""
    inside = head.volume.array[head.lesion_labels == 1]
    brain = head.volume.array[head.brain & (head.lesion_labels == 0)]
    assert np.median(inside) > np.percentile(brain, 99)


@pytest.mark.parametrize("lesion", [*OLD_LESIONS, SMALL, LARGER])
def test_the_lesions_of_the_demo_lie_in_white_matter(lesion):
    """A lesion half in a sulcus would have another volume than its truth says."""
    scan = Scan((2.0, 2.0, 2.0), (16.0, 16.0, 16.0), lesion.centre_mm, noise=0.0, bias=0.0)
    without, truth = head_phantom(scan=scan), head_phantom((lesion,), scan=scan)
    under = without.volume.array[truth.lesion_labels == 1] / np.median(without.volume.array)
    assert under.min() > 0.85
    assert under.max() < 1.2


def test_a_thick_slice_is_the_mean_of_the_thin_ones_within_it():
    """Partial volume is averaged, not sampled."""
    field = {"field_mm": (24.0, 60.0, 60.0), "noise": 0.0, "bias": 0.0}
    thin = head_phantom(scan=Scan((1.0, 2.0, 2.0), **field)).volume.array
    thick = head_phantom(scan=Scan((4.0, 2.0, 2.0), **field)).volume.array
    assert np.abs(thin.reshape(6, 4, 30, 30).mean(axis=1) - thick).max() <= 1.0


def test_the_position_encoded_volume_tells_its_place():
    """One voxel checked by hand, in a frame that is turned and shifted."""
    grid = box_grid(world_from_grid=position((10.0, 20.0, 30.0), (1.0, 2.0, 3.0)))
    x, y, z = grid.world([(2, 5, 7)])[0]
    assert position_encoded(grid).array[2, 5, 7] == pytest.approx(1000.0 + x + 2.5 * y - 0.75 * z, rel=1e-5)
