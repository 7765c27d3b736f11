"""What a hostile case is, and what shows whether the answer to it is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsiam.errors import MedsiamError
from medsiam.reading import read_volume
from medsiam.volume import Grid, Volume
from tests.dicom_maker import GRADIENT, KEY, encoded, grid_of, pixels_of

GRID = grid_of("oblique", shape=(5, 8, 10))
# What the stored integers of GRID lie above the linear function of the place.
SHIFT = pixels_of(GRID, floor=10)[1]

# A voxel may lie no further than this from its true place.
MOST_MISPLACED_MM = 0.15

VOLUME, EITHER = "volume", "volume or refusal"


@dataclass(frozen=True)
class Case:
    """One hostile scan and what must come of it.

    make     writes it into an empty folder and returns the path to read
    outcome  VOLUME, the code of the refusal, or EITHER where both would be true
    words    a pattern that the refusal's message must hold
    grid     where the voxels truly lie
    shift    value of a voxel minus the linear function of its true place; None where the
             voxels were damaged under no checksum, so that their places alone can be judged
    """

    make: Callable[[Path], Path]
    outcome: str
    words: str = ""
    grid: Grid = GRID
    shift: float | None = SHIFT


def judge(case: Case, folder: Path) -> None:
    """Makes and reads a case, and raises AssertionError where the answer is another than expected."""
    path = case.make(folder)
    before = files_below(folder)
    try:
        volume = read_volume(path, key=KEY)
    except MedsiamError as refusal:
        assert case.outcome in (refusal.code, EITHER), f"refused: {refusal.code}: {refusal}"
        check_refusal(refusal, case, folder)
    else:
        assert case.outcome in (VOLUME, EITHER), f"a volume of {volume.array.shape}"
        check_volume(volume, case)
    assert files_below(folder) == before, "reading wrote a file"


def check_refusal(refusal: MedsiamError, case: Case, folder: Path) -> None:
    """One clear line, with a remedy, and without the path or the patient."""
    message = str(refusal)
    assert re.search(case.words, message), message
    assert "; " in message and "\n" not in message and message.isprintable(), message
    assert not any(word in message for word in (str(folder), "Phantom", "4711")), message


def check_volume(volume: Volume, case: Case) -> None:
    """Every voxel lies where its value says, and nothing lies outside of the true grid."""
    assert np.isfinite(volume.array).all()
    if case.shift is not None:
        inside = volume.array > volume.array.min()  # a tilted stack has empty corners
        off = (volume.array - case.shift - encoded(volume.grid))[inside]
        assert np.abs(off).max() / np.linalg.norm(GRADIENT) < MOST_MISPLACED_MM
    if case.outcome == VOLUME:
        apart = [
            np.linalg.norm(volume.grid.corners_mm() - corner, axis=1).min()
            for corner in case.grid.corners_mm()
        ]
        assert max(apart) < MOST_MISPLACED_MM, "a corner is not where it was made"


def files_below(folder: Path) -> dict[Path, int]:
    """Every file of a folder with its size, links told apart from files."""
    return {path: path.lstat().st_size for path in sorted(folder.rglob("*"))}
