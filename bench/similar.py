"""Do neighbours share a label? Every scan searched by through the command line, beside baselines.

python bench/similar.py --data DIR [--most 40]

brains-t1: sex and decade of age, the query's patient left out. cxr-longitudinal: the same
patient (the query itself left out), projection, and a stay in intensive care.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from medsiam import cli
from medsiam.bench import baselines, retrieval
from medsiam.bench.ms_pairs import data_folder
from medsiam.bench.scores import Score, Scores
from medsiam.reading import read_volume
from medsiam.training.public_manifests import brain_rows, radiograph_rows

OURS, PIXELS, CHANCE = "", "raw at 8 mm", "chance"
SEED = 0


@dataclass(frozen=True)
class Scan:
    """A scan, whose it is, and what is known of it."""

    path: Path
    patient: str
    is_held_out: bool
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Ranked:
    """What one query gave for a label: whether each neighbour shares it, nearest first."""

    shares: tuple[bool, ...]
    offered: float

    @property
    def average_precision(self) -> float:
        """Mean precision at each that shares it; 0 where none does."""
        hits = np.cumsum(self.shares)
        places = np.flatnonzero(self.shares)
        return float(np.mean(hits[places] / (places + 1))) if places.size else 0.0


def brains(data: Path) -> list[Scan]:
    """Adults with sex and decade."""
    found = []
    for row in brain_rows(data):
        labels = {"sex_told": row["sex"]} if row["sex"] else {}
        if row["age"]:
            labels["decade"] = f"{int(float(row['age']) // 10) * 10}"
        found.append(Scan(data / row["path"], row["patient"], row["split"] == "test", labels))
    return found


def radiographs(data: Path) -> list[Scan]:
    """Chest radiographs with projection and whether the patient came to intensive care."""
    with (data / "cxr-longitudinal" / "data.csv").open(encoding="utf-8") as file:
        told = {row["image_id"]: row for row in csv.DictReader(file)}
    found = []
    for row in radiograph_rows(data):
        known = told[Path(row["path"]).stem]
        labels = {
            "projection": known["projection"],
            "intensive_care": "yes" if known["icu_admission_offset"] else "no",
        }
        found.append(Scan(data / row["path"], row["patient"], row["split"] == "test", labels))
    return found


def indexed(scans: Sequence[Scan], folder: Path) -> float:
    """Seconds in which the command line added the scans with their labels."""
    table = folder / "labels.csv"
    names = sorted({name for scan in scans for name in scan.labels})
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "patient", "who", *names])
        for scan in scans:
            values = [scan.labels.get(name, "") for name in names]
            writer.writerow([scan.path, scan.patient, scan.patient, *values])
    began = time.perf_counter()
    places = sorted({str(scan.path.parent) for scan in scans})
    _run("index", "add", *places, "--index", folder / "cases", "--labels", table)
    return time.perf_counter() - began


def neighbours(scan: Scan, folder: Path, count: int, *, own: bool) -> list[dict[str, str]]:
    """Labels of the nearest, by `medsiam search`."""
    args = ("--include-same-patient",) if own else ("--patient", scan.patient)
    out = folder / "out"
    _run("search", scan.path, "--index", folder / "cases", "--out", out, "-k", count, "--controls", 0, *args)
    report = json.loads((out / "search.json").read_text(encoding="utf-8"))
    query = report["query"]["sha256"]
    cases = [each for each in report["results"] if each["case_id"] != report["query"]["case_id"]]
    assert query
    return [each["labels"] for each in cases]


def by_command_line(
    scans: Sequence[Scan], asked: Sequence[Scan], folder: Path
) -> dict[str, dict[str, Ranked]]:
    """Label to patient-and-path to what came back."""
    found: dict[str, dict[str, Ranked]] = {}
    repeated = len({scan.patient for scan in scans}) < len(scans)
    for scan in asked:
        told = neighbours(scan, folder, len(scans), own=False)
        for label, value in scan.labels.items():
            found.setdefault(label, {})[str(scan.path)] = _ranked(told, label, value)
        if repeated:
            told = neighbours(scan, folder, len(scans), own=True)
            ranked = _ranked(told, "who", scan.patient)
            if any(ranked.shares):
                found.setdefault("same patient", {})[str(scan.path)] = ranked
    return found


def by_similarity(
    scans: Sequence[Scan], asked: Sequence[Scan], similarity: retrieval.Numbers
) -> dict[str, dict[str, Ranked]]:
    """The same from a matrix of similarities, for a baseline."""
    rows = {str(scan.path): n for n, scan in enumerate(scans)}
    found: dict[str, dict[str, Ranked]] = {}
    for scan in asked:
        n = rows[str(scan.path)]
        order = [m for m in np.argsort(-similarity[n], kind="stable") if m != n]
        others = [dict(scans[m].labels) for m in order if scans[m].patient != scan.patient]
        for label, value in scan.labels.items():
            found.setdefault(label, {})[str(scan.path)] = _ranked(others, label, value)
        ranked = _ranked([{"who": scans[m].patient} for m in order], "who", scan.patient)
        if any(ranked.shares):
            found.setdefault("same patient", {})[str(scan.path)] = ranked
    return found


def score_rows(
    subject: str, asked: Sequence[Scan], viewers: Mapping[str, Mapping[str, Mapping[str, Ranked]]]
) -> Iterator[Score]:
    """P@1, P@5 and AP of each label, with intervals over patients; chance is what any order gives."""
    patients = {str(scan.path): scan.patient for scan in asked}
    for label in viewers[OURS]:
        figures = {
            "P@1": lambda each: float(each.shares[0]),
            "P@5": lambda each: float(np.mean(each.shares[:5])),
            "AP": lambda each: each.average_precision,
        }
        for name, figure in figures.items():
            for viewer, found in viewers.items():
                answers = found[label]
                values = [figure(each) for each in answers.values()]
                people = [patients[path] for path in answers]
                told = retrieval.estimate(retrieval.mean_of(values), people, SEED)
                words = f"{subject}, {label}, {name} ({len(values)} queries)"
                yield Score(f"{words}: {viewer}" if viewer else words, told.value, "", "", told.interval)
            chance = float(np.mean([each.offered for each in viewers[OURS][label].values()]))
            yield Score(f"{subject}, {label}, {name}: {CHANCE}", chance)


def _ranked(told: Sequence[Mapping[str, str]], label: str, value: str) -> Ranked:
    known = [each[label] == value for each in told if label in each]
    return Ranked(tuple(known), float(np.mean(known)) if known else 0.0)


def _run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--most", type=int, default=10_000, help="queries of each set, held-out first")
    chosen = parser.parse_args()
    os.environ.setdefault("MEDSIAM_KEY", "a key for this benchmark alone")
    data = data_folder(chosen.data)
    rows: list[Score] = []
    for subject, scans, raw in (
        ("brains-t1", brains(data), baselines.raw_brain),
        ("cxr-longitudinal", radiographs(data), baselines.equalised_radiograph),
    ):
        asked = [scan for scan in scans if scan.is_held_out][: chosen.most]
        with tempfile.TemporaryDirectory() as folder:
            seconds = indexed(scans, Path(folder))
            rows.append(Score(f"{subject}: seconds to add {len(scans)} scans", seconds))
            ours = by_command_line(scans, asked, Path(folder))
        images = np.stack([raw(read_volume(scan.path)).ravel() for scan in scans])
        pixels = by_similarity(scans, asked, baselines.correlations(images, images))
        rows += score_rows(subject, asked, {OURS: ours, PIXELS: pixels})
    print(
        Scores(
            "similar", "brains-t1, cxr-longitudinal, held-out patients as queries", SEED, tuple(rows)
        ).table()
    )


if __name__ == "__main__":
    main()
