"""A job of the queue: what was asked, what is known of it, and what its states mean.

queued -> running -> done       compared, and its evidence stored
                  -> refused    no true answer can be given (no prior, other patients): final
                  -> failed     a fault that another try would not mend, or too many tries: final
                  -> waiting    the archive or the machine failed; tried again later, less and less often
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsiam.errors import ServingRefused

KINDS = ("compare", "similar")
STATES = ("queued", "running", "waiting", "done", "refused", "failed")
FINAL = ("done", "refused", "failed")

# Where results lie in the queue's folder, and which of a result's files is its page.
RESULTS = "results"
PAGES = {"compare": "report.html", "similar": "search.html"}

JOB_ID = re.compile(r"[0-9a-f]{32}")
CONTENT = re.compile(r"[0-9a-f]{64}|")
# PS3.5: digits and dots, 64 characters at most.
UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)+")
LONGEST_TOLD = 400


@dataclass(frozen=True)
class Request:
    """What is asked for.

    content  digest of what the study holds (content_of), "" where the one who asks cannot tell
    again    whether a finished job is to be done once more

    Raises ServingRefused for values of another form.
    """

    kind: str
    archive: str
    study_uid: str
    content: str = ""
    again: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ServingRefused(f"there is no kind {str(self.kind)[:40]!r}; ask for {' or '.join(KINDS)}")
        if not isinstance(self.study_uid, str) or not UID.fullmatch(self.study_uid):
            raise ServingRefused("study_uid is no UID (digits and dots, 64 at most); send the study's own")
        if not isinstance(self.content, str) or not CONTENT.fullmatch(self.content):
            raise ServingRefused("content is no SHA-256 in 64 digits; leave it out if you cannot tell")
        if not isinstance(self.archive, str) or not isinstance(self.again, bool):
            raise ServingRefused("archive must be text and again true or false; correct the request")

    def job_id(self, version: str) -> str:
        """The same for the same question under the same settings."""
        parts = (self.kind, self.archive, self.study_uid, self.content, version)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Job:
    """A row of the queue.

    told       one sentence: the summary, or why not
    code       of a refusal, as in report.json
    is_made    whether its result lies on disk whole, so that only sending is left
    same_as    the job that took its place, "" mostly
    revision   grows with every change of any job
    facts      for the worklist: keys, dates and figures, never a name
    """

    id: str
    kind: str
    archive: str
    study_uid: str
    content: str
    version: str
    state: str
    told: str = ""
    code: str = ""
    verdict: str = ""
    attempts: int = 0
    deaths: int = 0
    again: bool = False
    is_made: bool = False
    same_as: str = ""
    created: float = 0.0
    updated: float = 0.0
    not_before: float = 0.0
    waiting_since: float = 0.0
    worker: str = ""
    revision: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times in UTC."""
        return {
            "id": self.id,
            "kind": self.kind,
            "archive": self.archive,
            "study_uid": self.study_uid,
            "content": self.content,
            "state": self.state,
            "told": self.told,
            "code": self.code or None,
            "verdict": self.verdict or None,
            "attempts": self.attempts,
            "has_report": self.is_made,
            "same_as": self.same_as or None,
            "created": moment(self.created),
            "updated": moment(self.updated),
            "next_try": moment(self.not_before) if self.state == "waiting" else None,
            "revision": self.revision,
            "facts": self.facts,
        }


@dataclass(frozen=True)
class Outcome:
    """What became of a job that was worked on: one of FINAL, or "waiting".

    counts       whether a failed try is one of few (a fault here), not one of many (an archive away)
    is_archives  whether the archive as a whole failed
    """

    state: str
    told: str = ""
    code: str = ""
    counts: bool = False
    is_archives: bool = False


def page_of(folder: Path, job: Job) -> Path:
    """Where a job's page lies. The id is one of ours, never a word from a request."""
    return folder / RESULTS / job.id / PAGES[job.kind]


def content_of(series: Iterable[tuple[str, int]]) -> str:
    """Digest of what a study holds: its scans' series UIDs, each with how many instances it has."""
    lines = sorted(f"{uid} {count}\n" for uid, count in series)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def one_line(text: str) -> str:
    """A message as it may stand in the queue."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_TOLD else line[: LONGEST_TOLD - 2] + " …"


def moment(seconds: float) -> str:
    """A time since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
