"""What `medsiam serve` can be told: the keys of configs/serve.yaml, and the token that opens it."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from medsiam import __version__
from medsiam.config import CompareSettings, load_settings, settings_as_dict
from medsiam.errors import ServingRefused
from medsiam.pacs.settings import ArchiveSettings, PriorSettings

NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
TOKEN_VARIABLE = "MEDSIAM_SERVE_TOKEN"
TOKEN_FILE = "token"
# 24 characters of any kind that people make tokens of cannot be guessed at the rates allowed here.
SHORTEST_TOKEN = 24


@dataclass(frozen=True)
class HttpSettings:
    """Where requests are taken, and how many.

    allow_remote   whether another machine may be listened to; needs a token of one's own
    token_file     holds the token; otherwise MEDSIAM_SERVE_TOKEN, or one that is made in the data folder
    """

    host: str = "127.0.0.1"
    port: int = field(default=8767, metadata={"range": (0, 65535)})
    allow_remote: bool = False
    token_file: Path | None = None
    requests_a_minute: float = field(default=1200.0, metadata={"range": (1.0, 1e6)})
    most_connections: int = field(default=32, metadata={"range": (1, 1000)})


@dataclass(frozen=True)
class WorkSettings:
    """How jobs are done.

    config        settings of the comparison, as configs/compare.yaml
    index         index of cases that "similar" jobs search
    settle_s      a study that has grown since it was handed in is looked at again after so long
    job_limit_s   a job that takes longer is ended and tried again
    give_up_days  how long an archive that fails is waited for
    keep_days     how long finished jobs and their pages are kept
    """

    fast: bool = False
    device: str = "auto"
    config: Path | None = None
    index: Path | None = None
    settle_s: float = field(default=10.0, metadata={"range": (0.0, 3600.0)})
    job_limit_s: float = field(default=1800.0, metadata={"range": (10.0, 86400.0)})
    give_up_days: float = field(default=7.0, metadata={"range": (0.0, 365.0)})
    keep_days: float = field(default=90.0, metadata={"range": (0.0, 36525.0)})


@dataclass(frozen=True)
class ArchiveEntry:
    """An archive that jobs may name; a request never carries an address."""

    name: str = ""
    url: str = ""
    archive: ArchiveSettings = field(default_factory=ArchiveSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError("an archive's name is 1 to 32 letters, digits, - or _")
        if not self.url:
            raise ValueError(f"the archive {self.name!r} has no url")


@dataclass(frozen=True)
class ServeSettings:
    """Everything about serving, one section per subject."""

    http: HttpSettings = field(default_factory=HttpSettings)
    work: WorkSettings = field(default_factory=WorkSettings)
    archives: tuple[ArchiveEntry, ...] = ()

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.archives]
        if len(set(names)) != len(names):
            raise ValueError("two archives have the same name")

    def archive(self, name: str) -> ArchiveEntry:
        """The archive of a name. Raises ServingRefused where there is none."""
        for entry in self.archives:
            if entry.name == name:
                return entry
        raise ServingRefused(f"there is no archive {name[:40]!r} here; add it to `archives` in --config")

    def version(self, archive: str) -> str:
        """What a result depends on beside its scans: the software and these settings."""
        told = load_settings(self.work.config, CompareSettings)
        parts = [
            __version__,
            settings_as_dict(told),
            settings_as_dict(self.archive(archive).prior),
            self.work.fast,
            str(self.work.index or ""),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_of(settings: HttpSettings, folder: Path) -> str:
    """The token that every request must bear; made in the data folder where none is given.

    Raises ServingRefused where it is too short, or where another machine may ask and none was chosen.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if settings.token_file is not None:
        try:
            token = settings.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServingRefused(
                f"the token file {settings.token_file} cannot be read; write it anew"
            ) from error
    if not is_loopback(settings.host):
        _check_remote(settings, token)
    if not token:
        token = _made_token(folder / TOKEN_FILE)
    if len(token) < SHORTEST_TOKEN or not re.fullmatch(r"[!-~]+", token):
        raise ServingRefused(
            f"the token has {len(token)} characters or an unusual one, {SHORTEST_TOKEN} or more are needed; "
            "make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    return token


def _check_remote(settings: HttpSettings, token: str) -> None:
    if not settings.allow_remote:
        raise ServingRefused(
            f"host {settings.host!r} can be reached from other machines; set http.allow_remote and a token, "
            "with TLS in front, or leave host at 127.0.0.1"
        )
    if not token:
        raise ServingRefused(
            f"other machines may ask here, so a token is needed; set {TOKEN_VARIABLE} or http.token_file"
        )


def _made_token(path: Path) -> str:
    """The token in a file that its owner alone can read, made once."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        token = secrets.token_urlsafe(32)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token + "\n")
        return token
