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


def test_logits_that_know_the_tissues_cost_least():
    """Unknown voxels count for nothing, and a tissue that a map does not know neither."""
    random = torch.Generator().manual_seed(0)
    classes = torch.randint(3, (1, 9, 9, 9), generator=random)

    def shares(classes):
        return functional.one_hot(classes, 4).movedim(-1, 1).float()

    right = 30.0 * shares(classes)[:, :3]
    wrong, nothing = right.roll(1, dims=1), torch.zeros_like(right)
    truth = shares(classes)
    assert tissue_loss(right, truth) < 0.01 < tissue_loss(nothing, truth) < tissue_loss(wrong, truth)
    assert tissue_loss(wrong, shares(torch.full_like(classes, 3))) == 0.0
    half_known = torch.where(classes == 1, 3, classes)
    guess = torch.where(half_known[:, None] == 3, wrong, right)
    assert tissue_loss(guess, shares(half_known)) < 0.01


def test_a_voxel_that_is_half_and_half_is_told_so():
    """Of all guesses the true shares cost least, so that volumes add up."""
    truth = torch.tensor([0.0, 0.5, 0.5, 0.0]).reshape(1, 4, 1, 1, 1).expand(1, 4, 6, 6, 6)
    costs = []
    for half in (0.2, 0.4, 0.5, 0.6, 0.8):
        guess = torch.tensor([1e-6, half, 1 - half]).log().reshape(1, 3, 1, 1, 1).expand(1, 3, 6, 6, 6)
        costs.append(float(tissue_loss(guess, truth)))
    assert min(costs) == costs[2]
