"""One made-up patient with three visits: written as DICOM, read back, compared, shown.

    head_phantom -> write_series -> compare_series -> write_comparison -> index.html
                                 -> demo_cases: other patients, an index, a search

The truth that was put in is told beside what was found, whatever that is.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from medsiam.cases.search import SearchOutcome
from medsiam.change.comparison import Comparison, Finding
from medsiam.compare import compare_series
from medsiam.demo_cases import show_similar
from medsiam.evidence.series import SeriesIdentity, derived_uid, write_series
from medsiam.phantom import Lesion, Phantom, Scan, flair_acquisition, head_phantom, position
from medsiam.report.search_json import result_json
from medsiam.report.writer import WriteMore, write_comparison
from medsiam.volume import Matrix, transform

FORMATS = ("json", "html", "nifti")
PATIENT_NAME = "Phantom^Paula"
PATIENT_ID = "DEMO-0001"

# A finding belongs to a lesion when its centre lies within the lesion and this margin.
MATCH_MARGIN_MM = 4.0

OLD_LESIONS = (
    Lesion((20.0, 26.0, 26.0), (4.0, 5.0, 4.0)),
    Lesion((-22.0, -22.0, 24.0), (3.0, 4.0, 3.5)),
    Lesion((24.0, -20.0, 28.0), (3.0, 3.0, 4.0)),
)
SMALL = Lesion((-30.0, 10.0, 30.0), (3.5, 3.5, 3.5))
LARGER = Lesion((-30.0, 10.0, 30.0), (5.5, 5.5, 5.5))


@dataclass(frozen=True, eq=False)
class Visit:
    """One visit: when, in which position, on which grid, and with which lesions.

    lesions  the same place in the tuple is the same lesion at every visit; None where absent
    """

    name: str
    acquired: datetime
    world_from_head: Matrix
    scan: Scan
    lesions: tuple[Lesion | None, ...]


@dataclass(frozen=True)
class Truth:
    """One lesion that was put in, between two visits, and the finding that met it.

    kind      "new", "enlarged", "shrunk", "resolved" or "unchanged"
    distance_mm  from the lesion's centre to the finding's, None where nothing was found
    """

    kind: str
    centre_lps_mm: tuple[float, float, float]
    volume_prior_ml: float
    volume_current_ml: float
    found: Finding | None = None
    distance_mm: float | None = None


@dataclass(frozen=True)
class DemoPair:
    """What one comparison said, beside what was put in.

    unexplained  findings where nothing was put in
    """

    name: str
    verdict: str
    summary: str
    truths: tuple[Truth, ...]
    unexplained: tuple[Finding, ...]


@dataclass(frozen=True)
class DemoOutcome:
    """All comparisons of the demo, the page that links them, and the cases like the last visit."""

    index: Path
    pairs: tuple[DemoPair, ...]
    similar: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        pairs = [asdict(pair) for pair in self.pairs]
        return {"index": str(self.index), "pairs": pairs, "similar": list(self.similar)}

    def table(self) -> str:
        """Put in beside found, as text."""
        parts = [
            "\n".join([f"{pair.name}: {pair.verdict}", *(f"  {a:<34} {b}" for a, b in pair_rows(pair))])
            for pair in self.pairs
        ]
        if self.similar:
            parts.append("\n".join(["other patients like visit3:", *map(_similar_line, self.similar)]))
        return "\n\n".join(parts)


def demo_visits(
    seed: int = 0, *, spacing_mm: tuple[float, float, float] = (3.0, 1.0, 1.0)
) -> tuple[Visit, ...]:
    """Three visits half a year apart: a lesion appears, then grows; three others stay.

    The head lies differently each time, and the third visit has thicker slices (5/3).
    It is always the same head, in whose white matter the lesions lie.
    seed  of noise and coil bias
    """
    thick = (spacing_mm[0] * 5.0 / 3.0, *spacing_mm[1:])
    positions = (
        position((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        position((3.0, -2.0, 4.0), (4.0, -3.0, 5.0)),
        position((-4.0, 1.5, -3.0), (-3.0, 5.0, -4.0)),
    )
    changing = (None, SMALL, LARGER)
    dates = (datetime(2024, 3, 4, 9, 12), datetime(2024, 9, 2, 10, 41), datetime(2025, 3, 3, 8, 57))
    spacings = (spacing_mm, spacing_mm, thick)
    return tuple(
        Visit(
            f"visit{n + 1}",
            dates[n],
            positions[n],
            Scan(spacing_mm=spacings[n], seed=3 * seed + n),
            (*OLD_LESIONS, changing[n]),
        )
        for n in range(3)
    )


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "auto",
    formats: Collection[str] = FORMATS,
    visits: Sequence[Visit] | None = None,
    progress: Callable[[str], None] = lambda step: None,
    compare: Callable[..., Comparison] = compare_series,
    similar: Callable[..., SearchOutcome] | None = show_similar,
) -> DemoOutcome:
    """The comparisons of each visit with the one before, written under `out`.

    formats  what is written of each, DICOM objects where "dicom" is among them
    compare  takes two folders of DICOM; another one may stand in for a trial
    similar  then searches for cases like the last visit; None leaves that out
    """
    out = Path(out)
    visits = tuple(visits or demo_visits(seed))
    for visit in visits:
        progress(f"scanning {visit.name}")
        write_visit(visit, out / "dicom" / visit.name, seed=seed)
    pairs = []
    for before, after in pairwise(visits):
        name = f"{before.name}-{after.name}"
        progress(f"comparing {name}")
        scans = out / "dicom" / before.name, out / "dicom" / after.name
        comparison = compare(*scans, seed=seed, device=device, fast=True)
        more = _evidence(comparison, scans) if "dicom" in formats else None
        write_comparison(comparison, out / name, formats=formats, write_more=more)
        pairs.append(judge(name, before, after, comparison))
    found = similar(out, seed, progress).results if similar else ()
    index = out / "index.html"
    index.write_text(index_page(pairs, visits, has_search=bool(found)), encoding="utf-8")
    return DemoOutcome(index, tuple(pairs), tuple(result_json(each) for each in found))


def _evidence(comparison: Comparison, scans: Sequence[Path]) -> WriteMore:
    from medsiam.evidence.write import evidence_of  # highdicom, only where it is asked for

    return evidence_of(scans, now=datetime.now())(comparison)


def write_visit(visit: Visit, folder: Path, *, seed: int) -> Phantom:
    """The visit's phantom, written as a DICOM series into the folder."""
    phantom = head_phantom(
        tuple(lesion for lesion in visit.lesions if lesion is not None),
        scan=visit.scan,
        world_from_head=visit.world_from_head,
        acquisition=flair_acquisition(visit.scan, visit.acquired),
    )
    parts = ("medsiam demo", str(seed), visit.name)
    identity = SeriesIdentity(
        patient_name=PATIENT_NAME,
        patient_id=PATIENT_ID,
        issuer="MEDSIAM-DEMO",
        birth_date="19800101",
        sex="F",
        study_uid=derived_uid(*parts, "study"),
        series_uid=derived_uid(*parts, "series"),
        frame_of_reference_uid=derived_uid(*parts, "frame of reference"),
        study_id=visit.name,
        study_description="Made-up head MR",
    )
    write_series(phantom.volume, identity, folder)
    return phantom


def judge(name: str, before: Visit, after: Visit, comparison: Comparison) -> DemoPair:
    """What was put in between two visits, each with the finding that met it."""
    truths = []
    left = list(comparison.findings)
    for earlier, later in zip(before.lesions, after.lesions, strict=True):
        truth = _truth(earlier, later, after.world_from_head)
        size = max((earlier or later).radii_mm)  # type: ignore[union-attr]
        near = [f for f in left if _distance(f, truth) <= size + MATCH_MARGIN_MM]
        if near:
            best = min(near, key=lambda f: _distance(f, truth))
            left.remove(best)
            truth = Truth(**{**vars(truth), "found": best, "distance_mm": _distance(best, truth)})
        truths.append(truth)
    return DemoPair(name, comparison.verdict, comparison.summary, tuple(truths), tuple(left))


def pair_rows(pair: DemoPair) -> list[tuple[str, str]]:
    """Lines of (put in, found), the changed lesion first."""
    rows = [("put in", "found")]
    for truth in sorted(pair.truths, key=lambda t: t.kind == "unchanged"):
        rows.append((_put_in(truth), _found(truth)))
    for finding in pair.unexplained:
        rows.append(("nothing", _change_in_words(finding)))
    return rows


def index_page(pairs: Sequence[DemoPair], visits: Sequence[Visit], *, has_search: bool = False) -> str:
    """A page without scripts or network that links the reports, truth beside finding."""
    sections = "".join(_section(pair) for pair in pairs)
    scans = "".join(
        f"<li><b>{html.escape(v.name)}</b>: {v.acquired:%d %B %Y}, slices of {v.scan.spacing_mm[0]:g} mm</li>"
        for v in visits
    )
    return PAGE.format(scans=scans, sections=sections + SEARCHED * has_search)


def _truth(earlier: Lesion | None, later: Lesion | None, world_from_head: Matrix) -> Truth:
    shown = later or earlier
    assert shown is not None, "a lesion of the demo is present at one of two visits"
    before_ml, after_ml = (lesion.volume_ml if lesion else 0.0 for lesion in (earlier, later))
    kind = "unchanged"
    if earlier is None:
        kind = "new"
    elif later is None:
        kind = "resolved"
    elif after_ml != before_ml:
        kind = "enlarged" if after_ml > before_ml else "shrunk"
    x, y, z = transform(world_from_head, [shown.centre_mm])[0]
    return Truth(kind, (float(x), float(y), float(z)), before_ml, after_ml)


def _distance(finding: Finding, truth: Truth) -> float:
    return float(np.linalg.norm(np.subtract(finding.centre_lps_mm, truth.centre_lps_mm)))


def _put_in(truth: Truth) -> str:
    if truth.kind == "unchanged":
        return f"unchanged, {truth.volume_current_ml:.2f} ml"
    return f"{truth.kind}, {truth.volume_prior_ml:.2f} -> {truth.volume_current_ml:.2f} ml"


def _found(truth: Truth) -> str:
    if truth.found is None:
        return "no finding" if truth.kind == "unchanged" else "no finding (missed)"
    wrong = " (wrong)" if truth.kind == "unchanged" else ""
    return f"{_change_in_words(truth.found)}, {truth.distance_mm:.1f} mm from it{wrong}"


def _similar_line(case: dict[str, Any]) -> str:
    followed = case["followed"]["days"]
    later = f"next scan after {followed:.0f} days" if followed else "no later scan"
    outcome = case["outcome"] or "not told"
    return f"  {case['rank']}. similarity {case['similarity']:.3f}, {later}, outcome: {outcome}"


def _change_in_words(finding: Finding) -> str:
    return f"{finding.kind}, {finding.volume_prior_ml:.2f} -> {finding.volume_current_ml:.2f} ml"


def _section(pair: DemoPair) -> str:
    head, *rows = pair_rows(pair)
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return SECTION.format(
        name=html.escape(pair.name),
        verdict=html.escape(pair.verdict),
        summary=html.escape(pair.summary),
        head="".join(f"<th>{cell}</th>" for cell in head),
        body="".join(f"<tr>{row}</tr>" for row in cells),
    )


SECTION = """<section>
<h2>{name}: {verdict}</h2>
<p>{summary} <a href="{name}/report.html">Open the report</a></p>
<table><tr>{head}</tr>{body}</table>
</section>
"""

SEARCHED = """<section>
<h2>Other made-up patients like visit3</h2>
<p>An index of all scans was made and asked. <a href="similar/search.html">Open the search</a></p>
</section>
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>medsiam demo</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
body {{ color: #1a1a1a; background: #fff; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; padding: .3rem 1.5rem .3rem 0; border-bottom: 1px solid #ddd; }}
a {{ color: #0b57d0; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #141414; color: #eee; }} a {{ color: #8ab4f8; }} }}
</style></head><body>
<h1>A made-up patient, three visits</h1>
<p>This head was computed, not scanned, and its lesions are known exactly. Below, what was put in
stands beside what the comparison found. Research use only - not a medical device.</p>
<ul>{scans}</ul>
{sections}</body></html>
"""
