"""How do time and memory of a comparison grow with the size of the scans and the number of visits?

    python bench/growth.py sizes      two made-up heads of 64^3 to 512^3 voxels, compared
    python bench/growth.py visits     2 to 10 visits of one made-up head: each step, and first to last
    --plot PNG                        the curve as a picture

Each point is a process of its own, fast mode, two threads. The growth of the case index is bench/index.py's,
that of reading bench/reading.py's, that of an archive bench/planning.py's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from medsiam.bench.scores import Score, Scores

SIZES, VISITS = (64, 128, 192, 256, 384, 512), (2, 3, 4, 6, 8, 10)
FIELD_MM = 192.0
VISITS_SIZE = 96


def point(kind: str, count: int) -> dict[str, float]:
    """Processor seconds, wall seconds and peak memory (MB) of one comparison, imports left out."""
    from medsiam.compare import compare
    from medsiam.phantom import Lesion, Scan, flair_acquisition, head_phantom, position

    size = count if kind == "sizes" else VISITS_SIZE
    step = FIELD_MM / size
    volumes = []
    for visit in range(2 if kind == "sizes" else count):
        scan = Scan((step, step, step), (FIELD_MM - step,) * 3, seed=visit)
        lesion = Lesion((20.0, 26.0, 26.0), (5.0 + 0.3 * visit,) * 3)
        where = position((0.0, 0.0, 2.0 * visit), (1.0 * visit, 0.0, 0.0))
        made = head_phantom((lesion,), scan=scan, world_from_head=where, acquisition=flair_acquisition(scan))
        volumes.append(made.volume)
    pairs = list(itertools.pairwise(volumes))
    pairs += [(volumes[0], volumes[-1])] if len(volumes) > 2 else []
    before, began = _processor_s(), time.perf_counter()
    for prior, current in pairs:
        compare(prior, current, fast=True)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    return {"cpu_s": _processor_s() - before, "wall_s": time.perf_counter() - began, "peak_mb": peak_mb}


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(kind: str) -> tuple[Scores, list[tuple[int, dict[str, float]]]]:
    """One row for each point, and the points."""
    points = []
    for count in SIZES if kind == "sizes" else VISITS:
        command = [sys.executable, __file__, kind, "--point", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        points.append((count, json.loads(done.stdout.splitlines()[-1])))
    rows = []
    for count, told in points:
        name = f"{count}^3 voxels" if kind == "sizes" else f"{count} visits"
        rows.append(Score(f"{name}: processor time (s)", told["cpu_s"]))
        rows.append(Score(f"{name}: wall time (s)", told["wall_s"]))
        rows.append(
            Score(f"{name}: peak memory, imports and the making of the scans included (MB)", told["peak_mb"])
        )
    return Scores(f"growth with {kind}", "made-up heads", 0, tuple(rows)), points


def plot(points: list[tuple[int, dict[str, float]]], kind: str, path: Path) -> None:
    """Processor time and memory over the count."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("cpu_s", "peak_mb"), ("processor time (s)", "peak memory (MB)"), strict=True
    ):
        axes.plot([count for count, _ in points], [told[key] for _, told in points], "o-")
        axes.set(
            xlabel="voxels along each axis" if kind == "sizes" else "visits", ylabel=label, ylim=(0, None)
        )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("sizes", "visits"))
    parser.add_argument("--point", type=int)
    parser.add_argument("--plot", type=Path)
    told = parser.parse_args()
    if told.point:
        print(json.dumps(point(told.kind, told.point)))
    else:
        scores, found = measure(told.kind)
        print(scores.table())
        if told.plot:
            plot(found, told.kind, told.plot)
