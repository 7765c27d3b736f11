"""digests.json: what each file of a result was when it was written, so that it can be believed later.

It is a file of its own and not a key of report.json: the page holds the seconds that it took, so
its digest differs from run to run, and report.json is to differ in times only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medsiam.errors import ResultDamaged
from medsiam.report.placing import DIGESTS, MANIFEST, restore

SCHEMA = "medsiam.digests/1"


@dataclass(frozen=True)
class Verified:
    """How many files are as they were written, and how many stand there that nothing speaks of."""

    files: int
    others: int


def seal(folder: Path) -> None:
    """Writes the digests of all files below a folder into it."""
    own = folder / DIGESTS
    told = {"schema": SCHEMA, "files": digests_of(folder, (path for path in _files(folder) if path != own))}
    own.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8", newline="\n")


def digests_of(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their path relative to a folder."""
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(paths)}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> Verified:
    """What of a result, or of a whole batch, is as it was written.

    Raises ResultDamaged where a file is missing or changed, or nothing tells what they were.
    """
    # Of a folder that may only be read, the files are told as they stand.
    with suppress(OSError):
        restore(folder)
    listed = _listed(folder)
    wrong = [
        f"{name}: {why}" for name, sha256 in sorted(listed.items()) if (why := _why(folder, name, sha256))
    ]
    if wrong:
        raise ResultDamaged(
            f"{len(wrong)} of {len(listed)} files in {folder} are not as they were written, the first "
            f"{wrong[0]}; make the result again"
        )
    there = sum(1 for path in _files(folder) if path.relative_to(folder).as_posix() not in listed)
    sealed = sum(1 for name in (DIGESTS, MANIFEST) if (folder / name).is_file())
    return Verified(len(listed), there - sealed)


def _why(folder: Path, name: str, sha256: str) -> str:
    """Why a file cannot be believed, "" where it can."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return "leads out of the folder"
    try:
        return "" if sha256_of(path) == sha256 else "changed"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _listed(folder: Path) -> Mapping[str, str]:
    """What the files of a folder were, by its manifest or its digests."""
    for name in (MANIFEST, DIGESTS):
        if not (folder / name).exists():
            continue
        try:
            files = json.loads((folder / name).read_text(encoding="utf-8"))[
                "files_sha256" if name == MANIFEST else "files"
            ]
            if isinstance(files, dict) and all(isinstance(each, str) for each in files.values()):
                return files
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        raise ResultDamaged(f"{folder / name} cannot be read; make the result again")
    if not folder.is_dir():
        raise ResultDamaged(f"there is no folder {folder}; check the path")
    raise ResultDamaged(
        f"{folder} holds neither {MANIFEST} nor {DIGESTS}, so nothing tells what its files were; name the "
        "folder of a result, or end the batch"
    )


def _files(folder: Path) -> list[Path]:
    """The files below a folder that are no working files."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
