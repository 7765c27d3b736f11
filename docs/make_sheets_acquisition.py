"""Draws docs/images/synthesis-acquisition.png and synthesis-follow-up.png: what training sees.

    .venv/bin/python docs/make_sheets_acquisition.py

The head is made from a label map (SynthSeg, Apache-2.0) in $MEDSIAM_DATA/head-label-maps;
no scanner image is used. The sagittal slices lie beside the middle, where no profile shows.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

from medsiam.errors import InputRefused
from medsiam.training.acquisition import (
    AcquisitionSettings,
    Protocol,
    View,
    acquired,
    draw_view,
    sampled,
    turned,
)
from medsiam.training.contrast import (
    CURVE_POINTS,
    SEQUENCES,
    Contrast,
    ContrastSettings,
    draw_contrast,
    painted,
)
from medsiam.training.sources import labels_on, read_label_map
from medsiam.training.synthesis import Anatomy, FollowUp, SynthesisSettings, follow_up
from medsiam.training.tissues import TISSUES, tissue_map
from medsiam.volume import Grid

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MAP = "training_seg_01.nii.gz"
FOOTER = "synthetic; made from SynthSeg label maps, Apache-2.0"

# Finer than the encoder's 3 mm, so that a page shows what a protocol does.
FINE = View(128, 1.75, torch.eye(3), torch.zeros(3))
FIELD_MM = 224

# Half again as fine as the shipped encoder's input, so that small change shows in print.
SIZE, SPACING_MM, WORKING_MM = 72, 3.0, 2.0
SEEDS = range(6)

# A level through the lateral ventricles, and one eye's plane, in parts of the view.
AXIAL_AT, SAGITTAL_AT = 0.69, 0.62

# Nothing but the contrast, but for a little noise.
QUIET = AcquisitionSettings(thick_slices=0.0, blur_mm=0.0, bias=0.1, ghosts=0.0, ringing=0.0, cut=0.0)
GRAIN, NOISE = 0.015, 0.012

# Grey levels in the file: more would only store the noise.
GREYS = 32
DOTS_PER_INCH = 92


class Shown(NamedTuple):
    """One example: its caption, protocol, settings and view, and the seed of its chance."""

    caption: str
    protocol: Protocol
    settings: AcquisitionSettings = QUIET
    view: View = FINE
    seed: int = 1


def read_head(spacing_mm: float) -> Anatomy:
    """The head of the label map, its centre in the middle."""
    data = Path(os.environ.get("MEDSIAM_DATA") or ROOT.parent / "shared" / "data")
    path = data / "head-label-maps" / MAP
    if not path.is_file():
        raise InputRefused(f"there is no label map {path}; set MEDSIAM_DATA")
    labels, grid = read_label_map(path)
    centre_mm = grid.world([np.argwhere(labels > 0).mean(axis=0)])[0]
    size = round(FIELD_MM / spacing_mm)
    matrix = np.eye(4)
    matrix[:3, :3] = np.fliplr(np.eye(3)) * spacing_mm
    matrix[:3, 3] = centre_mm - matrix[:3, :3] @ np.full(3, (size - 1) / 2.0)
    on_grid = labels_on(Grid((size,) * 3, matrix), labels, grid)
    return Anatomy(None, tissue_map(torch.from_numpy(on_grid), "synthseg"), spacing_mm)


def known(sequence: str) -> Contrast:
    """A sequence's own means with a little grain."""
    means = torch.tensor(SEQUENCES[sequence]) / 100.0
    grain = torch.full((len(TISSUES),), 0.0005 if sequence == "ct" else GRAIN)
    return Contrast(means, 0.0, grain, torch.linspace(0, 1, CURVE_POINTS), False, is_ct=sequence == "ct")


def by_chance(curve: float, seed: int) -> Contrast:
    """An invented contrast, or a curve of a T1's values."""
    settings = ContrastSettings(curve=curve, known=0.0, grain=GRAIN)
    return draw_contrast(settings, torch.Generator().manual_seed(seed))


def scanned_with(contrast: Contrast, **more: float) -> Protocol:
    """An isotropic protocol with a little noise, but for what is told."""
    return replace(Protocol(contrast, 0, 0.0, 0.0, NOISE), **more)


def contrasts() -> Iterator[Shown]:
    """Sequences that are known, and those that no scanner has."""
    names = {"t1": "T1", "t1 contrast": "T1, contrast agent", "t2": "T2", "flair": "FLAIR", "pd": "PD"}
    for sequence, name in names.items():
        yield Shown(name, scanned_with(known(sequence)))
    yield Shown("CT", scanned_with(known("ct"), noise=0.03))
    for seed in (2, 5):
        yield Shown(f"invented, seed {seed}", scanned_with(by_chance(0.0, seed)))
    for seed in (1, 4):
        yield Shown(f"curve of a T1, seed {seed}", scanned_with(by_chance(1.0, seed)))


def faults() -> Iterator[Shown]:
    """What scanners and patients do to them."""
    t1, t2, flair = known("t1"), known("t2"), known("flair")
    for axis, (contrast, name) in enumerate(
        ((t2, "T2, axial"), (t1, "T1, coronal"), (flair, "FLAIR, sagittal"))
    ):
        protocol = scanned_with(contrast, axis=axis, thickness_mm=6.0)
        yield Shown(f"{name} slices of 6 mm", protocol)
    yield Shown("T1, noise .07 (the largest)", scanned_with(t1, noise=0.07))
    yield Shown("T1, blur 4 mm (the largest)", scanned_with(t1, axis=0, thickness_mm=1.8, blur_mm=4.0))
    yield Shown("T2, sensitivity .3 (the largest)", scanned_with(t2), replace(QUIET, bias=0.3), seed=5)
    yield Shown("T1, motion ghosts", scanned_with(t1), replace(QUIET, ghosts=1.0), seed=6)
    yield Shown("T2, ringing", scanned_with(t2), replace(QUIET, ringing=1.0))
    yield Shown("FLAIR, cut coverage", scanned_with(flair), replace(QUIET, cut=1.0), seed=3)
    turn = replace(FINE, turn=turned((12.0, -10.0, 15.0)), centre_mm=torch.tensor([6.0, -8.0, 10.0]))
    yield Shown("T1, turned by 12, -10, 15 degrees, shifted", scanned_with(t1), view=turn)
    # Seen with the encoder's own eyes, all by chance.
    coarse = draw_view(SIZE, SPACING_MM, AcquisitionSettings(), torch.Generator().manual_seed(8))
    thick = scanned_with(t2, thickness_mm=5.0, blur_mm=2.0, noise=0.03)
    yield Shown("T2 as the encoder sees it: 3 mm", thick, replace(QUIET, bias=0.3), coarse)
    ct = scanned_with(known("ct"), thickness_mm=5.0, noise=0.05)
    yield Shown("CT as the encoder sees it: 3 mm", ct, QUIET, coarse)


def scan(head: Anatomy, shown: Shown) -> np.ndarray:
    """The example's scan (K, J, I)."""
    random = torch.Generator().manual_seed(shown.seed)
    image = painted(None, head.tissue, known("t1"), random) if shown.protocol.contrast.by_curve else None
    signal = painted(image, head.tissue, shown.protocol.contrast, random)
    seen = sampled(signal, head.spacing_mm, shown.view)
    return acquired(seen, shown.protocol, shown.view.spacing_mm, shown.settings, random).numpy()


def acquisition_sheet(head: Anatomy) -> None:
    """Every example as an axial and a sagittal slice, two examples a row."""
    examples = [*contrasts(), *faults()]
    rows = (len(examples) + 1) // 2
    figure, axes = plt.subplots(rows, 4, figsize=(8, 2.12 * rows), layout="constrained")
    for shown, (left, right) in zip(examples, axes.reshape(-1, 2), strict=True):
        image = scan(head, shown)
        k, i = round(AXIAL_AT * len(image)), round(SAGITTAL_AT * len(image))
        left.imshow(image[k], cmap="gray", vmin=0.0, vmax=1.0)
        right.imshow(image[::-1, :, i], cmap="gray", vmin=0.0, vmax=1.0)
        left.set_title(shown.caption, fontsize=8, loc="left")
    keep(figure, "synthesis-acquisition.png")


def follow_up_sheet(head: Anatomy) -> None:
    """Pairs as training draws them, at the slice with the most change."""
    figure, axes = plt.subplots(len(SEEDS), 4, figsize=(8, 2.12 * len(SEEDS)), layout="constrained")
    for row, seed in zip(axes, SEEDS, strict=True):
        random = torch.Generator().manual_seed(seed)
        made = follow_up(head, SIZE, SPACING_MM, SynthesisSettings(), random)
        k = slice_with_most_change(made)
        for axis, name in zip(row[:2], ("prior", "current"), strict=True):
            axis.imshow(getattr(made, name)[k], cmap="gray", vmin=0.0, vmax=1.0)
            axis.set_title(f"{name}, seed {seed}", fontsize=8, loc="left")
        for axis, name in zip(row[2:], ("appearing", "resolving"), strict=True):
            share = getattr(made, name)
            axis.imshow(share[k], cmap="gray", vmin=0.0, vmax=1.0)
            axis.set_title(f"{name}: {float(share.sum()):.0f} voxels in all", fontsize=8, loc="left")
    keep(figure, "synthesis-follow-up.png")


def slice_with_most_change(made: FollowUp) -> int:
    """The axial slice, the middle one where nothing changed."""
    change = (made.appearing + made.resolving).sum(dim=(1, 2))
    return int(change.argmax()) if float(change.max()) > 0.0 else len(change) // 2


def keep(figure: plt.Figure, name: str) -> None:
    """Writes the sheet with its footer, in few greys."""
    for axis in figure.axes:
        axis.axis("off")
    figure.supxlabel(FOOTER, fontsize=7)
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=DOTS_PER_INCH)
    plt.close(figure)
    with Image.open(IMAGES / name) as drawn:
        few = drawn.convert("L").quantize(GREYS, dither=Image.Dither.NONE)
    few.save(IMAGES / name, optimize=True)


def main() -> None:
    """Both sheets."""
    acquisition_sheet(read_head(1.0))
    follow_up_sheet(read_head(WORKING_MM))


if __name__ == "__main__":
    main()
