"""POST /predict/batch: several photos in one call, an answer or a problem for each."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.errors import (
    DeadlineExceededError,
    EmptyBodyError,
    InvalidOptionError,
    MissingImageError,
    NotAcceptableError,
    OverloadedError,
    PayloadTooLargeError,
    ProblemError,
    RateLimitedError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)
from service.logs import log_fault
from service.options import check_options, wishes_of
from service.problems import problem_of
from service.replies import KeepReply, Reply
from service.routes.body import FIELD, read_photos
from service.routes.dependencies import RequestTimeout, ServiceDependency, problems
from service.routes.negotiation import reply_type
from service.routes.waiting import answer_in_time
from service.schemas import BatchItem, BatchReply, PredictBatchJson, PredictOptions, PredictReply
from service.state import ServiceState

logger = logging.getLogger(__name__)
router = APIRouter(tags=["expressions"])

JSON: Final = "application/json"
_REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {
                    FIELD: {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "description": "The field as often as there are photos.",
                    }
                },
            }
        },
        JSON: {"schema": PredictBatchJson.model_json_schema()},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": BatchReply, "description": "One item for each photo, in the order sent."},
    **problems(
        EmptyBodyError,
        NotAcceptableError,
        PayloadTooLargeError,
        TooManyImagesError,
        UnsupportedMediaTypeError,
        InvalidOptionError,
        MissingImageError,
        OverloadedError,
        RateLimitedError,
    ),
}


@router.post(
    "/predict/batch",
    summary="Read the expressions in several photos",
    responses=_RESPONSES,
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def predict_batch(
    request: Request,
    options: Annotated[PredictOptions, Query()],
    service: ServiceDependency,
    timeout_ms: RequestTimeout = None,
) -> Response:
    """As POST /predict, for several photos; the options hold for each.

    Send the multipart field `file` once a photo, or base64 in JSON. A photo that cannot be read
    does not spoil the others: its item holds the problem that POST /predict would answer. Each
    photo counts as one towards the limits of images in flight and of the API key.
    """
    reply_type(request.headers.get("accept"), (JSON,))
    service.lifecycle.require_room()
    with service.bodies.hold() as take:
        check_options(
            options,
            max_faces=service.settings.max_faces,
            labels=service.model.classifier.labels,
        )
        arrived = time.perf_counter()
        photos = await read_photos(request, service, take)
        asked = Reply(options, request.state.request_id, time.perf_counter() - arrived)
        if len(photos) > 1:
            # The guard has counted one; it cannot know of the others.
            await service.access.spend(getattr(request.state, "key_name", ""), len(photos) - 1)
        with ExitStack() as permits:
            for _ in photos:
                permits.enter_context(service.lifecycle.admit_image())
            deadline_ms = min(service.settings.deadline_ms, timeout_ms or sys.maxsize)
            read = _read_all(service, photos, asked, deadline_ms)
            items = await answer_in_time(request, read, deadline_ms=None)
    request.state.log_fields = _log_fields(items)
    content = await asyncio.get_running_loop().run_in_executor(
        service.pool, _json, asked.request_id, items
    )
    service.metrics.observe_stages({"receive": asked.receive_seconds})
    return Response(content, media_type=JSON)


def _json(request_id: str, items: Sequence[BatchItem]) -> bytes:
    """A BatchReply, item by item: no other thread runs while one is made."""
    head = BatchReply(request_id=request_id, results=[]).model_dump_json().encode()
    results = b",".join(item.model_dump_json().encode() for item in items)
    return b"".join((head.removesuffix(b"]}"), results, b"]}"))


async def _read_all(
    service: ServiceState,
    photos: Sequence[bytes | ProblemError],
    asked: Reply,
    deadline_ms: int,
) -> list[BatchItem]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_item(service, p, asked, deadline_ms)) for p in photos]
    return [task.result() for task in tasks]


async def _item(
    service: ServiceState, photo: bytes | ProblemError, asked: Reply, deadline_ms: int
) -> BatchItem:
    """One photo's reply, or the problem that it has."""
    try:
        if isinstance(photo, ProblemError):
            raise photo
        async with asyncio.timeout(deadline_ms / 1000):
            return BatchItem(status=200, reply=await _read(service, photo, asked), problem=None)
    except TimeoutError:
        late = DeadlineExceededError(f"The answer was not ready within {deadline_ms} ms.")
        return _problem_item(service, late, asked)
    except ProblemError as error:
        return _problem_item(service, error, asked)


async def _read(service: ServiceState, photo: bytes, asked: Reply) -> PredictReply:
    return await service.reader.recognize(photo, KeepReply(asked), wishes_of(asked.options))


def _problem_item(service: ServiceState, error: ProblemError, asked: Reply) -> BatchItem:
    log_fault(logger, error)
    service.metrics.problems.labels(error.slug).inc()
    problem = problem_of(error, asked.request_id)
    return BatchItem(status=error.status, reply=None, problem=problem)


def _log_fields(items: Sequence[BatchItem]) -> dict[str, object]:
    replies = [item.reply for item in items if item.reply is not None]
    return {
        "images": len(items),
        "refused": len(items) - len(replies),
        "faces": sum(reply.faces_found for reply in replies),
    }
