# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""A real browser for tests: Debian's Chromium, driven by Playwright. A test module imports both fixtures."""

import shutil

import pytest


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium, for the tests of one module: while it runs, this thread has an event loop of Playwright's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'megavit[dev]'")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("needs the browser chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, which needs rights that a container's root lacks
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """An empty page, where what goes wrong in a script is in the list `page.errors`."""
    context = chromium.new_context()
    page = context.new_page()
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    context.close()
