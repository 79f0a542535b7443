"""Names of files as text: whole for those who read the answers, harmless to a terminal.

A name may hold anything but NUL: bytes that are no UTF-8 (surrogates in Python, PEP 383), line
breaks that look like lines of ours, commands to the terminal.
"""

from __future__ import annotations

import json
import re

SURROGATE = re.compile("[\ud800-\udfff]")
BYTE = 0xDC00  # what Python adds to a byte that is no UTF-8


def as_text(name: str) -> str:
    r"""`name` with bytes that are no UTF-8 as `\xff`, as a shell's `$'...'` has them.

    Every reader takes that; surrogates are refused by most, in JSON too, and the bytes themselves
    would make a file that is no UTF-8. All else stays as it is.
    """
    return SURROGATE.sub(lambda found: _escaped(found[0]), name)


def printable(text: str) -> str:
    r"""`text` for a terminal: what is not printable as `\n`, `\x1b`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def printable_json(line: str) -> str:
    r"""The same document, what is not printable escaped as JSON does: `\u001b`."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in line)


def _escaped(char: str) -> str:
    byte = ord(char) - BYTE
    if 0x80 <= byte <= 0xFF:
        return f"\\x{byte:02x}"
    return char.encode("unicode_escape").decode("ascii")
