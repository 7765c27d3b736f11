"""NIfTI: right for every axis code, and never in silence where the file contradicts itself."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from medsiam.errors import GeometryRefused, InputRefused, Unreadable
from medsiam.reading import find_series, nifti, read_volume
from medsiam.volume import transform
from tests.dicom_maker import GRADIENT, KEY

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


def read(path):
    return read_volume(path, key=KEY)


def oriented(codes="RAS", shape=(6, 7, 8), spacing=(1.0, 1.5, 2.5)):
    """A RAS affine whose voxel axes run towards the given directions, slightly turned."""
    start = nib.orientations.io_orientation(np.eye(4))
    wanted = nib.orientations.axcodes2ornt(codes)
    matrix = nib.orientations.inv_ornt_aff(nib.orientations.ornt_transform(start, wanted), shape)
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.sign(np.round(matrix[:3, :3])) * spacing
    affine[:3, 3] = 3, -20, 7
    return affine


def image(affine, shape=(6, 7, 8), dtype=np.float32, sform=1, qform=1):
    """A NIfTI image whose voxels tell their place in LPS mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    values = (transform(affine, index) @ LPS_FROM_RAS) @ GRADIENT
    picture = nib.Nifti1Image(values.reshape(shape).astype(dtype), affine)
    picture.set_sform(affine, sform)
    picture.set_qform(affine, qform)
    picture.header.set_xyzt_units("mm")
    return picture


def saved(picture, path):
    nib.save(picture, path)
    return path


def misplaced(volume):
    index = np.stack(np.meshgrid(*map(np.arange, volume.grid.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    return np.abs(volume.grid.world(index) @ GRADIENT - volume.array.ravel()).max()


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "ASL", "SRP", "IPL", "RSA"])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_every_voxel_lies_where_its_value_says(tmp_path, codes, ending):
    """Any order and direction of the axes; nothing is resampled."""
    volume = read(saved(image(oriented(codes)), tmp_path / f"a.{ending}"))
    assert volume.grid.shape == (8, 7, 6)
    assert misplaced(volume) < 0.01


@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (2, 4)])
def test_one_geometry_is_enough(tmp_path, forms):
    """sform, qform, or both when they agree."""
    assert (
        misplaced(read(saved(image(oriented(), sform=forms[0], qform=forms[1]), tmp_path / "a.nii"))) < 0.05
    )


def test_two_geometries_that_disagree_are_refused(tmp_path):
    """Readers follow one or the other, and no two the same one."""
    picture = image(oriented())
    other = oriented()
    other[0, 3] += 0.2
    picture.set_sform(other, 1)
    with pytest.raises(GeometryRefused, match=r"0\.20 mm apart"):
        read(saved(picture, tmp_path / "a.nii"))


def test_no_geometry_is_refused(tmp_path):
    """Voxel sizes alone tell no place and no side."""
    with pytest.raises(GeometryRefused, match="no geometry"):
        read(saved(image(oriented(), sform=0, qform=0), tmp_path / "a.nii"))


def test_sheared_axes_are_refused(tmp_path):
    """Within rounding they are set upright."""
    sheared = oriented()
    sheared[:3, 1] += 0.05 * sheared[:3, 0]
    with pytest.raises(GeometryRefused, match="sheared"):
        read(saved(image(sheared, qform=0), tmp_path / "a.nii"))
    slightly = oriented()
    slightly[:3, 1] += 0.0005 * slightly[:3, 0]
    volume = read(saved(image(slightly, qform=0), tmp_path / "b.nii"))
    assert volume.grid.is_orthogonal
    assert misplaced(volume) < 0.05 * np.linalg.norm(GRADIENT)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("unknown", 1.0)])
def test_lengths_are_in_millimetres_whatever_the_unit(tmp_path, unit, factor):
    """And an unknown unit is told."""
    picture = image(oriented())
    picture.header.set_xyzt_units(unit)
    volume = read(saved(picture, tmp_path / "a.nii"))
    assert volume.grid.spacing_mm == pytest.approx(np.array([2.5, 1.5, 1.0]) * factor)
    assert any("unit of length" in note for note in volume.acquisition.assumptions) == (unit == "unknown")


def test_scaled_integers_become_real_values(tmp_path):
    """Slope and intercept are part of the value."""
    picture = image(oriented(), dtype=np.int16)
    wanted = np.asarray(picture.dataobj).T * 0.5 - 3
    picture.header.set_slope_inter(0.5, -3)
    path = saved(nib.Nifti1Image(wanted.T, picture.affine, picture.header), tmp_path / "a.nii")
    assert read(path).array == pytest.approx(wanted, abs=0.05)


def test_a_last_axis_of_one_is_no_axis(tmp_path):
    """Two volumes are."""
    picture = image(oriented())
    data = np.asarray(picture.dataobj)[..., None]
    assert read(
        saved(nib.Nifti1Image(data, picture.affine, picture.header), tmp_path / "a.nii")
    ).grid.shape == (8, 7, 6)
    double = nib.Nifti1Image(np.concatenate([data, data], axis=3), picture.affine)
    with pytest.raises(Unreadable, match="several volumes"):
        read(saved(double, tmp_path / "b.nii"))


@pytest.mark.parametrize("kind", ["rgb", "complex"])
def test_colour_and_complex_voxels_are_refused(tmp_path, kind):
    """They are no measured grey values."""
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]) if kind == "rgb" else np.complex64
    with pytest.raises(Unreadable, match="voxels of type"):
        read(saved(nib.Nifti1Image(np.ones((6, 7, 8), dtype), oriented()), tmp_path / "a.nii"))


def test_few_undefined_voxels_are_replaced_and_many_refused(tmp_path):
    """Less than one in a hundred gets the lowest value, and is told."""
    picture = image(oriented())
    data = np.asarray(picture.dataobj).copy()
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    volume = read(saved(nib.Nifti1Image(data, None, picture.header), tmp_path / "few.nii"))
    assert volume.array[0, 0, 0] == volume.array[1, 1, 1] == volume.array.min()
    assert any("2 voxels were not finite" in note for note in volume.acquisition.assumptions)
    data[:2] = np.nan
    with pytest.raises(Unreadable, match="not finite"):
        read(saved(nib.Nifti1Image(data, None, picture.header), tmp_path / "many.nii"))


def test_an_empty_image_is_refused(tmp_path):
    """One value everywhere."""
    with pytest.raises(Unreadable, match="one value"):
        read(saved(nib.Nifti1Image(np.zeros((6, 7, 8), np.int16), oriented()), tmp_path / "a.nii"))


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_file_cut_short_is_refused(tmp_path, ending):
    """One common reader gives the tail as whatever lay in memory."""
    path = saved(image(oriented()), tmp_path / f"a.{ending}")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Unreadable, match="cut short"):
        read(path)


def test_every_flipped_bit_of_a_packed_file_is_noticed(tmp_path):
    """The checksum at the end is read, and counts."""
    data = bytearray(saved(image(oriented()), tmp_path / "a.nii.gz").read_bytes())
    for at in range(400, len(data), 97):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        (tmp_path / "b.nii.gz").write_bytes(flipped)
        with pytest.raises(InputRefused):
            read(tmp_path / "b.nii.gz")


def test_a_packed_bomb_is_refused(tmp_path, monkeypatch):
    """Both a header that declares too much and a body that holds more than declared."""
    path = saved(image(oriented()), tmp_path / "a.nii")
    (tmp_path / "more.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(2**21)))
    with pytest.raises(Unreadable, match="more than its header"):
        read(tmp_path / "more.nii.gz")
    zeros = tmp_path / "zeros.nii.gz"
    empty = saved(nib.Nifti1Image(np.zeros((256, 256, 64), np.uint8), oriented()), tmp_path / "b.nii")
    zeros.write_bytes(gzip.compress(empty.read_bytes(), 9))
    monkeypatch.setattr(nifti, "LARGE_BYTES", 2**20)
    with pytest.raises(Unreadable, match="do not trust"):
        read(zeros)
    monkeypatch.setattr(nifti, "MOST_VOXELS", 300)
    with pytest.raises(Unreadable, match="more than the 300"):
        read(path)


def test_a_packed_twin_beside_a_file_is_another_entry(tmp_path):
    """One reader opens the wrong one of the two."""
    saved(image(oriented()), tmp_path / "a.nii")
    saved(image(oriented("LPS")), tmp_path / "a.nii.gz")
    assert [entry.name for entry in find_series(tmp_path, key=KEY)] == ["a.nii", "a.nii.gz"]
    assert misplaced(read(tmp_path / "a.nii")) < 0.01


@pytest.mark.parametrize("at", [0, 40, 70, 108, 254, 280, 344])
def test_no_damaged_header_field_causes_anything_but_a_refusal_or_the_truth(tmp_path, at):
    """Each field in turn overwritten with nonsense."""
    data = bytearray(saved(image(oriented()), tmp_path / "a.nii").read_bytes())
    for nonsense in (b"\xff" * 4, b"\x00" * 4, b"\x00\x00\xc0\x7f"):
        (tmp_path / "b.nii").write_bytes(data[:at] + nonsense + data[at + 4 :])
        try:
            volume = read(tmp_path / "b.nii")
        except InputRefused:
            continue
        assert np.isfinite(volume.grid.world_from_index).all()


def test_nifti_2_is_read_and_analyze_is_not(tmp_path):
    """The one tells its geometry, the other cannot."""
    picture = image(oriented())
    second = nib.Nifti2Image(np.asarray(picture.dataobj), picture.affine)
    assert misplaced(read(saved(second, tmp_path / "a.nii"))) < 0.01
    header = bytearray(saved(picture, tmp_path / "b.nii").read_bytes())
    header[344:348] = bytes(4)
    (tmp_path / "b.nii").write_bytes(header)
    with pytest.raises(Unreadable, match="single-file"):
        read(tmp_path / "b.nii")
