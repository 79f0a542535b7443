"""/docs in a real Chromium, which holds it to its content security policy."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.e2e.chromium import PATIENCE_MS
from tests.service.serving import RunningServer

with suppress(ImportError):  # the fixture `browser` says so
    from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.browser


def test_swagger_ui_shows_every_route_and_breaks_no_policy(
    browser: Browser, server: RunningServer
) -> None:
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    said: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{server.url}/docs")
    expect(page.locator(".opblock")).to_have_count(sum(map(len, paths.values())))
    page.close()
    assert said == []
