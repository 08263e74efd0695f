"""A headless Chromium for the tests that look at a page; they are skipped with a reason where there is none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

#: Programs that Playwright can drive; R2GENKG_CHROMIUM names another one.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """Path of a Chromium, or a skipped test."""
    pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")
    found = os.environ.get("R2GENKG_CHROMIUM") or next(
        (p for p in map(shutil.which, PROGRAMS) if p), None
    )
    if not found:
        pytest.skip("no Chromium here: apt-get install chromium, or R2GENKG_CHROMIUM=PATH")
    return found


@contextmanager
def open_page(width: int = 1200, height: int = 1000) -> Iterator:
    """A page of a fresh headless browser; `page.foreign` lists requests that left this machine."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.foreign = []
        local = (
            "http://127.0.0.1",
            "http://localhost",
            "ws://127.0.0.1",
            "ws://localhost",
            "data:",
            "blob:",
            "file:",
            "about:",
        )
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(local) else page.foreign.append(request.url)
            ),
        )
        try:
            yield page
        finally:
            browser.close()
