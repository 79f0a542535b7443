"""Text that others wrote, made fit for an error message."""

from __future__ import annotations

MAX_CHARACTERS = 1000


def printable(text: str, most: int = MAX_CHARACTERS) -> str:
    """At most so many characters of it, those that a terminal would act upon as escapes."""
    escaped = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:most]
    )
    return escaped + "…" * (len(text) > most)
