"""One patient, one visit, one stack: what belongs together, what is split, what is refused."""

import numpy as np
import pytest

from medsiam.errors import GeometryRefused, IdentityRefused, InputRefused, SeriesAmbiguous, Unreadable
from medsiam.reading import find_series, read_series, read_volume
from tests.dicom_maker import (
    CT,
    KEY,
    changed,
    classic,
    encoded,
    enhanced,
    grid_of,
    identity,
    item,
    radiograph,
    save,
)

SECONDARY_CAPTURE, REPORT = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33"


def find(folder):
    return find_series(folder, key=KEY)


def read(folder):
    return read_volume(folder, key=KEY)


def other(slices, start=100, **changes):
    """The same slices as further files: other instances, with the given changes."""
    for n, ds in enumerate(slices):
        changed(ds, SOPInstanceUID=f"1.2.9.{start + n}", InstanceNumber=start + n, **changes)
    return slices


MIXED = {
    "another patient's number": {"PatientID": "4712"},
    "no patient's number": {"PatientID": None},
    "another issuer": {"IssuerOfPatientID": "ELSEWHERE"},
    "another name": {"PatientName": "Phantom^Paul"},
    "another birth date": {"PatientBirthDate": "19500204"},
    "another study": {"StudyInstanceUID": "1.2.99"},
    "another study date": {"StudyDate": "20240601"},
    "another acquisition date": {"AcquisitionDate": "20240601"},
    "acquired in the evening": {"AcquisitionTime": "201500"},
    "another date without a time": {"AcquisitionDate": "20240103", "AcquisitionTime": None},
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("half", [slice(2, None), slice(1, None, 2)], ids=["end", "interleaved"])
def test_one_series_uid_over_two_patients_or_visits_is_refused(tmp_path, name, half):
    """Even where the slices would make one perfect stack."""
    slices = classic()
    for ds in slices[half]:
        changed(ds, **MIXED[name])
    with pytest.raises(IdentityRefused):
        read(save(slices, tmp_path))


def test_two_time_points_at_the_same_places_are_refused(tmp_path):
    """No tag makes two visits one series."""
    later = other(classic(), AcquisitionDate="20240701", AcquisitionNumber=2)
    with pytest.raises(IdentityRefused, match="time points"):
        read(save(classic(AcquisitionNumber=1) + later, tmp_path))


def test_what_one_visit_may_vary_is_read(tmp_path):
    """Names in other spelling, minutes between slices, midnight."""
    slices = classic(AcquisitionDate="20240102", AcquisitionTime="235900")
    changed(slices[3], PatientName="PHANTOM^PAULA^^", AcquisitionDate="20240103", AcquisitionTime="000130")
    volume = read(save(slices, tmp_path))
    assert volume.acquisition.acquired.isoformat() == "2024-01-02T23:59:00"


SPLITTING = {
    "echoes": ({"EchoTime": 10.0}, {"EchoTime": 90.0}),
    "phases": ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
    "b-values": ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}),
    "acquisitions": (
        {"AcquisitionNumber": 1, "AcquisitionTime": "101500"},
        {"AcquisitionNumber": 2, "AcquisitionTime": "101900"},
    ),
    "kernels": ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}),
    "components": ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
}


@pytest.mark.parametrize("name", SPLITTING)
def test_stacks_told_apart_by_a_tag_become_entries_of_their_own(tmp_path, name):
    """Each complete, each saying which part it is, and none read without being chosen."""
    one, two = SPLITTING[name]
    folder = save(classic(**one) + other(classic(**two)), tmp_path)
    entries = find(folder)
    assert [entry.name for entry in entries] == ["1.2.3.4#1", "1.2.3.4#2"]
    assert all("this is the part with" in entry.acquisition.assumptions[0] for entry in entries)
    assert all(read_series(entry).grid.is_close(grid_of()) for entry in entries)
    if name != "components":
        with pytest.raises(SeriesAmbiguous, match=r"1\.2\.3\.4#2.*--prior-series"):
            read(folder)


def test_the_phase_of_a_complex_image_is_no_candidate(tmp_path):
    """Magnitude is what is compared."""
    one, two = SPLITTING["components"]
    folder = save(classic(**one) + other(classic(**two)), tmp_path)
    assert [entry.role for entry in find(folder)] == ["image", "derived"]
    assert read(folder).acquisition.protocol["part"] == "component magnitude"


def test_a_part_that_lacks_its_last_slice_refuses_the_series(tmp_path):
    """Alone it would pass as a shorter scan."""
    echoes = classic(EchoTime=10.0) + other(classic(EchoTime=90.0))[:-1]
    with pytest.raises(GeometryRefused, match="lie where another one lies"):
        read(save(echoes, tmp_path))


def test_doubled_slices_without_a_tag_are_refused(tmp_path):
    """Instance numbers are no reason."""
    with pytest.raises(GeometryRefused, match="lie where another one lies"):
        read(save(classic() + other(classic()), tmp_path))


@pytest.mark.parametrize("tag", ["EchoTime", "DiffusionBValue", "TemporalPositionIdentifier"])
def test_a_stack_of_two_contrasts_is_no_volume(tmp_path, tag):
    """Every second slice with another echo fits in space and means nothing."""
    slices = classic()
    for n, ds in enumerate(slices):
        changed(ds, **{tag: 10 + 80 * (n % 2)})
    with pytest.raises(GeometryRefused, match="lie in one stack"):
        read(save(slices, tmp_path))


def test_echo_times_that_differ_by_rounding_are_one_echo(tmp_path):
    """2.449 and 2.451 ms are one."""
    slices = classic(EchoTime=2.449)
    slices[1].EchoTime = 2.451
    assert read(save(slices, tmp_path)).grid.is_close(grid_of())


def test_phases_of_an_enhanced_file_are_told_apart(tmp_path):
    """Frames of all phases at each place, as Philips writes them."""

    def phase(frame, n):
        frame.FrameContentSequence[0].TemporalPositionIndex = n % 2 + 1

    folder = save(enhanced(order=[k for k in range(5) for _ in range(2)], extra=phase), tmp_path)
    entries = find(folder)
    assert [entry.acquisition.protocol["part"] for entry in entries] == [
        "temporal position 1",
        "temporal position 2",
    ]
    assert all(read_series(entry).grid.is_close(grid_of()) for entry in entries)


def test_echoes_of_an_enhanced_file_are_told_apart_and_an_incomplete_one_refused(tmp_path):
    """The echo stands in its own group."""

    def echo(frame, n):
        frame.MREchoSequence = item(EffectiveEchoTime=20.0 * (1 + n // 5))

    whole = save(enhanced(order=[*range(5), *range(5)], extra=echo), tmp_path / "whole")
    assert len(find(whole)) == 2
    with pytest.raises(GeometryRefused):
        read(save(enhanced(order=[*range(5), *range(4)], extra=echo), tmp_path / "lacking"))


def test_a_mosaic_is_refused_by_name(tmp_path):
    """Its one position is that of no slice."""
    mosaic = classic(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    with pytest.raises(Unreadable, match="mosaic"):
        read(save(mosaic, tmp_path))


def second_series(slices, **changes):
    return other(slices, SeriesInstanceUID="1.2.3.6", **changes)


def test_a_localiser_beside_the_series_is_left_aside(tmp_path):
    """By its image type or by its name."""
    for n, changes in enumerate(
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, {"SeriesDescription": "3-plane Loc Scout"})
    ):
        folder = save(classic() + second_series(classic(grid_of("sagittal")), **changes), tmp_path / str(n))
        assert sorted(entry.role for entry in find(folder)) == ["image", "localiser"]
        assert read(folder).grid.is_close(grid_of())


def test_a_localiser_inside_the_series_refuses_it(tmp_path):
    """Its slices lie in three directions."""
    with pytest.raises(GeometryRefused, match="mixed orientations"):
        read(save(classic() + other(classic(grid_of("sagittal"))), tmp_path))


@pytest.mark.parametrize(
    ("changes", "role", "reason"),
    [
        ({"ImageType": ["DERIVED", "PRIMARY", "ADC"]}, "derived", "adc"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "derived", "mip"),
        ({"SOPClassUID": SECONDARY_CAPTURE}, "not-an-image-volume", "secondary capture"),
        (
            {"SOPClassUID": REPORT, "PixelData": None, "Rows": None},
            "not-an-image-volume",
            "structured report",
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "not-an-image-volume", "segmentation"),
        ({"SOPClassUID": "1.2.999"}, "not-an-image-volume", "no CT"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "REFORMATTED"]}, "image", ""),
    ],
)
def test_each_series_has_its_role_and_the_reason(tmp_path, changes, role, reason):
    """What is not compared is told, not hidden."""
    entry = find(save(classic(**changes), tmp_path))[0]
    assert entry.role == role
    assert reason in entry.reason


def test_a_single_slice_is_no_volume(tmp_path):
    """And the remedy is the folder it came from."""
    entry = find(save(classic()[:1], tmp_path))[0]
    assert entry.role == "not-an-image-volume"
    with pytest.raises(Unreadable, match=r"single slice.*folder"):
        read(tmp_path)


def test_two_series_are_listed_and_one_can_be_named(tmp_path):
    """A choice is never guessed."""
    folder = save(classic() + second_series(classic(grid_of("coronal")), SeriesDescription="FLAIR"), tmp_path)
    with pytest.raises(SeriesAmbiguous, match="'FLAIR' 5 x 8 x 10"):
        read(folder)
    assert read_volume(folder, series_uid="1.2.3.6", key=KEY).grid.is_close(grid_of("coronal"))
    with pytest.raises(SeriesAmbiguous, match="no series of that name"):
        read_volume(folder, series_uid="7", key=KEY)


def test_a_broken_series_beside_a_good_one_is_told(tmp_path):
    """The good one is read, the other one is not forgotten."""
    folder = save(classic() + second_series(classic())[::2][:2], tmp_path)
    assert any("1 other series" in note for note in read(folder).acquisition.assumptions)


@pytest.mark.parametrize("keep", [0, 200, 700])
def test_a_damaged_file_beside_a_series_refuses_it(tmp_path, keep):
    """It may be the last slice, and a shorter scan would pass for the whole."""
    folder = save(classic(), tmp_path, names=[f"{n}.dcm" for n in range(5)])
    last = folder / "4.dcm"
    last.write_bytes(last.read_bytes()[:keep])
    with pytest.raises(InputRefused):
        read(folder)


def test_files_of_other_kinds_do_not_disturb(tmp_path):
    """Archives hold readme files, thumbnails' databases and hidden twins."""
    folder = save(classic(), tmp_path)
    (folder / "README.txt").write_text("Notes")
    (folder / "Thumbs.db").write_bytes(bytes(500))
    (folder / "._00013_0.dcm").write_bytes(b"hidden")
    assert read(folder).grid.is_close(grid_of())


def test_an_entry_tells_shape_and_spacing_before_pixels_are_read(tmp_path):
    """The batch plans with it."""
    entry = find(save(classic(), tmp_path))[0]
    assert entry.shape_kji == (5, 8, 10)
    assert entry.spacing_kji_mm == pytest.approx((3.0, 1.5, 0.75))
    assert entry.kind == "dicom"
    assert len(entry.paths) == 5


def test_a_radiograph_lies_in_a_plane_of_its_own(tmp_path):
    """x along a row, y down a column, in mm of the detector."""
    volume = read(save(radiograph(), tmp_path))
    assert volume.spatial_dims == 2
    assert volume.grid.spacing_mm == pytest.approx([1.0, 0.2, 0.1])
    assert volume.grid.world([(0, 10, 20)])[0] == pytest.approx([2.0, 2.0, 0.0])
    assert volume.acquisition.protocol["pixel_size_known"] is True


def test_a_radiograph_of_unknown_size_says_so(tmp_path):
    """One millimetre stands for a pixel, and no length is to be believed."""
    volume = read(save(radiograph(ImagerPixelSpacing=None), tmp_path))
    assert volume.grid.spacing_mm == pytest.approx([1.0, 1.0, 1.0])
    assert volume.acquisition.protocol["pixel_size_known"] is False
    assert any("not to be trusted" in note for note in volume.acquisition.assumptions)


def test_two_radiographs_of_one_series_are_two_entries(tmp_path):
    """Frontal and lateral view share a series as often as not."""
    views = [radiograph(ViewPosition="PA"), *other([radiograph(ViewPosition="LL")])]
    with pytest.raises(SeriesAmbiguous):
        read(save(views, tmp_path))
    assert read_volume(tmp_path, series_uid="1.2.3.4#2", key=KEY).spatial_dims == 2


def test_a_slice_that_forgets_its_spacing_does_not_take_the_detectors(tmp_path):
    """Only a radiograph lies in the detector."""
    with pytest.raises(GeometryRefused, match="PixelSpacing"):
        read(save(classic(modality="CT", PixelSpacing=None, ImagerPixelSpacing=[1, 1]), tmp_path))


def test_a_series_without_uid_is_one_series_of_its_folder(tmp_path):
    """Some research exports have none, and an invalid one is none."""
    for n, uid in enumerate(("", "not-a-uid")):
        volume = read(save(classic(SeriesInstanceUID=uid), tmp_path / str(n)))
        assert volume.acquisition.series_uid == ""
        assert any("no valid series UID" in note for note in volume.acquisition.assumptions)


def test_values_agree_with_the_position_of_a_ct(tmp_path):
    """The same for the other modality, with its usual rescale."""
    grid = grid_of("coronal")
    volume = read(save(classic(grid, modality="CT", slope=1, intercept=-1024), tmp_path))
    assert np.ptp(volume.array - encoded(grid)) <= 1.0 + 1e-3


def test_the_kind_of_object_is_asked_not_the_modality(tmp_path):
    """A CT class with a foreign modality is still a CT stack; nothing more is made of it."""
    ds = identity("MR", SOPClassUID=CT)
    assert ds.Modality == "MR"
    assert read(save(classic(SOPClassUID=CT), tmp_path)).acquisition.modality == "MR"


def test_a_spacing_that_the_positions_contradict_is_told(tmp_path):
    """Every second slice may have been left out; the positions are believed."""
    halved = read(save(classic(SpacingBetweenSlices=1.5), tmp_path / "half")).acquisition.assumptions
    assert any("1.5 mm between slices, their positions 3 mm" in note for note in halved)
    agreed = read(save(classic(SpacingBetweenSlices=3.0), tmp_path / "same")).acquisition.assumptions
    assert not any("between slices" in note for note in agreed)


def test_slices_that_share_an_instance_uid_are_told_apart_by_place(tmp_path):
    """Some anonymisers give all of them one."""
    assert read(save(classic(SOPInstanceUID="1.2.3.4.1"), tmp_path)).grid.is_close(grid_of())
