"""What an index can be told, as configs/index.yaml has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Engine = Literal["lance", "qdrant"]


@dataclass(frozen=True)
class IndexSettings:
    """The engine and how it searches; fixed in the index when it is made.

    engine        "lance" lies in the index's folder; "qdrant" is a server, or a folder for a trial
    qdrant_url    of the server; "" keeps a small local one in the index's folder
    exact_below   rows up to which every vector is looked at
    probes        parts of the search index that are looked into
    refine        times the wanted count whose true similarity is computed
    batch_cases   that are stored at once
    """

    engine: Engine = "lance"
    qdrant_url: str = ""
    exact_below: int = field(default=20_000, metadata={"range": (256, 10_000_000)})
    probes: int = field(default=24, metadata={"range": (1, 4096)})
    refine: int = field(default=4, metadata={"range": (1, 100)})
    batch_cases: int = field(default=64, metadata={"range": (1, 4096)})
