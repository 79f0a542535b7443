"""GET /model: what is being served."""

from __future__ import annotations

from fastapi import APIRouter

from service.routes.dependencies import ServiceDependency, problems
from service.schemas import ModelReply

router = APIRouter(tags=["expressions"])


@router.head("/model", include_in_schema=False)
@router.get(
    "/model",
    summary="Labels, contract and provenance of the networks",
    responses=problems(),
)
async def model(service: ServiceDependency) -> ModelReply:
    """The labels in the order of the logits, what the network expects, file hashes, licences."""
    return service.model
