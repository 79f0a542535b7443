"""The Open Inference Protocol (KServe's and Triton's version 2), over HTTP: bytes to images, faces
to tensors. Images are BYTES: binary after the JSON, or base64 in it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from service.errors import MalformedRequestError, MissingImageError
from service.json_bodies import checked_json
from service.pipeline import ReadFace

INPUT: Final = "image"
GRID: Final = 7
LENGTH: Final = struct.Struct("<I")
PIECE: Final = 4096  # elements of a tensor that are turned into JSON at a time: about a millisecond
MAX_DIMENSIONS = 8  # of the shape that a client sends
DATATYPES: Final = {"INT32": np.int32, "FP32": np.float32, "BYTES": np.object_}


class TensorSpec(BaseModel):
    """A tensor of the model; -1 is a size that varies."""

    name: str
    datatype: str
    shape: list[int]


class _Input(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class _Output(BaseModel):
    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """The JSON part of a request."""

    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[_Input]
    outputs: list[_Output] | None = None


@dataclass(frozen=True)
class Asked:
    """One request: its images as they were sent, and the outputs wanted, each binary or not."""

    id: str | None
    images: tuple[bytes | str, ...]
    """Image files; those that are text are in base64."""
    outputs: Mapping[str, bool]


def input_specs() -> list[TensorSpec]:
    """What the model takes."""
    return [TensorSpec(name=INPUT, datatype="BYTES", shape=[-1])]


def output_specs(classes: int) -> list[TensorSpec]:
    """What it gives: a row for each face of all images, the largest of each image first."""
    shapes: tuple[tuple[str, str, list[int]], ...] = (
        ("image_index", "INT32", []),
        ("box", "FP32", [4]),
        ("detection_score", "FP32", []),
        ("landmarks", "FP32", [5, 2]),
        ("head_pose", "FP32", [3]),
        ("label", "BYTES", []),
        ("confidence", "FP32", []),
        ("probabilities", "FP32", [classes]),
        ("attention", "FP32", [GRID, GRID]),
    )
    return [TensorSpec(name=n, datatype=t, shape=[-1, *s]) for n, t, s in shapes]


def parse_request(
    body: bytes, json_length: int | None, *, max_images: int, outputs: Sequence[str]
) -> Asked:
    """The request in `body`, whose first `json_length` bytes are JSON; None: all of them.

    Raises MalformedRequestError and MissingImageError.
    """
    length = len(body) if json_length is None else json_length
    if length > len(body):
        raise MalformedRequestError("Inference-Header-Content-Length is more than the body has.")
    text = checked_json(body[:length])
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise MalformedRequestError(f"No inference request: {place}: {first['msg']}.") from error
    return Asked(
        request.id,
        _images(request, memoryview(body)[length:], max_images),
        _wanted(request, outputs),
    )


def _images(request: InferRequest, binary: memoryview, max_images: int) -> tuple[bytes | str, ...]:
    if [(i.name, i.datatype) for i in request.inputs] != [(INPUT, "BYTES")]:
        raise MissingImageError(f'There must be one input, "{INPUT}", of datatype BYTES.')
    (tensor,) = request.inputs
    count = _count(tensor.shape, max_images)
    if tensor.data is None:
        images: list[bytes | str] = list(_split(binary, tensor.parameters.get("binary_data_size")))
    else:
        images = list(_flat(tensor.data))
    if len(images) != count:
        raise MissingImageError(f"shape says {count} images, and {len(images)} are there.")
    return tuple(images)


def _count(shape: Sequence[int], max_images: int) -> int:
    """The number of elements. What is multiplied has few digits: JSON allows thousands of them."""
    if len(shape) > MAX_DIMENSIONS:
        raise MissingImageError(f"shape has {len(shape)} dimensions, and {MAX_DIMENSIONS} at most.")
    plausible = shape and all(1 <= size <= max_images for size in shape)
    if not plausible or (count := math.prod(shape)) > max_images:
        raise MissingImageError(f"shape must hold 1 to {max_images} images, one an element.")
    return count


def _split(binary: memoryview, size: object) -> list[bytes]:
    """Elements of BYTES: each after its length in 4 bytes, the lowest first."""
    if size != len(binary):
        raise MalformedRequestError(
            f"binary_data_size is {size!r:.20}, and {len(binary)} bytes follow the JSON."
        )
    elements, start = [], 0
    while start < len(binary):
        if start + LENGTH.size > len(binary):
            raise MalformedRequestError("The binary data ends within an element's length.")
        (length,) = LENGTH.unpack_from(binary, start)
        start += LENGTH.size
        if start + length > len(binary):
            raise MalformedRequestError("The binary data ends within an element.")
        elements.append(bytes(binary[start : start + length]))
        start += length
    return elements


def _flat(data: list[Any]) -> list[str]:
    """Elements in row-major order; JSON may have them nested as the shape is."""
    flat = []
    for value in data:
        if isinstance(value, list):
            flat += _flat(value)
        elif isinstance(value, str):
            flat.append(value)
        else:
            raise MissingImageError("data must be strings, each an image in base64.")
    return flat


def _wanted(request: InferRequest, known: Sequence[str]) -> dict[str, bool]:
    binary = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return dict.fromkeys(known, binary)
    unknown = [o.name for o in request.outputs if o.name not in known]
    if unknown:
        raise MalformedRequestError(f"There is no output {unknown[0][:80]!r}, only {known}.")
    return {o.name: o.parameters.get("binary_data", binary) is True for o in request.outputs}


def tensors(faces: Sequence[Sequence[ReadFace]], labels: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The outputs of `output_specs` for the faces of each image."""
    rows = [(index, face) for index, image in enumerate(faces) for face in image]
    poses = [(f.found.pose.yaw, f.found.pose.pitch, f.found.pose.roll) for _, f in rows]
    values: dict[str, list[Any]] = {
        "image_index": [index for index, _ in rows],
        "box": [f.found.face.box for _, f in rows],
        "detection_score": [f.found.face.score for _, f in rows],
        "landmarks": [f.found.face.landmarks for _, f in rows],
        "head_pose": list(poses),
        "label": [labels[int(f.reading.probabilities.argmax())] for _, f in rows],
        "confidence": [f.reading.probabilities.max() for _, f in rows],
        "probabilities": [f.reading.probabilities for _, f in rows],
        "attention": [f.reading.attention for _, f in rows],
    }
    return {
        spec.name: np.array(values[spec.name], DATATYPES[spec.datatype]).reshape(
            len(rows), *spec.shape[1:]
        )
        for spec in output_specs(len(labels))
    }


def write_reply(
    head: Mapping[str, object], found: Mapping[str, NDArray[Any]], outputs: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """The body, and how much of it is JSON; None: all of it. `head`: model, version and id."""
    described: list[str] = []
    blobs = []
    datatypes = {spec.name: spec.datatype for spec in output_specs(0)}
    for name, binary in outputs.items():
        tensor = found[name]
        output: dict[str, object] = {
            "name": name,
            "datatype": datatypes[name],
            "shape": list(tensor.shape),
        }
        if binary:
            blobs.append(_blob(tensor))
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
            described.append(_json(output))
        else:
            described.append(f'{_json(output)[:-1]},"data":[{_elements(tensor)}]}}')
    text = f'{_json(head)[:-1]},"outputs":[{",".join(described)}]}}'.encode()
    return b"".join((text, *blobs)), len(text) if blobs else None


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _elements(tensor: NDArray[Any]) -> str:
    """A tensor's elements in JSON, made in pieces: no other thread runs while one is made."""
    flat = tensor.ravel()
    pieces = (flat[at : at + PIECE].tolist() for at in range(0, flat.size, PIECE))
    return ",".join(_json(piece)[1:-1] for piece in pieces)


def _blob(tensor: NDArray[Any]) -> bytes:
    if tensor.dtype != np.object_:
        return tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
    elements = (str(element).encode() for element in tensor.ravel())
    return b"".join(LENGTH.pack(len(element)) + element for element in elements)
