"""How do recall, time and size of the case index grow with its cases? And does it survive kill -9?

python bench/index.py [--largest 1000000] [--plot docs/images/index-growth.png]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from medsiam.bench.scores import Score, Scores
from medsiam.cases.index import CaseIndex

SIZES = (1_000, 10_000, 100_000, 200_000, 1_000_000)
KILLS, WRITERS = 20, 3
SEED = 0
ROOT = Path(__file__).parents[1]


def grown(cases: int, place: Path) -> dict[str, float]:
    """Every figure of an index of so many cases, in a process of its own, whose memory it tells."""
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom medsiam.bench.index import measured\n"
        f"print(json.dumps({{r.subject: r.measured for r in measured(Path(sys.argv[1]), {cases}, {SEED})}}))"
    )
    with tempfile.TemporaryDirectory(dir=place) as folder:
        told = subprocess.run(
            [sys.executable, "-c", code, f"{folder}/cases"], check=True, capture_output=True, text=True
        )
    figures: dict[str, float] = json.loads(told.stdout)
    return figures


def kill_rows(place: Path) -> tuple[Score, ...]:
    """Writers killed at random moments, then three at once: what was lost, what is there twice."""
    sys.path.insert(0, str(ROOT))
    from tests import case_maker as maker

    with tempfile.TemporaryDirectory(dir=place) as folder:
        index = maker.index_in(Path(folder))
        moments, acknowledged = random.Random(SEED), set()
        for _ in range(KILLS):
            process = _writer(index.folder, 0, 20_000, 50)
            acknowledged |= set(process.stdout.readline().split())
            time.sleep(moments.uniform(0.0, 1.5))
            process.kill()
            acknowledged |= set(process.stdout.read().split())
            process.wait()
        killed = _stored(index.folder)
        lost = len({f"1.2.3.{n}" for n in acknowledged} - set(killed))
    with tempfile.TemporaryDirectory(dir=place) as folder:
        index = maker.index_in(Path(folder))
        writers = [_writer(index.folder, 300 * n, 900, 30) for n in range(WRITERS)]
        for process in writers:
            process.communicate()
        together = _stored(index.folder)
    return (
        Score(f"kill -9, {KILLS} times: cases acknowledged", len(acknowledged)),
        Score("of these lost", lost, "", "0"),
        Score("cases there twice", sum(count > 1 for count in killed.values()), "LanceDB alone 0", "0"),
        Score(f"{WRITERS} writers at once: cases of 1500", len(together), "", "1500"),
        Score("cases there twice", sum(count > 1 for count in together.values()), "LanceDB alone: yes", "0"),
    )


def plotted(figures: dict[int, dict[str, float]], path: Path) -> None:
    """Time, recall and memory against the number of cases."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted(figures)
    panels = (
        ("ms at p50", "ms at p95", "one search (ms)"),
        ("recall@10 against exact", "recall@10 against exact, filter that an eighth passes", "recall@10"),
        ("peak memory of the whole run (GB)", "", "peak memory while building (GB)"),
        ("bytes a stored number, the whole folder", "", "bytes on disk a stored number"),
    )
    figure, axes = pyplot.subplots(1, len(panels), figsize=(15, 3.4), layout="constrained")
    for axis, (*names, title) in zip(axes, panels, strict=True):
        for name in filter(None, names):
            axis.plot(sizes, [figures[n][name] for n in sizes], marker="o", label=name if names[1] else None)
        axis.set(xscale="log", xlabel="cases", title=title)
        axis.grid(alpha=0.3)
        if names[1]:
            axis.legend(fontsize=7)
    axes[0].set_yscale("log")
    figure.savefig(path, dpi=110)


def _writer(folder: Path, first: int, count: int, batch: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.case_writer", str(folder), str(first), str(count), str(batch)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def _stored(folder: Path) -> Counter[str]:
    return Counter(case.series_uid for case in CaseIndex.open(folder).store.find("scan", None))


def main() -> None:
    """Prints the tables and draws the plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    chosen = parser.parse_args()
    figures = {}
    for cases in (size for size in SIZES if size <= chosen.largest):
        figures[cases] = grown(cases, chosen.place)
        rows = tuple(Score(subject, value) for subject, value in figures[cases].items())
        print(Scores("index", f"{cases} made-up cases", SEED, rows).table(), flush=True)
        if chosen.plot and len(figures) > 1:
            plotted(figures, chosen.plot)
    print(Scores("index, writers", "made up", SEED, kill_rows(chosen.place)).table())


if __name__ == "__main__":
    main()
