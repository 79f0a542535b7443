from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from service import errors
from service.errors import OverloadedError, ProblemError, ServiceError, StartupError


def family(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for child in root.__subclasses__():
        yield child
        yield from family(child)


PUBLIC = [error for error in family(ServiceError) if not error.__name__.startswith("_")]
PROBLEMS = [e for e in PUBLIC if issubclass(e, ProblemError) and hasattr(e, "status")]


def test_docstring_draws_the_whole_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+)(?: +(\d{3}))?", errors.__doc__ or "")
    statuses = {e.__name__: str(getattr(e, "status", "")) for e in PUBLIC}
    assert dict(drawn) == statuses


@pytest.mark.parametrize("error", PROBLEMS)
def test_every_problem_is_complete(error: type[ProblemError]) -> None:
    assert 400 <= error.status < 600
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error.slug)
    assert error.title
    assert error("why").detail == "why"


def test_types_of_problems_differ() -> None:
    slugs = [error.slug for error in PROBLEMS]
    assert len(set(slugs)) == len(slugs)


def test_error_that_passes_says_when_to_try_again() -> None:
    assert OverloadedError("full", retry_after_seconds=7).headers == {"Retry-After": "7"}


def test_start_errors_are_no_http_errors() -> None:
    assert not any(issubclass(error, ProblemError) for error in family(StartupError))
