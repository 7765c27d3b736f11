"""Runs that the automations missed, found by asking: events die with a server, states do not.

    python -m flows.watch

looks every half minute, beside the server; it may be started and killed at any time. What it does
is what the automations of flows/server.py do, later: a run of which nothing is heard is marked as
crashed, a crashed one is scheduled again.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed, Scheduled

from flows.running import TAG
from flows.server import PENDING_S, SETTLE_S, SILENT_S

EVERY_S = 30.0
# The automations come first; this is for what they did not see.
GRACE_S = 30
# What crashed before is history; whoever wants it again starts it by hand.
FORGOTTEN_AFTER = timedelta(days=1)
MOST_RUNS = 200
HEARTBEAT = "prefect.flow-run.heartbeat"


def sweep(now: datetime, *, server_up_s: float) -> int:
    """Raises the dead once; how many runs were changed.

    server_up_s  how long the server has answered: while it was down no heartbeat reached it

    Raises httpx.HTTPError where no server answers.
    """
    changed = 0
    states = ["CRASHED", "PENDING", *(["RUNNING"] if server_up_s > SILENT_S else [])]
    with get_client(sync_client=True) as client:
        for run in _runs(client, states):
            state = _next(client, run, now)
            if state is not None:
                client.set_flow_run_state(run.id, state)
                changed += 1
    return changed


def _next(client: SyncPrefectClient, run: FlowRun, now: datetime) -> State | None:
    """The state that a run should have, None where it may stay as it is."""
    assert run.state is not None, "a run that was found by its state has one"
    age_s = (now - run.state.timestamp).total_seconds()
    if run.state.is_crashed():
        is_late = SETTLE_S + GRACE_S < age_s < FORGOTTEN_AFTER.total_seconds()
        return Scheduled(name="AwaitingRetry", message="run again after a crash") if is_late else None
    if run.state.is_pending():
        return Crashed(message="it never began") if age_s > PENDING_S + GRACE_S else None
    is_silent = age_s > SILENT_S + GRACE_S and not _is_heard(client, run, now)
    return Crashed(message="its process is silent") if is_silent else None


def _is_heard(client: SyncPrefectClient, run: FlowRun, now: datetime) -> bool:
    """Whether a heartbeat of a run reached the server lately."""
    since = now - timedelta(seconds=SILENT_S + GRACE_S)
    told = client._client.post(
        "/events/filter",
        json={
            "filter": {
                "occurred": {"since": since.isoformat(), "until": now.isoformat()},
                "event": {"name": [HEARTBEAT]},
                "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            },
            "limit": 1,
        },
    )
    told.raise_for_status()
    return bool(told.json()["events"])


def _runs(client: SyncPrefectClient, states: list[str]) -> list[FlowRun]:
    """Our runs that belong to a deployment, in these states, the latest first."""
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": states}}, "tags": {"all_": [TAG]}})
    runs = client.read_flow_runs(flow_run_filter=wanted, limit=MOST_RUNS)
    return [run for run in runs if run.deployment_id is not None]


def main() -> None:
    """What stands at the top."""
    up_since = time.monotonic()
    while True:
        try:
            if changed := sweep(datetime.now(UTC), server_up_s=time.monotonic() - up_since):
                sys.stdout.write(f"{changed} runs raised\n")
                sys.stdout.flush()
        except (httpx.HTTPError, OSError):
            up_since = time.monotonic()
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
