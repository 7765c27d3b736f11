"""What may be chosen from the command line and from Python alike; known before torch is loaded."""

from __future__ import annotations

# What every generator of chance takes.
LARGEST_SEED = 2**32 - 1


def is_device(name: str) -> bool:
    """Whether a name is auto, cpu, cuda or cuda:N; not whether that device is there."""
    if not isinstance(name, str):
        return False
    kind, _, number = name.partition(":")
    return name in ("auto", "cpu", "cuda") or (kind == "cuda" and number.isdecimal())
