"""The curves of a run: one row per report in a CSV file, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Curves:
    """Rows of step and figures, in OUT/curves.csv; a resumed run continues them."""

    def __init__(self, folder: Path, *, from_step: int, tensorboard: bool) -> None:
        self._path = folder / "curves.csv"
        self._rows = [row for row in _rows(self._path) if int(row["step"]) <= from_step]
        self._board = _board(folder / "tensorboard", from_step) if tensorboard else None

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """One row; the file is replaced whole, so that no reader meets half a row."""
        self._rows.append({"step": str(step), **{name: f"{value:.6g}" for name, value in figures.items()}})
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        fresh = self._path.with_suffix(".csv.new")
        with fresh.open("w", newline="", encoding="ascii") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(fresh, self._path)
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="ascii") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def _board(folder: Path, from_step: int) -> Any:
    """A writer, None where TensorBoard is not installed: the CSV file holds the same."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # an extra: `pip install medsiam[train]`
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=from_step + 1)
