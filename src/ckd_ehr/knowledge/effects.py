"""The statistics of treatment effects: adjusted, clustered by patient, shrunk.

In: who got rid of a disease, who had which treatment, and covariates. Out: for each treatment a
log odds ratio with its standard error, and empirical-Bayes estimates of many of them. Ignores:
which diseases and treatments these are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import false_discovery_control, norm

from ckd_ehr.data.histories import Bools

Floats = NDArray[np.float64]

# Weak normal priors, as standard deviations of standardised covariates and of an effect: they give
# an estimate where treated and untreated are separated, and let some dozen covariates be adjusted
# for where few had the outcome.
COVARIATE_DEVIATION, EFFECT_DEVIATION = 1.0, 5.0
MOST_STEPS, CLOSE_ENOUGH, LONGEST_STEP = 50, 1e-7, 2.0
BLOCK_CELLS = 2_000_000  # rows × treatments fitted together
RIVAL_Z, MOST_RIVALS = 2.0, 12  # treatments that are adjusted for one another
# Deviations of true effects that the mixture may choose from, and what favours no effect.
DEVIATIONS = np.concatenate([[0.0], np.geomspace(0.02, 2.0, 14)])
PRIOR_FOR_NONE, ROUNDS = 10.0, 400
NO_EFFECT = 1e-6  # a bound within the point at zero is zero


@dataclass(frozen=True)
class Effects:
    """One entry a treatment; `separated` where all or none of the treated had the outcome."""

    log_odds: Floats
    standard_error: Floats
    separated: Bools


@dataclass(frozen=True)
class Shrunk:
    """Posterior mean and the bounds of the central 95 %, one entry an effect."""

    mean: Floats
    low: Floats
    high: Floats


def standardised(columns: Floats) -> Floats:
    """Zero mean and unit deviation by column; unknown (NaN) stands at the mean.

    >>> standardised(np.array([[1.0, 7.0], [3.0, 7.0], [np.nan, 7.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    """
    known = ~np.isnan(columns)
    count = np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, columns - np.where(known, columns, 0).sum(axis=0) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    return np.asarray(centred / np.where(deviation > 0, deviation, 1.0))


def fit_effects(
    outcome: Bools,
    treated: Bools,
    covariates: Floats,
    others: Floats,
    clusters: NDArray[np.int64],
) -> Effects:
    """The log odds ratio of each treatment, adjusted for the covariates.

    A logistic model a treatment. Those that stand out in it, the twelve with the largest z at most,
    are then fitted in one model together, which replaces their estimates: a drug that only goes
    along with an effective one has none beside it. Rows of one cluster (a patient) are not taken
    for independent: the standard error is the larger of the model's and the cluster-robust one
    (Liang and Zeger 1986), as the latter is far too small where few are treated.

    Args:
        outcome: (rows,).
        treated: (rows, treatments); each has treated and untreated rows.
        covariates: (rows, covariates), standardised; of all treatments.
        others: (rows, treatments), standardised: a covariate of each treatment alone.
        clusters: (rows,).
    """
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=clusters[order][:1] - 1))
    design = np.column_stack([np.ones(len(order)), covariates[order]])
    together = max(1, BLOCK_CELLS // len(order))
    blocks = [slice(first, first + together) for first in range(0, treated.shape[1], together)]
    parts = [
        _fit_block(outcome[order], treated[order, block], design, others[order, block], starts)
        for block in blocks
    ]
    had = treated[outcome].sum(axis=0)
    log_odds, errors = np.concatenate(parts, axis=1) if parts else np.empty((2, 0))
    z = log_odds / errors
    rivals = np.sort(np.argsort(-z, kind="stable")[:MOST_RIVALS])
    rivals = rivals[z[rivals] > RIVAL_Z]
    if len(rivals) > 1:
        chosen = treated[order][:, rivals].astype(np.float64)
        other = others[order][:, rivals].mean(axis=1, keepdims=True)
        whole = np.column_stack([design, other, chosen])
        log_odds[rivals], errors[rivals] = _fit_together(
            outcome[order], whole, starts, treatments=len(rivals)
        )
    return Effects(log_odds, errors, (had == 0) | (had == treated.sum(axis=0)))


def _fit_together(
    outcome: Bools, design: Floats, starts: NDArray[np.intp], *, treatments: int
) -> Floats:
    """Log odds and standard errors, (2, treatments), of the last columns of one model."""
    ridge = np.full(design.shape[1], COVARIATE_DEVIATION**-2)
    ridge[0], ridge[-treatments:] = 1e-6, EFFECT_DEVIATION**-2
    weights = np.zeros(design.shape[1])
    for _ in range(MOST_STEPS):
        expected = expit(design @ weights)
        residual = outcome - expected
        information = (design * (expected * (1 - expected))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(information, design.T @ residual - ridge * weights)
        longest = np.abs(step).max()
        weights = weights + step * min(1.0, LONGEST_STEP / max(longest, 1e-12))
        if longest < CLOSE_ENOUGH:
            break
    inverse = np.linalg.inv(information)
    by_cluster = np.add.reduceat(design * residual[:, None], starts, axis=0) @ inverse
    correction = len(starts) / max(len(starts) - 1, 1)
    variance = np.maximum(correction * (by_cluster**2).sum(axis=0), np.diag(inverse))
    return np.stack([weights[-treatments:], np.sqrt(variance[-treatments:])])


def _fit_block(
    outcome: Bools, treated: Bools, design: Floats, others: Floats, starts: NDArray[np.intp]
) -> Floats:
    """Log odds and standard errors, (2, treatments); rows sorted by cluster."""
    own = np.stack([others, treated.astype(np.float64)])
    models = _Models(outcome[:, None].astype(np.float64), design, own)
    weights = np.zeros((treated.shape[1], design.shape[1] + 2))
    for _ in range(MOST_STEPS):
        residual, gradient, information = models.state(weights)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        weights += step * np.minimum(1.0, LONGEST_STEP / np.maximum(longest, 1e-12))
        if longest.max(initial=0.0) < CLOSE_ENOUGH:
            break
    last = np.asarray(np.linalg.inv(information), np.float64)[:, -1]  # (treatments, parameters)
    by_cluster = np.add.reduceat(models.linear(last) * residual, starts, axis=0)
    correction = len(starts) / max(len(starts) - 1, 1)
    robust = correction * (by_cluster**2).sum(axis=0)
    return np.stack([weights[:, -1], np.sqrt(np.maximum(robust, last[:, -1]))])


class _Models:
    """A logistic model a treatment, with weak normal priors; all share the outcome.

    Parameters: those of the shared design (the intercept first, its prior flat), then of the
    model's own two columns, the treatment last.
    """

    def __init__(self, outcome: Floats, design: Floats, own: Floats) -> None:
        self.outcome, self.design, self.own = outcome, design, own
        self.upper = np.triu_indices(design.shape[1])
        self.products = design[:, self.upper[0]] * design[:, self.upper[1]]
        covariates = np.full(design.shape[1], COVARIATE_DEVIATION**-2)
        self.ridge = np.concatenate([[1e-6], covariates, [EFFECT_DEVIATION**-2]])

    def linear(self, weights: Floats) -> Floats:
        """The columns times weights (models, parameters), (rows, models)."""
        others, treated = self.own
        shared = self.design @ weights[:, :-2].T
        return np.asarray(shared + others * weights[:, -2] + treated * weights[:, -1])

    def state(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """At weights (models, parameters): residuals (rows, models), gradients, information."""
        expected = expit(self.linear(weights))
        residual, spread = self.outcome - expected, expected * (1 - expected)
        of_own = np.einsum("orm,rm->mo", self.own, residual)
        gradient = np.column_stack([residual.T @ self.design, of_own])
        models, parameters = weights.shape
        information = np.empty((models, parameters, parameters))
        rows, columns = self.upper
        information[:, rows, columns] = information[:, columns, rows] = spread.T @ self.products
        for place, column in ((-2, self.own[0] * spread), (-1, self.own[1] * spread)):
            information[:, place, :-2] = information[:, :-2, place] = column.T @ self.design
            information[:, place, -2:] = np.einsum("orm,rm->mo", self.own, column)
        return residual, gradient - self.ridge * weights, information + np.diag(self.ridge)


def q_values(log_odds: Floats, standard_error: Floats) -> Floats:
    """Two-sided false discovery rates (Benjamini and Hochberg 1995).

    >>> q_values(np.array([0.0, 1.0]), np.array([0.2, 0.2])).round(6).tolist()
    [1.0, 1e-06]
    """
    if not len(log_odds):
        return np.empty(0)
    p_values = 2 * norm.sf(np.abs(log_odds) / standard_error)
    return np.asarray(false_discovery_control(p_values))


def shrink(estimates: Floats, standard_errors: Floats) -> Shrunk:
    """Many estimated effects, each in the light of all (adaptive shrinkage, Stephens 2017).

    True effects are drawn from a mixture of normals around zero, one of them a point at zero; the
    shares are fitted to the estimates, and each effect's posterior follows. A few large effects
    among many that are none keep their size, the others vanish. doi 10.1093/biostatistics/kxw041

    >>> strong = shrink(np.array([1.0] + [0.0] * 99), np.full(100, 0.1))
    >>> bool(strong.low[0] > 0.7), bool(abs(strong.mean[1]) < 1e-3)
    (True, True)
    """
    estimates, errors = estimates[:, None], standard_errors[:, None]
    log_likelihood = np.asarray(norm.logpdf(estimates, 0, np.sqrt(DEVIATIONS**2 + errors**2)))
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    prior = np.zeros(len(DEVIATIONS))
    prior[0] = PRIOR_FOR_NONE
    shares = np.full(len(DEVIATIONS), 1 / len(DEVIATIONS))
    belongs = np.broadcast_to(shares, likelihood.shape)
    for _ in range(ROUNDS):
        belongs = shares * likelihood
        belongs = belongs / belongs.sum(axis=1, keepdims=True)
        shares = (belongs.sum(axis=0) + prior) / (len(estimates) + PRIOR_FOR_NONE)
    variance = DEVIATIONS**2 * errors**2 / (DEVIATIONS**2 + errors**2)
    means = estimates * DEVIATIONS**2 / (DEVIATIONS**2 + errors**2)
    bounds = [_quantile(share, belongs, means, np.sqrt(variance)) for share in (0.025, 0.975)]
    return Shrunk((belongs * means).sum(axis=1), *bounds)


def _quantile(share: float, belongs: Floats, means: Floats, deviations: Floats) -> Floats:
    """Where each posterior mixture has this share below it, by bisection."""
    low = (means - 10 * deviations).min(axis=1) - 1e-3
    high = (means + 10 * deviations).max(axis=1) + 1e-3
    narrow = np.maximum(deviations, 1e-9)
    for _ in range(60):
        middle = (low + high) / 2
        below = (belongs * norm.cdf((middle[:, None] - means) / narrow)).sum(axis=1) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    found = (low + high) / 2
    return np.asarray(np.where(np.abs(found) < NO_EFFECT, 0.0, found))
