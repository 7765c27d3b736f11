"""Cubes for the change head: what is true can be seen, what is seen twice is alike, and it can be learnt."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from medsiam.change.dense import load_dense
from medsiam.config import load_settings
from medsiam.errors import ConfigRefused
from medsiam.training.cubes import PatchSettings, head_of
from medsiam.training.lesions import LesionSettings
from medsiam.training.pairs import BatchSettings, draw_batch
from medsiam.training.patches import PatchStudio, patch_follow_up
from medsiam.training.public_manifests import change_rows
from medsiam.training.settings import TrainSettings
from medsiam.training.sources import Source
from medsiam.training.train import train
from tests.phantoms import box_grid
from tests.test_sources import nifti

SIZE = 24
# Numbers of the muse scheme: a ventricle, white matter about it.
VENTRICLE, WHITE = 51, 81
CLEAR = PatchSettings(
    flair=1.0,
    same_contrast=1.0,
    misplaced_mm=0.0,
    bent_mm=0.0,
    leftover_bias=0.0,
    acquisition=replace(PatchSettings().acquisition, noise=0.0, thick_slices=0.0, ghosts=0.0),
    lesions=LesionSettings(
        count=(3, 3),
        new=1.0,
        enlarged=0.0,
        shrunk=0.0,
        resolved=0.0,
        unchanged=0.0,
        contrast=(0.5, 0.8),
        bright=1.0,
    ),
)


def labels(size=64):
    """A ball of white matter around a ventricle."""
    steps = torch.arange(size) - (size - 1) / 2
    away = (steps[:, None, None] ** 2 + steps[:, None] ** 2 + steps**2).sqrt()
    return torch.where(away < 6.0, VENTRICLE, torch.where(away < 28.0, WHITE, 0)).to(torch.int16)


def source(patient=0, *, with_map=True):
    told = labels()
    image = torch.where(told == WHITE, 0.6, torch.where(told == VENTRICLE, 0.1, 0.0)).half()
    return Source(patient, image, told if with_map else None, 1.0, {}, "MR", "muse", with_map)


def cube(settings, seed=0):
    return patch_follow_up(head_of(source()), SIZE, settings, torch.Generator().manual_seed(seed))


def test_what_appears_is_brighter_in_the_current_image_and_nothing_else_changes():
    """Without noise, motion and other contrast the difference is the truth."""
    made = next(made for made in (cube(CLEAR, seed) for seed in range(20)) if made.appearing.sum() > 20.0)
    gap = made.current - made.prior
    assert made.resolving.max() == 0.0
    assert gap[made.appearing > 0.9].mean() > 0.3
    assert gap[made.appearing == 0.0].abs().mean() < 0.05


def test_a_bright_lesion_is_not_clipped():
    """The brightest voxel lies far above tissue, which is at 0."""
    assert max(float(cube(CLEAR, seed).current.max()) for seed in range(8)) > 0.5


def test_the_same_seed_makes_the_same_cube():
    """A resumed run sees what an undisturbed one would."""
    one, again, other = (cube(PatchSettings(), seed) for seed in (3, 3, 4))
    assert torch.equal(one.prior, again.prior) and torch.equal(one.appearing, again.appearing)
    assert not torch.equal(one.prior, other.prior)


def test_scans_without_a_label_map_make_cubes_too():
    """What is no brain at all counts as tissue all through; the image is shown as it is."""
    studio = PatchStudio([source(0), source(1, with_map=False)], PatchSettings(real=1.0), size=SIZE)
    assert studio.count == 2
    batch = draw_batch(studio, BatchSettings(people=0, follow_ups=2), torch.Generator().manual_seed(0))
    assert batch.prior.shape == batch.appearing.shape == (2, 1, SIZE, SIZE, SIZE)
    assert len(batch.views) == 0 and torch.isfinite(batch.current).all()


def test_one_person_is_refused():
    """Nobody can be told from nobody; none at all is another recipe."""
    BatchSettings(people=0)
    with pytest.raises(ValueError, match="people is 1"):
        BatchSettings(people=1)
    with pytest.raises(ValueError, match="must see something"):
        BatchSettings(people=0, follow_ups=0)


def test_the_patients_of_the_bench_are_never_learnt_from(tmp_path):
    """Even where their visits lie in the folder of single visits."""
    folder = tmp_path / "ms-longitudinal" / "single-visits"
    for patient in ("01", "04", "19", "20"):
        (folder / f"patient{patient}").mkdir(parents=True)
        (folder / f"patient{patient}" / "study1_FLAIR.nii.gz").touch()
    (tmp_path / "brains-t1").mkdir()
    (tmp_path / "brains-t1" / "participants.csv").write_text("MRID,Age,Sex\n")
    assert [(row["patient"], row["split"]) for row in change_rows(tmp_path)] == [
        ("ms-04", "train"),
        ("ms-20", "validation"),
    ]


RECIPE = {
    "name": "tiny-change",
    "threads": 1,
    "report_every_steps": 1,
    "tensorboard": False,
    "data": {"manifest": "scans.csv", "working": {"size_voxels": 48, "spacing_mm": 1.5}},
    "encoder": {
        "channels": [8, 16],
        "embedding_size": 8,
        "summary_cells": 1,
        "preparation": {"size_voxels": 16, "spacing_mm": 1.25},
    },
    "batch": {"people": 0, "follow_ups": 2},
    "loss": {"triplet": 0.0, "change": 1.0},
    "optimiser": {"steps": 3, "warm_up_steps": 1, "precision": "fp32"},
    "validation": {"every_steps": 3, "batches": 1},
}


def recipe(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes), encoding="utf-8")
    return path


def scans(folder):
    """Six people, each a label map that is its own scan."""
    with (folder / "scans.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "patient", "split", "label_map", "label_scheme"])
        for n in range(6):
            name = nifti(
                folder / f"{n}.nii.gz", labels().numpy(), box_grid((64, 64, 64), (1.0, 1.0, 1.0))
            ).name
            rows.writerow([name, f"p{n}", "validation" if n > 3 else "train", name, "muse"])


def test_a_recipe_without_people_trains_the_change_head_and_writes_it(tmp_path):
    """Three steps; what is written is what a comparison loads."""
    scans(tmp_path)
    done = train(recipe(tmp_path), tmp_path / "out", device="cpu")
    assert done.steps == 3 and done.weights.name == "change.safetensors"
    assert load_dense(done.weights).settings.channels == (8, 16)
    told = json.loads((tmp_path / "out" / "training.json").read_text())
    assert told["encoder"].startswith("tiny-change@") and np.isfinite(told["best_validation_loss"])


@pytest.mark.parametrize("changes", [{"loss": {"change": 1.0}}, {"erased_batches": 5}])
def test_what_only_people_can_teach_is_refused_without_them(tmp_path, changes):
    """The triplet loss stands in the defaults; the recipe must switch it off."""
    scans(tmp_path)
    with pytest.raises(ConfigRefused, match="needs people"):
        train(recipe(tmp_path, **changes), tmp_path / "out", device="cpu")


def test_the_shipped_recipe_is_one_of_follow_ups_alone():
    """Its keys are read, and its cubes are as large as the windows of its use."""
    from medsiam.change.dense import WINDOW_VOXELS
    from tests.test_training import CONFIGS

    settings = load_settings(CONFIGS / "train_change_3d.yaml", TrainSettings)
    assert settings.batch.people == 0 and settings.loss.change > 0
    assert settings.encoder.preparation.size_voxels == WINDOW_VOXELS
