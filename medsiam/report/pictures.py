"""A comparison's pictures: each finding beside its past, the overview, the registration.

scene = scene_of(comparison)          what is shown, which way up, how grey
finding_pictures(scene, finding)      place | prior | current | change
overview_picture(scene)               current with signed change, evenly spaced slices
checkerboard_picture(scene)           prior and current in alternate squares
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medsiam.change.comparison import Comparison, Finding
from medsiam.report import drawing
from medsiam.report.display import Box, GreyWindow, View, body_box, view_of, windows_of
from medsiam.report.drawing import Picture
from medsiam.report.slices import other_numbers, shown_slice
from medsiam.volume import Volume

Array = NDArray[Any]

APPEARING_KINDS = frozenset({"new", "enlarged"})

PANEL_PX = 300
# A lesion of 3 mm is seen with what lies around it: the vessel, the sulcus, the ventricle.
FIELD_MM = 70.0
FIELD_OF_PROJECTION = 0.4
OVERVIEW_TILES = 12
TILE_PX = 300
CHECKER_TILE_PX = 420
LONE_TILE_PX = 760
CHECKER_TILES = 3
CHECKER_SQUARE_MM = 18.0
CHECKERS_ACROSS_PROJECTION = 10


def is_sized(scan: Volume) -> bool:
    """Whether the size of a pixel is known, or 1 mm stands for it."""
    return bool(scan.acquisition.protocol.get("pixel_size_known", True))


@dataclass(frozen=True, eq=False)
class Scene:
    """What the pictures of one comparison share.

    box      the part of each slice that holds the patient, and every finding
    slices   the slices that hold the patient
    """

    comparison: Comparison
    view: View
    box: Box
    slices: range
    prior_window: GreyWindow
    current_window: GreyWindow

    @property
    def is_matched(self) -> bool:
        """Whether the prior's grey levels had to be fitted to the current's."""
        return self.prior_window != self.current_window

    @property
    def unit_of_length(self) -> str:
        """ "mm", or "px" where the size of a pixel is not known and 1 mm stands for it."""
        return "mm" if is_sized(self.comparison.current) else "px"

    def prior(self, k: int, box: Box) -> NDArray[np.uint8]:
        """Grey values of the prior's slice k in a box, hatched where it did not reach."""
        values = _cut(self.view.slice(self.comparison.prior_on_current, k), box)
        return drawing.hatched(self.prior_window.grey(values), ~np.isfinite(values))

    def current(self, k: int, box: Box) -> NDArray[np.uint8]:
        """Grey values of the current's slice k in a box."""
        return self.current_window.grey(_cut(self.view.slice(self.comparison.current.array, k), box))

    def change(self, k: int, box: Box) -> Array:
        """Change -1..1 of slice k in a box."""
        return _cut(self.view.slice(self.comparison.change_map, k), box)

    def masks(self, k: int, box: Box) -> tuple[Array, Array]:
        """Where findings of slice k appear or grow, and where they resolve or shrink."""
        labels = _cut(self.view.slice(self.comparison.labels, k), box)
        appearing = [f.label for f in self.comparison.findings if f.kind in APPEARING_KINDS]
        resolving = [f.label for f in self.comparison.findings if f.kind not in APPEARING_KINDS]
        return np.isin(labels, appearing), np.isin(labels, resolving)

    def marked(self, k: int, box: Box, size: tuple[int, int], *, width: int = 2) -> Image.Image:
        """The current's slice k with signed change and outlines, as an image of a size."""
        image = drawing.tinted(drawing.enlarged(self.current(k, box), size), self.change(k, box))
        return drawing.draw_outlines(image, *self.masks(k, box), width=width)

    def place(self, finding: Finding) -> tuple[float, float, int]:
        """Displayed column, row and slice at which a finding is shown.

        Its centre; the nearest slice that holds it where the centre's slice does not.
        """
        x, y, _ = self.view.locate(np.array(finding.centre_lps_mm))
        return x, y, shown_slice(self.comparison, finding)


@dataclass(frozen=True)
class FindingPictures:
    """One finding: where it lies, then prior, current and change around it."""

    place: Picture
    prior: Picture
    current: Picture
    change: Picture


def scene_of(comparison: Comparison) -> Scene:
    """The view, crop and grey windows for all pictures of a comparison."""
    view = view_of(comparison.current)
    prior_window, current_window = windows_of(comparison.current, comparison.prior_on_current)
    box, slices = body_box(view, comparison.current, current_window)
    box, slices = _with_findings(view, comparison.labels, box, slices)
    return Scene(comparison, view, box, slices, prior_window, current_window)


def finding_pictures(scene: Scene, finding: Finding) -> FindingPictures:
    """The four pictures of a finding, at the slice through its centre."""
    x, y, k = scene.place(finding)
    words = f"of finding {finding.label} ({finding.kind}){_in_slice(scene, k)}"
    images = finding_panels(scene, finding)
    return FindingPictures(
        place=_place_picture(scene, _field(scene, finding, x, y), k, f"Place {words}, in the current scan"),
        prior=drawing.as_picture(images["prior"], f"Prior scan around the place {words}"),
        current=drawing.as_picture(images["current"], f"Current scan around the place {words}"),
        change=drawing.as_picture(images["change"], f"Current scan with marked change {words}"),
    )


def finding_panels(scene: Scene, finding: Finding, *, side: int = PANEL_PX) -> dict[str, Image.Image]:
    """Prior, current and change around a finding, lettered and with a scale, so many px a side."""
    x, y, k = scene.place(finding)
    field = _field(scene, finding, x, y)
    size, px_per_mm = _size(field, scene.view, side)
    images = {
        "prior": drawing.enlarged(scene.prior(k, field), size),
        "current": drawing.enlarged(scene.current(k, field), size),
        "change": scene.marked(k, field, size),
    }
    for image in images.values():
        drawing.write_edges(image, scene.view.edges)
        drawing.write_scale(image, px_per_mm, unit=scene.unit_of_length)
    return images


def overview_pictures(scene: Scene) -> tuple[Picture, ...]:
    """Evenly spaced slices of the current scan with the signed change laid over them."""
    return tuple(
        drawing.as_picture(tile, f"Current scan with marked change{_in_slice(scene, k)}")
        for k, tile in overview_tiles(scene)
    )


def overview_tiles(scene: Scene) -> tuple[tuple[int, Image.Image], ...]:
    """The overview's slices: their number, and the image."""
    chosen = _evenly(scene.slices, OVERVIEW_TILES)
    size, px_per_mm = _size(scene.box, scene.view, TILE_PX if len(chosen) > 1 else LONE_TILE_PX)
    tiles = []
    for k in chosen:
        tile = scene.marked(k, scene.box, size, width=1)
        _name_slice(scene, tile, k)
        if k == chosen[0]:
            drawing.write_scale(tile, px_per_mm, unit=scene.unit_of_length)
        tiles.append((k, tile))
    return tuple(tiles)


def checkerboard_pictures(scene: Scene) -> tuple[Picture, ...]:
    """Slices in which squares of the prior (amber) and of the current (grey) alternate."""
    chosen = _evenly(scene.slices, CHECKER_TILES)
    size, px_per_mm = _size(scene.box, scene.view, CHECKER_TILE_PX if len(chosen) > 1 else LONE_TILE_PX)
    square = CHECKER_SQUARE_MM * px_per_mm
    if scene.view.plane == "projection":
        square = size[0] / CHECKERS_ACROSS_PROJECTION
    rows, columns = (np.arange(side) // square for side in size[::-1])
    from_prior = ((rows[:, None] + columns) % 2 == 0)[..., None]
    tiles = []
    for k in chosen:
        prior = drawing.amber(np.asarray(drawing.enlarged(scene.prior(k, scene.box), size)))
        current = np.asarray(drawing.enlarged(scene.current(k, scene.box), size))[..., None]
        tile = Image.fromarray(np.where(from_prior, prior, current))
        _name_slice(scene, tile, k)
        tiles.append(drawing.as_picture(tile, f"Checkerboard of prior and current{_in_slice(scene, k)}"))
    return tuple(tiles)


def slice_name(scene: Scene, k: int) -> str:
    """A slice's number, counted from one, and the archive's where that differs; "" for a radiograph."""
    if scene.view.plane == "projection":
        return ""
    numbers = other_numbers(scene.comparison.current)
    return f"{k + 1}/{scene.view.grid.shape[0]}" + (f" (image {numbers[k]})" if numbers else "")


def _in_slice(scene: Scene, k: int) -> str:
    name = slice_name(scene, k)
    return f", slice {name}" if name else ""


def _place_picture(scene: Scene, field: Box, k: int, alt: str) -> Picture:
    """The whole slice with the enlarged field framed, on a square of its own."""
    size, px_per_mm = _size(scene.box, scene.view, PANEL_PX)
    image = drawing.enlarged(scene.current(k, scene.box), size)
    height_mm, width_mm = scene.view.pixel_mm
    left, right = ((x - scene.box.left) * width_mm * px_per_mm for x in (field.left, field.right))
    top, bottom = ((y - scene.box.top) * height_mm * px_per_mm for y in (field.top, field.bottom))
    # A field at the edge of the scan may reach beyond the cropped slice: close its frame there.
    ends = np.clip([left, top, right, bottom], 1, [size[0] - 2, size[1] - 2] * 2)
    drawing.mark_box(image, tuple(ends.tolist()))
    square = Image.new("L", (PANEL_PX, PANEL_PX))
    square.paste(image, ((PANEL_PX - size[0]) // 2, (PANEL_PX - size[1]) // 2))
    drawing.write_edges(square, scene.view.edges)
    _write_number(scene, square, k)
    return drawing.as_picture(square, alt)


def _with_findings(view: View, labels: Array, box: Box, slices: range) -> tuple[Box, range]:
    """Box and slices widened so that no finding is cut off."""
    for bounds in ndimage.find_objects(labels):
        if bounds is None:
            continue
        ends = np.array([[axis.start, axis.stop - 1] for axis in bounds] + [[1, 1]])
        shown = np.sort(view.picture_from_voxel @ ends, axis=1).astype(int)
        (left, right), (top, bottom), (first_k, last_k) = shown[:3].tolist()
        box = Box(
            min(box.top, top), min(box.left, left), max(box.bottom, bottom + 1), max(box.right, right + 1)
        )
        slices = range(min(slices.start, first_k), max(slices.stop, last_k + 1))
    return box, slices


def _field(scene: Scene, finding: Finding, x: float, y: float) -> Box:
    """A square field in mm around a finding, inside the slice."""
    rows, columns = scene.view.shape
    height_mm, width_mm = scene.view.pixel_mm
    larger_ml = max(finding.volume_prior_ml or 0.0, finding.volume_current_ml or 0.0)
    radius_mm = (3 * larger_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    field_mm = max(FIELD_MM, 6 * radius_mm)
    if scene.view.plane == "projection":
        field_mm = FIELD_OF_PROJECTION * min(rows * height_mm, columns * width_mm)
    down, across = min(rows, round(field_mm / height_mm)), min(columns, round(field_mm / width_mm))
    top = int(np.clip(round(y) - down // 2, 0, rows - down))
    left = int(np.clip(round(x) - across // 2, 0, columns - across))
    return Box(top, left, top + max(down, 1), left + max(across, 1))


def _size(box: Box, view: View, side: int) -> tuple[tuple[int, int], float]:
    """Width and height in px of a box whose longer side is given, and px per mm."""
    height_mm, width_mm = box.shape[0] * view.pixel_mm[0], box.shape[1] * view.pixel_mm[1]
    px_per_mm = side / max(height_mm, width_mm)
    return (max(1, round(width_mm * px_per_mm)), max(1, round(height_mm * px_per_mm))), px_per_mm


def _name_slice(scene: Scene, tile: Image.Image, k: int) -> None:
    drawing.write_edges(tile, scene.view.edges, size=13)
    _write_number(scene, tile, k)


def _write_number(scene: Scene, image: Image.Image, k: int) -> None:
    # In two lines, so that it never reaches the letter in the middle.
    drawing.write(image, (6, 5), slice_name(scene, k).replace(" (", "\n("), size=13)


def _evenly(slices: range, count: int) -> list[int]:
    """About count slices at equal distances, the outermost tenth left out where there are many."""
    if len(slices) <= count:
        return list(slices)
    trim = len(slices) // 10
    return [int(k) for k in np.rint(np.linspace(slices.start + trim, slices.stop - 1 - trim, count))]


def _cut(shown: Array, box: Box) -> Array:
    return shown[box.top : box.bottom, box.left : box.right]
