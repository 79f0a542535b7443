"""The name that a request is counted, logged and traced under: never the path as it was sent."""

from __future__ import annotations

from starlette.types import Scope

UNMATCHED = "unmatched"


def route_of(scope: Scope) -> str:
    """The path that the app declares for what answered the request; UNMATCHED where nothing did."""
    if path := getattr(scope.get("route"), "path", None):
        return str(path)
    # Starlette's own routes (the OpenAPI document, the files of its page) leave word only of what
    # they have called.
    called = scope.get("endpoint")
    if called is not None:
        for route in scope["app"].routes:
            if called in (getattr(route, "endpoint", None), getattr(route, "app", None)):
                return str(route.path)
    return UNMATCHED
