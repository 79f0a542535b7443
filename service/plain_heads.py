"""Heads of requests that can be understood without an HTTP parser: those of most photos.

Under overload most requests are refused. To parse their heads, and their bodies for nothing, is an
eighth of what a refusal costs.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

MAX_HEAD_BYTES = 8192
# Clients send the same heads again and again; these are remembered, 2 MiB of them at most.
REMEMBERED = 256

# A head that means the same to everybody: nothing folded, no odd white space, visible ASCII alone.
_PLAIN_HEAD = re.compile(
    rb"POST (/[a-z/]*)(?:\?[!-~]*)? HTTP/1\.1(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+: [!-~][ -~]*)+"
)
_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]{1,12})\r\n")
_KEEPS_ALIVE = b"\r\nconnection: keep-alive\r\n"
# What changes how a request is read or answered is for the parser.
_MEANS_MORE = re.compile(
    rb"\r\n(?:(?:proxy-)?connection|expect|keep-alive|te|trailer|transfer-encoding|upgrade|x-request-id):"
)
_ONCE = (b"\r\nhost:", b"\r\ncontent-length:")


class PlainHead(NamedTuple):
    """The head of a POST with a body of known length, and nothing else to mind."""

    path: bytes
    """Without the options behind it."""
    head_bytes: int
    body_bytes: int

    @classmethod
    def of(cls, data: bytes) -> PlainHead | None:
        """The head that `data` begins with; None where it is cut, or has to be parsed."""
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        return None if end < 0 else _read(data[: end + 2])


@lru_cache(maxsize=REMEMBERED)
def _read(head: bytes) -> PlainHead | None:
    """Of a head up to the end of its last line, without the empty one."""
    if (whole := _PLAIN_HEAD.fullmatch(head, 0, len(head) - 2)) is None:
        return None
    lines = head.lower().replace(_KEEPS_ALIVE, b"\r\n", 1)
    if _MEANS_MORE.search(lines) or any(lines.count(name) != 1 for name in _ONCE):
        return None
    length = _LENGTH.search(lines)
    return None if length is None else PlainHead(whole[1], len(head) + 2, int(length[1]))
