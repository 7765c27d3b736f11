"""The one table that every benchmark prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """One figure beside its reference and its target.

    subject    what was measured on what: "patient 01, mean distance (mm)"
    reference  the published figure and whose it is, empty where there is none
    target     what we set ourselves, empty where nothing is set
    interval   ends of the 95 % interval, None where none was made
    """

    subject: str
    measured: float
    reference: str = ""
    target: str = ""
    interval: tuple[float, float] | None = None

    @property
    def told(self) -> str:
        """The figure as the table shows it, with its interval where there is one."""
        figure = _number(self.measured)
        if self.interval is None:
            return figure
        return f"{figure} [{', '.join(_number(end) for end in self.interval)}]"


@dataclass(frozen=True)
class Scores:
    """The outcome of one benchmark, with all that is needed to run it again."""

    name: str
    data: str
    seed: int
    rows: tuple[Score, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Text with one aligned line per score; data and seed above."""
        head = ("", "measured", "reference", "target")
        lines = [head, *((r.subject, r.told, r.reference, r.target) for r in self.rows)]
        widths = [max(len(line[n]) for line in lines) for n in range(4)]
        body = [_joined(line, widths) for line in lines]
        rule = "-|-".join("-" * width for width in widths)
        title = f"{self.name}: data {self.data}, seed {self.seed}"
        return "\n".join([title, "", body[0], rule, *body[1:]])


def _joined(cells: tuple[str, ...], widths: list[int]) -> str:
    return " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _number(value: float) -> str:
    return f"{value:.4g}"
