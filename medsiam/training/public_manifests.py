"""Manifests of the public scans that the shipped weights are trained on.

    participants.csv, data.csv -> patients split by hash -> brains.csv, radiographs.csv, head_maps.csv,
    change_extra.csv

Paths are relative to the data folder: read them with `root` set to it. The same
data give the same bytes, so that a model card can name a manifest by its digest.

Run: python -m medsiam.training.public_manifests --data DIR --out DIR
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from medsiam.errors import TrainingRefused
from medsiam.training.manifest import assigned_splits

log = logging.getLogger("medsiam.training.public_manifests")

Row = Mapping[str, str]

# Of 111 adults: enough people to tell apart in the test, few enough not to be missed in training.
BRAIN_TEST, BRAIN_VALIDATION = 30, 10

# Patients with several radiographs and with one, split apart: a test of change over time
# needs pairs, and chance alone gave eleven patients who have any.
SEVERAL_TEST, SEVERAL_VALIDATION = 12, 2
ONE_TEST, ONE_VALIDATION = 8, 2

# The heads that the brain finder was validated on, kept unseen here as well.
HELD_OUT_HEADS = ("04", "08")

# The table tells days between admission and image, and no date; this one stands for admission.
NOMINAL_ADMISSION = datetime(2000, 1, 1)

# Single visits of patients with multiple sclerosis, real texture and real lesions for the
# change head; 01 and 19, on which this package is tested, have no place here.
MS_VISITS = {"04": ("FLAIR", "T1W", "T2W"), "09": ("FLAIR",), "20": ("FLAIR", "T1W")}
MS_VALIDATION = ("20",)

# The change head learns from one adult in so many: their 2 mm show little of what it looks for.
EVERY_BRAIN = {"train": 6, "validation": 5}


def brain_rows(data: Path) -> list[Row]:
    """T1 scans of adults with their label maps, age and sex where told, sorted by patient."""
    scans = sorted((data / "brains-t1" / "t1").glob("*.nii.gz"))
    patients = [scan.name.removesuffix(".nii.gz") for scan in scans]
    told = {row["MRID"].split("-")[0]: row for row in _table(data / "brains-t1" / "participants.csv")}
    splits = assigned_splits(patients, validation=BRAIN_VALIDATION, test=BRAIN_TEST)
    return [
        {
            "path": f"brains-t1/t1/{patient}.nii.gz",
            "patient": patient,
            "split": splits[patient],
            "label_map": f"brains-t1/labels/{patient}.nii.gz",
            "label_scheme": "muse",
            "age": told.get(patient, {}).get("Age", ""),
            "sex": told.get(patient, {}).get("Sex", ""),
        }
        for patient in patients
    ]


def radiograph_rows(data: Path) -> list[Row]:
    """Chest radiographs, each patient's in the order in which they were taken.

    `acquired` counts days from a nominal date of admission; only differences mean anything.
    """
    images = _table(data / "cxr-longitudinal" / "data.csv")
    images.sort(key=lambda row: (row["patient_id"], -int(row["admission_offset"]), row["image_id"]))
    splits = _radiograph_splits([row["patient_id"] for row in images])
    return [
        {
            "path": f"cxr-longitudinal/png/{row['image_id']}.png",
            "patient": row["patient_id"],
            # A more negative offset is a later image: admission lies further back.
            "acquired": f"{NOMINAL_ADMISSION - timedelta(days=int(row['admission_offset'])):%Y-%m-%d}",
            "split": splits[row["patient_id"]],
            "age": row["age"],
            "sex": row["sex"].upper(),
            "projection": row["projection"],
        }
        for row in images
    ]


def head_map_rows(data: Path) -> list[Row]:
    """Whole-head label maps to make scans from; two of them for validation."""
    maps = sorted((data / "head-label-maps").glob("training_seg_*.nii.gz"))
    numbers = [path.name.removeprefix("training_seg_").removesuffix(".nii.gz") for path in maps]
    return [
        {
            "path": f"head-label-maps/training_seg_{number}.nii.gz",
            "patient": f"head-{number}",
            "split": "validation" if number in HELD_OUT_HEADS else "train",
            # The map is the scan: every image of it is made up.
            "label_map": f"head-label-maps/training_seg_{number}.nii.gz",
            "label_scheme": "synthseg",
        }
        for number in numbers
    ]


def change_rows(data: Path) -> list[Row]:
    """What the change head learns from beside the head maps: single FLAIR and other visits, some T1."""
    found = (
        (path, path.parent.name.removeprefix("patient"), path.name.split("_")[1].removesuffix(".nii.gz"))
        for path in sorted((data / "ms-longitudinal" / "single-visits").glob("patient*/study*_*.nii.gz"))
    )
    visits: list[Row] = [
        {
            "path": path.relative_to(data).as_posix(),
            "patient": f"ms-{patient}",
            "split": "validation" if patient in MS_VALIDATION else "train",
            "label_map": "",
            "label_scheme": "",
        }
        for path, patient, weighting in found
        if weighting in MS_VISITS.get(patient, ())
    ]
    brains = brain_rows(data)
    some: list[Row] = [
        {name: row[name] for name in ("path", "patient", "split", "label_map", "label_scheme")}
        for split, step in EVERY_BRAIN.items()
        for row in [row for row in brains if row["split"] == split][::step]
    ]
    return visits + some


def write_manifests(data: Path, out: Path) -> None:
    """All manifests in `out`. Raises TrainingRefused where the data are not there."""
    out.mkdir(parents=True, exist_ok=True)
    made = (
        ("brains", brain_rows),
        ("radiographs", radiograph_rows),
        ("head_maps", head_map_rows),
        ("change_extra", change_rows),
    )
    for name, rows_of in made:
        rows = rows_of(data)
        if not rows:
            raise TrainingRefused(f"{data} holds no scans for {name}.csv; fetch the data or check the folder")
        _write(out / f"{name}.csv", rows)
        log.info("%s.csv: %s", name, _counted(rows))


def _radiograph_splits(patients: Sequence[str]) -> dict[str, str]:
    """Patient to split; given once for each image."""
    images = Counter(patients)
    several = [patient for patient, count in images.items() if count > 1]
    one = [patient for patient, count in images.items() if count == 1]
    return {
        **assigned_splits(several, validation=SEVERAL_VALIDATION, test=SEVERAL_TEST),
        **assigned_splits(one, validation=ONE_VALIDATION, test=ONE_TEST),
    }


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise TrainingRefused(f"{path} cannot be read ({error.strerror}); check the data folder") from error


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _counted(rows: Iterable[Row]) -> str:
    rows = list(rows)
    scans = Counter(row["split"] for row in rows)
    people = Counter(split for _, split in {(row["patient"], row["split"]) for row in rows})
    return ", ".join(f"{split} {scans[split]} scans of {people[split]}" for split in sorted(scans))


def main() -> None:
    """Write the manifests of the public data."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of public scans")
    parser.add_argument("--out", type=Path, required=True, help="where the manifests go")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_manifests(given.data, given.out)


if __name__ == "__main__":
    main()
