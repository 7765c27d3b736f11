"""A weekly look at the noise floors: has a scanner's upgrade changed what can be seen?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.events import emit_event
from prefect.states import Completed, State

from flows.closed import closed
from flows.running import server_may_be_away
from flows.settings import DriftSettings, settings_of
from medsiam.batch.drift import Rule, drifts, read_rows, scanners_in, write_drift

# What an automation of the house's own can send mail on.
EVENT = "medsiam.noise-floor-moved"


@flow(name="drift_watch", persist_result=False, log_prints=False)
def drift_watch(out: str, archive: str = "", config: str = "") -> State:
    """Warns where the noise floor of recent weeks is another one than that of the weeks before.

    out      of the nightly batch; drift.json is written there
    archive  the folder behind it, whose headers name the scanners; without it modalities are watched
    """
    with closed():
        settings = settings_of(config).drift
        now = datetime.now()
        scanners = scanners_in(Path(archive), Path(out)) if archive else {}
        found = drifts(read_rows(Path(out)), scanners, rule_of(settings), now=now, phantoms=settings.phantoms)
        write_drift(found, Path(out), now=datetime.now(UTC))
        table = [{name: getattr(each, name) for name in each.__dataclass_fields__} for each in found]
        with server_may_be_away():
            create_table_artifact(table, key="drift", description="Smallest detectable change, by scanner.")
        moved = [each.scanner for each in found if each.has_moved]
        for scanner in moved:
            get_run_logger().warning("the noise floor of %s has moved", scanner)
            emit_event(EVENT, resource={"prefect.resource.id": f"medsiam.scanner.{scanner}"})
        return Completed(message=f"{len(moved)} of {len(found)} noise floors have moved")


def rule_of(settings: DriftSettings) -> Rule:
    """The rule that these settings tell."""
    return Rule(
        timedelta(weeks=settings.recent_weeks),
        timedelta(weeks=settings.before_weeks),
        settings.least,
        settings.ratio,
        settings.level,
    )
