"""Every knob of the service: its unit, its range, its default and what it costs.

Each is read from the environment variable ``LAN_FER_<NAME>`` or from the flag of ``lan-fer serve``
of the same name; the flag wins.
"""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import SettingsError
from service.faces.looks import Search
from service.hints import did_you_mean
from service.runtime import Precision, Provider, SessionSettings

ENV_PREFIX = "LAN_FER_"
MODELS = Path(__file__).resolve().parent.parent / "models"
MEBIBYTE = 1024 * 1024
CGROUP = Path("/sys/fs/cgroup")
# Kubernetes puts the addresses of a namespace's services into the environment, named after them.
_SERVICE_LINK = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


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
    precision: Precision = Field(
        "auto",
        description="Of both networks; int8 runs the file beside model_path that ends in "
        ".int8.onnx, and that beside detector_path where there is one: faster on a CPU with VNNI, "
        "answers a little different. Auto takes them where they are there and networks run on such "
        "a CPU, else float32.",
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
        description="Inferences of one network that run side by side; 0: one a CPU core, two on a "
        "GPU. Each holds one batch in memory.",
    )
    image_workers: int = Field(
        0,
        ge=0,
        le=256,
        description="Threads that read photos: decode, resize, draw, and without a GPU run the "
        "networks too; 0: one a CPU core, and without engines one more. Each may hold an image of "
        "max_image_pixels.",
    )
    engines: int = Field(
        1,
        ge=0,
        le=256,
        description="Processes that read photos, each with networks of its own, beside the one "
        "that speaks HTTP; 0: none, that one does both, as it does on a GPU and on Windows. One is "
        "faster than none even on two cores; many cores take more. One that ends is started again.",
    )
    max_detector_batch: int = Field(
        0,
        ge=0,
        le=256,
        description="Images in one run of the detector, of several photos where they wait; 0: one "
        "on a CPU, where more gain no time, 8 on a GPU. Memory grows with it (about 20 MB an image "
        "on the largest canvas).",
    )
    max_classifier_batch: int = Field(
        0,
        ge=0,
        le=1024,
        description="Faces in one run of the expression network; 0: 4 of one photo on a CPU, 32 of "
        "any on a GPU.",
    )
    max_in_flight_images: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Images accepted and not yet answered; the next one gets 429.",
    )
    max_in_flight_bytes: int = Field(
        256 * MEBIBYTE,
        ge=1024,
        le=1024 * 1024 * MEBIBYTE,
        description="Bytes of request bodies held at a time, replies not yet sent included; a body "
        "or a drawn picture that does not fit gets 429. A form or JSON takes about twice its bytes "
        "of memory.",
    )
    max_in_flight_pixels: int = Field(
        256_000_000,
        ge=4096,
        le=1_000_000_000_000,
        description="Decoded pixels held at a time, 3 bytes each (7 to 9 while being decoded; the "
        "few kinds that take more count twice); a photo that does not fit waits, "
        "and one larger than this is decoded when it is alone.",
    )
    max_connections: int = Field(
        512,
        ge=1,
        le=1_000_000,
        description="Open connections; for one more, the one that has waited longest for its "
        "client is closed, or the new one gets 503 where none has waited a second.",
    )
    max_batch_images: int = Field(
        16,
        ge=1,
        le=10_000,
        description="Photos in one call of /predict/batch; more get 413. Each is one in flight, so "
        "that no call takes more than max_in_flight_images.",
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
    search: Search = Field(
        "quick",
        description="How photos are searched for faces. thorough: also for small ones behind a "
        "large one, in two to seven times the CPU time. A request may ask for either (option "
        "search).",
    )
    deadline_ms: int = Field(
        30_000,
        ge=1,
        le=3_600_000,
        description="Milliseconds from the body's arrival to the reply; past it the reply is 504 "
        "and work not yet begun is dropped. A request may ask for less (X-Request-Timeout-Ms).",
    )
    body_timeout_ms: int = Field(
        30_000,
        ge=1,
        le=3_600_000,
        description="Milliseconds in which the body must arrive; past it the reply is 408.",
    )
    header_timeout_ms: int = Field(
        10_000,
        ge=1,
        le=3_600_000,
        description="Milliseconds in which a request's headers must arrive once they have begun; "
        "past it the reply is 408.",
    )
    stall_timeout_ms: int = Field(
        10_000,
        ge=1,
        le=3_600_000,
        description="Milliseconds without a byte in a body, past which the reply is 408, or "
        "without progress of a reply, past which the connection is cut.",
    )
    idle_timeout_ms: int = Field(
        75_000,
        ge=1,
        le=3_600_000,
        description="Milliseconds a connection may stay open without a request; keep it above a "
        "load balancer's own, or requests meet a closing connection.",
    )
    stage_limit_ms: int = Field(
        60_000,
        ge=500,
        le=3_600_000,
        description="Milliseconds one run of a stage (image work, a batch of a network) may take; "
        "past it the engine that it is in is ended, and another started; without engines, the "
        "service is not ready until that run ends.",
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
        False,
        description="Whether /health and /v2/health ask for an API key, where keys are set; then "
        "probes need one too, and the image's own health check, which has none, fails.",
    )
    metrics_needs_key: bool = Field(
        False,
        description="Whether /metrics asks for an API key, where keys are set; then Prometheus "
        "needs one in its configuration.",
    )
    rate_limit: str | None = Field(
        None,
        description="Photos each name of an API key may send to one replica, such as 10/second or "
        "10/second;5000/day; more get 429. Counted in windows, so that for a moment nearly twice "
        "as many may pass. One that can't be read counts too, one that finds no "
        "room does not. Unset: no limit.",
    )
    cors_origins: str | None = Field(
        None,
        description="Origins, separated by commas, whose pages may use the service from a browser; "
        "* for any. Unset: none but its own.",
    )
    traces: Literal["off", "otlp"] = Field(
        "off",
        description="Traces; otlp: one of each request by OpenTelemetry, to "
        "OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra otel.",
    )
    docs: bool = Field(True, description="Whether /docs and /openapi.json are served.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged; info has a line for each request."
    )
    log_format: Literal["plain", "json"] = Field(
        "plain", description="One line an event: key=value, or a JSON object."
    )

    @field_validator("min_score", "cors_origins", mode="before")
    @classmethod
    def _unset_where_empty(cls, value: object) -> object:
        # A line `LAN_FER_MIN_SCORE=` of an environment file.
        return None if isinstance(value, str) and not value.strip() else value

    @property
    def session_settings(self) -> SessionSettings:
        """What the ONNX Runtime sessions are made with."""
        return SessionSettings(provider=self.provider, intra_op_threads=self.intra_op_threads)

    @property
    def photo_threads(self) -> int:
        """Threads that read photos: as many as asked for, else one a core."""
        return self.image_workers or available_cpus()


def load_settings(**given: Any) -> Settings:  # noqa: ANN401 - text of flags, checked by Settings
    """Settings from `given` values, else the environment, else defaults.

    Raises SettingsError with one line that names each wrong setting. A variable of the environment
    that is none is wrong, too: one that was to ask for keys would else leave the service open.
    """
    unknown = [_unknown(name) for name in sorted(map(str.upper, os.environ)) if _is_unknown(name)]
    try:
        settings = Settings(**given)
    except ValidationError as error:
        wrong = [_wrong(e) for e in error.errors(include_url=False)]
        raise SettingsError(f"wrong settings: {'; '.join(wrong + unknown)}") from error
    if unknown:
        raise SettingsError(f"wrong settings: {'; '.join(unknown)}")
    return settings


def _is_unknown(variable: str) -> bool:
    name = variable.removeprefix(ENV_PREFIX)
    is_ours = name != variable and not _SERVICE_LINK.fullmatch(name)
    return is_ours and name.lower() not in Settings.model_fields


def _unknown(variable: str) -> str:
    known = [name.upper() for name in Settings.model_fields]
    hint = did_you_mean(variable.removeprefix(ENV_PREFIX), known, ENV_PREFIX)
    return f"{variable}: there is no such setting{hint}"


def _wrong(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][0])
        return f"{name}: there is no such setting{did_you_mean(name, Settings.model_fields)}"
    return f"{_name(error['loc'])}: {error['msg']}"


def _name(location: tuple[int | str, ...]) -> str:
    name = str(location[0])
    variable = ENV_PREFIX + name.upper()
    if name == "port" and os.environ.get(variable, "").startswith("tcp://"):
        variable += ", which Kubernetes sets for a service of this name: enableServiceLinks: false"
    return f"{name} ({variable})"


def available_cpus(cgroup: Path = CGROUP) -> int:
    """CPU cores this process may use: the machine's, its affinity mask's, or its cgroup's quota.

    A quota of part of a core counts as a whole one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cpu_quota(cgroup)
    return max(1, min(cores or 1, math.ceil(quota) if quota else sys.maxsize))


def _cpu_quota(cgroup: Path) -> float | None:
    """Cores' worth of time a cgroup may use (version 2, then 1), None where it is unlimited.

    In a container, its own cgroup is what is mounted there.
    """
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not limit.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max", -1
    return int(limit) / int(period) or None
