"""One row of the index as a value, and which of its columns can be asked for.

scan     a whole scan: its embedding
finding  a lesion: the pooled features of its region
change   two successive scans of one patient: the difference of their embeddings
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsiam.errors import IndexRefused

Kind = Literal["scan", "finding", "change"]
KINDS: tuple[Kind, ...] = ("scan", "finding", "change")

# 32 hexadecimal digits are 128 bits, which is also what a UUID holds: Qdrant takes no other id.
ID_DIGITS = 32
EPOCH = datetime(1970, 1, 1)
SECONDS_A_DAY = 86_400.0

LABEL_PREFIX = "label_"
MOST_LABELS = 200
LONGEST_LABEL = 200
LONGEST_LABEL_NAME = 40


@dataclass(frozen=True, eq=False)
class Case:
    """One row. Unknown text is "", an unknown number None.

    vector        (D,) float32; empty where it was not asked for
    scan_id       case id of the scan that it belongs to, its own for a scan
    prior_id      of a change: case id of the earlier scan
    source_key    keyed hash of the files that it came from, by which a second run skips them
    labels_key    digest of what the label table said of it
    scanner       manufacturer and model
    acquired      local time, ISO 8601
    slice_mm, pixel_mm  distance of slices and of pixels
    volume_ml     of a finding
    interval_days, magnitude  of a change: time between the scans, length of the difference
    thumbnails    one strip of JPEG tiles; empty where it was not asked for
    """

    case_id: str
    vector: NDArray[np.float32]
    scan_id: str = ""
    prior_id: str = ""
    patient_key: str = ""
    study_uid: str = ""
    series_uid: str = ""
    sha256: str = ""
    source_key: str = ""
    labels_key: str = ""
    modality: str = ""
    body_part: str = ""
    sequence: str = ""
    scanner: str = ""
    station: str = ""
    sex: str = ""
    acquired: str = ""
    outcome: str = ""
    age: float | None = None
    slice_mm: float | None = None
    pixel_mm: float | None = None
    volume_ml: float | None = None
    interval_days: float | None = None
    magnitude: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    thumbnails: bytes = b""

    @property
    def acquired_day(self) -> float | None:
        """Days since 1970, None where the date is not known."""
        return day_of(self.acquired)

    @property
    def digest(self) -> str:
        """Of all that is told in words and numbers: two rows that say the same have the same."""
        told = {name: getattr(self, name) for name in (*TEXTS, *NUMBERS)} | {"labels": dict(self.labels)}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]


# Columns by type, as they are stored. Those behind a `-` in ASKABLE's making are not for filters.
TEXTS = tuple(f.name for f in fields(Case) if f.type == "str")
NUMBERS = tuple(f.name for f in fields(Case) if f.type == "float | None")

# What a filter may name: column to what is compared there.
ASKABLE: Mapping[str, Literal["text", "number", "date"]] = {
    **{name: "text" for name in TEXTS if name not in ("source_key", "labels_key", "sha256", "acquired")},
    **dict.fromkeys(NUMBERS, "number"),
    "acquired": "date",
}


def case_id_of(*parts: str) -> str:
    """The same id for the same parts, ever and everywhere: content digest, encoder id, series UID."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:ID_DIGITS]


def day_of(acquired: str) -> float | None:
    """Days since 1970 of an ISO time, None where there is none."""
    if not acquired:
        return None
    return (datetime.fromisoformat(acquired).replace(tzinfo=None) - EPOCH).total_seconds() / SECONDS_A_DAY


def label_name(text: str) -> str:
    """A label's name as a column: small letters, digits and underscores.

    Raises IndexRefused where nothing of that kind is left, or it is the name of a column.
    """
    name = re.sub(r"[^a-z0-9]+", "_", text.strip().lower()).strip("_")[:LONGEST_LABEL_NAME]
    if not name or not name[0].isalpha():
        raise IndexRefused(
            f"the label column {text[:40]!r} has no name that begins with a letter; rename it in the table"
        )
    if name in ASKABLE:
        raise IndexRefused(
            f"the label column {text[:40]!r} is already the name of a column of the index; rename it in the "
            "table"
        )
    return name


def unit(vector: Any) -> NDArray[np.float32]:
    """The vector (D,) with length 1; all zeros stay as they are."""
    held = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(held))
    return np.asarray(held / length if length > 0.0 else held, dtype=np.float32)
