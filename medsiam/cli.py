"""The command line: one command is one function, and the only place that prints and exits.

Whatever torch, monai and pydicom need is imported inside the commands: they take
seconds to load, and `medsiam --help` must answer at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsiam import __version__, batch_cli, cases_cli, commands_pacs, serving_cli
from medsiam.console import (
    BUG,
    DONE,
    INTERRUPTED,
    ConfigOption,
    DeviceOption,
    JsonOption,
    OutOption,
    SeedOption,
    VerboseOption,
    WeightsOption,
    answers_with_exit_code,
    check_device,
    formats_of,
    tell_progress,
)

if TYPE_CHECKING:  # torch
    from medsiam.change.comparison import Comparison

__all__ = ["BUG", "DONE", "INTERRUPTED", "app", "main"]

# DICOM objects carry the patient's name, so they are written when asked for.
USUAL_FORMATS = "json,html,nifti"
FEWEST_SCANS = 3

app = typer.Typer(
    name="medsiam",
    help="Has this scan changed since the last one? Research use only - not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # A traceback with local values would show what is in the scan.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

FastOption = Annotated[
    bool, typer.Option("--fast", help="A coarser noise floor in less time; the report says how much coarser.")
]
FormatsOption = Annotated[
    str, typer.Option(metavar="LIST", help="What to write: json (always), html, nifti, dicom.")
]
OtherPatientOption = Annotated[
    bool, typer.Option("--allow-different-patients", help="Compare even where patient numbers differ.")
]


app.add_typer(cases_cli.index, name="index")
app.command()(cases_cli.search)


def main() -> None:
    """Runs the command line."""
    app(prog_name="medsiam")


@app.callback(invoke_without_command=True)
def medsiam(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Has this scan changed since the last one? Research use only - not a medical device.

    Example: medsiam compare 2023-05/ 2024-05/ --out result/
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit(DONE)


@app.command()
@answers_with_exit_code
def compare(
    out: OutOption,
    prior: Annotated[
        Path | None, typer.Argument(metavar="PRIOR", help="The earlier scan.", show_default=False)
    ] = None,
    current: Annotated[
        Path | None, typer.Argument(metavar="CURRENT", help="The later scan.", show_default=False)
    ] = None,
    from_archive: commands_pacs.FromOption = None,
    study: commands_pacs.StudyOption = None,
    pacs_config: commands_pacs.PacsConfigOption = None,
    prior_series: Annotated[
        str | None, typer.Option(metavar="UID", help="Series of PRIOR to take; otherwise the best pair.")
    ] = None,
    current_series: Annotated[
        str | None, typer.Option(metavar="UID", help="Series of CURRENT to take; otherwise the best pair.")
    ] = None,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    weights: WeightsOption = None,
    formats: FormatsOption = USUAL_FORMATS,
    seed: SeedOption = 0,
    fast: FastOption = False,
    allow_different_patients: OtherPatientOption = False,
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Take PRIOR as the earlier scan whatever the dates say.")
    ] = False,
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Index of cases, to tell those that look like CURRENT.")
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compares a scan with its prior and writes the report.

    PRIOR and CURRENT are each a folder, a file or a zip of DICOM, a DICOMDIR, a NIfTI
    file, or a PNG or TIFF radiograph. With --from and --study both are fetched from an
    archive instead: the study, and the prior that the rule in --pacs-config finds.

    Example: medsiam compare 2023-05/ 2024-05/ --out result/
    """
    wanted = formats_of(formats)
    check_device(device)
    from medsiam.compare import compare_series  # torch, only now
    from medsiam.report.writer import check_free, write_comparison

    # Refused before anything is compared.
    check_free(out, wanted)
    if index is not None:
        from medsiam.cases.folder import read_card

        read_card(index)
    archive = (from_archive, study, pacs_config)
    with commands_pacs.two_scans((prior, current), archive, tell_progress()) as (earlier, later, told):
        evidence = _evidence([earlier, later], wanted)
        comparison = compare_series(
            earlier,
            later,
            prior_series=prior_series,
            current_series=current_series,
            config=config,
            device=device,
            weights=weights,
            seed=seed,
            fast=fast,
            allow_different_patients=allow_different_patients,
            keep_order=keep_order,
            progress=tell_progress(),
        )
        comparison = dataclasses.replace(comparison, notes=(*told, *comparison.notes))
        more = evidence(comparison) if evidence else None
        alike = _similar_cases(comparison, index, weights, device) if index else ()
        files = write_comparison(comparison, out, formats=wanted, similar_cases=alike, write_more=more)
    if as_json:
        typer.echo((out / files["json"]).read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo(f"{comparison.verdict}: {comparison.summary}")
        typer.echo(f"report: {out / files.get('html', files['json'])}")


@app.command()
@answers_with_exit_code
def trajectory(
    scans: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCAN SCAN SCAN...", help="Three or more scans, in any order.", show_default=False
        ),
    ],
    out: OutOption,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    weights: WeightsOption = None,
    formats: FormatsOption = USUAL_FORMATS,
    seed: SeedOption = 0,
    fast: FastOption = False,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Compare all pairs also of more than four scans.")
    ] = False,
    allow_different_patients: OtherPatientOption = False,
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Take the scans in the order given, whatever the dates say.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print trajectory.json on standard output.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Follows three or more scans of one patient: each step, first to last, lesions, rates.

    Each SCAN is what compare takes. The scans are put in the order of their dates.
    Each pair has its own report in DIR/pairs.

    Example: medsiam trajectory 2022-05/ 2023-05/ 2024-05/ --out course/
    """
    if len(scans) < FEWEST_SCANS:
        raise typer.BadParameter(
            f"{len(scans)} given, {FEWEST_SCANS} or more are needed; compare takes two", param_hint="SCAN"
        )
    wanted = formats_of(formats)
    check_device(device)
    from medsiam.report.trajectory_writer import trajectory_folder  # torch, only now
    from medsiam.trajectory import Rules, follow_series

    evidence = _evidence(scans, wanted)
    with trajectory_folder(out, formats=wanted, write_more=evidence) as writer:
        followed = follow_series(
            scans,
            config=config,
            device=device,
            weights=weights,
            seed=seed,
            rules=Rules(allow_different_patients, keep_order, all_pairs, fast),
            keep=writer.keep,
            progress=tell_progress(),
        )
        files = writer.finish(followed)
    if as_json:
        typer.echo((out / files["json"]).read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo(f"{followed.verdict}: {followed.summary}")
        typer.echo(f"report: {out / files.get('html', files['json'])}")


@app.command()
@answers_with_exit_code
def demo(
    out: OutOption = Path("demo-report"),
    device: DeviceOption = "auto",
    formats: FormatsOption = USUAL_FORMATS,
    seed: SeedOption = 0,
    open_report: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Show the report in a browser; by default at a terminal."),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Makes a patient with three visits as DICOM, compares them, indexes and searches.

    Nothing is downloaded. The truth that was put in is printed beside what was found.

    Example: medsiam demo --out demo-report
    """
    wanted = formats_of(formats)
    if "html" not in wanted:
        raise typer.BadParameter(
            "the demo's page links the reports: html must be among them", param_hint="--formats"
        )
    check_device(device)
    from medsiam.demo import run_demo  # torch, only now

    outcome = run_demo(out, seed=seed, device=device, formats=wanted, progress=tell_progress())
    if as_json:
        typer.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        typer.echo(outcome.table())
        typer.echo(f"report: {outcome.index}")
    is_shown = sys.stdout.isatty() and not as_json if open_report is None else open_report
    if is_shown and _has_display():
        typer.launch(str(outcome.index))


@app.command()
@answers_with_exit_code
def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Settings, as in configs/train_mr_ct_3d.yaml.")
    ],
    out: OutOption,
    device: DeviceOption = "auto",
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=2**31 - 1, help="Instead of the seed in CONFIG."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse the manifest where one scan cannot be read.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print training.json on standard output.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Trains an encoder on a manifest of scans; run it again to go on where it stopped.

    The manifest is a CSV or JSON table: path, patient, and where known acquired, split,
    label_map and labels. Several GPUs: torchrun --nproc-per-node 2 -m medsiam train ...

    Example: medsiam train configs/train_mr_ct_3d.yaml --out runs/mr-ct-3d
    """
    check_device(device)
    from medsiam.training.train import train as train_encoder  # torch, only now

    with _training_bar() as progress:
        trained = train_encoder(config, out, device=device, seed=seed, strict=strict, progress=progress)
    if as_json:
        typer.echo((out / "training.json").read_text(encoding="utf-8"), nl=False)
        return
    if trained.skipped:
        typer.echo(f"skipped: {trained.skipped} scans could not be read (rows in training.json)", err=True)
    typer.echo(f"{trained.encoder_id}: best of {trained.steps} steps at step {trained.best_step}")
    typer.echo(f"weights: {trained.weights}")


@app.command()
@answers_with_exit_code
def bench(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which; without it, all names.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the public data lie, for those that need them.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measures on public or made-up data, beside the published reference.

    Example: medsiam bench registration
    """
    from medsiam.bench import registry

    if name is None:
        typer.echo(json.dumps(registry.names_and_subjects()) if as_json else registry.listing())
        return
    if name not in registry.names_and_subjects():
        known = ", ".join(registry.names_and_subjects())
        raise typer.BadParameter(f"there is no benchmark {name!r}; known: {known}", param_hint="NAME")
    scores = registry.run(name, data=data, seed=seed)
    typer.echo(json.dumps(scores.as_dict(), indent=2) if as_json else scores.table())


for command in (batch_cli.batch, batch_cli.verify, batch_cli.doctor):
    app.command()(answers_with_exit_code(command))
app.command()(answers_with_exit_code(commands_pacs.send))
app.command()(answers_with_exit_code(commands_pacs.deidentify))
app.command()(serving_cli.serve)


def _similar_cases(
    comparison: Comparison, index: Path, weights: str | None, device: str
) -> list[dict[str, Any]]:
    from medsiam.similar import similar_cases  # only where an index was named

    return similar_cases(comparison.current, index, weights=weights, device=device)


def _evidence(scans: list[Path], wanted: tuple[str, ...]) -> Callable[..., Any] | None:
    """What writes the DICOM objects of a comparison, None where they are not wanted."""
    if "dicom" not in wanted:
        return None
    from medsiam.evidence.write import evidence_of  # highdicom, only now
    from medsiam.reading.originals import check_is_dicom

    for scan in scans:
        check_is_dicom(scan)
    return evidence_of(scans, now=datetime.now())


@contextlib.contextmanager
def _training_bar() -> Iterator[Callable[[int, int, Mapping[str, float]], None] | None]:
    """A bar with the latest figures where standard error is a terminal, otherwise nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm  # only where it is seen

    with tqdm(unit="step", file=sys.stderr) as bar:

        def tell(step: int, steps: int, figures: Mapping[str, float]) -> None:
            bar.total = steps
            bar.n = step
            bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()}, refresh=False)
            bar.refresh()

        yield tell


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


if __name__ == "__main__":
    main()
