"""What an index holds, in figures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from medsiam.cases.case import KINDS
from medsiam.cases.index import SCHEMA, CaseIndex


def info_of(folder: Path) -> dict[str, Any]:
    """Cases, patients, encoder, engine, labels and size of an index, as plain values.

    Raises IndexRefused where there is none.
    """
    index = CaseIndex.open(folder)
    scans = index.store.find("scan", None)
    counts = {f"{kind}s": index.store.count(kind) for kind in KINDS}
    return {
        "schema": SCHEMA,
        "encoder": index.encoder_id,
        "engine": index.settings.engine,
        "cases": len(scans),
        **{name: count for name, count in counts.items() if name != "scans"},
        "patients": len({scan.patient_key for scan in scans if scan.patient_key}),
        "modalities": dict(Counter(scan.modality or "not told" for scan in scans).most_common()),
        "scanners": dict(Counter(scan.scanner or "not told" for scan in scans).most_common(10)),
        "labels": list(index.store.labels()),
        "megabytes": round(_bytes_in(folder) / 1e6, 3),
    }


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
