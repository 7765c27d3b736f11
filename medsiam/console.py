"""What all commands share: options, exit codes, and one line on standard error for each error.

Whatever torch, monai and pydicom need is imported late: they take seconds to load, and
`medsiam --help` must answer at once.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from medsiam.choices import LARGEST_SEED, is_device
from medsiam.errors import InputRefused, MedsiamError, as_medsiam_error, one_line, spoken
from medsiam.spared_imports import spare_imports

# Threads that spin while they wait take the cores from each other wherever anything
# else runs: registration was measured over five times slower. Read by OpenMP when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# glibc gives each thread a heap of its own, and large arrays that come and go leave holes in all of them:
# with one heap a comparison was measured to need a third less memory, and less time to be given it.
# Arrays of a comparison's size then come from that heap too, and what is free at its end is kept: mapped
# anew each time, as by default, their pages cost a second of processor time.
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1
MAPPED_BYTES, KEPT_BYTES = 1 << 28, 1 << 30
with contextlib.suppress(OSError, AttributeError):
    _glibc = ctypes.CDLL(None)
    _glibc.mallopt(M_ARENA_MAX, 1)
    _glibc.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    _glibc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)

# Imports make half a million objects that all stay. Looked through every few hundred, and once more
# on the way out, they took a third of the time that a command needs to start and to end.
gc.set_threshold(100_000, 20, 50)
atexit.register(gc.freeze)

spare_imports()

DONE, BUG, INTERRUPTED = 0, 1, 130
FORMATS = ("json", "html", "nifti", "dicom")


def out_folder(name: str | Path) -> Path:
    """The folder of that name; an empty one is a script's variable that was never set."""
    if not str(name).strip():
        raise typer.BadParameter("the name is empty; name a folder, or . for this one", param_hint="--out")
    return Path(name)


OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", parser=out_folder, help="Folder for the results.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print report.json on standard output.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Show a bug's traceback.")]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of every random draw.")
]
ConfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings, as in configs/compare.yaml.")
]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to compute.")]
WeightsOption = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="Encoder weights; otherwise the shipped ones.")
]


def answers_with_exit_code(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every error turned into one line on standard error and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        verbose = options.get("verbose", False)
        try:
            with libraries_quiet_unless(verbose):
                if isinstance(options.get("out"), Path):
                    _check_can_be_written(options["out"])
                command(*args, **options)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                raise
            raise typer.Exit(_tell(as_medsiam_error(error), verbose, options)) from None

    return run


def check_device(device: str) -> None:
    if is_device(device):
        return
    raise typer.BadParameter(f"{device!r}: choose auto, cpu or cuda[:N]", param_hint="--device")


def formats_of(text: str) -> tuple[str, ...]:
    """The formats of a comma list, json always among them."""
    wanted = tuple(word.strip() for word in text.split(",") if word.strip())
    unknown = [word for word in wanted if word not in FORMATS]
    if unknown or not wanted:
        raise typer.BadParameter(f"{text!r}: choose from {', '.join(FORMATS)}", param_hint="--formats")
    return wanted if "json" in wanted else ("json", *wanted)


def tell_progress() -> Callable[[str], None]:
    """Tells each step on standard error where that is a terminal, otherwise nothing."""
    if not sys.stderr.isatty():
        return lambda step: None
    return lambda step: typer.echo(f"... {step}", err=True)


@contextlib.contextmanager
def libraries_quiet_unless(verbose: bool) -> Iterator[None]:
    """Keeps warnings of the libraries off standard error, where one line is promised.

    So too what Python tells of a library's generator that ends where memory has run out.
    """
    if verbose:
        yield
        return
    level, unraisable = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda told: None if isinstance(told.exc_value, MemoryError) else unraisable(told)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        sys.unraisablehook = unraisable
        logging.disable(level)


@contextlib.contextmanager
def native_noise_hidden(verbose: bool) -> Iterator[None]:
    """Keeps what native libraries write on standard error out of sight; Python's own still shows.

    The index's engine tells there of a damaged file before it raises its error.
    """
    try:
        told = os.dup(2)
    except OSError:
        yield
        return
    mine = sys.stderr
    try:
        if not verbose:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            if mine is sys.__stderr__:
                sys.stderr = os.fdopen(os.dup(told), "w", buffering=1)
        yield
    finally:
        sys.stderr = mine
        os.dup2(told, 2)
        os.close(told)


def _check_can_be_written(folder: Path) -> None:
    """Refuses what would be refused after the work only: a file, or a folder that is closed."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        reason = "there is a file of that name" if there == folder else f"{there.name!r} on the way is a file"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = "it is closed to you" if there == folder else f"{there} is closed to you"
    else:
        return
    raise InputRefused(f"cannot write the result to {folder}: {reason}; choose a folder you may write to")


def _tell(error: Exception, verbose: bool, options: dict[str, Any]) -> int:
    """Says what went wrong on standard error and returns the exit code."""
    if not isinstance(error, MedsiamError):
        if verbose:
            typer.echo("".join(traceback.format_exception(error)), err=True)
        line = f"medsiam: this is a bug: {type(error).__name__}: {error}"
        typer.echo(one_line(line if verbose else f"{line} (run again with -v for the traceback)"), err=True)
        return BUG
    if error.exit_code == InputRefused.exit_code and "out" in options:
        _leave_refusal(error, options)
    typer.echo(f"medsiam: {spoken(error)}", err=True)
    return error.exit_code


def _leave_refusal(error: MedsiamError, options: dict[str, Any]) -> None:
    """report.json with status "refused", where its folder can be made."""
    from medsiam.report.comparison_json import refusal_json, to_text
    from medsiam.report.writer import write_refusal

    report = refusal_json(error.code, one_line(str(error)))
    if options.get("as_json"):
        typer.echo(to_text(report), nl=False)
    # Where the folder cannot be made, the line on standard error still tells.
    with contextlib.suppress(MedsiamError, OSError):
        write_refusal(options["out"], report)
