from __future__ import annotations

import re

import httpx
import pytest

from service.errors import ProblemError
from tests.service.serving import assert_problem


def linked_files(client: httpx.Client) -> list[str]:
    """The page's files, found as a browser finds them."""
    waiting, found = ["/"], []
    while waiting:
        path = waiting.pop()
        found.append(path)
        text = client.get(path).text
        links = re.findall(r'(?:href|src)="(web/[^"]+)"', text)
        links += [f"web/{name}" for name in re.findall(r'from "\./([^"]+)"', text)]
        waiting += [f"/{link}" for link in set(links) if f"/{link}" not in found + waiting]
    return found


def test_every_file_has_its_type_and_the_policy(client: httpx.Client) -> None:
    paths = linked_files(client)
    assert len(paths) > 10
    types = {"/": "html", ".css": "css", ".js": "javascript", ".svg": "svg+xml"}
    for path in paths:
        response = client.get(path)
        assert response.status_code == 200
        kind = types["/" if path == "/" else path[path.rfind(".") :]]
        assert response.headers["content-type"].partition(";")[0].endswith(f"/{kind}")
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        assert "unsafe" not in policy
        assert "http" not in policy


def test_an_unchanged_file_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/web/main.js")
    assert first.headers["cache-control"] == "no-cache"
    known = {"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    again = client.get("/web/main.js", headers=known)
    assert again.status_code == 304
    assert again.content == b""
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/web/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_answers_without_the_file(client: httpx.Client) -> None:
    response = client.head("/")
    assert response.status_code == 200
    assert response.content == b""
    assert response.headers["content-length"] == str(len(client.get("/").content))


@pytest.mark.parametrize(
    "path", ["/web/", "/web/none.js", "/web/..%2fapp.py", "/web/%2e%2e/app.py", "/web/style.css/x"]
)
def test_only_files_of_the_page_are_served(client: httpx.Client, path: str) -> None:
    assert_problem(client.get(path), 404, "not-found")


def test_the_page_is_no_part_of_the_api_document(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/predict" in paths
    assert not [path for path in paths if path == "/" or path.startswith("/web")]


def test_the_page_has_words_for_every_problem(client: httpx.Client) -> None:
    said = set(re.findall(r'^  "([a-z-]+)": "', client.get("/web/api.js").text, re.MULTILINE))
    assert {error.slug for error in leaves(ProblemError)} <= said


def leaves(kind: type[ProblemError]) -> set[type[ProblemError]]:
    below = {leaf for child in kind.__subclasses__() for leaf in leaves(child)}
    return below or {kind}
