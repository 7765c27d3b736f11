"""The commands of the case index: `medsiam index ...` and `medsiam search`."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsiam.console import (
    DeviceOption,
    OutOption,
    SeedOption,
    VerboseOption,
    WeightsOption,
    answers_with_exit_code,
    check_device,
    formats_of,
    native_noise_hidden,
)
from medsiam.errors import InputRefused

if TYPE_CHECKING:  # torch, which a help text need not wait for
    from medsiam.cases.case import Case
    from medsiam.cases.intake import Intake
    from medsiam.cases.search import SearchOutcome

FORMATS_OF_PLACE = "X,Y,Z"
MOST_REFUSED_TOLD = 10
KEY_SHOWN = 12

IssuerOption = Annotated[
    str, typer.Option(metavar="NAME", help="Who issued the patient's number, where several did.")
]
IndexOption = Annotated[Path, typer.Option("--index", metavar="DIR", help="Folder of the index.")]
ScansArgument = Annotated[
    list[Path],
    typer.Argument(metavar="SCAN...", help="Folders, files, zips; folders are walked.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
WhereOption = Annotated[
    str, typer.Option(metavar="FILTER", help="Such as \"modality = 'MR' and age between 40 and 60\".")
]


class By(StrEnum):
    """What is compared."""

    scan = "scan"
    finding = "finding"
    change = "change"


class Scanners(StrEnum):
    """Whose scans are ranked."""

    any = "any"
    same = "same"
    other = "other"


index = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@index.callback()
def about() -> None:
    """The index of earlier cases: add, list, info, remove, rebuild.

    Example: medsiam index add archive/ --index cases/
    """


@index.command()
@answers_with_exit_code
def add(
    scans: ScansArgument,
    index: IndexOption,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="What is known of the scans: labels, outcome, age, masks."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Comparisons whose findings are stored too.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings of a new index, as in configs/index.yaml.")
    ] = None,
    device: DeviceOption = "auto",
    weights: WeightsOption = None,
    allow_shared_folder: Annotated[
        bool, typer.Option("--allow-shared-folder", help="Write although others may read the folder.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Embeds scans and stores them as cases. Adding again changes nothing.

    Example: medsiam index add archive/ --index cases/ --labels labels.csv
    """
    check_device(device)
    from medsiam.similar import add_to_index  # torch, only now

    with native_noise_hidden(verbose), _bar() as progress:
        made, intake = add_to_index(
            scans,
            index,
            labels=labels,
            results=results,
            config=config,
            weights=weights,
            device=device,
            allow_shared=allow_shared_folder,
            progress=progress,
        )
        cases = len(made)
    _tell_intake(intake, cases, as_json=as_json)
    if intake.refused and not intake.taken:
        # As where the index is new: nothing of what was named could be used.
        if as_json:
            typer.echo(f"medsiam: no scan was added: {intake.refused[0].spoken}", err=True)
        raise typer.Exit(InputRefused.exit_code)


@index.command("list")
@answers_with_exit_code
def list_cases(
    index: IndexOption,
    where: WhereOption = "",
    limit: Annotated[int, typer.Option(min=1, help="The most cases listed.")] = 50,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Lists the cases of an index, by patient and date.

    Example: medsiam index list --index cases/ --where "modality = 'MR'"
    """
    from medsiam.cases.index import CaseIndex, walk  # numpy, only now

    with native_noise_hidden(verbose):
        opened = CaseIndex.open(index)
        found = list(walk(opened, "scan", opened.filter(where) if where.strip() else None))
    if as_json:
        typer.echo(json.dumps([_listed(case) for case in found[:limit]], indent=2))
        return
    for case in found[:limit]:
        typer.echo("  ".join(_line(case)))
    if len(found) > limit:
        typer.echo(f"... and {len(found) - limit} more (--limit)")


@index.command()
@answers_with_exit_code
def info(index: IndexOption, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Tells what an index holds: cases, encoder, engine, labels, size.

    Example: medsiam index info --index cases/
    """
    from medsiam.cases.info import info_of  # numpy, only now

    with native_noise_hidden(verbose):
        told = info_of(index)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    for name, value in told.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name:<14}{', '.join(shown) if isinstance(shown, list) else shown}")


@index.command()
@answers_with_exit_code
def remove(
    index: IndexOption,
    patient: Annotated[
        str, typer.Option(metavar="ID", help="The patient's number, or the patient key as listed.")
    ] = "",
    issuer: IssuerOption = "",
    case: Annotated[str, typer.Option(metavar="ID", help="One case alone, by its id as listed.")] = "",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Erases every trace of a patient and proves it by searching the files.

    The receipt is printed and kept in the index's folder.

    Example: medsiam index remove --patient 12345678 --index cases/
    """
    if bool(patient) == bool(case):
        raise typer.BadParameter("give either --patient or --case", param_hint="--patient")
    from medsiam.cases.removal import remove_case, remove_patient  # numpy, only now

    now = datetime.now(UTC).replace(tzinfo=None)
    with native_noise_hidden(verbose):
        if patient:
            receipt, path = remove_patient(index, patient, issuer=issuer, now=now)
        else:
            receipt, path = remove_case(index, case, now=now)
    if as_json:
        typer.echo(json.dumps(receipt.as_dict(), indent=2))
        return
    counts = ", ".join(f"{count} {kind}s" for kind, count in receipt.cases.items())
    proven = "no file holds a trace" if receipt.is_proven else "NOT proven: the files lie on a server"
    typer.echo(f"erased: {counts}; {proven}")
    typer.echo(f"receipt: {path}")


@index.command()
@answers_with_exit_code
def rebuild(
    index: IndexOption,
    scans: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[SCAN...]", help="All its scans, to embed them anew.", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    weights: WeightsOption = None,
    leave_out_missing: Annotated[
        bool, typer.Option("--leave-out-missing", help="Drop cases whose scans are not given.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tidies an index's files; with SCANs, embeds all its cases by another encoder.

    Words and labels are kept. The new index takes the old one's place when it is whole.

    Example: medsiam index rebuild archive/ --index cases/ --weights mine.safetensors
    """
    check_device(device)
    from medsiam.similar import rebuild_index  # torch, only now

    with native_noise_hidden(verbose), _bar() as progress:
        made, intake = rebuild_index(
            index,
            scans or [],
            weights=weights,
            device=device,
            leave_out_missing=leave_out_missing,
            progress=progress,
        )
        cases = len(made)
    if intake is not None:
        _tell_intake(intake, cases, as_json=as_json)
    else:
        typer.echo(json.dumps({"cases": cases}) if as_json else f"tidied: {cases} cases")


@answers_with_exit_code
def search(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="The scan to search by.", show_default=False)],
    index: IndexOption,
    out: OutOption,
    count: Annotated[int, typer.Option("-k", "--count", min=1, max=1000, help="How many cases.")] = 10,
    by: Annotated[
        By, typer.Option(help="The whole scan, one finding, or the change since a prior.")
    ] = By.scan,
    where: WhereOption = "",
    scanners: Annotated[Scanners, typer.Option(help="Rank cases of any, the same, or other scanners.")] = (
        Scanners.any
    ),
    prior: Annotated[
        Path | None,
        typer.Option(metavar="SCAN", help="By change: the earlier scan; else the latest in the index."),
    ] = None,
    at: Annotated[str, typer.Option(metavar=FORMATS_OF_PLACE, help="By finding: its place in LPS mm.")] = "",
    radius: Annotated[float, typer.Option(min=1.0, max=100.0, metavar="MM", help="Of the place.")] = 6.0,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="By finding: a label map.")] = None,
    finding: Annotated[int, typer.Option(min=1, metavar="N", help="Which number of the label map.")] = 1,
    series: Annotated[str | None, typer.Option(metavar="UID", help="Which series of SCAN.")] = None,
    patient: Annotated[str, typer.Option(metavar="ID", help="The patient's number, if untold.")] = "",
    issuer: IssuerOption = "",
    include_same_patient: Annotated[
        bool, typer.Option("--include-same-patient", help="Keep the query's own patient in.")
    ] = False,
    controls: Annotated[int, typer.Option(min=0, max=100, help="Random cases beside.")] = 10,
    device: DeviceOption = "auto",
    weights: WeightsOption = None,
    formats: Annotated[
        str, typer.Option(metavar="LIST", help="json, html; nothing of a search is nifti or dicom.")
    ] = "json,html",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Finds prior cases that look like this scan, and what followed in them.

    Writes search.html, search.json and search.csv.

    Example: medsiam search 2024-05/ --index cases/ --out similar/ --where "modality = 'MR'"
    """
    check_device(device)
    wanted = formats_of(formats)
    place_mm = _place(at)
    from medsiam.cases.search import Wish  # torch, only now
    from medsiam.report.search_writer import write_search
    from medsiam.similar import Place, search_index

    wish = Wish(by.value, count, where, scanners.value, include_same_patient, controls, seed)
    with native_noise_hidden(verbose):
        outcome = search_index(
            scan,
            index,
            wish,
            series=series,
            prior=prior,
            place=Place(place_mm, radius, mask, finding),
            patient=patient,
            issuer=issuer,
            weights=weights,
            device=device,
        )
        files = write_search(outcome, out, formats=wanted)
    if as_json:
        typer.echo((out / files["json"]).read_text(encoding="utf-8"), nl=False)
        return
    for line in _found_lines(outcome):
        typer.echo(line)
    typer.echo(f"report: {out / files.get('html', files['json'])}")


def _place(text: str) -> tuple[float, float, float] | None:
    if not text:
        return None
    try:
        x, y, z = (float(part) for part in text.split(","))
        if not all(map(math.isfinite, (x, y, z))):
            raise ValueError
    except ValueError:
        raise typer.BadParameter(
            f"{text[:40]!r}: give three numbers, such as 12.5,-30,44", param_hint="--at"
        ) from None
    return x, y, z


def _found_lines(outcome: SearchOutcome) -> Iterator[str]:
    for each in outcome.results:
        percentile = "" if each.percentile is None else f"  {each.percentile:5.1f} %"
        labels = ", ".join(f"{name}={value}" for name, value in each.case.labels.items())
        words = f"{each.case.modality} {each.case.acquired[:10]}  {labels}".rstrip()
        yield f"{each.rank:>3}  {each.similarity:.3f}{percentile}  {each.case.case_id[:KEY_SHOWN]}  {words}"
    if outcome.same_scanner is not None:
        yield f"{outcome.same_scanner} of {len(outcome.results)} were made on this scan's scanner"
    yield from outcome.notes


def _tell_intake(intake: Intake, cases: int, *, as_json: bool) -> None:
    told: dict[str, Any] = {
        "cases": cases,
        "new": intake.added.new,
        "updated": intake.added.updated,
        "unchanged": intake.added.unchanged + intake.skipped,
        "findings": intake.findings,
        "changes": intake.changes,
        "left_out": intake.left_out,
        "unmatched_labels": intake.unmatched,
        "refused": [each.as_dict() for each in intake.refused],
        "seconds": round(intake.seconds, 2),
    }
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(
        f"{told['new']} new, {told['updated']} updated, {told['unchanged']} unchanged, "
        f"{len(intake.refused)} refused; {cases} cases in the index"
    )
    if intake.unmatched:
        typer.echo(
            f"label table: rows that find none of these scans: {intake.unmatched} (a scan is found by "
            "series_uid, path, file, or patient, which needs issuer beside it where the scans tell one)",
            err=True,
        )
    for each in intake.refused[:MOST_REFUSED_TOLD]:
        typer.echo(f"refused: {each.name[:64]}: {each.spoken}", err=True)
    if len(intake.refused) > MOST_REFUSED_TOLD:
        typer.echo(f"... and {len(intake.refused) - MOST_REFUSED_TOLD} more (--json tells all)", err=True)


def _listed(case: Case) -> dict[str, Any]:
    names = (
        "case_id",
        "patient_key",
        "modality",
        "sequence",
        "body_part",
        "acquired",
        "age",
        "sex",
        "scanner",
    )
    told = {name: getattr(case, name) or None for name in (*names, "series_uid", "outcome")}
    return told | {"labels": dict(case.labels)}


def _line(case: Case) -> Iterator[str]:
    yield case.case_id[:KEY_SHOWN]
    yield case.patient_key[:KEY_SHOWN] or "-" * KEY_SHOWN
    yield f"{case.modality or '?':<3}"
    yield case.acquired[:10] or "----------"
    yield ", ".join(f"{name}={value}" for name, value in case.labels.items())


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar where standard error is a terminal, otherwise nothing."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm import tqdm  # only where it is seen

    with tqdm(unit="scan", file=sys.stderr) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.n = done
            bar.refresh()

        yield tell
