"""Baselines count what they say they count, and use nothing but the history."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.contracts.records import PAIRS, VISITS, pair_id_of
from ckd_ehr.learning import baselines
from ckd_ehr.learning.scoring import label_ranking


def visits_table(rows: list[tuple[str, int, list[str], list[str]]]) -> pa.Table:
    """Visits from (visit_id, subject_id, ICD-9 diagnoses, drugs), a year apart."""
    start = datetime.datetime(2100, 1, 1)
    days = [start + datetime.timedelta(days=365 * number) for number in range(len(rows))]
    code = {"system": "ICD9CM", "title": None}
    drug = {"system": "NAME", "title": None}
    records = [
        {
            "visit_id": visit_id,
            "subject_id": subject_id,
            "admit_time": day,
            "discharge_time": day + datetime.timedelta(days=2),
            "age_years": 50.0 + number,
            "sex": "F" if subject_id % 2 else None,
            "ethnicity": None,
            "admission_type": None,
            "died": False,
            "diagnoses": [{**code, "code": diagnosis} for diagnosis in diagnoses],
            "medications": [{**drug, "code": name} for name in drugs],
            "procedures": [],
        }
        for number, (day, (visit_id, subject_id, diagnoses, drugs)) in enumerate(
            zip(days, rows, strict=True)
        )
    ]
    return pa.Table.from_pylist(records, schema=VISITS)


def pairs_table(histories: list[list[str]], *, split: str = "train") -> pa.Table:
    records = [
        {
            "pair_id": pair_id_of(number, history[-1]),
            "subject_id": number,
            "history": history,
            "prediction_time": datetime.datetime(2101, 1, 1),
            "next_visit_id": "n",
            "gap_days": 3.0,
            "labels": [True],
            "split": split,
            "fold": 0,
        }
        for number, history in enumerate(histories)
    ]
    return pa.Table.from_pylist(records, schema=PAIRS)


VISIT_ROWS = [
    ("a", 1, ["042", "4280"], ["aspirin"]),
    ("b", 1, ["4280"], []),
    ("c", 2, ["42"], ["aspirin", "aspirin"]),
]


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


def test_histories_join_by_visit_id_not_position() -> None:
    visits = visits_table(VISIT_ROWS)
    index = baselines.index_histories(visits, pairs_table([["c"], ["a", "b"]]))
    np.testing.assert_array_equal(index.every.toarray(), [[0, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(index.last.toarray(), [[0, 0, 1], [0, 1, 0]])
    facts = np.array([[True, False], [False, True], [False, False]])
    np.testing.assert_array_equal(index.ever(facts), [[False, False], [True, True]])
    np.testing.assert_array_equal(index.at_last(facts), [[False, False], [False, True]])


def test_visit_codes_keep_kind_system_and_leading_zeros_apart() -> None:
    matrix, names = baselines.visit_codes(visits_table(VISIT_ROWS))
    present = {
        "//".join(name): matrix.toarray()[:, column].tolist() for column, name in enumerate(names)
    }
    assert present == {
        "diagnoses//ICD9CM//042": [1, 0, 0],
        "diagnoses//ICD9CM//4280": [1, 1, 0],
        "diagnoses//ICD9CM//42": [0, 0, 1],
        "medications//NAME//aspirin": [1, 0, 1],
    }


def test_visits_have_the_phenotypes_of_their_diagnoses() -> None:
    phenotypes = [
        Phenotype(name="Heart failure", ccs=(108,)),
        Phenotype(name="By list", icd9cm=("042",)),
    ]
    present = baselines.visit_phenotypes(visits_table(VISIT_ROWS), phenotypes)
    np.testing.assert_array_equal(present, [[True, True], [True, False], [False, False]])


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
