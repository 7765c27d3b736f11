"""Losses are low where the twins are as they should be, and high where they are not."""

import math

import pytest
import torch

from medsiam.training.losses import IdentityLoss, LossSettings, change_loss, neighbour_loss

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


def test_neighbours_in_the_order_of_their_labels_cost_less():
    """The loss on labels ranks, so any order but the labels' own costs more."""
    ages = torch.tensor([[20.0], [35.0], [50.0], [80.0]])
    ordered, shuffled = around([0.0, 30.0, 60.0, 120.0]), around([60.0, 0.0, 120.0, 30.0])
    assert neighbour_loss(ordered, ages, 0.3) < neighbour_loss(shuffled, ages, 0.3) - 0.1


def test_unknown_labels_are_left_out():
    """Someone of unknown age neither helps nor hurts."""
    known = torch.tensor([[20.0], [35.0], [50.0]])
    with_unknown = torch.cat([known, torch.tensor([[math.nan]])])
    there = around([0.0, 30.0, 60.0, 10.0])
    assert neighbour_loss(there, with_unknown, 0.3) == neighbour_loss(there[:3], known, 0.3)
    assert neighbour_loss(there, torch.full((4, 1), math.nan), 0.3) == 0.0


def test_a_map_that_tells_the_truth_costs_least():
    """Right beats empty, and empty beats wrong."""
    truth = torch.zeros(1, 1, 6, 6, 6)
    truth[..., 2:4, 2:4, 2:4] = 1.0
    right, empty, wrong = (
        8.0 * (2.0 * guess - 1.0) for guess in (truth, torch.zeros_like(truth), 1.0 - truth)
    )
    assert change_loss(right, truth) < change_loss(empty, truth) < change_loss(wrong, truth)
