"""The report's sentences: each term explained once, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEANING_OF_VERDICT = {
    "stable": "No place in the scan changed by more than the noise of this pair.",
    "progressed": "At least one place appeared or grew by more than the noise of this pair; none shrank.",
    "improved": "At least one place shrank or resolved by more than the noise of this pair; none grew.",
    "mixed": "Some places appeared or grew and others shrank or resolved, beyond the noise of this pair.",
    "indeterminate": "No statement on change is made for this pair.",
}
MEANING_OVER_TIME = {
    "stable": "No place changed by more than the noise in any pair that has a verdict.",
    "progressed": "At least one place appeared or grew on the way; none shrank beyond the noise.",
    "improved": "At least one place shrank or resolved on the way; none grew beyond the noise.",
    "mixed": "On the way some places appeared or grew and some shrank or resolved, beyond the noise.",
    "indeterminate": "No statement on change over all scans is made; single pairs may have a verdict.",
}
SIGN_OF_VERDICT = {"stable": "=", "progressed": "▲", "improved": "▼", "mixed": "▲▼", "indeterminate": "?"}
SIGN_OF_KIND = {"new": "●", "enlarged": "▲", "shrunk": "▼", "resolved": "○"}
MEANING_OF_CLASS = {
    "same-protocol": "Both scans were acquired alike.",
    "protocol-changed": "The scans were acquired differently; small changes may be due to that.",
    "not-comparable": "The scans show different things, so they cannot be compared.",
}
MEANING_OF_QUALITY = {
    "good": "The scans lie on each other.",
    "doubtful": "The scans may not lie on each other everywhere: read changes near edges with care.",
    "failed": "The scans could not be brought to lie on each other.",
}
SIGHT = {
    "axial": "Seen from the feet: the patient's left is on the picture's right.",
    "coronal": "Seen from the front: the patient's left is on the picture's right.",
    "sagittal": "Seen from the patient's left: the face is on the picture's left.",
    "projection": "Shown as stored.",
}
PLACES = "Places are millimetres from the origin of the current scan's own frame."
SAME_GREY = "Prior and current are shown in the same window."
MATCHED_GREY = "The scans' grey scales differ, so the prior has a window of its own, fitted to look alike."
HATCHED = "Hatching marks where the prior did not reach."
NOT_MEASURED = "not measured"
NONE_SEEN = "not reached, even by the largest put in"
UNKNOWN = "not told"
UNKNOWN_RATE = "no rate"
DAYS_A_MONTH = 30.4375
DAYS_A_YEAR = 365.25
# Beyond these a doubling time says no more than that growth is slow.
LONG_YEARS = 10


def why_indeterminate(report: Mapping[str, Any]) -> list[str]:
    """The reasons for which no verdict is given, gravest first."""
    reasons = []
    if report["comparability"]["class"] == "not-comparable":
        reasons.append(MEANING_OF_CLASS["not-comparable"])
        reasons += [difference["effect"] for difference in report["comparability"]["differences"]]
    if report["registration"]["quality"] == "failed":
        reasons.append(MEANING_OF_QUALITY["failed"])
    if report["registration"]["quality"] in ("failed", "doubtful"):
        reasons += report["registration"]["reasons"]
    return reasons or list(report["notes"]) or [report["summary"]]


def millilitres(value: float | None, *, signed: bool = False) -> str:
    """A volume with as many digits as say something: "12.3 ml", "+0.042 ml"."""
    if value is None:
        return NOT_MEASURED
    if value == 0:
        return "0 ml"
    size = abs(value)
    places = 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{size:.{places}f} ml"
    if not signed:
        return text
    return f"{'+' if value >= 0 else '−'}{text}"


def detectable(value: float | None, floor: Mapping[str, Any] | None) -> str:
    """The smallest volume that would have been seen; where none of those put in would, just that."""
    if value is None and floor and floor["injected"]:
        return NONE_SEEN
    return millilitres(value)


def amount(finding: Mapping[str, Any], which: str, *, signed: bool = False) -> str:
    """A finding's size or its change ("prior", "current", "delta"): ml, or a share of the lungs."""
    area = finding["delta_percent" if which == "delta" else f"area_{which}_percent"]
    if area is None:
        return millilitres(finding["delta_ml" if which == "delta" else f"volume_{which}_ml"], signed=signed)
    return f"{signed_percent(area, 1) if signed else f'{area:.1f} %'} of lungs"


def probability(value: float | None) -> str:
    """A p-value as papers write it."""
    if value is None:
        return NOT_MEASURED
    if value < 0.0001:
        return "< 0.0001"
    return f"{value:.4f}" if value < 0.01 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def number(value: float | None, places: int = 3) -> str:
    """A figure with fixed places, small ones in powers of ten."""
    if value is None:
        return NOT_MEASURED
    if value != 0 and abs(value) < 10**-places:
        return f"{value:.1e}"
    return f"{value:.{places}f}"


def percent(share: float | None) -> str:
    """A share 0..1 as per cent."""
    return NOT_MEASURED if share is None else f"{100 * share:.0f} %"


def signed_percent(value: float, digits: int = 2) -> str:
    """A change in percent with its sign: "−0.52 %"."""
    return f"{'−' if value < 0 else '+'}{abs(value):.{digits}f} %"


def floor_sentence(floor: Mapping[str, Any]) -> str:
    """How the noise floor was measured, and what it cost to measure it so."""
    mode = " (fast mode)" if floor["fast"] else ""
    noise = "this pair's own noise and nothing else"
    made = f"Both scans were made anew {floor['rescans']} times{mode} with {noise}"
    if not floor["injected"]:
        return f"{made} (seed {floor['seed']}). What could have been seen was not measured."
    lesions = f"{floor['injected']} lesions of {percent(floor['contrast'])} contrast were put in"
    return f"{made} (seed {floor['seed']}); {lesions} to see which are found."


def brain_sentence(brain: Mapping[str, Any]) -> str:
    """What the change of the brain's volume amounts to."""
    if not brain["significant"]:
        return "No change of the whole brain's volume beyond its noise."
    lost = "lost" if brain["percent"] < 0 else "gained"
    return f"The brain {lost} {abs(brain['percent']):.2f} % of its tissue's volume, beyond its noise."


def interval(days: float | None) -> str:
    """The time between the scans: "203 days (6.7 months)"."""
    if days is None:
        return "time between the scans not told"
    whole = f"{abs(days):.0f} days" if abs(days) >= 2 else f"{24 * abs(days):.0f} hours"
    if abs(days) >= 2 * DAYS_A_YEAR:
        whole += f" ({abs(days) / DAYS_A_YEAR:.1f} years)"
    elif abs(days) >= 2 * DAYS_A_MONTH:
        whole += f" ({abs(days) / DAYS_A_MONTH:.1f} months)"
    return whole if days >= 0 else f"{whole}, the prior being the later one"


def day(acquired: str | None) -> str:
    """Date and minute of an ISO time."""
    return acquired[:16].replace("T", " ") if acquired else "date not told"


def shape(scan: Mapping[str, Any], *, is_sized: bool = True) -> str:
    """Voxels and spacing as readers write them: in plane first, slices last.

    is_sized  whether a radiograph's pixel size is known
    """
    if not scan["shape_kji"] or not scan["spacing_kji_mm"]:
        return UNKNOWN
    k, j, i = scan["shape_kji"]
    k_mm, j_mm, i_mm = scan["spacing_kji_mm"]
    if k == 1:
        return (
            f"{i} × {j} pixels of {i_mm:g} × {j_mm:g} mm" if is_sized else f"{i} × {j} pixels of unknown size"
        )
    return f"{i} × {j} × {k} voxels of {i_mm:g} × {j_mm:g} × {k_mm:g} mm"


def volume_with_spread(volume: Mapping[str, Any]) -> str:
    """A scan's volume with the spread of its repeated measurements: "0.233 ml ± 0.020"."""
    spread = "" if volume["sd_ml"] is None else f" ± {abs(volume['sd_ml']):.3f}"
    if volume["is_absent"]:
        return f"absent ({millilitres(volume['volume_ml'])}{spread})" if volume["volume_ml"] else "absent"
    return f"{millilitres(volume['volume_ml'], signed=volume['volume_ml'] < 0)}{spread}"


def steps_of(lesion: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a lesion did from each scan to the next."""
    return [seen for seen in lesion["course"] if seen["current"] == seen["prior"] + 1]


def rate(estimate: Mapping[str, Any] | None) -> str:
    """A growth rate: "+0.071 ml a month"."""
    return UNKNOWN_RATE if estimate is None else f"{millilitres(estimate['value'], signed=True)} a month"


def doubling(estimate: Mapping[str, Any] | None) -> str:
    """A doubling time: "99 days"."""
    return "none" if estimate is None else f"{estimate['value']:.0f} days"


def rate_interval(estimate: Mapping[str, Any] | None) -> str:
    """The 95 % interval of a rate, or why there is none; "" where there is no rate."""
    if estimate is None:
        return ""
    if estimate["low_95"] is None:
        return f"no interval: {estimate['scans']} scans"
    low, high = (millilitres(estimate[end], signed=True) for end in ("low_95", "high_95"))
    return f"95 %: {low.removesuffix(' ml')} to {high}"


def doubling_interval(estimate: Mapping[str, Any] | None) -> str:
    """The 95 % interval of a doubling time, or why there is none."""
    if estimate is None:
        return ""
    if estimate["low_95"] is None:
        return f"no interval: {estimate['scans']} scans"
    if estimate["high_95"] is None:
        return f"95 %: {estimate['low_95']:.0f} days or more; growth is not certain"
    if estimate["high_95"] > LONG_YEARS * DAYS_A_YEAR:
        return f"95 %: {estimate['low_95']:.0f} days to over {LONG_YEARS} years"
    return f"95 %: {estimate['low_95']:.0f} to {estimate['high_95']:.0f} days"
