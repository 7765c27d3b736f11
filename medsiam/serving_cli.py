"""The command that serves: a queue on disk, a worker, and its HTTP face."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medsiam.console import VerboseOption, answers_with_exit_code

PARTS = ("all", "worker")


@answers_with_exit_code
def serve(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Folder of the queue and its results, our own.")
    ],
    config: Annotated[Path, typer.Option(metavar="FILE", help="Settings, as in configs/serve.yaml.")],
    part: Annotated[str, typer.Option(hidden=True)] = "all",
    verbose: VerboseOption = False,
) -> None:
    """Takes studies to compare over HTTP on this machine, and sends the evidence to their archive.

    Every request bears the token in DIR/token, or the one in MEDSIAM_SERVE_TOKEN. How to
    connect Orthanc: docs/orthanc.md. The nightly schedules of an archive are started by
    `python -m flows.serve` instead: docs/flows.md.

    Example: medsiam serve --data serving/ --config serve.yaml
    """
    if part not in PARTS:
        raise typer.BadParameter(f"{part!r}: choose from {', '.join(PARTS)}", param_hint="--part")
    from medsiam.config import load_settings  # torch, only now
    from medsiam.serving.settings import ServeSettings

    settings = load_settings(config, ServeSettings)
    if part == "worker":
        from medsiam.serving.worker import work

        work(data, settings, _tell)
        return
    from medsiam.serving.supervise import serve as serve_all

    # Without the worker's own libraries: it loads them in its own process.
    command = [sys.executable, "-m", "medsiam", "serve", "--data", str(data), "--config", str(config)]
    serve_all(data, settings, [*command, "--part", "worker", *(["-v"] if verbose else [])], _tell)


def _tell(step: str) -> None:
    """Tells each step on standard error, where a service's journal takes it: ids, never names."""
    typer.echo(f"medsiam: {step}", err=True)
