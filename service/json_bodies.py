"""JSON that clients send, before it is parsed."""

from __future__ import annotations

import codecs

from service.errors import MalformedRequestError

# A data URI has one; the longest batch that can be set has 10,000 of them, and as many between.
MAX_COMMAS = 30_000


def checked_json(text: bytes) -> bytes:
    """The text without a byte order mark, which some clients put before it (RFC 8259, 8.1).

    A small body of many values takes hundreds of times its bytes, and the parser's errors more:
    raises MalformedRequestError.
    """
    if text.count(b",") > MAX_COMMAS:
        raise MalformedRequestError(
            f"The JSON has more than {MAX_COMMAS} commas: more values than any request needs."
        )
    return text.removeprefix(codecs.BOM_UTF8)
