from __future__ import annotations

import json
import os

import pytest

from service.printable import as_text, printable, printable_json

HARMLESS = "Müller/写真 (2) \\x41 🙂.jpg"


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (HARMLESS, HARMLESS),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\r\t\0\x7f", "a\\nb\\r\\t\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028\U000e0001", "\\u2028\\U000e0001"),
        (b"\xff\x80.jpg".decode("utf-8", "surrogateescape"), "\\xff\\x80.jpg"),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_terminal_gets_nothing_that_commands_it(raw: str, escaped: str) -> None:
    assert printable(raw) == escaped
    assert escaped.isprintable()


def test_a_name_as_text_is_utf8_and_else_as_it_was() -> None:
    odd = HARMLESS + "\x1b\n\u202e"
    assert as_text(odd) == odd
    name = os.fsdecode(b"h\xc3\xa9\xff\x9b.jpg")
    assert as_text(name) == "hé\\xff\\x9b.jpg"
    assert as_text("\ud800").encode("utf-8") == b"\\ud800"


def test_json_is_printable_and_the_same_document() -> None:
    document = {"source": HARMLESS + "\x1b\n\x9b\u202e\U000e0001", "ü": '"\\'}
    line = json.dumps(document, ensure_ascii=False)
    assert printable_json(line).isprintable()
    assert json.loads(printable_json(line)) == document
    assert "Müller/写真" in printable_json(line)
