"""The index of earlier cases: scans into it, and a scan's neighbours out of it."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.states import Completed, State

from flows.closed import closed
from flows.running import check_restarts, on_device, retried
from flows.settings import FlowSettings, settings_of
from flows.telling import tell_page
from medsiam.cases.search import Wish
from medsiam.report.search_writer import write_search
from medsiam.similar import add_to_index, search_index


@flow(name="index_archive", persist_result=False, log_prints=False)
def index_archive(archive: str, index: str, results: str = "", labels: str = "", config: str = "") -> State:
    """Adds an archive's scans to the index; what it holds is not added again.

    results  OUT of a batch, whose findings are stored too
    labels   a table of labels, as `medsiam index add` takes it
    """
    with closed():
        settings = settings_of(config)
        check_restarts(settings.retries)

        def add_scans() -> str:
            return _added(Path(archive), Path(index), results, labels, settings)

        add = retried(add_scans, "add_to_index", settings.retries)
        with on_device(settings):
            return Completed(message=add())


@flow(name="similar_cases", persist_result=False, log_prints=False)
def similar_cases(scan: str, index: str, out: str, count: int = 10, config: str = "") -> State:
    """Writes the prior cases that look like a scan into `out`, as `medsiam search` does."""
    with closed():
        settings = settings_of(config)
        check_restarts(settings.retries)
        batch = settings.batch

        def find() -> int:
            with closed():
                wish = Wish(count=count, seed=batch.seed)
                outcome = search_index(
                    Path(scan), Path(index), wish, weights=batch.weights, device=batch.device
                )
                write_search(outcome, Path(out))
                return len(outcome.results)

        with on_device(settings):
            found = retried(find, "search_index", settings.retries)()
        tell_page(Path(out), "search.html", pages=settings.told.pages)
        return Completed(message=f"{found} similar cases")


def _added(archive: Path, index: Path, results: str, labels: str, settings: FlowSettings) -> str:
    """What became of an archive's series, in figures."""
    with closed():
        made, intake = add_to_index(
            [archive],
            index,
            labels=Path(labels) if labels else None,
            results=Path(results) if results else None,
            weights=settings.batch.weights,
            device=settings.batch.device,
        )
        return f"{len(made)} cases in the index, {intake.skipped} known before, {len(intake.refused)} refused"
