"""Models of codes that any language model has to beat: carry-forward, regression, trees.

In: the visits and pairs tables, and which phenotypes were present at earlier visits. Out: for
each pair and label a probability. Both are fitted on labelled train pairs; tuning pairs choose
the regression's penalty and calibrate it. Ignores: text, knowledge, the teacher.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ckd_ehr.data.histories import HistoryIndex, Matrix, index_histories, visit_codes
from ckd_ehr.learning.scoring import Bools, Floats, fit_platt, label_ranking, macro, safe_logit

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)
DEFAULT_PENALTY = 0.1
SMALLEST_SUPPORT = 2
BOOSTING = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.3,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


def carry_forward(
    present_in_train: Bools, labels: Bools, present: Bools, *, smoothing: float = 1.0
) -> Floats:
    """P(label at the next visit | label present or absent at the last one), counted on train.

    Args:
        present_in_train: (train pairs, labels), phenotypes of each pair's last history visit.
        labels: (train pairs, labels) at the next visit.
        present: (pairs, labels), the pairs to predict.
        smoothing: pseudo-pairs at the label's prevalence, added to either group.

    Returns:
        (pairs, labels): two distinct probabilities a label, so it can be ranked and calibrated.

    >>> seen = np.array([[True], [True], [False], [False]])
    >>> carry_forward(seen, seen, seen[1:3]).round(2).ravel()
    array([0.83, 0.17])
    """
    pairs = len(labels)
    prevalence = (labels.sum(axis=0) + 0.5) / (pairs + 1)
    with_label = present_in_train.sum(axis=0)
    carried = (present_in_train & labels).sum(axis=0)
    new = labels.sum(axis=0) - carried
    if_present = (carried + smoothing * prevalence) / (with_label + smoothing)
    if_absent = (new + smoothing * prevalence) / (pairs - with_label + smoothing)
    return np.asarray(np.where(present, if_present, if_absent), dtype=np.float64)


def code_features(visits: pa.Table, pairs: pa.Table, *, fit_on: Bools) -> Matrix:
    """What logistic regression sees of each pair: a sparse matrix (pairs, features).

    Each code twice (ever in the history, at the last visit), then age and the log numbers of
    visits and of codes, standardised, and sex. Codes in fewer than two of the `fit_on` pairs are
    left out; means and deviations come from those pairs too. Nothing of the next visit enters.
    """
    histories, (codes, _) = index_histories(visits, pairs), visit_codes(visits)
    ever = _presence(histories.every @ codes)
    support = np.asarray(ever[fit_on].sum(axis=0)).ravel()
    kept = np.nonzero(support >= SMALLEST_SUPPORT)[0]
    last = _presence(histories.last @ codes)
    code_count = np.asarray(ever.sum(axis=1), dtype=np.float64).ravel()
    plain = _plain_features(visits, histories, code_count=code_count)
    blocks = [ever[:, kept], last[:, kept], sparse.csr_matrix(_standardise(plain, fit_on))]
    sexes = _sex_columns(visits)
    if sexes is not None:
        blocks.append(sparse.csr_matrix(histories.at_last(sexes).astype(np.float64)))
    return sparse.csr_matrix(sparse.hstack(blocks))


def _presence(counts: Matrix) -> Matrix:
    counts = sparse.csr_matrix(counts)
    counts.data[:] = 1.0
    return counts


def _plain_features(visits: pa.Table, histories: HistoryIndex, *, code_count: Floats) -> Floats:
    """Age at the last visit (NaN if unknown), log visits, log codes: (pairs, 3)."""
    ages = visits["age_years"].to_numpy().astype(np.float64)
    last_visit = np.asarray(histories.last.argmax(axis=1)).ravel()
    visit_count = np.asarray(histories.every.sum(axis=1)).ravel()
    return np.column_stack([ages[last_visit], np.log1p(visit_count), np.log1p(code_count)])


def _standardise(values: Floats, fit_on: Bools) -> Floats:
    """Zero mean, unit deviation over the `fit_on` rows; unknown stands at the mean."""
    fitted = values[fit_on]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean, deviation = np.nanmean(fitted, axis=0), np.nanstd(fitted, axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return np.asarray(np.nan_to_num((values - mean) / deviation), dtype=np.float64)


def _sex_columns(visits: pa.Table) -> Bools | None:
    """One column a recorded sex, (visits, sexes)."""
    sex = np.asarray(visits["sex"].to_pylist(), dtype=object)
    known = sorted({value for value in sex if value is not None})
    return np.column_stack([sex == value for value in known]) if known else None


@dataclass(frozen=True)
class LogisticFit:
    """Calibrated probabilities (pairs, labels) and the inverse penalty C that tuning chose."""

    probabilities: Floats
    penalty: float


def logistic_regression(
    features: Matrix,
    labels: Bools,
    *,
    train: Bools,
    tuning: Bools,
    penalties: Sequence[float] = PENALTIES,
) -> LogisticFit:
    """One L2 logistic regression a label; C by tuning macro-AUPRC, then Platt scaling on tuning.

    The same C serves all labels. A label with one class in train gets its (smoothed) prevalence
    for every pair. Where tuning ranks nothing (one class in every label), C is 0.1.

    Args:
        features: (pairs, features).
        labels: (pairs, labels); rows outside `train` and `tuning` are not looked at.
        train, tuning: (pairs,) masks.
    """
    best, best_score = LogisticFit(np.zeros((0, 0)), DEFAULT_PENALTY), -1.0
    ordered = sorted(penalties, key=lambda penalty: penalty != DEFAULT_PENALTY)
    for penalty in ordered:
        probabilities = label_regressions(features, labels, train=train, penalty=penalty)
        score = float(macro(label_ranking(probabilities[tuning], labels[tuning]).auprc)[0])
        if np.nan_to_num(score) > best_score:
            best, best_score = LogisticFit(probabilities, penalty), float(np.nan_to_num(score))
    logits = safe_logit(best.probabilities)
    scaling = fit_platt(logits[tuning], labels[tuning])
    return LogisticFit(expit(scaling.apply(logits)), best.penalty)


def label_regressions(features: Matrix, labels: Bools, *, train: Bools, penalty: float) -> Floats:
    """Uncalibrated probabilities (pairs, labels) of one L2 logistic regression a label.

    A label with one class in train gets its smoothed prevalence for every pair.
    """

    def risks(outcome: Bools) -> Floats:
        model = LogisticRegression(C=penalty, solver="lbfgs", tol=1e-3, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features[train], outcome)
        return np.asarray(model.predict_proba(features)[:, 1])

    return _each_label(labels, train, risks)


def boosted_trees(
    features: Matrix, labels: Bools, *, train: Bools, trees: int, seed: int
) -> Floats:
    """Uncalibrated probabilities (pairs, labels) of one LightGBM model a label.

    As many trees as are asked for: nothing is held back to stop early by. A label with one class
    in train gets its smoothed prevalence for every pair.
    """
    import lightgbm

    settings = {**BOOSTING, "num_threads": usable_cores(), "seed": seed}
    data = features.astype(np.float32)

    def risks(outcome: Bools) -> Floats:
        known = lightgbm.Dataset(data[train], outcome.astype(np.float32), params=settings)
        model = lightgbm.train(settings, known, trees)
        return np.asarray(model.predict(data))

    return _each_label(labels, train, risks)


def _each_label(labels: Bools, train: Bools, risks: Callable[[Bools], Floats]) -> Floats:
    probabilities = np.empty(labels.shape)
    for k in range(labels.shape[1]):
        outcome = labels[train, k]
        if outcome.all() or not outcome.any():
            probabilities[:, k] = (outcome.sum() + 0.5) / (len(outcome) + 1)
        else:
            probabilities[:, k] = risks(outcome)
    return probabilities


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
