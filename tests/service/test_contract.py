"""The contract in an ONNX file's metadata."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from service.contract import METADATA_KEY, parse_contract
from service.errors import ModelContractError

CONTRACT: dict[str, Any] = {
    "format_version": 1,
    "name": "made-up",
    "labels": ["calm", "glad"],
    "input_size": 112,
    "color_mode": "rgb",
    "mean": [127.5, 127.5, 127.5],
    "std": [128.0, 128.0, 128.0],
    "template": [[38, 52], [74, 52], [56, 72], [42, 92], [71, 92]],
    "temperature": 1.5,
    "bias": [0.1, -0.1],
    "fusion": "add",
    "backbone": "mobilefacenet",
    "dataset": "made up",
    "protocol": "none",
    "validation_accuracy": 0.5,
    "run_id": "run",
    "licence": "MIT",
}


def metadata(**changes: object) -> dict[str, str]:
    return {METADATA_KEY: json.dumps(CONTRACT | changes)}


def test_a_contract_is_read_as_written() -> None:
    contract = parse_contract(metadata(), "model.onnx")
    assert contract.model_dump(mode="json") == CONTRACT


def test_labels_may_be_in_any_script() -> None:
    labels = ["می\u200cخندد", "👩\u200d🦰 glad"]
    assert list(parse_contract(metadata(labels=labels), "model.onnx").labels) == labels


def test_a_file_without_a_contract_is_refused() -> None:
    with pytest.raises(ModelContractError, match=f"model.onnx: no metadata entry '{METADATA_KEY}'"):
        parse_contract({"author": "someone"}, "model.onnx")


@pytest.mark.parametrize("name", CONTRACT)
def test_every_missing_entry_is_named(name: str) -> None:
    entries = {key: value for key, value in CONTRACT.items() if key != name}
    with pytest.raises(ModelContractError, match=rf"{name}: Field required") as refusal:
        parse_contract({METADATA_KEY: json.dumps(entries)}, "model.onnx")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 2}, "format_version"),
        ({"labels": ["calm"]}, "labels"),
        ({"labels": ["calm", "calm"]}, "must differ"),
        ({"bias": [0.1]}, "1 values for 2 labels"),
        ({"std": [128, 0, 128]}, "std must be positive"),
        ({"temperature": 0}, "temperature"),
        ({"template": [[1, 2]]}, "template"),
        ({"color_mode": "bgr"}, "color_mode"),
        ({"surprise": 1}, "surprise"),
        ({"sur\x1b[31m\nprise": 1}, r"sur\\x1b\[31m\\nprise"),
        ({f"surprise {number}": 1 for number in range(500)}, r" \.\.\.\)"),
        ({"labels": ["calm", ""]}, "labels"),
        ({"labels": ["calm", "gl\nad"]}, "printable"),
        ({"labels": ["calm", "g" * 101]}, "at most 100"),
        ({"temperature": 1e-39}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"bias": [math.nan, 0]}, "bias"),
        ({"template": [[38, 52]] * 5}, "template points must differ"),
        ({"template": [[38, 52], [74, 52], [56, 72], [42, 92], [71, 1e30]]}, "near the crop"),
        ({"template": [[38, 52], [74, 52], [56, 72], [42, 92], [71, math.nan]]}, "template"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelContractError, match=reason) as refusal:
        parse_contract(metadata(**change), "model.onnx")
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 600


def test_metadata_that_is_no_json_is_refused() -> None:
    with pytest.raises(ModelContractError, match="Invalid JSON"):
        parse_contract({METADATA_KEY: "{"}, "model.onnx")
