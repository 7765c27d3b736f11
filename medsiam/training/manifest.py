"""The user's own scans, listed in a table: which file, whose, when, for what, known labels.

    CSV or JSON -> rows of text -> checked -> patients split -> Manifest

Patients are split, never scans: two scans of one person on both sides of a split
would let a network pass by knowing the person. A refusal names rows, never a patient.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medsiam.errors import TrainingRefused

SPLITS = ("train", "validation", "test")

REQUIRED = ("path", "patient")
# Every other column is a label.
KNOWN_COLUMNS = (*REQUIRED, "acquired", "split", "label_map")

# A million scans need a quarter of this; more is not a table of scans.
LARGEST_FILE_BYTES = 200 * 2**20

# Shares of the patients where the table does not split them. Two people are the
# fewest that can be told apart, so validation has at least two.
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
FEWEST_VALIDATION, FEWEST_TRAIN = 2, 4

# What stands in a cell whose value is not known.
_NO_VALUE = ("", "nan", "na", "n/a", "null", "none")
_DELIMITERS = (",", ";", "\t")
# Date and time without a break, as in DICOM's DT; parts of a second and zone may follow.
_DICOM_TIME = re.compile(r"(\d{8})(\d{4}|\d{6})(?:\.\d{1,6})?(?:[+-]\d{4})?")


@dataclass(frozen=True)
class Case:
    """One scan of the table.

    path           file or folder
    patient        whose it is, as the table says it; never for a log
    patient_index  the same as a number, counted within the table
    acquired       when, without a time zone; None where not told
    split          "train", "validation" or "test"
    label_map      a label map of the same patient space, None where there is none
    labels         column to number or text; what is not known in this row is left out
    row            where it stands in the table, for messages
    """

    path: Path
    patient: str
    patient_index: int
    acquired: datetime | None
    split: str
    label_map: Path | None
    labels: Mapping[str, float | str]
    row: int


@dataclass(frozen=True, eq=False)
class Manifest:
    """The whole table.

    path            where it was read
    cases           in the order of the table
    label_columns   all columns of labels
    sha256          digest of the file
    assigned_count  patients whose split the table did not tell
    """

    path: Path
    cases: tuple[Case, ...]
    label_columns: tuple[str, ...]
    sha256: str
    assigned_count: int

    def of(self, split: str) -> tuple[Case, ...]:
        """The cases of one split, in the order of the table."""
        return tuple(case for case in self.cases if case.split == split)

    def patient_count(self, split: str) -> int:
        """How many patients one split has."""
        return len({case.patient_index for case in self.cases if case.split == split})


def read_manifest(
    path: str | Path,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    required_labels: Sequence[str] = (),
) -> Manifest:
    """The scans that a CSV or JSON table lists, each patient in one split.

    root             folder that relative paths start from; the table's own where not given
    seed             of the split where the table tells none
    required_labels  columns that must be there and hold numbers or nothing

    A CSV row is counted as a spreadsheet shows it, the heading being row 1; JSON
    objects are counted from 1. Raises TrainingRefused with file, row and remedy.
    """
    path = Path(path)
    data = _bytes_of(path)
    table = _from_json(path, data) if path.suffix.lower() == ".json" else _from_csv(path, data)
    _check_columns(table, required_labels)
    base = Path(root) if root is not None else path.parent
    _check_paths(table, base)
    splits, assigned_count = _splits(table, seed)
    numbers = {patient: n for n, patient in enumerate(dict.fromkeys(table.column("patient")))}
    cases = tuple(_case(table, at, base, numbers, splits) for at in range(len(table.rows)))
    return Manifest(path, cases, table.label_columns, hashlib.sha256(data).hexdigest(), assigned_count)


def check_enough(manifest: Manifest) -> None:
    """Raises TrainingRefused where too few patients are left to learn from or to validate with."""
    for split, fewest in (("train", FEWEST_TRAIN), ("validation", FEWEST_VALIDATION)):
        count = manifest.patient_count(split)
        if count < fewest:
            raise TrainingRefused(
                f"{manifest.path}: {count} patients in the split {split!r}, {fewest} are the fewest that "
                "can be used; add patients, or move some in the column 'split'"
            )


def assigned_splits(
    patients: Iterable[str], *, seed: int = 0, validation: int | None = None, test: int | None = None
) -> dict[str, str]:
    """Patient to split: the first by a hash are for test, the next for validation, the rest train.

    validation, test  how many patients; shares of them where not given. The same
    patients and seed give the same splits, in whatever order they come; with other
    patients some may change sides, so keep a split that matters in the table.
    """
    ranked = sorted(set(patients), key=lambda patient: _rank(patient, seed))
    count = len(ranked)
    test = round(TEST_SHARE * count) if test is None else test
    if validation is None:
        validation = max(FEWEST_VALIDATION, round(VALIDATION_SHARE * count))
    words = ["test"] * test + ["validation"] * validation
    words += ["train"] * max(0, count - len(words))
    return dict(zip(ranked, words, strict=False))


def _rank(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()


# The file as a table of text


@dataclass(frozen=True, eq=False)
class _Table:
    """Rows of text: every row has every column, "" where it says nothing.

    numbers  the row's number in the file, for messages
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    numbers: tuple[int, ...]

    @property
    def label_columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name not in KNOWN_COLUMNS)

    def column(self, name: str) -> list[str]:
        """The cells of one column, in order; "" where there is no such column."""
        return [row.get(name, "") for row in self.rows]

    def refused(self, at: int, what: str) -> TrainingRefused:
        """The error for a row, by its place in `rows`."""
        return TrainingRefused(f"{self.path}, row {self.numbers[at]}: {what}")


def _bytes_of(path: Path) -> bytes:
    if path.suffix.lower() not in (".csv", ".tsv", ".json"):
        raise TrainingRefused(f"{path} ends in neither .csv nor .json; write the table as one of them")
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise TrainingRefused(
                f"{path} has {size >> 20} MiB, {LARGEST_FILE_BYTES >> 20} are the most that is read; "
                "list scans only, one a row"
            )
        return path.read_bytes()
    except OSError as error:
        raise TrainingRefused(f"{path} cannot be read ({error.strerror}); check the path") from error


def _text_of(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingRefused(f"{path} is no UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise TrainingRefused(f"{path} holds null characters and is no text; save it as CSV or JSON")
    return text


def _from_csv(path: Path, data: bytes) -> _Table:
    text = _text_of(path, data)
    delimiter = max(_DELIMITERS, key=text.split("\n", 1)[0].count)
    try:
        cells = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise TrainingRefused(f"{path} is no whole CSV table ({error}); export it again") from error
    columns = _columns(path, cells[0] if cells else [])
    held = [(n, row) for n, row in enumerate(cells[1:], start=2) if any(cell.strip() for cell in row)]
    for number, row in held:
        if any(cell.strip() for cell in row[len(columns) :]):
            raise TrainingRefused(
                f"{path}, row {number}: {len(row)} cells stand under {len(columns)} headings; "
                f"put text that holds {delimiter!r} in quotation marks"
            )
    rows = tuple(_row(columns, [cell.strip() for cell in row]) for _, row in held)
    return _Table(path, tuple(name for name in columns if name), rows, tuple(n for n, _ in held))


def _row(columns: Sequence[str], cells: Sequence[str]) -> Mapping[str, str]:
    # A spreadsheet leaves out empty cells at the end of a row.
    whole = [*cells, *[""] * (len(columns) - len(cells))]
    return {name: cell for name, cell in zip(columns, whole, strict=False) if name}


def _columns(path: Path, heading: Sequence[str]) -> list[str]:
    """The headings; those that are known in small letters. "" stands over an unused column.

    Raises TrainingRefused where one is missing or there twice.
    """
    names = [name.strip() for name in heading]
    names = [name.lower() if name.lower() in KNOWN_COLUMNS else name for name in names]
    missing = [name for name in REQUIRED if names and name not in names]
    if missing:
        # What stands there instead is not told: without a heading it is a patient.
        raise TrainingRefused(
            f"{path} has no column {missing[0]!r}; head the columns, {' and '.join(REQUIRED)} among them"
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise TrainingRefused(f"{path} has the column {twice[0]!r} more than once; rename one of them")
    return names


def _from_json(path: Path, data: bytes) -> _Table:
    try:
        entries = json.loads(_text_of(path, data))
    except (ValueError, RecursionError) as error:
        raise TrainingRefused(f"{path} is not valid JSON ({error}); write a list of objects") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TrainingRefused(f"{path} is no list of objects; write one object for each scan")
    keys = list(dict.fromkeys(key for entry in entries for key in entry))
    columns = _columns(path, keys)
    rows = tuple(
        _row(columns, [_cell(path, number, key, entry.get(key)) for key in keys])
        for number, entry in enumerate(entries, start=1)
    )
    return _Table(path, tuple(name for name in columns if name), rows, tuple(range(1, len(rows) + 1)))


def _cell(path: Path, number: int, key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (int, float, str)):
        return str(value).strip()
    raise TrainingRefused(f"{path}, row {number}: {key!r} is a {type(value).__name__}; give a number or text")


# Checks


def _check_columns(table: _Table, required_labels: Sequence[str]) -> None:
    if not table.rows:
        raise TrainingRefused(f"{table.path} lists no scan; write one row for each")
    for name in REQUIRED:
        empty = [at for at, cell in enumerate(table.column(name)) if not cell]
        if empty:
            raise table.refused(empty[0], f"no {name} ({len(empty)} rows in all); fill the column {name!r}")
    for name in required_labels:
        if name not in table.label_columns:
            labels = ", ".join(table.label_columns) or "none"
            raise TrainingRefused(
                f"{table.path} has no column of labels {name!r} (there are: {labels}); add it, or take it "
                "out of the settings"
            )
        _check_numeric(table, name)


def _check_numeric(table: _Table, name: str) -> None:
    values = [_value(cell) for cell in table.column(name)]
    texts = [at for at, value in enumerate(values) if isinstance(value, str)]
    if texts:
        raise table.refused(
            texts[0],
            f"{name!r} is no number ({len(texts)} rows in all); write numbers with a point, and nothing "
            "where it is not known",
        )
    if all(value is None for value in values):
        raise TrainingRefused(
            f"{table.path} holds no number in the column {name!r}; fill it, or take it out of the settings"
        )


def _check_paths(table: _Table, base: Path) -> None:
    first: dict[str, int] = {}
    for at, cell in enumerate(table.column("path")):
        place = os.path.abspath(base / cell)
        if place in first:
            raise table.refused(
                at, f"the same path as in row {table.numbers[first[place]]}; list each scan once"
            )
        first[place] = at


def _splits(table: _Table, seed: int) -> tuple[dict[str, str], int]:
    """Patient to split, and for how many the table did not tell it."""
    told: dict[str, str] = {}
    first: dict[str, int] = {}
    leaks: dict[str, tuple[int, int]] = {}
    for at, (patient, cell) in enumerate(zip(table.column("patient"), table.column("split"), strict=True)):
        split = cell.lower()
        if split and split not in SPLITS:
            raise table.refused(
                at, f"the split is none of {', '.join(SPLITS)}; write one of them, or nothing"
            )
        if split and told.setdefault(patient, split) != split:
            leaks.setdefault(patient, (first[patient], at))
        if split:
            first.setdefault(patient, at)
    if leaks:
        one, other = next(iter(leaks.values()))
        raise table.refused(
            one,
            f"this patient stands in another split in row {table.numbers[other]} ({len(leaks)} patients in "
            "all); give all scans of a patient one split",
        )
    untold = [patient for patient in table.column("patient") if patient not in told]
    return {**assigned_splits(untold, seed=seed), **told}, len(set(untold))


# Rows to cases


def _case(table: _Table, at: int, base: Path, numbers: Mapping[str, int], splits: Mapping[str, str]) -> Case:
    row = table.rows[at]
    values = {name: _value(row[name]) for name in table.label_columns}
    return Case(
        path=base / row["path"],
        patient=row["patient"],
        patient_index=numbers[row["patient"]],
        acquired=_acquired(table, at),
        split=splits[row["patient"]],
        label_map=base / row["label_map"] if row.get("label_map") else None,
        labels=MappingProxyType({name: value for name, value in values.items() if value is not None}),
        row=table.numbers[at],
    )


def _value(cell: str) -> float | str | None:
    """The cell as a number where it is one, None where it says nothing."""
    if cell.lower() in _NO_VALUE:
        return None
    try:
        number = float(cell)
    except ValueError:
        return cell
    # Python reads 1_000 as a number; in a table it is a name.
    if "_" in cell:
        return cell
    return number if math.isfinite(number) else None


def _acquired(table: _Table, at: int) -> datetime | None:
    """ISO or DICOM date, with or without a time; a time zone is left out: days matter here."""
    cell = table.rows[at].get("acquired", "")
    if cell.lower() in _NO_VALUE:
        return None
    dicom = _DICOM_TIME.fullmatch(cell)
    try:
        return datetime.fromisoformat(f"{dicom[1]}T{dicom[2]}" if dicom else cell).replace(tzinfo=None)
    except ValueError as error:
        raise table.refused(at, "'acquired' is no date; write it as 2024-01-31 or 20240131") from error
