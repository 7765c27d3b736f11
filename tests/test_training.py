"""Training can be stopped at any moment and goes on as if it had not been."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from medsiam.config import load_settings
from medsiam.encoding.encoder import EncoderSettings, TwinEncoder
from medsiam.encoding.preparation import PreparationSettings
from medsiam.encoding.weights import load_encoder, save_encoder
from medsiam.errors import ConfigRefused, TrainingRefused
from medsiam.pairing.brain_net import load_brain_net
from medsiam.reading import read_volume
from medsiam.training.chance import Random
from medsiam.training.learner import BatchLoss
from medsiam.training.loop import batch_loss, learning_rate, new_state, one_step
from medsiam.training.losses import LossSettings
from medsiam.training.pairs import Batch
from medsiam.training.settings import OptimiserSettings, TrainSettings
from medsiam.training.train import train
from tests.phantoms import small_head
from tests.test_sources import nifti

RECIPE = {
    "name": "tiny",
    "threads": 1,
    "report_every_steps": 1,
    "checkpoint_every_steps": 2,
    "tensorboard": False,
    "data": {"manifest": "scans.csv", "labels": ["age"], "working": {"size_voxels": 24, "spacing_mm": 9.0}},
    "encoder": {
        "channels": [8, 16],
        "embedding_size": 8,
        "shares": [0.5, 0.5],
        "preparation": {"size_voxels": 16, "spacing_mm": 12.0},
    },
    "batch": {"people": 3, "views": 2, "protocols": 2, "follow_ups": 1},
    "loss": {"triplet": 1.0, "neighbour": 0.5, "regression": 0.5, "change": 0.5},
    "optimiser": {"steps": 5, "warm_up_steps": 1, "precision": "fp32"},
    "validation": {"every_steps": 2, "batches": 1, "patience": 10},
}
TINY = TrainSettings(
    encoder=EncoderSettings(
        channels=(8, 16), embedding_size=8, preparation=PreparationSettings(size_voxels=16, spacing_mm=12.0)
    ),
    loss=LossSettings(change=0.5),
    optimiser=OptimiserSettings(steps=10, warm_up_steps=1, precision="fp32"),
)
CONFIGS = Path(__file__).parents[1] / "configs"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Seven heads as NIfTI with a manifest: five to learn from, two to check with."""
    folder = tmp_path_factory.mktemp("scans")
    rows = []
    for n in range(7):
        head = small_head(noise=2.0, seed=n).volume
        nifti(folder / f"{n}.nii.gz", head.array, head.grid)
        split = "train" if n < 5 else "validation"
        rows.append({"path": f"{n}.nii.gz", "patient": f"p{n}", "split": split, "age": 20 + 10 * n})
    write_table(folder / "scans.csv", rows)
    return folder


def write_table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def recipe(folder, name="recipe.yaml", **changes):
    """A settings file beside the manifest; a section in `changes` replaces some of its keys."""
    told = {k: dict(v) if isinstance(v, dict) else v for k, v in RECIPE.items()}
    for key, value in changes.items():
        told[key] = told[key] | value if isinstance(value, dict) else value
    (folder / name).write_text(yaml.safe_dump(told), encoding="utf-8")
    return folder / name


def drawn_batch(seed=0, people=3):
    """A batch of noise: good for laws of the loop."""
    random = Random().manual_seed(seed)
    size = (1, 16, 16, 16)
    views = torch.rand(2 * people, *size, generator=random)
    pair = [torch.rand(2, *size, generator=random) for _ in range(2)]
    truth = [(torch.rand(2, *size, generator=random) > 0.9).float() for _ in range(2)]
    none = torch.zeros(2 * people, 0)
    return Batch(
        views, torch.arange(people).repeat_interleave(2), none, none, views[:, 0] > 2.0, *pair, *truth
    )


def test_a_seed_of_the_command_stands_for_the_settings_own(scans, tmp_path):
    """The same seed from either place gives the same weights; another seed gives others."""
    own = train(recipe(scans, seed=7), tmp_path / "own", device="cpu")
    given = train(recipe(scans, seed=3), tmp_path / "given", device="cpu", seed=7)
    other = train(recipe(scans, seed=7), tmp_path / "other", device="cpu", seed=8)
    assert own.encoder_id == given.encoder_id != other.encoder_id


def test_a_training_leaves_weights_curves_and_a_summary(scans, tmp_path):
    """The weights load, the curves have a row per report, and the summary counts what was used."""
    trained = train(recipe(scans), tmp_path / "run", device="cpu")
    features = load_encoder(trained.weights)(read_volume(scans / "0.nii.gz"))
    assert np.linalg.norm(features.embedding) == pytest.approx(1.0, abs=1e-5)
    summary = json.loads((tmp_path / "run" / "training.json").read_text())
    assert summary["patients"] == {"train": 5, "validation": 2} and summary["skipped"]["train"] == []
    rows = list(csv.DictReader((tmp_path / "run" / "curves.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert float(rows[1]["validation_loss"]) > 0.0


def test_killed_and_resumed_gives_the_same_bits(scans, tmp_path):
    """SIGKILL in the middle: what comes out is what an undisturbed run gives."""
    config = recipe(scans)
    whole = train(config, tmp_path / "whole", device="cpu")
    code = (
        "import os, signal, sys\n"
        "from medsiam.training.train import train\n"
        "stop = lambda step, steps, figures: step == 3 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(sys.argv[1], sys.argv[2], device='cpu', progress=stop)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(config), str(tmp_path / "cut")], check=False)
    assert killed.returncode == -signal.SIGKILL
    steps = []
    resumed = train(config, tmp_path / "cut", device="cpu", progress=lambda step, *_: steps.append(step))
    assert steps == [3, 4, 5]
    first, second = load_file(whole.weights), load_file(resumed.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.encoder_id == resumed.encoder_id


def test_training_stops_early_and_keeps_the_best(scans, tmp_path):
    """With a rate that ruins the network, the first validation stays the best."""
    config = recipe(
        scans,
        "early.yaml",
        optimiser={"steps": 30, "learning_rate": 3.0, "average": 0.0},
        validation={"every_steps": 1, "patience": 3},
    )
    trained = train(config, tmp_path / "run", device="cpu")
    assert trained.steps < 30 and trained.best_step <= trained.steps - 3


def test_a_patient_on_both_sides_of_the_split_is_refused(scans, tmp_path):
    """Such a validation would only show that the network knows its patients."""
    rows = list(csv.DictReader((scans / "scans.csv").open()))
    rows[6]["patient"] = rows[0]["patient"]
    write_table(scans / "leak.csv", rows)
    with pytest.raises(TrainingRefused, match="split"):
        train(recipe(scans, "leak.yaml", data={"manifest": "leak.csv"}), tmp_path / "run", device="cpu")


def test_an_unreadable_scan_is_skipped_and_counted_or_refused(scans, tmp_path):
    """One bad file of many must not stop a night's work, unless it is asked to."""
    (scans / "broken.nii.gz").write_bytes(b"not a scan")
    rows = list(csv.DictReader((scans / "scans.csv").open()))
    write_table(scans / "some.csv", [*rows, rows[0] | {"path": "broken.nii.gz", "patient": "p9"}])
    config = recipe(scans, "some.yaml", data={"manifest": "some.csv"}, optimiser={"steps": 1})
    assert train(config, tmp_path / "run", device="cpu").skipped == 1
    with pytest.raises(Exception, match="row"):
        train(config, tmp_path / "strict", device="cpu", strict=True)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("train_[mr]*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_are_settings(path):
    """Every key exists and is in range."""
    assert load_settings(path, TrainSettings).name in path.stem.replace("_", "-")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"labels": ["weight"]}}, "weight"),
        ({"loss": dict.fromkeys(("triplet", "neighbour", "regression", "change"), 0.0)}, "every weight"),
        ({"batch": {"follow_ups": 0}}, "follow_ups"),
        ({"optimizer": {"steps": 3}}, "did you mean optimiser"),
    ],
)
def test_settings_that_cannot_hold_are_refused_in_one_line(scans, tmp_path, changes, words):
    """Each says what is wrong and what would do."""
    told = {k: v for k, v in changes.items() if k in RECIPE}
    config = recipe(scans, "bad.yaml", **told)
    if "optimizer" in changes:
        config.write_text(config.read_text() + "optimizer: {steps: 3}\n")
    with pytest.raises((ConfigRefused, TrainingRefused), match=words) as refusal:
        train(config, tmp_path / "run", device="cpu")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"encoder": {"channels": [8, 24]}}, "checkpoint"), ({"batch": {"people": 4}}, "other settings")],
)
def test_a_checkpoint_of_another_run_is_refused(scans, tmp_path, changes, words):
    """Going on from it would mix two trainings without a word."""
    one = {"steps": 2}
    train(recipe(scans, "one.yaml", optimiser=one), tmp_path / "run", device="cpu")
    with pytest.raises(TrainingRefused, match=words):
        train(recipe(scans, "two.yaml", optimiser=one, **changes), tmp_path / "run", device="cpu")


def test_a_loss_that_is_not_finite_stops_before_the_weights_move():
    """The last good state is still there; a finite batch goes through."""
    state = new_state(TINY, CPU)
    loss = BatchLoss(TINY.loss)
    before = {name: value.clone() for name, value in state.learner.state_dict().items()}
    bad = replace(drawn_batch(), views=torch.full_like(drawn_batch().views, math.nan))
    with pytest.raises(TrainingRefused, match="no longer finite at step 0"):
        one_step(state, state.learner, loss, [bad], TINY, CPU)
    assert all(torch.equal(value, before[name]) for name, value in state.learner.state_dict().items())
    one_step(state, state.learner, loss, [drawn_batch()], TINY, CPU)
    assert state.step == 1


def test_gradients_of_two_like_batches_add_up_to_that_of_one():
    """Accumulation means: the mean, not the sum."""
    moved = []
    for parts in ([drawn_batch()], [drawn_batch(), drawn_batch()]):
        state = new_state(TINY, CPU)
        one_step(state, state.learner, BatchLoss(TINY.loss), parts, TINY, CPU)
        moved.append(state.learner.state_dict())
    assert all(torch.allclose(moved[0][name], moved[1][name], atol=1e-6) for name in moved[0])


def test_precision_and_memory_format_change_speed_not_the_loss():
    """bfloat16 and channels-last are only ways to compute."""
    losses = []
    for precision, last in (("fp32", False), ("fp32", True), ("bf16", True)):
        told = replace(TINY, optimiser=replace(TINY.optimiser, precision=precision, channels_last=last))
        state = new_state(told, CPU)
        losses.append(float(batch_loss(state.learner, BatchLoss(told.loss), drawn_batch(), told, CPU)[0]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=3e-2)


def test_the_learning_rate_rises_then_falls():
    """Linear, then half a cosine, to a hundredth."""
    told = OptimiserSettings(steps=100, warm_up_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, told) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(rates[9], abs=0.03)
    assert rates[100] == pytest.approx(0.01)


def test_training_starts_from_given_weights_of_the_same_network(scans, tmp_path):
    """One step of a rate near nothing leaves them as they were; another network is refused."""
    one = {"steps": 1, "learning_rate": 1e-8, "average": 0.0}
    first = train(recipe(scans, "first.yaml", optimiser={"steps": 2}), tmp_path / "first", device="cpu")
    config = recipe(scans, "more.yaml", optimiser=one, start_from=str(first.weights))
    second = train(config, tmp_path / "second", device="cpu")
    before, after = load_file(first.weights), load_file(second.weights)
    assert all(torch.allclose(before[name], after[name], atol=2e-3) for name in before)
    other = recipe(scans, "other.yaml", encoder={"channels": [8, 24]}, start_from=str(first.weights))
    with pytest.raises(TrainingRefused, match=r"encoder\.channels"):
        train(other, tmp_path / "third", device="cpu")
    parts = recipe(
        scans, "parts.yaml", encoder={"shares": [0.4, 0.3, 0.2, 0.1]}, start_from=str(first.weights)
    )
    with pytest.raises(TrainingRefused, match="2 parts, the settings say 4"):
        train(parts, tmp_path / "fourth", device="cpu")


TISSUES = {"encoder": {"tissues": True, "likeness": 1, "trunk_voxels": 16}, "loss": {"tissue": 1.0}}
NO_OTHERS = {"triplet": 0.0, "neighbour": 0.0, "regression": 0.0, "change": 0.0}
FEW_STEPS = {"steps": 2, "learning_rate": 1e-3, "average": 0.0}


@pytest.fixture(scope="module")
def many_scans(scans):
    """The same heads under more names: a fit to labels needs a dozen."""
    rows = []
    for n in range(14):
        shutil.copy(scans / f"{n % 7}.nii.gz", scans / f"again{n}.nii.gz")
        split = "train" if n < 12 else "validation"
        rows.append({"path": f"again{n}.nii.gz", "patient": f"q{n}", "split": split, "age": n})
    write_table(scans / "many.csv", rows)
    return {"data": {"manifest": "many.csv"}}


def test_tissues_alone_leave_who_it_is_as_it_was(scans, many_scans, tmp_path):
    """They begin as the brain finder tells them; who is alike is fitted to ages."""
    first = train(recipe(scans, "plain.yaml", optimiser={"steps": 2}), tmp_path / "plain", device="cpu")
    told = TISSUES | many_scans | {"loss": TISSUES["loss"] | NO_OTHERS, "batch": {"follow_ups": 0}}
    config = recipe(scans, "tissues.yaml", optimiser=FEW_STEPS, start_from=str(first.weights), **told)
    second = train(config, tmp_path / "tissues", device="cpu")
    before, after = load_file(first.weights), load_file(second.weights)
    assert torch.equal(before["project.weight"][:4], after["project.weight"])
    assert all(torch.equal(before[name], after[name]) for name in before if "project" not in name)
    known = load_brain_net().state_dict()
    start = {name: value for name, value in known.items() if not name.startswith("score")}
    assert all(
        torch.allclose(after[f"reader.{name}"].float(), value, atol=0.01) for name, value in start.items()
    )
    about = json.loads((tmp_path / "tissues" / "training.json").read_text())
    assert about["patients"] == {"train": 12, "validation": 2}
    assert float(after["alike.weight"].abs().max()) > 0.0
    back = recipe(scans, "back.yaml", optimiser={"steps": 1}, start_from=str(second.weights))
    with pytest.raises(TrainingRefused, match=r"encoder\.tissues True, the settings say False.*start anew"):
        train(back, tmp_path / "back", device="cpu")


def test_a_step_on_tissues_alone_moves_what_tells_them_and_nothing_else():
    """Not by the optimiser's decay either."""
    settings = replace(
        TINY,
        encoder=replace(TINY.encoder, shares=(0.5, 0.5), tissues=True, likeness=1),
        loss=LossSettings(triplet=0.0, tissue=1.0),
    )
    state = new_state(settings, CPU)
    before = {name: value.clone() for name, value in state.learner.state_dict().items()}
    batch = drawn_batch()
    shares = torch.rand(len(batch.views), 8, 16, 16, 16, generator=Random().manual_seed(1)).softmax(1)
    batch = replace(batch, tissues=shares, prior=batch.prior[:0], current=batch.current[:0])
    one_step(state, state.learner, BatchLoss(settings.loss), [batch], settings, CPU)
    moved = {
        name for name, value in state.learner.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved and all(name.startswith("encoder.reader.") for name in moved)
    assert "encoder.reader.score.weight" in moved


def test_a_network_with_other_scores_goes_on_all_the_same(tmp_path):
    """They are fitted after the last step; tissues and twins are taken over."""
    told = replace(TINY.encoder, shares=(0.5, 0.5), tissues=True, likeness=2)
    known = TwinEncoder(told)
    save_encoder(known, tmp_path / "two.safetensors", metadata={})
    one = replace(TINY, encoder=replace(told, likeness=1), start_from=tmp_path / "two.safetensors")
    found = new_state(one, CPU).learner.encoder
    assert found.alike.weight.shape[0] == 1
    for name in ("reader.score.weight", "stem.conv.weight", "project.weight"):
        assert torch.equal(found.state_dict()[name], known.state_dict()[name])


def test_tissues_beside_the_rest_teach_both(scans, many_scans, tmp_path):
    """Where who it is is taught too, the twins move."""
    told = TISSUES | many_scans | {"loss": TISSUES["loss"] | NO_OTHERS | {"triplet": 1.0}}
    drawn = [
        load_file(
            train(
                recipe(scans, f"{steps}.yaml", optimiser=FEW_STEPS | {"steps": steps}, **told),
                tmp_path / f"{steps}",
                device="cpu",
            ).weights
        )
        for steps in (1, 3)
    ]
    for name in ("stem.conv.weight", "project.weight"):
        assert not torch.equal(drawn[0][name], drawn[1][name])


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"loss": {"tissue": 1.0}}, ConfigRefused, r"loss\.tissue needs encoder\.tissues"),
        ({"encoder": {"tissues": True, "likeness": 1}}, ConfigRefused, r"set loss\.neighbour and loss\.regr"),
        (
            {"encoder": {"tissues": True, "likeness": 2}, "loss": {"neighbour": 0.0, "regression": 0.0}},
            ConfigRefused,
            r"encoder\.likeness is 2, data\.labels and data\.measured name 1",
        ),
        (
            {"encoder": {"tissues": True, "likeness": 1}, "loss": {"neighbour": 0.0, "regression": 0.0}},
            TrainingRefused,
            "5 different values of 'age' are known",
        ),
    ],
)
def test_tissues_that_cannot_be_taught_are_refused_before_any_step(scans, tmp_path, changes, error, reason):
    """With what must be otherwise."""
    with pytest.raises(error, match=reason):
        train(recipe(scans, "refused.yaml", **changes), tmp_path / "refused", device="cpu")


def test_labels_that_are_known_are_not_needed_by_a_loss(scans, tmp_path):
    """A manifest may name more than is taught."""
    told = {"neighbour": 0.0, "regression": 0.0}
    trained = train(
        recipe(scans, "idle.yaml", optimiser={"steps": 1}, loss=told), tmp_path / "idle", device="cpu"
    )
    assert trained.steps == 1


@pytest.mark.slow
def test_two_processes_train_one_network(scans, tmp_path):
    """torchrun: gradients are averaged, one process writes."""
    config = recipe(scans, "two_processes.yaml", optimiser={"steps": 2})
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "medsiam",
    ]
    done = subprocess.run(
        [*command, "train", str(config), "--out", str(tmp_path / "run"), "--device", "cpu"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "training.json").read_text())["processes"] == 2
