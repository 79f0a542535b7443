"""What someone who mistyped a name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about `name`: the known name that is like it; empty where none is.

    `prefix` is put before what is known.
    """
    like = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{like[0]}?" if like else ""
