"""API keys, rate limits, origins, headers and /docs, over a real server."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service.access import Access
from service.errors import RateLimitedError, SettingsError, TooManyImagesError
from service.settings import Settings, load_settings
from tests.service.serving import Serve, assert_problem

JPEG = {"content-type": "image/jpeg"}
OLD, NEW, OTHER = "old-key-0123456789", "new-key-0123456789", "other/key+0123456789=="
KEYS = f"app={OLD},app={NEW}"
GUARDED = [("POST", "/predict"), ("GET", "/model")]
OPEN = ["/", "/web/main.js", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"]


def asking(client: httpx.Client, photo: bytes, **headers: str) -> httpx.Response:
    return client.post("/predict", content=photo, headers={**JPEG, **headers})


def test_a_request_needs_a_key(serve: Serve, portrait_jpeg: bytes) -> None:
    with serve(api_keys=KEYS).client() as client:
        for method, path in GUARDED:
            missing = client.request(method, path, content=portrait_jpeg or None, headers=JPEG)
            assert_problem(missing, 401, "missing-key")
            assert missing.headers["www-authenticate"] == "Bearer"
            for wrong in (OTHER, OLD[:-1], OLD + "x", "app", "é"):
                headers = [(b"x-api-key", wrong.encode())]
                unknown = client.request(method, path, content=portrait_jpeg, headers=headers)
                assert_problem(unknown, 403, "unknown-key")
                assert wrong not in unknown.text.replace("app", "", 9)
        for path in OPEN:
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("key", [OLD, NEW])
@pytest.mark.parametrize("form", ["X-API-Key: {}", "Authorization: Bearer {}"])
def test_every_key_opens_in_both_forms(
    serve: Serve, portrait_jpeg: bytes, key: str, form: str
) -> None:
    name, _, value = form.format(key).partition(": ")
    with serve(api_keys=KEYS).client() as client:
        assert asking(client, portrait_jpeg, **{name: value}).status_code == 200


def test_keys_come_from_a_file_too(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the other team\nother={OTHER}\n\n")
    with serve(api_keys=KEYS, api_keys_file=str(file)).client() as client:
        for key in (OLD, NEW, OTHER):
            assert client.get("/model", headers={"X-API-Key": key}).status_code == 200


def test_health_and_metrics_can_ask_for_a_key(serve: Serve) -> None:
    with serve(api_keys=KEYS, health_needs_key="true", metrics_needs_key="true").client() as client:
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert_problem(client.get(path), 401, "missing-key")
            assert client.get(path, headers={"X-API-Key": OLD}).status_code == 200


def test_a_key_may_ask_so_often_and_another_one_more(serve: Serve, portrait_jpeg: bytes) -> None:
    with serve(api_keys=f"{KEYS},other={OTHER}", rate_limit="2/hour").client() as client:
        # Both keys of one name are counted together: a new key is no new allowance.
        for key in (OLD, NEW):
            assert asking(client, portrait_jpeg, **{"X-API-Key": key}).status_code == 200
        refused = asking(client, portrait_jpeg, **{"X-API-Key": OLD})
        assert "2 per 1 hour" in assert_problem(refused, 429, "rate-limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
        assert client.get("/model", headers={"X-API-Key": OLD}).status_code == 200
        assert asking(client, portrait_jpeg, **{"X-API-Key": OTHER}).status_code == 200


def test_a_photo_for_which_there_is_no_room_does_not_count(
    serve: Serve, portrait_jpeg: bytes
) -> None:
    server = serve(api_keys=KEYS, rate_limit="1/hour", max_in_flight_images=1)
    with server.client() as client:
        with server.state.lifecycle.admit_image():
            for path in ("/predict", "/predict?explain=none", "/v2/models/lan-fer/infer"):
                full = client.post(path, headers={"X-API-Key": OLD})
                assert full.json()["type"].endswith("overloaded")
        assert asking(client, portrait_jpeg, **{"X-API-Key": OLD}).status_code == 200
        refused = asking(client, portrait_jpeg, **{"X-API-Key": OLD})
        assert_problem(refused, 429, "rate-limited")


@pytest.mark.parametrize("rates", ["12/day;3/second", "3/second;12/day"])
def test_what_one_limit_refuses_is_not_counted_by_another(rates: str) -> None:
    async def spend_in_a_burst() -> int:
        access = Access.load(load_settings(api_keys=KEYS, rate_limit=rates))
        allowed = 0
        for _ in range(12):
            with suppress(RateLimitedError):
                await access.spend("app")
                allowed += 1
        await asyncio.sleep(2)
        await access.spend("app", 3)
        return allowed

    assert asyncio.run(spend_in_a_burst()) < 12


def test_a_request_of_many_images_counts_as_many() -> None:
    async def spend_too_much() -> None:
        access = Access.load(load_settings(api_keys=KEYS, rate_limit="10/day"))
        await access.spend("app", 9)
        with pytest.raises(RateLimitedError):
            await access.spend("app", 2)
        await access.spend("app", 1)
        # No wait would make room for eleven.
        with pytest.raises(TooManyImagesError, match="at most 10 photos"):
            await access.spend("app", 11)

    asyncio.run(spend_too_much())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"api_keys": ""}, "api_keys holds no key"),
        ({"api_keys": " , "}, "api_keys holds no key"),
        ({"api_keys": f"app={OLD},{NEW}"}, "api_keys: entry 2 is not name=key"),
        ({"api_keys": "app=too-short"}, "entry 1"),
        ({"api_keys": f"an app={OLD}"}, "entry 1"),
        ({"api_keys_file": "/no/such/file"}, "/no/such/file: No such file"),
        ({"rate_limit": "2/hour"}, "set api_keys"),
        ({"api_keys": KEYS, "rate_limit": "often"}, 'rate_limit: "often" is not like'),
        ({"api_keys": KEYS, "rate_limit": "0/hour"}, "allows nothing"),
        ({"api_keys": KEYS, "rate_limit": f"1/{'9' * 400} years"}, "over a year"),
    ],
)
def test_wrong_settings_are_refused_without_a_key_in_the_words(
    settings: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Access.load(load_settings(**settings))
    assert says in caught.value.detail
    for secret in (OLD, NEW, "too-short"):
        assert secret not in caught.value.detail


def test_an_empty_file_of_keys_opens_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(SettingsError, match="api_keys_file holds no key"):
        Access.load(load_settings(api_keys_file=str(file)))


def test_settings_do_not_show_keys() -> None:
    settings = Settings(api_keys=KEYS)
    assert OLD not in f"{settings!r}{settings}{settings.model_dump_json()}"


def test_openapi_tells_of_keys_only_where_they_are_asked_for(
    serve: Serve, client: httpx.Client
) -> None:
    def statuses(document: dict[str, dict[str, dict[str, dict[str, dict[str, object]]]]]) -> str:
        return " ".join(document["paths"]["/model"]["get"]["responses"])

    plain = client.get("/openapi.json").json()
    assert "securitySchemes" not in plain["components"]
    assert "401" not in json.dumps(plain["paths"])
    with serve(api_keys=KEYS, rate_limit="9/day").client() as other:
        guarded = other.get("/openapi.json").json()
    assert set(guarded["components"]["securitySchemes"]) == {"apiKey", "bearer"}
    for path, method in (("/predict", "post"), ("/model", "get")):
        operation = guarded["paths"][path][method]
        assert {"apiKey": []} in operation["security"]
        assert {"401", "403"} <= set(operation["responses"])
    assert "429" in guarded["paths"]["/predict"]["post"]["responses"]
    assert "WWW-Authenticate" in guarded["paths"]["/model"]["get"]["responses"]["401"]["headers"]
    assert "401" not in guarded["paths"]["/health/live"]["get"]["responses"]


ORIGIN = {"Origin": "https://app.example"}
PREFLIGHT = {
    **ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "x-api-key,content-type",
}


def test_pages_of_other_origins_may_not_ask(client: httpx.Client) -> None:
    for reply in (
        client.get("/model", headers=ORIGIN),
        client.options("/predict", headers=PREFLIGHT),
    ):
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_pages_of_named_origins_may_ask_even_about_problems(serve: Serve) -> None:
    with serve(cors_origins="https://app.example, http://localhost:3000").client() as client:
        preflight = client.options("/predict", headers=PREFLIGHT)
        assert preflight.status_code == 200
        allowed = preflight.headers["access-control-allow-headers"]
        assert {"X-API-Key", "X-Request-Timeout-Ms"} <= set(allowed.split(", "))
        refused = client.post("/predict", headers={**JPEG, **ORIGIN})
        assert_problem(refused, 400, "empty-body")
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        assert "Retry-After" in refused.headers["access-control-expose-headers"]
        stranger = client.get("/model", headers={"Origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize("empty", ["", "  "])
def test_no_origins_are_as_none_set(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    """A line of an environment file without a value; refusals are cheap only without origins."""
    monkeypatch.setenv("LAN_FER_CORS_ORIGINS", empty)
    assert load_settings().cors_origins is None


@pytest.mark.parametrize("wrong", ["app.example", "https://app.example/path", "https://*", "null"])
def test_what_is_no_origin_is_refused(serve: Serve, wrong: str) -> None:
    with pytest.raises(SettingsError, match="cors_origins"):
        serve(cors_origins=f"http://localhost,{wrong}")
    with pytest.raises(SettingsError, match="names no origin"):
        serve(cors_origins=",")


@pytest.mark.parametrize("path", ["/model", "/no/such", "/metrics", "/docs", "/openapi.json", "/"])
def test_every_reply_has_the_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "server" not in headers


def test_docs_run_only_their_own_scripts(client: httpx.Client) -> None:
    policy = client.get("/docs").headers["content-security-policy"]
    (scripts,) = [part for part in policy.split("; ") if part.startswith("script-src")]
    assert "'sha256-" in scripts
    assert "unsafe" not in scripts


def test_docs_can_be_turned_off(serve: Serve, portrait_jpeg: bytes) -> None:
    with serve(docs="false").client() as client:
        for path in ("/docs", "/openapi.json", "/redoc", "/static-offline-docs/swagger-ui.css"):
            assert_problem(client.get(path), 404, "not-found")
        assert client.get("/").status_code == 200
        assert asking(client, portrait_jpeg).status_code == 200
