"""What is told while a flow runs and when it ends: artifacts, JSON lines, Prometheus text. Keys only."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.metrics import Measure, prometheus, write_metrics
from flows.running import server_may_be_away
from medsiam.batch.ledger import HOME, OWNER_ONLY
from medsiam.batch.listing import digest_of
from medsiam.batch.run import Told
from medsiam.batch.values import Case, Row

# A progress bar that is written for each case would be most of the data base.
PROGRESS_EVERY_S = 5.0
LOG = "flow.jsonl"
# Of all events these go to Prefect too; a line a case stays in the log file.
TOLD_TO_PREFECT = ("planned", "known", "late", "exhausted", "indexed", "end")
# Keys and figures; summaries and reasons stay in OUT.
COLUMNS = (
    "case_id", "patient_key", "state", "verdict", "code", "findings", "largest", "unit", "p_value",
    "interval_days", "computed",
)  # fmt: skip


class Telling:
    """Of one run: its progress bar, its log file and its figures.

    metrics  folder for Prometheus' text collector, "" for none
    """

    def __init__(self, out: Path, cases: Sequence[Case], *, metrics: str = "") -> None:
        # A folder's name may be anything, also a person's; which run it is tells its digest.
        self._name, self._metrics = digest_of("out", str(out.resolve())), metrics
        self._scanned = {case.case_id: case.scans[-1].acquired for case in cases}
        home = out / HOME
        home.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
        self._log = home / LOG
        self._bar: UUID | None = None
        self._due = 0.0

    def event(self, event: str, told: Mapping[str, Any]) -> None:
        """An event as one JSON line of OUT's log, the large ones in Prefect's as well."""
        line = json.dumps(
            {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **told}
        )
        with self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if event in TOLD_TO_PREFECT:
            get_run_logger().info(line)

    def progress(self, told: Told, rows: Mapping[str, Row], *, now: bool = False) -> None:
        """The bar and the figures, not oftener than every few seconds unless `now`."""
        if not now and time.monotonic() < self._due:
            return
        self._due = time.monotonic() + PROGRESS_EVERY_S
        share = 100.0 * told.done / max(told.total, 1)
        rate = "" if told.per_hour is None else f", {told.per_hour:.0f} an hour"
        self._draw(share, f"{told.done} of {told.total}{rate}")
        if self._metrics:
            write_metrics(Path(self._metrics), self._name, prometheus(self.measures(told, rows)))

    def measures(self, told: Told, rows: Mapping[str, Row]) -> list[Measure]:
        """Figures for Prometheus: how many, how fast, and how long the oldest scan has waited."""
        labels = {"run": self._name}
        states = dict.fromkeys(("compared", "refused", "failed"), 0)
        for row in rows.values():
            if row.state in states:
                states[row.state] += 1
        waiting = [at for case, at in self._scanned.items() if case not in rows and at]
        return [
            *(Measure("cases", count, {**labels, "state": state}) for state, count in states.items()),
            Measure("cases_left", told.total - told.done, labels),
            Measure("cases_per_hour", told.per_hour or 0.0, labels),
            Measure("seconds_left", told.left_s or 0.0, labels),
            Measure("oldest_scan_waiting_seconds", _age_s(min(waiting)) if waiting else 0.0, labels),
        ]

    def _draw(self, share: float, words: str) -> None:
        with server_may_be_away():
            if self._bar is None:
                self._bar = create_progress_artifact(share, key=f"progress-{self._name}", description=words)
            else:
                update_progress_artifact(self._bar, share, description=words)


def tell_worklist(rows: Sequence[Row], out: Path, name: str, *, most: int, pages: str) -> None:
    """The most urgent rows as a table, and a link to the page that shows them all."""
    table = [{column: getattr(row, column) for column in COLUMNS} for row in rows[:most]]
    for place, row in enumerate(rows[:most]):
        table[place]["report"] = link_to(out, row.report, pages) if row.report else None
    words = f"{min(most, len(rows))} of {len(rows)} lines, most urgent first. Research use only."
    with server_may_be_away():
        create_table_artifact(table, key=f"worklist-{name}", description=words)
    tell_page(out, "worklist.html", pages=pages)


def tell_page(out: Path, name: str, *, pages: str) -> None:
    """A link to a page of OUT."""
    title = Path(name).stem
    with server_may_be_away():
        create_link_artifact(link_to(out, name, pages), link_text=title, key=f"page-{title}")


def link_to(out: Path, name: str, pages: str) -> str:
    """Where a reader opens a file of OUT: under the address it is served at, else on this disk."""
    return f"{pages.rstrip('/')}/{name}" if pages else (out / name).resolve().as_uri()


def _age_s(acquired: str) -> float:
    """Seconds since a scan, by its own clock where it tells no zone."""
    at = datetime.fromisoformat(acquired)
    now = datetime.now(at.tzinfo) if at.tzinfo else datetime.now()
    return max(0.0, (now - at).total_seconds())
