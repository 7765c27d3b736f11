"""How heavy is a report page, and how long until its viewer has painted in Chromium?

    python bench/report_page.py OUT/report.html

The page is opened from disk again and again in one headless browser, with WebGL2 on
the processor (slower than any graphics card) and without WebGL2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.test_report_chromium import Browser

TARGET_MB, TARGET_S = 8.0, 5.0


def opening_seconds(page: Path, *, has_webgl: bool, times: int) -> list[float]:
    """Seconds from the address to the painted viewer, each time anew."""
    browser = Browser(Path(tempfile.mkdtemp()), has_webgl=has_webgl)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        browser.open(page)
        seconds.append(time.perf_counter() - started)
    painter = browser.value("document.getElementById('viewer').dataset.painter")
    assert painter == ("niivue" if has_webgl else "canvas"), f"painted by {painter}"
    assert browser.complaints() == []
    browser.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--times", type=int, default=7)
    options = parser.parse_args()
    size_mb = options.page.stat().st_size / 1e6
    print(f"size                    {size_mb:6.2f} MB   target below {TARGET_MB:g}")
    for name, has_webgl in (("NiiVue, WebGL2 on CPU", True), ("canvas, no WebGL2", False)):
        seconds = opening_seconds(options.page.resolve(), has_webgl=has_webgl, times=options.times)
        told = f"{statistics.median(seconds):6.2f} s    target below {TARGET_S:g}"
        print(f"{name:<23} {told}   ({min(seconds):.2f} to {max(seconds):.2f}, {len(seconds)} times)")


if __name__ == "__main__":
    main()
