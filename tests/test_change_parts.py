"""Laws of the parts of a comparison: equal intensities, noise, significance, halves."""

from __future__ import annotations

from types import SimpleNamespace as Fake

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.change.figures import opacity_figures
from medsiam.change.findings import _middle
from medsiam.pairing.intensity import IntensitySettings, equalise, robust_deviation
from medsiam.pairing.motion import exponential, half_of
from medsiam.report.pictures import Scene
from medsiam.sampling import sample, smooth
from tests.phantoms import box_grid

SHAPE = (24, 28, 26)


def tissue_pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A textured block, and the same block with other gain and a slow bias field."""
    rng = np.random.default_rng(seed)
    block = smooth(torch.from_numpy(rng.normal(0.0, 60.0, SHAPE).astype(np.float32)), (1.5,) * 3) + 500.0
    ramp = torch.linspace(-0.15, 0.15, SHAPE[2])
    return block, 2.3 * block * torch.exp(ramp), torch.ones(SHAPE, dtype=torch.bool)


def test_gain_and_bias_vanish():
    """A scanner's gain of 2.3 and 30 % of shading are no change."""
    one, other, tissue = tissue_pair()
    equal = equalise(one, other, tissue, 4.0, IntensitySettings(), signed=False)
    left = robust_deviation((equal[1] - equal[0])[2:-2, 2:-2, 4:-4])
    assert left < 0.01
    assert float((equal[0] + equal[1]).median()) / 2.0 == pytest.approx(1.0, abs=0.02)


def test_equalising_keeps_a_lesion():
    """The fit is robust: what changed in a small place stays changed."""
    one, other, tissue = tissue_pair()
    other[10:13, 10:13, 10:13] *= 1.5
    equal = equalise(one, other, tissue, 4.0, IntensitySettings(), signed=False)
    assert float((equal[1] - equal[0])[11, 11, 11]) > 0.35


def test_exchanging_the_scans_exchanges_the_equalised():
    """Neither scan is the reference."""
    one, other, tissue = tissue_pair()
    a, b = equalise(one, other, tissue, 4.0, IntensitySettings(), signed=False)
    d, c = equalise(other, one, tissue, 4.0, IntensitySettings(), signed=False)
    assert torch.allclose(a, c, atol=1e-4) and torch.allclose(b, d, atol=1e-4)


def test_the_noisier_of_two_scans_does_not_pass_for_another_contrast():
    """Read voxel by voxel, one scan's noise alone would double the difference it makes."""
    one, _, tissue = tissue_pair()
    noise = 60.0 * torch.from_numpy(np.random.default_rng(1).normal(size=SHAPE).astype(np.float32))
    equal = equalise(one, one + noise, tissue, 1.0, IntensitySettings(), signed=False)
    left = robust_deviation(smooth(equal[1] - equal[0], (1.0,) * 3))
    assert left < 1.2 * robust_deviation(smooth(noise / one.median(), (1.0,) * 3))


def test_ct_numbers_are_not_refitted():
    """HU have a fixed scale: a difference of 50 HU stays one."""
    one = torch.full(SHAPE, 40.0)
    a, b = equalise(one, one + 50.0, one > 0, 2.0, IntensitySettings(), signed=True)
    assert float((b - a).mean()) == pytest.approx(0.5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1.0, 1.0), min_size=12, max_size=12))
def test_the_exponential_of_half_a_twist_is_half_the_motion(values):
    """Two routes to the halfway space must meet."""
    twist = np.zeros((4, 4))
    twist[:3] = np.array(values).reshape(3, 4)
    assert np.abs(half_of(exponential(twist)) - exponential(twist / 2.0)).max() < 1e-6


def test_smoothing_keeps_the_mean_of_a_constant_and_widens_a_point():
    """The kernel's rows sum to one, also at the edges, and its width is the one asked for."""
    assert torch.allclose(smooth(torch.full(SHAPE, 3.0), (2.0, 1.0, 0.5)), torch.full(SHAPE, 3.0))
    point = torch.zeros((1, 1, 41))
    point[0, 0, 20] = 1.0
    spread = smooth(point, (0.0, 0.0, 2.0))[0, 0]
    variance = float((spread * (torch.arange(41.0) - 20.0) ** 2).sum())
    assert variance == pytest.approx(4.0, rel=0.05)


def test_sampling_reads_a_linear_field_at_its_true_place():
    """A position-encoded field shows any mistake of axes or half voxels."""
    grid, target = box_grid((9, 12, 10), (3.0, 1.0, 1.5)), box_grid((4, 5, 6), (2.0, 1.1, 0.9))
    places = grid.world(np.indices(grid.shape).reshape(3, -1).T)
    field = torch.from_numpy((places @ [1.0, 2.5, -0.75]).reshape(grid.shape).astype(np.float32))
    motion = np.eye(4)
    motion[:3, 3] = (0.7, -0.4, 1.1)
    expected = (target.world(np.indices(target.shape).reshape(3, -1).T) + motion[:3, 3]) @ [1.0, 2.5, -0.75]
    found = sample(field, grid, target, motion).numpy().ravel()
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("is_ring", [True, False])
def test_the_centre_of_a_finding_lies_inside_it(is_ring):
    """The mean of a ring lies in its hole, where another finding may be."""
    rows, columns = np.mgrid[-6:7, -6:7]
    away = np.hypot(rows, columns + 0.3)
    places = np.argwhere(((away < 6.0) & (away > (4.0 if is_ring else -1.0)))[None])
    middle = _middle(places)
    assert (places == np.rint(middle)).all(axis=1).any()
    assert np.array_equal(middle, places.mean(axis=0)) != is_ring


@given(st.lists(st.floats(-40.0, 40.0), max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_score_of_radiographs_is_what_their_findings_say(deltas):
    """Nought without any, signed as their sum, and turned by exchanging the two."""
    told, back = (opacity_figures([sign * delta for delta in deltas], 0.5) for sign in (1.0, -1.0))
    assert told.score == pytest.approx(-back.score, abs=1e-9) and told.magnitude == pytest.approx(
        back.magnitude
    )
    assert abs(told.score) <= told.magnitude + 1e-9 < 1.0
    assert told.score * sum(deltas) >= -1e-6 and (deltas or told.score == 0.0)


def test_lengths_are_called_pixels_where_a_pixel_has_no_known_size():
    """A scale bar in mm on a picture without a scale would be a wrong number."""

    def unit(protocol):
        scene = Fake(comparison=Fake(current=Fake(acquisition=Fake(protocol=protocol))))
        return Scene.unit_of_length.fget(scene)

    assert unit({"pixel_size_known": False}) == "px"
    assert unit({}) == "mm"
