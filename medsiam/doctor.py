"""Whether everything that a batch needs is here, and what to do where it is not.

Each check is one line: ok, warn (something optional is missing) or fail.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import torch
from packaging.requirements import Requirement

from medsiam import __version__
from medsiam.cases.index import CaseIndex
from medsiam.change.dense import WEIGHTS as DENSE
from medsiam.config import load_settings
from medsiam.encoding.weights import SHIPPED
from medsiam.errors import MedsiamError, one_line
from medsiam.pacs.dimse import Dimse
from medsiam.pacs.opening import open_archive
from medsiam.pacs.settings import PacsSettings
from medsiam.pairing.brain_net import WEIGHTS as BRAIN
from medsiam.report.digests import sha256_of

State = Literal["ok", "warn", "fail"]

# Independent readers of DICOM that the suite uses; nothing in a comparison needs them.
TOOLS = ("dciodvfy", "dsrdump", "storescp", "Orthanc", "chromium")
# A comparison of 512 x 512 x 300 with all its files.
LEAST_FREE_BYTES = 2 * 2**30
PREFECT_PATIENCE_S = 3.0
PREFECT_VARIABLE = "PREFECT_API_URL"


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, and what to do about it."""

    name: str
    state: State
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def examine(
    *,
    device: str = "auto",
    index: Path | None = None,
    archive: str | None = None,
    pacs_config: Path | None = None,
) -> tuple[Check, ...]:
    """Every check, in the order in which they are worth repairing.

    index, archive  are looked at where they are named
    """
    checks = [_installation(), _device(device), *_weights(), _temporary(), _tools()]
    if index is not None:
        checks.append(_named("index", lambda: _index(index)))
    if archive is not None:
        checks.append(_named("archive", lambda: _archive(archive, pacs_config)))
    return (*checks, _prefect())


def _named(name: str, look: Callable[[], str]) -> Check:
    """What a look finds; a refusal says itself what to do."""
    try:
        return Check(name, "ok", look())
    except MedsiamError as error:
        found, _, remedy = one_line(str(error)).rpartition("; ")
        return Check(name, "fail", found or remedy, remedy if found else "")


def _installation() -> Check:
    wrong = list(_wrong_versions())
    if not wrong:
        return Check("installation", "ok", f"medsiam {__version__}, torch {torch.__version__}")
    return Check("installation", "fail", "; ".join(wrong), "install again with `make setup`")


def _wrong_versions() -> Iterator[str]:
    try:
        wanted = [Requirement(line) for line in requires("medsiam") or ()]
    except PackageNotFoundError:
        return
    for each in wanted:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(each.name)
        except PackageNotFoundError:
            yield f"{each.name} is missing"
            continue
        if there not in each.specifier:
            yield f"{each.name} {there} is not {each.specifier}"


def _device(name: str) -> Check:
    count = torch.cuda.device_count()
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= count:
        return Check(
            "device", "fail", f"there is no {name} ({count} GPUs)", "use --device cpu, or mend its driver"
        )
    if name == "cpu" or count == 0:
        cores = os.cpu_count() or 1
        return Check("device", "ok", f"cpu, {cores} cores, {torch.get_num_threads()} threads")
    number = int(name.partition(":")[2] or 0)
    free, total = torch.cuda.mem_get_info(number)
    return Check(
        "device",
        "ok",
        f"{torch.cuda.get_device_name(number)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
    )


def _weights() -> Iterator[Check]:
    paths = {name: each.path for name, each in SHIPPED.items()} | {"brain": BRAIN, "change-3d": DENSE}
    for name, path in paths.items():
        remedy = "install medsiam again"
        try:
            recorded = path.with_suffix(".sha256").read_text(encoding="ascii").split()[0]
            found = sha256_of(path)
        except (OSError, IndexError, UnicodeDecodeError) as error:
            yield Check(f"weights {name}", "fail", f"cannot be read ({type(error).__name__})", remedy)
            continue
        if found == recorded:
            yield Check(f"weights {name}", "ok", f"{path.name}, SHA-256 {found[:12]}")
        else:
            yield Check(f"weights {name}", "fail", f"{path.name} is not the file that was shipped", remedy)


def _temporary() -> Check:
    try:
        with tempfile.TemporaryDirectory(prefix="medsiam-") as folder:
            (Path(folder) / "trial").write_bytes(b"trial")
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(
            "temporary", "fail", f"cannot be written ({error.strerror})", "set TMPDIR to a folder that can"
        )
    if free < LEAST_FREE_BYTES:
        return Check(
            "temporary", "warn", f"{free / 2**30:.1f} GiB free", "free some, or set TMPDIR elsewhere"
        )
    return Check("temporary", "ok", f"{free / 2**30:.1f} GiB free")


def _tools() -> Check:
    there = [name for name in TOOLS if shutil.which(name) or shutil.which(name, path="/usr/sbin")]
    missing = [name for name in TOOLS if name not in there]
    if not missing:
        return Check("tools", "ok", ", ".join(there))
    return Check(
        "tools", "warn", f"not here: {', '.join(missing)}", "only tests and checks of DICOM objects need them"
    )


def _index(folder: Path) -> str:
    index = CaseIndex.open(folder)
    return f"{len(index)} cases, encoder {index.encoder_id}"


def _archive(url: str, pacs_config: Path | None) -> str:
    settings = load_settings(pacs_config, PacsSettings)
    opened = open_archive(url, settings.archive)
    began = time.monotonic()
    if isinstance(opened, Dimse):
        opened.echo()
        what = "C-ECHO"
    else:
        # A study that is nowhere: whether questions are answered, without asking for all patients.
        opened.find_studies(study_uid="2.25.0")
        what = "QIDO"
    return f"answers ({what} in {1000 * (time.monotonic() - began):.0f} ms)"


def _prefect() -> Check:
    """Whether flows can run; batch itself never needs them."""
    if importlib.util.find_spec("prefect") is None:
        return Check("prefect", "warn", "not installed", "only flows need it: pip install 'medsiam[flows]'")
    installed = f"prefect {version('prefect')}"
    url = os.environ.get(PREFECT_VARIABLE, "")
    if not url:
        return Check(
            "prefect", "warn", f"{installed}, {PREFECT_VARIABLE} is not set", "set it to the server's /api"
        )
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=PREFECT_PATIENCE_S) as answer:
            is_well = json.loads(answer.read(1000)) is True
    except (OSError, ValueError, urllib.error.URLError) as error:
        return Check(
            "prefect",
            "fail",
            f"the server does not answer ({type(error).__name__})",
            "start `prefect server start`",
        )
    if not is_well:
        return Check("prefect", "fail", "the server says that it is not well", "look into its log")
    return Check("prefect", "ok", f"{installed}, the server answers")
