"""GET /model: what is being served."""

from __future__ import annotations

from fastapi import APIRouter

from service.errors import UnavailableError
from service.routes.dependencies import ServiceDependency, problems
from service.schemas import ClassifierInfo, DetectorInfo, ModelReply

router = APIRouter(tags=["expressions"])

DETECTOR_NAME = "retinaface-mobilenet-0.25"
DETECTOR_LICENCE = "MIT"


@router.get(
    "/model",
    summary="Labels, contract and provenance of the networks",
    responses=problems(UnavailableError),
)
async def model(service: ServiceDependency) -> ModelReply:
    """The labels in the order of the logits, what the network expects, file hashes, licences."""
    networks = service.pipeline.networks
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
