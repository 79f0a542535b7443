"""Pages of other origins: none may ask, unless a setting names them."""

from __future__ import annotations

import re
from typing import Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from service.errors import SettingsError

ORIGIN: Final = re.compile(r"\*|https?://[A-Za-z0-9.\-\[\]:]+")
ASKED_WITH: Final = [
    "Authorization",
    "Content-Type",
    "Inference-Header-Content-Length",
    "X-API-Key",
    "X-Request-ID",
    "X-Request-Timeout-Ms",
]
TOLD: Final = [
    "Inference-Header-Content-Length",
    "Retry-After",
    "Server-Timing",
    "X-Request-ID",
]


def allow_origins(app: FastAPI, origins: str) -> None:
    """Let pages of `origins`, separated by commas, use the app. Raises SettingsError."""
    named = [origin.strip() for origin in origins.split(",") if origin.strip()]
    if not named:
        raise SettingsError(f"cors_origins: {origins!r} names no origin")
    for origin in named:
        if not ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"cors_origins: {origin!r} is no origin such as https://example.com, nor *"
            )
    app.add_middleware(
        CORSMiddleware,
        allow_origins=named,
        allow_methods=["GET", "POST"],
        allow_headers=ASKED_WITH,
        expose_headers=TOLD,
    )
