"""The files in a multipart/form-data body, kept in memory as its bytes come."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import MalformedRequestError, TooManyImagesError

MAX_OTHER_FIELDS = 8
MAX_OTHER_FIELD_BYTES = 4096


class FormFiles:
    """Takes a body piece by piece; photos never touch the disk, and the body's limit bounds them.

    `names` are those of all fields so far.
    """

    def __init__(self, content_type: str, field: str, *, most: int, hint: str = "") -> None:
        """Files in `field` are kept; more than `most` in the form are refused, with this hint.

        Raises MalformedRequestError where the header names no boundary.
        """
        self.names: set[str] = set()
        self._field = field
        self._most, self._hint = most, hint
        self._files: list[bytes] = []
        self._parts = {"file": 0, "field": 0}
        self._is_whole = False
        self._begin_part()
        _, parameters = parse_options_header(content_type)
        try:
            self._parser = MultipartParser(
                parameters[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._take_header_name,
                    "on_header_value": self._take_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._take_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except KeyError as error:
            raise _malformed("Its Content-Type names no boundary.") from error
        except FormParserError as error:
            raise _malformed("Its boundary is too long.") from error

    def write(self, piece: bytes) -> None:
        """Take the next bytes. Raises MalformedRequestError and TooManyImagesError."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _malformed("Its parts can't be told apart.") from error

    def finish(self) -> list[bytes]:
        """The files, in order. Raises MalformedRequestError where the body is cut."""
        if not self._is_whole:  # the parser does not mind
            raise _malformed("It ends before its closing boundary.")
        return self._files

    # --- the parser's events ----------------------------------------------------------------

    def _begin_part(self) -> None:
        self._header_name = self._header_value = self._disposition = b""
        self._pieces: list[memoryview] = []
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
        kind = "file" if self._is_file else "field"
        self._parts[kind] += 1
        if self._parts["file"] > self._most:
            raise too_many_images(self._most, self._hint)
        if self._parts["field"] > MAX_OTHER_FIELDS:
            raise _malformed(f"It has more than {MAX_OTHER_FIELDS} fields that are no files.")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_kept:
            self._pieces.append(memoryview(data)[start:end])
        self._bytes += end - start
        if not self._is_file and self._bytes > MAX_OTHER_FIELD_BYTES:
            raise _malformed(
                f"A field of the form has more than {MAX_OTHER_FIELD_BYTES} bytes. An image needs "
                "a file name: without one, its part is a field of the form."
            )

    def _end_part(self) -> None:
        if self._is_kept:
            self._files.append(b"".join(self._pieces))
            self._pieces.clear()

    def _end(self) -> None:
        self._is_whole = True


def too_many_images(most: int, hint: str = "") -> TooManyImagesError:
    """What is said to whoever sends more than `most` photos."""
    photos = "photo" if most == 1 else "photos"
    return TooManyImagesError(f"At most {most} {photos} can be sent in one call{hint}.")


def _malformed(detail: str) -> MalformedRequestError:
    return MalformedRequestError(f"The multipart body is malformed. {detail}")
