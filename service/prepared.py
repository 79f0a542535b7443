"""Replies in bytes, for what is answered before the app hears of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from http import HTTPStatus

from service.errors import ProblemError
from service.problems import MEDIA_TYPE, problem_of
from service.security_headers import HEADERS


class PreparedReply:
    """The whole reply to an error, all of it written beforehand but for what differs by request."""

    def __init__(self, error: ProblemError) -> None:
        unknown = uuid.uuid4().hex
        body = problem_of(error, unknown).model_dump_json(exclude_none=True).encode()
        self._body_start, _, self._body_end = body.partition(unknown.encode())
        headers = {
            "content-type": MEDIA_TYPE,
            "cache-control": "no-store",
            **{name.lower(): value for name, value in (error.headers | HEADERS).items()},
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join([*lines, ""]).encode()
        self._more: Sequence[tuple[bytes, bytes]] = ()
        self._start = self._head  # with those of `_more`

    def to(
        self, request_id: str, more: Sequence[tuple[bytes, bytes]] = (), *, close: bool = True
    ) -> bytes:
        """The reply to this request (its id in ASCII, safe in JSON), with `more` headers."""
        if more is not self._more:  # the date; each second another
            self._more = more
            self._start = self._head + b"".join(b"%b: %b\r\n" % header for header in more)
        named = request_id.encode()
        length = len(self._body_start) + len(named) + len(self._body_end)
        own = b"content-length: %d\r\nx-request-id: %b\r\n" % (length, named)
        end = b"connection: close\r\n\r\n" if close else b"\r\n"
        return b"".join((self._start, own, end, self._body_start, named, self._body_end))
