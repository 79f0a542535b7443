"""Writes clients/openapi.json: the document of the API as the service has it out of the box."""

from __future__ import annotations

import json
from pathlib import Path

from service.app import create_app
from service.settings import Settings

TARGET = Path(__file__).with_name("openapi.json")


def document() -> str:
    """The document, the same text on any machine."""
    # Not from the environment: the clients are for every service.
    app = create_app(Settings.model_construct())
    return json.dumps(app.openapi(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
