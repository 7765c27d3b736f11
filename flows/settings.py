"""What a flow can be told, one section a subject: the keys of configs/flows.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medsiam.batch.values import BatchSettings
from medsiam.config import load_settings


@dataclass(frozen=True)
class LockSettings:
    """One device, one job.

    folder    of the lock files; it must lie on the host's own disk, shared by all its workers and
              containers; "" is ~/.cache/medsiam/devices
    lease_s   a holder elsewhere that was silent for so long is dead
    beat_s    how often a holder says that it lives
    lock_cpu  whether the processor counts as a device too, on a box that does other work
    """

    folder: str = ""
    lease_s: float = field(default=45.0, metadata={"range": (1.0, 60.0)})
    beat_s: float = field(default=10.0, metadata={"range": (0.1, 20.0)})
    lock_cpu: bool = False


@dataclass(frozen=True)
class RetrySettings:
    """What may come back, an archive or memory, is tried again; nothing else is.

    tries          after the first one, each pause twice as long as the one before
    jitter         pauses are longer by up to this share, so that workers do not ask in step
    most_restarts  of a run that died; one that dies each time is given up
    """

    tries: int = field(default=6, metadata={"range": (0, 20)})
    first_pause_s: float = field(default=10.0, metadata={"range": (0.01, 600.0)})
    jitter: float = field(default=0.5, metadata={"range": (0.0, 5.0)})
    most_restarts: int = field(default=25, metadata={"range": (0, 1000)})


@dataclass(frozen=True)
class ToldSettings:
    """What is told outside OUT.

    rows     of the worklist in Prefect's table, the most urgent ones
    pages    address under which OUT is served to readers, "" where it is not
    metrics  folder for Prometheus' text collector, "" for none
    """

    rows: int = field(default=50, metadata={"range": (0, 1000)})
    pages: str = ""
    metrics: str = ""


@dataclass(frozen=True)
class AuditSettings:
    """Confident change that nobody has seen.

    months  back from now
    level   the largest p value of a change that counts
    """

    months: int = field(default=3, metadata={"range": (1, 120)})
    level: float = field(default=0.01, metadata={"range": (1e-6, 0.2)})


@dataclass(frozen=True)
class DriftSettings:
    """When a noise floor counts as moved.

    recent_weeks, before_weeks  the two spans that are set beside each other
    least     comparisons in each of them
    ratio     of the medians, up or down
    level     of the rank test
    phantoms  patient keys of phantoms; where some are named only they are watched
    """

    recent_weeks: int = field(default=4, metadata={"range": (1, 520)})
    before_weeks: int = field(default=26, metadata={"range": (1, 520)})
    least: int = field(default=8, metadata={"range": (2, 10_000)})
    ratio: float = field(default=1.25, metadata={"range": (1.0, 10.0)})
    level: float = field(default=0.01, metadata={"range": (1e-6, 0.2)})
    phantoms: tuple[str, ...] = ()


@dataclass(frozen=True)
class FlowSettings:
    """Everything, with what `medsiam batch` is told."""

    batch: BatchSettings = field(default_factory=BatchSettings)
    locks: LockSettings = field(default_factory=LockSettings)
    retries: RetrySettings = field(default_factory=RetrySettings)
    told: ToldSettings = field(default_factory=ToldSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    drift: DriftSettings = field(default_factory=DriftSettings)


def settings_of(config: str | Path) -> FlowSettings:
    """The settings of a file, the defaults for "". Raises ConfigRefused."""
    return load_settings(config if str(config) else None, FlowSettings)
