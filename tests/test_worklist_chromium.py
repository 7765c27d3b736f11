"""The worklist in a real browser: it obeys its own policy, filters, and fits a telephone."""

import pytest

from medsiam.batch.values import BatchSettings, Plan, Row
from medsiam.batch.worklist import finish
from tests.test_report_chromium import CHROMIUM, HOSTILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

SCAN = {"study_uid": "1.2", "series_uid": "1.2." + "3" * 60, "modality": "MR", "body_part": HOSTILE,
        "acquired": "2024-01-10T09:30:00"}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Refused inputs, whose reasons are hostile: all that a page of words can go wrong with."""
    out = tmp_path_factory.mktemp("out")
    rows = tuple(
        Row(f"{n:016x}", "input", "refused" if n else "failed", "ab" * 10, code="date", reason=HOSTILE,
            summary=HOSTILE, current=SCAN, prior=SCAN)
        for n in range(6)
    )  # fmt: skip
    finish(Plan((), rows, ((HOSTILE, "twice"),), {"patients": 6, "visits": 9}), out, BatchSettings())
    return out / "worklist.html"


def opened(browser, page, width=1300):
    browser.ask(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.events.clear()
    browser.ask("Page.navigate", url=page.as_uri())
    browser.wait_for("document.readyState === 'complete' && !document.getElementById('filter').hidden")


SHOWN = "[...document.querySelectorAll('#rows tr')].filter(row => !row.hidden).length"


def test_the_filter_shows_one_kind_and_all_again_without_a_complaint(browser, page):
    opened(browser, page)
    assert browser.value(SHOWN) == 6
    for group, count in (("failed", 1), ("refused", 5), ("all", 6)):
        browser.value(f"document.querySelector('#filter [data-group={group}]').click()")
        assert browser.value(SHOWN) == count
    assert browser.complaints() == []


def test_hostile_words_are_shown_and_never_run(browser, page):
    """A body part is typed by anyone."""
    opened(browser, page)
    assert browser.value("document.title") == "Worklist: 0 comparisons"
    assert browser.value("document.querySelectorAll('script').length") == 1
    assert HOSTILE in browser.value("document.querySelector('#rows .what').textContent")


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_sticks_out_of_a_narrow_screen(browser, page, width):
    opened(browser, page, width)
    assert browser.value("document.documentElement.scrollWidth") <= width
