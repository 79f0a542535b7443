"""ONNX Runtime sessions: providers, threads, and a start that fails loudly."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# Read when the library is loaded: without it, ONNX Runtime reports its use to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from service.errors import ModelFileError, ProviderUnavailableError

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Precision = Literal["auto", "float32", "int8"]

PROVIDER_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# EXHAUSTIVE search (ORT's default) takes hundreds of milliseconds at each new shape.
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}


@dataclass(frozen=True)
class SessionSettings:
    """How to run a network.

    `provider` "auto" takes CUDA where ONNX Runtime offers it, else the CPU; a provider asked for
    by name must be in use or the start fails. `intra_op_threads` is CPU threads per inference.
    """

    provider: Provider = "auto"
    intra_op_threads: int = 1


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network ready to run, with the SHA-256 (hex) of the very bytes that were loaded."""

    session: ort.InferenceSession
    sha256: str

    @property
    def providers(self) -> list[str]:
        """Execution providers in use, the preferred one first."""
        return list(self.session.get_providers())


def load_model(path: Path, settings: SessionSettings) -> LoadedModel:
    """Load an ONNX file.

    Raises ModelFileError where the file is missing or no ONNX model, ProviderUnavailableError
    where the provider asked for is not in use.
    """
    model_bytes = read_model(path)
    providers = _providers(settings.provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = 1
    # Idle worker threads must not burn a core that another request needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(model_bytes, options, providers=providers)
    except Exception as error:  # ORT's exception classes share no public base
        reason = str(error).splitlines()[0]
        raise ModelFileError(f"{path}: not a usable ONNX model ({reason})") from error
    _require_in_use(settings.provider, session)
    return LoadedModel(session, hashlib.sha256(model_bytes).hexdigest())


def read_model(path: Path) -> bytes:
    """The bytes of a model file. Raises ModelFileError."""
    try:
        if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise ModelFileError(f"{path}: cannot read the model file (no regular file)")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot read the model file ({error.strerror})") from error


def runs_on_cpu(provider: Provider) -> bool:
    """Whether the CPU is what networks would run on first. Raises ProviderUnavailableError."""
    return _providers(provider) == [PROVIDER_NAMES["cpu"]]


def _providers(provider: Provider) -> list[str | tuple[str, dict[str, Any]]]:
    available = ort.get_available_providers()
    cpu = PROVIDER_NAMES["cpu"]
    cuda = (PROVIDER_NAMES["cuda"], CUDA_OPTIONS)
    if provider == "auto":
        return [cuda, cpu] if cuda[0] in available else [cpu]
    wanted = PROVIDER_NAMES[provider]
    if wanted not in available:
        raise ProviderUnavailableError(
            f"provider {provider!r} was asked for, but this ONNX Runtime offers only "
            f"{', '.join(available)}; install onnxruntime-gpu or choose provider 'auto' or 'cpu'"
        )
    if provider == "tensorrt":
        return [wanted, cuda, cpu]
    return [cuda, cpu] if provider == "cuda" else [cpu]


def _require_in_use(provider: Provider, session: ort.InferenceSession) -> None:
    # ONNX Runtime falls back to the CPU with a mere log line when a GPU cannot be initialised.
    if provider == "auto" or PROVIDER_NAMES[provider] in session.get_providers():
        return
    raise ProviderUnavailableError(
        f"provider {provider!r} was asked for and is installed, but could not be started "
        f"(in use: {', '.join(session.get_providers())}); check the GPU, its driver and CUDA"
    )
