"""What a radiograph's edges tell: directions and places, not exposure; and the axes fitted to them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsiam.encoding.edges import EDGE_NUMBERS, edge_histograms
from medsiam.encoding.encoder import EncoderSettings, TwinEncoder
from medsiam.encoding.preparation import PreparationSettings
from medsiam.errors import TrainingRefused
from medsiam.training.edge_axes import axes_of, edges_fitted
from medsiam.training.pairs import RadiographStudio
from medsiam.training.radiograph_synthesis import RadiographSettings
from medsiam.training.sources import Source

SETTINGS = EncoderSettings(
    spatial_dims=2,
    channels=(8, 16),
    embedding_size=64,
    shares=(0.25, 0.75),
    edges=True,
    preparation=PreparationSettings(size_voxels=96),
)


def ribs(turn_deg=0.0, *, gain=1.0, shift=0):
    """(1, 1, 96, 96) bars across the picture, turned about its middle."""
    j, i = np.meshgrid(np.arange(96.0) - 48.0, np.arange(96.0) - 48.0, indexing="ij")
    angle = np.radians(turn_deg)
    across = np.cos(angle) * (j - shift) + np.sin(angle) * i
    return torch.from_numpy((gain * np.sin(across / 4.0)).astype(np.float32))[None, None]


def cosine(one, other):
    """Of the edges of two pictures."""
    return float((edge_histograms(one) * edge_histograms(other)).sum())


def test_edges_have_unit_norm_and_do_not_see_exposure():
    """A gain, an offset and a picture turned from dark to bright leave them."""
    row = edge_histograms(ribs())
    assert row.shape == (1, EDGE_NUMBERS)
    assert float(row.norm()) == pytest.approx(1.0, abs=1e-5)
    assert cosine(ribs(), ribs(gain=0.05) + 3.0) == pytest.approx(1.0, abs=1e-4)
    assert cosine(ribs(), -ribs()) == pytest.approx(1.0, abs=1e-4)


def test_edges_tell_directions():
    """Bars that are turned are another picture, the more the further up to a right angle."""
    near, far, right = (cosine(ribs(), ribs(turn)) for turn in (5.0, 30.0, 90.0))
    assert 1.0 > near > far > right
    assert right < 0.1


def test_a_picture_without_edges_tells_nothing():
    """Not whatever rounding leaves."""
    assert float(edge_histograms(torch.full((1, 1, 96, 96), 0.5)).abs().max()) == 0.0


def test_what_differs_within_a_person_is_damped_on_the_axes():
    """Two directions spread alike; the one in which a person differs from day to day counts less."""
    random = np.random.default_rng(0)
    people, views = 200, 3
    rows = np.zeros((people, views, 12))
    rows[..., 0] = random.normal(size=(people, 1))
    rows[..., 1] = random.normal(size=(people, views))
    rows[..., 2:] = 0.01 * random.normal(size=(people, views, 10))
    axes, middle = axes_of(torch.from_numpy(rows), 4)
    told = (torch.from_numpy(rows) - middle) @ axes
    weight = axes.norm(dim=1)
    assert axes.shape == (12, 4)
    assert float(told.flatten(0, 1).mean(0).abs().max()) < 1e-9
    assert float(weight[0]) > 1.2 * float(weight[1])


def studio():
    """A studio of three people with two radiographs each."""
    sources = [
        Source(person, (ribs(20.0 * person, shift=day)[0] * 0.5 + 0.5).half(), None, 2.0, {}, "")
        for person in range(3)
        for day in range(2)
    ]
    return RadiographStudio(sources, RadiographSettings())


def test_the_edges_become_the_last_part_of_an_embedding(monkeypatch):
    """Fitted, of its share, and the same for the same seed; no gradient reaches them."""
    monkeypatch.setattr("medsiam.training.edge_axes.PEOPLE", 40)
    one, other = TwinEncoder(SETTINGS).eval(), TwinEncoder(SETTINGS).eval()
    for network in (one, other):
        edges_fitted(network, studio(), 0.9, 7)
    assert torch.equal(one.edges.weight, other.edges.weight)
    assert not one.edges.weight.requires_grad
    parts = one(ribs() * 0.5 + 0.5).embedding.unflatten(1, (2, -1))
    assert parts.square().sum(2)[0].tolist() == pytest.approx([0.25, 0.75], abs=1e-5)


def test_a_part_longer_than_the_axes_is_refused():
    """With what to do about it."""
    wide = EncoderSettings(
        spatial_dims=2, channels=(8, 16), embedding_size=2048, shares=(0.5, 0.5), edges=True
    )
    with pytest.raises(TrainingRefused, match="make the embedding smaller"):
        edges_fitted(TwinEncoder(wide), studio(), 0.9, 7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"spatial_dims": 3},
        {"shares": (1.0,)},
        {"preparation": PreparationSettings(size_voxels=64)},
    ],
)
def test_edges_that_cannot_be_told_are_refused(wrong):
    """Volumes, an embedding of one part, a picture smaller than theirs."""
    with pytest.raises(ValueError, match="edges needs radiographs of 96 pixels or more and at least 2 parts"):
        replace(SETTINGS, **wrong)
