"""Evaluation figures and calibration, on made-up answers of which the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.expression import softmax
from tests.training.made_up import coloured_split, enliven, fitted, tiny_lan
from training.calibration import (
    coverage_curve,
    cross_fitted_error,
    doubt,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from training.crops import CropDataset
from training.evaluation import Evaluation, evaluate


def answers(count: int, temperature: float, seed: int = 0) -> Evaluation:
    """Logits whose softmax at `temperature` is the very chance of each class."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 5)).astype(np.float32)
    chances = softmax(logits, temperature).cumsum(1)
    classes = (rng.random((count, 1)) > chances).sum(1).clip(max=4)
    return Evaluation(logits, classes)


def certain(predicted: list[int], classes: list[int], labels: int = 3) -> Evaluation:
    logits = 4 * np.eye(labels, dtype=np.float32)[predicted]
    return Evaluation(logits, np.array(classes, np.int64))


# --- accuracy, confusion, recall ---------------------------------------------------------------


def test_figures_of_a_small_table() -> None:
    evaluation = certain([0, 0, 1, 2, 1, 0], [0, 0, 0, 1, 1, 1])
    assert evaluation.accuracy == pytest.approx(3 / 6)
    np.testing.assert_array_equal(evaluation.predicted, [0, 0, 1, 2, 1, 0])
    # True class by row, predicted class by column.
    np.testing.assert_array_equal(evaluation.confusion(), [[2, 1, 0], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_allclose(evaluation.recalls(), [2 / 3, 1 / 3, np.nan])


def test_mean_recall_is_over_the_classes_that_occur() -> None:
    evaluation = certain([0, 0, 1, 2, 1, 0], [0, 0, 0, 1, 1, 1])
    assert evaluation.summary() == {
        "accuracy": pytest.approx(0.5),
        "mean_recall": pytest.approx(0.5),
    }
    uneven = certain([0, 0, 0, 0], [0, 0, 0, 1])
    assert uneven.summary() == {"accuracy": 0.75, "mean_recall": 0.5}


def test_a_subset_has_its_own_figures() -> None:
    evaluation = certain([0, 0, 1, 2], [0, 1, 1, 1])
    part = evaluation.subset(np.array([True, False, True, False]))
    assert part.accuracy == 1
    assert len(part.classes) == 2


def test_evaluate_answers_every_image_in_order(tmp_path: Path) -> None:
    network = enliven(tiny_lan())
    dataset = CropDataset(coloured_split(tmp_path, 7), fitted(7), 28)
    small, large = evaluate(network.train(), dataset, 2), evaluate(network, dataset, 64)
    assert not network.training
    assert small.logits.shape == (7, 3)
    np.testing.assert_allclose(small.logits, large.logits, atol=1e-5)
    np.testing.assert_array_equal(small.classes, dataset.split.classes)


# --- temperature -------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.5])
def test_recovers_a_planted_temperature(planted: float) -> None:
    assert fit_temperature(answers(20_000, planted)) == pytest.approx(planted, rel=0.05)


def test_the_fitted_temperature_is_the_most_likely() -> None:
    evaluation = answers(2_000, 1.7)
    best = fit_temperature(evaluation)
    likelihood = negative_log_likelihood(evaluation, best)
    for other in (0.5 * best, 0.9 * best, 1.1 * best, 2 * best):
        assert negative_log_likelihood(evaluation, other) > likelihood


@pytest.mark.parametrize(("right", "temperature"), [(True, 0.1), (False, 10.0)])
def test_a_temperature_at_the_end_of_its_range_is_doubted(right: bool, temperature: float) -> None:
    fitted = fit_temperature(confident(0.75, [right] * 6))
    assert fitted == pytest.approx(temperature, rel=1e-3)
    assert "lies at the end of the range searched (0.1 to 10)" in doubt(round(fitted, 4))
    assert not doubt(fit_temperature(answers(2_000, 1.7)))


def test_negative_log_likelihood_of_one_answer() -> None:
    evaluation = Evaluation(np.array([[2.0, 0.0]], np.float32), np.array([1]))
    assert negative_log_likelihood(evaluation, 2.0) == pytest.approx(np.log(1 + np.e))


def test_certainty_that_is_wrong_stays_finite() -> None:
    evaluation = Evaluation(np.array([[1e4, 0.0]], np.float32), np.array([1]))
    assert np.isfinite(negative_log_likelihood(evaluation, 0.1))


# --- calibration error -------------------------------------------------------------------------


def test_calibrated_answers_have_hardly_any_error() -> None:
    evaluation = answers(20_000, 1.0)
    assert reliability(evaluation, 1.0).error < 0.015
    assert reliability(evaluation, 0.3).error > 0.1, "overconfident"
    assert reliability(evaluation, 4.0).error > 0.1, "underconfident"


def confident(confidence: float, right: list[bool]) -> Evaluation:
    """Two classes; the first is always chosen, with `confidence`."""
    logit = np.log(confidence / (1 - confidence))
    logits = np.tile(np.array([logit, 0], np.float32), (len(right), 1))
    return Evaluation(logits, np.where(right, 0, 1))


def test_calibration_error_of_a_small_table() -> None:
    right = reliability(confident(0.75, [True, True, True, False]), 1.0, bins=10)
    assert right.error == pytest.approx(0, abs=1e-6)
    assert right.counts.tolist() == [0, 0, 0, 0, 0, 0, 0, 4, 0, 0]
    assert right.confidence[7] == pytest.approx(0.75, abs=1e-6)
    assert right.accuracy[7] == 0.75
    wrong = reliability(confident(0.75, [True, False, False, False]), 1.0, bins=10)
    assert wrong.error == pytest.approx(0.5, abs=1e-6)


def test_bins_are_weighted_by_their_answers() -> None:
    good, bad = confident(0.75, [True, True, True, False]), confident(0.9, [False])
    both = Evaluation(
        np.concatenate((good.logits, bad.logits)), np.concatenate((good.classes, bad.classes))
    )
    assert reliability(both, 1.0).error == pytest.approx(0.9 / 5, abs=1e-6)


def test_full_confidence_falls_in_the_last_bin() -> None:
    found = reliability(Evaluation(np.array([[500.0, 0.0]], np.float32), np.array([0])), 1.0)
    assert found.counts[-1] == 1
    assert found.error == 0


def test_a_cross_fitted_error_mends_temperature_alone() -> None:
    evaluation = answers(5_000, 2.0)
    assert reliability(evaluation, 1.0).error > 0.1
    assert cross_fitted_error(evaluation) < 0.03
    assert cross_fitted_error(evaluation) == cross_fitted_error(evaluation)


# --- coverage ----------------------------------------------------------------------------------


def curve(evaluation: Evaluation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return coverage_curve(evaluation, 1.0)


def test_coverage_answers_the_most_confident_first() -> None:
    confidences, right = (0.6, 0.9, 0.7, 0.8), (False, True, True, False)
    parts = [confident(c, [r]) for c, r in zip(confidences, right, strict=True)]
    evaluation = Evaluation(
        np.concatenate([p.logits for p in parts]), np.concatenate([p.classes for p in parts])
    )
    share, accuracy = curve(evaluation)
    np.testing.assert_allclose(share, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(accuracy, [1, 1 / 2, 2 / 3, 1 / 2])


def test_coverage_ends_at_the_accuracy_of_all() -> None:
    evaluation = answers(3_000, 1.0)
    share, accuracy = curve(evaluation)
    assert share[-1] == 1
    assert accuracy[-1] == pytest.approx(evaluation.accuracy)
    assert accuracy[299] > accuracy[-1] + 0.1, "the most confident tenth is right more often"
