"""The report in a real browser: it runs, obeys its own policy, and its links lead somewhere.

Chromium is driven through its debugging pipe (JSON between NUL bytes on file
descriptors 3 and 4), which needs no network, no driver and no further package.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsiam.report import write_comparison
from tests import comparison_maker as maker

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 30.0
# The page leaves WebGL2 on the processor alone, for it is slow; a test has nothing better.
TAKE_ANY_CARD = """
const get = HTMLCanvasElement.prototype.getContext;
globalThis.cards = [];
HTMLCanvasElement.prototype.getContext = function (kind, told) {
  const made = get.call(this, kind, { ...told, failIfMajorPerformanceCaveat: false });
  if (kind === "webgl2") cards.push(made);
  return made;
};
const extension = WebGL2RenderingContext.prototype.getExtension;
WebGL2RenderingContext.prototype.getExtension = function (name) {
  return name === "WEBGL_debug_renderer_info" ? null : extension.call(this, name);
};
"""
# WebGL2 on the processor, or none at all.
SOFTWARE_CARD = "--use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist"
NO_CARD = "--disable-gpu --disable-3d-apis"
HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


class Browser:
    """One headless page, and everything it complained about."""

    def __init__(self, profile: Path, *, has_webgl: bool = False, takes_any_card: bool = True) -> None:
        to_browser, self._writer = os.pipe()
        self._reader, from_browser = os.pipe()
        flags = "--headless --no-sandbox --no-first-run --hide-scrollbars --remote-debugging-pipe " + (
            SOFTWARE_CARD if has_webgl else NO_CARD
        )
        command = f'exec "$0" {flags} --user-data-dir="$1" about:blank 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, str(CHROMIUM), str(profile)],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._rest = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.ask(f"{domain}.enable")
        if has_webgl and takes_any_card:
            self.ask("Page.addScriptToEvaluateOnNewDocument", source=TAKE_ANY_CARD)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "chromium gave no answer"
            received = os.read(self._reader, 1 << 20)
            assert received, "chromium closed"
            self._rest += received
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, *, width: int = 1400, height: int = 900, fragment: str = "") -> None:
        """Opens a page anew and waits until the viewer has painted."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        # A page that still scrolls smoothly moves away under the mouse.
        still = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        self.ask("Emulation.setEmulatedMedia", features=still)
        self.ask("Page.navigate", url="about:blank")
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri() + fragment)
        self.wait_for(
            "document.readyState === 'complete' && document.getElementById('viewer').dataset.painted"
        )

    def value(self, expression: str) -> Any:
        """What a script expression gives."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, expression: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"never came true: {expression}"
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """Errors, warnings, policy violations and requests to the network."""
        self.value("new Promise(done => setTimeout(done, 100))")
        bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Audits.issueAdded")
        told = [json.dumps(event) for event in self.events if event.get("method") in bad]
        requests = [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        return told + [url for url in requests if not url.startswith(("data:", "file:"))]

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 else "")

    def click(self, selector: str) -> None:
        """Clicks in the middle of an element with the mouse, as a reader would."""
        middle = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect();"
            " return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask(
                "Input.dispatchMouseEvent", type=kind, x=middle[0], y=middle[1], button="left", clickCount=1
            )

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG of what is seen, or of the whole page."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def pdf(self) -> bytes:
        """The printed page."""
        return base64.b64decode(self.ask("Page.printToPDF", preferCSSPageSize=True)["data"])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._writer)
        os.close(self._reader)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    write_comparison(maker.comparison(), folder, formats=("html",))
    return folder / "report.html"


def shown_slice(browser: Browser) -> int:
    return int(browser.value("document.getElementById('viewer').dataset.slice"))


def test_the_report_opens_without_a_complaint_and_asks_the_network_for_nothing(browser, page):
    """Console errors, policy violations and requests would all show up here."""
    browser.open(page)

    assert browser.complaints() == []
    assert browser.value("document.getElementById('viewer').hidden") is False


def test_the_viewer_names_the_archive_s_image_where_it_counts_otherwise(browser, tmp_path):
    """New lies in slice 13 of 24, the twelfth from the other end."""
    made = maker.comparison()
    count = made.current.grid.shape[0]
    told = replace(made.current.acquisition, image_numbers=tuple(range(count, 0, -1)))
    write_comparison(
        replace(made, current=replace(made.current, acquisition=told)), tmp_path, formats=("html",)
    )

    browser.open(tmp_path / "report.html", fragment="#finding-1")
    browser.wait_for("document.getElementById('viewer').dataset.finding === '1'")

    assert "slice 13 of 24 (image 12)" in browser.value("document.getElementById('viewer').innerText")


def test_the_complaints_are_heard(browser, page, tmp_path):
    """The test above would be worthless if a violation went unnoticed."""
    broken = tmp_path / "broken.html"
    text = page.read_text("utf-8").replace("</main>", "<p style='color:red'>x</p><script>1</script></main>")
    broken.write_text(text, "utf-8")

    browser.open(broken)

    assert len(browser.complaints()) >= 2


def test_a_finding_s_link_brings_the_viewer_to_its_slice(browser, page):
    """New lies at 4 mm and resolved at -6 mm: slices of 4 mm, counted from one."""
    browser.open(page)

    browser.click('.findings a[href="#finding-2"]')
    browser.wait_for("document.getElementById('viewer').dataset.finding === '2'")
    resolved = shown_slice(browser)
    browser.click('.findings a[href="#finding-1"]')
    browser.wait_for("document.getElementById('viewer').dataset.finding === '1'")

    assert (resolved, shown_slice(browser)) == (11, 13)
    assert browser.complaints() == []


def test_an_address_with_a_finding_opens_at_that_finding(browser, page):
    """So that a worklist can point straight at it."""
    browser.open(page, fragment="#finding-2")

    assert browser.value("document.getElementById('viewer').dataset.finding") == "2"
    assert browser.value("document.querySelector('.findings tr[aria-current]').dataset.finding") == "2"


def test_every_link_leads_to_a_place_in_the_page(browser, page):
    browser.open(page)

    missing = browser.value(
        "[...document.links].filter(a => !document.getElementById(a.hash.slice(1))).map(a => a.href)"
    )

    assert missing == []


def test_keys_and_buttons_move_the_viewer(browser, page):
    """Arrow keys scroll, N goes to the next finding, B swaps the picture, R puts it back."""
    browser.open(page)
    browser.value("document.getElementById('stage').focus()")
    start = shown_slice(browser)

    browser.press("ArrowDown")
    after_arrow = shown_slice(browser)
    browser.press("n")
    browser.press("b")
    browser.wait_for("document.querySelector('[data-title=current]').textContent === 'Prior'")
    browser.press("r")

    assert after_arrow == start + 1
    assert browser.value("document.querySelector('[data-title=current]').textContent") == "Current"
    assert browser.complaints() == []


def test_hostile_header_text_is_shown_and_never_run(browser, tmp_path):
    """A series description is written by anyone who can send a scan."""
    write_comparison(maker.with_header_text(maker.comparison(), HOSTILE), tmp_path, formats=("html",))

    browser.open(tmp_path / "report.html")

    assert browser.value("document.title") == "Change between two scans: mixed"
    assert browser.value("document.querySelectorAll('script').length") == 3
    assert browser.value("document.querySelector('h1').textContent") == HOSTILE
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [360, 390, 768])
def test_nothing_sticks_out_of_a_narrow_screen(browser, page, width):
    browser.open(page, width=width, height=800)

    assert browser.value("document.documentElement.scrollWidth") <= width


def test_without_scripts_every_picture_and_figure_is_there(browser, page):
    """As in a mail program or behind a strict policy: the page is whole, only the viewer is not."""
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.ask("Page.navigate", url=page.as_uri())
        browser.wait_for("document.readyState === 'complete' && document.images.length")
        viewer, pictures, are_shown = browser.value(
            "[getComputedStyle(document.getElementById('viewer')).display, document.images.length,"
            " [...document.images].every(image => image.naturalWidth > 0)]"
        )
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)

    assert viewer == "none"
    assert pictures > 10 and are_shown


def test_it_prints_with_the_research_banner_and_without_the_viewer(browser, page):
    browser.open(page)
    browser.ask("Emulation.setEmulatedMedia", media="print")

    viewer = browser.value("getComputedStyle(document.getElementById('viewer')).display")
    pdf = browser.pdf()
    browser.ask("Emulation.setEmulatedMedia", media="")

    assert viewer == "none"
    assert pdf.startswith(b"%PDF")


@pytest.mark.parametrize("make", [maker.radiograph, maker.stable], ids=["radiograph", "stable"])
def test_a_radiograph_and_a_scan_without_findings_open_too(browser, tmp_path, make):
    write_comparison(make(), tmp_path, formats=("html",))

    browser.open(tmp_path / "report.html")

    assert browser.complaints() == []
