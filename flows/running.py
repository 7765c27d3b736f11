"""What all flows share: a device to themselves, retries, and an end to what dies again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import httpx
from prefect import Task, get_client, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.states import State

from flows.closed import LOGGER, ComesBack, FlowStopped
from flows.device_lock import CPU, device_name, held
from flows.settings import FlowSettings, RetrySettings

T = TypeVar("T")

# The tag of all deployments; the automations watch runs that bear it.
TAG = "medsiam"
# A slot of Prefect whose holder is silent for so long is free again.
SLOT_LEASE_S = 60.0
LONGEST_PAUSE_S = 600.0


@contextmanager
def on_device(settings: FlowSettings) -> Iterator[None]:
    """A block that has its device to itself: Prefect's slot, which can be seen, and our lock, which holds."""
    name = device_name(settings.batch.device)
    if name == CPU and not settings.locks.lock_cpu:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_slot(f"{TAG}-{name}"))
        log = get_run_logger()
        waiting = lambda holder: log.info("waiting for %s, held by %s", name, holder)  # noqa: E731
        stack.enter_context(held(name, settings.locks, waiting=waiting))
        yield


@contextmanager
def _slot(name: str) -> Iterator[None]:
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
    # A server that restarts loses leases and must not cost a night: our lock holds the device.
    with concurrency(name, strict=True, lease_duration=SLOT_LEASE_S, raise_on_lease_renewal_failure=False):
        yield


def worth_retrying(task: Any, run: Any, state: Any) -> bool:
    """Whether what failed may come back: an archive, memory, disk. A refusal does not, nor does a bug."""
    try:
        state.result()
    except ComesBack:
        return True
    except Exception:
        return False
    return False


def once(work: Callable[..., T], name: str, run_name: str | None = None) -> Task[..., T]:
    """A task that is not tried again and whose values stay out of Prefect.

    The ledger is the cache; one of Prefect's would hold results of a world that changed.
    """
    return task(work, name=name, task_run_name=run_name, cache_policy=NO_CACHE, persist_result=False)


def retried(work: Callable[..., T], name: str, settings: RetrySettings) -> Task[..., T]:
    """A task that is tried again with growing pauses where what it misses may come back."""
    return once(work, name).with_options(
        retries=settings.tries,
        retry_delay_seconds=pauses_s(settings) or None,
        retry_jitter_factor=settings.jitter,
        retry_condition_fn=worth_retrying,
    )


def pauses_s(settings: RetrySettings) -> list[float]:
    """Seconds before each further try."""
    return [min(settings.first_pause_s * 2**n, LONGEST_PAUSE_S) for n in range(settings.tries)]


def came_back(state: State[Any]) -> bool:
    """Whether a task did what it should, at last; False where what it missed stayed away.

    Raises FlowStopped where it failed for another reason.
    """
    if not state.is_failed():
        return True
    error = state.result(raise_on_failure=False)
    if isinstance(error, ComesBack):
        return False
    raise error


def check_restarts(settings: RetrySettings) -> None:
    """Raises FlowStopped, which is final, where a run died too often: it would die for ever."""
    count = runtime.flow_run.run_count or 1
    if count > settings.most_restarts + 1:
        raise FlowStopped(f"this run died {count - 1} times; look into the worker's log")


@contextmanager
def server_may_be_away() -> Iterator[None]:
    """A block that only tells: a server that cannot be reached just now is no reason to stop computing."""
    try:
        yield
    except (httpx.HTTPError, OSError) as error:
        LOGGER.warning("the server cannot be reached (%s)", type(error).__name__)
