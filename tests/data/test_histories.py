"""Matrices of visits and pairs are joined by key and keep codes apart."""

import numpy as np

from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.data import histories
from small_tables import VISIT_ROWS, pairs_table, visits_table


def test_histories_join_by_visit_id_not_position() -> None:
    visits = visits_table(VISIT_ROWS)
    index = histories.index_histories(visits, pairs_table([["c"], ["a", "b"]]))
    np.testing.assert_array_equal(index.every.toarray(), [[0, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(index.last.toarray(), [[0, 0, 1], [0, 1, 0]])
    facts = np.array([[True, False], [False, True], [False, False]])
    np.testing.assert_array_equal(index.ever(facts), [[False, False], [True, True]])
    np.testing.assert_array_equal(index.at_last(facts), [[False, False], [False, True]])


def test_visit_codes_keep_kind_system_and_leading_zeros_apart() -> None:
    matrix, names = histories.visit_codes(visits_table(VISIT_ROWS))
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
    present = histories.visit_phenotypes(visits_table(VISIT_ROWS), phenotypes)
    np.testing.assert_array_equal(present, [[True, True], [True, False], [False, False]])
