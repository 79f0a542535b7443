"""Class activation maps of F_o, F_a and f (paper, Figures 3 and 4), on photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.faces.alignment import (
    ARCFACE_TEMPLATE,
    scaled_template,
    similarity_transform,
    warp_crop,
)
from service.faces.detector import FaceDetector
from service.runtime import SessionSettings
from training.crops import normalise
from training.datasets.records import DatasetError
from training.lan import Lan
from training.preparation import read_image
from training.runs import TrainedRun

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ActivationMaps:
    """What one network sees in one face, for the class that it answers."""

    crop: UInt8
    """[S,S,3] RGB."""
    label: str
    f_o: Float32
    """[7,7] in logits, as the others: their share of the class's logit."""
    f_a: Float32
    attention: Float32
    """[7,7], 0..1; all zero for a network without attention."""

    @property
    def f(self) -> Float32:
        """[7,7] of f: F_o and F_a together; its mean and the bias are the logit."""
        return self.f_o + self.f_a


def largest_faces(photos: Sequence[Path], detector_path: Path, size: int) -> list[UInt8]:
    """The aligned crop [S,S,3] of the largest face of each photo.

    Raises DatasetError naming a photo without a face, RequestError for one that is no image.
    """
    detector = FaceDetector.load(detector_path, SessionSettings("cpu"))
    crops = []
    for photo in photos:
        image = read_image(photo)
        faces = detector.detect(image)
        if not faces:
            raise DatasetError(f"{photo}: no face was found; name photos with one")
        template = scaled_template(ARCFACE_TEMPLATE, size)
        transform = similarity_transform(faces[0].landmarks, template)
        crops.append(warp_crop(image, transform, size))
    return crops


@torch.inference_mode()
def activation_maps(run: TrainedRun, crops: Sequence[UInt8]) -> list[ActivationMaps]:
    """Maps of each aligned crop [S,S,3] uint8 RGB by the network of a run."""
    network: Lan = run.network
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    output = network(normalise(images))
    of_f_o, of_f_a = network.evidence_parts(output.feature_map, output.attention)
    answers = output.logits.argmax(1).tolist()
    labels = run.provenance["labels"]
    return [
        ActivationMaps(
            crop,
            labels[answer],
            of_f_o[index, answer].numpy(),
            of_f_a[index, answer].numpy(),
            output.attention[index].numpy(),
        )
        for index, (crop, answer) in enumerate(zip(crops, answers, strict=True))
    ]
