"""Is a difference more than chance? p-values of paired draws, Holm's correction, several seeds.

In: estimates and their paired bootstrap draws. Out: p-values, and one figure of several seeds.
Ignores: which score, and which models.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ckd_ehr.learning.scoring import Bools, Floats, Weights
from ckd_ehr.metrics.calibration import both_classes


def bootstrap_p(estimate: float, draws: ArrayLike) -> float | None:
    """Two-sided p-value of a difference of zero, from its B paired draws d.

    p = min(1, 2 · (1 + min(#{d ≥ 2 · estimate}, #{d ≤ 2 · estimate})) / (B + 1)): the level at
    which the basic interval, which mirrors the draws at the estimate, reaches zero. Its floor is
    2 / (B + 1). None where fewer than half of the draws have a value.

    >>> round(bootstrap_p(0.2, [0.1, 0.2, 0.3]), 3), bootstrap_p(0.0, [0.0, 0.0, 0.0])
    (0.5, 1.0)
    """
    values = np.asarray(draws, dtype=np.float64)
    defined = values[~np.isnan(values)]
    if len(defined) == 0 or 2 * len(defined) < len(values) or np.isnan(estimate):
        return None
    fewer = min((defined >= 2 * estimate).sum(), (defined <= 2 * estimate).sum())
    return float(min(1.0, 2 * (1 + fewer) / (len(defined) + 1)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p-values: the chance of any false claim among them stays at level.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, n) for n, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, n) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[n] = highest
    return adjusted


def across_seeds(estimates: ArrayLike, draws: ArrayLike, *, seed: int) -> tuple[Floats, Floats]:
    """A score's mean over training seeds, and its draws over patients and seeds.

    Each draw takes as many seeds as there are, with replacement, on one resample of the patients.
    Few seeds resampled vary too little by (S − 1) / S, so a draw's distance from the mean of all S
    is widened by √(S / (S − 1)). One seed says nothing of seeds: its draws come back as they are.

    Args:
        estimates: (seeds,).
        draws: (seeds, draws), the same patients in the same draw.
        seed: of the resampling.

    Returns:
        The estimate (1,) and the draws (draws,).

    >>> across_seeds([0.5, 0.7], [[0.5], [0.7]], seed=0)[0]
    array([0.6])
    """
    draws = np.asarray(draws, dtype=np.float64)
    count = len(draws)
    centre = draws.mean(axis=0)
    if count > 1:
        rng = np.random.default_rng(seed)
        taken = rng.multinomial(count, np.full(count, 1 / count), size=draws.shape[1])
        resampled = np.einsum("ds,sd->d", taken / count, draws)
        centre = centre + np.sqrt(count / (count - 1)) * (resampled - centre)
    return np.atleast_1d(np.asarray(estimates, dtype=np.float64).mean()), centre


class Degenerate(NamedTuple):
    """Draws in which any label has lost a class, and how many each label; (labels,)."""

    draws: int
    by_label: NDArray[np.integer]


def degenerate(labels: Bools, weights: Weights) -> Degenerate:
    """In how many draws labels that show both classes lose one; such a draw leaves them out.

    >>> degenerate(np.array([[True], [False]]), np.array([[2.0, 0.0], [1.0, 1.0]])).draws
    1
    """
    positives = weights @ labels
    one_class = (positives == 0) | (positives == weights.sum(axis=1, keepdims=True))
    one_class &= both_classes(labels)
    return Degenerate(draws=int(one_class.any(axis=1).sum()), by_label=one_class.sum(axis=0))
