"""What the page says where the service says no, in a real Chromium, against a real server."""

from __future__ import annotations

import re
import threading
from contextlib import suppress

import pytest

from service.errors import StartupError
from service.pipeline import Networks
from service.settings import Settings
from tests.e2e.chromium import Visit, visiting
from tests.service.serving import Serve, starting, wait_until

with suppress(ImportError):  # the fixture `browser` says so
    from playwright.sync_api import Browser, expect

TEXT = b"This is a text."
KEY = "0123456789abcdef"
TRIED_AGAIN = re.compile(r"The service is busy\..* Trying again in 1 s\.")

pytestmark = pytest.mark.browser


def test_problems_of_a_photo_are_said_in_words(visit: Visit, portrait_jpeg: bytes) -> None:
    visit.pick(("text.jpg", TEXT), ("broken.jpg", portrait_jpeg[:3000]), ("none.jpg", b""))
    problems = visit.page.locator(".card .problem")
    expect(problems.nth(0)).to_contain_text("This is no picture the service can read. The bytes")
    expect(problems.nth(1)).to_contain_text("The picture is broken or cut off.")
    expect(problems.nth(2)).to_contain_text("The file is empty.")
    expect(visit.page.get_by_role("button", name="Try again")).to_have_count(0)


def test_a_busy_service_is_tried_again_when_it_says_so(
    browser: Browser, serve: Serve, portrait_jpeg: bytes
) -> None:
    busy = serve(max_in_flight_images=1)
    with visiting(browser, busy.url) as visit:
        expect(visit.page.locator("#model")).not_to_be_empty()
        with busy.state.lifecycle.admit_image():
            visit.hand_over("drop", [portrait_jpeg])
            waiting = visit.page.locator(".waiting")
            expect(waiting).to_have_text(TRIED_AGAIN)
        expect(visit.page.locator(".answer")).to_contain_text("Happiness")


def test_an_answer_that_took_too_long_can_be_asked_for_again(
    browser: Browser, serve: Serve, portrait_jpeg: bytes
) -> None:
    with visiting(browser, serve(deadline_ms=1).url) as visit:
        visit.pick(("portrait.jpg", portrait_jpeg))
        expect(visit.page.locator(".card .problem")).to_contain_text("The answer took too long.")
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.page.locator(".waiting")).to_be_hidden()
        assert len(visit.asked) == 2


def test_an_api_key_is_asked_for_and_its_limit_said(
    browser: Browser, serve: Serve, portrait_jpeg: bytes
) -> None:
    guarded = serve(api_keys=f"page={KEY}", rate_limit="1/year")
    with visiting(browser, guarded.url) as visit:
        page, key = visit.page, visit.page.get_by_label("API key")
        trouble = page.locator("#service-trouble")
        expect(trouble).to_contain_text("This service asks for an API key")
        visit.hand_over("drop", [portrait_jpeg])
        visit.screenshot("key")
        key.fill("wrong" + KEY)
        key.press("Enter")
        expect(trouble).to_contain_text("The service does not know this API key.")
        key.fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator(".answer")).to_contain_text("Happiness")
        expect(key).to_be_hidden()
        page.get_by_text("JSON and curl").click()
        expect(page.locator("pre").first).to_contain_text('--header "X-API-Key: $API_KEY"')
        visit.hand_over("paste", [portrait_jpeg])
        problem = page.locator(".card .problem")
        expect(problem).to_contain_text("This API key has been used as often as it may for now.")
        expect(problem).to_contain_text("It may work in ")
        assert KEY not in page.content()


def test_a_starting_service_is_waited_for(browser: Browser, networks: Networks) -> None:
    gate = threading.Event()

    def load(_: Settings) -> Networks:
        gate.wait()
        return networks

    failures: list[StartupError | None] = []
    with starting(Settings(), load, failures.append) as server:
        try:
            with visiting(browser, server.url) as visit:
                trouble = visit.page.locator("#service-trouble")
                expect(trouble).to_contain_text("The service is not ready. The service is starting")
                expect(trouble).to_contain_text("Trying again in 1 s.")
                gate.set()
                expect(trouble).to_be_empty()
                name = networks.classifier.contract.name
                expect(visit.page.locator("#model")).to_contain_text(name)
                wait_until(lambda: bool(failures))
        finally:
            gate.set()
    assert failures == [None]
