"""The wrapper most people would write: decode, detect, classify each face, in a pool of threads.

    python -m benchmarks.baseline.app --port 8001

Its best shape, and so the one measured against: one process, ONNX Runtime on one thread a call.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, UploadFile
from numpy.typing import NDArray

from benchmarks.baseline.networks import Classifier, Detector, FoundFace
from service.settings import Settings


def create_app(detector: Detector, classifier: Classifier) -> FastAPI:
    """POST /predict takes the multipart field `file`, as the service does."""
    app = FastAPI()

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/predict")
    def predict(file: UploadFile) -> dict[str, Any]:
        data = np.frombuffer(file.file.read(), np.uint8)
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if decoded is None:
            raise HTTPException(400, "not an image")
        image = np.asarray(decoded, np.uint8)
        faces = [_reply(classifier, image, face) for face in detector.detect(image)]
        return {"width": image.shape[1], "height": image.shape[0], "faces": faces}

    return app


def _reply(classifier: Classifier, image: NDArray[np.uint8], face: FoundFace) -> dict[str, Any]:
    probabilities, attention = classifier.read(image, face.landmarks)
    labels = classifier.contract.labels
    return {
        "box": face.box.tolist(),
        "landmarks": face.landmarks.tolist(),
        "score": face.score,
        "expression": labels[int(probabilities.argmax())],
        "probabilities": dict(zip(labels, probabilities.tolist(), strict=True)),
        "attention": attention.tolist(),
    }


def main() -> None:
    """Serve until stopped."""
    settings = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--threads", type=int, default=1, help="ONNX Runtime's, a call; 0: its own")
    parser.add_argument("--model", type=Path, default=settings.model_path)
    parser.add_argument(
        "--as-shipped", action="store_true", help="run the file as it is, not with PReLU"
    )
    options = parser.parse_args()
    detector = Detector(settings.detector_path, options.threads)
    classifier = Classifier(options.model, options.threads, published=not options.as_shipped)
    uvicorn.run(
        create_app(detector, classifier), port=options.port, access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
