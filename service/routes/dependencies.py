"""What routes ask FastAPI for, and what they tell its OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Request

from service.errors import (
    HeadersTooLargeError,
    MalformedRequestError,
    MissingKeyError,
    OverloadedError,
    ProblemError,
    SlowRequestError,
    UnavailableError,
    UnexpectedError,
)
from service.schemas import Problem
from service.state import ServiceState


async def _service_state(request: Request) -> ServiceState:
    state = request.app.state.service
    assert isinstance(state, ServiceState)
    return state


ServiceDependency = Annotated[ServiceState, Depends(_service_state)]

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
RequestTimeout = Annotated[
    int | None,
    Header(
        alias=TIMEOUT_HEADER,
        ge=1,
        description="Milliseconds from the body's arrival to the reply; past it the reply is 504 "
        "and the work is dropped. Never more than the service's own deadline.",
    ),
]

_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer"},
    }
}
_WITH_RETRY_AFTER = {OverloadedError.status, UnavailableError.status}
_WWW_AUTHENTICATE = {
    "WWW-Authenticate": {
        "description": "How to give a key.",
        "schema": {"type": "string"},
    }
}
# Any route may answer these: the edge checks heads, their time and the number of connections, and
# catches what nobody expected.
_EVERYWHERE: tuple[type[ProblemError], ...] = (
    MalformedRequestError,
    SlowRequestError,
    HeadersTooLargeError,
    UnavailableError,
    UnexpectedError,
)


def _headers(status: int) -> dict[str, Any]:
    if status in _WITH_RETRY_AFTER:
        return _RETRY_AFTER
    return _WWW_AUTHENTICATE if status == MissingKeyError.status else {}


def problems(*errors: type[ProblemError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may raise `errors`."""
    titles: dict[int, list[str]] = {}
    for error in (*errors, *_EVERYWHERE):
        titles.setdefault(error.status, []).append(error.title)
    return {
        status: {
            "model": Problem,
            "description": "; ".join(titles[status]),
            "headers": _headers(status),
        }
        for status in sorted(titles)
    }
