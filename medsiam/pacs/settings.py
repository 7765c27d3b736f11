"""How archives are reached and which earlier study is the prior: the keys of configs/pacs.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ArchiveSettings:
    """How an archive is reached.

    token_file      holds the bearer token; otherwise MEDSIAM_PACS_TOKEN, or
                    MEDSIAM_PACS_USER and MEDSIAM_PACS_PASSWORD
    ca_file         certificates that the archive's own is checked by; otherwise the system's
    cert_file, key_file   what dimse-tls shows of ourselves, for archives that ask
    allow_plain     whether secrets and scans may travel unencrypted to another machine by http
    retrieve        how DIMSE brings a series: "get", or "move" to move_port of this machine
    """

    timeout_s: float = field(default=60.0, metadata={"range": (1.0, 3600.0)})
    retries: int = field(default=2, metadata={"range": (0, 10)})
    token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    allow_plain: bool = False
    calling_aet: str = "MEDSIAM"
    retrieve: Literal["get", "move"] = "get"
    move_port: int = field(default=11113, metadata={"range": (1, 65535)})


@dataclass(frozen=True)
class PriorSettings:
    """Which earlier study is the prior.

    Of the patient's studies that are earlier by shortest_days to longest_days, the most
    recent one that holds a series of the same modality whose likeness to one of the
    current study reaches least_likeness.

    same_body_part   whether body parts must agree where both are told
    most_studies     how many studies, most recent first, are looked into
    """

    shortest_days: float = field(default=0.0, metadata={"range": (0.0, 36525.0)})
    longest_days: float = field(default=3653.0, metadata={"range": (0.0, 36525.0)})
    least_likeness: float = field(default=0.45, metadata={"range": (0.0, 1.0)})
    same_body_part: bool = True
    most_studies: int = field(default=12, metadata={"range": (1, 1000)})


@dataclass(frozen=True)
class PacsSettings:
    """Everything about archives, one section per subject."""

    archive: ArchiveSettings = field(default_factory=ArchiveSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
