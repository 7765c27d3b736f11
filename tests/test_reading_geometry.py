"""Where slices lie: every voxel must tell its own place, and what cannot be placed is refused."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsiam.errors import GeometryRefused
from medsiam.reading import find_series, read_volume
from medsiam.volume import Grid
from tests.dicom_maker import GRADIENT, KEY, PLANES, classic, encoded, enhanced, grid_of, save


def read(folder):
    return read_volume(folder, key=KEY)


def misplaced_mm(volume, inside=slice(None)):
    """How far the values disagree with their places, in mm along the gradient."""
    off = (volume.array - encoded(volume.grid))[inside]
    return float((off.max() - off.min()) / 2 / np.linalg.norm(GRADIENT))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("make", [classic, enhanced])
def test_every_voxel_lies_where_its_value_says(tmp_path, plane, make):
    """Axial, sagittal, coronal, oblique; classic and enhanced; non-square pixels."""
    grid = grid_of(plane)
    volume = read(save(make(grid), tmp_path))
    assert volume.grid.is_close(grid)
    assert misplaced_mm(volume) < 0.02


def test_a_part_of_a_grid_keeps_its_voxels_places():
    """The voxels of a box lie where they lay in the whole."""
    grid = grid_of("oblique")
    part = grid.part((slice(1, 3), slice(2, 4), slice(0, 3)))
    assert part.shape == (2, 2, 3)
    np.testing.assert_allclose(part.world([(0, 0, 0), (1, 1, 2)]), grid.world([(1, 2, 0), (2, 3, 2)]))


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 7))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_order_of_files_changes_the_volume(tmp_path_factory, seed, count):
    """Names and instance numbers are the archive's business, positions are the patient's."""
    grid = grid_of("oblique", shape=(count, 4, 5))
    slices = classic(grid)
    numbers = np.random.default_rng(seed).permutation(count)
    for ds, number in zip(slices, numbers, strict=True):
        ds.InstanceNumber = int(number)
    volume = read(save([slices[n] for n in numbers], tmp_path_factory.mktemp("series")))
    assert volume.grid.is_close(grid)
    assert misplaced_mm(volume) < 0.02
    assert volume.acquisition.image_numbers == tuple(numbers.tolist())


def test_a_number_that_two_slices_share_names_none(tmp_path):
    assert read(save(classic(InstanceNumber=7), tmp_path)).acquisition.image_numbers == ()


def test_slices_numbered_from_the_other_end_give_the_same_volume(tmp_path):
    """Feet first or head first, the array runs along the normal."""
    grid = grid_of("coronal")
    forward = read(save(classic(grid), tmp_path / "forward"))
    backward = read(save(classic(grid)[::-1], tmp_path / "backward", names=[f"{n}.dcm" for n in range(5)]))
    assert forward.acquisition.sha256 == backward.acquisition.sha256
    assert backward.grid.is_close(grid)


def test_frames_in_any_order_are_set_in_place(tmp_path):
    """The order of frames in an enhanced file is free, and one reader in two ignores it."""
    grid = grid_of("sagittal")
    volume = read(save(enhanced(grid, order=(3, 0, 4, 2, 1)), tmp_path))
    assert volume.grid.is_close(grid)
    assert misplaced_mm(volume) < 0.02
    assert volume.acquisition.image_numbers == (2, 5, 4, 1, 3)


@given(
    angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    spacing=st.tuples(st.floats(0.5, 6), st.floats(0.3, 3), st.floats(0.3, 3)),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rotation_and_spacing_is_told_truly(tmp_path_factory, angles, spacing):
    """Whatever the scanner's coordinates: within a hundredth of a millimetre."""
    row, column = rotation(*angles)[:2]
    matrix = np.eye(4)
    matrix[:3, 0] = np.cross(row, column) * spacing[0]
    matrix[:3, 1], matrix[:3, 2], matrix[:3, 3] = column * spacing[1], row * spacing[2], (-20.0, 5.0, 33.0)
    grid = Grid((4, 5, 6), matrix)
    volume = read(save(classic(grid), tmp_path_factory.mktemp("series")))
    assert volume.grid.is_close(grid)
    assert volume.grid.is_orthogonal


def rotation(a, b, c):
    around_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    around_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    around_x = np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    return around_z @ around_y @ around_x


@pytest.mark.parametrize("shear_mm", [(1.2, 0.0), (-1.2, 0.0), (0.0, 0.9), (0.8, -0.7), (1.5, 0.75)])
def test_a_tilted_stack_is_set_upright_without_moving_anything(tmp_path, shear_mm):
    """What a tilted gantry leaves out of line is shifted back, exactly for a linear image."""
    grid = grid_of(shape=(6, 12, 14), shear_mm=shear_mm)
    volume = read(save(classic(grid, modality="CT"), tmp_path))
    filled = volume.array == volume.array.min()
    assert volume.grid.is_orthogonal
    assert misplaced_mm(volume, ~filled) < 0.05
    assert (~filled).sum() >= 6 * 11 * 13 - 1
    assert any("tilted" in sentence for sentence in volume.acquisition.assumptions)


def test_a_stack_sheared_beyond_any_gantry_is_refused(tmp_path):
    """At 45 degrees it is no tilt any more."""
    grid = grid_of(spacing=(1.0, 1.5, 0.75), shear_mm=(1.1, 0.0))
    with pytest.raises(GeometryRefused, match="sheared"):
        read(save(classic(grid, modality="CT"), tmp_path))


def test_a_drift_of_rounding_is_straightened_and_stays_close(tmp_path):
    """.08 mm over the stack: the grid is upright and no voxel moves by more than half of that."""
    grid = grid_of(shear_mm=(0.02, 0.0))
    volume = read(save(classic(grid), tmp_path))
    assert volume.grid.is_orthogonal
    assert volume.grid.is_close(grid, 0.045)


def test_a_tilt_that_the_header_tells_and_the_positions_hide_is_refused(tmp_path):
    """One of the two is false, and nobody can say which."""
    told = classic(modality="CT", GantryDetectorTilt=12.0)
    with pytest.raises(GeometryRefused, match="tilt"):
        read(save(told, tmp_path / "hidden"))
    assert read(save(classic(modality="CT", GantryDetectorTilt=0.0), tmp_path / "none")).grid.is_orthogonal


def without(n):
    return lambda slices: slices.pop(n)


def twice(slices):
    slices.append(classic(SOPInstanceUID="9.9", InstanceNumber=99)[2])


def copied(slices):
    slices.append(classic()[2])


def turned(slices):
    slices[2].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def tipped(slices):
    slices[2].ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(0.01)), float(np.sin(0.01))]


def moved(axis, mm):
    def move(slices):
        slices[2].ImagePositionPatient[axis] += mm

    return move


def each(**values):
    def change(slices):
        for ds in slices:
            for keyword, value in values.items():
                setattr(ds, keyword, value)

    return change


def one(**values):
    def change(slices):
        for keyword, value in values.items():
            setattr(slices[1], keyword, value)

    return change


def lacking(keyword, which=slice(None)):
    def remove(slices):
        for ds in slices[which]:
            delattr(ds, keyword)

    return remove


REFUSED = {
    "a slice in the middle missing": (without(2), "1 slices are missing"),
    "two slices at one place": (twice, "lie where another one lies"),
    "one file copied": (copied, "duplicates"),
    "one slice flipped": (turned, "mixed orientations"),
    "one slice tipped": (tipped, "mixed orientations"),
    "one slice out of step": (moved(2, 0.2), "unevenly spaced"),
    "one slice shifted sideways": (moved(0, 0.5), "shifted sideways"),
    "two slices only": (lambda slices: slices.__delitem__(slice(2, None)), "no volume"),
    "no positions": (lacking("ImagePositionPatient"), "ImagePositionPatient"),
    "no position in one slice": (lacking("ImagePositionPatient", slice(1, 2)), "ImagePositionPatient"),
    "no orientation": (lacking("ImageOrientationPatient"), "ImageOrientationPatient"),
    "no pixel spacing": (lacking("PixelSpacing"), "PixelSpacing"),
    "a pixel spacing of zero": (each(PixelSpacing=[0, 0]), "pixel spacing"),
    "another pixel spacing in one slice": (one(PixelSpacing=[1.5, 0.76]), "several pixel spacings"),
    "cosines that are not unit": (each(ImageOrientationPatient=[1, 0, 0, 0, 1.1, 0]), "right angles"),
    "axes that are not at right angles": (
        each(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]),
        "right angles",
    ),
    "another frame of reference": (one(FrameOfReferenceUID="1.9"), "frames of reference"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_placed_is_refused_with_its_reason(tmp_path, name):
    """Every common reader lets most of these pass in silence."""
    corrupt, reason = REFUSED[name]
    slices = classic()
    corrupt(slices)
    with pytest.raises(GeometryRefused, match=reason):
        read(save(slices, tmp_path))


@pytest.mark.parametrize(
    "corrupt",
    [
        moved(2, 0.03),
        moved(0, 0.05),
        without(0),
        without(-1),
        each(SliceThickness=9, SliceLocation=0, InstanceNumber=1),
    ],
    ids=["rounded position", "rounded sideways", "begins later", "ends earlier", "misleading numbers"],
)
def test_what_rounding_explains_is_read(tmp_path, corrupt):
    """Each guard lets through what scanners truly write."""
    slices = classic()
    corrupt(slices)
    volume = read(save(slices, tmp_path))
    assert misplaced_mm(volume) < 0.1


@pytest.mark.parametrize("text", ["nan", "1e400", "0,5", "one"])
def test_numbers_that_are_none_are_refused(tmp_path, text):
    """1e400 hangs one reader, and no other one complains."""
    slices = classic()
    for n, ds in enumerate(slices):
        path = save([ds], tmp_path, names=[f"{n}.dcm"]) / f"{n}.dcm"
        data = path.read_bytes()
        old = b"1.5\\0.75"
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, f"{text}\\1.0".encode().ljust(len(old))[: len(old)]))
    entry = find_series(tmp_path, key=KEY)[0]
    assert not entry.is_usable
    assert "PixelSpacing" in str(entry.refusal)


def test_a_frame_without_its_own_place_is_refused(tmp_path):
    """A frame described by nobody may be any slice."""
    ds = enhanced()
    del ds.PerFrameFunctionalGroupsSequence[2]
    with pytest.raises(Exception, match="frames are missing"):
        read(save(ds, tmp_path))


def test_an_enhanced_file_that_lacks_a_slice_is_refused(tmp_path):
    """The stack number may still be dense; the positions are not."""
    with pytest.raises(GeometryRefused, match="missing"):
        read(save(enhanced(order=(0, 1, 3, 4)), tmp_path))
