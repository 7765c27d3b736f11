"""How long does one whole comparison take, and how much memory, start-up included?

    python bench/pair.py [PATIENT]

Runs `medsiam compare` on an MS pair of MEDSIAM_DATA as a whole process, in turns with
the yardstick, a bare rigid registration by SimpleITK of the same two files (Mattes
mutual information, 5 % of the voxels), and prints the ratio.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medsiam.bench.scores import Score, Scores

RUNS = 3
# Rigid registration as its users set it up: `method`, which lays `moving` on `fixed`.
SIMPLEITK_RIGID = """
method = sitk.ImageRegistrationMethod()
method.SetMetricAsMattesMutualInformation(50)
method.SetMetricSamplingStrategy(method.RANDOM)
method.SetMetricSamplingPercentage(0.05, 1)
method.SetInterpolator(sitk.sitkLinear)
method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
method.SetOptimizerScalesFromPhysicalShift()
method.SetShrinkFactorsPerLevel([4, 2, 1])
method.SetSmoothingSigmasPerLevel([2, 1, 0])
method.SetInitialTransform(sitk.CenteredTransformInitializer(
    fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS))
"""
YARDSTICK = f"""
import sys, SimpleITK as sitk
fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat32) for path in sys.argv[1:3])
{SIMPLEITK_RIGID}
method.Execute(fixed, moving)
"""


def seconds(command: list[str]) -> float:
    """Wall seconds of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(patient: str) -> Scores:
    """Medians over RUNS paired runs."""
    folder = Path(os.environ.get("MEDSIAM_DATA") or "../shared/data") / "ms-longitudinal" / patient
    prior, current = (str(folder / f"study{visit}_FLAIR.nii.gz") for visit in (1, 2))
    whole, bare = [], []
    with tempfile.TemporaryDirectory() as out:
        for _ in range(RUNS):
            compare = [sys.executable, "-m", "medsiam", "compare", prior, current, "--out", f"{out}/r"]
            whole.append(seconds(compare))
            if not bare:
                peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024.0
                bare_command = [sys.executable, "-c", YARDSTICK, current, prior]
            bare.append(seconds(bare_command))
    ratios = [a / b for a, b in zip(whole, bare, strict=True)]
    rows = (
        Score("medsiam compare, whole process (s)", statistics.median(whole), "", "< 60"),
        Score("peak memory (MB)", peak_mb, "", "< 3000"),
        Score("SimpleITK rigid registration alone (s)", statistics.median(bare)),
        Score("ratio", statistics.median(ratios)),
    )
    return Scores("pair", f"ms-longitudinal {patient}", 0, rows)


if __name__ == "__main__":
    print(measure(sys.argv[1] if len(sys.argv) > 1 else "patient01").table())
