"""Everything that input can make go wrong, as one tree.

    MedsiamError
    ├── InputRefused              exit 3: what, where, remedy
    │   ├── Unreadable            not an image this tool reads, or a damaged one
    │   ├── GeometryRefused       where the voxels lie cannot be told truly
    │   ├── SeriesAmbiguous       several series, and no rule that chooses
    │   ├── IdentityRefused       not one patient, or not in this order
    │   ├── NotComparable         two scans that no method can set side by side
    │   ├── WeightsRefused        weights of another shape, origin or digest
    │   ├── ConfigRefused         an unknown key or a value out of range
    │   ├── ArchiveRefused        an archive that is down, says no, or answers nonsense
    │   ├── ServingRefused        a queue, its settings or a request to it that cannot be taken
    │   ├── IndexRefused          an index of cases that is not there or does not fit
    │   │   ├── FilterRefused     a filter that cannot be read, or names no column
    │   │   └── IndexDamaged      files of an index that cannot be read
    │   ├── TrainingRefused       a manifest or scans that no network can be trained on
    │   └── ResultDamaged         files of a result that are not as they were written
    └── ResourceExhausted         exit 4: memory or disk

A message has three parts: what is wrong, how much or where, and what to do. It names no file
of a scan; `named` tells that beside it.
"""

import errno
from pathlib import Path
from traceback import FrameSummary, extract_tb
from typing import TypeVar

E = TypeVar("E", bound=BaseException)

# A file that outgrows its limit (EFBIG) has met a quota of another kind.
DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# What libraries say in a RuntimeError: torch twice, a driver, a thread that finds no stack, and
# oneDNN, which knows all layers used here, so that it can lack nothing but memory.
NO_MEMORY = (
    "out of memory", "allocate memory", "not enough memory", "can't start new thread",
    "could not create a primitive",
)  # fmt: skip
LONGEST_DETAIL = 160


class MedsiamError(Exception):
    """Base of every error that input or the machine can cause."""

    exit_code = 3
    code = "refused"


class InputRefused(MedsiamError):
    """The input cannot be used, and the message says what to do about it."""


class Unreadable(InputRefused):
    """A file is no image that can be read, or it is damaged."""

    code = "unreadable"


class GeometryRefused(InputRefused):
    """The place of the voxels in the patient cannot be told truly."""

    code = "geometry"


class SeriesAmbiguous(InputRefused):
    """Several series fit and the input does not say which is meant."""

    code = "series"


class IdentityRefused(InputRefused):
    """The scans are of two patients, or in the wrong order."""

    code = "identity"


class NotComparable(InputRefused):
    """The two scans show different things, so no change can be told."""

    code = "not-comparable"


class WeightsRefused(InputRefused):
    """Encoder weights that cannot be trusted or do not fit."""

    code = "weights"


class ConfigRefused(InputRefused):
    """A setting that does not exist or cannot hold."""

    code = "config"


class ArchiveRefused(InputRefused):
    """An archive cannot be reached, does not let us in, or does not do what was asked."""

    code = "archive"


class ServingRefused(InputRefused):
    """The queue of `medsiam serve`, its settings or a request to it cannot be taken."""

    code = "serving"


class IndexRefused(InputRefused):
    """An index of cases that is not there, or not for this question."""

    code = "index"


class FilterRefused(IndexRefused):
    """A filter that cannot be read, or that names no column of the index."""

    code = "filter"


class IndexDamaged(IndexRefused):
    """Files of an index that cannot be read."""

    code = "index-damaged"


class TrainingRefused(InputRefused):
    """The manifest or the scans in it cannot be trained on."""

    code = "training"


class ResultDamaged(InputRefused):
    """Files of a result are missing, changed, or were never sealed by a digest."""

    code = "damaged"


class ResourceExhausted(MedsiamError):
    """Memory or disk is used up."""

    exit_code = 4
    code = "resources"


def as_medsiam_error(error: Exception) -> Exception:
    """Exhausted memory or disk by its own name; any other error as it is."""
    if is_out_of_memory(error):
        detail = one_line(str(error))[:LONGEST_DETAIL]
        told = f"out of memory ({detail})" if detail else "out of memory"
        remedy = "use --device cpu" if "CUDA" in detail else "end other programs, or use a larger machine"
        return ResourceExhausted(f"{told}; {remedy}")
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
        return ResourceExhausted(f"the disk is full ({error.filename or 'no detail'}); free some space")
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, of this machine or of its GPU."""
    # By name: importing torch to ask for its class would cost seconds.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


def named(error: E, name: object) -> E:
    """The error with the name of a file beside its message.

    A file's name may be a patient's. So no message holds one, for messages are kept in reports,
    worklists and queues; what stands beside is told to who sits before the terminal alone.
    """
    error.add_note(str(name))
    return error


def spoken(error: BaseException) -> str:
    """What is told of an error at the terminal: its message, and the names that it must not hold."""
    names = "; ".join(getattr(error, "__notes__", ()))
    return one_line(f"{error} ({names})" if names else str(error))


def one_line(text: str) -> str:
    """A text without line breaks and runs of blanks, as each message is told."""
    return " ".join(text.split())


def own_frame(error: BaseException, home: Path) -> FrameSummary:
    """The innermost place below `home` that an error passed through; without one the innermost of all."""
    frames = extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(home)]
    return (ours or frames)[-1]
