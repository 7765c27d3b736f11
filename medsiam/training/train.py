"""From a settings file and a manifest to an encoder's weights: what `medsiam train` does.

    settings, manifest -> scans read once -> steps, validations, checkpoints
    -> OUT/encoder.safetensors, training.json, curves.csv
    with batch.people 0 -> OUT/change.safetensors: the change head with a trunk of its own

A second call with the same OUT goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed

from medsiam.change.dense import DenseNet, save_dense
from medsiam.config import load_settings, settings_as_dict
from medsiam.encoding.encoder import TwinEncoder
from medsiam.encoding.record import ID_DIGITS, SAME_PATIENT
from medsiam.encoding.weights import device_of, save_encoder
from medsiam.errors import ConfigRefused
from medsiam.training.calibration import calibrated
from medsiam.training.curves import Curves
from medsiam.training.edge_axes import edges_fitted
from medsiam.training.erasure import acquisition_erased
from medsiam.training.learner import BatchLoss, label_scales
from medsiam.training.likeness import check_labels, likeness_fitted
from medsiam.training.loop import (
    Batches,
    Process,
    all_agree,
    new_state,
    one_step,
    resume_state,
    sample_batches,
    save_state,
    train_batches,
    validate,
    validation_batches,
    wrapped,
)
from medsiam.training.manifest import check_enough, read_manifest
from medsiam.training.pairs import HeadStudio, RadiographStudio, Studio
from medsiam.training.patches import PatchStudio
from medsiam.training.settings import WEIGHTS, TrainSettings
from medsiam.training.sources import Loaded, Source, SourceSettings, load_sources

# step, of how many, the latest figures
Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """What a training left behind.

    weights        the encoder that was best on the validation patients
    encoder_id     its name and digest
    steps          that were made, and the one that was best
    skipped        scans that could not be read
    """

    weights: Path
    encoder_id: str
    steps: int
    best_step: int
    validation: Mapping[str, float]
    patients: Mapping[str, int]
    scans: Mapping[str, int]
    skipped: int


def train(
    config: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    seed: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """The trained encoder's place and figures.

    seed      instead of the settings' own
    strict    whether one unreadable scan stops it all
    progress  told step, steps and the latest figures

    Raises ConfigRefused, TrainingRefused and whatever reading refuses under `strict`.
    """
    settings = _settings(Path(config))
    if seed is not None:
        settings = replace(settings, seed=seed)
    process = _process(device)
    try:
        return _Run(settings, Path(out), process, strict).go(progress)
    finally:
        if process.count > 1:
            distributed.destroy_process_group()


class _Run:
    """One training in one process."""

    def __init__(self, settings: TrainSettings, out: Path, process: Process, strict: bool) -> None:
        self.settings, self.out, self.process = settings, out, process
        if settings.threads:
            torch.set_num_threads(settings.threads)
        _made(out)
        self.loaded = {
            split: _loaded(settings, split, out / "cache", strict) for split in ("train", "validation")
        }
        self.batches = {split: _batches(settings, each.sources) for split, each in self.loaded.items()}
        studio = self.batches["train"].studio
        self.fitted = studio if settings.encoder.tissues and isinstance(studio, HeadStudio) else None
        if self.fitted is not None:
            check_labels(self.fitted)
        scales = label_scales(sample_batches(self.batches["train"])) if _uses_labels(settings) else None
        self.loss = BatchLoss(settings.loss, scales).to(process.device)
        self.state = new_state(settings, process.device)
        self.figures: dict[str, float] = {}

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept."""
        return self.out / "checkpoint.pt"

    def go(self, progress: Progress | None) -> Trained:
        """All steps that are left, and what came of them."""
        recipe = self._recipe()
        if self.checkpoint.exists():
            resume_state(self.state, self.checkpoint, recipe)
        curves = None
        if self.process.is_first:
            curves = Curves(self.out, from_step=self.state.step, tensorboard=self.settings.tensorboard)
        self._steps(recipe, curves, progress)
        if curves is not None:
            curves.close()
        return self._stored()

    def _steps(self, recipe: str, curves: Curves | None, progress: Progress | None) -> None:
        settings, state = self.settings, self.state
        checks = validation_batches(self.batches["validation"], settings) if self.process.is_first else []
        module = wrapped(state, self.process)
        module.train()
        sums: dict[str, float] = {}
        started, parts = time.monotonic() - state.seconds, []
        if self._is_over():
            return
        for batch in train_batches(self.batches["train"], settings, self.process, state.step):
            parts.append(batch)
            if len(parts) < settings.optimiser.accumulate:
                continue
            for name, value in one_step(
                state, module, self.loss, parts, settings, self.process.device
            ).items():
                sums[name] = sums.get(name, 0.0) + value
            parts, state.seconds = [], time.monotonic() - started
            if self.process.is_first:
                sums = self._reported(sums, checks, curves, progress)
                if state.step % settings.checkpoint_every_steps == 0:
                    save_state(state, self.checkpoint, recipe)
            if all_agree(self._is_over(), self.process):
                break
        if self.process.is_first:
            save_state(state, self.checkpoint, recipe)

    def _reported(
        self, sums: dict[str, float], checks: list[Any], curves: Curves | None, progress: Progress | None
    ) -> dict[str, float]:
        """The running sums, emptied where they were told."""
        settings, state, told = self.settings, self.state, {}
        if state.step % settings.report_every_steps == 0:
            told = {name: value / settings.report_every_steps for name, value in sums.items()}
            sums = {}
        if state.step % settings.validation.every_steps == 0 or state.step == settings.optimiser.steps:
            checked = validate(state, self.loss, checks, settings, self.process.device)
            told |= {f"validation_{name}": value for name, value in checked.items()}
            self._judge(checked["loss"])
        if told and curves is not None:
            curves.add(state.step, told | {"seconds": state.seconds})
        self.figures |= told
        if progress is not None:
            progress(state.step, settings.optimiser.steps, self.figures)
        return sums

    def _judge(self, loss: float) -> None:
        state = self.state
        if loss < state.best:
            state.best, state.best_step, state.since_best = loss, state.step, 0
            weights = state.averaged.state_dict()
            state.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        else:
            state.since_best += 1

    def _is_over(self) -> bool:
        done = self.state.step >= self.settings.optimiser.steps
        return done or self.state.since_best >= self.settings.validation.patience

    def _stored(self) -> Trained:
        """The best averaged weights, written by the first process."""
        state, settings = self.state, self.settings
        path = self.out / "encoder.safetensors"
        encoder_id = ""
        if not settings.batch.people:
            path = self.out / "change.safetensors"
            encoder_id = self._stored_head(path) if self.process.is_first else ""
        elif self.process.is_first:
            best = state.best_weights or state.averaged.state_dict()
            network = TwinEncoder(settings.encoder)
            head = "encoder."
            network.load_state_dict({k.removeprefix(head): v for k, v in best.items() if k.startswith(head)})
            about: dict[str, Any] = {"name": settings.name, "step": state.best_step, "seed": settings.seed}
            if self.fitted is not None:
                explained = likeness_fitted(network, self.fitted)
                names = (*settings.data.labels, *settings.data.measured)
                about["likeness"] = {
                    name: round(share, 3) for name, share in zip(names, explained, strict=True)
                }
            studio = self.batches["train"].studio
            if settings.encoder.edges and isinstance(studio, RadiographStudio):
                edges_fitted(network, studio, settings.batch.warped, settings.seed)
            if settings.erased_batches:
                measured = sample_batches(self.batches["train"], settings.erased_batches)
                about["erased_directions"] = acquisition_erased(network, measured)
            region = settings.data.region
            checks = validation_batches(self.batches["validation"], settings) if region else []
            curve = calibrated(network, checks, region) if region else None
            if curve is not None:
                about[SAME_PATIENT] = asdict(curve)
            encoder_id = save_encoder(network, path, metadata=about, half=True)
        trained = Trained(
            weights=path,
            encoder_id=encoder_id,
            steps=state.step,
            best_step=state.best_step,
            validation={"loss": state.best},
            patients={split: each.studio.count for split, each in self.batches.items()},
            scans={split: len(each.sources) for split, each in self.loaded.items()},
            skipped=sum(len(each.skipped) for each in self.loaded.values()),
        )
        if self.process.is_first:
            self._write_summary(trained)
        return trained

    def _stored_head(self, path: Path) -> str:
        """The id of the best averaged change head with its trunk, as it was written."""
        state, settings = self.state, self.settings
        network = DenseNet(settings.encoder)
        network.load_state_dict(dict(state.best_weights or state.averaged.state_dict()))
        sha256 = save_dense(network, path, {"step": state.best_step, "seed": settings.seed})
        return f"{settings.name}@{sha256[:ID_DIGITS]}"

    def _write_summary(self, trained: Trained) -> None:
        told = {
            "schema": "medsiam.training/1",
            "research_use_only": True,
            "encoder": trained.encoder_id,
            "steps": trained.steps,
            "best_step": trained.best_step,
            "best_validation_loss": trained.validation["loss"],
            "patients": dict(trained.patients),
            "scans": dict(trained.scans),
            "skipped": {
                split: [{"row": one.row, "code": one.code} for one in each.skipped]
                for split, each in self.loaded.items()
            },
            "device": str(self.process.device),
            "processes": self.process.count,
            "hours": round(self.state.seconds / 3600, 3),
            "settings": settings_as_dict(self.settings),
        }
        fresh = self.out / "training.json.new"
        fresh.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        os.replace(fresh, self.out / "training.json")

    def _recipe(self) -> str:
        """Digest of all that a resumed run must share; not of paths or of how fast it runs."""
        told = settings_as_dict(self.settings)
        for name in (
            "threads",
            "workers",
            "checkpoint_every_steps",
            "report_every_steps",
            "tensorboard",
            "data",
        ):
            told.pop(name)
        if self.settings.batch.people:
            # Cubes have no part in it.
            told.pop("patch")
        told["labels"] = [*self.settings.data.labels, *self.settings.data.measured]
        told["processes"] = self.process.count
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for each in self.loaded.values():
            for source in each.sources:
                digest.update(source.patient_index.to_bytes(4, "little") + source.image.numpy().tobytes())
        return digest.hexdigest()


def _settings(config: Path) -> TrainSettings:
    """The file's settings, with its paths taken from where the file lies."""
    settings = load_settings(config, TrainSettings)
    data, here = settings.data, config.parent
    root = None if data.root is None else here / data.root
    more = tuple(here / each for each in data.more)
    settings = replace(settings, data=replace(data, manifest=here / data.manifest, more=more, root=root))
    if settings.start_from is not None:
        settings = replace(settings, start_from=here / settings.start_from)
    wanted = settings.loss
    if sum(getattr(wanted, name) for name in WEIGHTS) <= 0:
        raise ConfigRefused(f"{config}: every weight in loss is 0; give one of them a weight")
    if wanted.change > 0 and settings.batch.follow_ups == 0:
        raise ConfigRefused(f"{config}: loss.change needs batch.follow_ups above 0")
    _check_tissues(settings, config)
    if settings.batch.people == 0:
        _check_change_alone(settings, config)
    return settings


def _check_tissues(settings: TrainSettings, config: Path) -> None:
    """Raises ConfigRefused where tissues are taught but not told, or told beside what they replace."""
    wanted, data = settings.loss, settings.data
    if not settings.encoder.tissues:
        if wanted.tissue > 0:
            raise ConfigRefused(f"{config}: loss.tissue needs encoder.tissues, which tells them")
        return
    if max(wanted.neighbour, wanted.regression) > 0:
        raise ConfigRefused(
            f"{config}: with encoder.tissues who is alike is fitted to volumes; "
            "set loss.neighbour and loss.regression to 0"
        )
    count = len(data.labels) + len(data.measured)
    if settings.encoder.likeness != count:
        raise ConfigRefused(
            f"{config}: encoder.likeness is {settings.encoder.likeness}, data.labels and data.measured "
            f"name {count}; make them alike"
        )


def _check_change_alone(settings: TrainSettings, config: Path) -> None:
    """Raises ConfigRefused where follow-ups alone are to teach what only views can."""
    others = [name for name in WEIGHTS if name != "change" and getattr(settings.loss, name) > 0]
    others += ["erased_batches"] * (settings.erased_batches > 0) + ["data.region"] * bool(
        settings.data.region
    )
    if others or settings.encoder.spatial_dims == 2:
        told = ", ".join(others) or "encoder.spatial_dims 2"
        raise ConfigRefused(
            f"{config}: batch.people is 0, but {told} needs people; set it to 0, or people to at least 2"
        )


def _uses_labels(settings: TrainSettings) -> bool:
    return settings.loss.neighbour > 0 or settings.loss.regression > 0


def _process(device: str) -> Process:
    """This process as torchrun set it up, or the only one."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if count > 1:
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Process(rank, count, device_of(device))


def _made(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigRefused(f"{out} cannot be made ({error.strerror}); name another --out") from error


def _loaded(settings: TrainSettings, split: str, cache: Path, strict: bool) -> Loaded:
    """The scans of a split, over all manifests; patients of different manifests are different."""
    sources: list[Source] = []
    skipped: list[Any] = []
    first = 0
    for path in (settings.data.manifest, *settings.data.more):
        is_main = path == settings.data.manifest
        wanted = settings.data.labels if is_main else ()
        manifest = read_manifest(path, root=settings.data.root, seed=settings.seed, required_labels=wanted)
        if is_main:
            check_enough(manifest)
        cases = manifest.of(split)
        if cases:
            each = load_sources(cases, _source_settings(settings), cache=cache, strict=strict)
            sources += [replace(one, patient_index=one.patient_index + first) for one in each.sources]
            skipped += each.skipped
        first += 1 + max(case.patient_index for case in manifest.cases)
    return Loaded(tuple(sources), tuple(skipped))


def _source_settings(settings: TrainSettings) -> SourceSettings:
    encoder = settings.encoder
    if encoder.spatial_dims == 2:
        # A radiograph fills its field: what the encoder sees is all there is.
        return SourceSettings(2, encoder.preparation)
    return SourceSettings(3, settings.data.working)


def _batches(settings: TrainSettings, sources: tuple[Source, ...]) -> Batches:
    studio: Studio
    if settings.encoder.spatial_dims == 2:
        studio = RadiographStudio(sources, settings.radiograph, labels=settings.data.labels)
    elif settings.batch.people == 0:
        studio = PatchStudio(sources, settings.patch, size=settings.encoder.preparation.size_voxels)
    else:
        told = settings.encoder.preparation
        studio = HeadStudio(
            sources,
            settings.synthesis,
            size=told.size_voxels,
            spacing_mm=told.spacing_mm,
            labels=settings.data.labels,
            measured=settings.data.measured,
            tissues=settings.encoder.tissues,
        )
    return Batches(studio, settings.batch, settings.seed)
