"""The same scans, weights, settings and device give the same bytes; only times differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from medsiam.evidence.series import SeriesIdentity, write_series
from tests import phantoms

# What no two runs share.
TIMES = {"seconds", "peak_memory_mb"}
LESION = phantoms.Lesion((20.0, 26.0, 26.0), (9.0, 9.0, 9.0))
# Two devices add up in another order: scores to a hundredth, places to half a millimetre.
SCORE_TOLERANCE, PLACE_TOLERANCE_MM = 0.01, 0.5


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two visits of one patient, a lesion in the second."""
    folder = tmp_path_factory.mktemp("scans")
    for visit, lesions in enumerate(((), (LESION,))):
        volume = phantoms.small_head(
            lesions, noise=8.0, seed=visit, acquired=datetime(2022 + visit, 3, 4, 9, 12)
        ).volume
        identity = SeriesIdentity(
            patient_name="Same^Same",
            patient_id="1",
            birth_date="19500101",
            sex="F",
            study_uid=f"1.2.{visit}",
            series_uid=f"1.2.{visit}.1",
            frame_of_reference_uid="1.2.9",
        )
        write_series(volume, identity, folder / f"visit{visit}")
    return folder


def compared(scans: Path, folder: Path, devices=("cpu", "cpu")) -> list[Path]:
    """The folders of two comparisons, made at once in processes with other hashes of the same words."""
    runs = []
    for number, device in enumerate(devices, 1):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": str(number),
            "OMP_NUM_THREADS": "1",
            "MEDSIAM_KEY": "a key of sixteen bytes",
        }
        words = [scans / "visit0", scans / "visit1", "--out", folder / str(number), "--device", device]
        more = ["--fast", "--formats", "json,nifti", "--seed", "7"]
        command = [sys.executable, "-m", "medsiam", "compare", *map(str, words), *more]
        runs.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    return [folder / "1", folder / "2"]


def timeless(value):
    """A report without what no two runs share."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def report(folder: Path):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_two_runs_give_the_same_bytes(scans, tmp_path):
    """In two processes whose sets and dictionaries have another order of hashes."""
    one, two = compared(scans, tmp_path)
    assert report(one)["findings"], "a comparison without findings would be equal too easily"
    assert json.dumps(timeless(report(one))) == json.dumps(timeless(report(two)))
    for path in one.glob("*.nii.gz"):
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_another_device_tells_the_same_within_tolerance(scans, tmp_path):
    """The same verdict and findings; figures differ by rounding."""
    cpu, gpu = (
        report(compared(scans, tmp_path / name, hash_seed=1, device=name)) for name in ("cpu", "cuda")
    )
    assert gpu["verdict"] == cpu["verdict"] and len(gpu["findings"]) == len(cpu["findings"])
    assert gpu["change"]["score"] == pytest.approx(cpu["change"]["score"], abs=SCORE_TOLERANCE)
    for one, other in zip(cpu["findings"], gpu["findings"], strict=True):
        assert other["centre_lps_mm"] == pytest.approx(one["centre_lps_mm"], abs=PLACE_TOLERANCE_MM)
