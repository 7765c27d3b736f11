"""After training: from the distance of two scans to the probability of one patient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.linear_model import LogisticRegression

from medsiam.encoding.encoder import SamePatient, TwinEncoder
from medsiam.training.pairs import Batch


def calibrated(network: TwinEncoder, batches: Sequence[Batch], region: str) -> SamePatient | None:
    """The logistic curve over all pairs of views of each batch, one patient and two weighing alike.

    After Platt 1999, Advances in Large Margin Classifiers. The distance is that of the
    first part of the embedding. None where the batches do not tell one patient from two.
    """
    distances, same = [], []
    network.eval()
    with torch.no_grad():
        for batch in batches:
            parts = network(batch.views).embedding.float().unflatten(1, (network.settings.parts, -1))
            who = torch.nn.functional.normalize(parts[:, 0], dim=1)
            one, other = torch.triu_indices(len(who), len(who), offset=1)
            distances.append(1.0 - (who[one] * who[other]).sum(1))
            same.append(batch.people[one] == batch.people[other])
    truth = torch.cat(same).numpy()
    if truth.all() or not truth.any():
        return None
    fit = LogisticRegression(class_weight="balanced", C=100.0).fit(
        torch.cat(distances)[:, None].numpy(), truth
    )
    slope, offset = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    # Distances that grow for one patient say that nothing was learnt.
    return SamePatient(-offset / slope, -slope, region) if slope < 0.0 else None
