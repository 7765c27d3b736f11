"""trajectory.html: one self-contained file without any script; it links the pairs' own reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medsiam.report import wording
from medsiam.report.html import asset, environment, source_hash
from medsiam.report.trajectory_plot import MOST_LINES, lesion_plot, net_plot

STYLES = ("report.css", "trajectory.css")


def render_trajectory(report: Mapping[str, Any]) -> str:
    """The page of a trajectory, from what trajectory_json tells."""
    lesions = lesion_plot(report)
    return (
        environment()
        .get_template("trajectory.html.j2")
        .render(
            report=report,
            styles=[asset(name) for name in STYLES],
            policy=trajectory_policy(),
            plots=[plot for plot in (net_plot(report), lesions) if plot is not None],
            is_drawn_in_part=len(report["lesions"]) > MOST_LINES,
            config=json.dumps(report["provenance"]["config"], indent=2, ensure_ascii=False).splitlines(),
            words=wording,
        )
    )


def trajectory_policy() -> str:
    """The page's Content-Security-Policy: our own styles, and nothing else."""
    styles = " ".join(f"'{source_hash(asset(name))}'" for name in STYLES)
    return f"default-src 'none'; style-src {styles}; base-uri 'none'; form-action 'none'"
