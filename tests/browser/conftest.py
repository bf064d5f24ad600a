"""A browser for a module, a fresh page for a test; where there is no Chromium, tests are skipped and say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.driver import MISSING, chromium, chromium_path

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    pytest.importorskip("playwright", reason=MISSING)
    if chromium_path() is None:
        pytest.skip(MISSING)
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that reaches nothing but this machine."""
    from tests.browser.driver import loopback_page

    with loopback_page(browser) as opened:
        yield opened
