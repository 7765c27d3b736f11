"""Losses are low where the twins are as they should be, and high where they are not."""

import math

import pytest
import torch
import torch.nn.functional as functional

from medsiam.training.losses import (
    IdentityLoss,
    LossSettings,
    change_loss,
    neighbour_loss,
    regression_loss,
    tissue_loss,
)

PEOPLE = torch.tensor([0, 0, 1, 1, 2, 2])


def around(angles_deg):
    """Unit vectors (N, 2) at these angles."""
    angles = torch.deg2rad(torch.tensor(angles_deg, dtype=torch.float32))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


TOGETHER = around([0.0, 4.0, 120.0, 124.0, 240.0, 244.0])
MIXED = around([0.0, 120.0, 124.0, 240.0, 244.0, 4.0])


@pytest.mark.parametrize("mining", ["all", "semihard", "hard"])
@pytest.mark.parametrize("name", ["triplet", "contrastive", "ntxent"])
def test_twins_that_lie_together_cost_less_than_twins_apart(name, mining):
    """What every loss on identity is for, under every mining."""
    chosen = {"triplet": 0.0, name: 1.0, "mining": mining, "margin": 1.5}
    loss = IdentityLoss(LossSettings(**chosen))
    assert loss(TOGETHER, PEOPLE) < loss(MIXED, PEOPLE) - 0.05


def test_no_weight_is_no_loss():
    """A loss that is left out moves nothing."""
    assert IdentityLoss(LossSettings(triplet=0.0))(MIXED, PEOPLE) == 0.0


def test_neighbours_at_the_cosine_of_their_labels_cost_nothing():
    """A score of 2.5 is a right angle; any other order costs more."""
    scores = torch.tensor([[-2.5], [0.0], [1.25], [2.5]])
    right, shuffled = around([-90.0, 0.0, 45.0, 90.0]), around([45.0, -90.0, 90.0, 0.0])
    assert float(neighbour_loss(right, scores)) == pytest.approx(0.0, abs=1e-6)
    assert neighbour_loss(shuffled, scores) > 0.1


def test_unknown_labels_are_left_out():
    """Someone of unknown age neither helps nor hurts."""
    known = torch.tensor([[-1.0], [0.0], [1.0]])
    with_unknown = torch.cat([known, torch.tensor([[math.nan]])])
    there = around([0.0, 30.0, 60.0, 10.0])
    assert neighbour_loss(there, with_unknown) == neighbour_loss(there[:3], known)
    assert neighbour_loss(there, torch.full((4, 1), math.nan)) == 0.0


def test_labels_are_read_as_standard_scores():
    """Reading them right costs nothing, unknown ones cost nothing either."""
    labels = torch.tensor([[0.5, math.nan], [-0.5, 1.0]])
    assert regression_loss(torch.tensor([[0.5, 9.0], [-0.5, 1.0]]), labels) == 0.0
    assert regression_loss(torch.zeros(2, 2), labels) > 0.1
    assert regression_loss(torch.zeros(2, 1), torch.full((2, 1), math.nan)) == 0.0


def test_a_map_that_tells_the_truth_costs_least():
    """Right beats empty, and empty beats wrong."""
    truth = torch.zeros(1, 1, 6, 6, 6)
    truth[..., 2:4, 2:4, 2:4] = 1.0
    right, empty, wrong = (
        8.0 * (2.0 * guess - 1.0) for guess in (truth, torch.zeros_like(truth), 1.0 - truth)
    )
    assert change_loss(right, truth) < change_loss(empty, truth) < change_loss(wrong, truth)


def levels_saying(shares):
    """Two levels of logits that say these shares, as the loss forms them."""
    out = []
    for _ in range(2):
        shares = functional.avg_pool3d(shares, 3, stride=2, padding=1, count_include_pad=False)
        out.append((shares[:, :3] + 1e-6).log())
    return out


def test_levels_that_know_the_tissues_cost_least():
    """The truth's own entropy is what is left; unknown voxels count for nothing."""
    random = torch.Generator().manual_seed(0)
    classes = torch.randint(3, (1, 9, 9, 9), generator=random)
    right = levels_saying(functional.one_hot(classes, 4).movedim(-1, 1).float())
    wrong = [logits.roll(1, dims=1) for logits in right]
    assert tissue_loss(right, classes) < tissue_loss([torch.zeros_like(each) for each in right], classes)
    assert tissue_loss(right, classes) < tissue_loss(wrong, classes) - 0.1
    assert tissue_loss(right, torch.full_like(classes, 3)) == 0.0
