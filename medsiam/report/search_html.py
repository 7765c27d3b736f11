"""search.html: the query and each case side by side, in one file without any script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from medsiam.cases.case import Case
from medsiam.cases.search import Neighbour, SearchOutcome
from medsiam.cases.thumbnails import Tile, corresponding, telling_tile, unpacked
from medsiam.report import wording
from medsiam.report.drawing import Picture, as_picture
from medsiam.report.html import asset, environment, source_hash

STYLES = ("report.css", "search.css")

# Drawn at this size or larger, so that a tile of 144 pixels is not a stamp.
LEAST_PX = 288


def render_search(outcome: SearchOutcome, report: Mapping[str, Any]) -> str:
    """The page of a search.

    report  the same search as `search_json` tells it
    """
    return (
        environment()
        .get_template("search.html.j2")
        .render(
            report=report,
            styles=[asset(name) for name in STYLES],
            policy=search_policy(),
            rows=[
                _row(outcome, each, told)
                for each, told in zip(outcome.results, report["results"], strict=True)
            ],
            words=wording,
            title=_title(outcome),
        )
    )


def search_policy() -> str:
    """The page's Content-Security-Policy: pictures within, our own styles, and nothing else."""
    styles = " ".join(f"'{source_hash(asset(name))}'" for name in STYLES)
    return f"default-src 'none'; img-src data:; style-src {styles}; base-uri 'none'; form-action 'none'"


def _title(outcome: SearchOutcome) -> str:
    count = len(outcome.results)
    what = {
        "scan": "cases like this scan",
        "finding": "findings like this one",
        "change": "changes like this one",
    }
    words = what[outcome.wish.by]
    return f"The {count} {words.replace(' like', ' most like')}" if count else f"No {words}"


def _row(outcome: SearchOutcome, found: Neighbour, told: Mapping[str, Any]) -> dict[str, Any]:
    """One result with its pictures: (caption, picture) from left to right."""
    query, case = outcome.query, found.case
    if outcome.wish.by == "change":
        prior = outcome.query_prior
        shown = [
            *_beside("Query, prior", prior, "Query, current", query, like=query),
            *_beside("Case, prior", found.prior, "Case, current", case, like=query),
        ]
    else:
        shown = _beside("Query", query, f"Case {found.rank}", case)
    return {"told": told, "pictures": [(name, picture) for name, picture in shown if picture is not None]}


def _beside(
    one_name: str, one: Case | None, other_name: str, other: Case, *, like: Case | None = None
) -> list[tuple[str, Picture | None]]:
    """Two cases at the level that shows most of the first, or that corresponds to a third."""
    first, second = _tiles(one), _tiles(other)
    leading = _tiles(like) or first or second
    if not leading:
        return []
    number = telling_tile(leading)
    return [
        (name, _picture(tiles[corresponding(leading[number], number, tiles)], name) if tiles else None)
        for name, tiles in ((one_name, first), (other_name, second))
    ]


def _tiles(case: Case | None) -> Sequence[Tile]:
    return unpacked(case.thumbnails) if case is not None else ()


def _picture(tile: Tile, name: str) -> Picture:
    image = Image.fromarray(np.ascontiguousarray(tile))
    scale = max(1, -(-LEAST_PX // image.width))
    large = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    return as_picture(large, f"{name}, a slice at the corresponding level")
