"""The REST service that reads facial expressions from photos and shows where it looked.

In process, without a server: `from service import Recognizer` (see `service.local`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["PredictOptions", "PredictReply", "Recognizer", "ServiceError"]

if TYPE_CHECKING:
    from service.errors import ServiceError
    from service.local import Recognizer
    from service.schemas import PredictOptions, PredictReply
else:
    _HOMES = {
        "PredictOptions": "service.schemas",
        "PredictReply": "service.schemas",
        "Recognizer": "service.local",
        "ServiceError": "service.errors",
    }

    def __getattr__(name: str) -> object:
        """Import on first use: `lan-fer --help` and training need no ONNX Runtime for it."""
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
