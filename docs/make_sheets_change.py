"""Draws docs/images/synthesis-change.png: lesions at both visits, and atrophy, with their truth.

    .venv/bin/python docs/make_sheets_change.py

The head is made from a label map (SynthSeg, Apache-2.0) in $MEDSIAM_DATA/head-label-maps;
no scanner image is used, and the slices lie above the face.
"""

import os
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from medsiam.errors import InputRefused
from medsiam.training.brain_synthesis import CLASS_OF, CONTRASTS, NAMES, WHITE, read_head_map
from medsiam.training.deformation import WarpSettings, atrophy, jacobian, person_warp, warped
from medsiam.training.lesions import KINDS, LesionSettings, draw_lesions, painted, truth

ROOT = Path(__file__).parents[1]
SHEET = ROOT / "docs" / "images" / "synthesis-change.png"
MAP = "training_seg_01.nii.gz"
STEP_MM = 1.0
SPACING_MM = (STEP_MM,) * 3

# Air about the brain's box, and how far above the brain's lowest point slices begin, mm.
MARGIN, ABOVE_FACE = 14, 75

# Lesions are drawn within so many mm of the ventricles' widest slice, so that one
# slice shows several.
SLAB_MM = 7

# Large enough to be seen on a page; the real ones are mostly smaller.
SEEN = LesionSettings(count=(5, 5), change_ml=(0.3, 2.0), contrast=(0.25, 0.5), mass=0.0, hollow=0.3)
NOISE = 0.02
GROWTH = 0.3


class Head(NamedTuple):
    """A head in FLAIR's contrast, and the tissues that matter here, (K, J, I) each."""

    signal: torch.Tensor
    white: torch.Tensor
    ventricles: torch.Tensor
    brain: torch.Tensor


def read_head() -> Head:
    """The upper head of the label map, at 1 mm. Raises InputRefused where it is not there."""
    data = Path(os.environ.get("MEDSIAM_DATA") or ROOT.parent / "shared" / "data")
    path = data / "head-label-maps" / MAP
    if not path.is_file():
        raise InputRefused(f"there is no label map {path}; set MEDSIAM_DATA")
    tissue = read_head_map(path).tissue
    brain = CLASS_OF[tissue.long()] > 0
    held = brain.nonzero()
    # Above eyes and nose, and no more of air than a margin.
    low, high = (held.min(0).values - MARGIN).clamp_min(0), held.max(0).values + MARGIN + 1
    low[0] = int(held[:, 0].min()) + ABOVE_FACE
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    tissue, brain = tissue[box], brain[box]
    signal = torch.tensor(CONTRASTS["flair"]).float()[tissue.long()] / 100.0
    ventricle = (tissue == NAMES.index("ventricle")).float()
    return Head(signal, tissue == WHITE, ventricle, brain.float())


def scanned(signal: torch.Tensor, seed: int) -> np.ndarray:
    """As an image shows it: a little noise."""
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(seed))
    return (signal + NOISE * noise * (signal > 0)).clamp_min(0.0).numpy()


def near(head: Head) -> torch.Tensor:
    """White matter in a slab about the widest slice of the ventricles."""
    k = int(head.ventricles.sum((1, 2)).argmax())
    slab = torch.zeros_like(head.white)
    slab[k - SLAB_MM : k + SLAB_MM + 1] = head.white[k - SLAB_MM : k + SLAB_MM + 1]
    return slab


def lesion_row(axes, head: Head, kind: str, seed: int) -> None:
    """Prior, current, difference, truth: at the slice with the most lesion."""
    made = LesionSettings(**{**SEEN.__dict__, **{name: float(name == kind) for name in KINDS}})
    shape = tuple(head.signal.shape)
    random = torch.Generator().manual_seed(seed)
    lesions = draw_lesions(near(head), shape, SPACING_MM, made, random)
    cover = torch.zeros(shape)
    for lesion in lesions:
        cover[lesion.box] += lesion.larger_share
    k = int(cover.sum((1, 2)).argmax())
    prior, current = (
        scanned(painted(head.signal, lesions, which), seed + n)[k]
        for n, which in enumerate(("prior", "current"))
    )
    appearing, resolving = (each[k].numpy() for each in truth(lesions, shape))
    before = sum(lesion.prior_ml for lesion in lesions)
    after = sum(lesion.current_ml for lesion in lesions)
    show(axes[0], prior, f"{kind}\n{before:.2f} ml in 5 lesions")
    show(axes[1], current, f"{after:.2f} ml")
    axes[2].imshow(current - prior, cmap="RdBu_r", vmin=-0.5, vmax=0.5)
    show(axes[3], current, "")
    overlay(axes[3], appearing, (1.0, 0.1, 0.1))
    overlay(axes[3], resolving, (0.1, 0.5, 1.0))


def atrophy_row(axes, head: Head) -> None:
    """Prior, current with larger ventricles, difference, Jacobian."""
    random = torch.Generator().manual_seed(3)
    change = atrophy(head.ventricles, head.brain, SPACING_MM, GROWTH, random)
    current = warped(head.signal, change.displacement, SPACING_MM)
    k = int(head.ventricles.sum((1, 2)).argmax())
    prior, current = scanned(head.signal, 1)[k], scanned(current, 2)[k]
    ml = float(head.ventricles.sum()) * STEP_MM**3 / 1000.0
    show(axes[0], prior, f"atrophy\nventricles {ml:.1f} ml")
    show(axes[1], current, f"{ml * (1 + change.growth):.1f} ml ({change.growth:+.0%})")
    axes[2].imshow(current - prior, cmap="RdBu_r", vmin=-0.5, vmax=0.5)
    # Where the output shows a place larger the determinant is below 1: red is growth.
    size = -torch.log2(jacobian(change.displacement, SPACING_MM)[k]).numpy()
    axes[3].imshow(size, cmap="RdBu_r", vmin=-0.8, vmax=0.8)
    axes[3].set_title("red grows, blue gives way", fontsize=8)


def person_row(axes, head: Head) -> None:
    """One head, and three others made of it."""
    k = int(head.ventricles.sum((1, 2)).argmax())
    show(axes[0], scanned(head.signal, 1)[k], "other people\nthe head itself")
    for seed, axis in enumerate(axes[1:]):
        random = torch.Generator().manual_seed(seed)
        field = person_warp(tuple(head.signal.shape), SPACING_MM, WarpSettings(), random)
        show(axis, scanned(warped(head.signal, field, SPACING_MM), seed)[k], f"seed {seed}")


def show(axis, image: np.ndarray, title: str) -> None:
    """A slice as radiology shows it: front up, left on the right."""
    axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0)
    axis.set_title(title, fontsize=8)


def overlay(axis, share: np.ndarray, colour: tuple[float, float, float]) -> None:
    """The share of a voxel in one colour."""
    axis.imshow(np.dstack([np.broadcast_to(colour, (*share.shape, 3)), 0.8 * share]))


def main() -> None:
    """The sheet."""
    head = read_head()
    rows = len(KINDS) + 2
    figure, axes = plt.subplots(rows, 4, figsize=(7.6, 2.5 * rows), layout="constrained")
    for n, kind in enumerate(KINDS):
        lesion_row(axes[n], head, kind, 10)
    atrophy_row(axes[-2], head)
    person_row(axes[-1], head)
    for axis, name in zip(axes[0], ("prior", "current", "current - prior", "truth"), strict=True):
        axis.set_title(f"{name.upper()}\n{axis.get_title()}", fontsize=8)
    for axis in axes.flat:
        axis.axis("off")
    SHEET.parent.mkdir(exist_ok=True)
    figure.savefig(SHEET, dpi=100)


if __name__ == "__main__":
    main()
