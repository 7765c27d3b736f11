"""After training: what the tissues' volumes tell of the labels becomes the embedding's last part.

    training people's own scans -> volumes as the network tells them -> ridge regression of each label
    -> the layer that turns volumes into scores, and the one that knows which volumes brains have

Some hundred people determine a few numbers each, so that nobody is learnt by heart; what volumes
do not tell of a label shrinks its score, and with it its share of who is alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from medsiam.encoding.encoder import TwinEncoder, log_shares
from medsiam.errors import TrainingRefused
from medsiam.training.pairs import Head, HeadStudio

# Of the standardised volumes' squares; people with a label that a fit needs.
RIDGE, FEWEST = 5.0, 12
# Of the covariance's diagonal, added to it: a hundred people do not tell its smallest directions.
SHRINKAGE = 0.1


def likeness_fitted(network: TwinEncoder, studio: HeadStudio) -> tuple[float, ...]:
    """How much of each label's variance the fitted scores explain, 0..1, in the people it was fitted to.

    Sets the network's layers in place; labels must have passed check_labels.
    """
    network.eval()
    rows, labels = [], []
    for person in _scanned_people(studio):
        image = person.as_it_is()
        assert image is not None
        with torch.no_grad():
            rows.append(log_shares(network.reader(image[None, None]).float().softmax(dim=1))[0].double())
        labels.append(person.labels)
    volumes = torch.stack(rows)
    weights, shifts, explained = scores_of(volumes, torch.tensor(labels, dtype=torch.float64))
    whitening = whitening_of(volumes)
    with torch.no_grad():
        network.alike.weight.copy_(weights)
        network.alike.bias.copy_(shifts)
        network.unusual.weight.copy_(whitening)
        network.unusual.bias.copy_(-whitening @ volumes.mean(0))
    return tuple(explained.tolist())


def check_labels(studio: HeadStudio) -> None:
    """Raises TrainingRefused where a label is known for too few people."""
    people = [person.labels for person in _scanned_people(studio)]
    for number, name in enumerate((*studio.labels, *studio.measured)):
        known = {labels[number] for labels in people if math.isfinite(labels[number])}
        if len(known) < FEWEST:
            raise TrainingRefused(
                f"{len(known)} different values of {name!r} are known; with encoder.tissues each of "
                f"data.labels and data.measured needs {FEWEST}, of people with a scan of their own"
            )


def scores_of(rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights (L, D) and shifts (L,) that turn a row into the labels' standard scores; R squared (L,).

    rows    (N, D)
    labels  (N, L), nan where unknown
    """
    weights, shifts, explained = [], [], []
    for label in labels.T:
        known = label.isfinite()
        mean, spread = rows[known].mean(0), rows[known].std(0).clamp(min=1e-9)
        scores = (label[known] - label[known].mean()) / label[known].std()
        standard = (rows[known] - mean) / spread
        ridge = RIDGE * torch.eye(rows.shape[1], dtype=rows.dtype)
        slopes = torch.linalg.solve(standard.T @ standard + ridge, standard.T @ scores)
        left = scores - standard @ slopes
        explained.append(1.0 - left.square().sum() / scores.square().sum())
        weights.append(slopes / spread)
        shifts.append(-(slopes / spread) @ mean)
    return torch.stack(weights), torch.stack(shifts), torch.stack(explained)


def whitening_of(rows: torch.Tensor) -> torch.Tensor:
    """(D, D): its product with a row's deviation from the mean has the Mahalanobis distance as its norm.

    rows  (N, D)
    """
    spread = rows.T.cov()
    values, vectors = torch.linalg.eigh(spread + SHRINKAGE * spread.diag().diag())
    return vectors @ values.rsqrt().diag() @ vectors.T


def _scanned_people(studio: HeadStudio) -> Iterator[Head]:
    """Everybody of whom there is a scan, not bent."""
    for patient in range(studio.count):
        person = studio.person(patient, False, torch.Generator().manual_seed(patient))
        if person.anatomy.image is not None:
            yield person
