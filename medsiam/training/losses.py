"""What the twins are taught: who is who, who is alike, and where two scans differ.

The losses on embeddings and their miners are those of pytorch-metric-learning; the
two that it lacks are here, with their papers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as functional
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity
from torch import nn

from medsiam.encoding.encoder import LARGEST_SCORE

# Of the tissues' cross-entropy beside their Dice: most voxels are outside, and soon told.
ENTROPY_WEIGHT = 4.0
# Keeps the Dice of a tissue of few voxels from leaping.
FEW_VOXELS = 5.0

Mining = Literal["all", "semihard", "hard"]


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses (0 leaves one out) and what shapes them.

    triplet, contrastive, ntxent  on who it is; margins are of the cosine
    mining                        which triplets and pairs count: all, semihard or hard ones
    neighbour                     on labels: those with nearer labels lie nearer, at a stated cosine
    regression                    on labels: a linear layer reads them from the last part
    tissue                        on the tissues at every voxel, where the encoder tells them
    change                        on the dense maps
    """

    triplet: float = field(default=1.0, metadata={"range": (0.0, 100.0)})
    contrastive: float = field(default=0.0, metadata={"range": (0.0, 100.0)})
    ntxent: float = field(default=0.0, metadata={"range": (0.0, 100.0)})
    neighbour: float = field(default=0.0, metadata={"range": (0.0, 100.0)})
    regression: float = field(default=0.0, metadata={"range": (0.0, 100.0)})
    tissue: float = field(default=0.0, metadata={"range": (0.0, 100.0)})
    change: float = field(default=0.0, metadata={"range": (0.0, 100.0)})
    mining: Mining = "semihard"
    margin: float = field(default=0.2, metadata={"range": (0.0, 2.0)})
    contrastive_margins: tuple[float, float] = field(default=(0.9, 0.3), metadata={"range": (-1.0, 1.0)})
    temperature: float = field(default=0.1, metadata={"range": (0.01, 10.0)})


class IdentityLoss(nn.Module):
    """The weighted sum of the chosen losses on who it is."""

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.settings = settings
        cosine = CosineSimilarity()
        near, far = settings.contrastive_margins
        self.triplet = losses.TripletMarginLoss(margin=settings.margin, distance=cosine)
        self.contrastive = losses.ContrastiveLoss(pos_margin=near, neg_margin=far, distance=cosine)
        self.ntxent = losses.NTXentLoss(temperature=settings.temperature, distance=cosine)
        self.miner = _miner(settings)

    def forward(self, embeddings: torch.Tensor, people: torch.Tensor) -> torch.Tensor:
        """The loss of embeddings (N, D) of the people (N,)."""
        mined = self.miner(embeddings, people) if self.miner else None
        total = embeddings.sum() * 0.0
        for name in ("triplet", "contrastive"):
            weight = getattr(self.settings, name)
            if weight:
                total = total + weight * getattr(self, name)(embeddings, people, mined)
        if self.settings.ntxent:
            # Its softmax weighs the hard ones by itself.
            total = total + self.settings.ntxent * self.ntxent(embeddings, people)
        return total


def neighbour_loss(embeddings: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The mean squared error of the cosines (N x N) against those that the labels call for.

    Each standard score is an angle, LARGEST_SCORE a right one; two people of like labels
    shall have a cosine of 1, of opposite ones -1. After kernel-target alignment
    (Cristianini et al. 2001, NeurIPS 14).

    embeddings  (N, D), unit norm
    scores      (N, L), standard scores of the labels, nan where unknown
    """
    known = scores.isfinite()
    angles = torch.nan_to_num(scores).clamp(-LARGEST_SCORE, LARGEST_SCORE) * (0.5 * math.pi / LARGEST_SCORE)
    both = (known[:, None] & known[None]).float()
    asked = ((angles[:, None] - angles[None]).cos() * both).sum(2) / both.sum(2).clamp(min=1.0)
    pairs = (both.sum(2) > 0) & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    if not bool(pairs.any()):
        return embeddings.sum() * 0.0
    return functional.mse_loss((embeddings @ embeddings.T)[pairs], asked[pairs])


def regression_loss(told: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The smooth absolute error of standardised labels (N, L), over those that are known."""
    known = labels.isfinite()
    if not bool(known.any()):
        return told.sum() * 0.0
    return functional.smooth_l1_loss(told[known], labels[known])


def tissue_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and soft Dice of the tissues' logits against their shares in each voxel.

    A voxel of a brain mostly holds two tissues: the shares, not the larger one, add up to a volume.

    logits  (N, C, K, J, I)
    shares  (N, C + 1, K, J, I) 0..1, the last is not known
    """
    count = logits.shape[1]
    truth, known = shares[:, :count].float(), 1.0 - shares[:, count:].float()
    told = logits.float().log_softmax(dim=1)
    entropy = -(truth * told).sum(1).mean()
    guess = (told.exp() * known)[:, 1:].flatten(2)
    wanted = truth[:, 1:].flatten(2)
    # The squared form has its optimum where the guess equals a soft truth.
    overlap = 2 * (guess * wanted).sum(2) + FEW_VOXELS
    dice = overlap / ((guess**2).sum(2) + (wanted**2).sum(2) + FEW_VOXELS)
    # A map that has no number for a tissue, or a scan that misses it, says nothing of it.
    there = (wanted.sum(2) > 1.0).float()
    missed = ((1.0 - dice) * there).sum() / there.sum().clamp(min=1.0)
    return ENTROPY_WEIGHT * entropy + missed


def change_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and soft Dice of a map's logits (B, 1, …) against the truth 0..1."""
    truth = truth.float()
    logits = logits.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, truth)
    guess = logits.sigmoid()
    # Over the batch: a pair without change has no Dice of its own.
    dice = (2 * (guess * truth).sum() + 1.0) / ((guess**2).sum() + (truth**2).sum() + 1.0)
    return entropy + 1.0 - dice


def _miner(settings: LossSettings) -> nn.Module | None:
    if settings.mining == "hard":
        return miners.BatchHardMiner(distance=CosineSimilarity())
    if settings.mining == "semihard":
        return miners.TripletMarginMiner(
            margin=settings.margin, distance=CosineSimilarity(), type_of_triplets="semihard"
        )
    return None
