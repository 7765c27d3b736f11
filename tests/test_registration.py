"""Registration against motions that are known, because they were put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.pairing.motion import about, axis_rotations, half_of, mean_distance_mm, translation
from medsiam.pairing.registration import RegistrationSettings, Scan, register, register_both_ways
from medsiam.phantom import position
from medsiam.volume import Volume
from tests.phantoms import box_grid, small_head

SETTINGS = RegistrationSettings()
# Points in the head at which errors are measured.
POINTS = np.random.default_rng(0).uniform(-60.0, 60.0, (200, 3))


def scan_of(volume: Volume, *, weight: np.ndarray | None = None) -> Scan:
    if weight is None:
        weight = volume.array > 0.1 * np.percentile(volume.array, 99)
    return Scan(torch.tensor(volume.array), torch.tensor(weight.astype(np.float32)), volume.grid)


def moved(volume: Volume, motion: np.ndarray) -> Volume:
    """The same voxels, said to lie elsewhere: the true registration is the motion's inverse."""
    return Volume(volume.array, volume.grid.moved(motion), volume.acquisition)


@pytest.fixture(scope="module")
def head() -> Volume:
    return small_head(noise=10.0).volume


def test_a_head_in_another_position_is_found(head):
    """The motion between two separately made scans, voxels of 6 x 4 x 4 mm."""
    motion = position((8.0, -5.0, 6.0), (12.0, -9.0, 15.0))
    other = small_head(world_from_head=motion, noise=10.0, seed=1).volume
    found = register(scan_of(head), scan_of(other), SETTINGS)
    assert mean_distance_mm(found.prior_from_current, np.linalg.inv(motion), POINTS) < 0.4
    assert found.quality == "good"


def test_exchanging_the_scans_inverts_the_motion(head):
    """Neither scan is the reference: A to B and B to A are one result."""
    motion = position((5.0, 3.0, -4.0), (6.0, 2.0, -8.0))
    other = small_head(world_from_head=motion, noise=10.0, seed=2).volume
    there = register(scan_of(head), scan_of(other), SETTINGS).prior_from_current
    back = register(scan_of(other), scan_of(head), SETTINGS).prior_from_current
    assert mean_distance_mm(there, np.linalg.inv(back), POINTS) < 1e-3


def test_both_ways_at_once_are_what_each_is_by_itself(head):
    """They share only what is made of each scan alone; a number of threads moves the last digits."""
    other = small_head(
        world_from_head=position((5.0, 3.0, -4.0), (6.0, 2.0, -8.0)), noise=10.0, seed=2
    ).volume
    both = register_both_ways(scan_of(head), scan_of(other), SETTINGS)
    alone = (
        register(scan_of(head), scan_of(other), SETTINGS),
        register(scan_of(other), scan_of(head), SETTINGS),
    )
    for one, told in zip(both, alone, strict=True):
        assert mean_distance_mm(one.prior_from_current, told.prior_from_current, POINTS) < 1e-3
        assert one.quality == told.quality == "good"
        assert one.inverse_consistency_mm == pytest.approx(told.inverse_consistency_mm, abs=1e-3)


@pytest.mark.parametrize("turn", axis_rotations()[1:6], ids=lambda turn: str(np.diag(turn)))
def test_a_half_or_quarter_turn_is_found(head, turn):
    """Prone against supine, or a header that lies about the patient's position."""
    motion = translation(np.array([10.0, -25.0, 12.0])) @ about(np.zeros(3), turn)
    found = register(scan_of(head), scan_of(moved(head, motion)), SETTINGS)
    assert mean_distance_mm(found.prior_from_current, np.linalg.inv(motion), POINTS) < 0.05
    assert found.quality == "good"


def test_inverted_contrast_is_found(head):
    """Another sequence shows the same tissue in other, even opposite, brightness."""
    motion = position((4.0, -3.0, 5.0), (5.0, -6.0, 7.0))
    other = small_head(world_from_head=motion, noise=10.0, seed=3).volume
    inside = other.array > 0.1 * np.percentile(other.array, 99)
    inverted = np.where(inside, 1.3 * other.array.max() - other.array, 0.0)
    found = register(scan_of(head), scan_of(Volume(inverted, other.grid)), SETTINGS)
    assert mean_distance_mm(found.prior_from_current, np.linalg.inv(motion), POINTS) < 1.0


def test_a_scan_of_the_upper_half_is_placed_in_the_whole(head):
    """Partial coverage moves the centre of mass by centimetres, and the result by nothing."""
    motion = position((3.0, 2.0, -4.0), (4.0, 5.0, -6.0))
    other = small_head(world_from_head=motion, noise=10.0, seed=4).volume
    upper = other.grid.shape[0] // 2
    matrix = other.grid.world_from_index.copy()
    matrix[:3, 3] = other.grid.world([(upper, 0, 0)])[0]
    half = Volume(other.array[upper:], type(other.grid)(other.array[upper:].shape, matrix))
    found = register(scan_of(head), scan_of(half), SETTINGS)
    assert mean_distance_mm(found.prior_from_current, np.linalg.inv(motion), POINTS) < 1.0


def test_noise_is_not_registered_to_a_head(head):
    """The guard that must fail: two things that have nothing in common."""
    noise = np.random.default_rng(0).normal(100.0, 20.0, (30, 40, 40)).astype(np.float32)
    other = Volume(noise, box_grid(noise.shape, (5.0, 4.0, 4.0)))
    found = register(scan_of(head), scan_of(other, weight=np.ones(noise.shape)), SETTINGS)
    assert found.quality == "failed"
    assert found.reasons


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[st.floats(-170.0, 170.0)] * 3),
    st.tuples(*[st.floats(-80.0, 80.0)] * 3),
)
def test_half_a_motion_done_twice_is_the_motion(angles, shift):
    """And the half of the inverse is the inverse of the half, or the halfway space would favour one."""
    motion = position(angles, shift)
    half = half_of(motion)
    assert np.abs(half @ half - motion).max() < 1e-3
    assert np.abs(half_of(np.linalg.inv(motion)) @ half - np.eye(4)).max() < 1e-2


@pytest.mark.parametrize("turn", axis_rotations(), ids=lambda turn: str(turn.astype(int).tolist()))
def test_every_turn_of_the_axes_has_a_half(turn):
    """A half turn is where the principal logarithm is undefined."""
    motion = translation(np.array([30.0, -20.0, 10.0])) @ about(np.zeros(3), turn)
    half = half_of(motion)
    assert np.isfinite(half).all()
    assert np.abs(half @ half - motion).max() < 1e-3
