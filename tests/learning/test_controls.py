"""Controls of distillation: what they keep of a teacher, and what they take."""

import numpy as np
from scipy.special import entr, expit

from ckd_ehr.learning.batches import Signal
from ckd_ehr.learning.controls import controlled_signal, shuffled_labels, smoothed_labels


def _taught(pairs: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=(pairs, 2)) * 1.5 - [1.0, 2.0]
    return log_odds, rng.uniform(size=log_odds.shape) < expit(log_odds)


def test_shuffled_labels_keep_each_classes_log_odds_and_lose_whose_they_are() -> None:
    log_odds, labels = _taught()
    shuffled = shuffled_labels(log_odds, labels, np.random.default_rng(1))
    for k in range(2):
        for outcome in (False, True):
            rows = labels[:, k] == outcome
            np.testing.assert_array_equal(np.sort(shuffled[rows, k]), np.sort(log_odds[rows, k]))
            assert abs(np.corrcoef(shuffled[rows, k], log_odds[rows, k])[0, 1]) < 0.1


def test_smoothed_labels_have_the_teachers_entropy_and_nothing_of_its_ranking() -> None:
    log_odds, labels = _taught()
    smoothed = smoothed_labels(log_odds, labels)
    for k in range(2):
        mine, teachers = (expit(x[:, k]) for x in (smoothed, log_odds))
        entropies = [(entr(p) + entr(1 - p)).mean() for p in (mine, teachers)]
        np.testing.assert_allclose(entropies[0], entropies[1], atol=1e-6)
        assert len(np.unique(mine.round(9))) == 2
        assert mine[labels[:, k]].min() > mine[~labels[:, k]].max()


def test_a_label_that_nobody_has_is_smoothed_to_a_finite_risk() -> None:
    smoothed = smoothed_labels(np.zeros((10, 1)), np.zeros((10, 1), dtype=bool))
    np.testing.assert_allclose(expit(smoothed), 0.5 / 11)


def _signal() -> Signal:
    rng = np.random.default_rng(0)
    shared = np.array([True, True, False, True, True, False])
    attention = rng.dirichlet(np.ones(6), size=4).astype(np.float32) * shared
    readout = rng.dirichlet(np.ones(5), size=3).astype(np.float32) * shared[1:]
    return Signal(0, attention, shared, readout=readout, retained=np.ones(3, dtype=np.float32))


def test_permuted_attention_exchanges_shared_concepts_alike_in_all_rows() -> None:
    signal = _signal()
    found = controlled_signal(signal, "permuted", np.random.default_rng(3))
    assert found.readout is not None
    assert signal.readout is not None
    assert not np.array_equal(found.attention, signal.attention)
    np.testing.assert_array_equal(found.attention[:, 0], signal.attention[:, 0])
    for mine, before in ((found.attention, signal.attention), (found.readout, signal.readout)):
        np.testing.assert_array_equal(np.sort(mine), np.sort(before))
    moved = [
        int(np.flatnonzero((signal.attention == column[:, None]).all(0))[0])
        for column in found.attention.T
    ]
    for place in (1, 3, 4):
        np.testing.assert_array_equal(
            found.readout[:, place - 1], signal.readout[:, moved[place] - 1]
        )


def test_uniform_attention_is_alike_on_what_is_shared() -> None:
    signal = _signal()
    found = controlled_signal(signal, "uniform", np.random.default_rng(0))
    assert found.readout is not None
    np.testing.assert_allclose(found.attention, np.tile(signal.shared / 4, (4, 1)))
    np.testing.assert_allclose(found.readout, np.tile(signal.shared[1:] / 3, (3, 1)), rtol=1e-6)
