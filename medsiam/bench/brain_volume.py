"""How well a known change of the brain's volume is recovered, and what is found where none is.

    label map -> contrast -> atrophy whose volume is counted on the labels at 1 mm
              -> two acquisitions of their own position, noise and coil -> pair_up -> measured

The heads are those that nothing was trained or tuned on. Atrophy is of two kinds: all
tissue shrinks a little and the fluid beside it takes the place ("diffuse"), or the
ventricles grow and the brain's border goes back ("ventricles", the generator of training).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from scipy import fft

from medsiam.bench.ms_pairs import data_folder, ms_pairs
from medsiam.bench.rescan import Technique, rescan
from medsiam.bench.scores import Score, Scores
from medsiam.change.brain_volume import BrainVolumeChange, BrainVolumeSettings, measure_brain_volume_change
from medsiam.pairing.intensity import IntensitySettings
from medsiam.pairing.pair_up import PairSettings, pair_up
from medsiam.pairing.registration import RegistrationSettings
from medsiam.pairing.values import Comparability
from medsiam.reading import read_volume
from medsiam.sampling import smooth
from medsiam.training.contrast import SEQUENCES
from medsiam.training.deformation import atrophy, warped
from medsiam.training.sources import read_label_map
from medsiam.training.tissues import NUMBER, tissue_map
from medsiam.volume import Acquisition, Grid, Volume

PARENCHYMA = ("cortex", "white", "deep grey", "cerebellar grey", "cerebellar white", "stem")
FLUID = ("ventricle", "csf", "outer csf")
CUBE = (1.0, 1.0, 1.0)
# Percent of white matter's variation from place to place, and how smooth it is (voxels of 1 mm).
TEXTURE, TEXTURE_VOXELS = 0.03, (1.5, 4.0)
# Fluid takes up what tissue within this sigma gives; in voxels of 2 mm.
SHARED_VOXELS = 4.0
# Deviation of the logarithm by which tissue shrinks more in one place than in another.
UNEVEN = 0.5
# The head between the two scans, and the scanner.
TURN_DEG, SHIFT_MM, NOISE, BIAS = 4.0, 6.0, 0.02, 0.2
TARGET = "error within 0.2"


@dataclass(frozen=True, eq=False)
class Head:
    """A head of a label map in one contrast, at 1 mm; shares 0..1 of tissue, fluid, ventricles."""

    signal: torch.Tensor
    tissue: torch.Tensor
    fluid: torch.Tensor
    ventricles: torch.Tensor
    grid: Grid


# Head, sequence, slice thickness, and the changes (percent, kind) put into it.
CASES = (
    ("04", "flair", 3.0, ((0.0, "diffuse"), (-0.5, "diffuse"), (-1.0, "ventricles"), (-2.0, "diffuse"))),
    ("08", "t1", 1.0, ((0.0, "diffuse"), (-0.5, "ventricles"), (-1.0, "diffuse"), (-2.0, "diffuse"))),
)


def measure(data: Path | None, seed: int) -> Scores:
    """Error on known atrophy in unseen heads; the same-day pair; the MS pairs."""
    folder = data_folder(data)
    rows = [row for case in CASES for row in _known(folder, *case, seed)]
    rows += _same_day(folder, seed)
    for pair in ms_pairs(data):
        found = measured(pair.prior, pair.current, seed)
        rows += _row(f"{pair.name}: change of brain volume (%)", found, "")
    return Scores("brain-volume", "head-label-maps, mr-same-day, ms-longitudinal", seed, tuple(rows))


def _known(
    folder: Path, name: str, sequence: str, slice_mm: float, changes: tuple[tuple[float, str], ...], seed: int
) -> Iterator[Score]:
    head = painted_head(folder / "head-label-maps" / f"training_seg_{name}.nii.gz", sequence, seed)
    for percent, kind in changes:
        random = torch.Generator().manual_seed(seed + int(name))
        later, truth = aged(head, percent, kind, random)
        technique = Technique("same", slice_mm, 1.0, NOISE, BIAS, TURN_DEG, SHIFT_MM)
        scans = [
            rescan(Volume(signal.numpy(), head.grid, Acquisition(modality="MR")), technique, random).volume
            for signal in (head.signal, later)
        ]
        found = measured(scans[0], scans[1], seed)
        label = f"head {name}, {sequence} {slice_mm:g} mm, {kind} {truth:+.2f} %"
        yield from _row(f"{label}: found (%)", found, "")
        error = float("nan") if found is None else found.percent - truth
        yield Score(f"{label}: error (percentage points)", error, "", TARGET)


def _same_day(folder: Path, seed: int) -> Iterator[Score]:
    if (folder / "mr-same-day").is_dir():
        one, other = (read_volume(folder / "mr-same-day" / name) for name in ("HFS", "HFP"))
        yield from _row("same day, supine to prone (%)", measured(one, other, seed), "interval holds 0")


def _row(subject: str, found: BrainVolumeChange | None, target: str) -> Iterator[Score]:
    if found is None:
        yield Score(f"{subject}: not measured", float("nan"), "", target)
    else:
        yield Score(subject, found.percent, "", target, found.interval95_percent)


def measured(prior: Volume, current: Volume, seed: int) -> BrainVolumeChange | None:
    """What `compare` would measure on two volumes."""
    cpu = torch.device("cpu")
    pair = pair_up(
        prior,
        current,
        Comparability("same-protocol"),
        PairSettings(RegistrationSettings(), IntensitySettings()),
        cpu,
    )
    return measure_brain_volume_change(pair, BrainVolumeSettings(), seed=seed, device=cpu)


def painted_head(path: Path, sequence: str, seed: int) -> Head:
    """The head of a label map in a sequence's contrast, with texture and mixed borders."""
    labels, grid = read_label_map(path)
    tissue = tissue_map(torch.from_numpy(labels.astype(np.int32)), "synthseg")
    signal = (torch.tensor(SEQUENCES[sequence]) / 70.0)[tissue.long()]
    random = torch.Generator().manual_seed(seed)
    for sigma in TEXTURE_VOXELS:
        grain = smooth(torch.randn(signal.shape, generator=random), (sigma, sigma, sigma))
        signal = signal * (1.0 + TEXTURE * grain / grain.std())
    shares = [torch.isin(tissue, _numbers(names)).float() for names in (PARENCHYMA, FLUID, ("ventricle",))]
    return Head(smooth(signal, (0.5, 0.5, 0.5)), shares[0], shares[1], shares[2], grid)


def _numbers(names: tuple[str, ...]) -> torch.Tensor:
    return torch.tensor([NUMBER[name] for name in names], dtype=torch.uint8)


def aged(head: Head, percent: float, kind: str, random: torch.Generator) -> tuple[torch.Tensor, float]:
    """The signal after its tissue's volume changed by so many percent, and by how much it truly did."""
    if percent == 0.0:
        return head.signal, 0.0
    if kind == "diffuse":
        way = _diffuse(head, random)
    else:
        brain = (head.tissue + head.fluid).clamp(0.0, 1.0)
        way = atrophy(head.ventricles, brain, CUBE, 0.3, random).displacement
    before = float(head.tissue.double().sum())

    def change(size: float) -> float:
        return 100.0 * (float(warped(head.tissue, size * way, CUBE).double().sum()) / before - 1.0)

    size = 0.01 * percent / change(0.01)
    for _ in range(3):
        size *= percent / change(size)
    return warped(head.signal, size * way, CUBE), change(size)


def _diffuse(head: Head, random: torch.Generator) -> torch.Tensor:
    """A displacement (3, K, J, I) that shrinks tissue and widens the fluid beside it, at 2 mm."""
    tissue, fluid = (
        functional.avg_pool3d(share[None, None], 2, ceil_mode=True)[0, 0]
        for share in (head.tissue, head.fluid)
    )
    knots = torch.randn(1, 1, 4, 4, 4, generator=random)
    uneven = functional.interpolate(knots, size=tissue.shape, mode="trilinear", align_corners=True)[0, 0]
    given, sigma = tissue * torch.exp(UNEVEN * uneven), (SHARED_VOXELS,) * 3
    wanted = given - fluid * smooth(smooth(given, sigma) / smooth(fluid, sigma).clamp_min(0.02), sigma)
    wanted = wanted - fluid * (wanted.sum() / fluid.sum())
    waves = [2.0 * np.cos(np.pi * np.arange(n) / n) - 2.0 for n in wanted.shape]
    power = waves[0][:, None, None] + waves[1][None, :, None] + waves[2][None, None, :]
    power[0, 0, 0] = -1.0
    potential = torch.from_numpy(fft.idctn(fft.dctn(wanted.double().numpy()) / power).astype(np.float32))
    way = torch.stack(torch.gradient(potential))[None]
    way = functional.interpolate(way, size=head.tissue.shape, mode="trilinear", align_corners=False)[0]
    cavity = smooth(((head.tissue + head.fluid) > 0.3).float(), (2.0, 2.0, 2.0))
    return way * ((cavity - 0.02) / 0.3).clamp(0.0, 1.0)
