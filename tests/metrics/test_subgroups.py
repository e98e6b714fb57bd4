"""Subgroups are scored on their own pairs, gaps are paired, and small groups stay hidden."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ckd_ehr.learning.scoring import patient_draws
from ckd_ehr.metrics.compare import ScoredPairs
from ckd_ehr.metrics.subgroups import groups_of, shown_groups, subgroup_results

PAIRS = 200


@pytest.fixture
def pairs() -> ScoredPairs:
    labels = np.random.default_rng(0).random((PAIRS, 3)) < np.array([0.4, 0.3, 0.0])
    weights = patient_draws(np.arange(PAIRS), draws=200, seed=0)
    return ScoredPairs(labels=labels, previously_present=None, weights=weights, bins=10)


def results_of(pairs: ScoredPairs, groups: list[str], risks: np.ndarray, *, min_cell: int = 20):  # type: ignore[no-untyped-def]
    return subgroup_results(
        {"sex": groups}, {"m": risks}, pairs, subject_ids=np.arange(PAIRS), min_cell=min_cell
    )["sex"]


def test_a_group_is_scored_on_its_own_pairs_and_against_the_rest(pairs: ScoredPairs) -> None:
    groups = ["F"] * 120 + ["M"] * 80
    rng = np.random.default_rng(1)
    risks = rng.random((PAIRS, 3))
    risks[:120] = np.clip(0.6 * pairs.labels[:120] + 0.4 * risks[:120], 0, 1)  # better for women
    found = results_of(pairs, groups, risks)
    assert found.suppressed == 0
    women = found.groups["F"]
    assert (women.pairs, women.patients, women.labels_scored) == (120, 120, 2)
    scores = {}
    for name, rows in (("F", slice(0, 120)), ("M", slice(120, None))):
        truth, risk = pairs.labels[rows, :2], risks[rows, :2]
        scores[name] = average_precision_score(truth, risk, average="macro")
        overall = found.groups[name].models["m"].overall
        assert overall["macro_auprc"].value == pytest.approx(scores[name], abs=1e-6)
        expected = roc_auc_score(truth, risk, average="macro")
        assert overall["macro_auroc"].value == pytest.approx(expected, abs=1e-6)
    gap = women.models["m"].gap["macro_auprc"]
    assert gap.value == pytest.approx(scores["F"] - scores["M"], abs=2e-6)
    assert gap.low is not None
    assert gap.low > 0
    mirrored = found.groups["M"].models["m"].gap["macro_auprc"]
    assert mirrored.value == pytest.approx(-gap.value, abs=1e-9)
    expected = pairs.labels[:120, :2].mean()
    assert women.prevalence == pytest.approx(expected, abs=1e-6)


def test_a_small_group_is_hidden_and_so_is_one_that_gives_it_away(pairs: ScoredPairs) -> None:
    groups = ["F"] * 100 + ["M"] * 81 + ["unknown"] * 19
    found = results_of(pairs, groups, np.full((PAIRS, 3), 0.2))
    assert set(found.groups) == {"F"}
    assert found.suppressed == 2
    assert "19" not in str(found.groups["F"].model_dump(exclude={"models"}))


def test_two_small_groups_that_are_large_together_hide_each_other() -> None:
    assert shown_groups({"a": 90, "b": 15, "c": 12}, min_cell=20) == ["a"]
    assert shown_groups({"a": 90, "b": 30, "c": 2, "d": 3}, min_cell=20) == ["a"]
    assert shown_groups({"a": 90, "b": 20}, min_cell=20) == ["a", "b"]
    assert shown_groups({"a": 90, "b": 19}, min_cell=20) == []
    assert shown_groups({"a": 19}, min_cell=20) == []


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 60), min_size=1), st.integers(1, 30))
def test_what_is_hidden_cannot_be_inferred(counts: dict[str, int], min_cell: int) -> None:
    shown = shown_groups(counts, min_cell=min_cell)
    hidden = [count for name, count in counts.items() if name not in shown]
    assert all(counts[name] >= min_cell for name in shown)
    if shown and hidden:
        assert len(hidden) >= 2
        assert sum(hidden) >= min_cell


def test_few_patients_get_no_interval_and_one_group_has_no_gap(pairs: ScoredPairs) -> None:
    subjects = np.arange(PAIRS) // 20  # ten patients
    risks = np.random.default_rng(2).random((PAIRS, 3))
    found = subgroup_results(
        {"sex": ["F"] * PAIRS}, {"m": risks}, pairs, subject_ids=subjects, min_cell=20
    )["sex"].groups["F"]
    overall = found.models["m"].overall["macro_auprc"]
    assert overall.value is not None
    assert overall.low is None
    assert found.models["m"].gap["macro_auprc"].value is None


def test_groups_come_from_the_last_visit_of_the_history() -> None:
    day = datetime.datetime(2150, 1, 1)
    codes = {"a": ["ICD9CM"], "b": ["ICD9CM", "ICD10CM"], "c": []}
    visits = pa.table(
        {
            "visit_id": ["a", "b", "c"],
            "admit_time": [day] * 3,
            "age_years": pa.array([17.5, 44.9, None], pa.float32()),
            "sex": ["F", "M", None],
            "ethnicity": ["WHITE", None, "ASIAN"],
            "diagnoses": [[{"system": s, "code": "1"} for s in codes[v]] for v in "abc"],
        }
    )
    pairs = pa.table({"history": [["a", "b"], ["a"], ["b", "c"]]})
    assert groups_of(visits, pairs) == {
        "sex": ["M", "F", "unknown"],
        "age": ["18–44", "under 18", "unknown"],
        "ethnicity": ["unknown", "WHITE", "ASIAN"],
        "visit": ["repeat visit", "first visit", "repeat visit"],
        "coding": ["mixed", "ICD9CM", "no diagnosis"],
    }
