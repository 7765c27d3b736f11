"""What the headers of a folder said, kept while its files stay as they are: no night asks them again.

    OUT/.medsiam/headers/<keyed hash of the folder>.json   one file a folder, put there by one rename

Kept are series that are whole, and what is left out; a refusal is made anew by each run. Files are
told by their number among those of the folder: their names may be names of patients. A file that
cannot be read, or that speaks of other files, is as good as none.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from medsiam import __version__
from medsiam.batch.ledger import HOME, OWNER_ONLY
from medsiam.batch.listing import Found, Met, Read, signature_of
from medsiam.batch.values import Scan
from medsiam.reading.archive import Source
from medsiam.reading.identity import keyed_hash
from medsiam.volume import Acquisition

SCHEMA = "medsiam.headers/1"


class HeadersKept:
    """What earlier runs into one OUT read of an archive's headers.

    key  of patient keys: what was kept under another one is not believed
    """

    def __init__(self, out: str | Path, key: bytes) -> None:
        self._home, self._key = Path(out) / HOME / "headers", key
        self._asked: set[str] = set()

    def read(self, group: Sequence[Source], read: Callable[[], Read]) -> Read:
        """The entries of a folder's files, from what is kept or, where that does not fit, by `read`."""
        # Before the headers: a file that is changed meanwhile then does not fit the next time.
        signature = keyed_hash(self._key, "headers", __version__, signature_of(group))
        path = self._home / f"{keyed_hash(self._key, 'folder', *_places_of(group))}.json"
        self._asked.add(path.name)
        if (told := _recalled(path, signature, group)) is not None:
            return Read(told)
        found = read()
        if not found.damaged:
            self._keep(path, signature, found.met, group)
        return found

    def forget_others(self) -> None:
        """Takes away what was kept of folders that this run did not meet."""
        with contextlib.suppress(OSError):
            for path in self._home.iterdir():
                if path.name not in self._asked:
                    path.unlink(missing_ok=True)

    def _keep(self, path: Path, signature: str, met: Sequence[Met], group: Sequence[Source]) -> None:
        text = _text(signature, met, group)
        # What does not come back as it was, a value of a kind that JSON has not, is not kept.
        if text is None or not _same(_told(text, signature, group), met):
            return
        draft = path.with_name(f".{secrets.token_hex(6)}")
        # A run goes on without: a full disk is told when a result does not fit.
        with contextlib.suppress(OSError):
            self._home.parent.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self._home.parent, self._home):
                folder.mkdir(mode=OWNER_ONLY, exist_ok=True)
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, path)


def _places_of(group: Sequence[Source]) -> list[str]:
    """The folder, or the zip whose members these are."""
    return sorted({str(source.path if source.member else source.path.parent) for source in group})


def _recalled(path: Path, signature: str, group: Sequence[Source]) -> tuple[Met, ...] | None:
    try:
        return _told(path.read_text(encoding="utf-8"), signature, group)
    except (OSError, UnicodeDecodeError):
        return None


def _text(signature: str, met: Sequence[Met], group: Sequence[Source]) -> str | None:
    """The entries as JSON; None where one is refused, or has no UID to be named by."""
    if any(each.uid == "" or not isinstance(each.outcome, Found | None) for each in met):
        return None
    numbers = {file: number for number, file in enumerate(_files(group))}
    told = [
        {
            "uid": each.uid,
            "name": each.name,
            "files": [numbers[file] for file in each.files],
            "found": _plain(each.outcome) if isinstance(each.outcome, Found) else None,
        }
        for each in met
    ]
    try:
        return json.dumps({"schema": SCHEMA, "signature": signature, "met": told})
    except (TypeError, ValueError):
        return None


def _told(text: str, signature: str, group: Sequence[Source]) -> tuple[Met, ...] | None:
    """The entries that a text tells; None where it is none of ours, or of other files."""
    try:
        told = json.loads(text)
        if told["schema"] != SCHEMA or told["signature"] != signature:
            return None
        files = _files(group)
        return tuple(_met(each, tuple(files[number] for number in each["files"])) for each in told["met"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _met(told: dict[str, Any], files: tuple[tuple[str, str], ...]) -> Met:
    return Met(told["uid"], told["name"], files, _found(told["found"], files) if told["found"] else None)


def _files(group: Sequence[Source]) -> list[tuple[str, str]]:
    return sorted((str(source.path), source.member) for source in group)


def _plain(found: Found) -> dict[str, Any]:
    """A series as plain values, its files left out."""
    told = asdict(found)
    del told["scan"]["files"]
    told["acquisition"]["acquired"] = _time_text(found.acquisition.acquired)
    # JSON knows no tuples; lists mark them, for no header's value is a list.
    return told | {"study_at": _time_text(found.study_at)}


def _found(told: dict[str, Any], files: tuple[tuple[str, str], ...]) -> Found:
    acquisition = _with_tuples(told["acquisition"])
    acquisition["protocol"] = _with_tuples(acquisition["protocol"])
    acquisition["acquired"] = _time(acquisition["acquired"])
    values = _with_tuples(told) | {"study_at": _time(told["study_at"])}
    values["scan"] = Scan(**told["scan"], files=files)
    values["acquisition"] = Acquisition(**acquisition)
    return Found(**values)


def _with_tuples(told: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}


def _same(told: Sequence[Met] | None, met: Sequence[Met]) -> bool:
    return told is not None and [asdict(each) for each in told] == [asdict(each) for each in met]


def _time_text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
