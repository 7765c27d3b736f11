"""NIfTI files to entries and volumes; RAS becomes LPS here and nowhere else."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from medsiam.errors import GeometryRefused, InputRefused, ResourceExhausted, Unreadable
from medsiam.reading.archive import Opener, Source
from medsiam.reading.dicom import check_varied, digest
from medsiam.reading.entry import SeriesEntry
from medsiam.reading.pixels import MOST_VOXELS
from medsiam.volume import ORTHOGONALITY_TOLERANCE, Acquisition, Grid, Matrix, Volume

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Beyond this the two geometries of one file put a corner at two places.
CONFLICT_MM = 0.1

# Setting sheared axes upright may move no corner further than this.
UPRIGHT_MM = 0.05

# More voxels without a number than a processing step loses at the border.
MOST_UNDEFINED = 0.01

# Deflate packs zeros 1032 : 1 and no more. Masks were seen at 866 : 1, so the
# ratio alone convicts nobody; a large image of almost nothing is a bomb.
MOST_INFLATION = 1040
LARGE_BYTES, LARGE_INFLATION = 256 * 2**20, 300

# Bytes behind the voxels that writers leave; more is not what the header tells.
MOST_TRAILING_BYTES = 2**20

_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_READ_ERRORS = (
    EOFError, OSError, zlib.error, HeaderDataError, WrapStructError, ValueError, KeyError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class NiftiContent:
    """What reading needs: the file, its grid and how its voxels are stored.

    shape_ijk  as in the file, without axes of length one behind the third
    """

    source: Source
    grid: Grid
    shape_ijk: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float


def nifti_entry(source: Source) -> SeriesEntry:
    """The entry of a NIfTI file, from its header alone; a broken one carries its refusal."""
    try:
        content, notes = _content(source)
    except InputRefused as refusal:
        return _entry(source, Acquisition(), (0, 0, 0), (0.0, 0.0, 0.0), refusal=refusal)
    spacing = content.grid.spacing_mm
    return _entry(
        source,
        Acquisition(assumptions=notes),
        content.grid.shape,
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        content=content,
    )


def read_nifti(entry: SeriesEntry) -> Volume:
    """The volume of a NIfTI entry. Raises Unreadable where the file is damaged or cut short."""
    content: NiftiContent = entry.content
    try:
        values, notes = _values(content)
    except MemoryError as error:
        raise ResourceExhausted(
            f"no memory for an image of {content.grid.shape} voxels; free some"
        ) from error
    check_varied(values)
    acquisition = replace(
        entry.acquisition,
        sha256=digest(values, content.grid),
        assumptions=(*entry.acquisition.assumptions, *notes),
    )
    return Volume(values, content.grid, acquisition)


def _entry(
    source: Source,
    acquisition: Acquisition,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    **values: Any,
) -> SeriesEntry:
    return SeriesEntry(source.base_name, (source.path,), acquisition, shape, spacing, "nifti", **values)


def _opened(source: Source, opener: Opener) -> BinaryIO:
    file = opener.open(source)
    if file.read(2) != b"\x1f\x8b":
        file.seek(0)
        return file
    file.seek(0)
    return gzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[return-value]


def _content(source: Source) -> tuple[NiftiContent, tuple[str, ...]]:
    header = _header(source)
    shape = _shape(header)
    dtype = _dtype(header)
    matrix, notes = _world_from_index(header, shape)
    slope, intercept = _scaling(header)
    content = NiftiContent(
        source=source,
        grid=Grid((shape[2], shape[1], shape[0]), matrix),
        shape_ijk=shape,
        dtype=dtype,
        offset=_offset(header),
        slope=slope,
        intercept=intercept,
    )
    _check_file_size(content)
    return content, notes


def _header(source: Source) -> Any:
    """The header, NIfTI-1 or NIfTI-2, as nibabel reads it."""
    try:
        with Opener() as opener, _opened(source, opener) as file:
            head = file.read(544)
        kind, length = (nibabel.Nifti2Header, 540) if _is_nifti2(head) else (nibabel.Nifti1Header, 348)
        if head[(4 if length == 540 else 344) :][:3] not in (b"n+1", b"n+2"):
            raise Unreadable(
                "no single-file NIfTI (.hdr/.img pairs and Analyze are not read); convert it to .nii.gz"
            )
        return kind(head[:length], check=False)
    except _READ_ERRORS as error:
        raise Unreadable(
            f"the NIfTI header is damaged ({type(error).__name__}); write the file again"
        ) from error


def _is_nifti2(head: bytes) -> bool:
    return head[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")


def _shape(header: Any) -> tuple[int, int, int]:
    dim = [int(n) for n in header["dim"]]
    if not 2 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise Unreadable(
            f"the NIfTI header declares {dim[0]} dimensions of {dim[1:]} voxels; write the file again"
        )
    sizes = [*dim[1 : dim[0] + 1], 1]
    if max(sizes[3:], default=1) > 1:
        raise Unreadable(
            f"an image of {' x '.join(map(str, dim[1 : dim[0] + 1]))} voxels holds several volumes; "
            "split it and give one of them"
        )
    shape = (sizes[0], sizes[1], sizes[2])
    if shape[0] * shape[1] * shape[2] > MOST_VOXELS:
        raise Unreadable(
            f"{shape} voxels are more than the {MOST_VOXELS} that can be read; resample the image"
        )
    if min(shape[:2]) < 2:
        raise GeometryRefused(f"an image of {shape} voxels is a line, no volume; give the whole image")
    return shape


def _dtype(header: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(header.get_data_dtype())
    except _READ_ERRORS as error:
        raise Unreadable("the NIfTI data type is unknown; write the file again") from error
    if dtype.fields or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Unreadable(
            f"voxels of type {dtype} (colour, complex or long) are not read; give real grey values"
        )
    return dtype


def _offset(header: Any) -> int:
    offset = float(header["vox_offset"])
    smallest = 544 if int(header["sizeof_hdr"]) == 540 else 352
    if not offset.is_integer() or not smallest <= offset <= MOST_TRAILING_BYTES * 64:
        raise Unreadable(f"the voxels are said to begin at byte {offset:g}; write the file again")
    return int(offset)


def _scaling(header: Any) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    # The standard: slope 0 means "not scaled". nibabel's older files hold NaN for it.
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise Unreadable(f"values are scaled by {slope} and {intercept}; write the file again")
    return slope, intercept


def _check_file_size(content: NiftiContent) -> None:
    size = content.source.size
    needed = content.offset + int(np.prod(content.shape_ijk)) * content.dtype.itemsize
    is_packed = content.source.base_name.lower().endswith(".gz")
    if needed > (MOST_INFLATION * size if is_packed else size):
        raise Unreadable(
            f"the file has {size} bytes, its header tells {needed} unpacked ones: "
            "it is cut short; copy it again"
        )
    if is_packed and needed > max(LARGE_BYTES, LARGE_INFLATION * size):
        raise Unreadable(
            f"{size} packed bytes declare {needed >> 20} MiB; no scan is that empty, do not trust this file"
        )


def _world_from_index(header: Any, shape: tuple[int, int, int]) -> tuple[Matrix, tuple[str, ...]]:
    """LPS mm from (k, j, i), and what was assumed. Raises GeometryRefused where not told truly."""
    ras_from_ijk = _told_affine(header, shape)
    unit = int(header["xyzt_units"]) & 0x07
    if unit not in _MM_PER_UNIT:
        raise GeometryRefused(f"the unit of length has the unknown number {unit}; write the file in mm")
    notes = () if unit else ("The file does not tell its unit of length; millimetres were assumed.",)
    scale = np.diag([_MM_PER_UNIT[unit]] * 3 + [1.0])
    lps = LPS_FROM_RAS @ scale @ ras_from_ijk
    matrix = lps[:, [2, 1, 0, 3]]
    return _upright(Grid((shape[2], shape[1], shape[0]), matrix)), notes


def _told_affine(header: Any, shape: tuple[int, int, int]) -> Matrix:
    has_q, has_s = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    if not has_q and not has_s:
        raise GeometryRefused("the file tells no geometry (neither qform nor sform); convert the scan again")
    try:
        told = [np.asarray(get(), dtype=np.float64) for has, get in _forms(header, has_q, has_s) if has]
    except _READ_ERRORS as error:
        raise GeometryRefused("the file's geometry is broken (qform); convert the scan again") from error
    if not all(np.isfinite(matrix).all() for matrix in told):
        raise GeometryRefused("the file's geometry holds numbers that are not finite; convert the scan again")
    if len(told) == 2:
        _check_agreement(told[0], told[1], shape)
    return told[0]


def _forms(header: Any, has_q: bool, has_s: bool) -> tuple[tuple[bool, Any], tuple[bool, Any]]:
    return (has_s, header.get_sform), (has_q, header.get_qform)


def _check_agreement(sform: Matrix, qform: Matrix, shape: tuple[int, int, int]) -> None:
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1.0], indexing="ij")).reshape(4, -1)
    apart = float(np.abs((sform - qform) @ corners).max())
    if apart > CONFLICT_MM:
        raise GeometryRefused(
            f"the file tells two geometries (sform and qform) that lie {apart:.2f} mm apart; "
            "write it with the true one in both"
        )


def _upright(grid: Grid) -> Matrix:
    """The matrix, its axes at right angles. Raises GeometryRefused where they are truly sheared."""
    if grid.is_orthogonal:
        return grid.world_from_index
    left, _, right = np.linalg.svd(grid.world_from_index[:3, :3] / grid.spacing_mm)
    matrix = grid.world_from_index.copy()
    matrix[:3, :3] = left @ right * grid.spacing_mm
    middle = (np.array(grid.shape) - 1) / 2
    matrix[:3, 3] = grid.centre_mm - matrix[:3, :3] @ middle
    moved = float(np.abs(Grid(grid.shape, matrix).corners_mm() - grid.corners_mm()).max())
    if moved > UPRIGHT_MM:
        raise GeometryRefused(
            f"the axes are sheared (more than {ORTHOGONALITY_TOLERANCE:g} off right angles, {moved:.2f} "
            "mm at a "
            "corner); resample the image onto an upright grid"
        )
    return matrix


def _values(content: NiftiContent) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    count = int(np.prod(content.shape_ijk))
    raw = np.frombuffer(_voxel_bytes(content, count * content.dtype.itemsize), content.dtype, count)
    # The first axis runs fastest in the file: read backwards this is (k, j, i).
    cells = raw.reshape(content.shape_ijk[::-1])
    with np.errstate(over="ignore", invalid="ignore"):
        if content.slope == 1.0 and content.intercept == 0.0:
            values = cells.astype(np.float32)
        else:
            values = (cells * np.float64(content.slope) + content.intercept).astype(np.float32)
    return _defined(values)


def _voxel_bytes(content: NiftiContent, length: int) -> memoryview:
    """All voxel bytes; a packed file is read to its end so that its checksum counts."""
    wanted = content.offset + length
    try:
        with Opener() as opener, _opened(content.source, opener) as file:
            data = file.read(wanted)
            rest = file.read(MOST_TRAILING_BYTES + 1)
    except _READ_ERRORS as error:
        raise Unreadable(
            f"the file is damaged or cut short ({type(error).__name__}); copy it again"
        ) from error
    if len(data) < wanted:
        raise Unreadable(f"the file ends after {len(data)} of {wanted} bytes: it is cut short; copy it again")
    if len(rest) > MOST_TRAILING_BYTES or len(rest) >= _smallest_face(content):
        raise Unreadable("the file holds more than its header tells; write it again")
    return memoryview(data)[content.offset :]


def _smallest_face(content: NiftiContent) -> int:
    """Bytes that are left over where the header tells one voxel too few along some axis."""
    sizes = sorted(size for size in content.shape_ijk if size > 1)
    return int(np.prod(sizes[:-1])) * content.dtype.itemsize


def _defined(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The values with undefined ones replaced by the lowest; Unreadable where they are many."""
    is_number = np.isfinite(values)
    undefined = values.size - int(is_number.sum())
    if not undefined:
        return values, ()
    if undefined > MOST_UNDEFINED * values.size:
        raise Unreadable(
            f"{undefined / values.size:.1%} of the voxels are not finite numbers, {MOST_UNDEFINED:.0%} "
            "are tolerated; "
            "replace them"
        )
    values[~is_number] = values[is_number].min()
    return values, (f"{undefined} voxels were not finite numbers; the lowest value stands for them.",)
