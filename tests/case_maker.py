"""Cases and indexes for tests: vectors whose neighbours are known, on either engine."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from medsiam.cases.case import Case, case_id_of, unit
from medsiam.cases.index import CaseIndex
from medsiam.cases.settings import IndexSettings

SIZE = 32
ENCODER = "made-up@0123456789ab"
SIZES: dict[Any, int] = {"scan": SIZE, "finding": SIZE + 8, "change": SIZE}
ENGINES = ("lance", "qdrant")
FIRST_DAY = datetime(2020, 1, 1, 9, 30)


def index_in(folder: Path, engine: str = "lance", **settings: Any) -> CaseIndex:
    """An empty index of made-up embeddings."""
    return CaseIndex.make(folder / "cases", ENCODER, SIZES, settings=IndexSettings(engine=engine, **settings))


def vector(seed: int, size: int = SIZE) -> np.ndarray:
    """A direction of its own for each seed."""
    return unit(np.random.default_rng(seed).normal(size=size))


def near(seed: int, distance: float, *, towards: int = 10_000) -> np.ndarray:
    """A vector a little off another one's direction."""
    return unit(vector(seed) + distance * vector(towards))


def case(number: int, **changes: Any) -> Case:
    """A scan of its own patient unless told otherwise."""
    name = f"made-up series {number}"
    case_id = case_id_of(name, ENCODER)
    told: dict[str, Any] = {
        "case_id": case_id,
        "scan_id": case_id,
        "vector": vector(number),
        "patient_key": hashlib.sha256(f"patient {number}".encode()).hexdigest()[:20],
        "series_uid": f"1.2.3.{number}",
        "study_uid": f"1.2.4.{number}",
        "sha256": hashlib.sha256(f"scan {number}".encode()).hexdigest(),
        "modality": "MR",
        "body_part": "head",
        "sequence": "T1",
        "scanner": "Acme One" if number % 2 else "Bolt Two",
        "sex": "F" if number % 2 else "M",
        "acquired": (FIRST_DAY + timedelta(days=number)).isoformat(),
        "age": 20.0 + number,
        "thumbnails": f"picture of {number} ".encode() * 20,
    }
    return Case(**told | changes)
