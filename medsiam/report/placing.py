"""Files that stand in a folder all at once or not at all.

What lies there is replaced only where it can be told to be an earlier result of
this package; a file of another's making is never overwritten or removed.

    DIR/.medsiam-xxxxxxxx/fresh    the new files in the making; the folder is locked by its maker
                         /earlier  those of the earlier result, while names are exchanged
                         /plan     the new names, written before the first is exchanged

Names are exchanged under a lock of DIR, so two processes never mix their files. One that
is killed in between leaves its plan: whoever comes next puts the earlier files back.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from medsiam.errors import InputRefused, MedsiamError, ResourceExhausted
from medsiam.reading.archive import RESULT_IMAGES, RESULT_MARK

REPORT = "report.json"
EVIDENCE = "dicom"
TRAJECTORY = "trajectory.json"
PAIRS = "pairs"
COMPARISON = (REPORT, "report.html", *RESULT_IMAGES, EVIDENCE)
DIGESTS = RESULT_MARK
NAMES = (*COMPARISON, TRAJECTORY, "trajectory.html", PAIRS, DIGESTS)
SEARCH = "search.json"
# A result of its own: it may stand beside a comparison.
SEARCH_FILES = (SEARCH, "search.html", "search.csv")
# Of a batch. The report of a run that was refused as a whole goes when one is done.
MANIFEST = "manifest.json"
BATCH_FILES = ("worklist.json", "worklist.html", "worklist.csv", MANIFEST, REPORT)
# What stands last, and goes first: where one of them stands, the result is whole.
SEALS = (REPORT, TRAJECTORY, SEARCH, MANIFEST)

EXHAUSTED = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
REFUSED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG,
     errno.ELOOP, errno.ENOENT, errno.EINVAL, errno.EXDEV, errno.ENOTEMPTY, errno.EBUSY}
)  # fmt: skip

CSV_SIGNS = (b"rank,case_id,patient_key,", b"urgency,case_id,patient_key,")
HTML_SIGN = b'<meta name="generator" content="medsiam">'
HTML_HEAD_BYTES = 4096
NIFTI_HEADER_BYTES = 348
NIFTI_DESCRIP_AT = 148
NIFTI_SIGN = b"medsiam "
SCHEMA_SIGN = "medsiam."

STAGE, FRESH, EARLIER, PLAN = ".medsiam-", "fresh", "earlier", "plan"


@contextmanager
def placed_whole(folder: Path, names: Collection[str] = NAMES) -> Iterator[Path]:
    """An empty folder to write into, whose files then stand in `folder` at once.

    names  of the files that an earlier result of this kind may have left

    Where anything fails, `folder` is left as it was, and not made if it was not there.
    """
    made = _first_missing(folder)
    stage = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            with _locked(folder):
                # Inside the folder, for its parent may be another disk or not be writable.
                stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=folder))
                held.enter_context(_locked(stage))
            restore(folder)
            (stage / FRESH).mkdir()
            yield stage / FRESH
            for path in (stage / FRESH).rglob("*"):
                _settle(path)
            with _locked(folder):
                _exchange(folder, stage, names)
        made = None
    except MemoryError as error:
        raise ResourceExhausted(_full_message(folder, "memory is used up")) from error
    except OSError as error:
        told = _named(error, folder)
        if told is None:
            raise
        raise told from error
    finally:
        if stage is not None:
            _discard(stage)
        if made is not None:
            _remove_empty(folder, made)


def holds_refusal(folder: Path) -> bool:
    """Whether the report in a folder is one of ours that tells a refusal, which a result replaces."""
    try:
        told = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    is_ours = isinstance(told, dict) and str(told.get("schema", "")).startswith(SCHEMA_SIGN)
    return is_ours and told.get("status") == "refused"


def refuse_foreign(folder: Path, names: Collection[str]) -> None:
    """Raises InputRefused where a file of one of these names is there and not of our making."""
    ours = _earlier_files(folder, names)
    for name in names:
        _refuse_foreign(folder / name, ours)


def restore(folder: Path) -> None:
    """Puts back the earlier files of a result whose maker was killed while it exchanged names.

    A result that stands whole stays; what is still in the making elsewhere is left alone.
    """
    with _locked(folder) as is_alone:
        for stage in sorted(folder.glob(f"{STAGE}*")) if is_alone else ():
            # One that is gone was ended in good order just now.
            with suppress(FileNotFoundError), _locked(stage, wait=False) as is_left:
                if is_left and _planned(stage):
                    _put_back(folder, stage)
                if is_left:
                    _discard(stage)


def _exchange(folder: Path, stage: Path, names: Collection[str]) -> None:
    """Puts fresh files in the place of earlier ones, the seal last; undoes it all on failure."""
    ours = _earlier_files(folder, names)
    fresh = sorted((path.name for path in (stage / FRESH).iterdir()), key=lambda name: (name in SEALS, name))
    for name in fresh:
        _refuse_foreign(folder / name, ours)
    (stage / EARLIER).mkdir()
    (stage / PLAN).write_text("\n".join(fresh), encoding="utf-8")
    _settle(stage / PLAN)
    try:
        # The seal goes first, so that no moment shows it above files it does not speak of.
        for name in sorted(ours, key=lambda name: (name not in SEALS, name)):
            os.replace(folder / name, stage / EARLIER / name)
        for name in fresh:
            os.replace(stage / FRESH / name, folder / name)
    except BaseException:
        _put_back(folder, stage)
        raise


def _put_back(folder: Path, stage: Path) -> None:
    """The earlier files where they were, unless all fresh ones stand in their place."""
    waiting = _waiting(stage)
    if not waiting:
        return
    for name in reversed(_planned(stage)):
        if name not in waiting and os.path.lexists(folder / name):
            os.replace(folder / name, stage / FRESH / name)
    for path in sorted((stage / EARLIER).iterdir(), key=lambda path: (path.name in SEALS, path.name)):
        os.replace(path, folder / path.name)


def _planned(stage: Path) -> list[str]:
    """The names that a stage was to bring, in their order; none before it has begun to."""
    try:
        return (stage / PLAN).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return []


def _waiting(stage: Path) -> set[str]:
    """The planned names whose files have not been given them."""
    return {name for name in _planned(stage) if os.path.lexists(stage / FRESH / name)}


def _discard(stage: Path) -> None:
    """Removes a stage, unless it holds earlier files that could not be put back: the folder was closed."""
    with suppress(OSError):
        if _waiting(stage) and any((stage / EARLIER).iterdir()):
            return
        # The plan first: without all of its files it would tell what is not true.
        (stage / PLAN).unlink(missing_ok=True)
    shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Whether the folder is ours alone while the block runs; the kernel frees what a dead process held.

    Some network file systems cannot lock a folder: there it is False, and nothing is put back.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _settle(path: Path) -> None:
    """Waits until a file's bytes are on the disk, so that a power cut cannot empty it later."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _refuse_foreign(path: Path, ours: frozenset[str]) -> None:
    if os.path.lexists(path) and path.name not in ours:
        raise InputRefused(
            f"{path} is there and was not written by medsiam; choose another folder, or move it away first"
        )


def _earlier_files(folder: Path, names: Collection[str]) -> frozenset[str]:
    """Names of an earlier result's files in a folder."""
    return frozenset(name for name in names if _is_ours(folder / name))


def _is_ours(path: Path) -> bool:
    """Whether a file or folder bears the sign of this package."""
    if path.name == EVIDENCE:
        return path.is_dir() and not path.is_symlink() and _lists_evidence(path.parent / REPORT)
    if path.name == PAIRS:
        return path.is_dir() and not path.is_symlink() and _holds_only_listed(path)
    if not path.is_file():
        return False
    if path.suffix == ".json":
        return str(_read_report(path).get("schema", "")).startswith(SCHEMA_SIGN)
    if path.suffix == ".csv":
        with path.open("rb") as file:
            return file.read(max(map(len, CSV_SIGNS))).startswith(CSV_SIGNS)
    if path.suffix == ".html":
        with path.open("rb") as file:
            return HTML_SIGN in file.read(HTML_HEAD_BYTES)
    return _nifti_description(path).startswith(NIFTI_SIGN)


def _lists_evidence(report: Path) -> bool:
    files = _read_report(report).get("files")
    paths = files.values() if isinstance(files, dict) else ()
    return any(isinstance(path, str) and path.split("/")[0] == EVIDENCE for path in paths)


def _holds_only_listed(pairs: Path) -> bool:
    """Whether the trajectory beside it names every file in the folder."""
    files = _read_report(pairs.parent / TRAJECTORY).get("files")
    listed = [path for path in files.values() if isinstance(path, str)] if isinstance(files, dict) else []
    held = (path for path in pairs.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(pairs.parent).as_posix() for path in held)
    # A listed folder speaks for what is in it.
    return bool(listed) and all(
        any(name == path or name.startswith(f"{path}/") for path in listed) for name in names
    )


def _read_report(path: Path) -> dict[str, Any]:
    """A report's content, {} where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _nifti_description(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(NIFTI_HEADER_BYTES)[NIFTI_DESCRIP_AT:]
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return b""


def _first_missing(folder: Path) -> Path | None:
    """The outermost folder that would have to be made, None where all are there."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    return missing[-1] if missing else None


def _remove_empty(folder: Path, outermost: Path) -> None:
    """Removes the folders that were made, unless something else has moved in."""
    path = folder
    while True:
        try:
            path.rmdir()
        except OSError:
            return
        if path == outermost:
            return
        path = path.parent


def _named(error: OSError, folder: Path) -> MedsiamError | None:
    """The error as one of ours, with place and remedy; None where it has no name here."""
    what = error.strerror or str(error)
    if error.errno in EXHAUSTED:
        return ResourceExhausted(_full_message(folder, what))
    if error.errno in REFUSED:
        return InputRefused(f"cannot write the result to {folder}: {what}; choose a folder you may write to")
    return None


def _full_message(folder: Path, what: str) -> str:
    return f"the result does not fit into {folder}: {what}; free some space or choose another place"
