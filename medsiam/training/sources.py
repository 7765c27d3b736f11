"""The scans of a manifest as tensors on a working grid, read once and kept.

    Case -> Volume -> prepared, finer and larger than the encoder sees -> float16
         -> label map, nearest, on exactly that grid                   -> int16
         -> one safetensors file in the cache

Reading and resampling cost seconds, the kept file milliseconds: a run that is
resumed starts where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel
import numpy as np
import torch
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medsiam.encoding.preparation import PreparationSettings, prepare
from medsiam.errors import InputRefused, ResourceExhausted, TrainingRefused, Unreadable, WeightsRefused
from medsiam.reading import read_volume
from medsiam.reading.archive import NIFTI_ENDINGS
from medsiam.reading.archive import Source as File
from medsiam.reading.nifti import nifti_entry
from medsiam.training.manifest import Case
from medsiam.volume import Grid, Volume
from medsiam.weightfile import read_weights, tensors_digest, write_weights

# Raise it when reading or preparation gives other values: what is kept is then made anew.
CACHE_VERSION = 1

# Patient keys are not used here; this stands for the secret so that no file of it is made.
_NO_KEY = b"training uses no patient key"

# A label map may end this much before the scan's outermost voxel centres: two grids
# of other spacings over one field of view differ by half a voxel.
COVER_VOXELS = 1.0

# Voxel centres that fall between two labels but for the last digit go one way.
TIE = 1e-6

_LABEL_ERRORS = (EOFError, OSError, zlib.error, HeaderDataError, ValueError, OverflowError)
_LABELS = np.iinfo(np.int16)


@dataclass(frozen=True)
class SourceSettings:
    """How scans are kept for training.

    spatial_dims  3 for volumes, 2 for radiographs; the others are left out
    preparation   the working grid: room to turn and shift a scan, and detail to blur,
                  beyond what the encoder sees
    """

    spatial_dims: int = field(default=3, metadata={"range": (2, 3)})
    preparation: PreparationSettings = field(
        default_factory=lambda: PreparationSettings(size_voxels=112, spacing_mm=2.0)
    )


@dataclass(frozen=True, eq=False)
class Source:
    """One scan, ready to be trained on.

    patient_index  whose it is, as the manifest counts
    image          (K, J, I) float16, 0..1, axes towards Superior, Posterior, Left; K is 1
                   for a radiograph, which keeps its own plane
    labels         (K, J, I) int16 on the same grid, 0 outside the map; None without one
    spacing_mm     of the grid, in the plane of a radiograph
    known          label columns that hold a number for this scan
    modality       as the header tells it, "" where it does not
    label_scheme   what the numbers of the labels mean, as the column of that name says
    is_label_map   whether the scan is its own label map, so that the image means nothing
    """

    patient_index: int
    image: torch.Tensor
    labels: torch.Tensor | None
    spacing_mm: float
    known: Mapping[str, float]
    modality: str
    label_scheme: str = ""
    is_label_map: bool = False


@dataclass(frozen=True)
class Skipped:
    """A scan that was left out: its row in the manifest and the code of the error."""

    row: int
    code: str


@dataclass(frozen=True, eq=False)
class Loaded:
    """What could be read, in the order of the cases, and what could not."""

    sources: tuple[Source, ...]
    skipped: tuple[Skipped, ...]


def load_sources(
    cases: Sequence[Case],
    settings: SourceSettings,
    *,
    cache: str | Path,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """The scans of the cases, from the cache where they are kept.

    cache     folder that is made where it is missing
    strict    whether one scan that cannot be read stops it all
    progress  told how many are done, of how many

    Raises TrainingRefused where no scan can be read; with `strict`, the first
    scan's own refusal with its row.
    """
    if not cases:
        raise TrainingRefused("no scan is given to be loaded; check the split in the manifest")
    sources: list[Source] = []
    refusals: list[tuple[int, InputRefused]] = []
    for done, case in enumerate(cases, start=1):
        try:
            sources.append(load_source(case, settings, Path(cache)))
        except InputRefused as refusal:
            if strict:
                raise type(refusal)(f"row {case.row} of the manifest: {refusal}") from refusal
            refusals.append((case.row, refusal))
        if progress is not None:
            progress(done, len(cases))
    if not sources:
        row, first = refusals[0]
        raise TrainingRefused(
            f"none of {len(cases)} scans can be used; the first, row {row} of the manifest: {first}"
        ) from first
    return Loaded(tuple(sources), tuple(Skipped(row, refusal.code) for row, refusal in refusals))


def load_source(case: Case, settings: SourceSettings, cache: Path) -> Source:
    """One scan, from the cache or read and kept there.

    Raises InputRefused where scan or label map cannot be used, ResourceExhausted
    where the cache cannot be written.
    """
    file = cache / f"{_cache_name(case, settings)}.safetensors"
    kept = _kept(file)
    if kept is None:
        kept = _made(case, settings)
        _keep(file, kept)
    known = {name: value for name, value in case.labels.items() if isinstance(value, float)}
    return Source(
        patient_index=case.patient_index,
        image=kept.tensors["image"],
        labels=kept.tensors.get("labels"),
        spacing_mm=kept.spacing_mm,
        known=MappingProxyType(known),
        modality=kept.modality,
        label_scheme=str(case.labels.get("label_scheme", "")),
        is_label_map=case.label_map == case.path,
    )


def read_label_map(path: Path) -> tuple[NDArray[np.int16], Grid]:
    """The labels (K, J, I) of a NIfTI file and where they lie.

    The file's geometry is held to the same rules as a scan's. Unlike a scan, a map
    may be empty: no lesion is an answer. Raises InputRefused where it is no NIfTI
    file, damaged, or holds more than whole numbers of 16 bits.
    """
    if not path.name.lower().endswith(NIFTI_ENDINGS):
        raise Unreadable("the label map is no NIfTI file; write it as .nii.gz on the scan's grid")
    entry = nifti_entry(File(path, size=_stat(path).st_size))
    if entry.refusal is not None:
        raise type(entry.refusal)(f"label map: {entry.refusal}") from entry.refusal
    try:
        values = np.asanyarray(nibabel.load(path).dataobj).reshape(entry.content.shape_ijk)  # type: ignore[attr-defined]
    except _LABEL_ERRORS as error:
        raise Unreadable(f"the label map is damaged ({type(error).__name__}); copy it again") from error
    # The affine of the entry is for (k, j, i) in LPS: only the axes' order is left to do.
    return _whole_numbers(values.transpose(2, 1, 0)), entry.content.grid


def labels_on(target: Grid, labels: NDArray[np.int16], grid: Grid) -> NDArray[np.int16]:
    """The nearest label at each voxel centre of the target; 0 outside the map's grid."""
    matrix = grid.index_from_world @ target.world_from_index
    k, j, i = np.ogrid[tuple(slice(n) for n in target.shape)]
    place = np.zeros(target.shape, dtype=np.int64)
    inside = np.ones(target.shape, dtype=bool)
    for row, size in zip(matrix[:3], grid.shape, strict=True):
        nearest = np.floor(row[0] * k + row[1] * j + row[2] * i + (row[3] + 0.5 + TIE)).astype(np.int64)
        inside &= (nearest >= 0) & (nearest < size)
        place = place * size + np.clip(nearest, 0, size - 1)
    return np.where(inside, labels.ravel()[place], 0).astype(np.int16)


# Making


@dataclass(frozen=True, eq=False)
class _Kept:
    """What the cache holds of one scan: "image", and "labels" where there are any."""

    tensors: Mapping[str, torch.Tensor]
    spacing_mm: float
    modality: str


def _made(case: Case, settings: SourceSettings) -> _Kept:
    volume = read_volume(case.path, key=_NO_KEY)
    if volume.spatial_dims != settings.spatial_dims:
        kinds = {2: "a radiograph (one slice)", 3: "a volume of several slices"}
        raise Unreadable(
            f"the scan is {kinds[volume.spatial_dims]}, the recipe is for {settings.spatial_dims} "
            "dimensions; take it out of the manifest, or choose the other recipe"
        )
    prepared = prepare(volume, settings.preparation)
    tensors = {"image": prepared.values.to(torch.float16)}
    if case.label_map is not None:
        labels, grid = read_label_map(case.label_map)
        _check_covers(grid, volume)
        tensors["labels"] = torch.from_numpy(labels_on(prepared.grid, labels, grid))
    return _Kept(tensors, float(prepared.grid.spacing_mm[1]), volume.acquisition.modality)


def _whole_numbers(values: NDArray[Any]) -> NDArray[np.int16]:
    # The comparison is false for a NaN as well.
    if not bool((values >= _LABELS.min).all() and (values <= _LABELS.max).all()):
        raise Unreadable(
            f"the label map holds values beyond {_LABELS.min} to {_LABELS.max}; number the labels anew"
        )
    labels = values.astype(np.int16)
    if values.dtype.kind == "f" and not np.array_equal(labels, values):
        raise Unreadable("the label map holds fractions; resample it with nearest neighbours, not linearly")
    return np.ascontiguousarray(labels)


def _check_covers(grid: Grid, volume: Volume) -> None:
    index = grid.index(volume.grid.corners_mm())
    beyond = np.maximum(-index, index - (np.array(grid.shape) - 1))
    if beyond.max() > COVER_VOXELS:
        outside_mm = float((beyond.max(axis=0) * grid.spacing_mm).max())
        raise Unreadable(
            f"the scan reaches {outside_mm:.0f} mm beyond its label map; "
            "the map must lie on the scan's grid or cover all of it"
        )


# Keeping


def _cache_name(case: Case, settings: SourceSettings) -> str:
    """Digest of settings and of each file's place, size and time of change.

    Not of the content: hashing it would take as long as reading a scan anew.
    """
    files = [_files(case.path), () if case.label_map is None else _files(case.label_map)]
    told = json.dumps([CACHE_VERSION, asdict(settings), files], sort_keys=True)
    return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()


def _files(path: Path) -> tuple[tuple[str, int, int], ...]:
    """(place, bytes, time of change in ns) of a file, or of every file below a folder."""
    names = [path]
    if path.is_dir():
        names = sorted(Path(folder) / name for folder, _, found in os.walk(path) for name in found)
    stats = [(os.path.abspath(name), _stat(name)) for name in names]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise Unreadable(
            f"a file cannot be opened ({error.strerror}); check the path and its rights"
        ) from error


def _kept(file: Path) -> _Kept | None:
    """What the file holds, None where it is missing or damaged: then it is made anew."""
    if not file.is_file():
        return None
    try:
        found = read_weights(file)
        about = json.loads(found.metadata["source"])
        if about["digest"] != tensors_digest(found.tensors):
            return None
        return _Kept(found.tensors, float(about["spacing_mm"]), str(about["modality"]))
    except (WeightsRefused, KeyError, ValueError, TypeError):
        return None


def _keep(file: Path, kept: _Kept) -> None:
    about = {
        "digest": tensors_digest(kept.tensors),
        "spacing_mm": kept.spacing_mm,
        "modality": kept.modality,
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_weights(file, kept.tensors, {"source": json.dumps(about)})
    except OSError as error:
        raise ResourceExhausted(
            f"the cache {file.parent} cannot be written ({error.strerror}); free some space, or name "
            "another folder"
        ) from error
