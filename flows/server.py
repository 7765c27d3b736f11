"""What the flows need on Prefect's server: the pool, its queues, and automations that raise the dead.

    python -m flows.server

makes them, again and again to the same end; `prefect deploy --all` does so by itself.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import timedelta
from functools import cache

from prefect import get_client
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows import HEARTBEAT_S
from flows.running import TAG

POOL = "gpu"
QUEUES = ("gpu-0", "gpu-1")
ENDED = ("Completed", "Failed", "Cancelled", "Cancelling", "Paused", "Suspended")
# States of a run that waits for its turn; Prefect names them apart.
WAITS = ("Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot")
# Three heartbeats are missing: the machine is dead, or cut off.
SILENT_S = 3 * HEARTBEAT_S
# A worker hands a run to its process within seconds; importing torch from a cold disk takes a minute.
# Where an image is pulled meanwhile, the run is handed out again, and the ledger's locks keep them apart.
PENDING_S = 180
# A run that is scheduled before its worker has put the crashed one away kills the worker
# (Prefect 3.8: "this borrower is already holding one of this CapacityLimiter's tokens").
SETTLE_S = 15

_OURS = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}


@cache
def prepare() -> None:
    """Makes the pool with its queues, and the automations; once a process, which deploys many flows."""
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        for queue in QUEUES:
            _queue(client, queue)
    for automation in automations():
        _keep(automation)


def automations() -> tuple[Automation, ...]:
    """Who is silent is dead; who is dead is run again. A run that failed by itself is left alone."""
    # Neither is forced: where an event was lost the server knows that a run has ended, and refuses.
    crashed = ChangeFlowRunState(state="CRASHED", name="Crashed", message="its process is silent")
    again = ChangeFlowRunState(state="SCHEDULED", name="AwaitingRetry", message="run again after a crash")
    return (
        Automation(
            name="medsiam: a silent run is marked as crashed",
            trigger=_silence("heartbeat", {"heartbeat", "Crashed", *ENDED, *WAITS}, SILENT_S),
            actions=[crashed],
        ),
        Automation(
            name="medsiam: a run that never began is marked as crashed",
            trigger=_silence("Pending", {"Running", "Crashed", *ENDED, *WAITS}, PENDING_S),
            actions=[crashed],
        ),
        Automation(
            name="medsiam: a crashed run is run again",
            trigger=_silence("Crashed", {"Pending", "Running", *ENDED, *WAITS}, SETTLE_S),
            actions=[again],
        ),
    )


def _silence(after: str, expect: set[str], seconds: int) -> EventTrigger:
    """One of our runs from which, after an event, none of those expected is heard for so long."""
    return EventTrigger(
        match=_RUNS,
        match_related=_OURS,
        for_each={"prefect.resource.id"},
        after={f"prefect.flow-run.{after}"},
        expect={f"prefect.flow-run.{each}" for each in expect},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )


def _queue(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_queue_by_name(name, work_pool_name=POOL)
    except ObjectNotFound:
        client.create_work_queue(name, work_pool_name=POOL)


def _keep(automation: Automation) -> None:
    """Makes an automation, or brings the one of its name up to date."""
    try:
        there = Automation.read(name=automation.name)
    except ValueError:
        automation.create()
        return
    automation.id = there.id
    automation.update()


def main() -> None:
    """What stands at the top."""
    prepare()
    sys.stdout.write(f"the pool {POOL} with the queues {', '.join(QUEUES)}, and the automations are there\n")


if __name__ == "__main__":
    main()
