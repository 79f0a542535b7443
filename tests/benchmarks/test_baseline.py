"""The plain wrapper computes what the service does; photos and overlaps are what they say."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.baseline.networks import Classifier, Detector, make_session, with_prelu
from benchmarks.photos import SIZES, usual_photos
from benchmarks.recall import overlaps
from service.imaging import ImageLimits, decode_image
from service.pipeline import Networks
from service.settings import Settings


def test_published_form_computes_the_same() -> None:
    path = Settings().model_path
    published = with_prelu(onnx.load(path))
    kinds = [node.op_type for node in published.graph.node]
    assert kinds.count("PRelu") == 33
    assert "LeakyRelu" not in kinds
    images = np.random.default_rng(0).normal(size=(2, 3, 112, 112)).astype(np.float32)
    both = [
        make_session(model, 1).run(None, {"image": images})
        for model in (published.SerializeToString(), str(path))
    ]
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_baseline_reads_the_same_expression(
    networks: Networks, portrait: NDArray[np.uint8]
) -> None:
    settings = Settings()
    image = np.ascontiguousarray(portrait[..., ::-1])
    (face,) = Detector(settings.detector_path, 1).detect(image)
    classifier = Classifier(settings.model_path, 1, published=True)
    probabilities, attention = classifier.read(image, face.landmarks)
    (same,) = networks.detector.detect(portrait)
    (reading,) = networks.classifier.infer([networks.classifier.crop(portrait, same)])
    assert probabilities.argmax() == reading.probabilities.argmax()
    assert attention.shape == (7, 7)
    boxes = (np.asarray(box[None], np.float64) for box in (face.box, same.box))
    assert overlaps(*boxes)[0, 0] > 0.8


def test_photos_hold_the_faces_they_promise(networks: Networks) -> None:
    limits = ImageLimits(10**8, 10**8)
    for faces in (0, 1, 5, 20):
        (photo,) = usual_photos("640x480", faces, 1)
        pixels = decode_image(photo, limits).pixels
        assert pixels.shape[:2] == SIZES["640x480"]
        assert len(networks.detector.detect(pixels)) == faces


def test_overlap_of_boxes() -> None:
    boxes = np.array([[0, 0, 2, 2], [10, 10, 12, 12]], np.float64)
    others = np.array([[0, 0, 2, 1]], np.float64)
    np.testing.assert_allclose(overlaps(boxes, others), [[0.5], [0.0]])
