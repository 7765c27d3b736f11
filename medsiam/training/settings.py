"""The keys of a training's settings file, as configs/train_*.yaml spell them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medsiam.encoding.encoder import EncoderSettings
from medsiam.encoding.preparation import PreparationSettings
from medsiam.training.cubes import PatchSettings
from medsiam.training.losses import LossSettings
from medsiam.training.pairs import BatchSettings
from medsiam.training.radiograph_synthesis import RadiographSettings
from medsiam.training.synthesis import SynthesisSettings

Precision = Literal["fp32", "bf16", "fp16"]

# The parts of the loss, as LossSettings names their weights.
WEIGHTS = ("triplet", "contrastive", "ntxent", "neighbour", "regression", "tissue", "change")


@dataclass(frozen=True)
class DataSettings:
    """Which scans, and how they are kept.

    manifest   CSV or JSON, relative to the settings file
    more       further manifests, whose patients are others
    labels     numeric columns whose likeness is taught
    measured   tissues of the label maps whose share of the brain is taught alike
    region     of the body that the scans show, as in "head": the probability of one patient is
               then measured on the validation patients, and told for scans of this region alone
    root       folder that the manifests' paths are relative to; otherwise the manifest's own
    working    the grid that scans are kept on, finer and larger than the encoder's input
    """

    manifest: Path = Path("manifest.csv")
    more: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    region: str = ""
    root: Path | None = None
    working: PreparationSettings = field(
        default_factory=lambda: PreparationSettings(size_voxels=112, spacing_mm=2.0)
    )


@dataclass(frozen=True)
class OptimiserSettings:
    """How the weights move.

    accumulate    batches whose gradients are added up before one step
    average       decay of the running mean of the weights, which is what is kept
    warm_up_steps after which the rate falls along half a cosine
    """

    steps: int = field(default=20_000, metadata={"range": (1, 10_000_000)})
    learning_rate: float = field(default=1e-3, metadata={"range": (1e-8, 10.0)})
    weight_decay: float = field(default=1e-4, metadata={"range": (0.0, 1.0)})
    warm_up_steps: int = field(default=200, metadata={"range": (0, 1_000_000)})
    accumulate: int = field(default=1, metadata={"range": (1, 4096)})
    largest_gradient: float = field(default=1.0, metadata={"range": (1e-3, 1e6)})
    average: float = field(default=0.998, metadata={"range": (0.0, 0.99999)})
    precision: Precision = "bf16"
    channels_last: bool = True


@dataclass(frozen=True)
class ValidationSettings:
    """When the patients of the validation split are asked.

    batches   of theirs, always the same ones
    patience  validations without a better one before training stops
    """

    every_steps: int = field(default=500, metadata={"range": (1, 1_000_000)})
    batches: int = field(default=4, metadata={"range": (1, 10_000)})
    patience: int = field(default=10, metadata={"range": (1, 100_000)})


@dataclass(frozen=True)
class TrainSettings:
    """Everything a training can be told.

    name     of the weights
    patch    the cubes that follow-ups are made as where batch.people is 0
    start_from      an encoder's weights to start from, relative to the settings file; otherwise drawn ones
    erased_batches  batches from which is learnt what the embedding tells of the acquisition,
                    which is then taken out; 0 leaves it in
    threads  for torch on a CPU, 0 leaves it to torch
    workers  processes that make batches ahead, 0 makes them in between
    tensorboard  whether curves go to TensorBoard too, where it is installed
    """

    name: str = "encoder"
    seed: int = field(default=0, metadata={"range": (0, 2**31 - 1)})
    start_from: Path | None = None
    erased_batches: int = field(default=0, metadata={"range": (0, 10_000)})
    threads: int = field(default=0, metadata={"range": (0, 1024)})
    workers: int = field(default=0, metadata={"range": (0, 256)})
    tensorboard: bool = True
    report_every_steps: int = field(default=50, metadata={"range": (1, 1_000_000)})
    checkpoint_every_steps: int = field(default=200, metadata={"range": (1, 1_000_000)})
    data: DataSettings = field(default_factory=DataSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    radiograph: RadiographSettings = field(default_factory=RadiographSettings)
    patch: PatchSettings = field(default_factory=PatchSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
