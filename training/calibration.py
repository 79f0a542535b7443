"""Temperature scaling (Guo et al., ICML 2017) and how far confidence is from accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from service.expression import softmax
from training.evaluation import Evaluation

BINS = 15
TEMPERATURES = (0.1, 10.0)


def negative_log_likelihood(evaluation: Evaluation, temperature: float) -> float:
    """Mean -log p(true class) with logits divided by `temperature`."""
    probabilities = softmax(evaluation.logits, temperature)
    chosen = probabilities[np.arange(len(evaluation.classes)), evaluation.classes]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def fit_temperature(evaluation: Evaluation) -> float:
    """The temperature of the least negative log-likelihood, within TEMPERATURES."""
    found = minimize_scalar(
        lambda t: negative_log_likelihood(evaluation, float(t)),
        bounds=TEMPERATURES,
        method="bounded",
    )
    return float(found.x)


def doubt(temperature: float) -> str:
    """What is wrong with a fitted temperature, without a full stop; "" where nothing is."""
    if not np.isclose(temperature, TEMPERATURES, rtol=1e-3).any():
        return ""
    least, most = TEMPERATURES
    return (
        f"the temperature lies at the end of the range searched ({least:g} to {most:g}): the "
        "images that it was fitted on are too few, or their answers too much alike, to say how "
        "sure the model should be"
    )


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy in equal-width bins of confidence."""

    counts: NDArray[np.int64]
    """[B] answers in each bin."""
    confidence: NDArray[np.float64]
    """[B] their mean confidence (0 where empty)."""
    accuracy: NDArray[np.float64]
    """[B] share of right answers (0 where empty)."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence|, weighted by counts, 0..1."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float((gaps * self.counts).sum() / self.counts.sum())


def reliability(evaluation: Evaluation, temperature: float, bins: int = BINS) -> Reliability:
    """Bin the answers of `evaluation` by the confidence of the class chosen."""
    probabilities = softmax(evaluation.logits, temperature)
    confidence = probabilities.max(1).astype(np.float64)
    right = (evaluation.predicted == evaluation.classes).astype(np.float64)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    divisor = np.maximum(counts, 1)
    return Reliability(
        counts,
        np.bincount(index, confidence, bins) / divisor,
        np.bincount(index, right, bins) / divisor,
    )


def cross_fitted_error(evaluation: Evaluation, *, folds: int = 5, seed: int = 0) -> float:
    """Expected calibration error where each image's temperature was fitted without it."""
    order = np.random.default_rng(seed).permutation(len(evaluation.classes))
    logits = np.empty_like(evaluation.logits)
    for part in np.array_split(order, folds):
        rest = np.ones(len(order), dtype=bool)
        rest[part] = False
        temperature = fit_temperature(evaluation.subset(rest))
        logits[part] = evaluation.logits[part] / temperature
    return reliability(Evaluation(logits, evaluation.classes), 1.0).error


def coverage_curve(
    evaluation: Evaluation, temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Answering only the k most confident images: ([N] share answered, [N] accuracy on them)."""
    probabilities = softmax(evaluation.logits, temperature)
    order = np.argsort(-probabilities.max(1), kind="stable")
    right = (evaluation.predicted == evaluation.classes)[order]
    answered = np.arange(1, len(order) + 1)
    return answered / len(order), np.cumsum(right) / answered
