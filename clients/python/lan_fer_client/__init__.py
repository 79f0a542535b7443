"""Client of lan-fer, the REST service that reads facial expressions from photos."""

from lan_fer_client.client import AsyncClient, Client
from lan_fer_client.errors import (
    BadReplyError,
    ClientError,
    ConnectionFailedError,
    ProblemError,
)
from lan_fer_client.models import (
    Attention,
    Box,
    ClassifierInfo,
    DetectorInfo,
    Evidence,
    Expression,
    FaceReply,
    HeadPoseReply,
    ImageInfo,
    Landmarks,
    ModelReply,
    ModelVersion,
    PredictOptions,
    PredictReply,
    Problem,
    Timings,
)
from lan_fer_client.retries import Retries

__all__ = [
    "AsyncClient",
    "Attention",
    "BadReplyError",
    "Box",
    "ClassifierInfo",
    "Client",
    "ClientError",
    "ConnectionFailedError",
    "DetectorInfo",
    "Evidence",
    "Expression",
    "FaceReply",
    "HeadPoseReply",
    "ImageInfo",
    "Landmarks",
    "ModelReply",
    "ModelVersion",
    "PredictOptions",
    "PredictReply",
    "Problem",
    "ProblemError",
    "Retries",
    "Timings",
]
