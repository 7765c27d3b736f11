"""The MS patients of Lesjak et al. (Neuroinformatics 2016) with their published truth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsiam.errors import InputRefused
from medsiam.reading import read_volume
from medsiam.volume import Grid, Matrix, Volume, transform

# Where data lie when neither an argument nor the environment says so.
DEFAULT_DATA = Path("../shared/data")
# In patient 19 the published brain mask reaches past the brain by about this much.
MASK_EROSIONS = {"patient19": 3}


@dataclass(frozen=True, eq=False)
class MsPair:
    """Two FLAIR visits with the published registration and the experts' change mask.

    prior_from_current   4 x 4 LPS mm, from the two published affine transforms
    current_from_common  4 x 4 LPS mm, the common grid into the second visit
    change, brain        bool (K, J, I) on the common grid
    """

    name: str
    prior: Volume
    current: Volume
    prior_from_current: Matrix
    current_from_common: Matrix
    common: Grid
    change: NDArray[np.bool_]
    brain: NDArray[np.bool_]

    def brain_points_mm(self) -> Matrix:
        """Points (n, 3) of the brain in the current scan's world."""
        index = np.argwhere(self.brain)[::97]
        return transform(self.current_from_common, self.common.world(index))


def data_folder(data: Path | None) -> Path:
    """The folder of public data: as given, else MEDSIAM_DATA, else beside the checkout.

    Raises InputRefused where it is not there.
    """
    folder = data or Path(os.environ.get("MEDSIAM_DATA") or DEFAULT_DATA)
    if not folder.is_dir():
        raise InputRefused(f"there is no data folder {folder}; set MEDSIAM_DATA or give --data DIR")
    return folder


def ms_pairs(data: Path | None) -> Iterator[MsPair]:
    """Every patient with two visits and a change mask."""
    for folder in sorted((data_folder(data) / "ms-longitudinal").glob("patient*")):
        if (folder / "gt.nii.gz").exists() and (folder / "study2_FLAIR.nii.gz").exists():
            yield _pair(folder)


def _pair(folder: Path) -> MsPair:
    truth = read_volume(folder / "gt.nii.gz")
    brain = read_volume(folder / "brainmask.nii.gz").array > 0
    erosions = MASK_EROSIONS.get(folder.name, 0)
    if erosions:
        brain = ndimage.binary_erosion(brain, iterations=erosions)
    prior_from_common, current_from_common = (
        itk_affine(folder / f"study{visit}_FLAIR_to_common_space.txt") for visit in (1, 2)
    )
    return MsPair(
        name=folder.name,
        prior=read_volume(folder / "study1_FLAIR.nii.gz"),
        current=read_volume(folder / "study2_FLAIR.nii.gz"),
        prior_from_current=prior_from_common @ np.linalg.inv(current_from_common),
        current_from_common=current_from_common,
        common=truth.grid,
        change=truth.array > 0,
        brain=brain,
    )


def itk_affine(path: Path) -> Matrix:
    """The 4 x 4 LPS mm matrix of an ITK affine text file: y = M (x - c) + t + c."""
    lines = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines() if ":" in line)
    numbers = np.array(lines["Parameters"].split(), dtype=np.float64)
    centre = np.array(lines["FixedParameters"].split(), dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:] + centre - matrix[:3, :3] @ centre
    return matrix
