"""After training: the axes along which a radiograph's edges tell who it is.

    people and made-up ones, each seen several times -> edges -> scatter of one person, spread of all
    -> what differs within one person is damped, the widest axes of the rest are kept

After the whitening within classes of Hatch et al. 2006, Interspeech, half way: the fourth root
instead of the square root of the scatter, which made-up people tell only roughly.
"""

from __future__ import annotations

import math

import torch

from medsiam.encoding.edges import edge_histograms
from medsiam.encoding.encoder import TwinEncoder
from medsiam.errors import TrainingRefused
from medsiam.training.chance import chance
from medsiam.training.pairs import RadiographStudio

# People drawn, and how often each is seen.
PEOPLE, VIEWS = 1500, 3
# Axes of all edges that are looked at.
WIDEST = 512
# Of the mean scatter, added to that of each axis; and the power that damps it.
SHRINKAGE, POWER = 10.0, 0.25


def edges_fitted(network: TwinEncoder, studio: RadiographStudio, warped: float, seed: int) -> None:
    """Sets the network's layer of edges in place.

    warped  share of made-up people among those drawn

    Raises TrainingRefused where the part of the embedding is longer than the axes there are.
    """
    size = network.edges.weight.shape[0]
    if size > WIDEST:
        raise TrainingRefused(
            f"a part of {size} numbers is more than the {WIDEST} axes of edges; make the embedding smaller"
        )
    random = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(PEOPLE):
        (patient,) = studio.patients(1, random)
        person = studio.person(patient, chance(warped, random), random)
        views = torch.stack([person.view(None, random).image.float() for _ in range(VIEWS)])
        rows.append(edge_histograms(views[:, None]).double())
    axes, middle = axes_of(torch.stack(rows), size)
    with torch.no_grad():
        network.edges.weight.copy_(axes.T)
        network.edges.bias.copy_(-middle @ axes)


def axes_of(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Axes (D, count) and the mean row (D,).

    rows  (people, views, D)
    """
    people, views, _ = rows.shape
    everything = rows.flatten(0, 1)
    middle = everything.mean(0)
    within = (rows - rows.mean(1, keepdim=True)).flatten(0, 1) / math.sqrt(people * (views - 1))
    _, _, widest = torch.linalg.svd(everything - middle, full_matrices=False)
    basis = widest[:WIDEST].T
    scatter = (within @ basis).T @ (within @ basis)
    level = SHRINKAGE * within.square().sum() / rows.shape[2]
    values, vectors = torch.linalg.eigh(scatter + level * torch.eye(len(scatter), dtype=rows.dtype))
    damped = basis @ vectors @ (values**-POWER).diag() @ vectors.T
    spread = (everything - middle) @ damped
    _, _, order = torch.linalg.svd(spread, full_matrices=False)
    return damped @ order[:count].T, middle
