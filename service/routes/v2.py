"""/v2: the Open Inference Protocol, which KServe, Triton's clients and their likes speak."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from service.errors import (
    DeadlineExceededError,
    EmptyBodyError,
    ImageTooLargeError,
    InferenceError,
    InvalidImageError,
    InvalidOptionError,
    MalformedRequestError,
    MissingImageError,
    OverloadedError,
    PayloadTooLargeError,
    RateLimitedError,
    RequestError,
    UnknownModelError,
    UnsupportedMediaTypeError,
)
from service.open_inference import (
    INPUT,
    Asked,
    TensorSpec,
    input_specs,
    output_specs,
    parse_request,
    tensors,
    write_reply,
)
from service.replies import Faces, keep_faces
from service.routes.body import decode_base64, read_body
from service.routes.dependencies import RequestTimeout, ServiceDependency, problems
from service.routes.waiting import answer_in_time
from service.state import ServiceState

router = APIRouter(tags=["open inference protocol"])
health_router = APIRouter(tags=["open inference protocol"])
metadata_router = APIRouter(tags=["open inference protocol"])

SERVER: Final = "lan-fer"
JSON_LENGTH: Final = "Inference-Header-Content-Length"
MAX_LENGTH_DIGITS: Final = 18
PLATFORM: Final = "onnxruntime"

Result = TypeVar("Result")
ModelName = Annotated[
    str, Path(description=f"{SERVER}, or the name of the expression network (GET /model).")
]


_REQUEST_BODY: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "parameters": {"type": "object"},
                    "inputs": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["name", "datatype", "shape"],
                            "properties": {
                                "name": {"const": INPUT},
                                "datatype": {"const": "BYTES"},
                                "shape": {"type": "array", "items": {"type": "integer"}},
                                "parameters": {"type": "object"},
                                "data": {
                                    "type": "array",
                                    "description": "Image files in base64. Without it, "
                                    "parameters.binary_data_size bytes follow the JSON.",
                                },
                            },
                        },
                    },
                    "outputs": {
                        "type": "array",
                        "description": "The tensors wanted; none: all.",
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {
                                "name": {"enum": [spec.name for spec in output_specs(0)]},
                                "parameters": {"type": "object"},
                            },
                        },
                    },
                },
            }
        }
    },
}


_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY["content"]["application/octet-stream"] = _BINARY
_LENGTH: Final = {
    "description": "Bytes of JSON before the binary tensors.",
    "schema": {"type": "integer", "minimum": 0},
}
_LENGTH_PARAMETER: Final = {"name": JSON_LENGTH, "in": "header", "required": False, **_LENGTH}
_BINARY_REPLY: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"application/octet-stream": _BINARY}, "headers": {JSON_LENGTH: _LENGTH}}
}


class ServerMetadata(BaseModel):
    """The answer to GET /v2."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The answer to GET /v2/health/live."""

    live: bool


class Ready(BaseModel):
    """The answer to GET /v2/health/ready."""

    ready: bool


class ModelReady(BaseModel):
    """The answer to GET /v2/models/{name}/ready."""

    name: str
    ready: bool


class ModelMetadata(BaseModel):
    """The answer to GET /v2/models/{name}."""

    name: str
    platform: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class OutputTensor(TensorSpec):
    """A tensor of a reply; without `data`, its bytes follow the JSON."""

    data: list[Any] | None = None
    parameters: dict[str, int] | None = None


class InferReply(BaseModel):
    """The answer to POST /v2/models/{name}/infer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor] = Field(description="A row for each face of all images.")


@health_router.get("/v2/health/live", summary="Is the process alive?", responses=problems())
async def live() -> Live:
    """As GET /health/live."""
    return Live(live=True)


@health_router.get("/v2/health/ready", summary="Does it take photos?", responses=problems())
async def ready(service: ServiceDependency) -> Ready:
    """As GET /health/ready."""
    service.lifecycle.require_ready()
    return Ready(ready=True)


@health_router.get(
    "/v2/models/{name}/ready",
    summary="Does the model take photos?",
    responses=problems(UnknownModelError, InvalidOptionError),
)
async def model_ready(name: ModelName, service: ServiceDependency) -> ModelReady:
    """As GET /health/ready, for a model by its name."""
    service.lifecycle.require_ready()
    _require_model(name, service)
    return ModelReady(name=name, ready=True)


@metadata_router.get("/v2", summary="The server", responses=problems())
async def server() -> ServerMetadata:
    """Its version, and which extensions of the protocol it speaks."""
    return ServerMetadata(
        name=SERVER, version=version("lan-fer"), extensions=["binary_tensor_data"]
    )


@metadata_router.get(
    "/v2/models/{name}",
    summary="The model's inputs and outputs",
    responses=problems(UnknownModelError, InvalidOptionError),
)
async def model(name: ModelName, service: ServiceDependency) -> ModelMetadata:
    """One image file each element goes in; a row for each face comes out of every output."""
    _require_model(name, service)
    return ModelMetadata(
        name=name,
        platform=PLATFORM,
        inputs=input_specs(),
        outputs=output_specs(len(service.model.classifier.labels)),
    )


@router.post(
    "/v2/models/{name}/infer",
    summary="Read the expressions in images",
    response_model=InferReply,
    responses=_BINARY_REPLY
    | problems(
        EmptyBodyError,
        UnknownModelError,
        PayloadTooLargeError,
        ImageTooLargeError,
        UnsupportedMediaTypeError,
        InvalidOptionError,
        MissingImageError,
        InvalidImageError,
        OverloadedError,
        RateLimitedError,
        InferenceError,
        DeadlineExceededError,
    ),
    openapi_extra={"requestBody": _REQUEST_BODY, "parameters": [_LENGTH_PARAMETER]},
)
async def infer(
    request: Request, name: ModelName, service: ServiceDependency, timeout_ms: RequestTimeout = None
) -> Response:
    """The input `image` is of type BYTES: image files, each one element.

    They stand after the JSON (binary tensor data), or in it in base64. If one of the images cannot
    be read, that is the answer for all, and says which it is. There are no options: photos are read
    as the service's settings say, and `parameters` other than the protocol's own are passed over.
    """
    _require_model(name, service)
    service.lifecycle.require_room()
    with service.bodies.hold() as take:
        body = await read_body(request, service, take)
        asked, images = await _offload(service, partial(_parse, request, body, service))
        if len(images) > 1:
            await service.access.spend(getattr(request.state, "key_name", ""), len(images) - 1)
        with ExitStack() as permits:
            for _ in images:
                permits.enter_context(service.lifecycle.admit_image())
            read = await answer_in_time(
                request,
                _recognize_all(service, images),
                deadline_ms=min(service.settings.deadline_ms, timeout_ms or sys.maxsize),
            )
            request.state.log_fields = _log_fields(read)
            return await _offload(service, partial(_reply, name, service, asked, read))


def _require_model(name: str, service: ServiceState) -> None:
    """Raises UnknownModelError, and UnavailableError while starting."""
    known = (SERVER, service.model.classifier.name)
    if name not in known:
        raise UnknownModelError(f"The models here are {' and '.join(known)}.")


def _parse(request: Request, body: bytes, service: ServiceState) -> tuple[Asked, tuple[bytes, ...]]:
    length = request.headers.get(JSON_LENGTH)
    if length is not None and not (length.isdecimal() and len(length) <= MAX_LENGTH_DIGITS):
        raise MalformedRequestError(f"{JSON_LENGTH} is no number of bytes.")
    asked = parse_request(
        body,
        None if length is None else int(length),
        max_images=service.settings.max_in_flight_images,
        outputs=[spec.name for spec in output_specs(0)],
    )
    images = []
    for at, image in enumerate(asked.images):
        with _naming(at, len(asked.images)):
            images.append(image if isinstance(image, bytes) else decode_base64(image))
    return asked, tuple(images)


@contextmanager
def _naming(at: int, count: int) -> Iterator[None]:
    """One error answers for all images: it says which of them is at fault."""
    try:
        yield
    except RequestError as error:
        if count > 1:
            error.detail = f"Image {at + 1} of {count}: {error.detail}"
        raise


async def _recognize_all(service: ServiceState, images: Sequence[bytes]) -> list[Faces]:
    async def recognize(at: int) -> Faces:
        with _naming(at, len(images)):
            return await service.reader.recognize(images[at], keep_faces)

    tasks = [asyncio.ensure_future(recognize(at)) for at in range(len(images))]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)
        tasks.clear()  # an error of one holds this frame, which would hold the error


async def _cancel(tasks: Sequence[asyncio.Future[Faces]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _reply(name: str, service: ServiceState, asked: Asked, read: Sequence[Faces]) -> Response:
    classifier = service.model.classifier
    head = {"model_name": name, "model_version": classifier.sha256}
    if asked.id is not None:
        head["id"] = asked.id
    found = tensors([image.faces for image in read], classifier.labels)
    content, json_length = write_reply(head, found, asked.outputs)
    if json_length is None:
        return Response(content, media_type="application/json")
    headers = {JSON_LENGTH: str(json_length)}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _log_fields(read: Sequence[Faces]) -> dict[str, object]:
    """Of all images together."""
    return {
        "images": len(read),
        "faces": sum(len(image.faces) for image in read),
        **{
            f"{stage}_ms": round(sum(image.seconds[stage] for image in read) * 1000, 1)
            for stage in read[0].seconds
        },
    }


async def _offload(service: ServiceState, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(service.pool, work)
