"""POST /predict: a photo in, faces with expressions out."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.budgets import Room
from service.errors import (
    DeadlineExceededError,
    EmptyBodyError,
    ImageTooLargeError,
    InferenceError,
    InvalidImageError,
    InvalidOptionError,
    MalformedRequestError,
    MissingImageError,
    NotAcceptableError,
    OverloadedError,
    PayloadTooLargeError,
    RateLimitedError,
    SlowRequestError,
    TooManyImagesError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from service.options import check_options
from service.pipeline import Recognition
from service.replies import ReplyWriter
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
        MalformedRequestError,
        NotAcceptableError,
        SlowRequestError,
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
        UnavailableError,
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
            labels=service.pipeline.networks.classifier.contract.labels,
        )
        arrived = time.perf_counter()
        photo = await read_photo(request, service, take)
        writer = ReplyWriter(
            classifier=service.pipeline.networks.classifier,
            options=options,
            request_id=request.state.request_id,
            receive_seconds=time.perf_counter() - arrived,
        )
        with service.lifecycle.admit_image(), service.pixels.room() as room:
            return await answer_in_time(
                request,
                _answer(request, service, photo, writer, media_type, room),
                deadline_ms=min(service.settings.deadline_ms, timeout_ms or sys.maxsize),
            )


async def _answer(
    request: Request,
    service: ServiceState,
    photo: bytes,
    writer: ReplyWriter,
    media_type: ReplyType,
    room: Room,
) -> Response:
    def write(recognition: Recognition) -> tuple[Recognition, str | bytes]:
        started = time.perf_counter()
        content: str | bytes
        if media_type == "application/json":
            content = writer.json(recognition)
        else:
            content = writer.picture(recognition, media_type)
        service.metrics.observe_stages(
            {"receive": writer.receive_seconds, "render": time.perf_counter() - started}
        )
        return recognition, content

    recognition, content = await service.pipeline.recognize(
        photo,
        write,
        max_faces=writer.options.max_faces,
        min_score=writer.options.min_score,
        room=room,
        whole=media_type != "application/json",
    )
    request.state.log_fields = _log_fields(recognition)
    headers = {"Server-Timing": _server_timing(recognition), "Vary": "Accept"}
    return Response(content, media_type=media_type, headers=headers)


def _log_fields(recognition: Recognition) -> dict[str, object]:
    height, width = recognition.image.size
    milliseconds = {
        f"{stage}_ms": round(seconds * 1000, 1) for stage, seconds in recognition.seconds.items()
    }
    return {
        "format": recognition.image.format,
        "pixels": f"{width}x{height}",
        "faces": recognition.faces_found,
        **milliseconds,
    }


def _server_timing(recognition: Recognition) -> str:
    return ", ".join(
        f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in recognition.seconds.items()
    )
