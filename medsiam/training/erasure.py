"""After training: what the embedding linearly tells of the acquisition is taken out of it.

    embeddings of training people's rescans, and how each was made
    -> the directions that tell it -> an affine map without them -> the projection's own weights

LEACE (Belrose et al. 2023, NeurIPS 36): of all affine maps after which no linear
reader finds the concept, the one that moves the embeddings least. The map is
multiplied into the last layer, so that the network keeps its shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medsiam.encoding.encoder import TwinEncoder
from medsiam.training.pairs import Batch

# Directions of the embedding that vary less than this share of the most varying one
# are noise of the estimate.
LEAST_VARIANCE = 1e-5


def acquisition_erased(network: TwinEncoder, batches: Sequence[Batch]) -> int:
    """How many directions were taken out of the network's projection, in place; 0 where nothing is told.

    batches  views with the numbers (N, Z) that describe how each was acquired
    """
    told = torch.cat([batch.acquisition for batch in batches]).double()
    if told.shape[1] == 0:
        return 0
    network.eval()
    rows: list[torch.Tensor] = []
    hook = network.project.register_forward_hook(lambda module, args, out: rows.append(out.double()))
    with torch.no_grad():
        for batch in batches:
            network(batch.views)
    hook.remove()
    keep, shift, count = erasing_map(torch.cat(rows), told)
    with torch.no_grad():
        weight, bias = network.project.weight.double(), network.project.bias.double()
        network.project.weight.copy_(keep @ weight)
        network.project.bias.copy_(keep @ bias + shift)
    return count


def erasing_map(rows: torch.Tensor, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Matrix (D, D) and shift (D,) after which `told` is no linear function of the rows, and the rank taken.

    rows  (N, D)
    told  (N, Z)
    """
    mean = rows.mean(0)
    centred = rows - mean
    spread = told.std(0)
    concept = (told - told.mean(0))[:, spread > 0] / spread[spread > 0]
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    used = values > LEAST_VARIANCE * values.max()
    basis, deviations = vectors[:, used], values[used].sqrt()
    white = (basis / deviations).T
    across = white @ (centred.T @ concept / len(rows))
    left, strength, _ = torch.linalg.svd(across, full_matrices=False)
    # Correlations that this many rows show by chance take nothing: the largest singular
    # value of noise (Davidson and Szarek 2001).
    chance = (across.shape[0] ** 0.5 + across.shape[1] ** 0.5) / len(rows) ** 0.5
    left = left[:, strength > chance]
    taken = (basis * deviations) @ left @ (left.T @ white)
    keep = torch.eye(rows.shape[1], dtype=rows.dtype) - taken
    return keep, taken @ mean, left.shape[1]
