"""ONNX Runtime sessions: the provider asked for, or an error."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import onnxruntime
import pytest

from service.errors import ModelFileError, ProviderUnavailableError
from service.runtime import PROVIDER_NAMES, Provider, SessionSettings, load_model
from service.settings import Settings

DETECTOR = Settings().detector_path


def test_the_hash_is_of_the_bytes_loaded() -> None:
    model = load_model(DETECTOR, SessionSettings("cpu"))
    assert model.sha256 == hashlib.sha256(DETECTOR.read_bytes()).hexdigest()
    assert model.providers == ["CPUExecutionProvider"]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_asked_for_is_in_use_or_an_error(provider: Provider) -> None:
    """Never a silent fall-back, whether the library, the driver or the card is missing."""
    refusal = ""
    try:
        outcome = load_model(DETECTOR, SessionSettings(provider)).providers
    except ProviderUnavailableError as error:
        outcome, refusal = [], str(error)
    in_use = PROVIDER_NAMES[provider] in outcome
    assert in_use != refusal.startswith(f"provider {provider!r} was asked for")
    assert "\n" not in refusal


def test_auto_takes_what_there_is() -> None:
    model = load_model(DETECTOR, SessionSettings("auto"))
    assert model.providers[-1] == "CPUExecutionProvider"


def test_the_service_never_imports_torch_or_training() -> None:
    program = (
        "import sys, service.cli, service.app; "
        "sys.exit(any(n.split('.')[0] in ('torch', 'training') for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("provider", "preferred"),
    [
        ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        (
            "tensorrt",
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
        ),
        ("cpu", ["CPUExecutionProvider"]),
    ],
)
def test_providers_and_their_options(
    provider: Provider, preferred: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX Runtime is asked for on a machine with a GPU."""
    every = list(PROVIDER_NAMES.values())
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: every)
    asked: list[str | tuple[str, dict[str, str]]] = []

    def refuse(*_: object, providers: list[str | tuple[str, dict[str, str]]]) -> None:
        asked.extend(providers)
        raise RuntimeError("no driver\nsecond line")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ModelFileError, match=r"not a usable ONNX model \(no driver\)$"):
        load_model(DETECTOR, SessionSettings(provider))
    options = dict(p if isinstance(p, tuple) else (p, {}) for p in asked)
    assert list(options) == preferred
    # The default search, EXHAUSTIVE, stalls at each new shape.
    assert options.get("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}) == {
        "cudnn_conv_algo_search": "HEURISTIC"
    }
