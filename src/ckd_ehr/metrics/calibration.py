"""How far probabilities can be taken at their word: reliability, Brier's parts, recalibration.

In: probabilities and outcomes, of one label or of all cells in one list. Out: parts of
metrics.json. Ignores: files, models, and intervals.
"""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression

from ckd_ehr.learning.scoring import (
    Bools,
    Floats,
    bin_of,
    checked_probabilities,
    safe_logit,
)
from ckd_ehr.metrics.dataset_facts import Record


class Bin(Record):
    """Cells whose probability lies in [lower, upper): how many, expected and observed share."""

    lower: float
    upper: float
    count: int
    mean_probability: float
    observed: float


class BrierParts(Record):
    """brier = reliability − resolution + uncertainty + residual.

    `residual` is what bins leave over: the variance of the probabilities within bins, less twice
    their covariance with the outcome there. It is zero where each bin holds one probability.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    residual: float


class Recalibration(Record):
    """Log-odds of the outcome = slope · predicted log-odds + intercept; (1, 0) is calibrated.

    A slope below 1: too extreme. `undefined` says why there is none.
    """

    slope: float | None
    intercept: float | None
    undefined: str | None = None


def reliability_bins(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> list[Bin]:
    """The non-empty bins of a reliability diagram, over all cells.

    >>> [b.observed for b in reliability_bins([[0.1], [0.9]], [[False], [True]], bins=2)]
    [0.0, 1.0]
    """
    flat, outcome = _cells(probabilities, labels)
    bin_of_cell = bin_of(flat, bins)
    return [
        Bin(
            lower=b / bins,
            upper=(b + 1) / bins,
            count=int((bin_of_cell == b).sum()),
            mean_probability=float(flat[bin_of_cell == b].mean()),
            observed=float(outcome[bin_of_cell == b].mean()),
        )
        for b in np.unique(bin_of_cell).tolist()
    ]


def brier_parts(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> BrierParts:
    """The Brier score of some cells and its parts (Murphy 1973), in bins of equal width.

    >>> brier_parts([0.25, 0.25, 0.75, 0.75], [False, False, True, True], bins=2).resolution
    0.25
    """
    flat, outcome = _cells(probabilities, labels)
    mean, brier = outcome.mean(), ((flat - outcome) ** 2).mean()
    found = reliability_bins(flat, outcome, bins=bins)
    share = np.array([b.count for b in found]) / len(flat)
    observed = np.array([b.observed for b in found])
    expected = np.array([b.mean_probability for b in found])
    reliability = share @ (expected - observed) ** 2
    resolution, uncertainty = share @ (observed - mean) ** 2, mean * (1 - mean)
    residual = brier - (reliability - resolution + uncertainty)
    parts = (brier, reliability, resolution, uncertainty, residual)
    rounded = [round(float(part), 9) + 0.0 for part in parts]
    return BrierParts(**dict(zip(BrierParts.model_fields, rounded, strict=True)))


def recalibration(probabilities: ArrayLike, labels: ArrayLike) -> Recalibration:
    """Slope and intercept of a logistic recalibration (Cox 1958), by maximum likelihood.

    Probabilities are kept within [1e-6, 1 − 1e-6], so that their log-odds are finite.

    >>> recalibration([0.2, 0.2, 0.2], [True, False, False]).undefined
    'the prediction is constant'
    """
    flat, outcome = _cells(probabilities, labels)
    log_odds = safe_logit(flat)
    reason = _no_slope(log_odds, outcome)
    if reason:
        return Recalibration(slope=None, intercept=None, undefined=reason)
    # Unpenalised, to the last digits.
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-9, max_iter=1000)
    model.fit(log_odds[:, None], outcome)
    return Recalibration(
        slope=round(float(model.coef_[0, 0]), 6), intercept=round(float(model.intercept_[0]), 6)
    )


def _no_slope(log_odds: Floats, outcome: Bools) -> str | None:
    if reason := no_ranking(log_odds, outcome):
        return reason
    with_it, without = log_odds[outcome], log_odds[~outcome]
    if with_it.min() >= without.max() or without.min() >= with_it.max():
        return "the prediction separates the classes: the slope has no bound"
    return None


def both_classes(labels: Bools) -> Bools:
    """Which labels (labels,) some pairs have and some have not.

    >>> both_classes(np.array([[True, True], [True, False]]))
    array([False,  True])
    """
    return np.asarray(labels.any(axis=0) & ~labels.all(axis=0))


def no_ranking(scores: Floats, labels: Bools) -> str | None:
    """Why AUROC and AUPRC of a label say nothing, if they do.

    >>> no_ranking(np.array([0.2, 0.3]), np.array([True, True]))
    'one class only'
    """
    if labels.all() or not labels.any():
        return "one class only"
    if scores.min() == scores.max():
        return "the prediction is constant"
    return None


def _cells(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    return checked_probabilities(probabilities).ravel(), np.asarray(labels, dtype=bool).ravel()
