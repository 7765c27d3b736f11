"""What does it cost to plan an archive, again the next night, and does the cost bend upward?

    python bench/planning.py [PATIENTS...]

For each number an archive is written: four visits a patient, a series of three tiny files each, of
which 3 % are broken in six ways. In a fresh process it is planned, planned again with the headers
kept, and, the ledger told that every case is done, run by `run_batch` as on a night without news.
2,500 patients are 10,000 series and about as many cases.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pydicom

from medsiam.batch import BatchSettings, Row, plan_archive, run_batch
from medsiam.batch.ledger import Ledger, Record, key_of
from medsiam.bench.scores import Score, Scores
from medsiam.evidence.series import SeriesIdentity, write_series
from medsiam.phantom import Scan, flair_acquisition, head_phantom

VISITS = 4
PATIENTS = (3, 25, 250, 2500)
# Every 33rd series is broken, by turns in each of these ways.
BROKEN_EVERY = 33
TINY = Scan(spacing_mm=(8.0, 6.0, 6.0), field_mm=(24.0, 24.0, 24.0))
SETTINGS = BatchSettings(formats=("json",))
# As long as every number that takes its place, since files are made by exchanging bytes.
NUMBER = "777777"


def cut(files: list[Path]) -> None:
    """The middle file ends in its header."""
    files[1].write_bytes(files[1].read_bytes()[:400])


def emptied(files: list[Path]) -> None:
    """The middle file has no bytes."""
    files[1].write_bytes(b"")


def lost(files: list[Path]) -> None:
    """The middle file is not there."""
    files[1].unlink()


def undated(files: list[Path]) -> None:
    """No date of any kind."""
    edited(files, *(word for word in pydicom.dcmread(files[0]).dir() if word.endswith(("Date", "DateTime"))))


def nameless(files: list[Path]) -> None:
    """No patient number."""
    edited(files, "PatientID")


def shapeless(files: list[Path]) -> None:
    """No size of pixels."""
    edited(files, "PixelSpacing")


BREAKS: tuple[Callable[[list[Path]], None], ...] = (cut, emptied, lost, undated, nameless, shapeless)


def edited(files: list[Path], *words: str) -> None:
    """The files without these elements."""
    for file in files:
        dataset = pydicom.dcmread(file)
        for word in words:
            delattr(dataset, word)
        dataset.save_as(file)


def write_archive(folder: Path, patients: int) -> set[str]:
    """So many patients with VISITS visits; the series that are broken."""
    templates = [template_of(folder.with_name("template"), visit) for visit in range(VISITS)]
    broken = set()
    for patient in range(patients):
        for visit, template in enumerate(templates):
            number, place = f"{100_000 + patient}", folder / f"{patient:05d}" / f"{visit}"
            place.mkdir(parents=True)
            files = [place / f"{n}.dcm" for n in range(len(template))]
            for file, content in zip(files, template, strict=True):
                file.write_bytes(content.replace(NUMBER.encode(), number.encode()))
            count = VISITS * patient + visit
            if count % BROKEN_EVERY == BROKEN_EVERY // 2:
                BREAKS[count // BROKEN_EVERY % len(BREAKS)](files)
                broken.add(f"1.2.826.0.{number}.{visit}.1")
    return broken


def template_of(folder: Path, visit: int) -> list[bytes]:
    """The files of one series, NUMBER wherever a patient's own number stands."""
    head = head_phantom(scan=TINY, acquisition=flair_acquisition(TINY, datetime(2020 + visit, 3, 4, 9)))
    study = f"1.2.826.0.{NUMBER}.{visit}"
    place = folder / f"{visit}"
    write_series(
        head.volume, SeriesIdentity("Made^Up", f"P{NUMBER}", study, f"{study}.1", f"{study}.2"), place
    )
    made = []
    for n, file in enumerate(sorted(place.iterdir())):
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{study}.3.{n + 1}"
        dataset.save_as(file)
        made.append(file.read_bytes())
    return made


@dataclass(frozen=True)
class Measured:
    """Of one archive: processor seconds, which others on the machine disturb less, memory, what was found."""

    cases: int
    series: int
    refused: tuple[tuple[str, int], ...]
    unheard: int
    first_s: float
    again_s: float
    night_s: float
    grown_mb: float


def measured(archive: Path, out: Path, broken: set[str]) -> Measured:
    """The plan of an archive twice, and a night without news; for a process of its own."""
    before = peak_mb()
    began = time.process_time()
    plan = plan_archive(archive, out, SETTINGS, keep=True)
    first = time.process_time() - began
    grown = peak_mb() - before
    began = time.process_time()
    assert plan_archive(archive, out, SETTINGS, keep=True) == plan, "what is kept gives the same plan"
    again = time.process_time() - began
    ledger = Ledger(out).open()
    for case in plan.cases:
        inputs = tuple((scan.signature, scan.signature) for scan in case.scans)
        row = Row(case.case_id, case.kind, "compared", case.patient_key, verdict="stable")
        key = key_of(case, [digest for _, digest in inputs], SETTINGS)
        ledger.write(Record(case.case_id, key, row, inputs))
    began = time.process_time()
    night = run_batch(archive, out, SETTINGS)
    night_s = time.process_time() - began
    assert night.fresh == 0
    told = {(row.current or {}).get("series_uid") for row in plan.inputs if row.reason}
    used = {scan.series_uid for case in plan.cases for scan in case.scans}
    return Measured(
        len(plan.cases), plan.counts["series"],
        tuple(sorted(Counter(str(row.code) for row in plan.inputs).items())),
        len(broken - told) + len(broken & used),
        first, again, night_s, grown,
    )  # fmt: skip


def peak_mb() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def measure(patients: int) -> Scores:
    """One archive."""
    with tempfile.TemporaryDirectory() as folder:
        archive, out = Path(folder) / "archive", Path(folder) / "out"
        broken = write_archive(archive, patients)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            made = pool.submit(measured, archive, out, broken).result()
    rows = (
        Score("series; comparisons and trajectories", float(made.series), f"{made.cases}"),
        Score("broken series", float(len(broken))),
        Score("of these not told, or compared all the same", float(made.unheard), "", "0"),
        *(Score(f"refused: {code}", float(count)) for code, count in made.refused),
        Score("first plan (processor s)", made.first_s),
        Score("first plan, a series (ms)", 1000.0 * made.first_s / made.series),
        Score("plan again (processor s)", made.again_s),
        Score("plan again, a series (ms)", 1000.0 * made.again_s / made.series),
        Score("night without news (processor s)", made.night_s),
        Score("night without news, a case (ms)", 1000.0 * made.night_s / max(made.cases, 1)),
        Score("memory of planning (MB)", made.grown_mb),
        Score("load of the machine", os.getloadavg()[0]),
    )
    return Scores("planning", f"{patients} made-up patients", 0, rows)


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patients", type=int, nargs="*", default=PATIENTS)
    for patients in parser.parse_args().patients:
        print(measure(patients).table(), flush=True)


if __name__ == "__main__":
    main()
