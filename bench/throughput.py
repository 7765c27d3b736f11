"""How many pairs of real size does a batch hold in an hour?

    python bench/throughput.py [COPIES]

An archive of COPIES patients with two FLAIR visits each: those of MS patients 01 and 19 of MEDSIAM_DATA
in turns, each copy with faint noise of its own, so that nothing is known of it beforehand. Once one
`medsiam batch` does it with all cores, once two share its OUT with half of them each. Whole processes,
start-up included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from medsiam.bench.ms_pairs import ms_pairs
from medsiam.bench.scores import Score, Scores
from medsiam.evidence.series import SeriesIdentity, write_series
from medsiam.phantom import Scan, flair_acquisition
from medsiam.volume import Volume

# Of the brightest voxels: it changes every value and no finding.
FAINT = 1e-3


def write_archive(folder: Path, copies: int) -> None:
    """So many patients with two visits."""
    pairs = list(ms_pairs(None))
    for copy in range(copies):
        pair = pairs[copy % len(pairs)]
        random = np.random.default_rng([0, copy])
        for visit, scan in enumerate((pair.prior, pair.current)):
            noise = FAINT * float(np.percentile(scan.array, 99.5)) * random.standard_normal(scan.array.shape)
            acquisition = replace(
                flair_acquisition(Scan(), datetime(2020 + visit, 3, 4, 9)), protocol=scan.acquisition.protocol
            )
            uid = f"1.2.826.0.1.{copy + 1}.{visit + 1}"
            identity = SeriesIdentity("Copy^Faint", f"C{copy:04d}", uid, f"{uid}.1", f"{uid}.2")
            noisy = Volume((scan.array + noise).astype(np.float32), scan.grid, acquisition)
            write_series(noisy, identity, folder / f"C{copy:04d}" / f"visit{visit}")


def seconds(archive: Path, out: Path, processes: int) -> float:
    """Wall seconds until so many processes have done an archive together."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    command = [sys.executable, "-m", "medsiam", "batch", str(archive), "--out", str(out)]
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL
        )
        for _ in range(processes)
    ]
    if any(each.wait() for each in running):
        raise RuntimeError(f"one of {' '.join(command)} failed; run it by hand")
    return time.perf_counter() - began


def measure(copies: int) -> Scores:
    """Pairs an hour, of one process and of two."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        write_archive(archive, copies)
        for processes in (1, 2):
            taken = seconds(archive, Path(folder) / f"out{processes}", processes)
            subject = f"pairs an hour, {processes} process{'es' if processes > 1 else ''}"
            rows.append(Score(subject, 3600.0 * copies / taken, "", ">= 600"))
            print(f"{subject}: {rows[-1].measured:.0f}", flush=True)
    return Scores("throughput", f"{copies} pairs of FLAIR, {os.cpu_count()} cores, fast", 0, tuple(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("copies", type=int, nargs="?", default=12)
    print(measure(parser.parse_args().copies).table())
