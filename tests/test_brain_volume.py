"""Global change of the brain's volume: the sign's law, a known shrinkage, and how sure it is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medsiam.bench import brain_volume as bench
from medsiam.change.brain_volume import BrainVolumeSettings, measure_brain_volume_change
from medsiam.pairing.values import Comparability, Pair, Registration
from medsiam.reading import read_volume
from medsiam.volume import Acquisition, Volume
from tests.phantoms import box_grid

DATA = Path(os.environ.get("MEDSIAM_DATA") or Path(__file__).parents[2] / "shared" / "data")
CPU = torch.device("cpu")
SETTINGS = BrainVolumeSettings(rescans=3)
SIZE, STEP_MM = 60, 2.5
RADIUS_MM, VENTRICLE_MM, CORTEX_MM, EDGE_MM = 55.0, 20.0, 5.0, 2.5


def shares(ventricle_mm=VENTRICLE_MM, scale=1.0):
    """(5, K, J, I) shares of a ball of white matter in a wavy cortex in fluid, with a ventricle."""
    k, j, i = np.meshgrid(*[(np.arange(SIZE) - (SIZE - 1) / 2.0) * STEP_MM] * 3, indexing="ij")
    radius = np.sqrt(k**2 + j**2 + i**2) + 1e-6
    waves = 3.0 * np.sin(4.0 * np.arctan2(j, i)) * np.cos(3.0 * np.arcsin(k / radius))

    def within(mm):
        return np.clip(0.5 + (mm - radius) / EDGE_MM, 0.0, 1.0)

    hull = within(RADIUS_MM + 8.0)
    surface = within(scale * (RADIUS_MM + waves))
    white = within(scale * (RADIUS_MM - CORTEX_MM + waves))
    ventricle = within(ventricle_mm)
    fluid = hull - surface + ventricle
    return np.stack([1.0 - hull, fluid, surface - white, white - ventricle, 0.0 * hull])


def scan(kinds, seed, spacing_mm=None):
    """A FLAIR-like scan of these shares with noise of 2 %."""
    noise = 2.0 * np.random.default_rng(seed).standard_normal(kinds.shape[1:])
    array = np.tensordot([5.0, 15.0, 130.0, 100.0, 110.0], kinds, 1) + noise
    return Volume(array.astype(np.float32), box_grid((SIZE,) * 3, (STEP_MM,) * 3), Acquisition(modality="MR"))


def tissue_ml(kinds):
    return kinds[2:].sum() * STEP_MM**3 / 1000.0


def made(prior, current, kinds):
    """The pair of two scans that lie on one grid."""
    still = np.eye(4)
    registration = Registration(still, 1.0, 0.1, 1.0, 0.0, "good", "rigid")
    unit = float(np.median(prior.array[kinds[3] > 0.9]))
    return Pair(
        prior=prior,
        current=current,
        comparability=Comparability("same-protocol"),
        registration=registration,
        region="brain",
        grid=prior.grid,
        prior_half=prior.array / unit,
        current_half=current.array / unit,
        tissue=kinds[1:].sum(0) > 0.5,
        tissue_kinds=kinds.astype(np.float32),
        prior_from_half=still,
        current_from_half=still,
    )


def measured(pair, seed=0):
    found = measure_brain_volume_change(pair, SETTINGS, seed=seed, device=CPU)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def shrunk():
    """A pair whose tissue lost about 1 %: the ventricle grew and the surface went back."""
    before, after = shares(), shares(ventricle_mm=VENTRICLE_MM + 0.5, scale=0.998)
    truth = 100.0 * (tissue_ml(after) / tissue_ml(before) - 1.0)
    return made(scan(before, 0), scan(after, 1), 0.5 * (before + after)), truth


@pytest.fixture(scope="module")
def found(shrunk):
    return measured(shrunk[0])


def test_a_known_shrinkage_is_found_again(shrunk, found):
    """Truth is geometry: two balls of other radii; a tenth of a percent is a tenth of a mm and less."""
    assert found.percent == pytest.approx(shrunk[1], abs=0.2)
    assert found.interval95_percent[0] < shrunk[1] < found.interval95_percent[1]
    # One percent lies within what another session alone may make of it.
    assert not found.significant


def test_the_volume_is_that_of_the_tissue(found):
    """Grey and white matter, without the fluid in and around them."""
    assert found.prior_ml == pytest.approx(tissue_ml(shares()), rel=0.05)


def test_exchanging_prior_and_current_changes_the_sign_alone(shrunk, found):
    """What one way was lost the other way was gained, to a millionth."""
    pair = shrunk[0]
    turned = replace(
        pair,
        prior=pair.current,
        current=pair.prior,
        prior_half=pair.current_half,
        current_half=pair.prior_half,
        prior_from_half=pair.current_from_half,
        current_from_half=pair.prior_from_half,
    )
    back = measured(turned)
    assert back.log_ratio == pytest.approx(-found.log_ratio, abs=1e-6)
    assert back.noise_percent == pytest.approx(found.noise_percent, abs=1e-4)


def test_a_scan_against_itself_has_no_change():
    """Not even a small one, and nothing is called significant."""
    kinds = shares()
    one = scan(kinds, 0)
    same = measured(made(one, one, kinds))
    assert same.percent == pytest.approx(0.0, abs=1e-6)
    assert not same.significant


def test_noise_alone_is_not_significant():
    """Two scans of one anatomy: the interval holds 0."""
    kinds = shares()
    low, high = measured(made(scan(kinds, 2), scan(kinds, 3), kinds)).interval95_percent
    assert low < 0.0 < high


def test_the_same_seed_gives_the_same_answer(shrunk, found):
    """All chance comes from the seed."""
    assert measured(shrunk[0]) == found


def test_an_affine_registration_counts_its_volume_ratio(shrunk, found):
    """Volumes are the scanner's: what the registration took up is given back, and said."""
    pair = shrunk[0]
    scale = 1.005 ** (1.0 / 6.0)
    larger = np.diag([scale, scale, scale, 1.0])
    affine = replace(
        pair,
        registration=replace(pair.registration, kind="affine"),
        current=Volume(pair.current.array, pair.current.grid.moved(larger), pair.current.acquisition),
        prior=Volume(pair.prior.array, pair.prior.grid.moved(np.linalg.inv(larger)), pair.prior.acquisition),
        current_from_half=larger,
        prior_from_half=np.linalg.inv(larger),
    )
    result = measured(affine)
    assert result.log_ratio == pytest.approx(found.log_ratio + np.log(1.005), abs=5e-4)
    assert "affine" in result.note


def thickened(volume, thickness_mm):
    """The volume with neighbouring slices averaged."""
    count = round(thickness_mm / STEP_MM)
    slices = volume.array.shape[0] // count
    array = volume.array[: slices * count].reshape(slices, count, *volume.array.shape[1:]).mean(1)
    matrix = volume.grid.world_from_index.copy()
    matrix[:3, 3] = volume.grid.world([((count - 1) / 2.0, 0.0, 0.0)])[0]
    matrix[:3, 0] *= count
    return Volume(array, replace(volume.grid, shape=array.shape, world_from_index=matrix), volume.acquisition)


def test_thick_slices_widen_the_interval_and_are_told(shrunk, found):
    """Slices of 7.5 mm against 2.5 mm allow no statement on slow atrophy."""
    pair = replace(shrunk[0], current=thickened(shrunk[0].current, 7.5))
    coarse = measured(pair)
    width = [high - low for low, high in (coarse.interval95_percent, found.interval95_percent)]
    assert width[0] > 1.2 * width[1]
    assert "says nothing" in coarse.note


@pytest.mark.parametrize("change", [{"region": "body"}, {"tissue_kinds": None}])
def test_what_is_no_brain_has_no_brain_volume(shrunk, change):
    """None, not a number, where there is nothing to measure."""
    assert measure_brain_volume_change(replace(shrunk[0], **change), SETTINGS, seed=0, device=CPU) is None


def test_ct_has_no_brain_volume(shrunk):
    """Fluid and tissue lie within the noise of each other there."""
    pair = shrunk[0]
    ct = replace(pair, prior=replace(pair.prior, acquisition=Acquisition(modality="CT")))
    assert measure_brain_volume_change(ct, SETTINGS, seed=0, device=CPU) is None


def test_the_number_of_rescans_may_be_given(shrunk, found):
    """More of them tell the noise better and say the same of the change."""
    result = measure_brain_volume_change(shrunk[0], SETTINGS, seed=0, device=CPU, rescans=4)
    assert result is not None
    assert result != found
    assert result.percent == pytest.approx(found.percent, abs=0.05)


real = pytest.mark.skipif(
    not (DATA / "mr-same-day").is_dir(), reason="real scans are not here; set MEDSIAM_DATA"
)


@pytest.mark.slow
@real
def test_one_person_on_one_day_has_kept_the_volume():
    """Supine and prone, slices of 4.8 mm: 0 lies within the interval."""
    folder = DATA / "mr-same-day"
    found = bench.measured(read_volume(folder / "HFS"), read_volume(folder / "HFP"), 0)
    assert found is not None
    assert found.interval95_percent[0] < 0.0 < found.interval95_percent[1]
