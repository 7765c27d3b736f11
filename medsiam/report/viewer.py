"""The slices that the report's viewer scrolls through, as plain JSON values.

Prior and current travel as grey JPEGs over a range wider than the window they
are first shown in, so that a reader can open the window; change travels as a
translucent PNG of twice the size, only for slices that have any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from medsiam.report import drawing
from medsiam.report.display import GreyWindow, place_text
from medsiam.report.pictures import Scene

# Together about 4 MB once in base64: the whole report stays below 8 MB.
BUDGET_BYTES = 3_000_000
MOST_SLICES = 96
MOST_PIXELS = 4_500_000
LONGEST_SIDE_PX = 1024
SMALLEST_SCALE = 0.1
QUALITY = 84
OVERLAY_SCALE = 2
# The stored range reaches this share of the window beyond its white end.
HEADROOM = 0.6


def viewer_json(scene: Scene) -> dict[str, Any]:
    """Everything the viewer needs: slices, places of findings, window, orientation."""
    chosen = _slices(scene)
    scale = min(1.0, LONGEST_SIDE_PX / max(scene.box.shape), _scale_for(len(chosen), scene.box.shape))
    stacks = _stacks(scene, chosen, scale)
    while _weight(stacks) > BUDGET_BYTES and scale > SMALLEST_SCALE:
        scale *= 0.8
        stacks = _stacks(scene, chosen, scale)
    return _frame(scene, chosen, _size(scene, scale)) | stacks


def _frame(scene: Scene, chosen: list[int], size: tuple[int, int]) -> dict[str, Any]:
    """What holds for all slices: size in px and mm, orientation, window, findings."""
    height_mm, width_mm = scene.view.pixel_mm
    stored = stored_window(scene.current_window)
    return {
        "width": size[0],
        "height": size[1],
        "length_unit": scene.unit_of_length,
        "width_mm": round(scene.box.shape[1] * width_mm, 2),
        "height_mm": round(scene.box.shape[0] * height_mm, 2),
        "slices": [{"number": k + 1, "of": scene.view.grid.shape[0]} for k in chosen],
        "edges": list(scene.view.edges),
        "black": round(255 * (scene.current_window.low - stored.low) / (stored.high - stored.low), 2),
        "white": round(255 * (scene.current_window.high - stored.low) / (stored.high - stored.low), 2),
        "unit": "HU" if scene.comparison.current.acquisition.modality == "CT" else "",
        "low": round(stored.low, 3),
        "high": round(stored.high, 3),
        "findings": [_finding(scene, chosen, finding) for finding in scene.comparison.findings],
    }


def stored_window(window: GreyWindow) -> GreyWindow:
    """The range that is stored for a window; wider, so that the window can be opened."""
    width = window.high - window.low
    return GreyWindow(window.low - HEADROOM * width / 4, window.high + HEADROOM * width)


def _finding(scene: Scene, chosen: list[int], finding: Any) -> dict[str, Any]:
    """Where the viewer goes for a finding: shares of width and height, and the slice's place."""
    x, y, k = scene.place(finding)
    rows, columns = scene.box.shape
    return {
        "label": finding.label,
        "kind": finding.kind,
        "x": round((x + 0.5 - scene.box.left) / columns, 5),
        "y": round((y + 0.5 - scene.box.top) / rows, 5),
        "slice": int(np.argmin(np.abs(np.array(chosen) - k))),
        "place": place_text(scene.view, np.array(finding.centre_lps_mm)),
    }


def _slices(scene: Scene) -> list[int]:
    """The slices that hold the patient, thinned where they are too many, findings' own kept."""
    step = -(-len(scene.slices) // MOST_SLICES)
    own = {scene.place(finding)[2] for finding in scene.comparison.findings}
    return sorted(set(scene.slices[::step]) | own)


def _scale_for(slices: int, shape: tuple[int, int]) -> float:
    return float(np.sqrt(MOST_PIXELS / (slices * shape[0] * shape[1])))


def _size(scene: Scene, scale: float) -> tuple[int, int]:
    """Width and height in px of a stored slice."""
    rows, columns = scene.box.shape
    return max(1, round(columns * scale)), max(1, round(rows * scale))


def _stacks(scene: Scene, chosen: list[int], scale: float) -> dict[str, list[str]]:
    """The three stacks as data: URLs; "" for a slice without change."""
    size = _size(scene, scale)
    return {
        "prior": [_grey(scene, "prior", k, size) for k in chosen],
        "current": [_grey(scene, "current", k, size) for k in chosen],
        "change": [_change(scene, k, size) for k in chosen],
    }


def _grey(scene: Scene, which: str, k: int, size: tuple[int, int]) -> str:
    wide = Scene(
        scene.comparison,
        scene.view,
        scene.box,
        scene.slices,
        stored_window(scene.prior_window),
        stored_window(scene.current_window),
    )
    values = wide.prior(k, scene.box) if which == "prior" else wide.current(k, scene.box)
    image = Image.fromarray(np.ascontiguousarray(values))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return drawing.data_url(drawing.encode_jpeg(image, QUALITY), "image/jpeg")


def _change(scene: Scene, k: int, size: tuple[int, int]) -> str:
    """Tint and outlines of one slice as a translucent PNG, "" where there is nothing."""
    appearing, resolving = scene.masks(k, scene.box)
    tint = drawing.tint_image(scene.change(k, scene.box))
    if not (np.asarray(tint)[..., 3].any() or appearing.any() or resolving.any()):
        return ""
    large = (size[0] * OVERLAY_SCALE, size[1] * OVERLAY_SCALE)
    image = drawing.draw_outlines(tint.resize(large, Image.Resampling.BILINEAR), appearing, resolving)
    return drawing.data_url(drawing.encode_png(image), "image/png")


def _weight(stacks: dict[str, list[str]]) -> int:
    return sum(len(url) for stack in stacks.values() for url in stack) * 3 // 4
