"""Accuracies equal scikit-learn's; net benefit equals its definition and its two extremes."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, hamming_loss

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.metrics.decisions import (
    DECISION_THRESHOLDS,
    accuracies,
    mean_net_benefit,
    net_benefit,
)
from ckd_ehr.metrics.label_facts import treat_all


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.random((300, 3)) < np.array([0.4, 0.2, 0.0])
    return np.clip(0.3 * labels + rng.random((300, 3)) * 0.7, 0, 1), labels


def test_accuracies_equal_scikit_learn_and_repetition(
    sample: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = sample
    weights = np.random.default_rng(1).integers(0, 3, size=(4, 300)).astype(float)
    ours = accuracies(probabilities >= 0.4, labels, weights)
    for draw, row in enumerate(weights):
        rows = np.repeat(np.arange(300), row.astype(int))
        decided = probabilities[rows] >= 0.4
        assert ours.hamming[draw] == pytest.approx(1 - hamming_loss(labels[rows], decided))
        assert ours.subset[draw] == pytest.approx(accuracy_score(labels[rows], decided))


def test_net_benefit_is_its_definition(sample: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = sample
    ours = net_benefit(probabilities, labels).mean(axis=0)
    for t, threshold in enumerate(DECISION_THRESHOLDS):
        table = confusion_matrix(labels[:, 0], probabilities[:, 0] >= threshold)
        expected = (table[1, 1] - table[0, 1] * threshold / (1 - threshold)) / 300
        assert ours[0, t] == pytest.approx(expected, abs=1e-12)


def test_treating_all_and_nobody_are_the_extremes(
    sample: tuple[np.ndarray, np.ndarray],
) -> None:
    _, labels = sample
    everybody = treat_all(labels, ("a", "b", "c"))
    prevalence, odds = labels[:, 0].mean(), DECISION_THRESHOLDS / (1 - DECISION_THRESHOLDS)
    expected = prevalence - (1 - prevalence) * odds
    assert everybody.labels["a"] == pytest.approx(expected.tolist(), abs=1e-6)
    mean = (np.array(everybody.labels["a"]) + np.array(everybody.labels["b"])) / 2  # c: one class
    assert everybody.treat_all == pytest.approx(mean.tolist(), abs=2e-6)
    assert not net_benefit(np.zeros((3, 2)), labels[:3, :2]).any()


def test_the_true_risk_is_never_worse_than_either_extreme() -> None:
    rng = np.random.default_rng(2)
    risks = rng.beta(1, 3, (200_000, 1))
    labels = rng.random(risks.shape) < risks
    once, scored = np.ones((1, len(labels))), np.array([True])
    ours = mean_net_benefit(risks, labels, once, scored=scored)[0]
    everybody = mean_net_benefit(np.ones_like(risks), labels, once, scored=scored)[0]
    assert (ours >= np.maximum(everybody, 0) - 1e-3).all()
    assert ours[29] > max(everybody[29], 0) + 0.05


def test_without_a_scored_label_there_is_no_net_benefit() -> None:
    labels = np.zeros((4, 2), dtype=bool)
    found = mean_net_benefit(np.full((4, 2), 0.3), labels, np.ones((1, 4)), scored=labels.any(0))
    assert np.isnan(found).all()


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(CkdEhrError, match="1 of 1 are not probabilities"):
        net_benefit([[np.nan]], [[True]])
