"""The brain finder: any contrast, any position, and no brain where there is none."""

import os
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medsiam.errors import WeightsRefused
from medsiam.pairing import brain_net
from medsiam.pairing.brain_net import BrainNet, BrainTissue, content_box, normalised, segment_brain
from medsiam.pairing.region import KeptBrains
from medsiam.sampling import sample
from medsiam.training.brain_synthesis import NAMES, HeadMap, SynthesisSettings, synthesise
from medsiam.training.brain_training import brain_loss
from medsiam.volume import Grid, Volume
from tests.phantoms import SMALL_SCAN, Scan, box_grid, head_phantom, position

DATA = Path(os.environ.get("MEDSIAM_DATA", Path(__file__).parents[2] / "shared" / "data"))
MS = DATA / "ms-longitudinal"


# Somewhat below what docs/model-card-brain.md reports for the shipped weights.
LEAST_DICE = {"FLAIR": 0.93, "T1W": 0.87, "T2W": 0.91}


def dice(a, b):
    """Overlap 0..1 of two masks."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def brain_on(tissue, grid, world_from_target_world=None):
    """Mask of the found brain on another grid."""
    matrix = np.eye(4) if world_from_target_world is None else world_from_target_world
    return sample(torch.from_numpy(tissue.brain), tissue.grid, grid, matrix).numpy() > 0.5


@lru_cache(maxsize=1)
def made_up_head():
    """A head phantom and what is found in it."""
    phantom = head_phantom(scan=Scan(spacing_mm=(4.0, 2.0, 2.0)))
    return phantom, segment_brain(phantom.volume)


def box_of(values):
    """An image of 2 mm voxels."""
    return Volume(values, box_grid(values.shape, (2.0, 2.0, 2.0)))


def test_a_head_made_of_formulas_is_taken_for_a_head():
    """No data file is needed to see that the gate lets heads through."""
    phantom, tissue = made_up_head()
    assert tissue.plausible, tissue.reason
    assert dice(brain_on(tissue, phantom.volume.grid), phantom.brain) > 0.85


class Counting:
    """Finds by a list of what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, volume):
        self.asked.append(float(volume.array.flat[0]))
        return BrainTissue(volume.array[None], volume.grid, True, "")


def test_a_scan_that_several_pairs_share_is_looked_through_once():
    """Read again it is another object of the same voxels; of many scans the last few are kept."""
    find = Counting()
    kept = KeptBrains(find)
    for value in (1, 2, 2, 3, 1, 3, 4, 5, 1):
        assert kept.brain_of(box_of(np.full((2, 2, 2), value))).probability.flat[0] == value
    assert find.asked == [1, 2, 3, 4, 5]
    kept.brain_of(box_of(np.full((2, 2, 2), 2)))
    assert find.asked[-1] == 2 and len(find.asked) == 6


def test_what_was_made_of_a_scan_is_another_scan():
    """It may bear the same header: other voxels, another place or another modality count."""
    find = Counting()
    kept, first = KeptBrains(find), box_of(np.ones((2, 2, 2)))
    moved = replace(first, grid=first.grid.moved(np.diag([-1.0, 1.0, 1.0, 1.0])))
    ct = replace(first, acquisition=replace(first.acquisition, modality="CT"))
    for volume in (first, replace(first, array=first.array + 1.0), moved, ct, first):
        kept.brain_of(volume)
    assert len(find.asked) == 4


def test_the_same_scan_gives_the_same_tissue():
    """A result must be repeatable to the bit."""
    phantom, tissue = made_up_head()
    again = segment_brain(phantom.volume)
    assert np.array_equal(again.probability, tissue.probability)
    assert again.grid.is_close(tissue.grid)


def test_probabilities_are_shares_on_a_3_mm_grid_and_cannot_be_written_to():
    """Values between modules are frozen."""
    _, tissue = made_up_head()
    assert tissue.probability.shape == (5, *tissue.grid.shape)
    assert np.allclose(tissue.probability.sum(axis=0), 1.0, atol=1e-5)
    assert np.allclose(tissue.grid.spacing_mm, 3.0)
    assert not tissue.probability.flags.writeable


@pytest.mark.parametrize("turn", [(0, 0, 180), (180, 0, 0), (20, -15, 30)])
def test_a_turned_head_has_the_same_brain(turn):
    """Prone, feet first or tilted: the brain turns with the head."""
    placed = position(turn, (0.0, 0.0, 0.0))
    scan = Scan(spacing_mm=(4.0, 3.0, 3.0), field_mm=(230.0, 240.0, 240.0), centre_mm=(0.0, 0.0, 0.0))
    phantom = head_phantom(scan=scan, world_from_head=placed)
    tissue = segment_brain(phantom.volume)
    assert tissue.plausible, tissue.reason
    assert dice(brain_on(tissue, phantom.volume.grid), phantom.brain) > 0.8


def test_moving_the_world_moves_the_brain_and_changes_nothing_else():
    """Where the scanner puts its origin is no matter of anatomy."""
    phantom, tissue = made_up_head()
    shifted = position((0.0, 0.0, 0.0), (310.0, -77.7, 1200.0))
    moved = segment_brain(Volume(phantom.volume.array, phantom.volume.grid.moved(shifted)))
    assert moved.volume_ml == pytest.approx(tissue.volume_ml, rel=0.005)


@pytest.mark.parametrize("gain, offset", [(37.0, 0.0), (0.01, 0.0)])
def test_the_unit_of_the_signal_does_not_matter(gain, offset):
    """MR has no unit."""
    phantom, tissue = made_up_head()
    scaled = segment_brain(Volume(phantom.volume.array * gain + offset, phantom.volume.grid))
    assert scaled.volume_ml == pytest.approx(tissue.volume_ml, rel=0.01)


def noise_box():
    return np.random.default_rng(5).random((90, 90, 90))


def even_box():
    array = np.zeros((100, 100, 100))
    array[20:80, 15:85, 20:80] = 1.0
    return array


def nothing():
    return np.zeros((40, 40, 40))


def one_slice():
    return np.random.default_rng(6).random((1, 120, 120))


@pytest.mark.parametrize("make", [noise_box, even_box, nothing, one_slice])
def test_what_is_no_head_is_refused_with_a_reason(make):
    """Registration by brain must not start from something that is none."""
    tissue = segment_brain(box_of(make()))
    assert not tissue.plausible
    assert len(tissue.reason) > 10


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    """Weights are checked against the digest recorded beside them."""
    weights = tmp_path / "brain.safetensors"
    weights.write_bytes(brain_net.WEIGHTS.read_bytes()[:-1] + b"\x01")
    weights.with_suffix(".sha256").write_text(brain_net.WEIGHTS.with_suffix(".sha256").read_text())
    monkeypatch.setattr(brain_net, "WEIGHTS", weights)
    with pytest.raises(WeightsRefused, match="reinstall"):
        brain_net.load_brain_net.__wrapped__()


def test_the_network_is_small():
    """It runs on one core and travels with the package."""
    assert sum(parameter.numel() for parameter in BrainNet().parameters()) < 1_000_000


def test_the_box_around_the_content_holds_it_and_fits_the_network():
    """The network halves three times."""
    image = torch.zeros(96, 96, 96)
    image[30:75, 5:90, 40:60] = 1.0
    box = content_box(normalised(image))
    assert all((side.stop - side.start) % 8 == 0 for side in box)
    assert image[box].sum() == image.sum()


def shells(size=200):
    """A head map of ellipsoids: skin, bone, fluid, cortex, white matter, ventricle."""
    k, j, i = (np.arange(size) - size / 2 for _ in range(3))
    radius = np.sqrt((k[:, None, None] / 0.9) ** 2 + j[None, :, None] ** 2 + (i[None, None, :] / 0.8) ** 2)
    tissue = np.zeros((size,) * 3, dtype=np.uint8)
    for name, reach in (
        ("skin", 95),
        ("bone", 90),
        ("sulcus", 83),
        ("cortex", 80),
        ("white", 72),
        ("ventricle", 20),
    ):
        tissue[radius < reach] = NAMES.index(name)
    points = torch.from_numpy(np.argwhere(radius < 83)[::500]).float()
    return HeadMap(torch.from_numpy(tissue), 0, points)


def test_the_same_seed_makes_the_same_heads():
    """Training can be repeated."""
    made = [
        synthesise(shells(), SynthesisSettings(), torch.Generator().manual_seed(3), 1)[0] for _ in range(2)
    ]
    assert torch.equal(made[0].image, made[1].image)
    assert torch.equal(made[0].share, made[1].share)


def test_made_heads_keep_the_volume_of_the_brain():
    """Averaging to 3 mm must not move the border: shares sum to the ellipsoid's volume."""
    quiet = SynthesisSettings(
        scale=0.0, elastic_mm=0.0, shift_mm=0.0, cut_coverage=0.0, decoy=0.0, any_rotation=0.0
    )
    example = synthesise(shells(), quiet, torch.Generator().manual_seed(3), 1)[0]
    true_ml = 4 / 3 * np.pi * 83**3 * 0.9 * 0.8 / 1000
    # The pose keeps a small random shear of a few percent.
    assert float(example.share[1:].sum()) * 0.027 == pytest.approx(true_ml, rel=0.15)
    assert torch.allclose(example.share.sum(0), torch.ones(()), atol=1e-4)


def test_the_loss_is_least_at_the_truth():
    """Also where a voxel is a mixture."""
    share = torch.rand(1, 5, 8, 8, 8).softmax(1)
    at_truth = brain_loss(share.log(), share)
    assert at_truth < brain_loss(share.log() + 0.3 * torch.randn_like(share), share)


def itk_affine(path):
    """4 x 4 LPS mm of an ITK text transform: y = M (x - c) + t + c."""
    text = path.read_text()
    numbers = [
        np.array(re.search(rf"^{key}: (.*)$", text, re.M)[1].split(), dtype=float)
        for key in ("Parameters", "FixedParameters")
    ]
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[0][:9].reshape(3, 3)
    matrix[:3, 3] = numbers[0][9:] + numbers[1] - matrix[:3, :3] @ numbers[1]
    return matrix


def read(path):
    """A NIfTI file as a Volume: RAS to LPS, (i, j, k) to (k, j, i)."""
    image = nibabel.load(path)
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    matrix = matrix[:, [2, 1, 0, 3]]
    array = np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0)
    return Volume(array, Grid(array.shape, matrix))


@pytest.mark.public_data
@pytest.mark.skipif(not MS.exists(), reason="needs MEDSIAM_DATA/ms-longitudinal")
@pytest.mark.parametrize("visit", [1, 2])
@pytest.mark.parametrize("contrast", ["FLAIR", "T1W", "T2W"])
def test_real_brains_are_found_in_every_contrast(visit, contrast):
    """Against the data set's own brain mask, through the data set's own transforms."""
    folder = MS / "patient01"
    if not (folder / f"study{visit}_{contrast}.nii.gz").exists():
        pytest.skip("this contrast is not there")
    mask = read(folder / "brainmask.nii.gz")
    scan_from_mask = itk_affine(folder / f"study{visit}_FLAIR_to_common_space.txt")
    if contrast != "FLAIR":
        flair_to = itk_affine(folder / f"study{visit}_{contrast}_intrastudy_to_FLAIR.txt")
        scan_from_mask = flair_to @ scan_from_mask
    tissue = segment_brain(read(folder / f"study{visit}_{contrast}.nii.gz"))
    assert tissue.plausible, tissue.reason
    assert dice(brain_on(tissue, mask.grid, scan_from_mask), mask.array > 0.5) > LEAST_DICE[contrast]


@pytest.mark.public_data
@pytest.mark.skipif(not MS.exists(), reason="needs MEDSIAM_DATA/ms-longitudinal")
@pytest.mark.parametrize("visit", [1, 2])
def test_the_brain_is_found_where_the_mask_reaches_past_it(visit):
    """Patient 19's mask is too wide: the brain must lie within it."""
    folder = MS / "patient19"
    mask = read(folder / "brainmask.nii.gz")
    tissue = segment_brain(read(folder / f"study{visit}_FLAIR.nii.gz"))
    found = brain_on(tissue, mask.grid, itk_affine(folder / f"study{visit}_FLAIR_to_common_space.txt"))
    assert tissue.plausible, tissue.reason
    assert (found & (mask.array > 0.5)).sum() / found.sum() > 0.95
    assert 900 < tissue.volume_ml < 1900


def test_a_small_scan_of_thick_slices_is_enough():
    """6 mm slices and 4 mm pixels still show a brain."""
    tissue = segment_brain(head_phantom(scan=SMALL_SCAN).volume)
    assert tissue.plausible, tissue.reason
