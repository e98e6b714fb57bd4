"""Effects agree with a library's logistic regression, keep clusters together, shrink noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ckd_ehr.data.histories import Bools
from ckd_ehr.knowledge.effects import (
    Floats,
    fit_effects,
    q_values,
    shrink,
)

ROWS = 4_000


def trial(seed: int, *, effect: float, confounding: float = 0.0) -> tuple[Bools, Bools, Floats]:
    """Outcome, treatment and one covariate of severity; independent rows."""
    rng = np.random.default_rng(seed)
    severity = rng.normal(size=(ROWS, 1))
    treated = rng.random((ROWS, 1)) < expit(confounding * severity)
    chance = expit(0.3 - severity[:, 0] + effect * treated[:, 0])
    return rng.random(ROWS) < chance, treated, severity


def nothing(treated: Bools) -> Floats:
    return np.zeros(treated.shape)


def test_the_fit_is_that_of_a_logistic_regression_without_penalty() -> None:
    outcome, treated, severity = trial(1, effect=0.7)
    found = fit_effects(outcome, treated, severity, nothing(treated), np.arange(ROWS))
    columns = np.hstack([severity, treated])
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(columns, outcome)
    assert found.log_odds[0] == pytest.approx(model.coef_[0, 1], abs=2e-3)
    design = np.column_stack([np.ones(ROWS), columns])
    chance = model.predict_proba(columns)[:, 1]
    information = design.T @ (design * (chance * (1 - chance))[:, None])
    usual = np.sqrt(np.linalg.inv(information)[-1, -1])
    assert usual * 0.999 <= found.standard_error[0] <= usual * 1.1


def test_severity_that_decides_treatment_and_outcome_is_adjusted_for() -> None:
    outcome, treated, severity = trial(2, effect=0.0, confounding=1.5)
    crude = outcome[treated[:, 0]].mean() - outcome[~treated[:, 0]].mean()
    assert crude < -0.15
    found = fit_effects(outcome, treated, severity, nothing(treated), np.arange(ROWS))
    assert abs(found.log_odds[0]) < 2 * found.standard_error[0]


def test_a_treatment_may_have_a_covariate_of_its_own() -> None:
    outcome, treated, severity = trial(2, effect=0.0, confounding=1.5)
    both = np.hstack([treated, treated])
    own = np.hstack([severity, np.zeros((ROWS, 1))])
    found = fit_effects(outcome, both, np.zeros((ROWS, 1)), own, np.arange(ROWS))
    assert abs(found.log_odds[0]) < 2 * found.standard_error[0]
    assert found.log_odds[1] < -4 * found.standard_error[1]


def test_intervals_hold_the_true_effect_as_often_as_they_say() -> None:
    held = 0
    for seed in range(100):
        outcome, treated, severity = trial(seed, effect=0.5, confounding=0.8)
        found = fit_effects(outcome, treated, severity, nothing(treated), np.arange(ROWS))
        held += abs(found.log_odds[0] - 0.5) < 1.96 * found.standard_error[0]
    assert 89 <= held <= 100  # binomial: 95 ± 2.75 standard deviations


def test_a_patient_who_comes_four_times_counts_once() -> None:
    outcome, treated, severity = trial(3, effect=0.5)
    once = fit_effects(outcome, treated, severity, nothing(treated), np.arange(ROWS))
    rows = np.repeat(np.arange(ROWS), 4)
    four = outcome[rows], treated[rows], severity[rows]
    together = fit_effects(*four, nothing(four[1]), clusters=rows)
    apart = fit_effects(*four, nothing(four[1]), clusters=np.arange(4 * ROWS))
    assert together.log_odds[0] == pytest.approx(once.log_odds[0], abs=1e-3)
    assert together.standard_error[0] == pytest.approx(once.standard_error[0], rel=0.02)
    assert apart.standard_error[0] == pytest.approx(once.standard_error[0] / 2, rel=0.02)


def test_the_order_of_rows_and_of_treatments_does_not_matter() -> None:
    outcome, treated, severity = trial(4, effect=0.5)
    clusters = np.arange(ROWS) // 3
    other = np.random.default_rng(0).random((ROWS, 70)) < 0.2
    both = np.hstack([other, treated])
    many = fit_effects(outcome, both, severity, nothing(both), clusters)
    rows, columns = (np.random.default_rng(1).permutation(n) for n in both.shape)
    again = fit_effects(
        outcome[rows], both[rows][:, columns], severity[rows], nothing(both), clusters[rows]
    )
    np.testing.assert_allclose(again.log_odds, many.log_odds[columns], atol=1e-6)
    np.testing.assert_allclose(again.standard_error, many.standard_error[columns], atol=1e-6)


def test_separation_gives_a_finite_estimate_that_says_how_little_is_known() -> None:
    outcome = np.array([True] * 20 + [True, False] * 40)
    treated = np.array([True] * 20 + [False] * 80)[:, None]
    found = fit_effects(outcome, treated, np.zeros((100, 1)), nothing(treated), np.arange(100))
    assert found.separated.tolist() == [True]
    assert 1 < found.log_odds[0] < 10
    assert found.standard_error[0] > 1
    assert shrink(found.log_odds, found.standard_error).low[0] < 0.05


def test_a_drug_that_only_goes_along_with_an_effective_one_has_no_effect_beside_it() -> None:
    rng = np.random.default_rng(5)
    effective = rng.random(ROWS) < 0.4
    along = rng.random(ROWS) < np.where(effective, 0.8, 0.15)
    others = rng.random((ROWS, 8)) < 0.3
    outcome = rng.random(ROWS) < expit(effective - 0.5)
    treated = np.column_stack([effective, along, others])
    severity = np.zeros((ROWS, 1))
    found = fit_effects(outcome, treated, severity, nothing(treated), np.arange(ROWS))
    alone = fit_effects(outcome, along[:, None], severity, nothing(along[:, None]), np.arange(ROWS))
    assert alone.log_odds[0] / alone.standard_error[0] > 6
    assert abs(found.log_odds[1]) < 2.5 * found.standard_error[1]
    assert found.log_odds[0] == pytest.approx(1.0, abs=3 * found.standard_error[0])
    assert shrink(found.log_odds, found.standard_error).low[1] <= 0


def test_treatments_fitted_together_are_those_of_one_regression() -> None:
    rng = np.random.default_rng(6)
    treated = rng.random((ROWS, 3)) < 0.5
    severity = rng.normal(size=(ROWS, 1))
    outcome = rng.random(ROWS) < expit(treated @ [0.8, 0.7, 0.9] - severity[:, 0] - 1)
    found = fit_effects(outcome, treated, severity, nothing(treated), np.arange(ROWS))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(np.hstack([severity, treated]), outcome)
    np.testing.assert_allclose(found.log_odds, model.coef_[0, 1:], atol=4e-3)


def test_a_bound_within_the_point_at_zero_is_zero() -> None:
    z = np.append(np.zeros(99), 4.4) * 0.2
    shrunk = shrink(z, np.full(100, 0.2))
    assert shrunk.mean[-1] > 0
    assert shrunk.low[-1] == 0
    assert set(np.abs(shrunk.low[:-1])) == {0.0}


def test_q_values_are_those_of_benjamini_and_hochberg() -> None:
    rates = q_values(np.array([1.0, 0.4, 0.3, 0.0]), np.full(4, 0.2))
    p_values = [5.733e-07, 0.0455003, 0.1336144, 1.0]
    expected = [4 * p_values[0], 2 * p_values[1], 4 / 3 * p_values[2], 1.0]
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
    assert q_values(np.empty(0), np.empty(0)).tolist() == []


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-4, 4), st.floats(0.05, 2)),
        min_size=1,
        max_size=30,
    )
)
def test_shrinking_never_enlarges_and_bounds_hold_the_mean(
    pairs: list[tuple[float, float]],
) -> None:
    estimates, errors = np.array(pairs).T
    shrunk = shrink(estimates, errors)
    assert (np.abs(shrunk.mean) <= np.abs(estimates) + 1e-9).all()
    assert (np.sign(shrunk.mean) * np.sign(estimates) >= 0).all()
    assert (shrunk.low <= shrunk.high).all()


def test_a_few_true_effects_among_many_that_are_none_keep_their_size() -> None:
    rng = np.random.default_rng(6)
    truth = np.where(np.arange(500) < 10, 1.0, 0.0)
    errors = rng.uniform(0.1, 0.3, size=500)
    shrunk = shrink(truth + errors * rng.normal(size=500), errors)
    assert shrunk.mean[:10].mean() > 0.7
    assert np.abs(shrunk.mean[10:]).mean() < 0.02
    told = shrunk.low > 0
    assert told[:10].sum() >= 5
    assert told[10:].sum() == 0


def test_nothing_to_shrink_is_no_error() -> None:
    assert shrink(np.empty(0), np.empty(0)).mean.tolist() == []
