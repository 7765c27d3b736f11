"""The encoder, trained in the hours that a GPU is free; a run that is killed goes on from its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.states import Completed, State

from flows.closed import closed
from flows.running import check_restarts, on_device, retried, server_may_be_away
from flows.settings import FlowSettings, settings_of
from flows.telling import PROGRESS_EVERY_S
from medsiam.training.train import Trained, train


@flow(name="train_encoder", persist_result=False, log_prints=False)
def train_encoder(recipe: str, out: str, config: str = "") -> State:
    """Trains an encoder on a manifest of scans, as `medsiam train` does.

    recipe  its settings file
    """
    with closed():
        settings = settings_of(config)
        check_restarts(settings.retries)

        def learn() -> Trained:
            return _trained(Path(recipe), Path(out), settings)

        with on_device(settings):
            made = retried(learn, "train", settings.retries)()
        return Completed(message=f"{made.encoder_id}: {made.steps} steps, the best was {made.best_step}")


def _trained(recipe: Path, out: Path, settings: FlowSettings) -> Trained:
    bar, due = None, 0.0

    def tell(step: int, steps: int, figures: Mapping[str, float]) -> None:
        nonlocal bar, due
        if step < steps and time.monotonic() < due:
            return
        due = time.monotonic() + PROGRESS_EVERY_S
        share, words = 100.0 * step / max(steps, 1), f"step {step} of {steps}"
        with server_may_be_away():
            if bar is None:
                bar = create_progress_artifact(share, key="progress-training", description=words)
            else:
                update_progress_artifact(bar, share, description=words)

    with closed():
        return train(recipe, out, device=settings.batch.device, progress=tell)
