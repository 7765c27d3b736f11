"""NIfTI files: the same place for the same voxel, in two readers, with the same bytes."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medsiam.errors import GeometryRefused
from medsiam.report.nifti import nifti_bytes, write_nifti
from medsiam.volume import Grid
from tests import comparison_maker as maker

INDEX = (3, 5, 2)


def oblique_grid(axes=(2, 1, 0), signs=(1, 1, 1)) -> Grid:
    """A grid turned about two axes, with three different spacings."""
    turn, nod = np.deg2rad(17), np.deg2rad(-9)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    rotation @= np.array([[1, 0, 0], [0, np.cos(nod), -np.sin(nod)], [0, np.sin(nod), np.cos(nod)]])
    directions = rotation[:, list(axes)] * np.array(signs)
    matrix = np.eye(4)
    matrix[:3, :3] = directions * (3.3, 0.72, 0.81)
    matrix[:3, 3] = (-101.5, 87.25, -33.125)
    return Grid((5, 7, 6), matrix)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_nibabel_finds_every_voxel_where_the_grid_puts_it(tmp_path, axes, signs, form):
    """Readers follow sform or qform, so each must be right by itself; left-handed grids too."""
    grid = oblique_grid(axes, signs)
    array = np.arange(np.prod(grid.shape), dtype=np.float32).reshape(grid.shape)
    write_nifti(tmp_path / "a.nii.gz", array, grid)

    image = nib.load(tmp_path / "a.nii.gz")
    affine = image.header.get_sform() if form == "sform" else image.header.get_qform()

    ras = affine @ (*INDEX[::-1], 1)
    assert np.abs(ras[:3] * (-1, -1, 1) - grid.world([INDEX])[0]).max() < 1e-3
    assert np.asarray(image.dataobj)[INDEX[::-1]] == array[INDEX]
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_simpleitk_finds_every_voxel_there_too(tmp_path, axes):
    """Its world is LPS, so no sign may be left over."""
    grid = oblique_grid(axes)
    array = np.arange(np.prod(grid.shape), dtype=np.uint16).reshape(grid.shape)
    write_nifti(tmp_path / "a.nii.gz", array, grid)

    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))

    lps = image.TransformIndexToPhysicalPoint(INDEX[::-1])
    assert np.abs(np.array(lps) - grid.world([INDEX])[0]).max() < 1e-3
    assert np.array_equal(sitk.GetArrayFromImage(image), array)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_the_number_type_is_kept_and_nothing_is_scaled(tmp_path, dtype):
    grid = maker.grid_of(shape_kji=(2, 3, 4))
    write_nifti(tmp_path / "a.nii.gz", np.full(grid.shape, 7, dtype), grid)

    image = nib.load(tmp_path / "a.nii.gz")

    assert image.get_data_dtype() == dtype
    assert np.array_equal(np.unique(image.dataobj), [7])


def test_what_was_not_scanned_is_zero(tmp_path):
    grid = maker.grid_of(shape_kji=(1, 1, 2))
    write_nifti(tmp_path / "a.nii.gz", np.array([[[np.nan, 3]]], np.float32), grid)

    assert nib.load(tmp_path / "a.nii.gz").get_fdata().ravel().tolist() == [0, 3]


def test_the_same_array_gives_the_same_bytes_under_any_name(tmp_path):
    """gzip would put the time and the file's name into its header."""
    array = np.ones((24, 48, 48), np.float32)
    write_nifti(tmp_path / "one.nii.gz", array, maker.grid_of())
    write_nifti(tmp_path / "other.nii.gz", array, maker.grid_of())

    first, second = ((tmp_path / name).read_bytes() for name in ("one.nii.gz", "other.nii.gz"))

    assert first == second
    assert first[3] == 0 and first[4:8] == bytes(4)


def test_sheared_axes_are_refused():
    """A qform cannot hold them, so two readers would see two places."""
    matrix = np.eye(4)
    matrix[0, 1] = 0.1

    with pytest.raises(GeometryRefused, match="sheared"):
        nifti_bytes(np.zeros((2, 2, 2), np.float32), Grid((2, 2, 2), matrix))
