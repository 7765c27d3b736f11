"""All deployments of prefect.yaml on a single box, without pool and worker: one process that serves them.

    python -m flows.serve [NAME...]

It needs a server (`prefect server start`) at PREFECT_API_URL, runs what is due one after another,
and ends with Ctrl-C, which leaves the schedules paused. NAME leaves the other deployments out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect import serve
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Schedule

from flows.closed import FlowStopped
from flows.server import prepare

FILE = Path(__file__).parents[1] / "prefect.yaml"


def deployments(names: Sequence[str] = (), *, file: Path = FILE) -> Iterator[RunnerDeployment]:
    """What prefect.yaml deploys, without its pool.

    names  of those wanted, all where empty

    Raises FlowStopped for a name that is not there: who serves nothing would wait for ever.
    """
    listed = yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]
    there = [told["name"] for told in listed]
    if unknown := [name for name in names if name not in there]:
        raise FlowStopped(f"{file.name} has no deployment {unknown[0]!r}; choose from {', '.join(there)}")
    for told in listed:
        if names and told["name"] not in names:
            continue
        flow = load_flow_from_entrypoint(str(file.parent / told["entrypoint"]))
        yield flow.to_deployment(
            name=told["name"],
            description=told["description"],
            tags=told["tags"],
            parameters=told["parameters"],
            schedules=[_schedule(each) for each in told.get("schedules", ())],
        )


def _schedule(told: dict[str, Any]) -> Schedule:
    checked = CronSchedule(cron=told["cron"], timezone=told["timezone"])
    return Schedule(cron=checked.cron, timezone=checked.timezone, active=told["active"], slug=told["slug"])


def main() -> None:
    """What stands at the top."""
    try:
        chosen = list(deployments(sys.argv[1:]))
    except FlowStopped as error:
        sys.exit(str(error))
    prepare()
    # One at a time: the box has one GPU, and its lock would make the others wait anyway.
    serve(*chosen, limit=1)


if __name__ == "__main__":
    main()
