"""What does a batch cost beyond the comparisons themselves, and does its memory stay flat?

    python bench/batch.py [PATIENTS] [--size tiny|small] [--yardstick PATIENTS]

An archive of PATIENTS made-up patients with three visits each is written as DICOM. The yardstick
is the bare work: in one warm process each pair is read, compared and written in a plain loop, and
each patient's first and last visit once more, as its trajectory does; half of it before and half
after the batch, since the load of a machine changes. In between `run_batch` does the archive, and
again, when nothing is to be done. The target: under 15 % beyond the bare work, and memory that
does not grow.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from medsiam.batch import BatchSettings, run_batch
from medsiam.bench.scores import Score, Scores
from medsiam.compare import compare
from medsiam.demo import OLD_LESIONS, SMALL
from medsiam.evidence.series import SeriesIdentity, write_series
from medsiam.phantom import Scan, flair_acquisition, head_phantom
from medsiam.reading import read_volume
from medsiam.report.writer import write_comparison

SIZES = {
    "tiny": Scan(spacing_mm=(8.0, 6.0, 6.0), field_mm=(48.0, 60.0, 60.0)),
    "small": Scan(spacing_mm=(6.0, 4.0, 4.0)),
}
VISITS = 3
SETTINGS = BatchSettings()


def write_archive(folder: Path, patients: int, size: Scan) -> None:
    """So many patients with VISITS visits, a lesion new at the second."""
    for patient in range(patients):
        for visit in range(VISITS):
            scan = Scan(size.spacing_mm, size.field_mm, seed=VISITS * patient + visit)
            lesions = OLD_LESIONS if visit == 0 else (*OLD_LESIONS, SMALL)
            head = head_phantom(
                lesions, scan=scan, acquisition=flair_acquisition(scan, datetime(2020 + visit, 3, 4, 9))
            )
            uid = f"1.2.826.0.1.{patient + 1}.{visit + 1}"
            identity = SeriesIdentity("Made^Up", f"P{patient:04d}", uid, f"{uid}.1", f"{uid}.2")
            write_series(head.volume, identity, folder / f"P{patient:04d}" / f"visit{visit}")


def bare_loop(patients: Sequence[Path], out: Path) -> float:
    """Processor seconds of comparing alone, in a loop that also reads and writes each pair."""
    comparing = 0.0
    for patient in patients:
        for prior, current in ((0, 1), (1, 2), (0, 2)):
            scans = [read_volume(patient / f"visit{visit}") for visit in (prior, current)]
            start = time.process_time()
            comparison = compare(*scans, fast=True)
            comparing += time.process_time() - start
            write_comparison(comparison, out / patient.name / f"{prior}-{current}")
    return comparing


@dataclass(frozen=True)
class Lap:
    """Seconds by the wall, and of the processor, which others on the machine disturb less."""

    wall_s: float
    processor_s: float

    def plus(self, other: Lap) -> Lap:
        """Both together."""
        return Lap(self.wall_s + other.wall_s, self.processor_s + other.processor_s)

    def times(self, factor: float) -> Lap:
        """As long so many times over."""
        return Lap(self.wall_s * factor, self.processor_s * factor)


class Clock:
    """Laps since it was made."""

    def __init__(self) -> None:
        self._last = Lap(time.perf_counter(), time.process_time())

    def lap(self) -> Lap:
        """What passed since the lap before."""
        now, last = Lap(time.perf_counter(), time.process_time()), self._last
        self._last = now
        return Lap(now.wall_s - last.wall_s, now.processor_s - last.processor_s)


def beyond(seconds: float, yardstick: float) -> float:
    """How much longer, in percent."""
    return 100.0 * (seconds / yardstick - 1.0)


def resident_mb() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(patients: int, size: str, yardstick: int) -> Scores:
    """Batch beside the bare loop, in one warm process."""
    memory: list[float] = []

    def log(event: str, told: Mapping[str, Any]) -> None:
        if event == "case":
            memory.append(resident_mb())

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_archive(root / "archive", patients, SIZES[size])
        # The last ones, whose brains no batch has just found.
        measured = sorted((root / "archive").iterdir())[-yardstick:]
        bare_loop(measured[:1], root / "warm")
        clock = Clock()
        comparing = bare_loop(measured[: yardstick // 2], root / "bare")
        bare = clock.lap()
        made = run_batch(root / "archive", root / "out", SETTINGS, log=log)
        batch = clock.lap()
        began = time.perf_counter()
        again = run_batch(root / "archive", root / "out", SETTINGS)
        second = time.perf_counter() - began
        clock.lap()
        comparing += bare_loop(measured[yardstick // 2 :], root / "bare")
        bare = bare.plus(clock.lap()).times(patients / yardstick)
        comparing *= patients / yardstick
    assert made.counts["compared"] == 2 * patients and again.fresh == 0
    early, late = memory[len(memory) // 4 : len(memory) // 2], memory[-len(memory) // 4 :]
    growth = statistics.median(late) - statistics.median(early)
    cases = len(memory)
    rows = (
        Score("comparisons and trajectories", float(cases)),
        Score("bare loop: read, compare, write (wall s)", bare.wall_s),
        Score("bare loop (processor s)", bare.processor_s),
        Score("of it comparing alone (processor s)", comparing),
        Score("batch (wall s)", batch.wall_s),
        Score("batch (processor s)", batch.processor_s),
        Score("batch beyond the bare loop, wall (%)", beyond(batch.wall_s, bare.wall_s), "", "< 15"),
        Score(
            "batch beyond the bare loop, processor (%)",
            beyond(batch.processor_s, bare.processor_s),
            "",
            "< 15",
        ),
        Score("batch beyond comparing alone, processor (%)", beyond(batch.processor_s, comparing)),
        Score("cases an hour", 3600.0 * cases / batch.wall_s),
        Score("second run, nothing to do (s)", second),
        Score("memory in the second quarter (MB)", statistics.median(early)),
        Score("growth until the last quarter (MB)", growth, "", "flat"),
        Score("load of the machine at the end", os.getloadavg()[0]),
    )
    return Scores("batch", f"{patients} made-up patients, {size}", 0, rows)


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patients", type=int, nargs="?", default=200)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--yardstick", type=int, default=30, metavar="PATIENTS")
    told = parser.parse_args()
    print(measure(told.patients, told.size, min(told.yardstick, told.patients)).table())


if __name__ == "__main__":
    main()
