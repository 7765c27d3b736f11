"""Training: batches by seed and step, an optimiser, and a state that can be stopped at any moment.

    batch -> twins through one network -> loss -> optimiser -> averaged weights
    -> validation on patients of their own -> best kept, early stop

A batch depends on the seed and the step alone, and a checkpoint holds all else: a run
that was killed goes on as if it had not been. With torchrun, every process draws
batches of its own and gradients are averaged.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from medsiam.encoding.encoder import TISSUES, EncoderSettings, TwinEncoder
from medsiam.encoding.weights import load_encoder
from medsiam.errors import TrainingRefused
from medsiam.pairing.brain_net import CLASSES as BRAIN_CLASSES
from medsiam.pairing.brain_net import load_brain_net
from medsiam.training.learner import BatchLoss, Learner
from medsiam.training.pairs import Batch, BatchSettings, Studio, draw_batch
from medsiam.training.settings import WEIGHTS, OptimiserSettings, TrainSettings

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

# What the brain finder calls each tissue.
KNOWN_AS = {
    "outside": "not brain",
    "ventricle": "csf",
    "csf": "csf",
    "cortex": "grey",
    "white": "white",
    "deep grey": "grey",
    "hind brain": "cerebellum and stem",
}

# The learning rate ends at this share of its height.
LAST_RATE = 0.01

# Batches of validation are drawn from seeds that no step of training has.
VALIDATION_SEED = 2**40
# Of about one voxel in fifty: changes and their surroundings.
RARE_LOGIT = -4.0
# Enough people to tell the mean and the deviation of a label.
SCALE_BATCHES = 6
# Seeds of consecutive steps lie apart by more than any number of processes.
SEED_STRIDE = 4096


@dataclass
class State:
    """Everything that changes while training.

    best        lowest validation loss so far, and the averaged weights that had it
    since_best  validations since then
    """

    learner: Learner
    averaged: Learner
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: float = math.inf
    best_step: int = 0
    best_weights: Mapping[str, torch.Tensor] | None = None
    since_best: int = 0
    seconds: float = 0.0


# What a checkpoint holds of a state: by their own state_dict, and as they are.
STATEFUL = ("learner", "averaged", "optimiser", "scaler")
PLAIN = tuple(each.name for each in fields(State) if each.name not in STATEFUL)


@dataclass(frozen=True)
class Process:
    """Which of how many processes this is, and where it computes."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0


class Batches(Dataset[Batch]):
    """The batches of a run, numbered; number n is always the same."""

    def __init__(self, studio: Studio, settings: BatchSettings, seed: int) -> None:
        self.studio, self.settings, self.seed = studio, settings, seed

    def __getitem__(self, number: int) -> Batch:
        """The batch of this number."""
        random = torch.Generator().manual_seed((self.seed << 44) ^ number)
        return draw_batch(self.studio, self.settings, random)


def new_state(settings: TrainSettings, device: torch.device) -> State:
    """Drawn weights, before the first step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        labels = len(settings.data.labels) + len(settings.data.measured)
        learner = Learner(
            settings.encoder,
            with_head=settings.loss.change > 0,
            labels=labels if settings.loss.regression > 0 else 0,
        )
        if settings.encoder.tissues:
            _start_tissues(learner.encoder)
    if settings.batch.people == 0 and learner.head is not None:
        # Almost no voxel of a cube changes; a network that starts by saying so loses no steps on it.
        nn.init.constant_(learner.head.finish[-1].bias, RARE_LOGIT)  # type: ignore[arg-type]
    if settings.start_from is not None:
        start = load_encoder(settings.start_from, spatial_dims=settings.encoder.spatial_dims)
        _check_same_network(start.settings, settings.encoder, settings.start_from.name)
        _start(learner.encoder, start.network)
    if tissues_alone(settings):
        learner.requires_grad_(False)
        learner.encoder.reader.requires_grad_(True)
    learner.to(device).to(memory_format=_memory_format(settings))  # type: ignore[call-overload]
    told = settings.optimiser
    taught = [each for each in learner.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(
        taught, lr=told.learning_rate, weight_decay=told.weight_decay, betas=(0.9, 0.99)
    )
    scaler = torch.amp.GradScaler(device.type, enabled=told.precision == "fp16" and device.type == "cuda")
    return State(learner, copy.deepcopy(learner).requires_grad_(False), optimiser, scaler)


def _check_same_network(found: EncoderSettings, wanted: EncoderSettings, name: str) -> None:
    """Raises TrainingRefused where weights to start from are of another network."""
    for each in fields(EncoderSettings):
        # How parts are weighed and how scans are prepared changes no weight's shape.
        here, there = getattr(wanted, each.name), getattr(found, each.name)
        # A network that tells tissues may start from one without, not the other way round.
        may_differ = (
            "shares",
            "preparation",
            "trunk_voxels",
            "likeness",
            *(("tissues",) if wanted.tissues else ()),
        )
        if each.name not in may_differ and here != there:
            raise TrainingRefused(
                f"{name} has encoder.{each.name} {there}, the settings say {here}; "
                "make them alike, or start anew"
            )
    if wanted.parts != found.parts:
        raise TrainingRefused(
            f"{name} has {found.parts} parts, the settings say {wanted.parts}; make them alike, or start anew"
        )


def tissues_alone(settings: TrainSettings) -> bool:
    """Whether nothing but the tissues is taught: who it is then stays as it was started from."""
    return [name for name in WEIGHTS if getattr(settings.loss, name) > 0] == ["tissue"]


def _start_tissues(network: TwinEncoder) -> None:
    """The tissues begin as the shipped brain finder tells them; where it has one class, two begin alike."""
    known = load_brain_net().state_dict()
    rows = [BRAIN_CLASSES.index(KNOWN_AS[tissue]) for tissue in TISSUES]
    network.reader.load_state_dict(
        {name: value[rows] if name.startswith("score.") else value for name, value in known.items()}
    )


def _start(network: TwinEncoder, known: TwinEncoder) -> None:
    """Takes over the weights; a network that is to tell tissues keeps its own for these."""
    # What is fitted after the last step is fitted anew, and may be of another size.
    weights = {
        name: value
        for name, value in known.state_dict().items()
        if not name.startswith(("alike.", "unusual."))
    }
    if network.settings.tissues and not known.settings.tissues:
        rows = network.project.out_features
        # The last part will be volumes; the others are the first rows.
        weights |= {name: weights[name][:rows] for name in ("project.weight", "project.bias")}
    network.load_state_dict(network.state_dict() | weights)


def wrapped(state: State, process: Process) -> nn.Module:
    """The learner, with its gradients averaged over all processes where there are several."""
    if process.count == 1:
        return state.learner
    ids = [process.device.index or 0] if process.device.type == "cuda" else None
    # Heads rest in batches without follow-ups.
    return DistributedDataParallel(state.learner, device_ids=ids, find_unused_parameters=True)


def train_batches(
    batches: Batches, settings: TrainSettings, process: Process, first_step: int
) -> Iterable[Batch]:
    """This process's batches from a step on, made ahead where workers are set."""
    accumulate = settings.optimiser.accumulate
    numbers = [
        (step * accumulate + part) * SEED_STRIDE + process.rank
        for step in range(first_step, settings.optimiser.steps)
        for part in range(accumulate)
    ]
    return DataLoader(batches, batch_size=None, sampler=numbers, num_workers=settings.workers)


def sample_batches(batches: Batches, count: int = SCALE_BATCHES) -> list[Batch]:
    """Some batches of no step, to measure what training itself does not."""
    return [batches[VALIDATION_SEED + n] for n in range(count)]


def validation_batches(batches: Batches, settings: TrainSettings) -> list[Batch]:
    """The batches that every validation of the run sees."""
    return [batches[VALIDATION_SEED + n] for n in range(settings.validation.batches)]


def one_step(
    state: State,
    module: nn.Module,
    loss: BatchLoss,
    parts: list[Batch],
    settings: TrainSettings,
    device: torch.device,
) -> dict[str, float]:
    """The losses of one step, which moves the weights.

    parts  batches whose gradients are added up

    Raises TrainingRefused, with the weights as before, where a loss or a gradient is
    not finite.
    """
    told = settings.optimiser
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(state.step, told)
    state.optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for number, batch in enumerate(parts):
        last = number == len(parts) - 1
        with _without_exchange(module, unless=last):
            total, each = batch_loss(module, loss, batch, settings, device)
            _check_finite(total, state.step)
            state.scaler.scale(total / len(parts)).backward()
        for name, value in each.items():
            sums[name] = sums.get(name, 0.0) + value / len(parts)
    state.scaler.unscale_(state.optimiser)
    norm = nn.utils.clip_grad_norm_(state.learner.parameters(), told.largest_gradient)
    if not state.scaler.is_enabled():
        # A scaler lowers its scale and tries again; without one nothing would help.
        _check_finite(norm, state.step)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    state.step += 1
    _average(state, told)
    return sums


def batch_loss(
    module: nn.Module, loss: BatchLoss, batch: Batch, settings: TrainSettings, device: torch.device
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a batch and its parts, on the device and in the precision of the settings."""
    there = _moved(batch, device, settings)
    kind = PRECISIONS.get(settings.optimiser.precision)
    with torch.autocast(device.type, kind, enabled=kind is not None):
        learnt = module(there.views, there.prior, there.current)
    return loss(learnt, there)


def validate(
    state: State, loss: BatchLoss, checks: list[Batch], settings: TrainSettings, device: torch.device
) -> dict[str, float]:
    """The averaged weights' mean losses, and how often the nearest view is the same person's."""
    state.averaged.eval()
    figures: dict[str, float] = {}
    with torch.no_grad():
        for batch in checks:
            total, each = batch_loss(state.averaged, loss, batch, settings, device)
            each |= {"loss": float(total)}
            if len(batch.views):
                there = _moved(batch, device, settings)
                embedded = state.averaged.encoder(there.views).embedding.float()
                each |= {"nearest_is_same": _nearest_is_same(embedded, there.people)}
            for name, value in each.items():
                figures[name] = figures.get(name, 0.0) + value / len(checks)
    return figures


def learning_rate(step: int, told: OptimiserSettings) -> float:
    """The rate of a step: a linear rise, then half a cosine."""
    warm = min(1.0, (step + 1) / max(1, told.warm_up_steps))
    fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / told.steps)))
    return told.learning_rate * warm * (LAST_RATE + (1.0 - LAST_RATE) * fall)


def save_state(state: State, path: Path, recipe: str) -> None:
    """Writes a checkpoint, whole or not at all.

    recipe  digest of the settings and scans it belongs to
    """
    kept = {name: getattr(state, name).state_dict() for name in STATEFUL}
    kept |= {name: getattr(state, name) for name in PLAIN} | {"recipe": recipe}
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        torch.save(kept, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def resume_state(state: State, path: Path, recipe: str) -> None:
    """Brings a checkpoint's state back.

    Raises TrainingRefused where it is damaged, of another architecture or of another recipe.
    """
    try:
        # Plain tensors and numbers only: a checkpoint may come from elsewhere.
        kept = torch.load(path, map_location="cpu", weights_only=True)
        told = kept["recipe"]
        if told == recipe:
            for name in STATEFUL:
                getattr(state, name).load_state_dict(kept[name])
            for name in PLAIN:
                setattr(state, name, kept[name])
    except Exception as error:  # torch raises what it likes for a file that is not its own
        raise TrainingRefused(
            f"{path} is no checkpoint of this network ({type(error).__name__}); "
            "remove it, or name another --out"
        ) from error
    if told != recipe:
        raise TrainingRefused(
            f"{path} is from other settings or other scans; go on with those, or name another --out"
        )


def _memory_format(settings: TrainSettings) -> torch.memory_format:
    if not settings.optimiser.channels_last:
        return torch.contiguous_format
    return torch.channels_last if settings.encoder.spatial_dims == 2 else torch.channels_last_3d


def _moved(batch: Batch, device: torch.device, settings: TrainSettings) -> Batch:
    form = _memory_format(settings)
    tensors: dict[str, Any] = {}
    for each in fields(Batch):
        value = getattr(batch, each.name)
        images = value.dim() == settings.encoder.spatial_dims + 2
        tensors[each.name] = value.to(device, memory_format=form) if images else value.to(device)
    return Batch(**tensors)


def _without_exchange(module: nn.Module, *, unless: bool) -> AbstractContextManager[Any]:
    if unless or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def _check_finite(value: torch.Tensor, step: int) -> None:
    if not bool(torch.isfinite(value.detach()).all()):
        raise TrainingRefused(
            f"the loss is no longer finite at step {step}; the last good state is kept, "
            "lower optimiser.learning_rate or set optimiser.precision to fp32"
        )


def _average(state: State, told: OptimiserSettings) -> None:
    decay = min(told.average, (state.step + 1) / (state.step + 10))
    with torch.no_grad():
        for mean, now in zip(state.averaged.parameters(), state.learner.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)


def _nearest_is_same(embeddings: torch.Tensor, people: torch.Tensor) -> float:
    similarity = embeddings @ embeddings.T
    similarity.fill_diagonal_(-torch.inf)
    return float((people[similarity.argmax(1)] == people).float().mean())


def all_agree(value: bool, process: Process) -> bool:
    """The first process's word, for all."""
    if process.count == 1:
        return value
    flag = torch.tensor([int(value)], device=process.device)
    distributed.broadcast(flag, 0)
    return bool(flag.item())
