"""A comparison's files in a folder: all of them, or none.

Everything is made in a hidden folder inside the target, on the same disk, and
then renamed into place, report.json last: where it stands, the result is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from medsiam.change.comparison import Comparison
from medsiam.reading.archive import CHANGE, FINDINGS, PRIOR_ON_CURRENT
from medsiam.report.comparison_json import to_json, to_text
from medsiam.report.digests import seal
from medsiam.report.html import render
from medsiam.report.nifti import write_nifti
from medsiam.report.placing import DIGESTS, EVIDENCE, REPORT, placed_whole, refuse_foreign

HTML = "report.html"

FORMATS = ("json", "html", "nifti")
FILES_OF_FORMAT = {
    "json": {"json": REPORT},
    "html": {"html": HTML},
    "nifti": {"change": CHANGE, "findings": FINDINGS, "prior_on_current": PRIOR_ON_CURRENT},
}

# Writes further files of the same result into the folder it is given, and names them.
WriteMore = Callable[[Path], Mapping[str, str]]


def write_comparison(
    comparison: Comparison,
    folder: Path,
    *,
    formats: Collection[str] = FORMATS,
    similar_cases: Iterable[Mapping[str, Any]] = (),
    write_more: WriteMore | None = None,
) -> dict[str, str]:
    """The written files, name -> path relative to the folder.

    An earlier result in the folder is replaced, what is not ours stays.
    write_more  adds files (the DICOM evidence) to the same all-or-nothing step

    Raises InputRefused where the folder cannot be written or a file there is not
    ours, ResourceExhausted where the disk is full; then nothing was changed.
    """
    names = _names_of(formats)
    with placed_whole(folder) as stage, ThreadPoolExecutor(1) as pool:
        # Packing them takes as long as the page with its own volumes, on another core.
        arrays = pool.submit(write_arrays, comparison, stage) if "nifti" in formats else None
        if write_more is not None:
            names |= write_more(stage)
        if "json" in formats:
            names["digests"] = DIGESTS
        report = to_json(comparison, files=names, similar_cases=similar_cases)
        if "html" in formats:
            (stage / HTML).write_text(render(comparison, report), encoding="utf-8", newline="\n")
        if arrays is not None:
            arrays.result()
        if "json" in formats:
            (stage / REPORT).write_text(to_text(report), encoding="utf-8", newline="\n")
            seal(stage)
    return names


def check_free(folder: Path, formats: Collection[str]) -> None:
    """Raises InputRefused where a file that is not ours stands in a comparison's way."""
    refuse_foreign(folder, [*_names_of(formats).values(), *((EVIDENCE,) if "dicom" in formats else ())])


def _names_of(formats: Collection[str]) -> dict[str, str]:
    return {name: path for kind in FORMATS if kind in formats for name, path in FILES_OF_FORMAT[kind].items()}


def write_refusal(folder: Path, report: Mapping[str, Any]) -> dict[str, str]:
    """The one written file of a refused comparison; an earlier result's files are gone.

    report  as `refusal_json` makes it
    Raises as `write_comparison` does.
    """
    with placed_whole(folder) as stage:
        (stage / REPORT).write_text(to_text(report), encoding="utf-8", newline="\n")
    return {"json": REPORT}


def write_arrays(comparison: Comparison, folder: Path) -> None:
    """Writes change, findings and the resampled prior on the current's grid."""
    grid = comparison.current.grid
    change = np.asarray(comparison.change_map, dtype=np.float32)
    prior = np.asarray(comparison.prior_on_current, dtype=np.float32)
    labels = np.asarray(comparison.labels, dtype=np.uint16)
    write_nifti(folder / CHANGE, change, grid, description="medsiam change -1..1, + appearing, - resolving")
    write_nifti(folder / FINDINGS, labels, grid, description="medsiam findings, label n = findings[n-1]")
    write_nifti(
        folder / PRIOR_ON_CURRENT, prior, grid, description="medsiam prior on current, 0 beyond its edge"
    )
