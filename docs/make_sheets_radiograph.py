"""Draws docs/images/synthesis-radiograph.png: views and follow-ups made of two chest radiographs.

    .venv/bin/python docs/make_sheets_radiograph.py

The radiographs are in $MEDSIAM_DATA/cxr-longitudinal (Hannover Medical School, COVID-19
Image Repository, CC BY 3.0, changed as the sheet says); the licence allows to publish them.
"""

import os
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from medsiam.encoding.preparation import PreparationSettings, prepare
from medsiam.errors import InputRefused
from medsiam.reading import read_volume
from medsiam.training import radiograph_synthesis as recipe
from medsiam.training.chance import Random
from medsiam.training.radiograph_change import (
    CHANGES,
    KINDS,
    DiseaseSettings,
    absorbed,
    draw_opacities,
    lung_fields,
    thickness,
    truth,
)
from medsiam.training.radiograph_geometry import PersonSettings, PoseSettings, held, person_warp, pose, warped
from medsiam.training.radiograph_nuisance import DeviceSettings, ExposureSettings, acquired, with_devices

ROOT = Path(__file__).parents[1]
SHEET = ROOT / "docs" / "images" / "synthesis-radiograph.png"
CREDIT = (
    "Made of radiographs of the COVID-19 Image Repository (Winther et al. 2020, Hannover Medical School, "
    "doi:10.6084/m9.figshare.12275009), CC BY 3.0; deformed, reprocessed, devices and opacities added."
)
# One taken standing, one in bed.
UPRIGHT, BEDSIDE = "441c9cdd", "4fcafe41"
COLUMNS = 6


def read_radiograph(name: str) -> torch.Tensor:
    """The radiograph (256, 256) as the encoder sees it. Raises InputRefused where it is not there."""
    data = Path(os.environ.get("MEDSIAM_DATA") or ROOT.parent / "shared" / "data")
    path = data / "cxr-longitudinal" / "png" / f"{name}.png"
    if not path.is_file():
        raise InputRefused(f"there is no radiograph {path}; set MEDSIAM_DATA")
    return prepare(read_volume(path), PreparationSettings(size_voxels=256)).values[0]


def moved_rows(axes, image: torch.Tensor) -> None:
    """Other persons, then the same one lying otherwise."""
    for n in range(1, COLUMNS):
        person = person_warp(image.shape, PersonSettings(mirrored=float(n == COLUMNS - 1)), seeded(n))
        show(
            axes[0, n],
            warped(image, held(image, person)[0]),
            "another person",
        )
        show(
            axes[1, n],
            warped(image, held(image, pose(image.shape, PoseSettings(), seeded(n)))[0]),
            "another pose",
        )
    axes[0, COLUMNS - 1].set_title("another person, mirrored", fontsize=7)


def taken_rows(axes, image: torch.Tensor) -> None:
    """The same pose under other systems, then under devices; and where its lungs are thought to be."""
    show(axes[1, 0], image, "where lungs are thought to be")
    overlay(axes[1, 0], 0.4 * lung_fields(image), (0.1, 0.7, 0.3))
    for n in range(1, COLUMNS):
        show(axes[0, n], acquired(image, ExposureSettings(), seeded(n)), "another exposure")
        devices = DeviceSettings(present=1.0, plates=float(n == 1))
        show(axes[1, n], with_devices(image, devices, seeded(n + 1)), "devices")


def view_row(axes, image: torch.Tensor, random: Random) -> None:
    """All of it at once: these must be told to be one person."""
    for axis in axes[1:]:
        show(axis, recipe.make_view(image, None, recipe.RadiographSettings(), random), "view of this patient")


def disease_rows(axes, image: torch.Tensor) -> None:
    """Each kind of opacity, new and enlarged, before anything else is done; truth in red."""
    lungs = lung_fields(image)
    for n, (kind, change) in enumerate([(kind, change) for kind in KINDS for change in ("new", "enlarged")]):
        # Two pictures each, side by side over two rows.
        row, column = divmod(n, 3)
        pair(axes[row, 2 * column : 2 * column + 2], image, lungs, kind, change)


def pair(axes, image: torch.Tensor, lungs: torch.Tensor, kind: str, change: str) -> None:
    """Prior, and current with the truth."""
    chosen = {name: float(name == kind) for name in KINDS} | {name: float(name == change) for name in CHANGES}
    disease = DiseaseSettings(most=1, weakest=0.6, strongest=1.0, **chosen)
    found = draw_opacities(lungs, disease, seeded(4))
    prior, current = (thickness(found, which, image.shape) for which in ("prior", "current"))
    show(axes[0], absorbed(image, prior), f"{kind}, {change}: prior")
    show(axes[1], absorbed(image, current), "current, truth")
    overlay(axes[1], 0.45 * truth(image, prior, current)[0], (1.0, 0.1, 0.1))


def follow_up_row(axes, image: torch.Tensor, random: Random) -> None:
    """Two follow-ups of the whole recipe: prior, current, truth."""
    for n in (0, 3):
        made = recipe.make_follow_up(image, recipe.RadiographSettings(), random)
        show(axes[n], made.prior, "follow-up: prior")
        show(axes[n + 1], made.current, "current")
        show(axes[n + 2], 0.6 * made.current, "truth: red came, blue went")
        overlay(axes[n + 2], 0.7 * made.appearing, (1.0, 0.1, 0.1))
        overlay(axes[n + 2], 0.7 * made.resolving, (0.1, 0.5, 1.0))


def seeded(number: int) -> Random:
    """A generator of its own, so that each picture can be made alone."""
    return torch.Generator().manual_seed(number)


def show(axis, image: torch.Tensor, title: str) -> None:
    """An image 0..1."""
    axis.imshow(image.numpy(), cmap="gray", vmin=0.0, vmax=1.0)
    axis.set_title(title, fontsize=7)


def overlay(axis, share: torch.Tensor, colour: tuple[float, float, float]) -> None:
    """The share of a pixel in one colour."""
    axis.imshow(np.dstack([np.broadcast_to(colour, (*share.shape, 3)), share.numpy()]))


def main() -> None:
    """The sheet."""
    upright, bedside = read_radiograph(UPRIGHT), read_radiograph(BEDSIDE)
    figure, axes = plt.subplots(9, COLUMNS, figsize=(9.6, 15.2), layout="constrained")
    for row in (0, 1, 2, 3, 4):
        show(axes[row, 0], upright if row < 4 else bedside, "the radiograph itself")
    moved_rows(axes[0:2], upright)
    taken_rows(axes[2:4], upright)
    view_row(axes[4], bedside, seeded(1))
    disease_rows(axes[5:7], upright)
    follow_up_row(axes[7], upright, seeded(11))
    follow_up_row(axes[8], bedside, seeded(12))
    for axis in axes.flat:
        axis.axis("off")
    figure.supxlabel(CREDIT, fontsize=6)
    SHEET.parent.mkdir(exist_ok=True)
    figure.savefig(SHEET, dpi=100)


if __name__ == "__main__":
    main()
