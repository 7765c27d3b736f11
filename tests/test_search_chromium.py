"""The search report in a real browser: it obeys its own policy and fits a telephone."""

import pytest

from medsiam.cases.changes import changes_of
from medsiam.cases.search import Wish, search_cases
from medsiam.cases.thumbnails import packed, strip_of
from medsiam.report.search_writer import write_search
from tests import case_maker as maker
from tests import phantoms
from tests.test_report_chromium import CHROMIUM, HOSTILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A search whose labels are hostile, by scan and by change."""
    place = tmp_path_factory.mktemp("searched")
    strip = strip_of(phantoms.small_head().volume)
    index = maker.index_in(place)
    cases = [
        maker.case(
            n, patient_key=f"{n // 2:020x}", thumbnails=strip, labels={"note": HOSTILE, "grade": str(n)}
        )
        for n in range(12)
    ]
    index.add(cases)
    index.add(list(changes_of(cases)), "change")
    write_search(search_cases(index, cases[0], Wish(count=6)), place / "scan")
    change = next(changes_of(cases))
    outcome = search_cases(index, change, Wish(by="change", count=4), query_prior=cases[0])
    write_search(outcome, place / "change")
    return place


def opened(browser, page, width=1300):
    browser.ask(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.events.clear()
    browser.ask("Page.navigate", url=page.as_uri())
    browser.wait_for("document.readyState === 'complete'")


@pytest.mark.parametrize("by", ["scan", "change"])
def test_the_search_opens_without_a_complaint_and_shows_its_pictures(browser, folder, by):
    """Console errors, policy violations and requests would all show up."""
    opened(browser, folder / by / "search.html")
    assert browser.complaints() == []
    broken = "[...document.images].filter(image => !image.naturalWidth).length"
    assert browser.value(broken) == 0 and browser.value("document.images.length") >= 8


def test_hostile_labels_are_shown_and_never_run(browser, folder):
    """A label is typed by anyone."""
    opened(browser, folder / "scan" / "search.html")
    assert browser.value("document.title") == "The 6 cases most like this scan"
    assert browser.value("document.querySelectorAll('script').length") == 0
    told = "[...document.querySelectorAll('.case:first-of-type dd')].map(each => each.textContent)"
    assert HOSTILE in browser.value(told)


@pytest.mark.parametrize("by", ["scan", "change"])
@pytest.mark.parametrize("width", [360, 390, 768])
def test_nothing_sticks_out_of_a_narrow_screen(browser, folder, by, width):
    opened(browser, folder / by / "search.html", width)
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_a_strip_is_unpacked_into_the_tiles_it_was_made_of():
    """So that a tile's number means the same level in every case."""
    from medsiam.cases.thumbnails import corresponding, tiles_of, unpacked

    tiles = tiles_of(phantoms.small_head().volume)
    again = unpacked(packed(tiles))
    assert len(again) == len(tiles) == 17
    assert corresponding(tiles[9], 9, again) == 9
    assert corresponding(tiles[9], 8, again) == 9
