"""Baselines count what they say they count, and use nothing but the history."""

import numpy as np
import pytest
from scipy import sparse

from ckd_ehr.learning import baselines
from ckd_ehr.learning.scoring import label_ranking
from small_tables import VISIT_ROWS, pairs_table, visits_table


def test_carry_forward_counts_transitions() -> None:
    present = np.array([[True], [True], [True], [False], [False]])
    labels = np.array([[True], [True], [False], [True], [False]])
    raw = baselines.carry_forward(present, labels, np.array([[True], [False]]), smoothing=0)
    np.testing.assert_allclose(raw.ravel(), [2 / 3, 1 / 2])
    smoothed = baselines.carry_forward(present, labels, np.array([[True], [False]]))
    prevalence = 3.5 / 6
    np.testing.assert_allclose(smoothed.ravel(), [(2 + prevalence) / 4, (1 + prevalence) / 3])


def test_carry_forward_gives_a_label_nobody_had_a_small_probability() -> None:
    nobody = np.zeros((9, 1), dtype=bool)
    probabilities = baselines.carry_forward(nobody, nobody, np.array([[True], [False]]))
    np.testing.assert_allclose(probabilities.ravel(), [0.05, 0.005])


def test_features_hold_supported_codes_ever_and_last() -> None:
    visits = visits_table(VISIT_ROWS)
    pairs = pairs_table([["a"], ["a", "b"], ["c"]])
    features = baselines.code_features(visits, pairs, fit_on=np.array([True, True, False]))
    dense = features.toarray()
    # 042, 4280 and aspirin are in both fitted pairs, 42 in neither: 3 ever, 3 last, 3 plain, 1 sex
    assert dense.shape == (3, 10)
    np.testing.assert_array_equal(dense[:, :3], [[1, 1, 1], [1, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(dense[:, 3:6], [[1, 1, 1], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(dense[:2, 6], [-1, 1])
    np.testing.assert_array_equal(dense[:, 9], [1, 1, 0])


def test_features_do_not_see_the_next_visit() -> None:
    pairs = pairs_table([["a"], ["a", "b"]])
    everyone = np.array([True, True])
    before = baselines.code_features(visits_table(VISIT_ROWS), pairs, fit_on=everyone)
    changed = [*VISIT_ROWS[:2], ("c", 2, ["0389"], [])]
    after = baselines.code_features(visits_table(changed), pairs, fit_on=everyone)
    np.testing.assert_array_equal(before.toarray(), after.toarray())


@pytest.fixture
def task() -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Binary features whose first two columns decide two labels; nobody has the third label."""
    rng = np.random.default_rng(0)
    dense = rng.random((600, 30)) < 0.3
    logits = np.column_stack([3 * dense[:, 0] - 2, 3 * dense[:, 1] - 2, np.full(600, -np.inf)])
    labels = rng.random((600, 3)) < 1 / (1 + np.exp(-logits))
    return sparse.csr_matrix(dense.astype(float)), labels, np.repeat([0, 1, 2], [400, 100, 100])


def test_logistic_regression_finds_the_signal_and_is_calibrated(
    task: tuple[sparse.csr_matrix, np.ndarray, np.ndarray],
) -> None:
    features, labels, part = task
    fit = baselines.logistic_regression(features, labels, train=part == 0, tuning=part == 1)
    scores = label_ranking(fit.probabilities[part == 2], labels[part == 2])
    assert (scores.auroc[0, :2] > 0.7).all()
    assert fit.penalty in baselines.PENALTIES
    expected = labels[part == 2, :2].mean(axis=0)
    np.testing.assert_allclose(fit.probabilities[part == 2, :2].mean(axis=0), expected, atol=0.1)


def test_logistic_regression_ignores_held_out_labels(
    task: tuple[sparse.csr_matrix, np.ndarray, np.ndarray],
) -> None:
    features, labels, part = task
    blind = np.where((part == 2)[:, None], False, labels)
    one = baselines.logistic_regression(features, labels, train=part == 0, tuning=part == 1)
    two = baselines.logistic_regression(features, blind, train=part == 0, tuning=part == 1)
    np.testing.assert_array_equal(one.probabilities, two.probabilities)


def test_label_absent_from_train_gets_one_probability_for_all(
    task: tuple[sparse.csr_matrix, np.ndarray, np.ndarray],
) -> None:
    features, labels, part = task
    fit = baselines.logistic_regression(features, labels, train=part == 0, tuning=part == 1)
    np.testing.assert_allclose(fit.probabilities[:, 2], 0.5 / 401)


def test_penalty_falls_back_where_tuning_ranks_nothing(
    task: tuple[sparse.csr_matrix, np.ndarray, np.ndarray],
) -> None:
    features, labels, part = task
    fit = baselines.logistic_regression(features, labels, train=part == 0, tuning=part == 9)
    assert fit.penalty == baselines.DEFAULT_PENALTY
    assert np.isfinite(fit.probabilities).all()
