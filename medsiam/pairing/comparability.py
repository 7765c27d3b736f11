"""Whether two scans may be set side by side: one body part, one view, one technique.

    judge -> check_comparable; unknown_notes tells what could not be compared

A value that a file does not tell is no difference: it goes into the notes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from medsiam.errors import NotComparable
from medsiam.pairing.body_parts import EVERYWHERE, regions_of
from medsiam.pairing.sequences import agent_was_given, sequence_family
from medsiam.pairing.values import Comparability, ComparabilityClass, Difference
from medsiam.volume import Acquisition

Spacing = tuple[float, float, float]

# Beyond this ratio of slice thickness or voxel size, partial volume alone moves
# a small lesion's measured volume by more than its margin of repeatability.
MOST_SPACING_RATIO = 1.2

_MODALITIES = {"CR": "projection radiography", "DX": "projection radiography", "DR": "projection radiography"}
_MODALITIES |= {"RG": "projection radiography"}

_FRONTAL = {"AP", "PA"}
_LATERAL = {"LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT"}

_AGENT_EFFECT = (
    "the agent brightens vessels and enhancing tissue, so what looks new or gone may be the agent alone"
)

# Families that show one thing in two strengths; all other different families are incompatible.
_AKIN = {
    frozenset({"T1", "T1-contrast"}): _AGENT_EFFECT,
    frozenset({"T2*", "SWI"}): "both darken at iron and blood, SWI more so: spots may seem to grow",
}


@dataclass(frozen=True)
class _Number:
    """A technical number: how far it may differ, and what a larger difference does.

    share, least  the tolerance is the larger of this share and this absolute amount
    """

    name: str
    what: str
    unit: str
    share: float
    least: float
    effect: str


_NUMBERS = (
    # 10 % of a long echo time is exp(-10/80): an eighth of the signal of white matter.
    _Number("echo_time_ms", "echo time", "ms", 0.10, 1.0, "T2 weighting differs, and how bright lesions are"),
    # 15 % of a short repetition time changes tissue saturation by about a tenth.
    _Number(
        "repetition_time_ms",
        "repetition time",
        "ms",
        0.15,
        1.0,
        "T1 weighting differs, so tissue contrast does",
    ),
    # 10 % off its null point, fluid comes back with 7 % of its full signal.
    _Number("inversion_time_ms", "inversion time", "ms", 0.10, 10.0, "another tissue or fluid is suppressed"),
    # Signal goes about with the sine of the angle: 20 % of it is more than the noise.
    _Number(
        "flip_angle_deg", "flip angle", "degrees", 0.20, 2.0, "T1 weighting differs, so tissue contrast does"
    ),
    # Nominal fields are written as 1.494 or 1.5, 2.89 or 3: those are one class of scanner.
    _Number("field_strength_t", "field strength", "T", 0.0, 0.2, "contrast, noise and distortion differ"),
    # Tube voltages come in steps of 10 and more; each moves iodine and bone by tens of HU.
    _Number("kvp", "tube voltage", "kV", 0.0, 5.0, "bone and contrast agent have other Hounsfield units"),
)

# Words that must agree, and what it does if they do not.
_TEXTS = (
    ("manufacturer", "manufacturer", "scanners of two makers differ in contrast and sharpness"),
    ("model", "scanner model", "two models differ in contrast, noise and distortion"),
    ("kernel", "convolution kernel", "sharpness and noise differ, so edges and small nodules do"),
    ("scanning_sequence", "kind of echo", "blood, iron and flow look different"),
    ("acquisition_dimensions", "acquisition (2D or 3D)", "slice profile and flow artefacts differ"),
)


@dataclass(frozen=True)
class _Told:
    """A difference and whether it forbids the comparison."""

    is_grave: bool
    difference: Difference


def judge(
    prior: Acquisition,
    current: Acquisition,
    prior_spacing_mm: Spacing,
    current_spacing_mm: Spacing,
) -> Comparability:
    """How far two acquisitions can be compared, with each difference, gravest first.

    spacing  (k, j, i) in mm. The category is the same when the two are swapped.
    """
    found = [
        *_modality(prior, current),
        *_body_part(prior, current),
        *_view(prior, current),
        *_laterality(prior, current),
        *_sequence(prior, current),
        *_agent(prior, current),
        *_numbers(prior, current),
        *_spacing(prior, current, prior_spacing_mm, current_spacing_mm),
        *_texts(prior, current),
    ]
    # sorted() keeps the order above within each class.
    found = sorted(found, key=lambda told: not told.is_grave)
    category: ComparabilityClass = "protocol-changed" if found else "same-protocol"
    if any(told.is_grave for told in found):
        category = "not-comparable"
    return Comparability(category, tuple(told.difference for told in found))


def check_comparable(comparability: Comparability) -> None:
    """Raises NotComparable, with the reasons, where no change can be told."""
    if comparability.category != "not-comparable":
        return
    # The gravest come first and decide; the rest would hide them.
    gravest = comparability.differences[:3]
    reasons = "; ".join(f"{d.what} {d.prior} and {d.current} ({d.effect})" for d in gravest)
    raise NotComparable(
        f"prior and current cannot be compared: {reasons or 'they show different things'}; "
        "choose two series of one kind with `--prior-series UID` and `--current-series UID`"
    )


def unknown_notes(prior: Acquisition, current: Acquisition) -> tuple[str, ...]:
    """What the files do not tell and was therefore not compared, each a plain sentence."""
    notes = []
    modalities = {prior.modality, current.modality}
    if "" in modalities:
        notes.append("The files do not tell the modality; the same one is assumed.")
    if modalities <= {"MR", ""} and not (sequence_family(prior) and sequence_family(current)):
        notes.append("The files do not tell the sequence; the same protocol is assumed.")
    if not (regions_of(prior.body_part) and regions_of(current.body_part)):
        notes.append("The files do not tell a body part that is known here; the same one is assumed.")
    missing = [name for key, name in _expected(modalities) if not (_has(prior, key) and _has(current, key))]
    if missing:
        notes.append(f"Not told by both files and so not compared: {', '.join(missing)}.")
    return tuple(notes)


def _modality(prior: Acquisition, current: Acquisition) -> Iterator[_Told]:
    a, b = (_MODALITIES.get(scan.modality, scan.modality) for scan in (prior, current))
    if a and b and a != b:
        yield _grave("modality", a, b, "they measure different things")


def _body_part(prior: Acquisition, current: Acquisition) -> Iterator[_Told]:
    a, b = regions_of(prior.body_part), regions_of(current.body_part)
    if not a or not b or a == b or EVERYWHERE in (a, b):
        return
    shown = ", ".join(sorted(a)), ", ".join(sorted(b))
    if a & b:
        yield _changed("body part", *shown, "only what both scans show can be compared")
    else:
        yield _grave("body part", *shown, "they show different parts of the body")


def _view(prior: Acquisition, current: Acquisition) -> Iterator[_Told]:
    a, b = (str(scan.protocol.get("view_position", "")).upper().strip() for scan in (prior, current))
    if not a or not b or a == b:
        return
    if _direction(a) != _direction(b):
        yield _grave("view position", a, b, "the body is projected in different directions")
    elif _direction(a) == "frontal":
        yield _changed("view position", a, b, "the heart and what lies in front are magnified differently")
    elif _direction(a) == "lateral" and "LAT" not in a + b:
        yield _changed("view position", a, b, "the two sides of the body are magnified differently")


def _direction(view: str) -> str:
    return "frontal" if view in _FRONTAL else "lateral" if view in _LATERAL else view


def _laterality(prior: Acquisition, current: Acquisition) -> Iterator[_Told]:
    a, b = _side(prior), _side(current)
    if not a or not b or a == b:
        return
    if "both sides" in (a, b):
        yield _changed("laterality", a, b, "only the side that both scans show can be compared")
    else:
        yield _grave("laterality", a, b, "they show different sides of the body")


def _side(acquisition: Acquisition) -> str:
    told = acquisition.protocol.get("image_laterality") or acquisition.protocol.get("laterality") or ""
    return {"L": "left", "R": "right", "B": "both sides"}.get(str(told).strip().upper(), "")


def _sequence(prior: Acquisition, current: Acquisition) -> Iterator[_Told]:
    a, b = sequence_family(prior), sequence_family(current)
    if not a or not b or a == b:
        return
    akin = _AKIN.get(frozenset({a, b}))
    if akin:
        yield _changed("sequence", a, b, akin)
    else:
        yield _grave("sequence", a, b, "tissue has another contrast, so every place would seem to change")


def _agent(prior: Acquisition, current: Acquisition) -> Iterator[_Told]:
    if {sequence_family(prior), sequence_family(current)} == {"T1", "T1-contrast"}:
        return
    a, b = agent_was_given(prior), agent_was_given(current)
    # DICOM asks for the agent's tags only where one was given. So a header that
    # says nothing beside one that names an agent is no mere gap: caution wins.
    from_headers = bool(prior.modality and current.modality)
    if bool(a) == bool(b) or (None in (a, b) and not from_headers):
        return
    yield _changed("contrast agent", _given(a), _given(b), _AGENT_EFFECT)


def _given(agent: bool | None) -> str:
    return "not told" if agent is None else "given" if agent else "none"


def _numbers(prior: Acquisition, current: Acquisition) -> Iterator[_Told]:
    for number in _NUMBERS:
        a, b = _value(prior, number.name), _value(current, number.name)
        if a is None or b is None:
            continue
        # A share of the larger one, so that the answer is the same both ways.
        if abs(a - b) > max(number.least, number.share * max(abs(a), abs(b))) + 1e-9:
            yield _changed(number.what, f"{a:g} {number.unit}", f"{b:g} {number.unit}", number.effect)


def _spacing(
    prior: Acquisition, current: Acquisition, prior_spacing_mm: Spacing, current_spacing_mm: Spacing
) -> Iterator[_Told]:
    thick = _value(prior, "slice_thickness_mm"), _value(current, "slice_thickness_mm")
    if _ratio(*thick) > MOST_SPACING_RATIO:
        effect = "small lesions are averaged with what surrounds them"
        yield _changed("slice thickness", _mm(thick[0]), _mm(thick[1]), effect)
    if False in (prior.protocol.get("pixel_size_known"), current.protocol.get("pixel_size_known")):
        # One millimetre stands for a pixel there: nothing to compare.
        return
    a, b = prior_spacing_mm, current_spacing_mm
    if _ratio(a[0], b[0]) > MOST_SPACING_RATIO:
        effect = "small lesions are seen in fewer slices of one scan"
        yield _changed("slice distance", _mm(a[0]), _mm(b[0]), effect)
    # Rows and columns may have changed places between two scans.
    if max(map(_ratio, sorted(a[1:]), sorted(b[1:]))) > MOST_SPACING_RATIO:
        effect = "one scan is blurred against the other, which moves edges"
        yield _changed("pixel size", _mm(*a[1:]), _mm(*b[1:]), effect)


def _ratio(a: float | None, b: float | None) -> float:
    if not a or not b or min(a, b) <= 0.0:
        return 1.0
    return max(a, b) / min(a, b)


def _mm(*values: float | None) -> str:
    return " x ".join(f"{value:.3g}" for value in values) + " mm"


def _texts(prior: Acquisition, current: Acquisition) -> Iterator[_Told]:
    for key, what, effect in _TEXTS:
        a, b = (str(scan.protocol.get(key, "")) for scan in (prior, current))
        if _plain(key, a) and _plain(key, b) and _plain(key, a) != _plain(key, b):
            yield _changed(what, a.replace("\\", "+"), b.replace("\\", "+"), effect)


def _plain(key: str, text: str) -> tuple[str, ...]:
    """A text without what is written differently for one thing: case, blanks, a company's second names."""
    words = re.findall(r"[a-z0-9]+", text.casefold())
    if key == "manufacturer":
        return tuple(words[:1])
    return tuple(sorted(words)) if key == "scanning_sequence" else ("".join(words),) if words else ()


def _value(acquisition: Acquisition, name: str) -> float | None:
    value = acquisition.protocol.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _expected(modalities: set[str]) -> list[tuple[str, str]]:
    """Keys of the protocol, with their names, that scans of this modality should tell."""
    if modalities == {"MR"}:
        keys = {"echo_time_ms", "repetition_time_ms", "field_strength_t", "manufacturer"}
    elif modalities == {"CT"}:
        keys = {"kvp", "kernel", "manufacturer"}
    elif modalities <= set(_MODALITIES):
        return [("view_position", "view position")]
    else:
        return []
    named = [(number.name, number.what) for number in _NUMBERS] + [(key, what) for key, what, _ in _TEXTS]
    return [(key, what) for key, what in named if key in keys]


def _has(acquisition: Acquisition, key: str) -> bool:
    return acquisition.protocol.get(key) not in (None, "", ())


def _grave(what: str, prior: str, current: str, effect: str) -> _Told:
    return _Told(True, Difference(what, prior, current, effect))


def _changed(what: str, prior: str, current: str, effect: str) -> _Told:
    return _Told(False, Difference(what, prior, current, effect))
