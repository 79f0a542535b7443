"""Forms in pieces of any size, and nothing of them that stays."""

from __future__ import annotations

import gc
import weakref

import pytest

from service.errors import MalformedRequestError, TooManyImagesError
from service.routes.multipart import FormFiles

TYPE = 'multipart/form-data; boundary="limit; 1"'
PHOTO = b"\xff\xd8 photo \r\n--limit \r\n\r\n--limi\r\n" + bytes(range(256))


def part(name: str, content: bytes, file_name: str | None = "a.jpg") -> bytes:
    named = f'; filename="{file_name}"' if file_name else ""
    disposition = f'Content-Disposition: form-data; name="{name}"{named}'
    return b"--limit; 1\r\nX-Other: y\r\n" + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


FORM = (part("comment", b"a text", None), part("file", PHOTO), part("other", b"not kept"))
BODY = b"".join(FORM) + part("file", b"") + b"--limit; 1--\r\n"


def read(body: bytes) -> list[bytes]:
    form = FormFiles(TYPE, "file", most=1)
    form.write(body)
    return form.finish()


@pytest.mark.parametrize("size", [1, 2, 7, 100, len(BODY)])
def test_files_of_the_field_come_in_order(size: int) -> None:
    form = FormFiles(TYPE, "file", most=3)
    for start in range(0, len(BODY), size):
        form.write(BODY[start : start + size])
    assert form.finish() == [PHOTO, b""]
    assert form.names == {"comment", "file", "other"}


def test_files_of_every_field_are_counted() -> None:
    with pytest.raises(TooManyImagesError, match=r"At most 2 photos .* one call; go on"):
        FormFiles(TYPE, "file", most=2, hint="; go on").write(BODY)


@pytest.mark.parametrize(
    ("content_type", "says"),
    [
        ("multipart/form-data", "names no boundary"),
        ("multipart/form-data; boundary=" + "x" * 1000, "too long"),
    ],
)
def test_what_the_header_lacks_is_said(content_type: str, says: str) -> None:
    with pytest.raises(MalformedRequestError, match=says):
        FormFiles(content_type, "file", most=1)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"no boundary at all", "can't be told apart"),
        (part("file", PHOTO), "closing boundary"),
        (b"--limit; 1\r\nContent-Disposition: form-data\r\n\r\nx", "names no field"),
        (b"--limit; 1\r\nContent-Type: image/jpeg\r\n\r\nx", "names no field"),
        (part("a", b"x", None) * 9, "more than 8 fields"),
        (part("file", b"x" * 5000, None), "needs a file name"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: bytes, says: str) -> None:
    with pytest.raises(MalformedRequestError, match=says):
        read(body)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (part("file", b"x") + b"--limit; 1" + b" " * 10**6, "in no part"),
        (b"\r\n" * 10**5, "in no part"),
        (part("file", b"x") + b"--limit; 1--\r\n" + b"an epilogue" * 10**4, "in no part"),
        (part("file", b"\r\n--limit; 1!" * 2000) + b"--limit; 1--\r\n", "within its parts"),
    ],
)
def test_a_form_of_hardly_any_photo_is_not_parsed_to_its_end(body: bytes, says: str) -> None:
    """The parser takes what is no photo byte by byte, in Python."""
    form = FormFiles(TYPE, "file", most=1)
    with pytest.raises(MalformedRequestError, match=says):  # noqa: PT012
        for start in range(0, len(body), 1000):
            form.write(body[start : start + 1000])


def test_a_form_is_gone_as_soon_as_nobody_needs_it() -> None:
    """In a ring of references its photo would stay until the next collection."""
    gc.disable()
    try:
        form = FormFiles(TYPE, "file", most=3)
        form.write(BODY)
        parts = weakref.ref(form._parts)
        del form
        assert parts() is None
    finally:
        gc.enable()
