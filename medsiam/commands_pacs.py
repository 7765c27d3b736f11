"""The commands that speak with archives or export from them, and what `compare --from` needs of them."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from medsiam.console import out_folder
from medsiam.errors import ArchiveRefused

Progress = Callable[[str], None]

PacsConfigOption = Annotated[
    Path | None, typer.Option("--pacs-config", metavar="FILE", help="Settings, as in configs/pacs.yaml.")
]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="URL", help="Archive to take the study and its prior from."),
]
StudyOption = Annotated[
    str | None, typer.Option("--study", metavar="UID", help="With --from: the current study.")
]


def send(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A result, or a folder of DICOM objects.")],
    to: Annotated[
        str, typer.Option("--to", metavar="URL", help="https://host/dicom-web or dimse://AETITLE@host:port.")
    ],
    pacs_config: PacsConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was stored as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show a bug's traceback.")] = False,
) -> None:
    """Sends the DICOM objects of a result to an archive, by STOW-RS or C-STORE.

    A token is taken from MEDSIAM_PACS_TOKEN, a password from MEDSIAM_PACS_USER and
    MEDSIAM_PACS_PASSWORD, never from the command line.

    Example: medsiam send result/ --to https://pacs.example/dicom-web
    """
    from medsiam.config import load_settings  # torch, only now
    from medsiam.pacs.exchange import send_folder
    from medsiam.pacs.opening import open_archive
    from medsiam.pacs.settings import PacsSettings

    settings = load_settings(pacs_config, PacsSettings)
    stored = send_folder(open_archive(to, settings.archive), folder)
    if as_json:
        failed = [{"sop_instance_uid": uid, "reason": reason} for uid, reason in stored.failed]
        typer.echo(json.dumps({"stored": stored.done, "failed": failed}, indent=2))
    else:
        typer.echo(f"stored: {stored.done}")
    if stored.failed:
        uid, reason = stored.failed[0]
        raise ArchiveRefused(
            f"{len(stored.failed)} of {stored.done + len(stored.failed)} objects were not taken, the first "
            f"{uid}: {reason}; send again once that is settled"
        )


def deidentify(
    scans: Annotated[Path, typer.Argument(metavar="SCANS", help="A folder, file or zip of DICOM.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", parser=out_folder, help="Folder for the copies, new or empty."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show a bug's traceback.")] = False,
) -> None:
    """Copies scans without their patient, for research: PS3.15 Basic Profile with modified dates.

    Numbers and UIDs become hashes under the key in MEDSIAM_KEY. Pixels are not examined:
    a face in a head scan, and text that the header does not admit, are still there.

    Example: medsiam deidentify scans/ --out export/
    """
    from medsiam.privacy.deidentify import deidentify as export  # pydicom, only now
    from medsiam.reading import load_key

    told = export(scans, out, key=load_key())
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(told), indent=2))
        return
    typer.echo(
        f"written: {told.written} file{'s' * (told.written != 1)} of {told.patients} "
        f"patient{'s' * (told.patients != 1)}"
    )
    for reason, count in told.left_out.items():
        typer.echo(f"left out: {count} ({reason})")


@contextmanager
def two_scans(
    scans: tuple[Path | None, Path | None],
    archive: tuple[str | None, str | None, Path | None],
    progress: Progress,
) -> Iterator[tuple[Path, Path, tuple[str, ...]]]:
    """Prior and current as paths, and what must be told of the choice.

    scans    as named on the command line
    archive  its URL, the current study's UID, a settings file; what is fetched is gone afterwards
    Raises typer.BadParameter where both or neither are named.
    """
    url, study, config = archive
    if url is None:
        if study is not None:
            raise typer.BadParameter("goes with --from URL", param_hint="--study")
        if scans[0] is None or scans[1] is None:
            raise typer.BadParameter("name both scans, or an archive with --from", param_hint="PRIOR CURRENT")
        yield scans[0], scans[1], ()
        return
    if any(scans) or study is None:
        raise typer.BadParameter("takes --study UID, and no PRIOR and CURRENT", param_hint="--from")
    from medsiam.config import load_settings  # torch, only now
    from medsiam.pacs.exchange import fetch_with_prior
    from medsiam.pacs.opening import open_archive
    from medsiam.pacs.settings import PacsSettings

    settings = load_settings(config, PacsSettings)
    with tempfile.TemporaryDirectory(prefix="medsiam-") as folder:
        opened = open_archive(url, settings.archive)
        fetched = fetch_with_prior(opened, study, Path(folder), settings.prior, progress)
        yield fetched.prior, fetched.current, (fetched.sentence,)
