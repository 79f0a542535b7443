"""What the clients make of what comes back, which may be anyone's: a proxy's, a login page."""

from __future__ import annotations

from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from lan_fer_client.calls import Call
from lan_fer_client.errors import BadReplyError, ConnectionFailedError, ProblemError
from lan_fer_client.models import BatchReply, PredictReply, Problem
from lan_fer_client.retries import Outcome, retry_after
from lan_fer_client.text import printable

MEBIBYTE = 1024 * 1024
MAX_JSON_BYTES = 64 * MEBIBYTE  # many photos of many faces, all with overlays, come to some 35
MAX_PICTURE_BYTES = 128 * MEBIBYTE  # twice what the service sends
MAX_JSON_PARTS = 1_000_000  # commas and brackets: a face has some 200; each may take a kilobyte
MAX_EXCERPT = 200  # characters
MAX_COUNTED_ERRORS = 100

Model = TypeVar("Model", bound=BaseModel)


class Reading:
    """A reply on its way in: what has come of its body."""

    def __init__(self, call: Call, response: httpx.Response) -> None:
        self._response = response
        self._body = bytearray()
        picture = call.wants_picture and response.is_success
        self._most = MAX_PICTURE_BYTES if picture else MAX_JSON_BYTES
        # No call asks for compression, so that a few bytes cannot come to gigabytes.
        encoding = response.headers.get("content-encoding", "identity")
        self.is_plain = encoding.lower() == "identity"

    def add(self, piece: bytes) -> None:
        """Raises httpx.TransportError where it gets too long."""
        if len(self._body) + len(piece) > self._most:
            raise httpx.TransportError(f"a reply of more than {self._most // MEBIBYTE} MiB")
        self._body += piece

    def done(self) -> httpx.Response:
        """The reply with its body. Raises BadReplyError where it is compressed and no error."""
        if not self.is_plain and self._response.is_success:
            raise _bad(self._response, "it is compressed, which was not asked for")
        headers = self._response.headers.copy()
        headers.pop("content-encoding", None)
        return httpx.Response(
            self._response.status_code,
            headers=headers,
            content=bytes(self._body),
            request=self._response.request,
            extensions=self._response.extensions,
        )


def checked(outcome: Outcome) -> httpx.Response:
    """A reply that is no error. Raises ConnectionFailedError and ProblemError."""
    if isinstance(outcome, httpx.RequestError):
        reason = printable(str(outcome)) or type(outcome).__name__
        raise ConnectionFailedError(f"no reply from the service: {reason}") from outcome
    if outcome.is_success:
        return outcome
    raise ProblemError(_problem(outcome), retry_after_seconds=retry_after(outcome))


def parsed(model: type[Model], response: httpx.Response) -> Model:
    """What the body says. Raises BadReplyError where that is not what the service answers."""
    body = response.content
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_PARTS:
        raise _bad(response, f"more than {MAX_JSON_PARTS} values")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        reason = _reason(error)
    raise _bad(response, f"{reason}; it begins with '{_excerpt(response)}'")


def picture(response: httpx.Response, media_type: str) -> bytes:
    """The body, an image file. Raises BadReplyError where it says that it is something else."""
    if response.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise _bad(response, f"no {media_type}; it begins with '{_excerpt(response)}'")
    return response.content


def answers(response: httpx.Response, photos: int) -> list[PredictReply | Problem]:
    """A reply or a problem for each of so many photos. Raises BadReplyError."""
    reply = parsed(BatchReply, response)
    found = [item.reply or item.problem for item in reply.results]
    given = [answer for answer in found if answer is not None]
    if len(given) != photos or len(found) != photos:
        raise _bad(response, f"{len(given)} answers for {photos} photos")
    return given


def _problem(response: httpx.Response) -> Problem:
    if response.has_redirect_location:
        where = printable(response.headers["location"], MAX_EXCERPT)
        detail = f"redirects are not followed; give the final address, this one leads to {where}"
        return _foreign(response, detail)
    try:
        return parsed(Problem, response)
    except BadReplyError:
        return _foreign(response, _excerpt(response))


def _foreign(response: httpx.Response, detail: str) -> Problem:
    """Not the service's: a proxy between here and there."""
    return Problem(
        type="about:blank",
        title=printable(response.reason_phrase, MAX_EXCERPT) or "Unknown Error",
        status=response.status_code,
        detail=detail,
        request_id=printable(response.headers.get("x-request-id", ""), MAX_EXCERPT),
    )


def _bad(response: httpx.Response, reason: str) -> BadReplyError:
    content_type = response.headers.get("content-type", "")
    return BadReplyError(reason, status=response.status_code, content_type=content_type)


def _excerpt(response: httpx.Response) -> str:
    # Four bytes are the most that a character of UTF-8 has.
    text = response.content[: 4 * (MAX_EXCERPT + 1)].decode("utf-8", errors="replace")
    return printable(text, MAX_EXCERPT)


def _reason(error: ValidationError) -> str:
    if error.error_count() > MAX_COUNTED_ERRORS:  # as a list they would take gigabytes
        return f"{error.error_count()} mistakes"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
