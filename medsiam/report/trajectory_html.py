"""trajectory.html: one self-contained file without any script; it links the pairs' own reports.

Each pair's report gets the same plots, and the way back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medsiam.report import wording
from medsiam.report.html import TREND_PLACE, asset, environment, source_hash
from medsiam.report.trajectory_plot import MOST_LINES, lesion_plot, net_plot

STYLES = ("report.css", "trajectory.css")


def render_trajectory(report: Mapping[str, Any]) -> str:
    """The page of a trajectory, from what trajectory_json tells."""
    return (
        environment()
        .get_template("trajectory.html.j2")
        .render(
            report=report,
            styles=[asset(name) for name in STYLES],
            policy=trajectory_policy(),
            config=json.dumps(report["provenance"]["config"], indent=2, ensure_ascii=False).splitlines(),
            words=wording,
            figures_at="the table below holds the same figures",
            **_drawn(report),
        )
    )


def with_trend(page: str, report: Mapping[str, Any], pair: tuple[int, int], *, back: str) -> str:
    """A pair's report page with the volumes over all visits in it.

    pair  the numbers of its scans, prior first
    back  the trajectory's page, as seen from the pair's
    """
    drawn = _drawn(report)
    if not drawn["plots"]:
        return page
    trend = (
        environment()
        .get_template("trend.html.j2")
        .render(
            report=report, pair=pair, back=back, figures_at="the page of all scans holds the figures", **drawn
        )
    )
    return page.replace(TREND_PLACE, trend, 1)


def _drawn(report: Mapping[str, Any]) -> dict[str, Any]:
    plots = (net_plot(report), lesion_plot(report))
    return {
        "plots": [plot for plot in plots if plot is not None],
        "is_drawn_in_part": len(report["lesions"]) > MOST_LINES,
    }


def trajectory_policy() -> str:
    """The page's Content-Security-Policy: our own styles, and nothing else."""
    styles = " ".join(f"'{source_hash(asset(name))}'" for name in STYLES)
    return f"default-src 'none'; style-src {styles}; base-uri 'none'; form-action 'none'"
