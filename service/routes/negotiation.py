"""Which of the offered media types a client wants."""

from __future__ import annotations

from typing import Literal, get_args

from mimeparse import MimeTypeParseException, best_match  # type: ignore[import-untyped]

from service.errors import NotAcceptableError

ReplyType = Literal["image/png", "image/jpeg", "application/json"]
# Where a client likes several equally, the last one wins.
OFFERED: tuple[ReplyType, ...] = get_args(ReplyType)


def reply_type(accept: str | None) -> ReplyType:
    """The best of OFFERED for an Accept header. Raises NotAcceptableError where there is none."""
    if not accept:
        return "application/json"
    try:
        best = best_match(OFFERED, accept)
    except MimeTypeParseException:
        best = None
    for offered in OFFERED:
        if best == offered:
            return offered
    raise NotAcceptableError(f"Accept must allow one of {', '.join(OFFERED)}.")
