"""What the report's viewer shows: prior, current and change as small NIfTI volumes on one grid.

    scene -> crop to the patient -> resample until the budget holds -> turn to RAS -> int16 / int8

Prior and current carry the same scale, so that one window means the same in both;
where their grey levels had to be matched, the prior is told in the current's.
"""

from __future__ import annotations

import base64
import gzip
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsiam.kernels import resampled
from medsiam.report import drawing
from medsiam.report.display import GreyWindow
from medsiam.report.nifti import MILLIMETRES, RAS_FROM_LPS, SCANNER_SPACE
from medsiam.report.pictures import Scene
from medsiam.report.slices import other_numbers
from medsiam.volume import Matrix

Array = NDArray[Any]
Shape = tuple[int, int, int]

# 4 MB once in base64; more shows no more on a screen.
BUDGET_BYTES = 3_000_000
MOST_VOXELS = 3_000_000
# Every WebGL2 that is met in practice takes 3D textures of this side.
LONGEST_SIDE = 1024
COARSER = 1.03
# One slice in so many tells what all will weigh; all are then tried this much coarser than that, since
# to pack them twice is half a second.
SAMPLED_SLICES, CAUTION = 6, 1.02
# Steps of the stored values within the first window, finer than any scan's noise; beyond it they
# go on as far as int16 reaches.
STEPS_IN_WINDOW = 160
# Level 6 takes four times as long and does not make noisy codes smaller.
GZIP_LEVEL = 4
# The hatch where the prior did not reach: its lines and what lies between them.
HATCH = (40, 12)
DARKEST_HU = -1024.0
# A pixel of a downsampled volume averages what it covers, so that thin lines do not flicker.
BLUR_PER_STEP = 0.4
# The change volume: the square of code / OUTLINE is how strongly a voxel is coloured; the sign
# tells the colour. NiiVue's own rule for what lies below its threshold, so both painters agree.
OUTLINE = 127
TINT = {
    "full": OUTLINE,
    "appearing": list(drawing.APPEARING),
    "resolving": list(drawing.RESOLVING),
}
INSIDE = 0.4
DASH_VOXELS = 2


@dataclass(frozen=True, eq=False)
class _Frame:
    """The grid on which the viewer's volumes lie.

    shape          (k, y, x) voxels as displayed
    ras_from_xyk   4 x 4, maps a voxel (x, y, k, 1) to RAS mm
    orientation    nibabel's, from (x, y, k) to the nearest RAS axes
    """

    shape: Shape
    ras_from_xyk: Matrix
    orientation: Array

    @property
    def ras_from_voxel(self) -> Matrix:
        """4 x 4, maps a voxel of the turned volume to RAS mm."""
        xyk_from_voxel = nib.orientations.inv_ornt_aff(self.orientation, self.shape[::-1])
        product: Matrix = self.ras_from_xyk @ xyk_from_voxel
        return product

    def turned(self, array: Array) -> Array:
        """An array (k, y, x) with its axes along right, anterior and head, in this order."""
        out: Array = nib.orientations.apply_orientation(array.transpose(2, 1, 0), self.orientation)
        return out

    def share(self, x: float, y: float, k: float) -> list[float]:
        """A place, given in shares 0..1 of the displayed box, in shares of the turned volume."""
        shares = [0.0, 0.0, 0.0]
        for given, (axis, direction) in zip((x, y, k), self.orientation, strict=True):
            shares[int(axis)] = round(float(given if direction > 0 else 1 - given), 5)
        return shares


def viewer_json(scene: Scene, budget_bytes: int = BUDGET_BYTES) -> dict[str, Any]:
    """Everything the viewer needs: volumes, where findings lie, window, which slices these are.

    budget_bytes  that the packed volumes may weigh together
    """
    frame, volumes = _within_budget(scene, budget_bytes)
    window = scene.current_window
    return volumes | {
        "dims": [frame.shape[axis] for axis in _kji_of(frame)],
        "spacing": [round(float(mm), 5) for mm in np.linalg.norm(frame.ras_from_voxel[:3, :3], axis=0)],
        "lps_from_voxel": np.round(RAS_FROM_LPS @ frame.ras_from_voxel, 6).tolist(),
        "slices": _slices(scene, frame),
        "plane": scene.view.plane,
        "edges": list(scene.view.edges),
        "length_unit": scene.unit_of_length,
        "low": float(window.low),
        "high": float(window.high),
        "unit": "HU" if scene.comparison.current.acquisition.modality == "CT" else "",
        "tint": TINT,
        "findings": [_finding(scene, frame, finding) for finding in scene.comparison.findings],
    }


def _within_budget(scene: Scene, budget_bytes: int) -> tuple[_Frame, dict[str, str]]:
    """The finest grid whose volumes stay within the budget, and they themselves as base64."""
    spacing = _promising_spacing(scene, budget_bytes)
    while True:
        frame = _frame(scene, spacing)
        with ThreadPoolExecutor(3) as pool:
            packed = {
                "prior": pool.submit(
                    _grey, scene, frame, scene.comparison.prior_on_current, scene.prior_window
                ),
                "current": pool.submit(
                    _grey, scene, frame, scene.comparison.current.array, scene.current_window
                ),
                "change": pool.submit(_change, scene, frame),
            }
            files = {name: each.result() for name, each in packed.items()}
        weight = sum(map(len, files.values()))
        if weight <= budget_bytes:
            return frame, {name: base64.b64encode(data).decode("ascii") for name, data in files.items()}
        # Weight goes with the number of voxels, of which at least two axes have fewer.
        spacing *= max(COARSER, float(np.sqrt(weight / budget_bytes)))


def _promising_spacing(scene: Scene, budget_bytes: int) -> float:
    """The spacing to begin with: as fine as a few slices of the current scan promise to be light enough."""
    spacing = _finest_spacing(scene)
    few = replace(scene, slices=scene.slices[::SAMPLED_SLICES])
    tried = len(_grey(few, _frame(few, spacing), scene.comparison.current.array, scene.current_window))
    weight = 2.0 * tried * len(scene.slices) / len(few.slices)
    return spacing * max(1.0, CAUTION * float(np.sqrt(weight / budget_bytes)))


def _box_shape(scene: Scene) -> Shape:
    return len(scene.slices), *scene.box.shape


def _spacing(scene: Scene) -> Array:
    height_mm, width_mm = scene.view.pixel_mm
    return np.array([float(scene.view.grid.spacing_mm[0]), height_mm, width_mm])


def _shape_at(scene: Scene, spacing_mm: float) -> Shape:
    """Voxels (k, y, x) of the box once none is finer than a spacing; a lone slice stays."""
    own, shape = _spacing(scene), np.array(_box_shape(scene))
    wanted = np.maximum(1, np.rint(shape * own / np.maximum(own, spacing_mm))).astype(int)
    k, y, x = (wanted if shape[0] > 1 else np.where([True, False, False], shape, wanted)).tolist()
    return k, y, x


def _finest_spacing(scene: Scene) -> float:
    """The spacing from which on the number of voxels and the longest side are allowed."""
    spacing = float(_spacing(scene).min())
    while True:
        shape = _shape_at(scene, spacing)
        if np.prod(shape) <= MOST_VOXELS and max(shape) <= LONGEST_SIDE:
            return spacing
        spacing *= COARSER


def _frame(scene: Scene, spacing_mm: float) -> _Frame:
    shape = _shape_at(scene, spacing_mm)
    ratio = np.array(_box_shape(scene)) / np.array(shape)
    # Voxels are areas: the first of the coarse ones begins where the first of the fine ones does.
    box_from_stored = np.diag([*ratio[::-1], 1.0])
    start = np.array([scene.box.left, scene.box.top, scene.slices.start])
    box_from_stored[:3, 3] = start + (ratio[::-1] - 1) / 2
    lps_from_xyk = _lps_from_picture(scene) @ box_from_stored
    ras_from_xyk = RAS_FROM_LPS @ lps_from_xyk
    return _Frame(shape, ras_from_xyk, nib.orientations.io_orientation(ras_from_xyk))


def _lps_from_picture(scene: Scene) -> Matrix:
    """4 x 4, maps (x, y, k) of a displayed slice to LPS mm.

    A radiograph is laid into the axial plane as it is displayed: its own matrix says
    nothing of the patient.
    """
    if scene.view.plane == "projection":
        height_mm, width_mm = scene.view.pixel_mm
        return np.diag([width_mm, height_mm, 1.0, 1.0])
    return scene.view.world_from_picture


def _cut(scene: Scene, array: Array) -> Array:
    """The box's part of an array (K, J, I), as displayed (k, y, x)."""
    box = scene.box
    shown = [scene.view.slice(array, k)[box.top : box.bottom, box.left : box.right] for k in scene.slices]
    return np.stack(shown)


def _resampled(array: Array, shape: Shape) -> NDArray[np.float32]:
    """An array averaged down to a shape; the same array where it has that shape."""
    values = np.asarray(array, dtype=np.float32)
    if values.shape == shape:
        return values
    ratio = np.array(values.shape) / np.array(shape)
    blurred = ndimage.gaussian_filter(values, BLUR_PER_STEP * (ratio - 1), mode="nearest")
    # Voxels are areas: the middle of a coarse one lies in the middle of those that it covers.
    fine_from_coarse = np.column_stack([np.diag(ratio), (ratio - 1) / 2])
    return resampled(blurred[None], fine_from_coarse[None], shape, border=True)[0]


def _grey(scene: Scene, frame: _Frame, array: Array, window: GreyWindow) -> bytes:
    """A scan as int16 NIfTI whose scale is the current's; hatched where it did not reach."""
    cut = _cut(scene, array)
    is_ct = scene.comparison.current.acquisition.modality == "CT"
    floor = DARKEST_HU if is_ct else window.low
    seen = np.isfinite(cut)
    values = _resampled(np.where(seen, cut, floor), frame.shape)
    step = (window.high - window.low) / STEPS_IN_WINDOW
    codes = np.rint((np.maximum(values, floor) - window.low) / step)
    if not seen.all():
        hatch = np.where(np.indices(frame.shape).sum(axis=0) % 8 < 2, *HATCH)
        codes = np.where(_resampled(~seen, frame.shape) > 0.5, hatch, codes)
    codes = np.clip(codes, -32768, 32767).astype(np.int16)
    current = scene.current_window
    return _nifti(frame, codes, (current.high - current.low) / STEPS_IN_WINDOW, current.low)


def _change(scene: Scene, frame: _Frame) -> bytes:
    """Signed change as int8 NIfTI: tints as in the pictures, the findings' outlines at both ends."""
    change = _resampled(np.nan_to_num(_cut(scene, scene.comparison.change_map)), frame.shape)
    strength = (np.abs(change) - drawing.FAINTEST_CHANGE) / (1 - drawing.FAINTEST_CHANGE)
    steps = np.ceil(np.clip(strength, 0, 1) * drawing.TINT_STEPS) / drawing.TINT_STEPS
    share = np.sqrt(steps * drawing.STRONGEST_TINT)
    stored = np.rint(np.sign(change) * share * OUTLINE).astype(np.int8)
    masks = [scene.masks(k, scene.box) for k in scene.slices]
    for side, sign in ((0, 1), (1, -1)):
        stored[_outline(np.stack([mask[side] for mask in masks]), frame.shape, dashed=sign < 0)] = (
            sign * OUTLINE
        )
    return _nifti(frame, stored, 1.0 / OUTLINE, 0.0)


def _outline(mask: Array, shape: Shape, *, dashed: bool) -> NDArray[np.bool_]:
    """Voxels just outside a mask, within its slices, so that nothing of a finding is hidden."""
    inside = _resampled(mask, shape) > INSIDE
    in_slice = ndimage.generate_binary_structure(2, 1)[None]
    ring: NDArray[np.bool_] = ndimage.binary_dilation(inside, in_slice) & ~inside
    if dashed:
        ring &= np.indices(shape).sum(axis=0) // DASH_VOXELS % 2 == 0
    return ring


def _nifti(frame: _Frame, codes: Array, slope: float, inter: float) -> bytes:
    """Codes (k, y, x) as .nii.gz, the same bytes each time."""
    image = nib.Nifti1Image(frame.turned(codes), None)
    image.set_sform(frame.ras_from_voxel, code=SCANNER_SPACE)
    image.header.set_zooms(np.linalg.norm(frame.ras_from_voxel[:3, :3], axis=0))
    image.header.set_xyzt_units(MILLIMETRES)
    image.header.set_slope_inter(slope, inter)
    return gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0)


def _kji_of(frame: _Frame) -> list[int]:
    """Which axis of the frame's shape (k, y, x) each axis of the turned volume is."""
    own = [0, 0, 0]
    for place, (axis, _) in enumerate(frame.orientation):
        own[int(axis)] = 2 - place
    return own


def _slices(scene: Scene, frame: _Frame) -> dict[str, Any]:
    """Which axis of the turned volume runs through the scan's own slices, and their numbers."""
    axis, direction = frame.orientation[2]
    numbers = other_numbers(scene.comparison.current)
    return {
        "axis": int(axis),
        "is_reversed": bool(direction < 0),
        "first": scene.slices.start + 1,
        "count": len(scene.slices),
        "of": scene.view.grid.shape[0],
        "images": [numbers[k] for k in scene.slices] if numbers else None,
    }


def _finding(scene: Scene, frame: _Frame, finding: Any) -> dict[str, Any]:
    """Where the viewer goes for a finding, in shares of the turned volume."""
    x, y, k = scene.place(finding)
    rows, columns = scene.box.shape
    return {
        "label": finding.label,
        "kind": finding.kind,
        "at": frame.share(
            (x + 0.5 - scene.box.left) / columns,
            (y + 0.5 - scene.box.top) / rows,
            (k + 0.5 - scene.slices.start) / len(scene.slices),
        ),
    }
