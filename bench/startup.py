"""How long does `medsiam --help` take, beside an empty Python?

python bench/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

from medsiam.bench.scores import Score, Scores

REPEATS = 7


def measure() -> Scores:
    """Median seconds of the help, and its ratio to an empty interpreter, run in pairs."""
    pairs = [(_seconds("-m", "medsiam", "--help"), _seconds("-c", "pass")) for _ in range(REPEATS)]
    help_s, empty_s = np.array(pairs).T
    rows = (
        Score("medsiam --help (s)", float(np.median(help_s)), target="< 1"),
        # Each help is divided by the empty run beside it, so a busy machine cancels.
        Score("ratio to python -c pass", float(np.median(help_s / empty_s)), target="< 25"),
    )
    return Scores("startup", "none", 0, rows)


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    print(measure().table())
