"""What every test shares."""

import os

# Spinning threads take the cores from each other; OpenMP reads this when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium of its own for the pages of one module."""
    from tests.test_report_chromium import Browser

    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
