"""Which benchmarks there are, and running one by its name.

A benchmark is a module of this room with a function `measure(data, seed) -> Scores`.
It is imported when it is run, since most of them need torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from medsiam.bench.scores import Scores


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's subject in one sentence, and the module that measures it."""

    subject: str
    module: str


BENCHMARKS: dict[str, Benchmark] = {
    "registration": Benchmark(
        "distance to published transforms, on MS patients", "medsiam.bench.registration"
    ),
    "change": Benchmark(
        "agreement with experts' change masks, and findings where nothing changed", "medsiam.bench.change"
    ),
    "brain-volume": Benchmark(
        "known change of the brain's volume recovered, and none where there is none",
        "medsiam.bench.brain_volume",
    ),
    "radiographs": Benchmark(
        "chest radiographs: change score against the course of the disease, opacities put in",
        "medsiam.bench.radiographs",
    ),
    "encoder": Benchmark(
        "who is found again, and what neighbours share, by the embedding alone", "medsiam.bench.encoder"
    ),
    "index": Benchmark("the case index at 200,000 cases: recall, time, size", "medsiam.bench.index"),
}


def names_and_subjects() -> dict[str, str]:
    """Every benchmark's name with its subject."""
    return {name: benchmark.subject for name, benchmark in BENCHMARKS.items()}


def listing() -> str:
    """The names and subjects as aligned text."""
    width = max((len(name) for name in BENCHMARKS), default=0)
    return "\n".join(f"{name:<{width}}  {subject}" for name, subject in names_and_subjects().items())


def run(name: str, *, data: Path | None, seed: int) -> Scores:
    """The scores of one benchmark.

    data  folder of public data, for those that need one
    """
    scores: Scores = import_module(BENCHMARKS[name].module).measure(data=data, seed=seed)
    return scores
