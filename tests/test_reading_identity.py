"""Whose scan it is stays in the reading room, and what else the header tells comes out."""

import stat
from datetime import datetime

import pytest

from medsiam.errors import ConfigRefused, MedsiamError
from medsiam.reading import birth_key, find_series, load_key, patient_key, read_volume
from tests.dicom_maker import KEY, changed, classic, enhanced, item, radiograph, save


def acquisition(datasets, folder):
    return read_volume(save(datasets, folder), key=KEY).acquisition


def test_one_patient_has_one_key_under_one_secret():
    """Blanks do not count, issuer and secret do."""
    key = patient_key("4711", None, KEY)
    assert key == patient_key(" 4711 ", "", KEY)
    assert len(key) == 20
    others = {
        patient_key("4712", None, KEY),
        patient_key("4711", "X", KEY),
        patient_key("4711", None, b"other" * 8),
    }
    assert key not in others
    assert len(others) == 3


def test_an_empty_number_has_no_key():
    """Two unknown patients are not one patient."""
    assert patient_key("", "HOSPITAL", KEY) is None
    assert patient_key(None, None, KEY) is None
    assert birth_key("", "F", KEY) is None
    assert birth_key("19500203", "f", KEY) == birth_key("19500203", "F", KEY)


def test_fields_do_not_run_into_each_other():
    """Number 12 of issuer 3 is not number 1 of issuer 23."""
    assert patient_key("12", "3", KEY) != patient_key("1", "23", KEY)


def test_the_number_has_a_key_of_its_own_beside_its_issuer(tmp_path):
    """So that a scan that tells no issuer can be met; a patient's name in that place is not kept."""
    told = acquisition(classic(IssuerOfPatientID="HERE"), tmp_path / "told")
    bare = acquisition(classic(), tmp_path / "bare")
    odd = acquisition(classic(IssuerOfPatientID="card of Phantom"), tmp_path / "odd")
    assert (told.issuer, bare.issuer, odd.issuer) == ("HERE", "", "")
    assert told.number_key == bare.number_key == odd.number_key
    assert told.number_key is not None
    assert len({told.patient_key, bare.patient_key, odd.patient_key}) == 3
    assert told.number_key not in (told.patient_key, bare.patient_key)


def test_the_key_comes_from_config_then_environment_then_a_file(monkeypatch, tmp_path):
    """The file is made once, for its owner alone."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("MEDSIAM_KEY", raising=False)
    made = load_key()
    file = tmp_path / "medsiam" / "patient.key"
    assert load_key() == made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["patient.key"]
    monkeypatch.setenv("MEDSIAM_KEY", "from the environment")
    assert load_key() == b"from the environment"
    assert load_key("from the configuration") == b"from the configuration"


def test_without_a_home_the_key_lives_as_long_as_the_process(monkeypatch, tmp_path):
    """A container may have none; the same patient still meets itself."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("MEDSIAM_KEY", raising=False)
    assert load_key() == load_key()
    assert len(load_key()) >= 32


def test_a_short_key_is_refused(monkeypatch, tmp_path):
    """It could be guessed together with the numbers; an emptied key file is no new key."""
    with pytest.raises(ConfigRefused, match="needs 16"):
        load_key("short")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("MEDSIAM_KEY", raising=False)
    (tmp_path / "medsiam").mkdir()
    (tmp_path / "medsiam" / "patient.key").write_bytes(b"")
    with pytest.raises(ConfigRefused, match="put the true key back"):
        load_key()


@pytest.mark.filterwarnings("always")
def test_no_name_and_no_number_leaves_the_room(tmp_path, capfd, caplog, recwarn):
    """Neither in values nor in errors, logs, warnings; also where the header is broken."""
    slices = classic(
        PatientName="Secretname^Ann" + "x" * 80, PatientID="SECRET-77" * 9, PatientBirthDate="19331231"
    )
    save(slices, tmp_path / "good")
    recwarn.clear()
    entry = find_series(tmp_path / "good", key=KEY)[0]
    told = repr(entry) + repr(entry.acquisition)
    changed(slices[2], PatientID="SECRET-78", PatientName="Secretname^Eve")
    with pytest.raises(MedsiamError) as caught:
        read_volume(save(slices, tmp_path / "mixed"), key=KEY)
    printed = capfd.readouterr()
    warned = "".join(str(warning.message) for warning in recwarn if "tests" not in warning.filename)
    everything = told + str(caught.value) + printed.out + printed.err + caplog.text + warned
    assert "ecret" not in everything.lower()
    assert "19331231" not in everything


def test_patient_and_birth_are_keyed(tmp_path):
    """What pairing asks to tell one patient from another."""
    found = acquisition(classic(), tmp_path)
    assert found.patient_key == patient_key("4711", "", KEY)
    assert found.birth_key == birth_key("19500203", "F", KEY)
    assert acquisition(classic(PatientID="", PatientBirthDate=""), tmp_path / "none").patient_key is None


TIMES = {
    "acquisition date and time": ({}, datetime(2024, 1, 2, 10, 15, 0, 500000), True),
    "acquisition date-time": (
        {"AcquisitionDateTime": "20240102111213.5+0100"},
        datetime(2024, 1, 2, 11, 12, 13, 500000),
        True,
    ),
    "no time of day": ({"AcquisitionTime": None}, datetime(2024, 1, 2), False),
    "series date": ({"AcquisitionDate": None, "SeriesDate": "20240103"}, datetime(2024, 1, 3), False),
    "study date": ({"AcquisitionDate": None, "StudyDate": "2024.01.04"}, datetime(2024, 1, 4, 10, 0), True),
    "a date that is none": ({"AcquisitionDate": "20241399"}, datetime(2024, 1, 2, 10, 0), True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TIMES)
def test_the_time_of_acquisition_is_the_best_one_told(tmp_path, name):
    """And whether the time of day is known."""
    changes, wanted, known = TIMES[name]
    found = acquisition(classic(**changes), tmp_path)
    assert found.acquired == wanted
    assert found.protocol["acquired_time_known"] is known


def test_the_earliest_slice_tells_when_a_series_began(tmp_path):
    """Whatever its place or number."""
    slices = classic()
    slices[3].AcquisitionTime = "101459"
    assert acquisition(slices, tmp_path).acquired == datetime(2024, 1, 2, 10, 14, 59)


def test_technique_is_told_by_name_and_what_differs_between_slices_is_not(tmp_path):
    """A missing key was not told."""
    slices = classic(
        EchoTime=3.5, RepetitionTime=2000, MagneticFieldStrength=3, PatientPosition="HFS", PatientAge="074Y"
    )
    for n, ds in enumerate(slices):
        changed(ds, StationName="MR1", DeviceSerialNumber="S-1234", SliceThickness=3, FlipAngle=n)
    told = acquisition(slices, tmp_path).protocol
    assert told["echo_time_ms"] == 3.5
    assert (told["field_strength_t"], told["patient_position"], told["age_years"]) == (3, "HFS", 74)
    assert (told["sex"], told["manufacturer"], told["station"]) == ("F", "MAKER", "MR1")
    assert "flip_angle_deg" not in told
    assert "S-1234" not in repr(told)
    assert len(told["device_key"]) == 20


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [({"ContrastBolusAgent": "GADOVIST"}, True), ({"ContrastBolusAgent": "NONE"}, False), ({}, None)],
)
def test_a_contrast_agent_is_told_only_where_the_header_tells_it(tmp_path, changes, wanted):
    """A missing tag is no "without"."""
    assert acquisition(classic(**changes), tmp_path).protocol.get("contrast_agent") is wanted


def test_a_hint_at_contrast_in_the_name_is_an_assumption_only(tmp_path):
    """Names are typed by people."""
    found = acquisition(classic(SeriesDescription="T1 MPRAGE +C"), tmp_path)
    assert "contrast_agent" not in found.protocol
    assert any("contrast agent" in note for note in found.assumptions)


@pytest.mark.filterwarnings("ignore")
def test_text_of_a_header_is_harmless(tmp_path):
    """No line breaks, no control characters, no novels; no UID that is none."""
    hostile = "T1\x1b[31m\n" + "x" * 500
    found = acquisition(classic(SeriesDescription=hostile, FrameOfReferenceUID="<script>"), tmp_path)
    assert found.description.isprintable()
    assert len(found.description) <= 64
    assert found.frame_of_reference_uid == ""


def test_enhanced_files_tell_their_technique_from_their_groups(tmp_path):
    """The same names as for a classic file."""

    def echo(frame, n):
        frame.MREchoSequence = item(EffectiveEchoTime=98.0)

    assert acquisition(enhanced(extra=echo), tmp_path).protocol["echo_time_ms"] == 98.0


def test_the_digest_is_of_the_content_alone(tmp_path):
    """Other names and other patients: the same image; another voxel or place: another one."""
    wanted = acquisition(classic(), tmp_path / "a").sha256
    renamed = save(
        classic(PatientID="1", SeriesDescription="X"), tmp_path / "b", names=[f"{n}" for n in "edcba"]
    )
    assert read_volume(renamed, key=KEY).acquisition.sha256 == wanted
    moved = classic()
    for ds in moved:
        ds.ImagePositionPatient[0] += 0.01
    assert acquisition(moved, tmp_path / "c").sha256 != wanted
    brighter = classic()
    brighter[0].PixelData = b"\x01\x00" + brighter[0].PixelData[2:]
    assert acquisition(brighter, tmp_path / "d").sha256 != wanted


def test_padding_and_view_of_a_radiograph_are_told(tmp_path):
    """Values stay as they are."""
    told = acquisition(
        radiograph("DX", ViewPosition="PA", PixelPaddingValue=0, PatientOrientation=["L", "F"]), tmp_path
    )
    assert told.protocol["view_position"] == "PA"
    assert told.protocol["pixel_padding_value"] == 0
    assert told.protocol["patient_orientation"] == "L\\F"
