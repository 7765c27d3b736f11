"""The commands of whole archives: `medsiam batch`, `medsiam verify` and `medsiam doctor`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsiam.commands_pacs import PacsConfigOption
from medsiam.console import (
    BUG,
    ConfigOption,
    DeviceOption,
    OutOption,
    SeedOption,
    VerboseOption,
    WeightsOption,
    check_device,
    formats_of,
)
from medsiam.errors import InputRefused

if TYPE_CHECKING:  # torch
    from medsiam.batch.run import Told
    from medsiam.batch.worklist import Worklist

USUAL_FORMATS = "json,html,nifti"
MOST_TOLD = 5
WIDTH = 110

IndexOption = Annotated[
    Path | None,
    typer.Option("--index", metavar="DIR", help="Index of cases, to tell those that look like each scan."),
]
LogOption = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="Events as JSON lines, added to FILE.")
]


def batch(
    archive: Annotated[
        str, typer.Argument(metavar="ARCHIVE", help="A folder tree, a zip, or an archive's address.")
    ],
    out: OutOption,
    config: ConfigOption = None,
    pacs_config: PacsConfigOption = None,
    device: DeviceOption = "auto",
    weights: WeightsOption = None,
    formats: Annotated[
        str, typer.Option(metavar="LIST", help="What to write: json (always), html, nifti, dicom.")
    ] = USUAL_FORMATS,
    seed: SeedOption = 0,
    fast: Annotated[
        bool, typer.Option("--fast/--full", help="A coarser noise floor in less time, or the full one.")
    ] = True,
    all_series: Annotated[
        bool, typer.Option("--all-series", help="Compare every series that has a counterpart.")
    ] = False,
    index: IndexOption = None,
    add_to_index: Annotated[
        bool, typer.Option("--add-to-index", help="Add the scans that were compared to it at the end.")
    ] = False,
    log: LogOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print worklist.json on standard output.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Compares each patient's successive visits and writes a worklist; run again, it goes on.

    ARCHIVE is a folder tree, a zip, a DICOMDIR, or https://host/dicom-web or
    dimse://AETITLE@host:port. What was done with the same scans, weights and settings is
    not done again. The noise floor is the coarser one of --fast unless --full is given.

    Example: medsiam batch archive/ --out night/ --log night.jsonl
    """
    wanted = formats_of(formats)
    check_device(device)
    if add_to_index and index is None:
        raise typer.BadParameter("--add-to-index needs an index; name it with --index DIR")
    from medsiam.batch import BatchSettings, run_batch  # torch, only now
    from medsiam.config import CompareSettings, load_settings
    from medsiam.pacs.settings import PacsSettings

    settings = BatchSettings(
        compare=load_settings(config, CompareSettings),
        fast=fast,
        seed=seed,
        device=device,
        weights=weights,
        formats=wanted,
        index=None if index is None else str(index),
        add_to_index=add_to_index,
        all_series=all_series,
        pacs=load_settings(pacs_config, PacsSettings),
    )
    if index is not None:
        from medsiam.cases.index import CaseIndex

        # Refused before anything is compared.
        CaseIndex.open(index)
    indexed: dict[str, Any] = {}
    with _log_to(log) as tell, _bar() as progress:

        def hear(event: str, told: Mapping[str, Any]) -> None:
            indexed.update(told if event == "indexed" else {})
            tell(event, told)

        made = run_batch(archive, out, settings, log=hear, progress=progress)
    if as_json:
        typer.echo((out / "worklist.json").read_text(encoding="utf-8"), nl=False)
    else:
        _tell(made, out, indexed)
    _tell_names(made, most=len(made.rows) if verbose else MOST_TOLD)
    if made.failed:
        raise typer.Exit(BUG)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A result, or the OUT of a batch.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Checks the files of a result, or of a whole batch, against the digests written with them.

    Example: medsiam verify result/
    """
    from medsiam.report.digests import verify as check

    told = check(folder)
    if as_json:
        typer.echo(json.dumps({"verified": told.files, "others": told.others}, indent=2))
        return
    others = f"; {told.others} other files are not spoken of" if told.others else ""
    typer.echo(f"verified: {told.files} files are as they were written{others}")


def doctor(
    device: DeviceOption = "auto",
    index: IndexOption = None,
    from_archive: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="Archive to ask whether it answers.")
    ] = None,
    pacs_config: PacsConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Checks installation, device, weights, tools, index, archive and Prefect, and says what to do.

    Example: medsiam doctor --from https://pacs.example/dicom-web
    """
    check_device(device)
    from medsiam.doctor import examine  # torch, only now

    checks = examine(device=device, index=index, archive=from_archive, pacs_config=pacs_config)
    if as_json:
        typer.echo(json.dumps([check.as_dict() for check in checks], indent=2))
    else:
        for check in checks:
            remedy = f"; {check.remedy}" if check.remedy else ""
            typer.echo(f"{check.state:<5} {check.name:<14} {check.found}{remedy}")
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(BUG)


def _tell(made: Worklist, out: Path, indexed: Mapping[str, Any]) -> None:
    counts = made.counts
    done = "" if made.fresh else " (nothing was to be done)"
    typer.echo(
        f"found: {counts['found']}, compared: {counts['compared']}, refused: {counts['refused']}, "
        f"failed: {counts['failed']}{done}"
    )
    not_compared = [row for row in made.rows if row.state != "compared"]
    for row in not_compared[:MOST_TOLD]:
        typer.echo(f"{row.state}: {row.case_id}: {' '.join((row.reason or '').split())}")
    if len(not_compared) > MOST_TOLD:
        typer.echo(f"... and {len(not_compared) - MOST_TOLD} more in the worklist")
    if indexed:
        typer.echo("index: {new} scans added, {known} known before, {refused} refused".format(**indexed))
    typer.echo(f"worklist: {out / 'worklist.html'}")


def _tell_names(made: Worklist, *, most: int) -> None:
    """Which files were refused, on standard error alone: their names may be patients', and are not kept."""
    nameless = [row for row in made.rows if row.spoken]
    for row in nameless[:most]:
        typer.echo(f"{row.case_id} is {row.spoken!r}", err=True)
    if len(nameless) > most:
        typer.echo(f"... and {len(nameless) - most} more files that were refused (-v names all)", err=True)


@contextlib.contextmanager
def _log_to(path: Path | None) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """What writes an event as one line of JSON, whole lines only."""
    if path is None:
        yield lambda event, told: None
        return
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise InputRefused(
            f"the log {path} cannot be written ({error.strerror}); name another file"
        ) from error
    with file:

        def tell(event: str, told: Mapping[str, Any]) -> None:
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            file.write(json.dumps({"time": at, "event": event, **told}) + "\n")
            file.flush()

        yield tell


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, Told | None], None]]:
    """One line with count, rate and time left where standard error is a terminal, otherwise nothing."""
    if not sys.stderr.isatty():
        yield lambda step, told: None
        return

    def tell(step: str, told: Told | None) -> None:
        line = step if told is None else f"{_how_far(told)}  {step}"
        sys.stderr.write(f"\r{line[:WIDTH]:<{WIDTH}}")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        sys.stderr.write("\r" + " " * WIDTH + "\r")


def _how_far(told: Told) -> str:
    line = f"{told.done} of {told.total}"
    if told.per_hour is None or told.left_s is None:
        return line
    return f"{line}, {told.per_hour:.0f} an hour, {_time(told.left_s)} left"


def _time(seconds: float) -> str:
    return (
        time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86400 else f"{seconds / 86400:.1f} days"
    )
