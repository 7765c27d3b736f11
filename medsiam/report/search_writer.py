"""A search's files in a folder: all of them, or none."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from medsiam.cases.search import SearchOutcome
from medsiam.report.comparison_json import to_text
from medsiam.report.placing import REPORT, SEARCH, SEARCH_FILES, holds_refusal, placed_whole
from medsiam.report.search_html import render_search
from medsiam.report.search_json import search_csv, search_json

SEARCH_HTML = "search.html"
SEARCH_CSV = "search.csv"


def write_search(
    outcome: SearchOutcome, folder: Path, *, formats: Collection[str] = ("json", "html")
) -> dict[str, str]:
    """The written files, name -> path relative to the folder.

    formats  whether there is a page too; the tables (json, csv) always are

    An earlier search in the folder is replaced, and the report of a refusal; everything else stays.
    Raises as write_comparison does.
    """
    told = search_json(outcome)
    names = (*SEARCH_FILES, REPORT) if holds_refusal(folder) else SEARCH_FILES
    with placed_whole(folder, names) as stage:
        (stage / SEARCH_CSV).write_text(search_csv(outcome), encoding="utf-8", newline="")
        if "html" in formats:
            (stage / SEARCH_HTML).write_text(render_search(outcome, told), encoding="utf-8", newline="\n")
        (stage / SEARCH).write_text(to_text(told), encoding="utf-8", newline="\n")
    page = {"html": SEARCH_HTML} if "html" in formats else {}
    return {"json": SEARCH, **page, "csv": SEARCH_CSV}
