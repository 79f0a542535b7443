"""Every knob of the service: its unit, its range, its default and what it costs.

Each is read from the environment variable ``LAN_FER_<NAME>`` or from the flag of ``lan-fer serve``
of the same name; the flag wins.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import SettingsError
from service.runtime import Provider, SessionSettings

ENV_PREFIX = "LAN_FER_"
MODELS = Path(__file__).resolve().parent.parent / "models"
MEBIBYTE = 1024 * 1024


class Settings(BaseSettings):
    """The service's settings; immutable once read."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; 0.0.0.0 opens the service to the whole network.",
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    model_path: Path = Field(
        MODELS / "lan_mobilefacenet_ferplus.onnx",
        description="ONNX file of the expression network, contract in its metadata.",
    )
    detector_path: Path = Field(
        MODELS / "retinaface_mnet025.onnx",
        description="ONNX file of the RetinaFace detector.",
    )
    provider: Provider = Field(
        "auto",
        description="Where networks run; auto takes CUDA where there is one, else the CPU. "
        "A GPU asked for by name but missing ends the start.",
    )
    intra_op_threads: int = Field(
        1,
        ge=1,
        le=256,
        description="CPU threads of one inference; more shorten a lone request and cost throughput "
        "under load.",
    )
    inference_workers: int = Field(
        0,
        ge=0,
        le=256,
        description="Batches of one network that run side by side; 0: one a CPU core, two on a "
        "GPU. Each holds one batch in memory.",
    )
    image_workers: int = Field(
        0,
        ge=0,
        le=256,
        description="Threads that decode, resize, align and draw; 0: one a CPU core. Each may "
        "hold an image of max_image_pixels.",
    )
    max_detector_batch: int = Field(
        2,
        ge=1,
        le=256,
        description="Images in one run of the detector; memory grows with it (about 130 MB an "
        "image on the largest canvas).",
    )
    max_classifier_batch: int = Field(
        32, ge=1, le=1024, description="Faces in one run of the expression network."
    )
    max_in_flight_images: int = Field(
        32,
        ge=1,
        le=10_000,
        description="Images accepted and not yet answered; the next one gets 429. Each may hold "
        "max_body_bytes, and up to 3 bytes for each of max_image_pixels.",
    )
    max_body_bytes: int = Field(
        32 * MEBIBYTE,
        ge=1024,
        le=1024 * MEBIBYTE,
        description="Bytes of a request body, encoding included; more get 413. Base64 in JSON "
        "carries three quarters of it.",
    )
    max_header_bytes: int = Field(
        16 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="Bytes of request line and headers together; more get 431.",
    )
    max_image_pixels: int = Field(
        64_000_000,
        ge=4096,
        le=1_000_000_000,
        description="Width times height an image may have; more get 413 before it is decoded.",
    )
    max_faces: int = Field(
        64, ge=1, le=1000, description="Most faces of one image that are read, largest first."
    )
    min_score: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Detection score from which a face counts; unset: the detector's own "
        "thresholds. Lower finds more faces and more that are none.",
    )
    deadline_ms: int = Field(
        30_000,
        ge=1,
        le=3_600_000,
        description="Milliseconds from the body's arrival to the reply; past it the reply is 504 "
        "and work not yet begun is dropped.",
    )
    body_timeout_ms: int = Field(
        30_000,
        ge=1,
        le=3_600_000,
        description="Milliseconds in which the body must arrive; past it the reply is 408.",
    )
    drain_seconds: int = Field(
        20,
        ge=0,
        le=3600,
        description="Seconds that accepted requests get to finish once the process is told to "
        "stop.",
    )
    api_keys: SecretStr | None = Field(
        None,
        description="API keys, name=key separated by commas; a request needs one of them. Unset: "
        "everyone who reaches the service may use it. Names are logged, keys never. Not for the "
        "command line, which every user of a machine can read.",
    )
    api_keys_file: Path | None = Field(
        None, description="File of further API keys, name=key on each line; read at the start."
    )
    health_needs_key: bool = Field(
        False, description="Whether /health and /v2/health ask for an API key, where keys are set."
    )
    metrics_needs_key: bool = Field(
        False, description="Whether /metrics asks for an API key, where keys are set."
    )
    rate_limit: str | None = Field(
        None,
        description="Photos each name of an API key may send to one replica, such as 10/second or "
        "10/second;5000/day; more get 429. Unset: no limit.",
    )
    cors_origins: str | None = Field(
        None,
        description="Origins, separated by commas, whose pages may use the service from a browser; "
        "* for any. Unset: none but its own.",
    )
    docs: bool = Field(True, description="Whether /docs and /openapi.json are served.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged; info has a line for each request."
    )
    log_format: Literal["plain", "json"] = Field(
        "plain", description="One line an event: key=value, or a JSON object."
    )

    @property
    def session_settings(self) -> SessionSettings:
        """What the ONNX Runtime sessions are made with."""
        return SessionSettings(provider=self.provider, intra_op_threads=self.intra_op_threads)


def load_settings(**given: Any) -> Settings:  # noqa: ANN401 - text of flags, checked by Settings
    """Settings from `given` values, else the environment, else defaults.

    Raises SettingsError with one line that names each wrong setting.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = (f"{_name(e['loc'])}: {e['msg']}" for e in error.errors(include_url=False))
        raise SettingsError(f"wrong settings: {'; '.join(wrong)}") from error


def _name(location: tuple[int | str, ...]) -> str:
    name = str(location[0])
    return f"{name} ({ENV_PREFIX}{name.upper()})"


def available_cpus() -> int:
    """CPU cores this process may use; fewer than the machine's where an affinity mask is set."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
