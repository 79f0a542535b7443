"""Fixtures of several modules here: a service whose detector waits until it is let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from service.pipeline import Networks
from service.settings import Settings
from tests.service.holding import HeldDetector
from tests.service.serving import RunningServer, Serve


@pytest.fixture
def held() -> Iterator[HeldDetector]:
    detector = HeldDetector(Settings())
    yield detector
    detector.gate.set()


@pytest.fixture
def serve_held(
    serve: Serve, networks: Networks, held: HeldDetector
) -> Callable[..., RunningServer]:
    """serve_held(setting=value): one worker a network, so that a held batch holds all."""

    def start(**settings: object) -> RunningServer:
        return serve(Networks(held, networks.classifier), inference_workers=1, **settings)

    return start
