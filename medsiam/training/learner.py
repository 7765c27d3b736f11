"""The encoder with its change head as one module, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from medsiam.change.head import ChangeHead, ChangeLogits
from medsiam.encoding.encoder import Encoded, EncoderSettings, TwinEncoder
from medsiam.training.losses import (
    IdentityLoss,
    LossSettings,
    change_loss,
    neighbour_loss,
    regression_loss,
    tissue_loss,
)
from medsiam.training.pairs import Batch


class Learnt(NamedTuple):
    """Of the views embeddings (N, parts, D / parts), labels (N, L) as read from the last part,
    and the tissues' logits, where they are told; of the follow-ups logits, where there are any."""

    parts: torch.Tensor
    labels: torch.Tensor
    tissues: torch.Tensor | None
    logits: ChangeLogits | None


class Learner(nn.Module):
    """What is trained: one trunk for views and follow-ups, with a head on its pyramids.

    labels  how many numbers are read from an embedding
    """

    def __init__(self, settings: EncoderSettings, *, with_head: bool, labels: int = 0) -> None:
        super().__init__()
        self.encoder = TwinEncoder(settings)
        self.head = ChangeHead(settings.spatial_dims, settings.channels) if with_head else None
        self.read = nn.Linear(settings.embedding_size // settings.parts, labels) if labels else None

    def forward(self, views: torch.Tensor, prior: torch.Tensor, current: torch.Tensor) -> Learnt:
        """Everything in one batch: views, then priors, then currents."""
        count, pairs = len(views), len(prior)
        if self.head is None or pairs == 0:
            return self._learnt(self.encoder(views), count, None)
        encoded = self.encoder(torch.cat([views, prior, current]))
        before = [level[count : count + pairs] for level in encoded.pyramid]
        after = [level[count + pairs :] for level in encoded.pyramid]
        return self._learnt(encoded, count, self.head((prior, current), (before, after)))

    def _learnt(self, encoded: Encoded, count: int, logits: ChangeLogits | None) -> Learnt:
        parts = encoded.embedding[:count].unflatten(1, (self.encoder.settings.parts, -1))
        parts = nn.functional.normalize(parts.float(), dim=2)
        labels = parts.new_zeros(count, 0) if self.read is None else self.read(parts[:, -1])
        tissues = None if encoded.tissues is None else encoded.tissues[:count]
        return Learnt(parts, labels, tissues, logits)


class BatchLoss(nn.Module):
    """The loss of what was learnt of a batch, and its parts by name.

    scales  mean and deviation (2, L) of the labels, which are read as standard scores
    """

    scales: torch.Tensor

    def __init__(self, settings: LossSettings, scales: torch.Tensor | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.identity = IdentityLoss(settings)
        self.register_buffer("scales", torch.zeros(2, 0) if scales is None else scales)

    def forward(self, learnt: Learnt, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """The sum to minimise, and each part.

        Where the embedding has parts, the first is taught who it is, the last who is alike.
        """
        told = {"identity": self.identity(learnt.parts[:, 0], batch.people)}
        if self.settings.neighbour or self.settings.regression:
            scores = (batch.labels - self.scales[0]) / self.scales[1]
            if self.settings.neighbour:
                told["neighbour"] = self.settings.neighbour * neighbour_loss(learnt.parts[:, -1], scores)
            if self.settings.regression:
                told["regression"] = self.settings.regression * regression_loss(learnt.labels.float(), scores)
        if self.settings.tissue and learnt.tissues is not None:
            told["tissue"] = self.settings.tissue * tissue_loss(learnt.tissues, batch.tissues)
        if self.settings.change and learnt.logits is not None:
            both = change_loss(learnt.logits.appearing, batch.appearing)
            both = both + change_loss(learnt.logits.resolving, batch.resolving)
            told["change"] = 0.5 * self.settings.change * both
        total = torch.stack(list(told.values())).sum()
        return total, {name: float(value.detach()) for name, value in told.items()}


def label_scales(batches: Iterable[Batch]) -> torch.Tensor:
    """Mean and deviation (2, L) of the labels of some batches, over those that are known."""
    labels = torch.cat([batch.labels for batch in batches])
    columns = [column[column.isfinite()] for column in labels.T]
    if not columns:
        return torch.zeros(2, 0)
    # One value, or none, has no deviation: it is then left as it is.
    means = [float(column.mean()) if len(column) else 0.0 for column in columns]
    spreads = [float(column.std()) if len(column) > 1 else 1.0 for column in columns]
    return torch.tensor([means, [spread if spread > 1e-9 else 1.0 for spread in spreads]])
