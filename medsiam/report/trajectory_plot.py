"""Volumes over time as places on a drawing; the template writes them as SVG.

Everything is taken from trajectory.json, so that page and file say the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsiam.report import wording

WIDTH, HEIGHT = 860, 330
LEFT, RIGHT, TOP, BOTTOM = 78, 56, 16, 62
# Lines beyond these cannot be told apart; the table holds all.
MOST_LINES = 8
# Dates closer than this would be printed over each other.
DATE_WIDTH = 92.0
NAME_HEIGHT = 15.0
ABOUT_TICKS = 5


@dataclass(frozen=True)
class Mark:
    """A mean volume; low and high are the ends of its bar, None where it has none."""

    x: float
    y: float
    low: float | None
    high: float | None
    singles: tuple[float, ...]
    title: str


@dataclass(frozen=True)
class Line:
    """One lesion's marks, or the net change; name_y is where its name stands at the end."""

    name: str
    style: int
    marks: tuple[Mark, ...]
    fit: tuple[float, float, float, float] | None
    name_y: float

    @property
    def path(self) -> str:
        return " ".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in self.marks)


@dataclass(frozen=True)
class Tick:
    at: float
    label: str
    is_named: bool = True
    second: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing of WIDTH x HEIGHT pixels; zero is the height of 0 ml."""

    label: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    zero: float
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class _Scale:
    """From a value to a pixel."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def net_plot(report: Mapping[str, Any]) -> Plot | None:
    """The net change since the first scan with its fitted line; None where one scan alone is known."""
    total = report["total"]
    volumes = total["net_since_first"]
    if len(volumes) < 2:
        return None
    return _plot(report, [("net", volumes, total["rate_ml_per_month"])], "Net change since scan 1 (ml)")


def lesion_plot(report: Mapping[str, Any]) -> Plot | None:
    """The volumes of the lesions that changed most; None where there is no lesion."""

    def change(lesion: Mapping[str, Any]) -> float:
        known = [volume["volume_ml"] for volume in lesion["volumes"]]
        return max(known) - min(known)

    drawn = sorted(report["lesions"], key=lambda lesion: (-change(lesion), lesion["number"]))[:MOST_LINES]
    drawn.sort(key=lambda lesion: lesion["number"])
    if not drawn:
        return None
    named = [(str(lesion["number"]), lesion["volumes"], None) for lesion in drawn]
    return _plot(report, named, "Volume of each lesion (ml)")


def nice_ticks(low: float, high: float) -> tuple[float, ...]:
    """Round values that enclose low..high."""
    span = (high - low) or max(abs(high), 1.0)
    rough = span / ABOUT_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(n * step for n in range(first, last + 1))


def _plot(report: Mapping[str, Any], named: Sequence[tuple[str, Any, Any]], label: str) -> Plot:
    is_dated = all(scan["days_since_first"] is not None for scan in report["scans"])
    places = {s["number"]: s["days_since_first"] if is_dated else s["number"] for s in report["scans"]}
    volumes = [volume for _, all_volumes, _ in named for volume in all_volumes]
    reached = [v["volume_ml"] + sign * (v["sd_ml"] or 0.0) for v in volumes for sign in (-1, 1)]
    reached += [end for _, all_volumes, rate in named for _, end in _fitted(all_volumes, rate)]
    ticks = nice_ticks(min(0.0, *reached), max(0.0, *reached))
    x = _Scale(min(places.values()), max(places.values()), LEFT + 24, WIDTH - RIGHT - 24)
    y = _Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    lines = [
        _line(name, n, all_volumes, rate, x, y, places) for n, (name, all_volumes, rate) in enumerate(named)
    ]
    places_after_point = max(0, min(4, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9) + 1))
    return Plot(
        label=label,
        x_title="Date, and days since scan 1" if is_dated else "Scans in the order given (a date is missing)",
        y_title="ml",
        x_ticks=_scan_ticks(report, x, places),
        y_ticks=tuple(Tick(y(value), f"{value + 0.0:.{places_after_point}f}") for value in ticks),
        lines=tuple(_names_apart(lines)),
        zero=y(0.0),
    )


def _line(
    name: str, style: int, volumes: Any, rate: Any, x: _Scale, y: _Scale, places: Mapping[int, float]
) -> Line:
    marks = []
    for volume in volumes:
        mean, sd = volume["volume_ml"], volume["sd_ml"]
        singles = [each["volume_ml"] for each in volume["measurements"]]
        marks.append(
            Mark(
                x(places[volume["scan"]]),
                y(mean),
                None if sd is None else y(mean - sd),
                None if sd is None else y(mean + sd),
                tuple(y(each) for each in singles) if len(singles) > 1 else (),
                f"scan {volume['scan']}: {wording.volume_with_spread(volume)}",
            )
        )
    ends = [(x(day), y(ml)) for day, ml in _fitted(volumes, rate)]
    return Line(name, style, tuple(marks), (*ends[0], *ends[1]) if ends else None, marks[-1].y)


def _fitted(volumes: Any, rate: Any) -> list[tuple[float, float]]:
    """Both ends (day, ml) of the fitted line, which passes the mean point; [] without a rate."""
    if rate is None:
        return []
    days = [volume["days_since_first"] for volume in volumes]
    middle = sum(volume["volume_ml"] for volume in volumes) / len(volumes)
    slope = rate["value"] / wording.DAYS_A_MONTH
    return [(day, middle + slope * (day - sum(days) / len(days))) for day in (min(days), max(days))]


def _names_apart(lines: Sequence[Line]) -> list[Line]:
    """The lines with their names moved down where two would stand on each other."""
    out: list[Line] = []
    free = -math.inf
    for line in sorted(lines, key=lambda line: line.name_y):
        at = max(line.name_y, free)
        free = at + NAME_HEIGHT
        out.append(Line(line.name, line.style, line.marks, line.fit, at))
    return sorted(out, key=lambda line: line.style)


def _scan_ticks(report: Mapping[str, Any], x: _Scale, places: Mapping[int, float]) -> tuple[Tick, ...]:
    ticks, free = [], -math.inf
    for scan in report["scans"]:
        at = x(places[scan["number"]])
        day = (scan["acquired"] or "")[:10]
        since = "" if scan["days_since_first"] is None else f"{scan['days_since_first']:.0f} d"
        is_named = at >= free
        if is_named:
            free = at + DATE_WIDTH
        ticks.append(Tick(at, day or f"scan {scan['number']}", is_named, since))
    return tuple(ticks)
