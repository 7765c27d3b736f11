"""The dense head keeps its law: exchanging the scans exchanges the maps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.change.head import ChangeHead
from medsiam.encoding.encoder import EncoderSettings, TwinEncoder
from medsiam.encoding.preparation import PreparationSettings

CHANNELS = (8, 16, 24)
QUICK = settings(max_examples=6, deadline=None)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def networks(dims, seed=0):
    """A small encoder and its head, drawn."""
    told = EncoderSettings(
        spatial_dims=dims,
        channels=CHANNELS,
        embedding_size=12,
        preparation=PreparationSettings(size_voxels=24),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TwinEncoder(told), ChangeHead(dims, CHANNELS, width=8)


def maps(pair, made):
    """The head's maps of two batches of images."""
    encoder, head = made
    prior, current = (encoder(image).pyramid for image in pair)
    return head(pair, (prior, current))


def scans(dims, size, batch=2, seed=0):
    return tuple(torch.rand(batch, 1, *(size,) * dims, generator=seeded(seed + n)) for n in range(2))


@given(st.sampled_from([2, 3]), st.sampled_from([24, 27, 37]), st.integers(0, 1000))
@QUICK
def test_exchanging_the_scans_exchanges_the_maps(dims, size, seed):
    """What appears one way resolves the other way; odd sizes too."""
    pair, made = scans(dims, size, seed=seed), networks(dims, seed)
    with torch.no_grad():
        there, back = maps(pair, made), maps(pair[::-1], made)
    assert there.appearing.shape == pair[0].shape
    assert torch.allclose(there.appearing, back.resolving, rtol=0.0, atol=1e-6)
    assert torch.allclose(there.resolving, back.appearing, rtol=0.0, atol=1e-6)
    assert not torch.allclose(there.appearing, there.resolving, atol=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_scan_against_itself_looks_the_same_both_ways(dims):
    """Nothing says that more came than went."""
    image = scans(dims, 24)[0]
    with torch.no_grad():
        same = maps((image, image), networks(dims))
    assert torch.allclose(same.appearing, same.resolving, rtol=0.0, atol=1e-6)


def test_the_law_holds_in_the_precision_of_the_training():
    """Half the bits are no excuse."""
    pair, made = scans(3, 24), networks(3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        there, back = maps(pair, made), maps(pair[::-1], made)
    assert torch.equal(there.appearing, back.resolving)
    assert torch.equal(there.resolving, back.appearing)


def test_a_pair_is_told_apart_from_its_neighbours_in_the_batch():
    """What one patient has is no matter of another's."""
    pair, made = scans(3, 24, batch=3), networks(3)
    with torch.no_grad():
        together = maps(pair, made).appearing[1:2]
        alone = maps((pair[0][1:2], pair[1][1:2]), made).appearing
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_change_is_answered_in_its_own_corner():
    """The maps are neither turned nor mirrored: the place differs along every axis."""
    image = scans(3, 32, batch=1)[0] * 0.1
    later = image.clone()
    later[0, 0, 8:11, 20:23, 12:15] += 1.0
    with torch.no_grad():
        made = networks(3)
        moved = (maps((image, later), made).appearing - maps((image, image), made).appearing).abs()[0, 0]
    strongest = (moved > 0.5 * moved.max()).nonzero().float().mean(0)
    assert float((strongest - torch.tensor([9.0, 21.0, 13.0])).abs().max()) < 3.0


@pytest.mark.parametrize("dims", [2, 3])
def test_the_gradient_reaches_every_parameter_of_head_and_pyramid(dims):
    """One that rests could never be taught."""
    encoder, head = made = networks(dims)
    both = maps(scans(dims, 24), made)
    (both.appearing * torch.rand(both.appearing.shape, generator=seeded(5))).sum().backward()
    for name, parameter in [*head.named_parameters(), *encoder.stem.named_parameters()]:
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().max()) > 0.0, name
