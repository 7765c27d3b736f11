"""The worklist: what the queue did, does and could not do, most urgent first, without any script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from medsiam.report import wording
from medsiam.report.html import asset, environment, source_hash
from medsiam.serving.job import STATES, Job

# What a reader should see first: change, then what no one compared, then the calm ones.
VERDICTS = ("progressed", "mixed", "indeterminate", "improved", "stable")
STATE_ORDER = ("done", "failed", "waiting", "running", "queued", "refused")
FACTS = ("patient_key", "modality", "body_part", "acquired", "interval_days")
REFRESH_S = 30


def render_worklist(jobs: Sequence[Job], counts: Mapping[str, int], *, has_viewer: bool) -> str:
    """The page.

    has_viewer  whether links to the studies are wanted, for a page shown inside an archive's own
    """
    shown = sorted((job for job in jobs if not job.same_as), key=_urgency)
    template = environment().from_string(_own("worklist.html.j2"))
    return template.render(
        rows=[_row(job) for job in shown],
        counts=[(state, counts.get(state, 0)) for state in STATES],
        styles=_styles(),
        policy=worklist_policy(),
        refresh_s=REFRESH_S,
        has_viewer=has_viewer,
        words=wording,
    )


def worklist_policy() -> str:
    """The page's Content-Security-Policy: our own styles and nothing else."""
    styles = " ".join(f"'{source_hash(style)}'" for style in _styles())
    return f"default-src 'none'; style-src {styles}; base-uri 'none'; form-action 'none'"


def _urgency(job: Job) -> tuple[int, int, float, float]:
    verdict = VERDICTS.index(job.verdict) if job.verdict in VERDICTS else len(VERDICTS)
    size = float(job.facts.get("magnitude") or 0.0)
    return STATE_ORDER.index(job.state), verdict, -size, -job.updated


def _row(job: Job) -> dict[str, Any]:
    facts = {name: job.facts.get(name) for name in FACTS}
    who = " ".join(word for word in (facts["modality"], facts["body_part"]) if word)
    return {"told": job.as_dict(), "facts": facts, "scan": who}


@cache
def _styles() -> tuple[Markup, ...]:
    own = _own("worklist.css")
    assert "</" not in own, "worklist.css would close its own tag"
    return asset("report.css"), Markup("\n" + own)


@cache
def _own(name: str) -> str:
    return files("medsiam.serving").joinpath("templates", name).read_text(encoding="utf-8")
