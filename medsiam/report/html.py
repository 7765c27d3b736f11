"""report.html: one self-contained file that needs no network and runs no foreign script.

Texts from headers are hostile: every value is escaped, and control characters
and marks that turn the writing direction are made visible first. The policy in
the page lets only this package's own style and scripts run, known by their hash.
NiiVue travels packed and is unpacked by our own script, which adds it as a script
of that very hash; where a browser has no WebGL2 it is never unpacked.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medsiam.change.comparison import Comparison
from medsiam.report import pictures, wording
from medsiam.report.display import place_text
from medsiam.report.drawing import Picture
from medsiam.report.viewer import BUDGET_BYTES, viewer_json

# Each finding's four pictures weigh about 70 kB; beyond these the table and the viewer serve.
MOST_PICTURED = 20
# What PACS' web views and mail take without complaint is 8 MB; texts and scripts need the rest.
PICTURES_AND_VOLUMES_BYTES = 6_500_000
# However heavy the pictures are, a coarse viewer is better than none.
LEAST_VOLUME_BYTES = 300_000
# Our own script: the last one runs, the others are what it calls.
SCRIPTS = ("viewer_canvas.js", "viewer_niivue.js", "viewer.js")
NIIVUE = "niivue-0.69.0.umd.js.gz"
NIIVUE_LICENCE = "niivue-0.69.0-LICENSE.txt"
LONGEST_TEXT = 400
# Where a trajectory puts the trend over all visits, once it is known. No header text can hold
# this, since its brackets are escaped.
TREND_PLACE = Markup("<!-- trend -->")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def render(comparison: Comparison, report: Mapping[str, Any]) -> str:
    """The page of a comparison.

    report  the same comparison as `to_json` tells it, so that both say the same
    """
    scene = pictures.scene_of(comparison)
    findings = [_finding(scene, finding, shown) for finding, shown in _told(comparison, report)]
    overview, checkerboard = pictures.overview_pictures(scene), pictures.checkerboard_pictures(scene)
    shown = [*overview, *checkerboard, *(each for one in findings for each in _pictures_of(one))]
    template = environment().get_template("comparison.html.j2")
    return template.render(
        report=report,
        style=asset("report.css"),
        script=viewer_script(),
        niivue=base64.b64encode(vendored(NIIVUE)).decode("ascii"),
        niivue_licence=vendored(NIIVUE_LICENCE).decode("utf-8").splitlines(),
        policy=content_policy(),
        findings=findings,
        pictured=min(len(comparison.findings), MOST_PICTURED),
        overview=overview,
        checkerboard=checkerboard,
        volumes=viewer_json(scene, _room_for_volumes(shown)),
        plane=scene.view.plane,
        trend_place=TREND_PLACE,
        sized=[pictures.is_sized(scan) for scan in (comparison.prior, comparison.current)],
        is_matched=scene.is_matched,
        reaches_outside=bool(_share_outside(comparison) > 0),
        reasons=wording.why_indeterminate(report) if report["verdict"] == "indeterminate" else [],
        config=json.dumps(report["provenance"]["config"], indent=2, ensure_ascii=False).splitlines(),
        words=wording,
    )


def content_policy() -> str:
    """The page's Content-Security-Policy: data: pictures, our own style and scripts, nothing else."""
    return (
        "default-src 'none'; img-src data:; "
        f"style-src '{source_hash(asset('report.css'))}'; "
        f"script-src '{source_hash(viewer_script())}' '{niivue_hash()}'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def viewer_script() -> Markup:
    """The viewer's script as it stands between its tags."""
    return Markup("").join(asset(name) for name in SCRIPTS)


@cache
def niivue_hash() -> str:
    """The hash under which the page lets NiiVue run."""
    return source_hash(gzip.decompress(vendored(NIIVUE)).decode("utf-8"))


def printable(value: Any) -> Any:
    """Text as it may stand on a page: no control or direction marks, not endless.

    Markup made by the template itself passes as it is.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    shown = value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + " …"
    return "".join(_visible(letter) for letter in shown)


def _visible(letter: str) -> str:
    # Cc: controls; Cf: direction marks and zero-width letters that disguise a text; Cs: half letters.
    hidden = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn") or letter in "\u2028\u2029"
    return REPLACEMENT if hidden and letter not in "\n\t" else letter


def _told(comparison: Comparison, report: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return list(zip(comparison.findings, report["findings"], strict=True))


def _finding(scene: pictures.Scene, finding: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table, with pictures for the most certain ones."""
    k = scene.place(finding)[2]
    is_pictured = finding.label <= MOST_PICTURED
    return {
        "told": told,
        "is_appearing": finding.kind in pictures.APPEARING_KINDS,
        "slice": pictures.slice_name(scene, k),
        "place": place_text(scene.view, np.array(finding.centre_lps_mm), scene.unit_of_length),
        "pictures": pictures.finding_pictures(scene, finding) if is_pictured else None,
    }


def _pictures_of(row: Mapping[str, Any]) -> tuple[Picture, ...]:
    told = row["pictures"]
    return () if told is None else (told.place, told.prior, told.current, told.change)


def _room_for_volumes(shown: Iterable[Picture]) -> int:
    """Bytes that the viewer's volumes may weigh beside the pictures, both once in base64."""
    room = PICTURES_AND_VOLUMES_BYTES - sum(len(picture.data_url) for picture in shown)
    return min(BUDGET_BYTES, max(LEAST_VOLUME_BYTES, room * 3 // 4))


def _share_outside(comparison: Comparison) -> float:
    """Share of the current's grid that the prior did not reach."""
    prior = comparison.prior_on_current
    return 1.0 - float((prior == prior).mean())


def source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


@cache
def asset(name: str) -> Markup:
    """A style or script of this package, as it stands between its tags."""
    text = files("medsiam.report").joinpath("templates", name).read_text(encoding="utf-8")
    assert "</" not in text, f"{name} would close its own tag"
    return Markup("\n" + text)


@cache
def vendored(name: str) -> bytes:
    """A file of another project that this package carries unchanged."""
    return files("medsiam.report").joinpath("vendor", name).read_bytes()


@cache
def environment() -> Environment:
    return Environment(
        loader=PackageLoader("medsiam.report", "templates"),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
