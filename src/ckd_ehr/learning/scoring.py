"""How good probabilities are: ranking, decisions, calibration, and how sure we may be of it.

In: scores or probabilities (pairs, labels), labels of the same shape, and optionally weights
(draws, pairs): one row a bootstrap draw. Out: one figure a draw, NaN where a label shows one class
only. A point estimate is the draw in which every pair weighs one, so estimate and interval come
from the same code. Ignores: files, models, and which pairs are compared. Never imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit, logit

from ckd_ehr.contracts.errors import CkdEhrError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Weights = NDArray[np.floating]

SMALLEST_SLOPE = 0.05
DEFAULT_THRESHOLD = 0.5
CELLS_AT_ONCE = 320_000  # a block that stays in the processor's cache


class Ranking(NamedTuple):
    """Area under the ROC curve and average precision, with equal shapes."""

    auroc: Floats
    auprc: Floats


def ranking(scores: ArrayLike, labels: ArrayLike, weights: Weights | None = None) -> Ranking:
    """AUROC and AUPRC of one label (average precision, ties as one step), for every draw.

    Args:
        scores: (pairs,); only their order matters.
        labels: (pairs,) of bool.
        weights: (draws, pairs); None stands for one draw in which each pair weighs one.

    Returns:
        Two arrays (draws,), NaN where the draw holds one class only.

    >>> ranking([0.1, 0.4, 0.35, 0.8], [False, False, True, True]).auroc
    array([0.75])
    """
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    return micro_ranking(scores[:, None], labels[:, None], weights)


def micro_ranking(
    scores: ArrayLike,
    labels: ArrayLike,
    weights: Weights | None = None,
    *,
    mask: Bools | None = None,
) -> Ranking:
    """AUROC and AUPRC of all (pair, label) cells in one list; `mask` (pairs, labels) keeps some.

    >>> micro_ranking([[0.1, 0.4], [0.35, 0.8]], [[0, 0], [1, 1]]).auroc
    array([0.75])
    """
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    keep = np.ones(scores.shape, dtype=bool) if mask is None else mask
    if weights is None:
        weights = np.ones((1, len(scores)))
    ranked = _ranked(scores[keep], labels[keep], np.nonzero(keep)[0], len(labels))
    return Ranking(*(area[:, 0] for area in _rank([ranked], weights)))


def label_ranking(
    scores: ArrayLike,
    labels: ArrayLike,
    weights: Weights | None = None,
    *,
    mask: Bools | None = None,
) -> Ranking:
    """AUROC and AUPRC of each label: two arrays (draws, labels); `mask` keeps some cells."""
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    keep = np.ones(scores.shape, dtype=bool) if mask is None else mask
    if weights is None:
        weights = np.ones((1, len(scores)))
    lists = [
        _ranked(scores[rows, k], labels[rows, k], rows, len(labels))
        for k, rows in enumerate(np.nonzero(column)[0] for column in keep.T)
    ]
    return _rank(lists, weights)


@dataclass(frozen=True)
class _Ranked:
    """A list of cells, sorted once: three 0/1 matrices (steps, pairs) that sum a draw's weights.

    A step is a group of equal scores that holds positives, in falling order; only there does either
    curve rise, so all else is summed up between them.
    """

    positive: sparse.csr_matrix  # positives of the step
    negative: sparse.csr_matrix  # negatives of the step and since the one before
    tied: sparse.csr_matrix  # negatives of the step itself
    cells_of_pair: NDArray[np.float32]  # (pairs,)

    def areas(self, weights: Weights) -> tuple[Floats, Floats]:
        """Both areas under weights (pairs, draws)."""
        steps = self.positive @ weights
        above = np.cumsum(self.negative @ weights, axis=0)
        true = np.cumsum(steps, axis=0)
        positives = true[-1:].sum(axis=0, dtype=np.float64)
        negatives = self.cells_of_pair @ weights - positives
        below = negatives - above + (self.tied @ weights) / 2
        precision = true / np.maximum(true + above, np.finfo(np.float32).tiny)
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = np.einsum("td,td->d", steps, below, dtype=np.float64) / (positives * negatives)
            auprc = np.einsum("td,td->d", steps, precision, dtype=np.float64) / positives
        defined = (positives > 0) & (negatives > 0)
        return np.where(defined, auroc, np.nan), np.where(defined, auprc, np.nan)


def _ranked(
    scores: NDArray[np.floating], labels: Bools, pair_of_cell: NDArray[np.intp], pairs: int
) -> _Ranked:
    """Sort a list of cells, each weighing what its pair weighs."""
    if np.isnan(scores).any():
        raise CkdEhrError(f"{np.isnan(scores).sum()} of {scores.size} scores are NaN: no order")
    order = np.argsort(-scores, kind="stable")
    positive, column = labels[order], pair_of_cell[order]
    group = np.cumsum(np.diff(scores[order], prepend=scores[order][:1]) != 0)
    steps = np.unique(group[positive])
    step = np.searchsorted(steps, group)  # the one that a cell is of, or comes before
    last = step < len(steps)
    tied = last & ~positive
    tied[tied] = steps[step[tied]] == group[tied]

    def summing(cells: Bools) -> sparse.csr_matrix:
        starts = np.searchsorted(step[cells], np.arange(len(steps) + 1))
        ones = np.ones(int(cells.sum()), dtype=np.float32)
        return sparse.csr_matrix((ones, column[cells], starts), shape=(len(steps), pairs))

    counts = np.bincount(pair_of_cell, minlength=pairs).astype(np.float32)
    return _Ranked(summing(positive), summing(last & ~positive), summing(tied), counts)


def _rank(lists: Sequence[_Ranked], weights: Weights) -> Ranking:
    """The curves of some lists, (draws, lists); draws in blocks that fit the processor's cache."""
    auroc, auprc = np.full((2, len(weights), len(lists)), np.nan)
    longest = max([weights.shape[1], 1, *(ranked.positive.shape[0] for ranked in lists)])
    size = max(1, CELLS_AT_ONCE // longest)
    for start in range(0, len(weights), size):
        block = slice(start, start + size)
        of_pairs = np.ascontiguousarray(weights[block].T)
        for k, ranked in enumerate(lists):
            auroc[block, k], auprc[block, k] = ranked.areas(of_pairs)
    return Ranking(auroc, auprc)


def macro(values: ArrayLike) -> Floats:
    """Mean over the last axis of the labels that have a figure; NaN where none has.

    >>> float(macro([0.5, float("nan"), 0.7]))
    0.6
    """
    values = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def best_f1_thresholds(
    probabilities: ArrayLike, labels: ArrayLike, *, fallback: float = DEFAULT_THRESHOLD
) -> Floats:
    """Per label the threshold with the highest F1 (positive from the threshold upwards).

    To be fitted on tuning pairs. Of equally good thresholds the highest is taken (fewest alarms);
    a label without positives gets `fallback`.

    >>> best_f1_thresholds([[0.9], [0.6], [0.2]], [[True], [True], [False]])
    array([0.6])
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels, dtype=bool)
    thresholds = np.full(probabilities.shape[1], fallback)
    for k in np.nonzero(labels.any(axis=0))[0]:
        order = np.argsort(-probabilities[:, k], kind="stable")
        descending = probabilities[order, k]
        ends = np.append(np.nonzero(np.diff(descending))[0], len(order) - 1)
        true = np.cumsum(labels[order, k])[ends]
        f1 = 2 * true / (ends + 1 + labels[:, k].sum())
        thresholds[k] = descending[ends[np.argmax(f1)]]
    return thresholds


class F1(NamedTuple):
    """F1 of each label (draws, labels), NaN where it shows one class, and of all cells (draws,)."""

    per_label: Floats
    micro: Floats


def f1_scores(decisions: ArrayLike, labels: ArrayLike, weights: Weights | None = None) -> F1:
    """F1 of yes/no decisions (pairs, labels).

    >>> float(f1_scores([[True], [True], [False]], [[True], [False], [False]]).micro[0])
    0.6666666666666666
    """
    decisions, labels = np.asarray(decisions, dtype=bool), np.asarray(labels, dtype=bool)
    weight = np.ones((1, len(labels))) if weights is None else weights.astype(np.float64)
    hits = weight @ (decisions & labels)
    chosen, positives = weight @ decisions, weight @ labels
    one_class = (positives == 0) | (positives == weight.sum(axis=1, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        per_label = np.where(one_class, np.nan, 2 * hits / (chosen + positives))
        micro = 2 * hits.sum(axis=1) / (chosen + positives).sum(axis=1)
    return F1(per_label=per_label, micro=micro)


def checked_probabilities(values: ArrayLike, *, origin: str = "probabilities") -> Floats:
    """The same values as float64, if each is a number in [0, 1].

    Raises:
        CkdEhrError: some are not; says how many, and the first such value.

    >>> checked_probabilities([0.25, 1.0])
    array([0.25, 1.  ])
    """
    array = np.asarray(values, dtype=np.float64)
    bad = ~((array >= 0) & (array <= 1))
    if bad.any():
        raise CkdEhrError(
            f"{origin}: {bad.sum():,} of {array.size:,} are not probabilities in [0, 1] "
            f"(the first is {array[bad][0]:g}); rerun what wrote them"
        )
    return array


def brier(probabilities: ArrayLike, labels: ArrayLike, weights: Weights | None = None) -> Floats:
    """Mean squared difference of probability and outcome per label (draws, labels).

    >>> brier([[0.8], [0.4]], [[True], [False]])
    array([[0.1]])
    """
    error = (checked_probabilities(probabilities) - np.asarray(labels, dtype=bool)) ** 2
    weight = np.ones((1, len(error))) if weights is None else weights.astype(np.float64)
    return np.asarray(weight @ error / weight.sum(axis=1, keepdims=True))


class CalibrationError(NamedTuple):
    """Expected calibration error of each label (draws, labels), and of all cells (draws,)."""

    per_label: Floats
    micro: Floats


def calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, weights: Weights | None = None, *, bins: int = 15
) -> CalibrationError:
    """Expected calibration error with bins of equal width on [0, 1].

    ECE = Σ_bins share of pairs · |mean probability − share of positives| (Guo et al. 2017),
    once within each label, once over all (pair, label) cells together.

    >>> float(calibration_error([[0.9], [0.9]], [[True], [False]]).micro[0])
    0.4
    """
    probabilities = checked_probabilities(probabilities)
    weight = np.ones((1, len(probabilities))) if weights is None else weights.astype(np.float64)
    surplus = probabilities - np.asarray(labels, dtype=bool)  # (pairs, labels)
    bin_of_cell = bin_of(probabilities, bins)
    total = weight.sum(axis=1)
    per_label, signed = np.zeros((len(weight), surplus.shape[1])), []
    for b in range(bins):
        in_bin = weight @ np.where(bin_of_cell == b, surplus, 0.0)  # (draws, labels)
        per_label += np.abs(in_bin)
        signed.append(in_bin.sum(axis=1))
    micro = np.abs(signed).sum(axis=0) / (total * surplus.shape[1])
    return CalibrationError(per_label=per_label / total[:, None], micro=micro)


def bin_of(probabilities: Floats, bins: int) -> NDArray[np.intp]:
    """The bin of equal width on [0, 1] that each probability falls into.

    >>> bin_of(np.array([0.0, 0.5, 1.0]), 2)
    array([0, 1, 1])
    """
    return np.clip((probabilities * bins).astype(np.intp), 0, bins - 1)


@dataclass(frozen=True)
class PlattScaling:
    """Calibrated log-odds = slope · logit + intercept, one of each a label."""

    slope: Floats  # (labels,)
    intercept: Floats  # (labels,)

    def apply(self, logits: ArrayLike) -> Floats:
        """Calibrated logits of the same shape (…, labels).

        >>> PlattScaling(np.array([2.0]), np.array([-1.0])).apply([[0.5]])
        array([[0.]])
        """
        return np.asarray(np.asarray(logits, dtype=np.float64) * self.slope + self.intercept)


def fit_platt(
    logits: ArrayLike, labels: ArrayLike, ridge: float = 1.0, towards: PlattScaling | None = None
) -> PlattScaling:
    """Fit slope and intercept per label by penalised logistic regression (Platt 1999).

    Minimises Σ_pairs log-loss + ridge/2 · ((slope − a)² + (intercept − b)²) with `towards` (a, b),
    the identity (1, 0) unless given, so little data moves little. A label with one class only (or
    no pairs at all) keeps (a, b): it says nothing of the slope, and its level in a handful of pairs
    is noise. The slope stays ≥ 0.05, so calibration never reverses or erases a ranking.

    Args:
        logits: (pairs, labels), of pairs the model was not fitted on.
        labels: (pairs, labels) of bool.
        ridge: strength of the pull, in pseudo-pairs.
        towards: where to.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=bool)
    start = towards or PlattScaling(np.ones(logits.shape[1]), np.zeros(logits.shape[1]))
    scaling = PlattScaling(start.slope.copy(), start.intercept.copy())
    for k in range(logits.shape[1]):
        if labels[:, k].any() and not labels[:, k].all():
            centre = np.array([start.slope[k], start.intercept[k]])
            fitted = _fit_label(logits[:, k], labels[:, k], ridge, centre)
            scaling.slope[k], scaling.intercept[k] = fitted
    return scaling


def _fit_label(logits: Floats, labels: Bools, ridge: float, centre: Floats) -> Floats:
    def loss(line: Floats) -> tuple[float, Floats]:
        calibrated = line[0] * logits + line[1]
        residual = expit(calibrated) - labels
        pull = line - centre
        value = np.logaddexp(0, calibrated).sum() - calibrated[labels].sum()
        gradient = np.array([residual @ logits, residual.sum()]) + ridge * pull
        return float(value + ridge / 2 * pull @ pull), gradient

    bounds = [(SMALLEST_SLOPE, None), (None, None)]
    return np.asarray(minimize(loss, centre, jac=True, method="L-BFGS-B", bounds=bounds).x)


def safe_logit(probabilities: ArrayLike, *, floor: float = 1e-6) -> Floats:
    """Log-odds of probabilities kept within [floor, 1 − floor].

    >>> safe_logit([0.5, 1.0], floor=0.01).round(2)
    array([0. , 4.6])
    """
    return np.asarray(logit(np.clip(np.asarray(probabilities, np.float64), floor, 1 - floor)))


def patient_draws(subject_ids: ArrayLike, *, draws: int, seed: int) -> NDArray[np.float32]:
    """Weights (draws, pairs) of a bootstrap that resamples patients, all pairs of one together.

    >>> patient_draws([7, 7, 9], draws=1, seed=0).sum(axis=1) > 0
    array([ True])
    """
    subjects, position = np.unique(np.asarray(subject_ids), return_inverse=True)
    count = len(subjects)
    if count == 0:
        return np.zeros((draws, 0), dtype=np.float32)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn.astype(np.float32)[:, position]


def basic_interval(
    estimate: float,
    values: ArrayLike,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float] | None:
    """The basic bootstrap interval of an estimate; None if fewer than half the draws have a value.

    It mirrors the draws at the estimate (Davison and Hinkley 1997, eq. 5.6). Resampling repeats
    positives, which lifts average precision (and calibration error) in every draw; the percentile
    interval would take that lift over and miss the truth, the basic one takes it off.

    >>> basic_interval(0.5, [0.5, 0.6, 0.7], level=1.0)
    (0.3, 0.5)
    """
    values = np.asarray(values, dtype=np.float64)
    defined = values[~np.isnan(values)]
    if len(defined) == 0 or 2 * len(defined) < len(values):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    lower, upper = np.clip([2 * estimate - high, 2 * estimate - low], *bounds).tolist()
    return round(lower, 12), round(upper, 12)
