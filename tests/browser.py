"""A real browser for tests of pages: Chromium without a window, which may reach this machine alone.

Tests that need one are skipped, with the reason, where Playwright or a Chromium is absent.
"""

import contextlib
import shutil
from collections.abc import Generator
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextlib.contextmanager
def chromium_page() -> Generator[tuple[Any, list[str]], None, None]:
    """A fresh Playwright page, and the addresses outside this machine that it asked for (they are refused).

    Files (`file://`), data inside a page and 127.0.0.1 are let through.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH")
    outside: list[str] = []

    def guard(route: Any) -> None:
        address = route.request.url
        if address.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")):
            route.continue_()
        else:
            outside.append(address)
            route.abort()

    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            page = browser.new_page()
            page.route("**/*", guard)
            yield page, outside
        finally:
            browser.close()
