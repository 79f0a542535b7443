"""What the answers were, as an operator of a model watches it."""

from __future__ import annotations

from service.pipeline import Networks
from service.settings import Settings
from tests.service.serving import running

JPEG = {"content-type": "image/jpeg"}


def test_confidence_of_each_face_is_counted(networks: Networks, portrait_jpeg: bytes) -> None:
    with running(Settings(), networks) as server, server.client() as client:
        given = [
            face["expression"]["confidence"]
            for _ in range(2)
            for face in client.post("/predict", content=portrait_jpeg, headers=JPEG).json()["faces"]
        ]
        read = server.state.metrics.registry.get_sample_value
        assert given
        assert read("lan_fer_face_confidence_count") == len(given)
        assert abs((read("lan_fer_face_confidence_sum") or 0) - sum(given)) < 1e-4
        for bound in ("0.2", "0.9", "0.95", "0.99", "1.0"):
            below = sum(confidence <= float(bound) for confidence in given)
            assert read("lan_fer_face_confidence_bucket", {"le": bound}) == below
        assert read("lan_fer_face_confidence_bucket", {"le": "1.0"}) == len(given)


def test_the_limit_stands_beside_what_it_limits(networks: Networks) -> None:
    with running(Settings(max_in_flight_images=7), networks) as server:
        read = server.state.metrics.registry.get_sample_value
        assert read("lan_fer_images_in_flight_limit") == 7
        assert read("lan_fer_images_in_flight") == 0
