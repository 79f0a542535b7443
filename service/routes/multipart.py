"""The files in a multipart/form-data body, kept in memory as its bytes come."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import MalformedRequestError, TooManyImagesError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_OTHER_FIELDS = 8
MAX_OTHER_FIELD_BYTES = 4096
# The parser takes what is no file byte by byte, in Python, and begins anew at each boundary that
# turns out to be none.
MAX_BETWEEN_BYTES = 64 * 1024
MAX_FALSE_BOUNDARIES = 1000


class FormFiles:
    """Takes a body piece by piece. Photos never touch the disk; the body's limit bounds them."""

    def __init__(self, content_type: str, field: str, *, most: int, hint: str = "") -> None:
        """Files in `field` are kept; more than `most` in the form are refused, with this hint.

        Raises MalformedRequestError where the header names no boundary.
        """
        # Apart from the parser that calls it: in a ring, a photo would stay until it is collected.
        self._parts = _Parts(field, most, hint)
        self._bytes = self._boundaries = 0
        self._most = most + MAX_OTHER_FIELDS
        self._most_between = MAX_BETWEEN_BYTES + 1024 * self._most
        _, parameters = parse_options_header(content_type)
        try:
            self._boundary = parameters[b"boundary"]
            self._parser = MultipartParser(self._boundary, self._parts.callbacks())
        except KeyError as error:
            raise _malformed("Its Content-Type names no boundary.") from error
        except FormParserError as error:
            raise _malformed("Its boundary is too long.") from error

    @property
    def names(self) -> set[str]:
        """The names of all fields so far."""
        return self._parts.names

    def write(self, piece: bytes) -> None:
        """Take the next bytes. Raises MalformedRequestError and TooManyImagesError."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _malformed("Its parts can't be told apart.") from error
        self._bytes += len(piece)
        if self._bytes - self._parts.data_bytes > self._most_between:
            raise _malformed(f"More than {self._most_between} bytes of it are in no part.")
        self._boundaries += piece.count(b"--" + self._boundary)
        if self._boundaries > MAX_FALSE_BOUNDARIES + self._most:
            raise _malformed("Its boundary occurs within its parts.")

    def finish(self) -> list[bytes]:
        """The files, in order. Raises MalformedRequestError where the body is cut."""
        if not self._parts.are_whole:  # the parser does not mind
            raise _malformed("It ends before its closing boundary.")
        return self._parts.files


class _Parts:
    """What the parser tells of a form."""

    def __init__(self, field: str, most: int, hint: str) -> None:
        self.names: set[str] = set()
        self.files: list[bytes] = []
        self.are_whole = False
        self._field = field
        self._most, self._hint = most, hint
        self.data_bytes = 0  # of all parts
        self._file_count = self._other_count = 0
        self._begin()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._take_header_name,
            "on_header_value": self._take_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._header_name = self._header_value = self._disposition = b""
        self._kept = BytesIO()  # gives what it holds without a copy
        self._is_file = self._is_kept = False
        self._bytes = 0

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        if b"name" not in parameters:
            raise _malformed("The Content-Disposition of a part names no field.")
        name = parameters[b"name"].decode("latin-1")
        self.names.add(name)
        self._is_file = b"filename" in parameters
        self._is_kept = self._is_file and name == self._field
        self._file_count += self._is_file
        self._other_count += not self._is_file
        if self._file_count > self._most:
            raise too_many_images(self._most, self._hint)
        if self._other_count > MAX_OTHER_FIELDS:
            raise _malformed(f"It has more than {MAX_OTHER_FIELDS} fields that are no files.")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_kept:
            self._kept.write(memoryview(data)[start:end])
        self._bytes += end - start
        self.data_bytes += end - start
        if not self._is_file and self._bytes > MAX_OTHER_FIELD_BYTES:
            raise _malformed(
                f"A field of the form has more than {MAX_OTHER_FIELD_BYTES} bytes. An image needs "
                "a file name: without one, its part is a field of the form."
            )

    def _end_part(self) -> None:
        if self._is_kept:
            self.files.append(self._kept.getvalue())

    def _end(self) -> None:
        self.are_whole = True


def too_many_images(most: int, hint: str = "") -> TooManyImagesError:
    """What is said to whoever sends more than `most` photos."""
    photos = "photo" if most == 1 else "photos"
    return TooManyImagesError(f"At most {most} {photos} can be sent in one call{hint}.")


def _malformed(detail: str) -> MalformedRequestError:
    return MalformedRequestError(f"The multipart body is malformed. {detail}")
