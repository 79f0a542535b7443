"""Which of the offered media types a client wants."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

from mimeparse import MimeTypeParseException, best_match  # type: ignore[import-untyped]

from service.errors import NotAcceptableError

ReplyType = Literal["image/png", "image/jpeg", "application/json"]
# Where a client likes several equally, the last one wins.
OFFERED: tuple[ReplyType, ...] = get_args(ReplyType)


# To parse a longer one would take time that grows with its square.
MAX_ACCEPT_BYTES = 1000


@lru_cache(maxsize=16)  # of most clients; a header may be long
def reply_type(accept: str | None, offered: tuple[ReplyType, ...] = OFFERED) -> ReplyType:
    """The best of `offered` for an Accept header. Raises NotAcceptableError where there is none."""
    if not accept:
        return "application/json"
    if len(accept) > MAX_ACCEPT_BYTES:
        raise NotAcceptableError(f"Accept has more than {MAX_ACCEPT_BYTES} bytes.")
    try:
        best = best_match(offered, accept)
    except MimeTypeParseException:
        best = None
    for media_type in offered:
        if best == media_type:
            return media_type
    raise NotAcceptableError(f"Accept must allow one of {', '.join(offered)}.")
