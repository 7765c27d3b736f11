"""Arrays on a grid as NIfTI files, the same bytes each time.

NIfTI's world is RAS and its arrays are (i, j, k); both are converted here and
nowhere else. NaN becomes 0, since viewers differ in what they make of NaN: in
prior_on_current a 0 beyond the prior's edge therefore means "not scanned".
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medsiam.errors import GeometryRefused
from medsiam.volume import Grid, Matrix

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
KJI_FROM_IJK = np.eye(4)[[2, 1, 0, 3]]
SCANNER_SPACE = 1
MILLIMETRES = "mm"
# A noisy float image repeats itself in nothing but runs: to look for more takes three times as long and
# packs no tighter.
GZIP_WINDOW, LEVEL = 31, 1


def write_nifti(path: Path, array: NDArray[Any], grid: Grid, *, description: str = "") -> None:
    """Writes an array (K, J, I) as .nii.gz, with sform and qform that agree.

    float32 and uint16 are kept as they are.
    Raises GeometryRefused where the axes are sheared, which a qform cannot hold.
    """
    packer = zlib.compressobj(LEVEL, wbits=GZIP_WINDOW, strategy=zlib.Z_RLE)
    packed = packer.compress(nifti_bytes(array, grid, description=description))
    path.write_bytes(packed + packer.flush())


def nifti_bytes(array: NDArray[Any], grid: Grid, *, description: str = "") -> bytes:
    """The bytes of the uncompressed NIfTI file."""
    assert array.shape == grid.shape, f"array {array.shape} and grid {grid.shape} differ in shape"
    assert array.dtype in (np.float32, np.uint16), f"{array.dtype} is not written"
    if not grid.is_orthogonal:
        raise GeometryRefused(
            "the image's axes are sheared, which NIfTI's qform cannot hold; resample it to right angles first"
        )
    values = np.nan_to_num(array, nan=0.0) if array.dtype == np.float32 else array
    image = nib.Nifti1Image(values.transpose(2, 1, 0), None)
    affine = ras_affine(grid)
    image.set_sform(affine, code=SCANNER_SPACE)
    image.set_qform(affine, code=SCANNER_SPACE)
    image.header.set_xyzt_units(MILLIMETRES)
    image.header["descrip"] = description.encode("ascii", errors="replace")[:79]
    content: bytes = image.to_bytes()
    return content


def ras_affine(grid: Grid) -> Matrix:
    """4 x 4, maps (i, j, k, 1) to RAS mm."""
    product: Matrix = RAS_FROM_LPS @ grid.world_from_index @ KJI_FROM_IJK
    return product
