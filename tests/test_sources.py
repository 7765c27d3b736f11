"""Scans become tensors on one grid, labels whole numbers on the same, kept until a file changes."""

import os
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medsiam.encoding.preparation import PreparationSettings, prepare
from medsiam.errors import GeometryRefused, InputRefused, ResourceExhausted, TrainingRefused, Unreadable
from medsiam.reading import read_volume
from medsiam.training.manifest import Case, read_manifest
from medsiam.training.public_manifests import write_manifests
from medsiam.training.sources import SourceSettings, labels_on, load_sources, read_label_map
from medsiam.volume import Grid
from tests.phantoms import box_grid, position_encoded, radiograph, small_head

DATA = Path(os.environ.get("MEDSIAM_DATA") or Path(__file__).parents[2] / "shared" / "data")
KEY = b"a key for tests that is long enough"
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

SMALL = SourceSettings(preparation=PreparationSettings(size_voxels=32, spacing_mm=7.0))
FLAT = SourceSettings(spatial_dims=2, preparation=PreparationSettings(size_voxels=48))


def nifti(path, array, grid):
    """A (k, j, i) array written as NIfTI, whose axes run the other way."""
    affine = RAS_FROM_LPS @ grid.world_from_index[:, [2, 1, 0, 3]]
    picture = nibabel.Nifti1Image(np.ascontiguousarray(array.T), affine)
    picture.header.set_xyzt_units("mm")
    nibabel.save(picture, path)
    return path


def case(path, *, label_map=None, row=2, **labels):
    return Case(path, "Meier^Anna", 5, None, "train", label_map, MappingProxyType(labels), row)


def numbered(grid):
    """A label map whose label tells the eighth of the box: 1001 to 1008, so that a flip shows."""
    halves = [np.arange(n) >= n // 2 for n in grid.shape]
    k, j, i = np.meshgrid(*halves, indexing="ij")
    return (1001 + 4 * k + 2 * j + i).astype(np.int16)


@pytest.fixture(scope="module")
def head():
    return small_head().volume


@pytest.fixture
def scan(tmp_path, head):
    """A head and its label map, as a case."""
    path = nifti(tmp_path / "head.nii.gz", head.array, head.grid)
    return case(path, label_map=nifti(tmp_path / "map.nii.gz", numbered(head.grid), head.grid), age=41.5)


def loaded(scan, tmp_path, settings=SMALL):
    return load_sources([scan], settings, cache=tmp_path / "cache", strict=True).sources[0]


def test_a_scan_becomes_what_the_encoder_would_prepare(scan, tmp_path, head):
    """In half precision, with the labels that are numbers and nothing of the patient."""
    source = loaded(replace(scan, labels={"age": 41.5, "site": "north"}), tmp_path)
    expected = prepare(head, SMALL.preparation)
    assert source.image.dtype == torch.float16 and source.image.shape == (32, 32, 32)
    assert torch.allclose(source.image.float(), expected.values, atol=1e-3)
    assert dict(source.known) == {"age": 41.5}
    assert (source.patient_index, source.spacing_mm) == (5, 7.0)
    assert "Meier" not in repr(source)


def test_each_label_lands_in_its_eighth_of_the_head(scan, tmp_path, head):
    """Numbers survive, and no axis is flipped on the way through RAS, LPS and the working grid."""
    source = loaded(scan, tmp_path)
    assert source.labels.dtype == torch.int16
    assert set(source.labels.unique().tolist()) == {0, *range(1001, 1009)}
    grid = prepare(head, SMALL.preparation).grid
    index = np.argwhere(source.labels.numpy() > 0)
    upper = head.grid.index(grid.world(index)) > np.array(head.grid.shape) // 2 - 0.5 - 1e-6
    assert np.array_equal(source.labels.numpy()[tuple(index.T)], 1001 + upper @ [4, 2, 1])


def test_a_label_map_on_its_own_grid_comes_back_bit_for_bit(tmp_path):
    """Whatever numbers 16 bits can hold, in a file of any kind of whole numbers or floats."""
    grid = box_grid((5, 6, 7))
    labels = np.random.default_rng(0).integers(-32768, 32768, grid.shape)
    for kind in (np.int16, np.int32, np.float32):
        read, where = read_label_map(nifti(tmp_path / "map.nii", labels.astype(kind), grid))
        assert where.is_close(grid)
        assert np.array_equal(labels_on(grid, read, where), labels)


def test_labels_outside_the_map_are_zero():
    """Half a voxel beyond its last centre the map ends."""
    grid = box_grid((4, 4, 4), (2.0, 2.0, 2.0))
    labels = np.full(grid.shape, 7, dtype=np.int16)
    for shift_mm, expected in ((4.0, [7, 7, 0, 0]), (-4.0, [0, 0, 7, 7]), (0.9, [7, 7, 7, 7])):
        motion = np.eye(4)
        motion[0, 3] = shift_mm
        assert np.array_equal(labels_on(grid.moved(motion), labels, grid)[0, 0], expected)


def test_a_map_without_a_lesion_is_an_answer(scan, tmp_path, head):
    """An image of one value is refused, a map of zeros is not."""
    empty = nifti(tmp_path / "none.nii.gz", np.zeros(head.grid.shape, np.uint8), head.grid)
    assert not loaded(replace(scan, label_map=empty), tmp_path).labels.any()


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (lambda a: a + 0.5, Unreadable, "fractions"),
        (lambda a: a.astype(np.float32) * np.nan, Unreadable, "beyond -32768 to 32767"),
        (lambda a: a.astype(np.int32) * 100, Unreadable, "beyond -32768 to 32767"),
    ],
)
def test_a_map_of_other_than_whole_numbers_is_refused(scan, tmp_path, head, make, error, complaint):
    """A map resampled linearly is full of labels that nobody drew."""
    bad = nifti(tmp_path / "bad.nii", make(numbered(head.grid).astype(np.float64)), head.grid)
    with pytest.raises(error, match=complaint):
        loaded(replace(scan, label_map=bad), tmp_path)


def test_a_map_that_lies_elsewhere_is_refused(scan, tmp_path, head):
    """One of another scan; half a voxel aside is another spacing over the same space, and passes."""
    for shift_mm, passes in ((2.0, True), (30.0, False)):
        motion = np.eye(4)
        motion[0, 3] = shift_mm
        path = nifti(tmp_path / "moved.nii", numbered(head.grid), head.grid.moved(motion))
        if passes:
            loaded(replace(scan, label_map=path), tmp_path)
            continue
        with pytest.raises(Unreadable, match="reaches 30 mm beyond its label map"):
            loaded(replace(scan, label_map=path), tmp_path)


def test_a_map_that_is_no_whole_nifti_file_is_refused(scan, tmp_path):
    """Another format, a file cut short, one without geometry, and none at all."""
    whole = scan.label_map.read_bytes()
    (tmp_path / "map.png").write_bytes(whole)
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    picture = nibabel.load(scan.label_map)
    picture.set_sform(None, 0)
    picture.set_qform(None, 0)
    nibabel.save(picture, tmp_path / "nowhere.nii.gz")
    for name, error in (
        ("map.png", Unreadable),
        ("cut.nii.gz", Unreadable),
        ("nowhere.nii.gz", GeometryRefused),
        ("missing.nii.gz", Unreadable),
    ):
        with pytest.raises(error):
            loaded(replace(scan, label_map=tmp_path / name), tmp_path)


def test_a_picture_becomes_a_source_of_one_slice(tmp_path):
    """It fills the field, whose spacing follows from its size."""
    grey = radiograph().array[0] / 12.0
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "chest.png")
    source = loaded(case(tmp_path / "chest.png"), tmp_path, FLAT)
    assert source.image.shape == (1, 48, 48) and source.labels is None
    assert source.spacing_mm == pytest.approx(2.0)
    expected = prepare(read_volume(tmp_path / "chest.png", key=KEY), FLAT.preparation).values
    assert torch.allclose(source.image.float(), expected, atol=1e-3)


def test_what_was_kept_is_not_read_again(scan, tmp_path):
    """The scan is made unreadable without its size or time changing: nobody notices."""
    first = loaded(scan, tmp_path)
    stat = scan.path.stat()
    scan.path.write_bytes(bytes(stat.st_size))
    os.utime(scan.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = loaded(scan, tmp_path)
    assert torch.equal(first.image, again.image) and torch.equal(first.labels, again.labels)
    assert (first.spacing_mm, first.modality) == (again.spacing_mm, again.modality)


@pytest.mark.parametrize("what", ["scan", "label map", "settings", "nothing"])
def test_what_was_kept_counts_for_the_same_files_and_settings_only(scan, tmp_path, head, what):
    """Each of the three makes a new file in the cache."""
    loaded(scan, tmp_path)
    settings = replace(SMALL, preparation=PreparationSettings(24, 9.0)) if what == "settings" else SMALL
    if what == "scan":
        nifti(scan.path, head.array[:, ::-1], head.grid)
    if what == "label map":
        nifti(scan.label_map, numbered(head.grid)[::-1], head.grid)
    loaded(scan, tmp_path, settings)
    assert len(list((tmp_path / "cache").iterdir())) == (1 if what == "nothing" else 2)


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty", "another file"])
def test_a_damaged_file_in_the_cache_is_made_anew(scan, tmp_path, damage):
    """A run that was killed, or a bad disk, costs one reading and no wrong value."""
    first = loaded(scan, tmp_path)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    bad = {"cut short": whole[:-100], "one bit": bytes(flipped), "empty": b"", "another file": b"x" * 999}
    kept.write_bytes(bad[damage])
    again = loaded(scan, tmp_path)
    assert torch.equal(again.image, first.image) and torch.equal(again.labels, first.labels)
    assert len(kept.read_bytes()) == len(whole)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [kept.name]


def test_a_cache_that_cannot_be_written_stops_the_run(scan, tmp_path):
    """It is no fault of the scan, so no scan is skipped for it."""
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(ResourceExhausted, match="name another folder"):
        load_sources([scan], SMALL, cache=tmp_path / "cache")


def test_a_scan_that_cannot_be_read_is_left_out_and_counted(scan, tmp_path):
    """By its row; who it is stays where it was."""
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    bad = [case(tmp_path / "broken.nii.gz", row=3), case(tmp_path / "missing.nii.gz", row=4)]
    told = []
    result = load_sources(
        [scan, *bad], SMALL, cache=tmp_path / "cache", progress=lambda *done: told.append(done)
    )
    assert [source.patient_index for source in result.sources] == [5]
    assert [(skipped.row, skipped.code) for skipped in result.skipped] == [
        (3, "unreadable"), (4, "unreadable"),
    ]  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_strict_stops_at_the_first_scan_that_cannot_be_read(scan, tmp_path):
    """With the scan's own reason and its row."""
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputRefused, match=r"^row 3 of the manifest: .*; "):
        load_sources(
            [scan, case(tmp_path / "broken.nii.gz", row=3)], SMALL, cache=tmp_path / "cache", strict=True
        )


@pytest.mark.parametrize("strict", [False, True])
def test_a_radiograph_in_a_recipe_for_volumes_counts_as_unreadable(scan, tmp_path, strict):
    """And the other way round; the reason says which recipe it is for."""
    Image.fromarray((radiograph().array[0] / 12.0).astype(np.uint8)).save(tmp_path / "chest.png")
    picture = case(tmp_path / "chest.png", row=3)
    kind = Unreadable if strict else TrainingRefused
    with pytest.raises(kind, match=r"a radiograph \(one slice\), the recipe is for 3 dimensions"):
        load_sources([picture], SMALL, cache=tmp_path / "cache", strict=strict)
    with pytest.raises(kind, match=r"a volume of several slices, the recipe is for 2 dimensions"):
        load_sources([scan], FLAT, cache=tmp_path / "cache", strict=strict)


def test_a_run_without_any_scan_is_refused(tmp_path):
    """None given, or none that can be read: there is nothing to learn from."""
    with pytest.raises(TrainingRefused, match="no scan is given"):
        load_sources([], SMALL, cache=tmp_path)
    with pytest.raises(
        TrainingRefused, match=r"none of 1 scans can be used; the first, row 2 of the manifest"
    ):
        load_sources([case(tmp_path / "missing.nii.gz")], SMALL, cache=tmp_path / "cache")


def test_a_map_of_other_voxels_over_the_same_space_is_taken_to_the_scans(tmp_path):
    """Half as fine as the scan, and with its axes turned round."""
    volume = position_encoded(box_grid((20, 20, 20), (2.0, 2.0, 2.0)))
    coarse = box_grid((10, 10, 10), (4.0, 4.0, 4.0))
    turned = coarse.world_from_index @ np.diag([-1.0, 1.0, -1.0, 1.0])
    turned[:3, 3] = coarse.world([(9, 0, 9)])[0]
    grid = Grid(coarse.shape, turned)
    labels = numbered(coarse)[::-1, :, ::-1]
    scan = case(
        nifti(tmp_path / "scan.nii", volume.array, volume.grid),
        label_map=nifti(tmp_path / "map.nii", labels, grid),
    )
    settings = SourceSettings(preparation=PreparationSettings(16, 2.0))
    target = prepare(volume, settings.preparation).grid
    expected = labels_on(target, numbered(coarse), coarse)
    assert np.array_equal(loaded(scan, tmp_path, settings).labels.numpy(), expected)


@pytest.mark.skipif(
    not (DATA / "brains-t1").is_dir(), reason="the public scans are not here; set MEDSIAM_DATA"
)
def test_real_brains_and_their_labels_lie_on_one_another(tmp_path):
    """The label map's brain is bright in T1, what is outside of it darker."""
    write_manifests(DATA, tmp_path)
    cases = read_manifest(tmp_path / "brains.csv", root=DATA).of("validation")[:1]
    source = load_sources(cases, SourceSettings(), cache=tmp_path / "cache", strict=True).sources[0]
    assert source.image.shape == source.labels.shape == (112, 112, 112)
    truth = set(np.unique(np.asarray(nibabel.load(cases[0].label_map).dataobj)).tolist())
    assert set(source.labels.unique().tolist()) == truth
    brain = source.labels > 0
    assert source.image[brain].float().mean() > 2.0 * source.image[~brain].float().mean()
    assert source.known["age"] > 18.0
