"""How near and how fast is our rigid registration beside SimpleITK, itk-elastix and ANTs?

    python bench/registration_table.py [--rivals PYTHON]

The FLAIR pairs of MS patients 01 and 19 of MEDSIAM_DATA: mean distance to the published transforms
over the brain, and processor seconds of one thread from two images in memory to a transform, each in a
process of its own, all in one run. itk-elastix and ANTs are no dependencies; they run in another
environment, whose interpreter is given by --rivals or MEDSIAM_RIVALS:

    python3 -m venv rivals && rivals/bin/pip install SimpleITK itk-elastix antspyx

Without it, what was once measured on another day is shown and said to be so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pair import SIMPLEITK_RIGID

from medsiam.bench.ms_pairs import MsPair, ms_pairs
from medsiam.bench.scores import Score, Scores
from medsiam.pairing.motion import mean_distance_mm

TARGETS_MM = {"patient01": 0.25, "patient19": 0.5}
TARGET_S = 4.0
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")

# Processor seconds and mean mm, measured once on a like machine.
TOLD_BEFORE = {
    "patient01": {"itk-elastix": (5.0, 0.24), "ANTs": (42.0, 0.24)},
    "patient19": {"itk-elastix": (4.3, 0.39), "ANTs": (44.0, 0.38)},
}

# What every child does: print the matrix (prior from current, LPS mm) and processor seconds.
_FRAME = """
import json, resource, sys
import numpy as np
def used():
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime + r.ru_stime
def told(matrix, began, before=0.0):
    print(json.dumps({"matrix": np.asarray(matrix).tolist(), "s": used() - began, "before_s": before}))
def affine(linear, centre, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(linear, (3, 3))
    matrix[:3, 3] = np.array(shift) + centre - matrix[:3, :3] @ centre
    return matrix
prior, current = sys.argv[1:3]
"""

_OURS = """
import torch
from medsiam.pairing.pair_up import _scans, find_regions
from medsiam.pairing.registration import RegistrationSettings, register
from medsiam.reading import read_volume
volumes = read_volume(prior), read_volume(current)
began = used()
regions = find_regions(*volumes)
before = used() - began
began = used()
scans = _scans(*volumes, regions, torch.device("cpu"))
told(register(*scans, RegistrationSettings()).prior_from_current, began, before)
"""

_SIMPLEITK = f"""
import SimpleITK as sitk
fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat32) for path in (current, prior))
began = used()
{SIMPLEITK_RIGID}
found = sitk.Euler3DTransform(sitk.CompositeTransform(method.Execute(fixed, moving)).GetNthTransform(0))
told(affine(found.GetMatrix(), found.GetCenter(), found.GetTranslation()), began)
"""

_ELASTIX = """
import itk, SimpleITK as sitk
fixed, moving = (itk.imread(path, itk.F) for path in (current, prior))
parameters = itk.ParameterObject.New()
rigid = parameters.GetDefaultParameterMap("rigid")
rigid["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
parameters.AddParameterMap(rigid)
began = used()
_, result = itk.elastix_registration_method(fixed, moving, parameter_object=parameters, number_of_threads=1)
map = result.GetParameterMap(0)
numbers = [float(v) for v in map["TransformParameters"]]
euler = sitk.Euler3DTransform()
euler.SetRotation(*numbers[:3])
told(affine(euler.GetMatrix(), [float(v) for v in map["CenterOfRotationPoint"]], numbers[3:]), began)
"""

_ANTS = """
import ants
fixed, moving = ants.image_read(current), ants.image_read(prior)
began = used()
found = ants.read_transform(ants.registration(fixed, moving, type_of_transform="Rigid")["fwdtransforms"][0])
told(affine(found.parameters[:9], found.fixed_parameters, found.parameters[9:]), began)
"""


def run(code: str, interpreter: str, pair: tuple[Path, Path]) -> dict[str, Any]:
    """What a child tells."""
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}
    command = [interpreter, "-c", _FRAME + code, *map(str, pair)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def rows_of(pair: MsPair, folder: Path, rivals: str | None) -> list[Score]:
    """One patient: ours, SimpleITK, and the rivals or what was told of them."""
    files = (folder / "study1_FLAIR.nii.gz", folder / "study2_FLAIR.nii.gz")
    methods = {"medsiam": (_OURS, sys.executable), "SimpleITK, Mattes": (_SIMPLEITK, sys.executable)}
    if rivals:
        methods |= {"itk-elastix": (_ELASTIX, rivals), "ANTs": (_ANTS, rivals)}
    rows = []
    for name, (code, interpreter) in methods.items():
        told = run(code, interpreter, files)
        distance = mean_distance_mm(np.array(told["matrix"]), pair.prior_from_current, pair.brain_points_mm())
        is_ours = name == "medsiam"
        target = (f"<= {TARGETS_MM[pair.name]}", f"<= {TARGET_S:g}") if is_ours else ("", "")
        rows.append(Score(f"{pair.name}, {name}: mean distance (mm)", distance, "", target[0]))
        rows.append(Score(f"{pair.name}, {name}: processor (s)", told["s"], "", target[1]))
        if is_ours:
            rows.append(Score(f"{pair.name}, {name}: finding both brains before (s)", told["before_s"]))
    if not rivals:
        for name, (seconds, distance) in TOLD_BEFORE[pair.name].items():
            rows.append(Score(f"{pair.name}, {name}: mean distance (mm)", distance, "not measured now"))
            rows.append(Score(f"{pair.name}, {name}: processor (s)", seconds, "not measured now"))
    return rows


def measure(rivals: str | None) -> Scores:
    """Both patients."""
    data = Path(os.environ.get("MEDSIAM_DATA") or "../shared/data")
    rows: list[Score] = []
    for pair in ms_pairs(data):
        if pair.name in TARGETS_MM:
            rows += rows_of(pair, data / "ms-longitudinal" / pair.name, rivals)
    return Scores("registration", "ms-longitudinal FLAIR, rigid, one thread", 0, tuple(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rivals", default=os.environ.get("MEDSIAM_RIVALS"))
    print(measure(parser.parse_args().rivals).table())
