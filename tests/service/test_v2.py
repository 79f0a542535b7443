"""The Open Inference Protocol, spoken by its own client and by hand."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from service.open_inference import PIECE, write_reply
from service.pipeline import Networks
from tests.service.serving import RunningServer, Serve

MODEL = "lan-fer"
INFER = f"/v2/models/{MODEL}/infer"


@pytest.fixture
def protocol(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    host, port = server.address
    client = triton.InferenceServerClient(f"{host}:{port}")
    yield client
    client.close()


def images(*files: bytes) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=np.object_))
    return tensor


def test_health_and_metadata(protocol: triton.InferenceServerClient, networks: Networks) -> None:
    contract = networks.classifier.contract
    assert protocol.is_server_live()
    assert protocol.is_server_ready()
    assert protocol.get_server_metadata()["name"] == MODEL
    for name in (MODEL, contract.name):
        assert protocol.is_model_ready(name)
        metadata = protocol.get_model_metadata(name)
        assert metadata["name"] == name
        assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        shapes = {o["name"]: o["shape"] for o in metadata["outputs"]}
        assert shapes["probabilities"] == [-1, len(contract.labels)]
    assert not protocol.is_model_ready("other")
    with pytest.raises(InferenceServerException, match="The models here are lan-fer and"):
        protocol.get_model_metadata("other")


def test_not_ready_while_draining(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        assert client.get("/v2/health/ready").json() == {"ready": True}
        server.state.lifecycle.drain()
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", f"/v2/models/{MODEL}/ready"):
            assert client.get(path).status_code == 503


@pytest.mark.parametrize("binary", [True, False])
def test_says_what_predict_says(
    protocol: triton.InferenceServerClient,
    client: httpx.Client,
    portrait_jpeg: bytes,
    binary: bool,
) -> None:
    jpeg = {"content-type": "image/jpeg"}
    (face,) = client.post("/predict", content=portrait_jpeg, headers=jpeg).json()["faces"]
    names = [o["name"] for o in protocol.get_model_metadata(MODEL)["outputs"]]
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    result = protocol.infer(MODEL, [images(portrait_jpeg)], outputs=wanted, request_id="mine")
    assert result.get_response()["id"] == "mine"
    (label,) = result.as_numpy("label").tolist()
    text = label.decode() if isinstance(label, bytes) else label
    assert text == face["expression"]["label"]
    for name, expected in {
        "box": list(face["box"].values()),
        "landmarks": list(face["landmarks"].values()),
        "head_pose": [face["head_pose"][angle] for angle in ("yaw", "pitch", "roll")],
        "confidence": face["expression"]["confidence"],
        "probabilities": list(face["expression"]["probabilities"].values()),
        "attention": face["attention"]["grid"],
        "detection_score": face["detection_score"],
    }.items():
        np.testing.assert_allclose(result.as_numpy(name), [expected], atol=0.01, err_msg=name)


def test_images_of_one_request_are_told_apart(
    protocol: triton.InferenceServerClient, portrait_jpeg: bytes, blank_png: bytes
) -> None:
    result = protocol.infer(MODEL, [images(portrait_jpeg, blank_png, portrait_jpeg)])
    assert result.as_numpy("image_index").tolist() == [0, 2]
    boxes = result.as_numpy("box")
    np.testing.assert_allclose(boxes[0], boxes[1], atol=0.01)


@pytest.fixture(scope="session")
def blank_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_without_a_face_gives_no_rows(
    protocol: triton.InferenceServerClient, blank_png: bytes
) -> None:
    result = protocol.infer(MODEL, [images(blank_png)])
    assert result.as_numpy("box").shape == (0, 4)
    assert result.as_numpy("label").shape == (0,)


def test_json_alone_will_do(client: httpx.Client, portrait_jpeg: bytes) -> None:
    text = base64.b64encode(portrait_jpeg).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [[text]]}
    reply = client.post(INFER, json={"inputs": [tensor], "outputs": [{"name": "label"}]})
    assert reply.status_code == 200, reply.text
    (output,) = reply.json()["outputs"]
    assert output == {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["happiness"]}


@pytest.mark.parametrize("some", [b"1,", b"[[[[]]]],"])
def test_json_of_very_many_values_is_not_parsed(client: httpx.Client, some: bytes) -> None:
    reply = client.post(INFER, content=b'{"inputs":[' + some * 500_000 + b"1]}")
    assert reply.status_code == 400
    assert "commas" in reply.json()["error"]


def body(head: object, binary: bytes = b"") -> dict[str, Any]:
    text = json.dumps(head).encode()
    return {
        "content": text + binary,
        "headers": {"Inference-Header-Content-Length": str(len(text))},
    }


def tensor(**changes: object) -> dict[str, object]:
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]} | changes


def binary_tensor(size: int) -> dict[str, object]:
    return {
        "inputs": [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [1],
                "parameters": {"binary_data_size": size},
            }
        ]
    }


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        ({"content": b""}, 400, "empty"),
        ({"content": b"{"}, 400, "No inference request"),
        ({"json": {}}, 400, "inputs"),
        ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "9"}}, 400, "more than"),
        (
            {"content": b"{}", "headers": {"Inference-Header-Content-Length": "1" * 5000}},
            400,
            "no number",
        ),
        (
            {"content": b"{}", "headers": {"Inference-Header-Content-Length": "x"}},
            400,
            "no number",
        ),
        ({"json": {"inputs": []}}, 422, "one input"),
        ({"json": {"inputs": [tensor(name="photo")]}}, 422, "one input"),
        ({"json": {"inputs": [tensor(datatype="UINT8")]}}, 422, "one input"),
        ({"json": {"inputs": [tensor(), tensor()]}}, 422, "one input"),
        ({"json": {"inputs": [tensor(shape=[0])]}}, 422, "shape"),
        ({"json": {"inputs": [tensor(shape=[-1, -1])]}}, 422, "shape"),
        ({"json": {"inputs": [tensor(shape=[10**6])]}}, 422, "images, one an element"),
        ({"json": {"inputs": [tensor(shape=[2])]}}, 422, "2 images, and 1"),
        ({"json": {"inputs": [tensor(shape=[1] * 9)]}}, 422, "8 at most"),
        # Multiplied, these would keep the event loop for minutes.
        ({"json": {"inputs": [tensor(shape=[10**4000] * 8)]}}, 422, "images, one an element"),
        ({"json": {"inputs": [tensor(shape=[10**4000] * 5000)]}}, 422, "5000 dimensions"),
        ({"json": {"inputs": [tensor(data=[1])]}}, 422, "strings"),
        ({"json": {"inputs": [tensor(data=["/etc/passwd.."])]}}, 422, "base64"),
        ({"json": {"inputs": [tensor()]}}, 415, "image"),
        ({"json": {"inputs": [tensor()], "outputs": [{"name": "mood"}]}}, 400, "mood"),
        (body(binary_tensor(6), struct.pack("<I", 9) + b"hi"), 400, "within an element"),
        (body(binary_tensor(2), b"hi"), 400, "element's length"),
        (body(binary_tensor(7), b"hi"), 400, "binary_data_size"),
    ],
)
def test_wrong_requests_are_told_so(
    client: httpx.Client, sent: dict[str, Any], status: int, says: str
) -> None:
    reply = client.post(INFER, **sent)
    assert reply.status_code == status, reply.text
    problem = reply.json()
    assert says in problem["detail"]
    assert problem["error"] == problem["detail"]  # where the protocol's clients look


def test_the_client_shows_the_reason(
    protocol: triton.InferenceServerClient, portrait_jpeg: bytes
) -> None:
    with pytest.raises(InferenceServerException, match=r"truncated|decoded|broken|ends"):
        protocol.infer(MODEL, [images(portrait_jpeg[:3000])])


def test_of_several_images_the_one_at_fault_is_named(
    protocol: triton.InferenceServerClient, client: httpx.Client, portrait_jpeg: bytes
) -> None:
    with pytest.raises(InferenceServerException, match=r"Image 2 of 3: .*(truncated|broken|ends)"):
        protocol.infer(MODEL, [images(portrait_jpeg, portrait_jpeg[:3000], portrait_jpeg)])
    sound = base64.b64encode(portrait_jpeg).decode()
    sent = {"inputs": [tensor(shape=[2], data=[sound, "no base64.."])]}
    assert client.post(INFER, json=sent).json()["detail"].startswith("Image 2 of 2: ")


def test_a_key_and_its_limit_hold_here_too(serve: Serve, portrait_jpeg: bytes) -> None:
    key = "key-0123456789abcdef"
    host, port = serve(api_keys=f"app={key}", rate_limit="3/hour").address
    client = triton.InferenceServerClient(f"{host}:{port}")
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="Send an API key"):
        client.infer(MODEL, [images(portrait_jpeg)])
    headers = {"X-API-Key": key}
    client.infer(MODEL, [images(portrait_jpeg, portrait_jpeg)], headers=headers)
    with pytest.raises(InferenceServerException, match="3 per 1 hour"):
        client.infer(MODEL, [images(portrait_jpeg, portrait_jpeg)], headers=headers)
    client.close()


def test_every_image_counts_as_in_flight(serve: Serve, portrait_jpeg: bytes) -> None:
    host, port = serve(max_in_flight_images=2).address
    client = triton.InferenceServerClient(f"{host}:{port}")
    client.infer(MODEL, [images(portrait_jpeg, portrait_jpeg)])
    with pytest.raises(InferenceServerException, match="1 to 2 images"):
        client.infer(MODEL, [images(*[portrait_jpeg] * 3)])
    client.close()


def test_every_reference_in_the_openapi_document_leads_somewhere(client: httpx.Client) -> None:
    text = client.get("/openapi.json").text
    document = json.loads(text)
    for reference in set(re.findall(r'"\$ref":\s*"#/([^"]+)"', text)):
        found = document
        for part in reference.split("/"):
            found = found[part]
    schema = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
    assert schema["application/json"]["schema"]["required"] == ["inputs"]


@pytest.mark.parametrize("count", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_json_of_many_numbers_is_the_same_in_pieces(count: int) -> None:
    numbers = np.arange(count, dtype=np.float32).reshape(count, 1) / 7
    texts = np.array([f'"{number}"' for number in range(count)], np.object_)
    found = {"confidence": numbers, "label": texts}
    body, json_length = write_reply({"model_name": "x"}, found, dict.fromkeys(found, False))
    assert json_length is None
    outputs = [
        {
            "name": "confidence",
            "datatype": "FP32",
            "shape": [count, 1],
            "data": numbers[:, 0].tolist(),
        },
        {"name": "label", "datatype": "BYTES", "shape": [count], "data": texts.tolist()},
    ]
    text = json.dumps({"model_name": "x", "outputs": outputs}, separators=(",", ":"))
    assert body.decode() == text


def test_the_binary_form_is_in_the_document(client: httpx.Client) -> None:
    infer = client.get("/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]
    assert "application/octet-stream" in infer["requestBody"]["content"]
    assert {"application/json", "application/octet-stream"} <= set(
        infer["responses"]["200"]["content"]
    )
    header = "Inference-Header-Content-Length"
    assert header in infer["responses"]["200"]["headers"]
    assert header in [parameter["name"] for parameter in infer["parameters"]]
