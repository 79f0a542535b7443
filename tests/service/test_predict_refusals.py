from __future__ import annotations

import base64
import json
import socket
import struct
import zlib
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from service.errors import ProblemError
from service.problems import MEDIA_TYPE
from tests.service.image_files import encoded
from tests.service.serving import PATIENCE_SECONDS, RunningServer, Serve, assert_problem

JPEG = {"content-type": "image/jpeg"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=limit"}


def part(name: str, content: bytes, *, file_name: str | None = "a.jpg") -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{file_name}"' if file_name else "")
    return f"--limit\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


END = b"--limit--\r\n"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png() -> bytes:
    """Says that it has 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b"", 400, "empty-body"),
        (b"this is no image, whatever the header says", 415, "unsupported-media-type"),
        (b"%PDF-1.7 neither is this", 415, "unsupported-media-type"),
        (huge_png(), 413, "image-too-large"),
    ],
)
def test_raw_body(client: httpx.Client, body: bytes, status: int, slug: str) -> None:
    assert_problem(client.post("/predict", content=body, headers=JPEG), status, slug)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.98])
def test_truncated_jpeg(client: httpx.Client, portrait_jpeg: bytes, kept: float) -> None:
    body = portrait_jpeg[: int(len(portrait_jpeg) * kept)]
    assert_problem(client.post("/predict", content=body, headers=JPEG), 422, "invalid-image")


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (part("file", b"") + END, 400, "empty-body"),
        (part("photo", b"x") + END, 422, "missing-image"),
        (part("file", b"x", file_name=None) + END, 422, "missing-image"),
        (END, 422, "missing-image"),
        (part("file", b"no image") + END, 415, "unsupported-media-type"),
        (part("file", b"x"), 400, "malformed-request"),
        (b"no multipart at all", 400, "malformed-request"),
        (part("file", b"x") * 2 + END, 413, "too-many-images"),
        (b"--limit\r\nX: " + b"y" * 10_000 + b"\r\n\r\nx\r\n" + END, 400, "malformed-request"),
        (b"--limit\r\n" + b"X: y\r\n" * 50 + b"\r\nx\r\n" + END, 400, "malformed-request"),
        (
            part("file", b"x") + part("heatmap", b"overlay", file_name=None) + END,
            422,
            "invalid-option",
        ),
        (part("comment", b"x", file_name=None) * 20 + END, 400, "malformed-request"),
        (part("comment", b"x" * 9999, file_name=None) + END, 400, "malformed-request"),
    ],
)
def test_multipart(client: httpx.Client, body: bytes, status: int, slug: str) -> None:
    assert_problem(client.post("/predict", content=body, headers=FORM), status, slug)


def test_multipart_without_boundary(client: httpx.Client) -> None:
    response = client.post(
        "/predict", content=b"x", headers={"content-type": "multipart/form-data"}
    )
    assert_problem(response, 400, "malformed-request")


@pytest.mark.parametrize(
    ("document", "status", "slug"),
    [
        ("{", 400, "malformed-request"),
        ("\udcff", 400, "malformed-request"),
        ("[" * 100_000, 400, "malformed-request"),
        ("[]", 422, "missing-image"),
        ("null", 422, "missing-image"),
        ("{}", 422, "missing-image"),
        ('{"image": 5}', 422, "missing-image"),
        ('{"photo": "aaaa"}', 422, "missing-image"),
        ('{"image": "aaaa", "heatmap": "overlay"}', 422, "invalid-option"),
        ('{"image": ""}', 400, "empty-body"),
        ('{"image": "data:image/png;base64,"}', 400, "empty-body"),
        ('{"image": "%%%"}', 422, "invalid-image"),
        ('{"image": "äöü"}', 422, "invalid-image"),
        ('{"image": "data:image/png,raw"}', 422, "invalid-image"),
        ('{"image": "https://example.org/photo.jpg"}', 422, "invalid-image"),
        ('{"image": "/etc/passwd"}', 422, "invalid-image"),
        (
            json.dumps({"image": base64.b64encode(b"no image").decode()}),
            415,
            "unsupported-media-type",
        ),
    ],
)
def test_json(client: httpx.Client, document: str, status: int, slug: str) -> None:
    body = document.encode(errors="surrogateescape")
    assert_problem(client.post("/predict", content=body, headers=JSON), status, slug)


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"images":[' + b"1," * 500_000 + b"1]}",
        b'{"a":1' + b',"":1' * 10**5,
        b'{"images":[' + b",".join([b"[" * 150 + b"]" * 150] * 1000) + b"]}",
        b'{"images":' + b'{"":' * 150 + b"[" + b",".join([b"{}"] * 20_000) + b"]" + b"}" * 150,
    ],
)
def test_json_of_very_many_values_is_not_parsed(
    client: httpx.Client, path: str, body: bytes
) -> None:
    """Each would take hundreds of bytes, and an error for each a thousand."""
    response = client.post(path, content=body, headers=JSON)
    assert "commas" in assert_problem(response, 400, "malformed-request")


def test_photo_in_a_field_without_a_file_name_is_told_so(client: httpx.Client) -> None:
    part = b'--limit\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + b"x" * 5000
    response = client.post("/predict", content=part + b"\r\n--limit--\r\n", headers=FORM)
    assert "An image needs a file name" in assert_problem(response, 400, "malformed-request")


def test_address_with_a_slash_too_many_leads_nowhere(client: httpx.Client) -> None:
    for path in ("/predict/", "/predict%2f", "/docs/"):
        response = client.post(path, content=b"x", headers={"host": "elsewhere.example"})
        assert_problem(response, 404, "not-found")


def test_json_error_does_not_repeat_what_was_sent(client: httpx.Client) -> None:
    response = client.post("/predict", json={"image": "secret" * 1000, "other-secret": 1})
    assert "secretsecret" not in assert_problem(response, 422, "invalid-option")


@pytest.mark.parametrize(
    ("query", "option", "says"),
    [
        ("max_faces=1000", "max_faces", "at most 64"),
        ("max_faces=0", "max_faces", "greater than or equal to 1"),
        ("class=anger", "class", "needs explain=evidence"),
        ("explain=evidence&class=boredom", "class", "one of neutral, happiness"),
        ("foo=1", "foo", "no such option; there are heatmap, explain, class, max_faces, min_score"),
    ],
)
def test_an_option_that_is_not_valid_is_named(
    client: httpx.Client, portrait_jpeg: bytes, query: str, option: str, says: str
) -> None:
    response = client.post(f"/predict?{query}", content=portrait_jpeg, headers=JPEG)
    assert says in assert_problem(response, 422, "invalid-option")
    (field,) = response.json()["errors"]
    assert field["location"] == f"query.{option}"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "video/mp4"]
)
def test_type_that_is_not_read(client: httpx.Client, portrait_jpeg: bytes, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    response = client.post("/predict", content=portrait_jpeg, headers=headers)
    assert "multipart/form-data" in assert_problem(response, 415, "unsupported-media-type")


def test_compressed_body_is_not_read(client: httpx.Client, portrait_jpeg: bytes) -> None:
    headers = {**JPEG, "content-encoding": "gzip"}
    response = client.post("/predict", content=portrait_jpeg, headers=headers)
    assert_problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize(
    "query",
    [
        "heatmap=blue",
        "explain=everything",
        "max_faces=0",
        "max_faces=many",
        "max_faces=100000",
        "min_score=2",
        "min_score=nan",
        "search=deep",
        "class=anger",
        "explain=evidence&class=" + "x" * 100,
        "heat_map=overlay",
    ],
)
def test_options(client: httpx.Client, portrait_jpeg: bytes, query: str) -> None:
    response = client.post(f"/predict?{query}", content=portrait_jpeg, headers=JPEG)
    detail = assert_problem(response, 422, "invalid-option")
    assert query.split("&")[-1].split("=")[0] in detail


def test_of_many_wrong_options_some_are_told(client: httpx.Client, portrait_jpeg: bytes) -> None:
    query = "&".join(map(str, range(3000)))
    response = client.post(f"/predict?{query}", content=portrait_jpeg, headers=JPEG)
    assert "and 2992 more" in assert_problem(response, 422, "invalid-option")
    assert len(response.content) < 10_000


def test_unknown_class_is_told_the_known_ones(client: httpx.Client, portrait_jpeg: bytes) -> None:
    response = client.post(
        "/predict?explain=evidence&class=boredom", content=portrait_jpeg, headers=JPEG
    )
    detail = assert_problem(response, 422, "invalid-option")
    for label in client.get("/model").json()["classifier"]["labels"]:
        assert label in detail


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/no/such/path", 404, "not-found"),
        ("GET", "/predict", 405, "method-not-allowed"),
        ("DELETE", "/health/live", 405, "method-not-allowed"),
        ("GET", "/static-offline-docs/../../service/app.py", 404, "not-found"),
    ],
)
def test_errors_of_the_framework(
    client: httpx.Client, method: str, path: str, status: int, slug: str
) -> None:
    response = client.request(method, path)
    assert_problem(response, status, slug)
    assert ("allow" in response.headers) == (status == 405)
    assert (response.headers.get("allow") or "nothing at this path") in response.json()["detail"]


def test_what_a_path_takes_is_told_for_all_its_routes(client: httpx.Client) -> None:
    response = client.delete("/health/live")
    assert response.headers["allow"] == "GET, HEAD"
    assert "takes GET, HEAD." in response.json()["detail"]
    assert client.head("/health/live").status_code == 200


class TestLimits:
    @pytest.fixture
    def strict(self, serve: Serve) -> Iterator[httpx.Client]:
        with serve(
            max_body_bytes=4096, max_header_bytes=2048, max_image_pixels=4096
        ).client() as client:
            yield client

    def test_bytes_announced(self, strict: httpx.Client) -> None:
        response = strict.post("/predict", content=b"x" * 4097, headers=JPEG)
        assert "4097" in assert_problem(response, 413, "payload-too-large")

    @pytest.mark.parametrize("headers", [JPEG, JSON, FORM])
    def test_bytes_not_announced(self, strict: httpx.Client, headers: dict[str, str]) -> None:
        start = part("file", b"") if headers is FORM else b""
        chunks = iter([start, *[b"x" * 1024] * 64])
        response = strict.post("/predict", content=chunks, headers=headers)
        assert_problem(response, 413, "payload-too-large")

    def test_pixels(self, strict: httpx.Client, portrait_jpeg: bytes) -> None:
        # Cut off behind the header, which is enough to refuse it.
        response = strict.post("/predict", content=portrait_jpeg[:4096], headers=JPEG)
        assert "512 x 512" in assert_problem(response, 413, "image-too-large")

    def test_headers(self, strict: httpx.Client) -> None:
        response = strict.get("/health/live", headers={"x-long": "y" * 3000})
        assert_problem(response, 431, "headers-too-large")

    def test_query(self, strict: httpx.Client) -> None:
        assert_problem(strict.get("/health/live?" + "y" * 3000), 431, "headers-too-large")


def test_body_that_comes_too_slowly(serve: Serve) -> None:
    server = serve(body_timeout_ms=50)
    head = (
        "POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nContent-Length: 9\r\n"
    )
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(f"{head}\r\n\x89".encode("latin-1"))
        reply = connection.recv(65536).decode()
    assert reply.startswith("HTTP/1.1 408 ")
    assert "problem-type:lan-fer:slow-request" in reply
    assert server.state.lifecycle.in_flight == 0


def test_bytes_that_are_no_http_get_a_problem_document(server: RunningServer) -> None:
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        reply = connection.recv(65536).decode()
    assert reply.startswith("HTTP/1.1 400 Bad Request\r\n")
    assert MEDIA_TYPE in reply
    assert "problem-type:lan-fer:malformed-request" in reply


def test_headers_that_do_not_end_are_cut_off(server: RunningServer) -> None:
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nX: ")
        connection.sendall(b"y" * 1024 * 1024)
        reply = connection.recv(65536).decode()
    assert reply.startswith("HTTP/1.1 431 ")
    assert "problem-type:lan-fer:headers-too-large" in reply


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_tiny_pictures_are_read(client: httpx.Client, shape: tuple[int, int]) -> None:
    photo = encoded(Image.new("RGB", shape), "PNG")
    response = client.post("/predict", content=photo, headers=JPEG)
    assert response.json()["faces"] == []


def test_unexpected_error_shows_nothing(
    client: httpx.Client, portrait_jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr("service.routes.predict.check_options", break_down)
    response = client.post("/predict", content=portrait_jpeg, headers=JPEG)
    assert "secret" not in assert_problem(response, 500, "unexpected-error")
    monkeypatch.undo()
    assert client.post("/predict", content=portrait_jpeg, headers=JPEG).status_code == 200


def test_document_lists_the_status_of_every_error(serve: Serve) -> None:
    with serve(api_keys="tester=0123456789abcdef", rate_limit="9/hour").client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    statuses = {int(status) for operation in operations for status in operation["responses"]}
    assert statuses - {200} == {error.status for error in all_problems()}
    of_predict = {int(status) for status in paths["/predict"]["post"]["responses"]}
    assert statuses - of_predict == {404}  # another model's name, under /v2


def all_problems() -> list[type[ProblemError]]:
    found, open_ = [], [ProblemError]
    while open_:
        error = open_.pop()
        open_ += error.__subclasses__()
        found += [error] if hasattr(error, "status") else []
    return found
