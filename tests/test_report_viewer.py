"""The report's viewer in a real browser, drawn by NiiVue and, without WebGL2, by a canvas.

Both must show the same: each test runs with both, on a page that is opened once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medsiam.report import write_comparison
from tests import comparison_maker as maker
from tests.test_report_chromium import CHROMIUM, Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

PAINTERS = ("niivue", "canvas")
# The axis of the volume that lies across each plane.
ACROSS = {"axial": 0, "coronal": 0, "sagittal": 1}
# Axes k, j, i of two acquisitions; that all 48 ways are stored alike is for test_report_volumes.py.
GRIDS = {
    "axial-backwards": ((0, 0, -1), (0, -1, 0), (-1, 0, 0)),
    "sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}


class Reader:
    """Someone who reads one page."""

    def __init__(self, browser: Browser, painter: str) -> None:
        self.browser, self.painter = browser, painter

    def open(self, page: Path, **options: Any) -> None:
        self.browser.open(page, **options)
        self.browser.wait_for(f"document.getElementById('viewer').dataset.painter === '{self.painter}'")

    def told(self, name: str) -> str:
        return str(self.browser.value(f"document.getElementById('viewer').dataset.{name}"))

    def place(self) -> tuple[float, ...]:
        """LPS mm of the crosshair."""
        return tuple(float(mm) for mm in self.told("place").split())

    def tile(self, panel: str, plane: str) -> dict[str, float]:
        tiles = json.loads(
            self.browser.value(f"document.querySelector('canvas[data-panel={panel}]').dataset.tiles")
        )
        return next(tile for tile in tiles if tile["plane"] == plane)

    def pixel(self, panel: str, plane: str, across: float, down: float) -> list[int]:
        """Red, green and blue at shares of a plane's width and height."""
        tile = self.tile(panel, plane)
        x, y = tile["x"] + across * tile["width"], tile["y"] + down * tile["height"]
        found: list[int] = self.browser.value(
            f"[...document.querySelector('canvas[data-panel={panel}]').getContext('2d')"
            f".getImageData({x}, {y}, 1, 1).data].slice(0, 3)"
        )
        return found

    def mouse(self, kind: str, panel: str, plane: str, across: float, down: float, **more: Any) -> None:
        tile = self.tile(panel, plane)
        left, top = self.browser.value(
            f"(() => {{ const b = document.querySelector('canvas[data-panel={panel}]')"
            ".getBoundingClientRect(); return [b.left, b.top]; })()"
        )
        x, y = left + tile["x"] + across * tile["width"], top + tile["y"] + down * tile["height"]
        self.browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, panel: str, plane: str, across: float, down: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, panel, plane, across, down, button="left", clickCount=1)

    def settle(self) -> None:
        self.browser.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def plain(self) -> None:
        """The crosshair out of the way, finding 1 in sight."""
        self.browser.value("document.querySelector('.findings a[href=\"#finding-1\"]').click()")
        self.browser.value("document.getElementById('reset').click()")
        for name, wanted in (("crosshair", "false"), ("overlay", "true")):
            self.browser.value(
                f"(() => {{ const b = document.getElementById('{name}');"
                f" if (b.getAttribute('aria-pressed') !== '{wanted}') b.click(); }})()"
            )
        self.browser.value("document.querySelector('[data-view=three]').click()")
        self.browser.value("document.getElementById('stage').scrollIntoView({behavior: 'instant'})")
        self.settle()


@pytest.fixture(scope="module", params=PAINTERS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp(request.param)
    browser = Browser(folder / "profile", has_webgl=request.param == "niivue")
    write_comparison(maker.comparison(), folder, formats=("html",))
    reader = Reader(browser, request.param)
    reader.open(folder / "report.html")
    yield reader
    browser.close()


def test_the_viewer_opens_without_a_complaint_and_asks_the_network_for_nothing(reader):
    """No policy violation, no console error, no request: NiiVue needs neither eval nor a worker."""
    assert reader.browser.complaints() == []
    assert reader.browser.value("document.getElementById('viewer').hidden") is False


def test_the_new_place_is_bright_in_current_dark_in_prior_and_orange_in_change(reader):
    """The pixels themselves, in each plane, at the crosshair."""
    reader.plain()
    at = reader.browser.value("JSON.parse(document.getElementById('volumes').textContent).findings[0].at")

    for plane, (across, down) in {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}.items():
        where = plane, 1 - at[across], 1 - at[down]
        prior, current, change = (reader.pixel(panel, *where) for panel in ("prior", "current", "change"))
        assert current[0] > prior[0] + 30
        assert current[0] == current[2] and change[0] > change[2] + 20


def test_a_finding_s_number_moves_the_crosshair_to_its_centre(reader):
    """Read back from the page, within half a stored voxel of the centre in report.json."""
    reader.plain()
    reader.browser.click('.findings a[href="#finding-2"]')
    reader.browser.wait_for("document.getElementById('viewer').dataset.finding === '2'")

    off = [abs(a - b) for a, b in zip(reader.place(), maker.PLACE_OF_RESOLVED, strict=True)]

    assert all(each <= half for each, half in zip(off, (1.01, 1.01, 2.01), strict=True))


def test_the_wheel_scrolls_the_plane_under_the_pointer(reader):
    """Head to feet over the axial plane, right to left over the sagittal one."""
    reader.plain()
    start = reader.place()

    reader.mouse("mouseWheel", "prior", "axial", 0.5, 0.5, deltaX=0, deltaY=50)
    reader.browser.wait_for(f"document.getElementById('viewer').dataset.place.split(' ')[2] != {start[2]}")
    after_axial = reader.place()
    reader.mouse("mouseWheel", "current", "sagittal", 0.5, 0.5, deltaX=0, deltaY=50)
    reader.browser.wait_for(f"document.getElementById('viewer').dataset.place.split(' ')[0] != {start[0]}")

    assert after_axial == (start[0], start[1], pytest.approx(start[2] + 4.0))
    assert reader.place()[1:] == after_axial[1:]


def test_keys_scroll_and_lead_to_findings(reader):
    reader.plain()
    reader.browser.value("document.getElementById('stage').focus()")
    start = int(reader.told("slice"))

    reader.browser.press("ArrowDown")
    below = int(reader.told("slice"))
    reader.browser.press("p")

    assert below == start + 1
    assert reader.told("finding") == "2"


def test_a_click_moves_the_crosshair_in_all_scans_and_planes(reader):
    """Clicked in the prior's coronal plane: left-right and head-feet follow, depth stays."""
    reader.plain()
    before = reader.place()

    reader.click("prior", "coronal", 0.25, 0.75)
    reader.settle()
    left, behind, up = reader.place()

    assert left < 0 and up < 0 and behind == pytest.approx(before[1])


def test_dragging_changes_one_window_for_both_scans(reader):
    """Higher level, darker tissue, alike in prior and current: their scale is one."""
    reader.plain()
    where = "axial", 0.3, 0.6
    before = [reader.pixel(panel, *where)[0] for panel in ("prior", "current")]

    reader.mouse("mousePressed", "current", "axial", 0.5, 0.6, button="left", clickCount=1)
    reader.mouse("mouseMoved", "current", "axial", 0.5, 0.3, button="left", buttons=1)
    reader.mouse("mouseReleased", "current", "axial", 0.5, 0.3, button="left", clickCount=1)
    reader.settle()
    after = [reader.pixel(panel, *where)[0] for panel in ("prior", "current")]

    assert abs(before[0] - before[1]) <= 2 and abs(after[0] - after[1]) <= 2
    assert abs(after[0] - before[0]) > 20


def test_change_fades_with_its_slider_and_goes_with_its_button(reader):
    reader.plain()
    at = reader.browser.value("JSON.parse(document.getElementById('volumes').textContent).findings[0].at")
    where = "change", "axial", 1 - at[0], 1 - at[1]

    def orange() -> int:
        reader.settle()
        red, _, blue = reader.pixel(*where)
        return red - blue

    full = orange()
    reader.browser.value(
        "(() => { const o = document.getElementById('opacity'); o.value = 50;"
        " o.dispatchEvent(new Event('input')); })()"
    )
    half = orange()
    reader.browser.click("#overlay")
    reader.browser.value("document.getElementById('stage').scrollIntoView({behavior: 'instant'})")

    assert full > half + 10 > 10
    assert orange() == 0


def test_one_plane_can_have_the_whole_screen(reader):
    reader.plain()
    small = reader.tile("prior", "coronal")["width"]

    reader.browser.click("[data-view=coronal]")
    reader.settle()

    assert reader.tile("prior", "coronal")["width"] > 1.5 * small


@pytest.mark.parametrize("name", GRIDS)
def test_every_acquisition_is_shown_the_right_way_round(reader, tmp_path, name):
    """The bright ball lies to the left, in front and above: right and up in its tiles, by geometry."""
    write_comparison(maker.comparison(maker.grid_of(GRIDS[name])), tmp_path, formats=("html",))
    reader.open(tmp_path / "report.html")
    reader.plain()
    # The ball's place seen from the middle of the head, whose edge the tiles show.
    left, front, up = (maker.PLACE_OF_NEW[0], -maker.PLACE_OF_NEW[1], maker.PLACE_OF_NEW[2])
    sides = {"axial": (left, front), "coronal": (left, up), "sagittal": (-front, up)}

    for plane, (right, above) in sides.items():
        tile = reader.tile("current", plane)
        middle = _middle_of_head(reader, plane)
        per_mm = tile["width"] / _width_mm(reader, plane)
        across = middle[0] + right * per_mm / tile["width"]
        down = middle[1] - above * per_mm / tile["height"]
        assert reader.pixel("current", plane, across, down)[0] > 240
        mirrored = reader.pixel("current", plane, 2 * middle[0] - across, down)[0]
        assert mirrored < 230


def _volumes(reader: Reader) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(reader.browser.value("document.getElementById('volumes').textContent"))
    return told


def _width_mm(reader: Reader, plane: str) -> float:
    told, axis = _volumes(reader), ACROSS[plane]
    return float(told["dims"][axis] * told["spacing"][axis])


def _middle_of_head(reader: Reader, plane: str) -> tuple[float, float]:
    """Where the world's origin, the head's middle, stands in a tile: shares, by the told matrix."""
    told = _volumes(reader)
    matrix = told["lps_from_voxel"]
    # The volume runs along right, anterior and head, so its matrix is diagonal here.
    voxel = [-matrix[axis][3] / matrix[axis][axis] for axis in range(3)]
    share = [1 - (voxel[axis] + 0.5) / told["dims"][axis] for axis in range(3)]
    down = {"axial": 1, "coronal": 2, "sagittal": 2}[plane]
    return share[ACROSS[plane]], share[down]


def test_where_webgl_is_lost_the_canvas_takes_over(tmp_path):
    """A graphics card may be taken away while the page stands open."""
    write_comparison(maker.comparison(), tmp_path, formats=("html",))
    browser = Browser(tmp_path / "profile", has_webgl=True)
    try:
        reader = Reader(browser, "niivue")
        reader.open(tmp_path / "report.html")
        browser.value("cards.at(-1).getExtension('WEBGL_lose_context').loseContext()")
        browser.wait_for("document.getElementById('viewer').dataset.painter === 'canvas'")
        reader.plain()

        assert reader.pixel("current", "axial", 0.3, 0.6)[0] > 100
    finally:
        browser.close()


def test_webgl_on_the_processor_is_left_alone(tmp_path):
    """There NiiVue needs many seconds for what the canvas shows at once."""
    write_comparison(maker.stable(), tmp_path, formats=("html",))
    browser = Browser(tmp_path / "profile", has_webgl=True, takes_any_card=False)
    try:
        Reader(browser, "canvas").open(tmp_path / "report.html")

        assert browser.value("Boolean(document.createElement('canvas').getContext('webgl2'))")
        assert browser.complaints() == []
    finally:
        browser.close()
