"""Calls as values: what both clients send, and what they make of what comes back."""

from __future__ import annotations

import http
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from pydantic import ValidationError

from lan_fer_client.errors import ConnectionFailedError, ProblemError
from lan_fer_client.models import BatchReply, PredictOptions, PredictReply, Problem
from lan_fer_client.retries import retry_after

Photo = str | Path | bytes
"""A path, or the bytes of an image file."""

FIELD = "file"
MAX_FOREIGN_TEXT = 200


@dataclass(frozen=True)
class Call:
    """One request, which can be sent several times."""

    method: str
    path: str
    params: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    photos: tuple[tuple[str, bytes], ...] = ()

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request as httpx sends it."""
        files = [(FIELD, photo) for photo in self.photos] or None
        return http.build_request(
            self.method, self.path, params=self.params, headers=self.headers, files=files
        )


def predict_call(
    path: str, photos: Sequence[Photo], options: PredictOptions, *, accept: str = "application/json"
) -> Call:
    """Photos to be read.

    Raises OSError where a file cannot be read, ValueError for a web address, which is not fetched,
    and TypeError for a photo alone, which would be taken letter by letter.
    """
    if isinstance(photos, str | Path | bytes | bytearray | memoryview):
        raise TypeError(
            f"photos are a list of photos, not one alone ({type(photos).__name__}); "
            "put it into a list, or call predict"
        )
    given = options.model_dump(exclude_defaults=True, by_alias=True)
    return Call(
        "POST",
        path,
        params={name: str(value) for name, value in given.items()},
        headers={"Accept": accept},
        photos=tuple(_named(photo) for photo in photos),
    )


def _named(photo: Photo) -> tuple[str, bytes]:
    if isinstance(photo, bytes):
        return "photo", photo
    if isinstance(photo, str) and "://" in photo:
        raise ValueError(f"{photo}: a web address is not fetched; give a path, or the file's bytes")
    path = Path(photo)
    return path.name, path.read_bytes()


def checked(outcome: httpx.Response | httpx.TransportError) -> httpx.Response:
    """A reply that is no error. Raises ConnectionFailedError and ProblemError."""
    if isinstance(outcome, httpx.TransportError):
        reason = str(outcome) or type(outcome).__name__
        raise ConnectionFailedError(f"no reply from the service: {reason}") from outcome
    if outcome.is_success:
        return outcome
    raise ProblemError(_problem(outcome), retry_after_seconds=retry_after(outcome))


def _problem(response: httpx.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        # Not the service's: a proxy between here and there.
        return Problem(
            type="about:blank",
            title=http.HTTPStatus(response.status_code).phrase,
            status=response.status_code,
            detail=response.text[:MAX_FOREIGN_TEXT],
            request_id=response.headers.get("x-request-id", ""),
        )


def answers(response: httpx.Response) -> list[PredictReply | Problem]:
    """A reply or a problem for each photo."""
    reply = BatchReply.model_validate_json(response.content)
    found = [item.reply or item.problem for item in reply.results]
    return [answer for answer in found if answer is not None]
