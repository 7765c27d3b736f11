"""A batch through a network in the memory there is: whole, in halves, alone on the CPU, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import functional_call

from medsiam.errors import ResourceExhausted, is_out_of_memory

T = TypeVar("T")


def encoded_that_fits(network: nn.Module, images: torch.Tensor) -> Iterator[tuple[Any, int]]:
    """For each image what the network gave for its part of the batch, and its place in that part.

    images  (B, …), on the CPU; the network may be elsewhere

    Raises ResourceExhausted where not even one image fits, on the network's device and on the CPU.
    """
    done = _unless_exhausted(lambda: _on_its_device(network, images))
    if done is not None:
        yield from ((done, n) for n in range(len(images)))
        return
    if torch.cuda.is_available():
        # What the failed try has left behind is held for reuse, in pieces that may not fit.
        torch.cuda.empty_cache()
    if len(images) > 1:
        half = len(images) // 2
        yield from encoded_that_fits(network, images[:half])
        yield from encoded_that_fits(network, images[half:])
        return
    alone = _unless_exhausted(lambda: _on_the_cpu(network, images)) if _is_elsewhere(network) else None
    if alone is None:
        raise ResourceExhausted(
            f"no memory to embed one scan of {' x '.join(map(str, images.shape[2:]))} voxels by itself; "
            "end other programs, or use a larger machine"
        )
    yield alone, 0


def _unless_exhausted(run: Callable[[], T]) -> T | None:
    """What a function gives, None where memory does not do.

    Its error is let go of here: with it goes what the failed try still held.
    """
    try:
        return run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _on_its_device(network: nn.Module, images: torch.Tensor) -> Any:
    # Not inference_mode: a change head that is trained on these features needs them.
    with torch.no_grad():
        return network(images.to(next(network.parameters()).device))


def _on_the_cpu(network: nn.Module, images: torch.Tensor) -> Any:
    """By a copy of the numbers: moved there and back, the network might find no room any more."""
    there = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        return functional_call(network, there, (images,))


def _is_elsewhere(network: nn.Module) -> bool:
    return next(network.parameters()).device.type != "cpu"
