"""How long does reading a series take, and how much memory, beside pydicom and the bare decoders?

    python bench/reading.py [growth]

A made-up CT of 200 slices of 512 x 512 with headers of ninety elements. Uncompressed: `read_volume`,
with every check, beside pydicom into an array made before. Compressed: beside the decoder alone, as
pydicom calls it, in two processes that have imported everything. Each reading is done in a process of
its own, a first time to warm up and then RUNS times; processes take turns. `growth` reads cubes of 64
to 512 instead.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1

from medsiam.bench.scores import Score, Scores

SLICES, SIZE = 200, 512
PAIRS, RUNS = 3, 3
CUBES = (64, 128, 256, 512)
KEY = b"a key of thirty-two bytes in all"
ROOT = Path(__file__).parents[1]
SYNTAXES = {
    "uncompressed": ExplicitVRLittleEndian,
    "JPEG 2000 lossless": JPEG2000Lossless,
    "JPEG lossless": JPEGLosslessSV1,
}


def write_series(folder: Path, slices: int, size: int, syntax: str) -> None:
    """A made-up CT, its slices in files whose names tell no order."""
    sys.path.insert(0, str(ROOT))
    from tests import dicom_maker as maker

    grid = maker.grid_of(shape=(slices, size, size), spacing=(1.0, 0.7, 0.7))
    random = np.random.default_rng(0)
    for k in range(slices):
        cells = _picture(k, size, random)
        ds = maker.put_pixels(maker.identity("CT", **_technique()), cells)
        ds.SOPInstanceUID, ds.InstanceNumber = f"1.2.3.4.{k + 1}", k + 1
        ds.ImagePositionPatient = [float(f"{v:.8g}") for v in grid.world([(k, 0, 0)])[0]]
        ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.7, 0.7]
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        _pack(ds, cells, syntax)
        maker.save(ds, folder, syntax, names=[f"{(k * 7919 + 13) % 10007:05d}.dcm"])


def _picture(k: int, size: int, random: np.random.Generator) -> np.ndarray:
    """Twelve bits: a smooth body in air, and the noise of a scanner."""
    row, column = np.mgrid[:size, :size]
    body = 1040 + 200 * np.sin(column / 23) * np.cos(row / 17 + k / 9)
    inside = np.hypot(row - size / 2, column - size / 2) < 0.4 * size
    return np.clip(np.rint(np.where(inside, body, 24) + random.normal(0, 25, (size, size))), 0, 4095).astype(
        np.int64
    )


def _technique() -> dict[str, Any]:
    """What a scanner writes besides: texts, numbers and sequences, nothing of which is needed."""
    from tests.dicom_maker import item

    numbers = (
        "KVP",
        "ExposureTime",
        "XRayTubeCurrent",
        "GantryDetectorTilt",
        "TableHeight",
        "SliceThickness",
    )
    texts = ("StationName", "ProtocolName", "InstitutionName", "FilterType", "StudyDescription", "StudyID")
    return {
        **dict.fromkeys(numbers, 0),
        **dict.fromkeys(texts, "made up"),
        "WindowCenter": [40, 400], "WindowWidth": [80, 2000], "BodyPartExamined": "HEAD",
        "ConvolutionKernel": "H30s", "SoftwareVersions": "syngo", "PatientPosition": "HFS",
        "ReferencedImageSequence": item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2"),
        "RequestAttributesSequence": item(ScheduledProcedureStepID="1"),
    }  # fmt: skip


def _pack(ds: pydicom.Dataset, cells: np.ndarray, syntax: str) -> None:
    from tests.dicom_maker import jpeg_lossless

    if syntax == JPEG2000Lossless:
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax == JPEGLosslessSV1:
        ds.PixelData = encapsulate([jpeg_lossless(cells, 16)])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True


def ours(folder: Path) -> None:
    """`read_volume`, a copy of nothing kept."""
    from medsiam.reading.finding import read_volume

    read_volume(folder, key=KEY)


def plain_pydicom(folder: Path) -> None:
    """As a careful user would: every slice into an array that is there before, unsorted, unchecked."""
    files = sorted(folder.iterdir())
    first = pydicom.dcmread(files[0], stop_before_pixels=True)
    values = np.empty((len(files), first.Rows, first.Columns), np.uint16)
    for n, file in enumerate(files):
        values[n] = pydicom.dcmread(file).pixel_array


def decoder_alone(folder: Path) -> Callable[[Path], None]:
    """Decoding alone, of half the slices in each of two forked processes; what is read beforehand is free."""
    slices = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    decoder = get_decoder(slices[0].file_meta.TransferSyntaxUID)
    decoder.as_array(slices[0], raw=True)

    def run(_: Path) -> None:
        children = []
        for part in (0, 1):
            child = os.fork()
            if child == 0:
                for ds in slices[part::2]:
                    decoder.as_array(ds, raw=True)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)

    return run


def timed(which: str, folder: Path) -> dict[str, float]:
    """In this process: medians of wall and processor seconds, children included, and MB above the imports."""
    import medsiam.reading.finding  # noqa: F401

    read = {"ours": ours, "pydicom": plain_pydicom}.get(which) or decoder_alone(folder)
    before_mb = _peak_mb()
    figures = []
    for _ in range(RUNS + 1):
        wall, processor = time.perf_counter(), _processor_s()
        read(folder)
        figures.append((time.perf_counter() - wall, _processor_s() - processor))
    walls, processors = zip(*figures[1:], strict=True)
    return {
        "wall_s": statistics.median(walls),
        "processor_s": statistics.median(processors),
        "mb": _peak_mb() - before_mb,
    }


def _processor_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak_mb() -> float:
    # Not ru_maxrss: a child begins with that of its parent.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024.0


def _apart(which: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "timed", which, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    figures: dict[str, float] = json.loads(told.stdout)
    return figures


def pairs_of(folder: Path, yardstick: str, count: int = PAIRS) -> dict[str, list[float]]:
    """Figures of both in turns, and their ratios within each pair."""
    found: dict[str, list[float]] = {}
    for _ in range(count):
        own, other = _apart("ours", folder), _apart(yardstick, folder)
        for name, value in own.items():
            found.setdefault(name, []).append(value)
            found.setdefault(f"{name} of the other", []).append(other[name])
            found.setdefault(f"{name} ratio", []).append(value / max(other[name], 1e-9))
    return found


def headers_read(folder: Path) -> float:
    """How often each header is parsed in one reading."""
    from medsiam.reading import dicom

    parsed, count = dicom.parse, 0

    def counting(file: Any) -> Any:
        nonlocal count
        count += 1
        return parsed(file)

    dicom.parse = counting
    try:
        ours(folder)
    finally:
        dicom.parse = parsed
    return count / len(list(folder.iterdir()))


def series_rows(name: str, folder: Path) -> list[Score]:
    """The rows of one way to store the series."""
    yardstick = "pydicom" if name == "uncompressed" else "decoder"
    found = {key: statistics.median(values) for key, values in pairs_of(folder, yardstick).items()}
    rows = [
        Score(f"{name}: wall (s)", found["wall_s"], f"{yardstick} {found['wall_s of the other']:.3g}"),
        Score(f"{name}: wall, ratio", found["wall_s ratio"], "", "<= 1.2"),
        Score(f"{name}: processor (s)", found["processor_s"], f"{found['processor_s of the other']:.3g}"),
        Score(f"{name}: processor, ratio", found["processor_s ratio"]),
        Score(f"{name}: MB above the imports", found["mb"], f"{found['mb of the other']:.0f}", "<= 150"),
    ]
    return [*rows, Score(f"{name}: times each header is read", headers_read(folder), "", "1")]


def measure() -> Scores:
    """Every way to store the series."""
    rows: list[Score] = []
    with tempfile.TemporaryDirectory() as place:
        for name, syntax in SYNTAXES.items():
            folder = Path(place, name)
            write_series(folder, SLICES, SIZE, syntax)
            rows += series_rows(name, folder)
    return Scores("reading", f"made-up CT, {SLICES} x {SIZE} x {SIZE}", 0, tuple(rows))


def growth() -> Scores:
    """Uncompressed cubes, each beside pydicom."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for size in CUBES:
            folder = Path(place, str(size))
            write_series(folder, size, size, ExplicitVRLittleEndian)
            found = {key: statistics.median(values) for key, values in pairs_of(folder, "pydicom", 3).items()}
            other = found["processor_s of the other"]
            rows += [
                Score(f"{size}^3: processor (s)", found["processor_s"], f"pydicom {other:.3g}"),
                Score(f"{size}^3: wall, ratio", found["wall_s ratio"], "", "<= 1.2"),
                Score(f"{size}^3: ns a voxel, processor", found["processor_s"] / size**3 * 1e9),
                Score(f"{size}^3: MB above the imports", found["mb"]),
            ]
    return Scores("reading", "made-up CT cubes, uncompressed", 0, tuple(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["timed"]:
        print(json.dumps(timed(sys.argv[2], Path(sys.argv[3]))))
    else:
        print((growth if sys.argv[1:] == ["growth"] else measure)().table())
