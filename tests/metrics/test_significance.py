"""p-values agree with the interval and keep their level; Holm by hand; seeds add their variance."""

import numpy as np
import pytest

from ckd_ehr.learning.scoring import basic_interval
from ckd_ehr.metrics.significance import across_seeds, bootstrap_p, degenerate, holm


def test_p_is_below_five_per_cent_just_where_the_interval_leaves_out_zero() -> None:
    rng = np.random.default_rng(0)
    sides = set()
    for _ in range(200):
        estimate = rng.normal() * 0.02
        draws = estimate + rng.gumbel(size=999) * 0.01 - 0.006
        interval = basic_interval(estimate, draws, bounds=(-1, 1))
        p = bootstrap_p(estimate, draws)
        assert interval is not None
        assert p is not None
        if abs(p - 0.05) > 0.005:  # quantiles fall between draws
            assert (p < 0.05) == (interval[0] > 0 or interval[1] < 0)
            sides.add(p < 0.05)
    assert sides == {True, False}


def test_p_keeps_its_level_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(2000):
        values = rng.normal(size=60)
        draws = rng.choice(values, (199, 60)).mean(axis=1)
        found.append(bootstrap_p(float(values.mean()), draws))
    assert 0.03 < np.mean(np.array(found) <= 0.05) < 0.08


def test_p_has_its_floor_and_is_one_without_a_difference() -> None:
    assert bootstrap_p(0.5, np.full(1999, 0.5)) == pytest.approx(2 / 2000)
    assert bootstrap_p(0.0, np.zeros(99)) == 1.0
    assert bootstrap_p(0.5, []) is None
    assert bootstrap_p(0.5, [np.nan, np.nan, 0.5]) is None
    assert bootstrap_p(float("nan"), [0.1, 0.2]) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_seeds_add_their_variance_to_that_of_patients() -> None:
    rng = np.random.default_rng(2)
    of_patients = rng.normal(size=40_000) * 0.01
    of_seeds = np.array([0.48, 0.50, 0.55])
    estimate, draws = across_seeds(of_seeds, of_seeds[:, None] + of_patients, seed=0)
    assert estimate[0] == pytest.approx(0.51)
    expected = 0.01**2 + of_seeds.var(ddof=1) / 3
    assert draws.var() == pytest.approx(expected, rel=0.03)
    assert draws.mean() == pytest.approx(0.51, abs=1e-3)


def test_one_seed_says_nothing_of_seeds() -> None:
    draws = np.random.default_rng(3).normal(size=(1, 50))
    np.testing.assert_array_equal(across_seeds([0.1], draws, seed=0)[1], draws[0])


def test_equal_seeds_add_nothing() -> None:
    draws = np.random.default_rng(4).normal(size=50)
    combined = across_seeds([0.1] * 3, [draws] * 3, seed=0)[1]
    np.testing.assert_allclose(combined, draws, atol=1e-12)


def test_draws_that_lose_a_class_are_counted() -> None:
    labels = np.array([[True, False, False], [False, True, False], [False, True, False]])
    weights = np.array([[1, 1, 1], [0, 2, 1], [3, 0, 0]], dtype=float)
    found = degenerate(labels, weights)
    assert found.draws == 2
    assert found.by_label.tolist() == [2, 2, 0]  # the last has one class to begin with
