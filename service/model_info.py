"""Which networks are loaded: the reply of GET /model, and a line of the log."""

from __future__ import annotations

import logging

from service.pipeline import Networks
from service.schemas import ClassifierInfo, DetectorInfo, ModelReply

DETECTOR_NAME = "retinaface-mobilenet-0.25"
DETECTOR_LICENCE = "MIT"

logger = logging.getLogger(__name__)


def model_info(networks: Networks) -> ModelReply:
    """Names, hashes of the files, providers in use, licences, and the classifier's contract."""
    classifier, detector = networks.classifier, networks.detector
    return ModelReply(
        classifier=ClassifierInfo(
            name=classifier.contract.name,
            version=f"sha256:{classifier.sha256}",
            provider=classifier.providers[0],
            licence=classifier.contract.licence,
            labels=list(classifier.contract.labels),
            contract=classifier.contract,
        ),
        detector=DetectorInfo(
            name=DETECTOR_NAME,
            version=f"sha256:{detector.sha256}",
            provider=detector.providers[0],
            licence=DETECTOR_LICENCE,
            canvas_sizes=list(detector.canvas_sizes),
        ),
    )


def log_networks(networks: Networks) -> None:
    """Say which files were loaded."""
    logger.info(
        "networks loaded",
        extra={
            "model": networks.classifier.contract.name,
            "file": networks.classifier.source,
            "detector_file": networks.detector.source,
            "provider": networks.provider,
        },
    )
