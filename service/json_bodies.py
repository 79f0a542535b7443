"""JSON that clients send, before it is parsed."""

from __future__ import annotations

from service.errors import MalformedRequestError

# A data URI has one; the longest batch that can be set has 10,000 of them, and as many between.
MAX_COMMAS = 30_000


def check_json(text: bytes) -> None:
    """A small body of many values takes hundreds of times its bytes, and the parser's errors more.

    Raises MalformedRequestError.
    """
    if text.count(b",") > MAX_COMMAS:
        raise MalformedRequestError(
            f"The JSON has more than {MAX_COMMAS} commas: more values than any request needs."
        )
