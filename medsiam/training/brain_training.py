"""Trains the brain finder on synthetic heads, for one core, from start or checkpoint.

    label maps -> synthetic heads -> Dice + cross-entropy -> AdamW, cosine -> averaged weights
    -> validation on heads of two people never trained on -> brain.safetensors

Run: python -m medsiam.training.brain_training configs/train_brain.yaml --out runs/brain
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from safetensors.torch import save_file

from medsiam.config import load_settings
from medsiam.pairing.brain_net import BrainNet, content_box
from medsiam.training.brain_synthesis import Example, HeadMap, SynthesisSettings, read_head_map, synthesise

log = logging.getLogger("medsiam.training.brain")


@dataclasses.dataclass(frozen=True)
class BrainTraining:
    """How the brain finder is trained; the keys of configs/train_brain.yaml.

    head_maps           folder with training_seg_NN.nii.gz
    held_out            numbers of the maps kept for validation
    steps               examples seen, one per step
    contrasts           contrasts made of each shape
    average             decay of the running mean of the weights
    export_every_steps  validation and export
    """

    head_maps: str
    held_out: tuple[int, ...] = (4, 8)
    seed: int = 20161
    steps: int = 4000
    contrasts: int = 2
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    warm_up_steps: int = 100
    average: float = 0.995
    export_every_steps: int = 800
    checkpoint_every_steps: int = 200
    validation_shapes: int = 10
    synthesis: SynthesisSettings = dataclasses.field(default_factory=SynthesisSettings)


@dataclasses.dataclass
class Progress:
    """Everything that a resumed run needs to go on as if it had not stopped."""

    net: BrainNet
    averaged: BrainNet
    optimiser: torch.optim.Optimizer
    random: torch.Generator
    step: int = 0
    seconds: float = 0.0


def train(settings: BrainTraining, out: Path, weights: Path) -> None:
    """Weights at `weights`, checkpoints in `out`; goes on from the last checkpoint there."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    learn, held_out = _heads(settings)
    progress = _resumed(settings, out / "checkpoint.pt")
    checks = _validation_examples(settings, held_out)
    examples = _examples(settings, learn, progress.random)
    started, loss = time.monotonic() - progress.seconds, 0.0
    while progress.step < settings.steps:
        loss += 0.02 * (_step(progress, next(examples), settings) - loss)
        progress.step += 1
        progress.seconds = time.monotonic() - started
        if progress.step % 50 == 0:
            log.info("step %d loss %.4f %.0f s", progress.step, loss, progress.seconds)
        if progress.step % settings.checkpoint_every_steps == 0:
            _save(progress, out / "checkpoint.pt")
        if progress.step % settings.export_every_steps == 0 or progress.step == settings.steps:
            export(progress, settings, validate(progress.averaged, checks), weights)


def brain_loss(logits: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Soft Dice of classes and whole brain, plus cross-entropy, against shares (B, 5, K, J, I)."""
    cross_entropy = -(share * functional.log_softmax(logits, dim=1)).sum(1).mean()
    guess = logits.softmax(1)
    guess = torch.cat([guess[:, 1:], guess[:, 1:].sum(1, keepdim=True)], 1).flatten(2)
    truth = torch.cat([share[:, 1:], share[:, 1:].sum(1, keepdim=True)], 1).flatten(2)
    # The squared form has its optimum where the guess equals a soft truth.
    overlap = 2 * (guess * truth).sum(2) + 20.0
    dice = overlap / ((guess**2).sum(2) + (truth**2).sum(2) + 20.0)
    return cross_entropy + (1 - dice).mean()


def validate(net: BrainNet, checks: list[Example]) -> dict[str, float]:
    """Mean Dice of each class and of the whole brain over the examples that hold brain."""
    sums, count = torch.zeros(5), 0
    net.eval()
    with torch.inference_mode():
        for example in checks:
            guess = net(example.image[None, None])[0].argmax(0)
            truth = example.share.argmax(0)
            if (truth > 0).sum() < 2000:
                continue
            pairs = [(guess == n, truth == n) for n in range(1, 5)] + [(guess > 0, truth > 0)]
            sums += torch.stack([2 * (a & b).sum() / (a.sum() + b.sum()).clamp(min=1) for a, b in pairs])
            count += 1
    names = ("csf", "grey", "white", "cerebellum and stem", "brain")
    return {name: round(float(value) / max(count, 1), 4) for name, value in zip(names, sums, strict=True)}


def export(progress: Progress, settings: BrainTraining, dice: dict[str, float], weights: Path) -> None:
    """The averaged weights in half precision beside their SHA-256; each file replaced at once."""
    log.info("validation at step %d: %s", progress.step, dice)
    tensors = {name: value.half().contiguous() for name, value in progress.averaged.state_dict().items()}
    about = {
        "model": "medsiam brain finder",
        "step": str(progress.step),
        "hours": f"{progress.seconds / 3600:.2f}",
        "seed": str(settings.seed),
        "validation_dice": str(dice),
        "data": "BBillot/SynthSeg head label maps (Apache-2.0); synthetic images only",
        "licence": "Apache-2.0",
    }
    fresh = weights.with_suffix(".new")
    save_file(tensors, fresh, metadata=about)
    # safetensors writes for the owner only; the package is read by others.
    fresh.chmod(0o644)
    digest = hashlib.sha256(fresh.read_bytes()).hexdigest()
    stamp = weights.with_suffix(".sha256.new")
    stamp.write_text(f"{digest}  {weights.name}\n", encoding="ascii")
    os.replace(fresh, weights)
    os.replace(stamp, weights.with_suffix(".sha256"))


def _heads(settings: BrainTraining) -> tuple[list[HeadMap], list[HeadMap]]:
    """Maps to learn from, and maps of other people to check with."""
    paths = sorted(Path(settings.head_maps).glob("training_seg_*.nii.gz"))
    numbered = [(int(path.name[13:15]), path) for path in paths]
    learn = [read_head_map(path) for number, path in numbered if number not in settings.held_out]
    held_out = [read_head_map(path) for number, path in numbered if number in settings.held_out]
    return learn, held_out


def _validation_examples(settings: BrainTraining, heads: list[HeadMap]) -> list[Example]:
    random = torch.Generator().manual_seed(settings.seed + 1)
    made = (
        synthesise(heads[n % len(heads)], settings.synthesis, random, 1)[0]
        for n in range(settings.validation_shapes)
    )
    return [_cut(example) for example in made]


def _examples(settings: BrainTraining, heads: list[HeadMap], random: torch.Generator) -> Iterator[Example]:
    while True:
        head = heads[int(torch.randint(len(heads), (1,), generator=random))]
        yield from map(_cut, synthesise(head, settings.synthesis, random, settings.contrasts))


def _cut(example: Example) -> Example:
    box = content_box(example.image)
    return Example(example.image[box], example.share[(slice(None), *box)])


def _step(progress: Progress, example: Example, settings: BrainTraining) -> float:
    for group in progress.optimiser.param_groups:
        group["lr"] = _learning_rate(progress.step, settings)
    progress.net.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = progress.net(example.image[None, None])
    loss = brain_loss(logits.float(), example.share[None])
    progress.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(progress.net.parameters(), 1.0)
    progress.optimiser.step()
    decay = min(settings.average, (progress.step + 1) / (progress.step + 10))
    with torch.no_grad():
        for mean, now in zip(progress.averaged.parameters(), progress.net.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
    return float(loss.detach())


def _learning_rate(step: int, settings: BrainTraining) -> float:
    """Rises linearly, then falls along a half cosine to a hundredth."""
    warm = min(1.0, (step + 1) / settings.warm_up_steps)
    return settings.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * step / settings.steps))


def _resumed(settings: BrainTraining, path: Path) -> Progress:
    torch.manual_seed(settings.seed)
    net, averaged = BrainNet(), BrainNet()
    averaged.load_state_dict(net.state_dict())
    rates: dict[str, Any] = {
        "lr": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "betas": (0.9, 0.99),
    }
    optimiser = torch.optim.AdamW(net.parameters(), **rates)
    progress = Progress(net, averaged, optimiser, torch.Generator().manual_seed(settings.seed))
    if path.exists():
        state = torch.load(path, weights_only=True)
        net.load_state_dict(state["net"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        progress.random.set_state(state["random"])
        progress.step, progress.seconds = state["step"], state["seconds"]
    return progress


def _save(progress: Progress, path: Path) -> None:
    state = {name: getattr(progress, name).state_dict() for name in ("net", "averaged", "optimiser")}
    state |= {"random": progress.random.get_state(), "step": progress.step, "seconds": progress.seconds}
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main() -> None:
    """Train as the YAML file says."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and log")
    parser.add_argument("--weights", type=Path, default=None, help="default: OUT/brain.safetensors")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = load_settings(given.config, BrainTraining)
    train(settings, given.out, given.weights or given.out / "brain.safetensors")


if __name__ == "__main__":
    main()
