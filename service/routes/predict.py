"""POST /predict: a photo in, faces with expressions out."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.errors import (
    DeadlineExceededError,
    EmptyBodyError,
    ImageTooLargeError,
    InferenceError,
    InvalidImageError,
    InvalidOptionError,
    MissingImageError,
    NotAcceptableError,
    OverloadedError,
    PayloadTooLargeError,
    RateLimitedError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)
from service.options import check_options, wishes_of
from service.replies import Reply, WriteReply, Written
from service.routes.body import FIELD, read_photo
from service.routes.dependencies import RequestTimeout, ServiceDependency, problems
from service.routes.negotiation import ReplyType, reply_type
from service.routes.waiting import answer_in_time
from service.schemas import PredictJson, PredictOptions, PredictReply
from service.state import ServiceState

router = APIRouter(tags=["expressions"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "string", "format": "binary"}},
            }
        },
        "image/jpeg": _BINARY,
        "image/png": _BINARY,
        "image/webp": _BINARY,
        "image/gif": _BINARY,
        "image/bmp": _BINARY,
        "image/tiff": _BINARY,
        "application/json": {"schema": PredictJson.model_json_schema()},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PredictReply,
        "description": "The faces; or, as Accept asks, the photo with everything drawn on it.",
        "content": {"image/png": _BINARY, "image/jpeg": _BINARY},
    },
    **problems(
        EmptyBodyError,
        NotAcceptableError,
        PayloadTooLargeError,
        ImageTooLargeError,
        TooManyImagesError,
        UnsupportedMediaTypeError,
        InvalidOptionError,
        MissingImageError,
        InvalidImageError,
        OverloadedError,
        RateLimitedError,
        InferenceError,
        DeadlineExceededError,
    ),
}


@router.post(
    "/predict",
    summary="Read the expressions in a photo",
    responses=_RESPONSES,
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def predict(
    request: Request,
    options: Annotated[PredictOptions, Query()],
    service: ServiceDependency,
    timeout_ms: RequestTimeout = None,
) -> Response:
    """Finds every face, says which expression it shows, and where the network looked.

    Send the photo as the multipart field `file`, as a raw `image/*` body, or as base64 in JSON.
    With `Accept: image/jpeg` or `image/png` the photo itself comes back, with boxes, labels and
    heat maps drawn on it.
    """
    media_type = reply_type(request.headers.get("accept"))
    service.lifecycle.require_room()
    with service.bodies.hold() as take:
        check_options(
            options,
            max_faces=service.settings.max_faces,
            labels=service.model.classifier.labels,
        )
        arrived = time.perf_counter()
        photo = await read_photo(request, service, take)
        reply = Reply(options, request.state.request_id, time.perf_counter() - arrived)
        with service.lifecycle.admit_image():
            response = await answer_in_time(
                request,
                _answer(request, service, photo, reply, media_type),
                deadline_ms=min(service.settings.deadline_ms, timeout_ms or sys.maxsize),
            )
        if media_type != "application/json":
            take(len(response.body))  # as a PNG it may be many times as large as the photo
        return response


async def _answer(
    request: Request, service: ServiceState, photo: bytes, reply: Reply, media_type: ReplyType
) -> Response:
    written: Written = await service.reader.recognize(
        photo,
        WriteReply(reply, media_type),
        wishes_of(reply.options, whole=media_type != "application/json"),
    )
    service.metrics.observe_stages(
        {"receive": reply.receive_seconds, "render": written.render_seconds}
    )
    request.state.log_fields = _log_fields(written)
    headers = {"Server-Timing": _server_timing(written), "Vary": "Accept"}
    return Response(written.content, media_type=media_type, headers=headers)


def _log_fields(written: Written) -> dict[str, object]:
    height, width = written.size
    milliseconds = {
        f"{stage}_ms": round(seconds * 1000, 1) for stage, seconds in written.seconds.items()
    }
    return {
        "format": written.format,
        "pixels": f"{width}x{height}",
        "faces": written.faces_found,
        **milliseconds,
    }


def _server_timing(written: Written) -> str:
    return ", ".join(
        f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in written.seconds.items()
    )
