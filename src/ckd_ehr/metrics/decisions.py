"""What decisions on the probabilities are worth: sets of diseases, and net benefit by threshold.

In: probabilities or yes/no decisions (pairs, labels), outcomes, and bootstrap weights (draws,
pairs). Out: one figure a draw. Ignores: files, and how thresholds were chosen.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ckd_ehr.learning.scoring import Bools, Floats, Weights, checked_probabilities

# From a harm of one false alarm in 99 of a benefit, to one as large as the benefit.
DECISION_THRESHOLDS = np.arange(1, 51) / 100


class Accuracy(NamedTuple):
    """Share of cells decided rightly, and of pairs with all labels decided rightly; (draws,)."""

    hamming: Floats
    subset: Floats


def accuracies(decisions: Bools, labels: Bools, weights: Weights) -> Accuracy:
    """Hamming accuracy (one less the Hamming loss) and subset accuracy.

    >>> accuracies(np.array([[True, False]]), np.array([[True, True]]), np.ones((1, 1)))
    Accuracy(hamming=array([0.5]), subset=array([0.]))
    """
    right = decisions == labels
    of_pairs = np.stack([right.mean(axis=1), right.all(axis=1)], axis=1)
    means = (weights @ of_pairs) / weights.sum(axis=1, keepdims=True)
    return Accuracy(hamming=means[:, 0], subset=means[:, 1])


def net_benefit(
    probabilities: ArrayLike, labels: ArrayLike, *, thresholds: Floats = DECISION_THRESHOLDS
) -> Floats:
    """Each pair's part of the net benefit (Vickers and Elkin 2006), (pairs, labels, thresholds).

    A true alarm counts 1, a false one −t / (1 − t), at threshold t; the mean over pairs is the net
    benefit. Treating nobody has 0; treating all is what probabilities of 1 have.

    >>> net_benefit([[0.5]], [[False]], thresholds=np.array([0.2, 0.6]))
    array([[[-0.25,  0.  ]]])
    """
    probabilities = checked_probabilities(probabilities)[..., None]
    worth = np.where(np.asarray(labels, dtype=bool)[..., None], 1.0, -thresholds / (1 - thresholds))
    return np.where(probabilities >= thresholds, worth, 0.0)


def mean_net_benefit(
    probabilities: Floats, labels: Bools, weights: Weights, *, scored: Bools
) -> Floats:
    """Net benefit averaged over the labels that are `scored` (labels,): (draws, thresholds)."""
    of_pairs = np.zeros((len(labels), len(DECISION_THRESHOLDS)))
    for k in np.nonzero(scored)[0]:
        of_pairs += net_benefit(probabilities[:, k], labels[:, k]) / scored.sum()
    means = (weights @ of_pairs) / weights.sum(axis=1, keepdims=True)
    return np.asarray(means if scored.any() else np.full_like(means, np.nan))
