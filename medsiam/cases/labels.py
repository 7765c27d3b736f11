"""A table of what is known of scans beside their headers: labels, outcomes, masks.

A CSV with a header line, of commas, semicolons or tabs. These columns find the scan, the first that is
there:

    series_uid | path | file | patient (with issuer, where the scans tell one)

These tell what a header might not: patient, issuer, age, sex, acquired, modality, body_part,
scanner, outcome, and mask (a label map of its lesions, relative to the table). Every
other column is a label. A training manifest will do.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from medsiam.cases.case import ID_DIGITS, LONGEST_LABEL, MOST_LABELS, label_name
from medsiam.errors import IndexRefused
from medsiam.reading import SeriesEntry, patient_key

KEY_COLUMNS = ("series_uid", "path", "file", "patient")
TELLING_COLUMNS = ("issuer", "age", "sex", "acquired", "modality", "body_part", "scanner", "outcome", "mask")
# Of training manifests: they speak of files and folds, not of the patient.
PASSED_OVER = ("label_map", "label_scheme")

DELIMITERS = (",", ";", "\t")
LARGEST_TABLE_BYTES = 256 * 2**20
OLDEST_YEARS = 130.0


@dataclass(frozen=True)
class Told:
    """What the table says of one scan; "" and None where it is silent."""

    patient: str = ""
    issuer: str = ""
    sex: str = ""
    acquired: str = ""
    modality: str = ""
    body_part: str = ""
    scanner: str = ""
    outcome: str = ""
    age: float | None = None
    mask: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of everything it says."""
        told = {**self.__dict__, "labels": dict(self.labels), "mask": str(self.mask or "")}
        if not self.issuer:
            # As in indexes that were made before tables told one.
            del told["issuer"]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]


@dataclass(frozen=True)
class LabelTable:
    """Rows by what finds them: (column, value) to what is told."""

    rows: Mapping[tuple[str, str], Told] = field(default_factory=dict)

    def of(self, entry: SeriesEntry) -> Told | None:
        """What is told of a found series, None where nothing is."""
        return next((self.rows[name] for name in _names_of(entry) if name in self.rows), None)

    def unmatched(self, entries: Iterable[SeriesEntry]) -> int:
        """How many rows find none of these series."""
        if not self.rows:
            return 0
        return len(set(self.rows).difference(*map(_names_of, entries)))


def _names_of(entry: SeriesEntry) -> Iterator[tuple[str, str]]:
    """What a row may find a series by, best first."""
    yield "series_uid", entry.acquisition.series_uid
    yield "series_uid", entry.name
    for path in entry.paths:
        yield from (("path", str(path.resolve())), ("file", path.name), ("file", _stem(path.name)))
    yield "patient", entry.acquisition.patient_key or ""


def read_labels(path: Path, key: bytes) -> LabelTable:
    """The table of a CSV file.

    key  of patient keys: rows that name a patient are kept under the key alone

    Raises IndexRefused, with line and column, where it cannot be taken as it stands.
    """
    try:
        if path.stat().st_size > LARGEST_TABLE_BYTES:
            raise IndexRefused(f"{path.name} is larger than 256 MiB; split it and add the scans in parts")
        text = path.read_bytes().decode("utf-8-sig")
        delimiter = max(DELIMITERS, key=text.split("\n", 1)[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns = _columns(reader.fieldnames or (), path)
        lines = [(reader.line_num, dict(row)) for row in reader]
        longer = next((number for number, row in lines if None in row), None)
        if longer is not None:
            raise IndexRefused(f"{path.name}, line {longer}: more cells than headings; correct the line")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise IndexRefused(
            f"the label table {path.name} cannot be read ({error}); give a CSV in UTF-8 with a header line"
        ) from error
    rows: dict[tuple[str, str], Told] = {}
    for number, row in lines:
        found_by = _found_by(row, columns, path, number, key)
        if found_by in rows:
            raise IndexRefused(
                f"{path.name}, line {number}: {found_by[0]} is told twice; keep one row for each scan"
            )
        rows[found_by] = _told(row, columns, path, number)
    return LabelTable(rows)


def _columns(names: object, path: Path) -> dict[str, str]:
    """Column as written to its meaning."""
    given = [str(name) for name in names if name]  # type: ignore[attr-defined]
    meaning: dict[str, str] = {}
    for name in given:
        plain = name.strip().lower()
        if plain in (*KEY_COLUMNS, *TELLING_COLUMNS, *PASSED_OVER):
            meaning[name] = plain
        else:
            meaning[name] = label_name(name)
    if not set(meaning.values()) & set(KEY_COLUMNS):
        raise IndexRefused(
            f"{path.name} has no column that finds a scan; add one of {', '.join(KEY_COLUMNS)}"
        )
    if len(set(meaning.values())) < len(given) or len(meaning) > MOST_LABELS:
        raise IndexRefused(
            f"{path.name} has columns of the same name, or more than {MOST_LABELS}; rename or remove some"
        )
    return meaning


def _found_by(
    row: Mapping[str, str | None], columns: Mapping[str, str], path: Path, number: int, key: bytes
) -> tuple[str, str]:
    told = {columns[name]: (value or "").strip() for name, value in row.items() if name in columns}
    for column in KEY_COLUMNS:
        value = told.get(column, "")
        if not value:
            continue
        if column == "path":
            try:
                return "path", str((path.parent / value).resolve())
            except (OSError, ValueError, RuntimeError) as error:
                raise IndexRefused(
                    f"{path.name}, line {number}: the path cannot be one ({error}); correct it"
                ) from error
        if column == "patient":
            return "patient", patient_key(value, told.get("issuer"), key) or ""
        return column, value
    raise IndexRefused(f"{path.name}, line {number}: no scan is named; fill one of {', '.join(KEY_COLUMNS)}")


def _told(row: Mapping[str, str | None], columns: Mapping[str, str], path: Path, number: int) -> Told:
    told: dict[str, str] = {}
    labels: dict[str, str] = {}
    for name, meaning in columns.items():
        value = " ".join((row.get(name) or "").split())[:LONGEST_LABEL]
        value = "".join(letter if letter.isprintable() else " " for letter in value)
        if not value or meaning in (*PASSED_OVER, "series_uid", "path", "file"):
            continue
        (told if meaning in (*TELLING_COLUMNS, "patient") else labels)[meaning] = value
    where = f"{path.name}, line {number}"
    mask = told.pop("mask", "")
    return Told(
        age=_age(told.pop("age", ""), where),
        acquired=_moment(told.pop("acquired", ""), where),
        mask=path.parent / mask if mask else None,
        labels=labels,
        **told,
    )


def _age(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        years = float(text.removesuffix("Y"))
    except ValueError:
        years = math.nan
    if not 0.0 <= years <= OLDEST_YEARS:
        raise IndexRefused(f"{where}: {text[:20]!r} is no age in years; write a number")
    return years


def _moment(text: str, where: str) -> str:
    if not text:
        return ""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None).isoformat(timespec="seconds")
    except ValueError:
        raise IndexRefused(f"{where}: {text[:30]!r} is no date; write 2023-05-31") from None


def _stem(name: str) -> str:
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return Path(name).stem
