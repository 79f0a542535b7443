"""Errors to replies: every error, whoever raised it, is a problem document (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPMethod, HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from service.errors import InvalidOptionError, ProblemError
from service.logs import log_fault
from service.schemas import FieldProblem, PredictOptions, Problem

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:problem-type:lan-fer:"
MAX_ECHO = 80
MAX_TOLD = 8  # of the faults of one request

logger = logging.getLogger(__name__)


def install_handlers(app: FastAPI) -> None:
    """Answer our errors, FastAPI's and Starlette's alike."""
    app.add_exception_handler(ProblemError, answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid_options)
    app.add_exception_handler(HTTPException, _answer_http)


def problem_of(
    error: ProblemError, request_id: str, fields: list[FieldProblem] | None = None
) -> Problem:
    """The problem document of `error`."""
    return Problem(
        type=TYPE_PREFIX + error.slug,
        title=error.title,
        status=error.status,
        detail=error.detail,
        request_id=request_id,
        errors=fields,
    )


def problem_response(
    request: Request, error: ProblemError, *, fields: list[FieldProblem] | None = None
) -> Response:
    """The reply to `error`."""
    problem = problem_of(error, request.state.request_id, fields)
    return _response(request, problem, error.headers)


def _response(request: Request, problem: Problem, headers: Mapping[str, str] | None) -> Response:
    request.state.problem = problem.type.removeprefix(TYPE_PREFIX)
    if request.url.path.startswith("/v2"):
        # The member in which clients of the Open Inference Protocol look for the reason.
        problem = problem.model_copy(update={"error": problem.detail})
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, problem.status, headers=headers, media_type=MEDIA_TYPE)


async def answer_problem(request: Request, error: Exception) -> Response:
    """The reply to a ProblemError; a fault of ours is logged."""
    assert isinstance(error, ProblemError)
    log_fault(logger, error)
    fields = None
    if isinstance(error, InvalidOptionError) and error.option:
        fields = [FieldProblem(location=f"query.{error.option}", message=error.detail)]
    return problem_response(request, error, fields=fields)


async def _answer_invalid_options(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    fields = [field_problem(e) for e in errors[:MAX_TOLD]]
    detail = "; ".join(f"{field.location}: {field.message}" for field in fields)
    if len(errors) > MAX_TOLD:
        detail += f"; and {len(errors) - MAX_TOLD} more"
    return problem_response(request, InvalidOptionError(detail), fields=fields)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    not_allowed = error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
    methods = _methods(request) if not_allowed else ""
    problem = Problem(
        type=TYPE_PREFIX + title.lower().replace(" ", "-"),
        title=title,
        status=error.status_code,
        detail=_http_detail(error, methods),
        request_id=request.state.request_id,
    )
    headers = {"Allow": methods} if methods else error.headers
    return _response(request, problem, headers)


def _methods(request: Request) -> str:
    """Those that the path takes; its routes, of which it may have several, know of their own."""
    taken = (m for m in HTTPMethod if _is_routed({**request.scope, "method": str(m)}, request.app))
    return ", ".join(sorted(taken))


def _is_routed(scope: Scope, app: FastAPI) -> bool:
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)


def _http_detail(error: HTTPException, methods: str) -> str:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return "There is nothing at this path."
    return f"This path takes {methods}." if methods else error.detail


_OPTIONS = [field.alias or name for name, field in PredictOptions.model_fields.items()]


def field_problem(error: Mapping[str, Any]) -> FieldProblem:
    """One of pydantic's errors without the value that was sent: it may be a whole photo."""
    location = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"])
    if error["type"] == "extra_forbidden":
        message = "There is no such option"
        if location.startswith("query."):
            message += f"; there are {', '.join(_OPTIONS)}"
    return FieldProblem(location=location[:MAX_ECHO], message=message)
