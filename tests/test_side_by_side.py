"""Parts side by side share the cores, and hand them back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from medsiam.pairing.side_by_side import side_by_side


@pytest.fixture(autouse=True)
def four_threads():
    """As on a machine of four cores, whatever this one has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def in_new_thread(do):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(do).result()


@pytest.mark.parametrize(("parts", "each"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_each_part_has_its_share_of_the_cores(parts, each):
    """And no more parts run at once than there are cores."""
    with side_by_side(parts) as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {each}
    assert torch.get_num_threads() == 4
    assert in_new_thread(torch.get_num_threads) == 4


def test_a_refusal_hands_the_cores_back_too():
    """And reaches who asked."""
    with pytest.raises(ZeroDivisionError), side_by_side(2) as pool:
        pool.submit(lambda: 1 // 0).result()
    assert in_new_thread(torch.get_num_threads) == 4


def test_two_at_once_do_not_take_each_others_share_for_the_whole():
    """A thread that was made while cores were dealt out deals out all of them."""
    both = Barrier(2, timeout=20)

    def nested():
        with side_by_side(2) as pool:
            both.wait()
            return pool.submit(torch.get_num_threads).result()

    with side_by_side(4), ThreadPoolExecutor(2) as others:
        assert [each.result() for each in [others.submit(nested), others.submit(nested)]] == [2, 2]
    assert torch.get_num_threads() == 4
    assert in_new_thread(torch.get_num_threads) == 4
