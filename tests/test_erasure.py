"""What is taken out cannot be read any more, and the rest stays as it was."""

import pytest
import torch

from medsiam.bench.retrieval import probe
from medsiam.encoding.encoder import EncoderSettings, TwinEncoder
from medsiam.encoding.preparation import PreparationSettings
from medsiam.training.erasure import acquisition_erased, erasing_map
from medsiam.training.pairs import Batch

COUNT, SIZE = 2000, 12


@pytest.fixture
def leaking():
    """Rows (N, 12) in which two directions tell the acquisition, beside what tells people apart."""
    random = torch.Generator().manual_seed(0)
    told = torch.randn(COUNT, 2, generator=random).double()
    content = torch.randn(COUNT, SIZE, generator=random).double()
    return content + told @ torch.randn(2, SIZE, generator=random).double() * 2.0, told


def correlation(rows, told):
    """The largest of any row's number with any told one."""
    both = torch.corrcoef(torch.cat([rows, told], dim=1).T)
    return float(both[:SIZE, SIZE:].abs().max())


def test_nothing_told_is_left_in_any_linear_way(leaking):
    """Two directions told, two taken."""
    rows, told = leaking
    keep, shift, count = erasing_map(rows, told)
    assert count == 2 and correlation(rows, told) > 0.5
    assert correlation(rows @ keep.T + shift, told) < 1e-9


def test_what_is_not_told_stays(leaking):
    """Rows that correlate with it by chance alone do not move; the mean stays in any case."""
    rows, told = leaking
    unrelated = torch.randn(told.shape, generator=torch.Generator().manual_seed(9)).double()
    keep, shift, count = erasing_map(rows, unrelated)
    assert count == 0 and torch.equal(rows @ keep.T + shift, rows)
    keep, shift, _ = erasing_map(rows, told)
    assert torch.allclose((rows @ keep.T + shift).mean(0), rows.mean(0), atol=1e-9)


def test_a_reader_that_found_the_acquisition_finds_it_no_more(leaking):
    """The probe of the public scoreboard, before and after."""
    rows, told = leaking
    classes = (told[:, 0] > 0).numpy().astype(int)
    people = [str(n // 2) for n in range(COUNT)]
    keep, shift, _ = erasing_map(rows, told)
    assert probe(rows.numpy(), classes, people, 0).value > 0.8
    assert probe((rows @ keep.T + shift).numpy(), classes, people, 0).value < 0.58


def test_the_network_itself_forgets():
    """The map lies in the projection: nothing else is needed to use it."""
    settings = EncoderSettings(
        channels=(8, 16), embedding_size=SIZE, preparation=PreparationSettings(size_voxels=16)
    )
    torch.manual_seed(0)
    network = TwinEncoder(settings)
    random = torch.Generator().manual_seed(1)
    brightness = torch.rand(200, 1, generator=random)
    views = torch.rand(200, 1, 16, 16, 16, generator=random) + brightness[:, :, None, None, None]
    none = torch.zeros(200, 0)
    batch = Batch(
        views, torch.arange(200), none, brightness, views[:, 0], *(torch.zeros(0, 1, 16, 16, 16),) * 4
    )
    out = []
    network.project.register_forward_hook(lambda module, args, rows: out.append(rows.double()))
    network(views)
    assert acquisition_erased(network, [batch]) == 1
    network(views)
    before, after = (correlation(rows.detach(), brightness.double()) for rows in (out[0], out[-1]))
    assert before > 0.3 and after < 1e-3


def test_without_anything_told_nothing_is_taken():
    """Radiographs share no protocol."""
    network = TwinEncoder(
        EncoderSettings(channels=(8, 16), embedding_size=4, preparation=PreparationSettings(size_voxels=16))
    )
    weight = network.project.weight.clone()
    empty = torch.zeros(2, 0)
    views = torch.zeros(2, 1, 16, 16, 16)
    batch = Batch(views, torch.arange(2), empty, empty, views[:, 0], *(views[:0],) * 4)
    assert acquisition_erased(network, [batch]) == 0
    assert torch.equal(network.project.weight, weight)
