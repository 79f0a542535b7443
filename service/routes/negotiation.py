"""Which of the offered media types a client wants."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

from mimeparse import MimeTypeParseException, best_match  # type: ignore[import-untyped]

from service.errors import NotAcceptableError

ReplyType = Literal["image/png", "image/jpeg", "application/json"]
# Where a client likes several equally, the last one wins.
OFFERED: tuple[ReplyType, ...] = get_args(ReplyType)


@lru_cache(maxsize=16)  # of most clients; a header may be long
def reply_type(accept: str | None, offered: tuple[ReplyType, ...] = OFFERED) -> ReplyType:
    """The best of `offered` for an Accept header. Raises NotAcceptableError where there is none."""
    if not accept:
        return "application/json"
    try:
        best = best_match(offered, accept)
    except MimeTypeParseException:
        best = None
    for media_type in offered:
        if best == media_type:
            return media_type
    raise NotAcceptableError(f"Accept must allow one of {', '.join(offered)}.")
