"""Random input of every kind that a stranger can hand in: an answer that is true, or a refusal.

The budget is short; MEDSIAM_FUZZ=nightly makes it fifty times longer.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from medsiam.batch.ledger import Ledger
from medsiam.cases import filters
from medsiam.cases.case import ASKABLE
from medsiam.cases.folder import CARD
from medsiam.cases.index import CaseIndex
from medsiam.config import CompareSettings, load_settings, settings_as_dict
from medsiam.errors import (
    ConfigRefused,
    FilterRefused,
    IndexRefused,
    MedsiamError,
    ResultDamaged,
    ServingRefused,
    TrainingRefused,
    WeightsRefused,
)
from medsiam.reading import read_volume
from medsiam.report.comparison_json import to_json
from medsiam.report.digests import DIGESTS, verify
from medsiam.report.schema import violations
from medsiam.serving.job import Request
from medsiam.serving.server import _request
from medsiam.training.manifest import read_manifest
from medsiam.weightfile import read_weights, write_weights
from tests import comparison_maker
from tests.dicom_maker import KEY, classic, enhanced, save
from tests.hostile import files
from tests.hostile.case import EITHER, GRID, Case, check_volume

pytestmark = pytest.mark.filterwarnings("ignore")

NIGHTLY = os.environ.get("MEDSIAM_FUZZ") == "nightly"


def budget(examples: int):
    """So many examples, fifty times as many at night."""
    return settings(
        max_examples=examples * (50 if NIGHTLY else 1),
        deadline=None,
        derandomize=not NIGHTLY,
        suppress_health_check=list(HealthCheck),
    )


# Bytes: a good file, damaged in a few places.

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["put", "drop", "add", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits) -> bytes:
    """The bytes with pieces overwritten, taken out, added, or cut off."""
    for kind, share, piece in edits:
        at = int(share * len(data))
        end = {"put": at + len(piece), "drop": at + len(piece), "add": at, "cut": len(data)}[kind]
        data = data[:at] + (piece if kind in ("put", "add") else b"") + data[end:]
    return data


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def true_or_refused(path: Path, case: Case | None = None) -> None:
    try:
        volume = read_volume(path, key=KEY)
    except MedsiamError as refusal:
        assert "\n" not in str(refusal) and "; " in str(refusal)
        return
    assert np.isfinite(volume.array).all() and volume.array.dtype == np.float32
    if case:
        check_volume(volume, case)


@pytest.fixture(scope="module")
def classic_folder(home):
    return save(classic(GRID), home / "classic", names=[f"{n}.dcm" for n in range(5)])


@given(edits=EDITS, which=st.integers(0, 4))
@budget(150)
def test_a_damaged_slice_is_refused_or_true(classic_folder, edits, which):
    """Only its pixels may change unseen; they are left out here."""
    path = classic_folder / f"{which}.dcm"
    data = path.read_bytes()
    header = data.index(b"\xe0\x7f\x10\x00")
    damaged = edited(data[:header], edits)
    path.write_bytes(damaged + data[header:])
    try:
        assume(damaged != data[:header])
        true_or_refused(classic_folder, Case(lambda folder: folder, EITHER))
    finally:
        path.write_bytes(data)


@given(edits=EDITS)
@budget(100)
def test_a_damaged_enhanced_file_is_survived(home, edits):
    """Its geometry stands in one place only, so a lie in it cannot be seen; a crash can."""
    source = home / "enhanced" / "0.dcm"
    if not source.exists():
        save(enhanced(GRID), home / "enhanced", names=["0.dcm"])
    (home / "damaged.dcm").write_bytes(edited(source.read_bytes(), edits))
    true_or_refused(home / "damaged.dcm")


@given(edits=EDITS)
@budget(100)
def test_a_damaged_packed_nifti_is_refused(home, edits):
    """Its checksum speaks for header and voxels."""
    good = gzip.compress(files.picture().to_bytes(), mtime=0)
    damaged = edited(good, edits)
    # The first ten bytes are gzip's own: name flags, time, system.
    assume(damaged[10:] != good[10:])
    (home / "damaged.nii.gz").write_bytes(damaged)
    true_or_refused(home / "damaged.nii.gz", Case(lambda folder: folder, EITHER, "", files.TRUE, 0.0))


@given(edits=EDITS)
@budget(100)
def test_a_damaged_plain_nifti_is_survived(home, edits):
    (home / "damaged.nii").write_bytes(edited(files.picture().to_bytes(), edits))
    true_or_refused(home / "damaged.nii")


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
@given(edits=EDITS)
@budget(40)
def test_a_damaged_picture_is_survived(home, ending, edits):
    source = home / f"good.{ending}"
    if not source.exists():
        Image.fromarray(np.add.outer(np.arange(32), np.arange(24)).astype(np.uint8)).save(source)
    (home / f"damaged.{ending}").write_bytes(edited(source.read_bytes(), edits))
    true_or_refused(home / f"damaged.{ending}")


@given(edits=EDITS)
@example(edits=[("put", 0.995, b"\x00")])
@budget(40)
def test_a_damaged_zip_is_refused_or_true(home, classic_folder, edits):
    """Each member has a checksum."""
    with zipfile.ZipFile(home / "good.zip", "w") as file:
        for path in sorted(classic_folder.iterdir()):
            file.write(path, path.name)
    (home / "damaged.zip").write_bytes(edited((home / "good.zip").read_bytes(), edits))
    true_or_refused(home / "damaged.zip", Case(lambda folder: folder, EITHER))


@given(
    data=st.binary(max_size=300), ending=st.sampled_from(["dcm", "nii", "nii.gz", "png", "tif", "zip", ""])
)
@budget(100)
def test_noise_under_any_name_is_refused(home, data, ending):
    path = home / f"noise.{ending}".rstrip(".")
    path.write_bytes(data)
    with pytest.raises(MedsiamError):
        read_volume(path, key=KEY)


@given(edits=EDITS)
@budget(60)
def test_damaged_weights_are_refused_or_whole(home, edits):
    import torch

    path = home / "good.safetensors"
    write_weights(path, {"a": torch.arange(12.0).reshape(3, 4)}, {"record": "{}"})
    (home / "damaged.safetensors").write_bytes(edited(path.read_bytes(), edits))
    try:
        found = read_weights(home / "damaged.safetensors")
    except WeightsRefused:
        return
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in found.tensors.values())


# Words: the filter.

SIGNS = "label.grade and or not between in is null ( ) , = != < <= > >= 'MR' 'it''s' 40 1e999 ' ; -- ٣"
WORDS = (*ASKABLE, *SIGNS.split(), "'2023-01-01'", "-1.5e3", "\0")


@given(words=st.lists(st.sampled_from(WORDS), max_size=14) | st.text(max_size=40).map(lambda text: [text]))
@budget(400)
def test_any_words_are_a_filter_or_are_refused(words):
    """Values are finite or text without hidden letters: engines make their own query of them."""
    try:
        found = filters.parse(" ".join(words), labels=("grade",))
    except FilterRefused as refusal:
        assert "\n" not in str(refusal)
        return
    for test in each_test_of(found):
        assert test.column in (*ASKABLE, "acquired_day", "label_grade")
        assert all(
            value.isprintable() if isinstance(value, str) else math.isfinite(value) for value in test.values
        )


def each_test_of(found):
    if isinstance(found, filters.Test):
        return [found]
    assert isinstance(found, (filters.Every, filters.Some))
    return [test for part in found.parts for test in each_test_of(part)]


PLAIN_TEST = st.sampled_from(
    [
        "modality = 'MR'",
        "age between 40 and 60",
        "sex in ('F', 'M')",
        "label.grade != 'II'",
        "outcome is not null",
    ]
)
TREES = st.recursive(
    PLAIN_TEST,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map(lambda parts: f"({''.join(parts)})"),
        inner.map(lambda text: f"not ({text})"),
    ),
    max_leaves=8,
)


@given(tree=TREES)
@budget(100)
def test_a_filter_that_follows_the_grammar_is_never_refused(tree):
    """Turned over twice it is itself again."""
    assume(tree.count("(") < 12)
    assert filters.parse(f"not (not ({tree}))", labels=("grade",)) == filters.parse(tree, labels=("grade",))


# Values: settings, tables, requests, reports.

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=8), st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = settings_as_dict(CompareSettings())


@st.composite
def near_settings(draw):
    """The settings as a file would tell them, with some values exchanged for anything."""
    section = draw(st.sampled_from(sorted(KEYS)))
    key = draw(st.sampled_from(sorted(KEYS[section])))
    return {section: draw(VALUES | st.just({key: draw(VALUES)}))}


@given(told=near_settings())
@budget(200)
def test_any_settings_are_taken_whole_or_refused(home, told):
    (home / "c.yaml").write_text(yaml.safe_dump(told, allow_unicode=True), encoding="utf-8")
    settings_or_refusal(home / "c.yaml")


@given(text=st.text(alphabet=st.sampled_from("registration: {}[]&*!|>?-'\"\n\t #%@0e~.,<"), max_size=60))
@budget(200)
def test_any_text_as_settings_is_taken_or_refused(home, text):
    (home / "c.yaml").write_text(text, encoding="utf-8")
    settings_or_refusal(home / "c.yaml")


def settings_or_refusal(path):
    try:
        found = load_settings(path, CompareSettings)
    except ConfigRefused as refusal:
        assert str(path) in str(refusal)
        return
    json.dumps(settings_as_dict(found), allow_nan=False)


NAMES = "path patient split acquired kind archive study_uid files row inputs case_id key report.json ../x"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES.split()) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
DEEP = "[" * 100_000


@given(told=st.lists(JSON, max_size=3) | JSON)
@budget(150)
def test_any_json_is_a_table_of_scans_or_refused(home, told):
    (home / "m.json").write_text(json.dumps(told), encoding="utf-8")
    with_refusal(TrainingRefused, lambda: read_manifest(home / "m.json"))


@given(text=st.text(alphabet=st.sampled_from("path,patient;split\t\n\r\"'ab01.-\0é"), max_size=80))
@budget(150)
def test_any_text_is_a_table_of_scans_or_refused(home, text):
    (home / "m.csv").write_text("path,patient,split\n" + text, encoding="utf-8")
    with_refusal(TrainingRefused, lambda: read_manifest(home / "m.csv"))


def with_refusal(kind, act):
    """Does it; a refusal of this kind is as good as a result."""
    try:
        act()
    except kind as refusal:
        assert "\n" not in str(refusal)


@given(
    body=JSON.map(lambda told: json.dumps(told).encode()) | st.binary(max_size=40) | st.just(DEEP.encode())
)
@budget(150)
def test_any_request_is_a_job_or_refused(body):
    with_refusal(ServingRefused, lambda: _request(body))


@given(
    uid=st.text(alphabet=st.sampled_from("01.٣²/\\\n "), max_size=70),
    content=st.text(alphabet="0af٣\n", max_size=65),
)
@budget(100)
def test_a_request_lets_no_path_and_no_strange_digit_through(uid, content):
    try:
        asked = Request("compare", "here", uid, content)
    except ServingRefused:
        return
    assert set(asked.study_uid) <= set("0123456789.") and set(asked.content) <= set("0123456789abcdef")


@given(told=JSON.map(json.dumps) | st.just(DEEP) | st.text(max_size=20))
@budget(100)
def test_files_of_our_own_that_were_changed_are_refused(home, told):
    """A ledger, an index card and a list of digests are only files: anyone may have written them."""
    for name in (DIGESTS, CARD):
        (home / name).write_text(told, encoding="utf-8")
    with_refusal(ResultDamaged, lambda: verify(home))
    with_refusal(IndexRefused, lambda: CaseIndex.open(home))
    ledger = Ledger(home / "batch")
    path = ledger._path("case")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(told, encoding="utf-8")
    assert ledger.record("case") is None


@given(key=st.sampled_from(["verdict", "change", "findings", "registration", "prior", "status"]), value=JSON)
@budget(60)
def test_a_report_that_was_changed_breaks_its_schema_or_says_the_same(key, value):
    """The schema is closed: no odd value of a part passes."""
    report = to_json(comparison_maker.comparison(), files={})
    report = json.loads(json.dumps(report))
    assume(report[key] != value)
    found = violations({**report, key: value})
    is_other_word = key in ("verdict", "status") and isinstance(value, str)
    assert found or is_other_word or (key == "findings" and value == [])
