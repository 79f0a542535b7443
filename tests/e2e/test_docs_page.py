"""/docs in a real Chromium, which holds it to its content security policy."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.chromium import PATIENCE_MS, chromium
from tests.service.serving import RunningServer

with suppress(ImportError):  # chromium() says so
    from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_swagger_ui_shows_every_route_and_breaks_no_policy(
    server: RunningServer, tmp_path: Path
) -> None:
    film = tmp_path / "none.y4m"
    film.touch()
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    said: list[str] = []
    with chromium(film) as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{server.url}/docs")
        expect(page.locator(".opblock")).to_have_count(sum(map(len, paths.values())))
    assert said == []
