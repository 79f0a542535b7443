"""The service keeps to the OpenAPI document it serves: schemathesis, with every check on."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig

from service.app import create_app
from service.errors import ProblemError
from service.settings import Settings, load_settings
from tests.service.fuzzing import corpus
from tests.service.serving import PATIENCE_SECONDS, RunningServer, Serve

EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "10"))
# No schema can say which bytes are a photo, which options go together, or a model's name.
REFUSED_ALL_THE_SAME = ["2xx", "304", "400", "404", "413", "415", "422"]
# A client that asks for an answer within a millisecond is told that there is none.
TOO_LATE = "504"
CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {
            "positive_data_acceptance": {"expected-statuses": [*REFUSED_ALL_THE_SAME, TOO_LATE]},
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", TOO_LATE]},
        },
        "generation": {"mode": "all"},
    }
)

PHOTOS = st.sampled_from(corpus())
for media_type in (f"image/{kind}" for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff")):
    schemathesis.openapi.media_type(media_type, PHOTOS)


DOCUMENT = create_app(Settings()).openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT, config=CONFIG)


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_service_keeps_to_its_document(case: schemathesis.Case[Any], server: RunningServer) -> None:
    case.call_and_validate(base_url=server.url)


def test_document_lists_every_status_that_an_error_has(server: RunningServer) -> None:
    with server.client() as client:
        assert client.get("/openapi.json").json() == DOCUMENT
    # Where keys are asked for, there are errors more.
    guarded = create_app(load_settings(api_keys="operations=" + "k" * 40)).openapi()
    listed = {
        int(status)
        for methods in guarded["paths"].values()
        for operation in methods.values()
        for status in operation["responses"]
    }
    assert {error.status for error in problems(ProblemError)} <= listed


@pytest.mark.parametrize("path", [p for p, ways in DOCUMENT["paths"].items() if "get" in ways])
def test_what_the_connection_answers_is_in_the_document(serve: Serve, path: str) -> None:
    server = serve(header_timeout_ms=300, max_connections=2)
    head = f"GET {path.replace('{', '').replace('}', '')} HTTP/1.1\r\n"
    statuses = [
        # There is no Host; the head does not end; there are more connections than may be.
        *first_statuses(server, head + "\r\n"),
        *first_statuses(server, head + "Host"),
        *first_statuses(server, "", connections=8),
    ]
    assert set(statuses) == {"400", "408", "503"}
    assert set(statuses) <= set(DOCUMENT["paths"][path]["get"]["responses"])


def first_statuses(server: RunningServer, text: str, connections: int = 1) -> list[str]:
    """What each of so many connections, open at once, is told; of one that says nothing, none."""
    with ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection(server.address, PATIENCE_SECONDS))
            for _ in range(connections)
        ]
        for connection in opened:
            connection.sendall(text.encode())
        asked = opened if text else opened[-1:]
        return [connection.recv(65536).split()[1].decode() for connection in asked]


def problems(root: type[ProblemError]) -> list[type[ProblemError]]:
    found = [root] if hasattr(root, "status") else []
    for kind in root.__subclasses__():
        found += problems(kind)
    return found
