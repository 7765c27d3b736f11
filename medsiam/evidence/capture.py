"""Key images as Secondary Capture: what a reader sees first, in any viewer.

An overview with the verdict, then one image a finding: prior, current and change
side by side with legend, scale and the research-use mark. No name is burned in.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import SecondaryCaptureImageStorage

from medsiam.change.comparison import Finding
from medsiam.evidence.case import RESEARCH_USE, Case, coded, item, save, sizes_of
from medsiam.evidence.seg import segment_label
from medsiam.report import drawing
from medsiam.report.pictures import Scene, finding_panels, overview_tiles, scene_of, slice_name

PANEL_PX = 512
GAP_PX = 8
LINE_PX = 26
TEXT_PX = 19
MARGIN_PX = 12
TILES_ACROSS = 4
# Letters of TEXT_PX that a line of the panels' width holds, with some room to spare.
LETTER_PX = 10.5
SIGNS = {
    "\N{SUPERSCRIPT TWO}": "^2",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{MINUS SIGN}": "-",
    "\N{RIGHTWARDS ARROW}": "->",
}
# As many as the report pictures; the rest stand in the segmentation.
MOST_FINDINGS = 20


def write_key_images(case: Case, folder: Path) -> tuple[Path, ...]:
    """The paths of the key images: the overview, then the findings in the order of their labels."""
    scene = scene_of(case.comparison)
    sheets = [("Overview", overview_sheet(case, scene))]
    for finding in case.comparison.findings[:MOST_FINDINGS]:
        sheets.append((f"Finding {segment_label(finding)}", finding_sheet(case, scene, finding)))
    return tuple(
        save(_capture(case, image, words, n), folder / f"IM{n:04d}.dcm")
        for n, (words, image) in enumerate(sheets, 1)
    )


def finding_sheet(case: Case, scene: Scene, finding: Finding) -> Image.Image:
    """Prior, current and change around one finding, with words above and below."""
    panels = finding_panels(scene, finding, side=PANEL_PX)
    name = slice_name(scene, scene.place(finding)[2])
    heading = f"Finding {finding.label}: {finding.kind}{', slice ' + name if name else ''}"
    titles = (f"Prior {_day(case, prior=True)}", f"Current {_day(case)}", "Change on current")
    return _sheet(list(panels.values()), titles, [heading, _sizes(finding)], 3)


def overview_sheet(case: Case, scene: Scene) -> Image.Image:
    """Evenly spaced slices of the current scan with the change, under the verdict.

    Of a radiograph, prior, current and change.
    """
    comparison = case.comparison
    is_flat = scene.view.plane == "projection"
    tiles = _projections(scene) if is_flat else [tile for _, tile in overview_tiles(scene)]
    titles = ("Prior", "Current", "Change on current") if is_flat else ()
    across = min(TILES_ACROSS, len(tiles))
    width = across * (tiles[0].width + GAP_PX)
    told = f"Prior {_day(case, prior=True)}, current {_day(case)}."
    if comparison.registration.quality == "failed":
        told += " The two could not be laid over each other."
    elif not is_flat:
        told += " Change laid over the current scan."
    lines = _wrapped(f"{comparison.verdict.upper()}: {comparison.summary}", width)
    return _sheet(tiles, titles, [*lines, *_wrapped(told, width)], across)


def _projections(scene: Scene) -> list[Image.Image]:
    """A radiograph as a whole: the prior, the current, and the current with the change."""
    height, width = scene.box.shape
    pixel_height_mm, pixel_width_mm = scene.view.pixel_mm
    px_per_mm = PANEL_PX / max(height * pixel_height_mm, width * pixel_width_mm)
    size = (round(width * pixel_width_mm * px_per_mm), round(height * pixel_height_mm * px_per_mm))
    panels = [
        drawing.enlarged(image, size) for image in (scene.prior(0, scene.box), scene.current(0, scene.box))
    ]
    panels.append(scene.marked(0, scene.box, size))
    for panel in panels:
        drawing.write_edges(panel, scene.view.edges)
        drawing.write_scale(panel, px_per_mm, unit=scene.unit_of_length)
    return panels


def _sheet(
    images: Sequence[Image.Image], titles: Sequence[str], heading: Sequence[str], across: int
) -> Image.Image:
    """Images in rows on black, with lines of text above and the legend below."""
    cell_w, cell_h = (max(getattr(image, side) for image in images) for side in ("width", "height"))
    rows = -(-len(images) // across)
    top = MARGIN_PX + LINE_PX * (len(heading) + bool(titles))
    width = 2 * MARGIN_PX + across * cell_w + (across - 1) * GAP_PX
    legend = _legend_lines(width)
    height = top + rows * (cell_h + GAP_PX) + len(legend) * LINE_PX + 2 * MARGIN_PX
    sheet = Image.new("RGB", (width, height))
    for n, line in enumerate(heading):
        drawing.write(sheet, (MARGIN_PX, MARGIN_PX + n * LINE_PX), line, size=TEXT_PX)
    for n, image in enumerate(images):
        x, y = MARGIN_PX + n % across * (cell_w + GAP_PX), top + n // across * (cell_h + GAP_PX)
        sheet.paste(image.convert("RGB"), (x, y))
        if titles:
            drawing.write(sheet, (x, y - LINE_PX), titles[n], size=TEXT_PX)
    _draw_legend(sheet, legend, top + rows * (cell_h + GAP_PX) + MARGIN_PX)
    return sheet


def _legend_lines(width: int) -> list[tuple[str, drawing.Colour | None]]:
    """The legend's lines: what a colour means, and the mark that no clipping may hide."""
    lines: list[tuple[str, drawing.Colour | None]] = [
        ("new or enlarged: solid orange", drawing.APPEARING),
        ("shrunk or resolved: dashed blue", drawing.RESOLVING),
    ]
    words = f"Tint without outline: differs from the prior within the noise. {RESEARCH_USE}. Made by medsiam."
    return lines + [(line, None) for line in _wrapped(words, width)]


def _draw_legend(sheet: Image.Image, lines: Sequence[tuple[str, drawing.Colour | None]], top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for n, (line, colour) in enumerate(lines):
        y = top + n * LINE_PX
        if colour is not None:
            middle = y + TEXT_PX // 2 + 2
            step = 14 if colour == drawing.RESOLVING else 8
            for x in range(MARGIN_PX, MARGIN_PX + 38, step):
                draw.line((x, middle, x + 8, middle), fill=colour, width=4)
        drawing.write(sheet, (MARGIN_PX + 50 * (colour is not None), y), line, size=TEXT_PX)


def _sizes(finding: Finding) -> str:
    before, after, by, unit = sizes_of(finding)
    return f"{before:.2f} -> {after:.2f} {unit} ({by:+.2f}), p {finding.p_value:.2g}"


def _day(case: Case, *, prior: bool = False) -> str:
    scan = case.comparison.prior if prior else case.comparison.current
    return f"{scan.acquisition.acquired:%Y-%m-%d}" if scan.acquisition.acquired else "(no date)"


def _wrapped(text: str, width_px: int) -> list[str]:
    return textwrap.wrap(_drawable(text), max(20, int((width_px - 2 * MARGIN_PX) / LETTER_PX)))


def _drawable(text: str) -> str:
    """The text in letters that the pictures' typeface has; others stand as a question mark."""
    for sign, words in SIGNS.items():
        text = text.replace(sign, words)
    folded = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return bare.encode("ascii", "replace").decode("ascii")


def _capture(case: Case, image: Image.Image, words: str, instance: int) -> Dataset:
    """One sheet as a Secondary Capture image."""
    ds = case.new_object("key images", SecondaryCaptureImageStorage, "OT", instance=instance)
    ds.SeriesDescription = "medsiam key images (research use)"
    ds.ImageComments = f"{words}. {RESEARCH_USE}."
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.BurnedInAnnotation = "NO"
    ds.PatientOrientation = ""
    ds.DerivationDescription = "Prior, current and change side by side"
    ds.SourceImageSequence = DicomSequence(
        item(
            ReferencedSOPClassUID=header.SOPClassUID,
            ReferencedSOPInstanceUID=header.SOPInstanceUID,
            PurposeOfReferenceCodeSequence=coded(
                "121322", "DCM", "Source image for image processing operation"
            ),
        )
        for header in (case.current_headers[0], case.prior_headers[0])
    )
    pixels = np.asarray(image.convert("RGB"))
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    # An odd number of bytes must be padded.
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    ds["PixelData"].VR = "OB"
    return ds
