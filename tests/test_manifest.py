"""A manifest is read as it was meant, or refused in one line that names a row and no patient."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from medsiam.errors import TrainingRefused
from medsiam.training import manifest
from medsiam.training.manifest import assigned_splits, check_enough, read_manifest
from medsiam.training.public_manifests import brain_rows, head_map_rows, radiograph_rows, write_manifests

DATA = Path(os.environ.get("MEDSIAM_DATA") or Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(
    not (DATA / "brains-t1").is_dir(), reason="the public scans are not here; set MEDSIAM_DATA"
)

# A name that must come out in no message.
SECRET = "Meier^Anna"

GOOD = f"""Path,Patient,acquired,split,label_map,age,site
a.nii.gz,{SECRET},2024-01-31,train,a_labels.nii.gz,41.5,north
b.nii.gz,{SECRET},20240302,train,,nan,north
c/series,p2,20240302101500.000000+0100,test,,,"south, old"
"""


def written(folder, text, name="scans.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(folder, text, name="scans.csv", **options):
    """The message with which a table is refused: one line, with the file and without the patient."""
    with pytest.raises(TrainingRefused) as caught:
        read_manifest(written(folder, text, name), **options)
    message = str(caught.value)
    assert name in message and "\n" not in message and ";" in message
    assert SECRET not in message
    return message


def patients(count, split=""):
    return "path,patient,split\n" + "".join(f"{n}.nii.gz,p{n},{split}\n" for n in range(count))


def test_a_table_becomes_cases_in_its_order(tmp_path):
    """Dates of both styles, labels as numbers or text, and nothing where nothing is known."""
    read = read_manifest(written(tmp_path, GOOD), required_labels=("age",))
    first, second, third = read.cases
    assert (first.path, first.label_map) == (tmp_path / "a.nii.gz", tmp_path / "a_labels.nii.gz")
    assert dict(first.labels) == {"age": 41.5, "site": "north"}
    assert dict(second.labels) == {"site": "north"} and second.label_map is None
    assert third.acquired == datetime(2024, 3, 2, 10, 15)
    assert [case.patient_index for case in read.cases] == [0, 0, 1]
    assert [case.row for case in read.cases] == [2, 3, 4]
    assert read.label_columns == ("age", "site") and read.assigned_count == 0
    assert read.of("test") == (third,) and read.patient_count("train") == 1


def test_csv_and_json_of_one_table_give_the_same_cases(tmp_path):
    """JSON may hold true numbers and nothing at all; a patient's number is text in both."""
    entries = [{"path": "a.nii", "patient": 7, "age": 3.5, "ill": True}, {"path": "b.nii", "patient": "8"}]
    by_json = read_manifest(written(tmp_path, json.dumps(entries), "scans.json"))
    by_csv = read_manifest(written(tmp_path, "path,patient,age,ill\na.nii,7,3.5,1\nb.nii,8\n"))
    known = [[(c.path, c.patient, c.split, dict(c.labels)) for c in m.cases] for m in (by_json, by_csv)]
    assert known[0] == known[1]
    assert known[0][0][3] == {"age": 3.5, "ill": 1.0}


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_spreadsheets_export_is_read(tmp_path, delimiter):
    """Byte order mark, other delimiters, Windows line ends, empty rows and columns at the end."""
    text = "path,patient,,\r\na.nii,1,,\r\n,,,\r\nb.nii,2,,\r\n".replace(",", delimiter)
    read = read_manifest(written(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert [(case.patient, case.row) for case in read.cases] == [("1", 2), ("2", 4)]
    assert read.label_columns == ()


def test_relative_paths_start_from_the_root_where_one_is_given(tmp_path):
    """So that a manifest may lie elsewhere than the scans; absolute paths stay."""
    read = read_manifest(written(tmp_path, "path,patient\na.nii,1\n/scans/b.nii,2\n"), root="/data")
    assert [case.path for case in read.cases] == [Path("/data/a.nii"), Path("/scans/b.nii")]


@pytest.mark.parametrize(
    ("text", "name", "complaint"),
    [
        ("", "scans.csv", "lists no scan"),
        ("path,patient\n", "scans.csv", "lists no scan"),
        ("[]", "scans.json", "lists no scan"),
        ("path,patient\na.nii,1\n", "scans.xlsx", "neither .csv nor .json"),
        (b"path,patient\na.nii,\xff\n", "scans.csv", "no UTF-8 text"),
        ("path,patient\na.nii,1\0\n", "scans.csv", "null characters"),
        ('path,patient\na.nii,"1\n', "scans.csv", "no whole CSV"),
        ('[{"path": "a.nii"', "scans.json", "not valid JSON"),
        ('{"path": "a.nii", "patient": 1}', "scans.json", "no list of objects"),
        ('[{"path": "a.nii", "patient": [1]}]', "scans.json", "row 1: 'patient' is a list"),
        (f"file,patient\na.nii,{SECRET}\n", "scans.csv", "no column 'path'"),
        (f"a.nii,{SECRET}\nb.nii,2\n", "scans.csv", "no column 'path'"),
        ("path,age\na.nii,1\n", "scans.csv", "no column 'patient'"),
        ("path,patient,age,age\na.nii,1,2,3\n", "scans.csv", "'age' more than once"),
        (f"path,patient\na.nii,{SECRET},Berlin\n", "scans.csv", "row 2: 3 cells stand under 2"),
        ("path,patient\na.nii,1\nb.nii,\nc.nii,\n", "scans.csv", "row 3: no patient (2 rows"),
        ("path,patient\n,1\n", "scans.csv", "row 2: no path"),
        ("path,patient\na.nii,1\nb.nii,2\n./a.nii,3\n", "scans.csv", "row 4: the same path as in row 2"),
        (f"path,patient,split\na.nii,1,{SECRET}\n", "scans.csv", "row 2: the split is none of train"),
        (f"path,patient,acquired\na.nii,1,{SECRET}\n", "scans.csv", "row 2: 'acquired' is no date"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, text, name, complaint):
    """Each line says file, row, what and remedy; the tables above pass all of these guards."""
    assert complaint in refusal(tmp_path, text, name)


def test_a_missing_or_huge_file_is_refused(tmp_path, monkeypatch):
    """Before a byte of it is read."""
    with pytest.raises(TrainingRefused, match=r"nowhere\.csv cannot be read"):
        read_manifest(tmp_path / "nowhere.csv")
    monkeypatch.setattr(manifest, "LARGEST_FILE_BYTES", len(GOOD))
    assert len(read_manifest(written(tmp_path, GOOD)).cases) == 3
    assert "the most that is read" in refusal(tmp_path, GOOD + "\n")


def test_a_patient_in_two_splits_is_refused_without_being_named(tmp_path):
    """The commonest leak there is; the rows tell where."""
    leak = f"path,patient,split\na.nii,2,test\nb.nii,{SECRET},train\nc.nii,{SECRET},test\nd.nii,2,train\n"
    message = refusal(tmp_path, leak)
    assert "row 3: this patient stands in another split in row 4 (2 patients in all)" in message


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        ("weight", "no column of labels 'weight' (there are: age, site)"),
        ("site", "row 2: 'site' is no number (3 rows in all)"),
        ("patient", "no column of labels 'patient'"),
    ],
)
def test_a_label_that_the_settings_need_must_be_there_as_numbers(tmp_path, column, complaint):
    """`age` of the same table is one number and two gaps, and passes."""
    assert complaint in refusal(tmp_path, GOOD, required_labels=("age", column))


def test_a_label_without_a_single_number_is_refused(tmp_path):
    """Nothing can be learned from it."""
    assert "no number in the column 'age'" in refusal(
        tmp_path, "path,patient,age\na.nii,1,nan\nb.nii,2,\n", required_labels=("age",)
    )


@pytest.mark.parametrize(("word", "value"), [("1e3", 1000.0), ("1_000", "1_000"), ("m", "m")])
def test_a_label_is_a_number_where_it_reads_as_one(tmp_path, word, value):
    """And text where only a programming language would see a number."""
    read = read_manifest(written(tmp_path, f"path,patient,x\na.nii,1,{word}\n"))
    assert read.cases[0].labels["x"] == value


@pytest.mark.parametrize("word", ["", "nan", "inf", "-Infinity", "NA", "1e999"])
def test_a_value_that_is_not_known_is_left_out(tmp_path, word):
    """A gap is no zero."""
    read = read_manifest(written(tmp_path, f"path,patient,x\na.nii,1,{word}\n"))
    assert dict(read.cases[0].labels) == {}


def test_patients_without_a_split_are_assigned_the_same_way_each_time(tmp_path):
    """By hash of patient and seed: the order of the table plays no part, the seed does."""
    names = [f"p{n}" for n in range(50)]
    first = assigned_splits(names, seed=3)
    assert first == assigned_splits(reversed(names), seed=3) != assigned_splits(names, seed=4)
    counts = [list(first.values()).count(split) for split in ("train", "validation", "test")]
    assert counts == [35, 5, 10]
    read = read_manifest(written(tmp_path, patients(50)), seed=3)
    assert {case.patient: case.split for case in read.cases} == first
    assert read.assigned_count == 50


def test_a_split_that_is_told_once_holds_for_all_scans_of_the_patient(tmp_path):
    """A gap in one row must not tear a patient apart."""
    rows = "path,patient,split\na.nii,1,Test\nb.nii,1,\n" + "".join(f"{n}.nii,q{n},\n" for n in range(9))
    read = read_manifest(written(tmp_path, rows))
    assert [case.split for case in read.cases[:2]] == ["test", "test"]
    assert read.assigned_count == 9


def test_six_patients_are_just_enough(tmp_path):
    """Four to learn from and two to tell apart."""
    enough = patients(4, "train") + "x.nii,x,validation\ny.nii,y,validation\n"
    check_enough(read_manifest(written(tmp_path, enough)))
    with pytest.raises(TrainingRefused, match="1 patients in the split 'validation', 2 are the fewest"):
        check_enough(read_manifest(written(tmp_path, enough.replace("y.nii,y,", "y.nii,x,"))))
    with pytest.raises(TrainingRefused, match="3 patients in the split 'train', 4 are the fewest"):
        check_enough(read_manifest(written(tmp_path, enough.replace("p3", "p2"))))


def test_public_manifests_need_the_public_data(tmp_path):
    """An empty folder gives no empty manifest."""
    with pytest.raises(TrainingRefused, match="check the data folder"):
        write_manifests(tmp_path, tmp_path / "out")


@needs_data
def test_public_manifests_are_read_back_with_every_scan_there(tmp_path):
    """Whoever has the data gets the same three tables, whose every path is a file."""
    write_manifests(DATA, tmp_path)
    for name, labels, scans in (("brains", ("age",), 111), ("radiographs", (), 149), ("head_maps", (), 12)):
        read = read_manifest(tmp_path / f"{name}.csv", root=DATA, required_labels=labels)
        assert len(read.cases) == scans and read.assigned_count == 0
        assert all(path.is_file() for case in read.cases for path in (case.path, case.label_map) if path)
        check_enough(read)


@needs_data
def test_public_splits_have_the_sizes_that_the_model_card_tells():
    """Patients in test, validation and train; a dozen of the tested have several radiographs."""
    expected = {brain_rows: (30, 10, 71), radiograph_rows: (20, 4, 20), head_map_rows: (0, 2, 10)}
    for rows_of, sizes in expected.items():
        people = {(row["patient"], row["split"]) for row in rows_of(DATA)}
        assert sizes == tuple(sum(s == split for _, s in people) for split in ("test", "validation", "train"))
    tested = [row["patient"] for row in radiograph_rows(DATA) if row["split"] == "test"]
    assert sum(tested.count(patient) > 1 for patient in set(tested)) == 12


@needs_data
def test_radiographs_of_a_patient_come_in_the_order_of_their_dates():
    """A later image has the more negative offset, which is easily read the wrong way."""
    rows = [row for row in radiograph_rows(DATA) if row["patient"] == "88b33741"]
    # 23 days before admission, and the day after it.
    assert [row["acquired"] for row in rows] == ["1999-12-09", "2000-01-02"]
