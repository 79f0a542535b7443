"""A page open in a real Chromium, and what it does there."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import httpx
import pytest

try:
    from playwright.sync_api import Browser, FilePayload, Page, Request, expect, sync_playwright
except ImportError as error:
    PLAYWRIGHT_MISSING = str(error)
else:
    PLAYWRIGHT_MISSING = ""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)
# Only bounds how long a broken test hangs.
PATIENCE_MS = 90_000.0
# Counted in the page, where an answer has come once its body is read: Playwright hears of that
# later, maybe after the next request.
COUNT_IN_FLIGHT = """
  window.inFlight = { now: 0, most: 0 };
  const send = window.fetch;
  window.fetch = async (address, init) => {
    if (new URL(address).pathname !== "/predict") return send(address, init);
    const counted = window.inFlight;
    counted.now += 1;
    counted.most = Math.max(counted.most, counted.now);
    const gone = () => { counted.now -= 1; };
    try {
      const response = await send(address, init);
      const read = response.json.bind(response);
      response.json = () => read().finally(gone);
      return response;
    } catch (error) {
      gone();
      throw error;
    }
  };
"""
WIDTH = 1280


@dataclass
class Visit:
    """A page that is open, and what it did behind the user's back."""

    page: Page
    errors: list[str] = field(default_factory=list)
    addresses: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        # A reply of 4xx or 5xx is logged as an error too; those are wanted here.
        self.page.on(
            "console",
            lambda message: (
                self.errors.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )
        self.page.on("request", self._began)
        self.page.add_init_script(COUNT_IN_FLIGHT)

    def _began(self, request: Request) -> None:
        url = httpx.URL(request.url)
        if url.scheme not in ("blob", "data"):
            self.addresses.add(f"{url.scheme}://{url.netloc.decode()}")
        if url.path == "/predict":
            self.asked.append(url.query.decode())

    def most_in_flight(self) -> int:
        """Photos sent and not yet answered, at the worst."""
        most: int = self.page.evaluate("window.inFlight.most")
        return most

    def pick(self, *photos: tuple[str, bytes]) -> None:
        payloads: list[FilePayload] = [
            {"name": name, "mimeType": "image/png", "buffer": data} for name, data in photos
        ]
        self.page.set_input_files("#pick", files=payloads)
        expect(self.page.locator("#progress")).to_be_hidden()

    def hand_over(self, event: str, photos: Sequence[bytes]) -> None:
        """What a drop or a paste of files does."""
        self.page.evaluate(
            """([event, photos]) => {
              const transfer = new DataTransfer();
              photos.forEach((photo, i) => transfer.items.add(new File(
                [Uint8Array.from(atob(photo), (c) => c.charCodeAt(0))], `${event} ${i}.jpg`,
                { type: "image/jpeg" })));
              const given = event === "drop" ? { dataTransfer: transfer }
                : { clipboardData: transfer };
              document.body.dispatchEvent(event === "drop"
                ? new DragEvent(event, { ...given, bubbles: true, cancelable: true })
                : new ClipboardEvent(event, { ...given, bubbles: true, cancelable: true }));
            }""",
            [event, [base64.b64encode(photo).decode() for photo in photos]],
        )

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("PAGE_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def no_browser(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def chromium(film: Path) -> Iterator[Browser]:
    """Chromium with a film (Y4M) before its webcam; skips the test where there is none."""
    if PLAYWRIGHT_MISSING:
        no_browser(f"Playwright cannot be imported: {PLAYWRIGHT_MISSING}")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        no_browser(f"no Chromium on the PATH ({', '.join(BROWSERS)})")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        arguments = [*ARGUMENTS, f"--use-file-for-fake-video-capture={film}"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextmanager
def visiting(
    browser: Browser, url: str, *, dark: bool = False, width: int = WIDTH
) -> Iterator[Visit]:
    """The page, open; at the end it has neither failed nor asked anybody else."""
    context = browser.new_context(
        color_scheme="dark" if dark else "light", viewport={"width": width, "height": 800}
    )
    context.set_default_timeout(PATIENCE_MS)
    visit = Visit(context.new_page())
    visit.watch()
    visit.page.goto(url)
    yield visit
    context.close()
    assert visit.errors == []
    assert visit.addresses == {url}
