"""Curves are continued by a resumed run, and never torn."""

import csv

import pytest

from medsiam.training.curves import Curves


def rows(folder):
    with (folder / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_after_the_checkpoint_are_made_again(tmp_path):
    """A killed run may have told more than its checkpoint holds."""
    first = Curves(tmp_path, from_step=0, tensorboard=False)
    for step in (1, 2, 3):
        first.add(step, {"loss": 1.0 / step})
    resumed = Curves(tmp_path, from_step=2, tensorboard=False)
    resumed.add(3, {"loss": 9.0, "validation_loss": 0.5})
    assert [row["loss"] for row in rows(tmp_path)] == ["1", "0.5", "9"]
    assert [row["validation_loss"] for row in rows(tmp_path)] == ["", "", "0.5"]


def test_tensorboard_gets_the_same(tmp_path):
    """Where it is installed."""
    pytest.importorskip("tensorboard")
    curves = Curves(tmp_path, from_step=0, tensorboard=True)
    curves.add(1, {"loss": 1.0})
    curves.close()
    assert list((tmp_path / "tensorboard").glob("events.out.*"))
