"""The bytes of the photo out of a request body, under limits that hold while it is read."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from io import BytesIO

import pybase64
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from service.errors import (
    EmptyBodyError,
    InvalidImageError,
    InvalidOptionError,
    MalformedRequestError,
    MissingImageError,
    PayloadTooLargeError,
    RequestError,
    SlowRequestError,
    UnsupportedMediaTypeError,
)
from service.json_bodies import checked_json
from service.problems import field_problem
from service.routes.multipart import FormFiles, too_many_images
from service.schemas import PredictBatchJson, PredictJson, PredictOptions
from service.settings import Settings
from service.state import ServiceState

FIELD = "file"
ACCEPTED = "multipart/form-data, application/json or image/*"
OPTIONS = frozenset(field.alias or name for name, field in PredictOptions.model_fields.items())
HINT = "; several go to /predict/batch"
ACCEPTED_BATCH = "multipart/form-data or application/json"


async def read_photo(request: Request, service: ServiceState, take: Callable[[int], None]) -> bytes:
    """The image file in the request: multipart field `file`, raw image/* body, or JSON.

    `take` is told the length of each piece before it is kept, and may refuse it. Raises
    EmptyBodyError, MalformedRequestError, MissingImageError, InvalidImageError,
    InvalidOptionError, OverloadedError, PayloadTooLargeError, SlowRequestError,
    UnsupportedMediaTypeError and ClientDisconnect.
    """
    _check_head(request.headers, service.settings)
    kind = _kind(request.headers)
    if kind == "multipart/form-data":
        return (await _from_multipart(request, service, take, most=1, hint=HINT))[0]
    if kind.startswith("image/"):
        return await _whole(request, service, take)
    if kind != "application/json":
        raise _unsupported(kind, ACCEPTED)
    body = await _whole(request, service, take)
    return await asyncio.get_running_loop().run_in_executor(service.pool, _from_json, body)


async def read_photos(
    request: Request, service: ServiceState, take: Callable[[int], None]
) -> Sequence[bytes | InvalidImageError]:
    """The image files in the request, in order: multipart fields `file`, or JSON.

    In place of one whose base64 is broken stands its error. Raises what read_photo raises, and
    TooManyImagesError.
    """
    settings = service.settings
    most = min(settings.max_batch_images, settings.max_in_flight_images)
    _check_head(request.headers, settings)
    kind = _kind(request.headers)
    if kind == "multipart/form-data":
        return await _from_multipart(request, service, take, most=most)
    if kind != "application/json":
        raise _unsupported(kind, ACCEPTED_BATCH)
    body = await _whole(request, service, take)
    parse = partial(_many_from_json, body, most)
    return await asyncio.get_running_loop().run_in_executor(service.pool, parse)


async def read_body(request: Request, service: ServiceState, take: Callable[[int], None]) -> bytes:
    """The whole body, of whatever type, under the limits of `read_photo`."""
    _check_head(request.headers, service.settings)
    return await _whole(request, service, take)


def _kind(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _unsupported(kind: str, accepted: str) -> UnsupportedMediaTypeError:
    got = f"not {kind[:100]}" if kind else "and there is none"
    return UnsupportedMediaTypeError(f"Content-Type must be {accepted}, {got}.")


def _check_head(headers: Headers, settings: Settings) -> None:
    _check_length(headers, settings.max_body_bytes)
    _check_encoding(headers)


def _check_length(headers: Headers, max_bytes: int) -> None:
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        length = "0"  # HTTP/1.1: neither header, no body
    if length is None:
        return
    if not length.isdecimal():
        raise MalformedRequestError("Content-Length is not a number.")
    if int(length) == 0:
        raise EmptyBodyError("The body is empty; send an image file.")
    if int(length) > max_bytes:
        raise PayloadTooLargeError(f"The body has {length} bytes; at most {max_bytes} are taken.")


def _check_encoding(headers: Headers) -> None:
    if headers.get("transfer-encoding", "chunked").lower() != "chunked":
        raise MalformedRequestError("Transfer-Encoding must be chunked, and nothing else.")
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaTypeError("Content-Encoding must be absent: send the file as it is.")


async def _receive(
    request: Request,
    settings: Settings,
    take: Callable[[int], None],
    put: Callable[[bytes], object],
) -> None:
    """Give `put` the pieces of the body; the Content-Length may be absent, so they are counted."""
    now = asyncio.get_running_loop().time
    end = now() + settings.body_timeout_ms / 1000
    received, more = 0, True
    try:
        async with asyncio.timeout_at(end) as limit:
            while more:
                limit.reschedule(min(end, now() + settings.stall_timeout_ms / 1000))
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece, more = message.get("body", b""), message.get("more_body", False)
                received += len(piece)
                if received > settings.max_body_bytes:
                    raise PayloadTooLargeError(
                        f"The body has more than {settings.max_body_bytes} bytes."
                    )
                take(len(piece))
                put(piece)
    except TimeoutError as error:
        raise SlowRequestError(
            f"The body did not arrive within {settings.body_timeout_ms} ms."
            if now() >= end
            else f"Nothing came of the body for {settings.stall_timeout_ms} ms."
        ) from error


async def _whole(request: Request, service: ServiceState, take: Callable[[int], None]) -> bytes:
    kept = BytesIO()
    await _receive(request, service.settings, take, kept.write)
    if not (body := kept.getvalue()):
        raise EmptyBodyError("The body is empty; send an image file.")
    return body


async def _from_multipart(
    request: Request,
    service: ServiceState,
    take: Callable[[int], None],
    *,
    most: int,
    hint: str = "",
) -> list[bytes]:
    """The files in the field FIELD: one or more, in order."""
    form = FormFiles(request.headers["content-type"], FIELD, most=most, hint=hint)
    await _receive(request, service.settings, take, form.write)
    files = form.finish()
    _refuse_options(form.names)
    if not files:
        raise MissingImageError(
            f"The form needs a field {FIELD!r} that holds an image file, with a file name."
        )
    return files


def _refuse_options(names: Iterable[str]) -> None:
    """An option in the body would be passed over in silence."""
    if misplaced := sorted(OPTIONS.intersection(names)):
        raise InvalidOptionError(
            f"Options go into the address, not into the body: ?{misplaced[0]}=...", misplaced[0]
        )


def _from_json(body: bytes) -> bytes:
    try:
        text = PredictJson.model_validate_json(checked_json(body)).image
    except ValidationError as error:
        raise _json_error(error, '{"image": "<base64 or data URI>"}') from error
    return decode_base64(text)


def _many_from_json(body: bytes, most: int) -> list[bytes | InvalidImageError]:
    try:
        texts = PredictBatchJson.model_validate_json(checked_json(body)).images
    except ValidationError as error:
        raise _json_error(error, '{"images": ["<base64 or data URI>", ...]}') from error
    if not texts:
        raise MissingImageError("images: the list is empty.")
    if len(texts) > most:
        raise too_many_images(most)
    return [_decoded_or_error(text) for text in texts]


def _decoded_or_error(text: str) -> bytes | InvalidImageError:
    try:
        return decode_base64(text)
    except InvalidImageError as error:
        return error


def decode_base64(text: str) -> bytes:
    """The image file in base64 or a data URI. Raises InvalidImageError."""
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise InvalidImageError("image: a data URI must be in base64 (data:image/...;base64,).")
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImageError(
            "image: neither base64 (with + and /, padded with =, without line breaks) nor a data "
            "URI; web addresses and file names are not read."
        ) from error


def _json_error(error: ValidationError, form: str) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return MalformedRequestError("The body is no valid JSON.")
    problem = field_problem(first)
    if first["type"] == "extra_forbidden":
        return InvalidOptionError(
            f"The body must be {form} and nothing else; options go into the address. "
            f"{problem.location}: {problem.message}"
        )
    return MissingImageError(
        f"The body must be {form}. {problem.location or 'body'}: {problem.message}"
    )
