"""Paired differences use the same patients; curves end where they should."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score

from ckd_ehr.learning.scoring import patient_draws
from ckd_ehr.metrics.compare import ScoredPairs, difference, measure, micro_curve


@pytest.fixture
def pairs() -> ScoredPairs:
    rng = np.random.default_rng(1)
    labels = rng.random((120, 3)) < 0.3
    return ScoredPairs(
        labels=labels,
        previously_present=rng.random((120, 3)) < 0.5,
        weights=patient_draws(np.arange(120) // 2, draws=100, seed=0),
        bins=10,
    )


def test_a_model_does_not_differ_from_itself_or_its_monotone_transform(pairs: ScoredPairs) -> None:
    risks = np.random.default_rng(2).random(pairs.labels.shape)
    thresholds = np.full(3, 0.5)
    one = measure(risks, thresholds, pairs)
    two = measure(risks**2, thresholds**2, pairs)
    paired = difference(one, two, model="a", minus="b", names=["macro_auprc", "macro_f1"])
    for figure in paired.figures.values():
        assert (figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0)


def test_pairing_narrows_the_interval(pairs: ScoredPairs) -> None:
    rng = np.random.default_rng(3)
    log_odds = 2.0 * pairs.labels + rng.normal(size=pairs.labels.shape)
    risks, other = expit(log_odds), expit(log_odds + 0.2 * rng.normal(size=log_odds.shape))
    thresholds = np.full(3, 0.5)
    one, two = measure(risks, thresholds, pairs), measure(other, thresholds, pairs)
    alone = one.resampled.overall["macro_auprc"].std()
    paired = (one.resampled.overall["macro_auprc"] - two.resampled.overall["macro_auprc"]).std()
    assert paired < alone / 2


def test_new_onset_scores_only_cells_without_history(pairs: ScoredPairs) -> None:
    risks = np.random.default_rng(4).random(pairs.labels.shape)
    scores = measure(risks, np.full(3, 0.5), pairs).point
    cells = ~pairs.previously_present
    expected = average_precision_score(pairs.labels[cells], risks[cells])
    assert scores.new_onset["micro_auprc"][0] == pytest.approx(expected)


def test_curve_runs_to_full_recall_and_is_thin(pairs: ScoredPairs) -> None:
    risks = np.random.default_rng(5).random(pairs.labels.shape)
    curve = micro_curve(risks, pairs.labels, points=20)
    assert len(curve.recall) <= 20
    assert curve.recall == sorted(curve.recall)
    assert curve.recall[-1] == 1.0
    assert curve.precision[-1] <= 1.0
    assert micro_curve(risks, np.zeros_like(pairs.labels)).recall == []
