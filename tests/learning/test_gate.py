"""The gate: who may teach which label."""

import numpy as np

from ckd_ehr.learning.gate import gate_of


def _scores(labels: np.ndarray, quality: list[float], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=labels.shape)
    return labels * np.array(quality) + noise


def test_a_label_on_which_the_teacher_ranks_worse_is_closed() -> None:
    labels = np.random.default_rng(1).uniform(size=(400, 2)) < 0.3
    gate = gate_of(_scores(labels, [3.0, 0.5]), _scores(labels, [0.5, 3.0], 2), labels)
    assert gate.is_open.tolist() == [True, False]
    assert gate.decided.tolist() == [True, True]
    assert gate.closed == 1


def test_a_rare_label_follows_the_macro_comparison() -> None:
    labels = np.random.default_rng(1).uniform(size=(400, 2)) < 0.3
    labels[:, 1] = np.arange(400) < 5
    better, worse = _scores(labels, [3.0, 0.2]), _scores(labels, [0.2, 3.0], 2)
    gate = gate_of(better, worse, labels)
    assert gate.decided.tolist() == [True, False]
    macro = [_macro(better, labels), _macro(worse, labels)]
    assert gate.is_open[1] == (macro[0] > macro[1])
    assert gate_of(worse, better, labels).is_open[1] == (macro[1] > macro[0])


def _macro(scores: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores, average="macro"))


def test_an_equal_teacher_teaches_nothing_and_an_unranked_one_all() -> None:
    labels = np.random.default_rng(1).uniform(size=(400, 1)) < 0.3
    scores = _scores(labels, [1.0])
    assert gate_of(scores, scores, labels).is_open.tolist() == [False]
    nobody = np.zeros((30, 2), dtype=bool)
    assert gate_of(np.zeros((30, 2)), np.ones((30, 2)), nobody).is_open.all()
