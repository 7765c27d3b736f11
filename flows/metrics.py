"""Figures as Prometheus text: how long runs wait in each queue of the pool.

    python -m flows.metrics [FOLDER]

prints it, or writes FOLDER/medsiam_queues.prom for the text collector of node_exporter. The flows
write their own rates there (`told.metrics` in configs/flows.yaml).
"""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

HELP = {
    "cases": "cases by what became of them",
    "cases_left": "cases that are not done",
    "cases_per_hour": "of those computed in this run",
    "seconds_left": "until the end at this rate",
    "oldest_scan_waiting_seconds": "since the earliest scan whose comparison is not done",
    "queue_runs": "flow runs by queue and state",
    "queue_oldest_waiting_seconds": "since the start of the oldest run that should have begun",
}
MOST_RUNS = 200


@dataclass(frozen=True)
class Measure:
    """A figure with its labels."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def prometheus(measures: Iterable[Measure]) -> str:
    """The text format 0.0.4; measures of one name together."""
    named: dict[str, list[Measure]] = defaultdict(list)
    for measure in measures:
        named[measure.name].append(measure)
    lines = []
    for name, those in named.items():
        lines += [f"# HELP medsiam_{name} {HELP[name]}", f"# TYPE medsiam_{name} gauge"]
        for measure in those:
            labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in measure.labels.items())
            lines.append(f"medsiam_{name}{{{labels}}} {measure.value:.6g}")
    return "\n".join(lines) + "\n"


def write_metrics(folder: Path, name: str, text: str) -> None:
    """Puts a .prom file in place by one rename: a collector must not see half of it."""
    path = folder / f"medsiam_{re.sub(r'[^A-Za-z0-9_]', '_', name)}.prom"
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(0o644)
    os.replace(draft, path)


def queue_measures() -> list[Measure]:
    """Runs that wait and run in each queue, from Prefect's server."""
    from prefect import get_client  # a second and more, and write_metrics needs none of it
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import FlowRun

    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}})
    with get_client(sync_client=True) as client:
        runs: list[FlowRun] = []
        while len(page := client.read_flow_runs(flow_run_filter=wanted, limit=MOST_RUNS, offset=len(runs))):
            runs += page
    counts: dict[tuple[str, str], int] = defaultdict(int)
    waiting: dict[str, float] = defaultdict(float)
    for run in runs:
        queue = run.work_queue_name or ""
        age_s = (datetime.now(UTC) - (run.expected_start_time or datetime.now(UTC))).total_seconds()
        is_due = run.state_type is not None and run.state_type.value != "RUNNING" and age_s > 0
        state = "running" if run.state_type and run.state_type.value == "RUNNING" else "planned"
        counts[queue, "waiting" if is_due else state] += 1
        waiting[queue] = max(waiting[queue], age_s if is_due else 0.0)
    return [
        *(Measure("queue_runs", count, {"queue": queue, "state": state})
          for (queue, state), count in sorted(counts.items())),
        *(Measure("queue_oldest_waiting_seconds", age_s, {"queue": queue})
          for queue, age_s in sorted(waiting.items())),
    ]  # fmt: skip


def main() -> None:
    """What stands at the top."""
    text = prometheus(queue_measures())
    if sys.argv[1:]:
        write_metrics(Path(sys.argv[1]), "queues", text)
    else:
        sys.stdout.write(text)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


if __name__ == "__main__":
    main()
