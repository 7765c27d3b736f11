"""What may leave a flow when it fails: Prefect keeps every message and traceback in its data base.

A refusal's text may hold the name of a file, and a file the name of a patient. So it stays on this
host, in the worker's own log, and what is raised tells code and place.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsiam.errors import ArchiveRefused, MedsiamError, ResourceExhausted, as_medsiam_error, own_frame

# Of the worker's console alone: Prefect sends what its own loggers say.
LOGGER = logging.getLogger("medsiam.flows")
HOME = Path(__file__).parents[1]


class FlowStopped(Exception):
    """A flow cannot go on; the message holds nothing of the input."""


class ComesBack(FlowStopped):
    """What was missing may be there later: an archive, memory, disk."""


@contextmanager
def closed() -> Iterator[None]:
    """A block whose errors come out without the words of their input.

    Raises ComesBack for what is worth another try, FlowStopped for all else.
    """
    try:
        yield
    except FlowStopped:
        raise
    except Exception as error:
        raise _without_words(error) from None


def _without_words(error: Exception) -> FlowStopped:
    named = as_medsiam_error(error)
    LOGGER.error("%s: %s", type(named).__name__, named)
    if isinstance(named, ArchiveRefused | ResourceExhausted):
        return ComesBack(f"{named.code}: the text is in the worker's log")
    if isinstance(named, MedsiamError):
        # The digest tells equal refusals from different ones.
        digest = hashlib.sha256(str(named).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        return FlowStopped(f"refused ({named.code}, text {digest} in the worker's log)")
    frame = own_frame(error, HOME)
    return FlowStopped(f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}")
