"""Predictions on a split and the figures drawn from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.crops import CropDataset, batches, normalise
from training.lan import Lan
from training.progress import progress


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Logits of N images beside what they should be."""

    logits: NDArray[np.float32]
    """[N,K]."""
    classes: NDArray[np.int64]
    """[N] the hard label, 0..K-1."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """[N] the class with the largest logit."""
        return np.asarray(self.logits.argmax(1), np.int64)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return float((self.predicted == self.classes).mean())

    def confusion(self) -> NDArray[np.int64]:
        """[K,K] counts, true class by row, predicted class by column."""
        classes = self.logits.shape[1]
        matrix = np.zeros((classes, classes), np.int64)
        np.add.at(matrix, (self.classes, self.predicted), 1)
        return matrix

    def recalls(self) -> NDArray[np.float64]:
        """[K] share of right answers within each class; NaN where a class has no image."""
        matrix = self.confusion()
        with np.errstate(invalid="ignore"):
            return np.asarray(np.diag(matrix) / matrix.sum(1), np.float64)

    def summary(self) -> dict[str, float]:
        """Accuracy and mean recall over the classes that occur."""
        return {"accuracy": self.accuracy, "mean_recall": float(np.nanmean(self.recalls()))}

    def subset(self, kept: NDArray[np.bool_]) -> Evaluation:
        """The images where `kept` [N] is true."""
        return Evaluation(self.logits[kept], self.classes[kept])


def evaluate(network: Lan, dataset: CropDataset, batch_size: int = 64) -> Evaluation:
    """Run `network` over `dataset`, whose images must all have a hard label."""
    network.eval()
    device = next(network.parameters()).device
    parts = []
    with torch.inference_mode():
        steps = -(-len(dataset) // batch_size)
        passes = batches(dataset, batch_size, shuffle=False)
        for batch in progress(passes, "evaluate", steps, unit="batch"):
            logits = network(normalise(batch.images.to(device))).logits
            parts.append(logits.float().cpu().numpy())
    return Evaluation(np.concatenate(parts), dataset.split.classes)
