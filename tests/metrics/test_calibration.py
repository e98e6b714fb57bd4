"""Brier's parts add up, recalibration finds the line that made the outcomes, gaps are said."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.scoring import calibration_error
from ckd_ehr.metrics.calibration import brier_parts, recalibration, reliability_bins


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probabilities = expit(rng.normal(size=4000) - 1)
    return probabilities, rng.random(4000) < probabilities


def test_bins_hold_every_cell_and_equal_scikit_learn(
    sample: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = sample
    bins = reliability_bins(probabilities, labels, bins=10)
    assert sum(b.count for b in bins) == 4000
    observed, expected = calibration_curve(labels, probabilities, n_bins=10)
    assert [b.observed for b in bins] == pytest.approx(observed.tolist(), abs=1e-6)
    assert [b.mean_probability for b in bins] == pytest.approx(expected.tolist(), abs=1e-6)
    gap = sum(b.count * abs(b.mean_probability - b.observed) for b in bins) / 4000
    error = calibration_error(probabilities[:, None], labels[:, None], bins=10)
    assert gap == pytest.approx(error.micro[0])


def test_briers_parts_add_up_and_the_residual_is_what_bins_hide(
    sample: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = sample
    parts = brier_parts(probabilities, labels, bins=7)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.residual
    assert total == pytest.approx(parts.brier, abs=1e-8)
    assert parts.brier == pytest.approx(brier_score_loss(labels, probabilities), abs=1e-6)
    assert parts.uncertainty == pytest.approx(labels.var(), abs=1e-8)
    within = np.empty((2, 4000))
    bin_of = (probabilities * 7).astype(int)
    for b in range(7):
        rows = bin_of == b
        within[0, rows] = probabilities[rows] - probabilities[rows].mean()
        within[1, rows] = labels[rows] - labels[rows].mean()
    hidden = (within[0] ** 2 - 2 * within[0] * within[1]).mean()
    assert parts.residual == pytest.approx(hidden, abs=1e-8)
    assert abs(parts.residual) > 1e-4


def test_one_probability_a_bin_leaves_no_residual() -> None:
    labels = np.random.default_rng(1).random(300) < 0.4
    probabilities = np.repeat([0.1, 0.35, 0.8], 100)
    assert brier_parts(probabilities, labels, bins=10).residual == 0.0


def test_recalibration_finds_the_line_that_made_the_outcomes() -> None:
    rng = np.random.default_rng(2)
    probabilities = expit(2 * rng.normal(size=200_000))
    labels = rng.random(200_000) < expit(0.6 * logit(probabilities) - 0.5)
    found = recalibration(probabilities, labels)
    assert found.slope == pytest.approx(0.6, abs=0.02)
    assert found.intercept == pytest.approx(-0.5, abs=0.02)


def test_recalibrated_probabilities_are_calibrated(
    sample: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = sample
    overconfident = expit(3 * logit(probabilities) + 1)
    found = recalibration(overconfident, labels)
    assert found.slope is not None
    assert found.intercept is not None
    assert found.slope < 0.5
    mended = expit(found.slope * logit(overconfident) + found.intercept)
    again = recalibration(mended, labels)
    assert (again.slope, again.intercept) == pytest.approx((1.0, 0.0), abs=1e-4)
    assert mended.mean() == pytest.approx(labels.mean(), abs=1e-5)  # the score equation


@pytest.mark.parametrize(
    ("probabilities", "labels", "said"),
    [
        ([0.2, 0.3], [True, True], "one class only"),
        ([0.3, 0.3], [True, False], "the prediction is constant"),
        ([0.1, 0.2, 0.2, 0.9], [False, False, True, True], "separates the classes"),
        ([0.9, 0.1], [False, True], "separates the classes"),
    ],
)
def test_why_there_is_no_slope_is_said(
    probabilities: list[float], labels: list[bool], said: str
) -> None:
    found = recalibration(probabilities, labels)
    assert (found.slope, found.intercept) == (None, None)
    assert said in str(found.undefined)


def test_probabilities_of_zero_and_one_have_finite_log_odds() -> None:
    found = recalibration([0.0, 1.0, 0.4, 0.6], [False, True, True, False])
    assert found.slope is not None
    assert np.isfinite(found.slope)


@pytest.mark.parametrize("wrong", [float("nan"), -0.2, 1.2])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    for score in (brier_parts, recalibration, reliability_bins):
        with pytest.raises(CkdEhrError, match="1 of 2 are not probabilities"):
            score([0.5, wrong], [True, False])  # type: ignore[operator]
