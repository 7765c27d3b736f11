"""worklist.html: a night's comparisons, most urgent first, in one file that needs no network.

The script only hides rows; without it the page shows them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medsiam.report import wording
from medsiam.report.html import asset, environment, source_hash

SCHEMA = "medsiam.worklist/1"
MANIFEST_SCHEMA = "medsiam.manifest/1"

STYLES = ("report.css", "worklist.css")
SCRIPT = "worklist.js"


def render_worklist(report: Mapping[str, Any]) -> str:
    """The page of a worklist, from what worklist.json tells."""
    return (
        environment()
        .get_template("worklist.html.j2")
        .render(
            report=report,
            styles=[asset(name) for name in STYLES],
            script=asset(SCRIPT),
            policy=worklist_policy(),
            groups=_groups(report),
            words=wording,
        )
    )


def worklist_policy() -> str:
    """The page's Content-Security-Policy: our own styles and script, and nothing else."""
    styles = " ".join(f"'{source_hash(asset(name))}'" for name in STYLES)
    return (
        f"default-src 'none'; style-src {styles}; script-src '{source_hash(asset(SCRIPT))}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _groups(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(verdict or state, how many rows), as the filter shows them."""
    groups = [*report["verdicts"].items(), *((s, report["counts"][s]) for s in ("failed", "refused"))]
    return [(name, count) for name, count in groups if count]
