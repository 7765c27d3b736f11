"""The viewer's volumes: small enough, true to the scan's places and values, and NiiVue as published."""

from __future__ import annotations

import base64
import gzip
import hashlib
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medsiam.report import html, pictures
from medsiam.report.comparison_json import to_json
from medsiam.report.viewer import BUDGET_BYTES, LONGEST_SIDE, viewer_json
from tests import comparison_maker as maker

# The npm package @niivue/niivue 0.69.0, dist/niivue.umd.js.
NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXES = np.eye(3)
# Every way in which a scan's axes can run: three may be exchanged, each may be turned round.
WAYS = [
    tuple(tuple(sign * AXES[axis]) for axis, sign in zip(order, signs, strict=True))
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def opened(told: dict[str, Any], name: str) -> nib.Nifti1Image:
    """One of the volumes, by a reader that is not ours."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(told[name])))


def values_at(image: nib.Nifti1Image, lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value of the voxel in which each LPS position (n, 3) lies."""
    voxel_from_lps = np.linalg.inv(LPS_FROM_RAS @ image.affine)
    voxel = np.rint(lps_mm @ voxel_from_lps[:3, :3].T + voxel_from_lps[:3, 3]).astype(int)
    return np.asarray(image.dataobj)[tuple(voxel.T)]


def noisy(shape: tuple[int, int, int], *, spacing_mm: float = 1.0, modality: str = "MR"):
    """A pair of scans that are all noise, the worst case for every compression."""
    grid = maker.grid_of(spacing_kji_mm=(spacing_mm,) * 3, shape_kji=shape)
    made = maker.comparison(grid, modality=modality)
    draw = np.random.default_rng(3)
    prior, current = (draw.normal(500, 200, shape).astype(np.float32) for _ in range(2))
    return replace(made, current=replace(made.current, array=current), prior_on_current=prior)


@pytest.mark.parametrize(
    "way", WAYS, ids=lambda way: "".join("RALPHF"[int(abs(a @ AXES[2]))] for a in np.array(way))
)
def test_places_and_values_survive_for_every_way_a_scan_can_lie(way):
    """Read back by another library, the balls lie where geometry put them."""
    told = viewer_json(pictures.scene_of(maker.comparison(maker.grid_of(way, (3.0, 2.0, 2.5)))))
    places = np.array([maker.PLACE_OF_NEW, maker.PLACE_OF_RESOLVED])

    prior, current = (values_at(opened(told, name), places) for name in ("prior", "current"))
    change = values_at(opened(told, "change"), places)

    assert prior == pytest.approx([500, 900], abs=4) and current == pytest.approx([900, 500], abs=4)
    assert change[0] > 0.4 and change[1] < -0.4
    assert nib.aff2axcodes(opened(told, "current").affine) == ("R", "A", "S")


@pytest.mark.parametrize("way", WAYS[::7])
def test_the_crosshair_for_a_finding_stands_at_its_centre(way):
    """Within half a stored voxel of the centre in report.json."""
    made = maker.comparison(maker.grid_of(way))
    told = viewer_json(pictures.scene_of(made))

    for finding, shown in zip(made.findings, told["findings"], strict=True):
        voxel = np.array(shown["at"]) * told["dims"] - 0.5
        off = np.array(told["lps_from_voxel"]) @ [*voxel, 1.0] - [*finding.centre_lps_mm, 1.0]
        assert (np.abs(off[:3]) <= np.max(told["spacing"]) / 2 + 0.01).all()


def test_a_scan_that_must_be_coarser_keeps_its_places():
    """A linear image stays the same linear image: any shift would change its values."""
    grid = maker.grid_of(spacing_kji_mm=(0.9, 0.4, 0.4), shape_kji=(20, 420, 430))
    slope = np.array([1.0, -2.0, 3.0])
    ramp = (maker.world_positions(grid) @ slope + 1000).astype(np.float32)
    made = maker.comparison(grid)
    made = replace(made, current=replace(made.current, array=ramp), prior_on_current=ramp, findings=())
    told = viewer_json(pictures.scene_of(replace(made, labels=np.zeros_like(made.labels))))
    image = opened(told, "current")
    inner = np.random.default_rng(1).integers(3, np.array(image.shape) - 3, (200, 3))

    lps = inner @ (LPS_FROM_RAS @ image.affine)[:3, :3].T + (LPS_FROM_RAS @ image.affine)[:3, 3]

    assert max(told["spacing"]) < 1.0 and min(told["spacing"]) > 0.45
    assert values_at(image, lps) == pytest.approx(lps @ slope + 1000, abs=told["high"] / 100)


def test_prior_and_current_carry_one_scale():
    """One window means the same grey in both, so what looks brighter is brighter."""
    told = viewer_json(pictures.scene_of(maker.comparison()))
    scales = [gzip.decompress(base64.b64decode(told[name]))[112:120] for name in ("prior", "current")]

    assert scales[0] == scales[1]


def test_a_prior_of_another_scale_is_told_in_the_current_s():
    """Where its grey levels had to be matched, they are matched in the stored volume."""
    made = maker.comparison()
    scene = pictures.scene_of(replace(made, prior_on_current=made.prior_on_current * 10))
    told = viewer_json(scene)

    tissue = values_at(opened(told, "prior"), np.array([[10.0, 20.0, 0.0]]))

    assert scene.is_matched and tissue[0] == pytest.approx(500, rel=0.1)


def test_hounsfield_units_below_and_above_the_window_are_kept():
    """Lung and bone lie far outside a soft tissue window, and a reader opens it."""
    made = maker.comparison(modality="CT")
    array = made.current.array.copy()
    array[12, 20:24, 20:24], array[12, 26:30, 26:30] = -950.0, 1800.0
    made = replace(made, current=replace(made.current, array=array))
    grid = made.current.grid
    places = grid.world(np.array([[12, 21, 21], [12, 28, 28]], float))

    found = values_at(opened(viewer_json(pictures.scene_of(made)), "current"), places)

    assert found == pytest.approx([-950, 1800], abs=2)


@pytest.mark.parametrize("shape", [(90, 160, 160), (1, 2000, 1700)])
def test_noise_stays_within_the_budget(shape):
    """In three dimensions and in a radiograph."""
    made = noisy(shape, modality="MR" if shape[0] > 1 else "DX")

    told = viewer_json(pictures.scene_of(made))

    weight = sum(len(base64.b64decode(told[name])) for name in ("prior", "current", "change"))
    assert weight <= BUDGET_BYTES and max(told["dims"]) <= LONGEST_SIDE
    assert weight > BUDGET_BYTES / 2


def test_the_worst_page_stays_under_eight_megabytes():
    """Noise, and as many pictured findings as there may be."""
    many = tuple(maker.finding(label) for label in range(1, 61))
    made = replace(noisy((60, 160, 160)), findings=many)

    assert len(html.render(made, to_json(made, files={})).encode()) < 8_000_000


def test_where_the_prior_did_not_reach_is_hatched():
    """Black would be taken for air."""
    made = maker.comparison()
    half = made.prior_on_current.copy()
    half[:12] = np.nan
    told = viewer_json(pictures.scene_of(replace(made, prior_on_current=half)))
    unseen = np.array([[x, y, -14.0] for x in (-20.0, 0.0, 20.0) for y in (-20.0, 0.0, 20.0, 30.0)])

    found = values_at(opened(told, "prior"), unseen)

    assert len(set(found)) == 2 and found.min() > told["low"] and found.max() < told["high"] / 2


def test_niivue_is_the_published_file_and_its_licence_travels_with_it():
    """Unchanged, so that it can be checked by anyone; its licence asks to be shown."""
    published = gzip.decompress(html.vendored(html.NIIVUE))
    page = html.render(maker.stable(), to_json(maker.stable(), files={}))

    assert hashlib.sha256(published).hexdigest() == NIIVUE_SHA256
    assert html.niivue_hash() == "sha256-" + base64.b64encode(bytes.fromhex(NIIVUE_SHA256)).decode()
    assert "Copyright (c) 2021, Niivue" in page and "THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT" in page


def test_two_runs_give_the_same_volumes():
    first, second = (viewer_json(pictures.scene_of(maker.comparison())) for _ in range(2))

    assert first == second
