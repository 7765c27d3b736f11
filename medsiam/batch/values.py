"""What planning, computing and telling hand to each other: plain values of keys, paths and digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medsiam.config import CompareSettings
from medsiam.pacs.settings import PacsSettings

# "pending" is what no run has come to yet: a kill, a full disk, an archive that is away.
State = Literal["compared", "refused", "failed", "pending"]
Kind = Literal["comparison", "trajectory", "input"]


# What a refused trajectory waits for: the next run tries again, so no record is kept.
STEP_MISSING = "step"


@dataclass(frozen=True)
class BatchSettings:
    """How an archive is compared.

    fast        a coarser noise floor in less time; each report says how much coarser
    weights     an encoder's file or name; the shipped ones where None
    index       folder of an index of cases that each report is given its neighbours from
    add_to_index  whether the scans that were compared are added to it at the end
    all_series  compare every series that has a counterpart, not the best one of each kind
    pacs        how an archive behind an address is reached
    """

    compare: CompareSettings = field(default_factory=CompareSettings)
    fast: bool = True
    seed: int = 0
    device: str = "auto"
    weights: str | None = None
    formats: tuple[str, ...] = ("json", "html", "nifti")
    index: str | None = None
    add_to_index: bool = False
    all_series: bool = False
    pacs: PacsSettings = field(default_factory=PacsSettings)


@dataclass(frozen=True)
class Scan:
    """A series as it was found, enough to read it again.

    name       as its reader tells it: the series UID, with "#part" where one series is split
    files      (path, member of a zip or "") of every file
    signature  digest of the files' names, sizes and times: while it stays, they were not touched
    url        of the archive that it must be fetched from, "" where it lies on disk
    instances  how many files the archive says it has
    """

    name: str
    files: tuple[tuple[str, str], ...]
    signature: str
    study_uid: str = ""
    series_uid: str = ""
    modality: str = ""
    body_part: str = ""
    acquired: str | None = None
    spatial_dims: int = 3
    url: str = ""
    instances: int = 0

    def told(self) -> dict[str, Any]:
        """What a worklist says of it."""
        keys = ("study_uid", "series_uid", "modality", "body_part", "acquired")
        return {key: getattr(self, key) or None for key in keys}


@dataclass(frozen=True)
class Case:
    """A comparison of two scans, or the trajectory of three or more, earliest first.

    case_id  digest of what is compared, whatever the settings; the name of its folder
    steps    of a trajectory: the case ids of the comparisons from scan to scan
    notes    why these series, plain sentences
    """

    case_id: str
    patient_key: str
    scans: tuple[Scan, ...]
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        return "trajectory" if self.steps else "comparison"

    @property
    def spatial_dims(self) -> int:
        return self.scans[-1].spatial_dims


@dataclass(frozen=True)
class Row:
    """One line of a worklist: a case, or an input that no case could be made of.

    code, reason   of a refusal or a failure
    largest        the largest change of a finding: ml, or percent of the lungs in a radiograph
    report         its page, or its JSON, relative to the output folder
    is_fresh       whether this run computed it
    spoken         which file is meant, for the terminal alone
    """

    case_id: str
    kind: Kind
    state: State
    patient_key: str | None = None
    verdict: str | None = None
    summary: str | None = None
    code: str | None = None
    reason: str | None = None
    prior: Mapping[str, Any] | None = None
    current: Mapping[str, Any] | None = None
    interval_days: float | None = None
    findings: int | None = None
    largest: float | None = None
    unit: str | None = None
    smallest_detectable_ml: float | None = None
    p_value: float | None = None
    report: str | None = None
    computed: str | None = None
    seconds: float | None = None
    is_fresh: bool = False
    spoken: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what may be kept."""
        return {name: value for name, value in asdict(self).items() if name != "spoken"}


@dataclass(frozen=True)
class Plan:
    """What an archive holds to compare.

    inputs   refused: series and visits that no comparison can be made of, each with its reason
    aside    (what, why) of what was left out without harm, such as a second copy of a visit
    counts   of files, series, patients and visits
    """

    cases: tuple[Case, ...]
    inputs: tuple[Row, ...] = ()
    aside: tuple[tuple[str, str], ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def comparisons(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.kind == "comparison")

    @property
    def trajectories(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.kind == "trajectory")
