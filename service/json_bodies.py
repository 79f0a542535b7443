"""JSON that clients send, before it is parsed."""

from __future__ import annotations

import codecs

from service.errors import MalformedRequestError

# A data URI has a comma; the longest batch that can be set has 10,000 of them, and as many between.
MAX_MARKS = 30_000


def checked_json(text: bytes) -> bytes:
    """The text without a byte order mark, which some clients put before it (RFC 8259, 8.1).

    A small body of many values takes hundreds of times its bytes, and the parser's errors more:
    raises MalformedRequestError.
    """
    # No value is without one of these before it. In base64 there are none.
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise MalformedRequestError(
            f"The JSON has more than {MAX_MARKS} commas and opening brackets: more values than any "
            "request needs."
        )
    return text.removeprefix(codecs.BOM_UTF8)
