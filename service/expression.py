"""The expression model: aligned crops -> probabilities, attention and class evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.contract import ModelContract, parse_contract
from service.errors import InferenceError, ModelContractError
from service.faces.alignment import Float64, similarity_transform, warp_crop
from service.faces.face import Face
from service.runtime import LoadedModel, SessionSettings, load_model

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

INPUTS = ["image"]
OUTPUTS = ["logits", "attention", "evidence"]


@dataclass(frozen=True, eq=False)
class Reading:
    """What the model reads in one face, for K classes."""

    logits: Float32
    """[K]."""
    probabilities: Float32
    """[K] calibrated by the contract's temperature, sum 1."""
    attention: Float32
    """[7,7] the attention map F_m over the crop, 0..1."""
    evidence: Float32
    """[K,7,7]: its mean over positions plus the contract's bias is the logit."""


def softmax(logits: Float32, temperature: float) -> Float32:
    """Probabilities over the last axis of `logits` / `temperature`."""
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True), np.float32)


def _grey(crop: UInt8) -> UInt8:
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)


class ExpressionModel:
    """A LAN in ONNX Runtime, used as its contract says. Every method is thread-safe."""

    def __init__(self, model: LoadedModel, source: str) -> None:
        """Raises ModelContractError where the contract is missing, wrong, or not kept."""
        meta = model.session.get_modelmeta()
        self.contract: ModelContract = parse_contract(meta.custom_metadata_map, source)
        self.description: str = meta.description
        self.source = source
        self.sha256 = model.sha256
        self.providers = model.providers
        self._session = model.session
        self._template = np.array(self.contract.template)
        self._scale = 1 / np.array(self.contract.std, np.float32).reshape(-1, 1, 1)
        self._require_interface(source)
        self._require_sound_outputs(source)

    @classmethod
    def load(cls, path: Path, settings: SessionSettings) -> ExpressionModel:
        """Raises ModelFileError, ModelContractError or ProviderUnavailableError."""
        return cls(load_model(path, settings), str(path))

    def transform(self, face: Face) -> Float64:
        """Similarity [2,3] from the image's pixels to the crop's.

        Raises InferenceError where the landmarks are degenerate.
        """
        try:
            return similarity_transform(face.landmarks, self._template)
        except ValueError as error:
            raise InferenceError("a face's landmarks coincide") from error

    def scale(self, face: Face) -> float:
        """Pixels of the crop for each pixel of the image."""
        a, b = self.transform(face)[:, 0]
        return math.hypot(a, b)

    def crop(self, image: UInt8, face: Face) -> UInt8:
        """The aligned crop [S,S,3] uint8 RGB of `image` [H,W,3] uint8 RGB."""
        return warp_crop(image, self.transform(face), self.contract.input_size)

    def batch(self, crops: Sequence[UInt8]) -> Float32:
        """The network's input [N,3,S,S] of N aligned crops [S,S,3] uint8 RGB."""
        if self.contract.color_mode == "gray":
            crops = [_grey(crop) for crop in crops]
        batch = np.asarray(cv2.dnn.blobFromImages(crops, mean=self.contract.mean), np.float32)
        batch *= self._scale
        return batch

    def infer(self, crops: Sequence[UInt8]) -> list[Reading]:
        """Read N aligned crops [S,S,3] uint8 RGB in one run. Raises InferenceError."""
        logits, attention, evidence = self._run(self.batch(crops))
        if not all(np.isfinite(values).all() for values in (logits, attention, evidence)):
            raise InferenceError("the expression model gave numbers that are not finite")
        probabilities = softmax(logits, self.contract.temperature)
        return [
            Reading(logits[i], probabilities[i], attention[i, 0], evidence[i])
            for i in range(len(crops))
        ]

    def warm_up(self) -> None:
        """Run once, so that no request pays for a first time."""
        size = self.contract.input_size
        self.infer([np.zeros((size, size, 3), np.uint8)])

    def _run(self, batch: Float32) -> tuple[Float32, Float32, Float32]:
        try:
            logits, attention, evidence = self._session.run(OUTPUTS, {"image": batch})
        except Exception as error:  # ORT's exception classes share no public base
            raise InferenceError("the expression model failed") from error
        return logits, attention, evidence

    def _require_interface(self, source: str) -> None:
        inputs = [i.name for i in self._session.get_inputs()]
        outputs = [o.name for o in self._session.get_outputs()]
        if inputs != INPUTS or sorted(outputs) != sorted(OUTPUTS):
            raise ModelContractError(
                f"{source}: expected input {INPUTS} and outputs {OUTPUTS}, "
                f"the file has {inputs} and {outputs}"
            )

    def _require_sound_outputs(self, source: str) -> None:
        """One run on two crops: shapes as promised, every number finite."""
        size, classes = self.contract.input_size, len(self.contract.labels)
        crops = np.zeros((2, size, size, 3), np.uint8)
        crops[1] = np.linspace(0, 255, size, dtype=np.uint8)[None, :, None]
        try:
            logits, attention, evidence = self._run(self.batch(list(crops)))
        except InferenceError as error:
            reason = str(error.__cause__).splitlines()[0]
            raise ModelContractError(f"{source}: cannot run on its input ({reason})") from error
        grid = attention.shape[2:]
        shapes = (logits.shape, attention.shape, evidence.shape)
        expected = ((2, classes), (2, 1, *grid), (2, classes, *grid))
        if shapes != expected or len(grid) != 2:
            raise ModelContractError(
                f"{source}: outputs have shapes {shapes}, expected {expected} "
                f"for {classes} labels and a batch of 2"
            )
        if not all(np.isfinite(values).all() for values in (logits, attention, evidence)):
            raise ModelContractError(f"{source}: outputs hold NaN or infinite numbers")
