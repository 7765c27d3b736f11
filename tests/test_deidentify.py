"""What leaves for research tells nobody who it was, and still is the same scan."""

import shutil
import subprocess
from datetime import date

import pydicom
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from typer.testing import CliRunner

from medsiam import cli
from medsiam.errors import InputRefused
from medsiam.pairing.series_match import series_likeness
from medsiam.privacy import kept
from medsiam.privacy.deidentify import clean, deidentify
from medsiam.reading import find_series, read_volume
from tests.dicom_maker import KEY
from tests.evidence_maker import KINDS, write_visit

SECRET = "Quetzalcoatl"
# Value types that can hold a text; the shorter ones hold as much of it as fits.
TEXTS = {"PN", "LO", "LT", "ST", "UT", "UC", "UR", "SH", "CS", "AE"}


@pytest.fixture
def exported(tmp_path):
    """Two visits of one patient, copied."""
    for visit in (1, 2):
        write_visit("MR", visit, tmp_path / "scans")
    told = deidentify(tmp_path / "scans", tmp_path / "out", key=KEY)
    return told, tmp_path


def files(folder):
    return sorted(folder.rglob("*.dcm"))


def talkative(ds):
    """The data set with a secret in every text that the dictionary knows, at the root and in a sequence."""
    inner = Dataset()
    for tag, (vr, *_) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        if vr in TEXTS and keyword and keyword not in ds and tag >> 16 not in (0, 2, 4):
            for place in (ds, inner):
                place.add_new(tag, vr, SECRET if vr != "AE" else SECRET[:12])
    for keyword in ("OtherPatientIDsSequence", "RequestAttributesSequence", "FrameContentSequence"):
        setattr(ds, keyword, Sequence([inner]))
    block = ds.private_block(0x0029, SECRET, create=True)
    block.add_new(0x10, "LO", SECRET)
    ds.add_new(0x60003000, "OW", SECRET.encode())
    return ds


def test_no_text_of_a_person_is_left(tmp_path):
    """Every text attribute of the standard, private ones and an overlay hold the secret before."""
    path = files(write_visit("CT", 1, tmp_path))[0]
    made = clean(talkative(pydicom.dcmread(path)), key=KEY)
    left = {
        element.keyword for element in made.iterall() if element.VR != "SQ" and SECRET in str(element.value)
    }
    # Technique words are kept whatever stands in them: vendors' lists, not typed text.
    assert left <= kept.AS_THEY_ARE
    assert not left & {"SeriesDescription", "StationName", "ProtocolName", "PatientComments", "ImageComments"}
    assert not any(element.tag.is_private or element.tag.group >> 8 == 0x60 for element in made.iterall())


def test_names_and_numbers_are_gone_from_the_bytes(exported):
    """Also from the preamble and the file's own header."""
    for path in files(exported[1] / "out"):
        data = path.read_bytes()
        assert not any(word in data for word in (b"Muller", b"4711", b"1.2.3.1", b"20210102", b"19500203"))


def test_the_copy_is_the_same_scan(exported):
    """Same voxels at the same places."""
    _, home = exported
    first = read_volume(home / "scans" / "visit1", key=KEY)
    back = [read_volume(path, key=KEY) for path in {p.parent for p in files(home / "out")}]
    assert any(volume.acquisition.sha256 == first.acquisition.sha256 for volume in back)


def test_the_interval_between_visits_stays_true(exported):
    """One shift a patient; the dates themselves are others."""
    days = sorted({date.fromisoformat(pydicom.dcmread(p).StudyDate) for p in files(exported[1] / "out")})
    assert (days[1] - days[0]).days == 365
    assert days[0] < date(2020, 1, 2)


def test_studies_of_one_patient_stay_together_and_say_what_was_done(exported):
    """One number, two studies, one frame of reference a visit; the method is told."""
    copies = [pydicom.dcmread(path) for path in files(exported[1] / "out")]
    assert exported[0].written == len(copies) == 16 and exported[0].patients == 1
    assert len({ds.PatientID for ds in copies}) == 1 and len({ds.StudyInstanceUID for ds in copies}) == 2
    assert all(ds.PatientIdentityRemoved == "YES" for ds in copies)
    codes = {code.CodeValue for code in copies[0].DeidentificationMethodCodeSequence}
    assert codes == {"113100", "113107"}
    assert copies[0].LongitudinalTemporalInformationModified == "MODIFIED"


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_breaks_no_rule_that_its_original_kept(tmp_path, kind):
    """dciodvfy finds no error in the copy that it did not find before."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    write_visit(kind, 1, tmp_path / "scans")
    deidentify(tmp_path / "scans", tmp_path / "out", key=KEY)

    def errors(path):
        said = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace")
        return {line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")}

    assert errors(files(tmp_path / "out")[0]) <= errors(files(tmp_path / "scans")[0])


def test_a_refusal_before_does_not_stand_in_the_way(tmp_path):
    """The same command with the right path must do; what else is there stays, and refuses."""
    write_visit("MR", 1, tmp_path / "scans")
    out = tmp_path / "out"
    command = [str(tmp_path / "none"), "--out", str(out)]
    assert CliRunner().invoke(cli.app, ["deidentify", *command]).exit_code == 3
    assert [path.name for path in out.iterdir()] == ["report.json"]
    deidentify(tmp_path / "scans", out, key=KEY)
    assert files(out) and not (out / "report.json").exists()
    with pytest.raises(InputRefused, match="not empty"):
        deidentify(tmp_path / "scans", out, key=KEY)


def test_the_key_decides_and_another_key_decides_otherwise(tmp_path):
    """The same key gives the same copy, so that a later visit joins the earlier ones."""
    path = files(write_visit("CR", 1, tmp_path))[0]
    ours, again, other = (clean(pydicom.dcmread(path), key=key) for key in (KEY, KEY, KEY[::-1]))
    assert ours == again
    assert ours.StudyInstanceUID.startswith("2.25.") and ours.StudyInstanceUID.is_valid
    assert other.PatientID != ours.PatientID and other.StudyInstanceUID != ours.StudyInstanceUID


def test_visits_still_find_each_other_without_their_descriptions(exported):
    """Technique is enough to match the series."""
    entries = [entry for entry in find_series(exported[1] / "out", key=KEY) if entry.is_usable]
    assert len(entries) == 2 and series_likeness(*entries) > 0.4


def test_what_cannot_be_cleaned_is_left_out_and_counted(tmp_path):
    """A report, text in the picture, nobody's scan, a note: none is copied, each is told."""
    home = tmp_path / "scans"
    write_visit("MR", 1, home)
    write_visit("CR", 2, home, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.34")
    write_visit("CR", 3, home, BurnedInAnnotation="YES")
    write_visit("CR", 4, home, PatientID="")
    (home / "note.txt").write_text("Muller came on Tuesday")
    told = deidentify(home, tmp_path / "out", key=KEY)
    assert told.written == 8
    assert set(told.left_out.values()) == {1} and len(told.left_out) == 4


def test_nothing_to_export_leaves_no_folder(tmp_path):
    """And says why."""
    write_visit("CR", 1, tmp_path / "scans", BurnedInAnnotation="YES")
    with pytest.raises(InputRefused, match="1 files text burned"):
        deidentify(tmp_path / "scans", tmp_path / "out", key=KEY)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    """Two exports with two keys must not be mixed; an empty folder is filled."""
    write_visit("CR", 1, tmp_path / "scans")
    (tmp_path / "out").mkdir()
    deidentify(tmp_path / "scans", tmp_path / "out", key=KEY)
    with pytest.raises(InputRefused, match="not empty"):
        deidentify(tmp_path / "scans", tmp_path / "out", key=KEY)


def test_the_command_tells_what_it_did(tmp_path, monkeypatch):
    """Counts on standard output, no name anywhere."""
    monkeypatch.setenv("MEDSIAM_KEY", KEY.decode())
    write_visit("CR", 1, tmp_path / "scans")
    done = CliRunner().invoke(
        cli.app, ["deidentify", str(tmp_path / "scans"), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0 and "1 file of 1 patient" in done.stdout and "Muller" not in done.output
