"""What guards a route: an API key, and the rate limit of its name."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.errors import MissingKeyError, ProblemError, RateLimitedError, UnknownKeyError
from service.routes.dependencies import ServiceDependency, problems

KEY_HEADER = "X-API-Key"

_header = APIKeyHeader(name=KEY_HEADER, scheme_name="apiKey", auto_error=False)
_bearer = HTTPBearer(scheme_name="bearer", auto_error=False)


async def _require_key(
    request: Request,
    service: ServiceDependency,
    header: Annotated[str | None, Security(_header)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> None:
    """Raises MissingKeyError and UnknownKeyError; the key's name goes into the log."""
    given = header or (bearer.credentials if bearer else None)
    request.state.key_name = service.access.name_of(given)


async def _spend(request: Request, service: ServiceDependency) -> None:
    """Raises RateLimitedError; what is refused for want of room is not counted."""
    service.lifecycle.require_room()
    await service.access.spend(request.state.key_name)


def include_guarded(app: FastAPI, router: APIRouter, *, counted: bool = False) -> None:
    """Add a router whose requests need a key, where keys are set; `counted`: under its limit."""
    access = app.state.service.access
    if not access.asks_for_keys:
        app.include_router(router)
        return
    dependencies = [Depends(_require_key)]
    errors: list[type[ProblemError]] = [MissingKeyError, UnknownKeyError]
    if counted and access.limits_rates:
        dependencies.append(Depends(_spend))
        errors.append(RateLimitedError)
    responses: dict[int | str, dict[str, Any]] = problems(*errors)
    app.include_router(router, dependencies=dependencies, responses=responses)
