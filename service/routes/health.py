"""GET /health/live, /health/ready and /metrics: for those who watch the service."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from service.routes.dependencies import ServiceDependency, problems
from service.schemas import Status

router = APIRouter(tags=["operation"])
metrics_router = APIRouter(tags=["operation"])


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", summary="Is the process alive?", responses=problems())
async def live() -> Status:
    """Answers as long as the event loop turns; restart the process when it does not."""
    return Status(status="live")


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", summary="Does it take photos?", responses=problems())
async def ready(service: ServiceDependency) -> Status:
    """503 until every input size of both networks has been run once, and again while draining."""
    service.lifecycle.require_ready()
    return Status(status="ready")


@metrics_router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **problems()},
)
async def metrics(service: ServiceDependency) -> Response:
    """Requests, stages, batches, queues and the process itself, in Prometheus's text format."""
    return Response(
        generate_latest(service.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )
