"""Controls that could refute distillation: soft labels and attention that know nothing more.

In: a teacher's log-odds, or its attention on a pair. Out: the same without what the teacher knows
of this patient. If a student learns as well from these, it did not learn from the teacher.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import entr, expit, logit

from ckd_ehr.learning.batches import Signal
from ckd_ehr.learning.scoring import Bools, Floats

AttentionControl = Literal["permuted", "uniform"]
Masses = NDArray[np.float32]
SMALLEST_MIX, LARGEST_MIX = 1e-6, 1.0


def shuffled_labels(log_odds: Floats, labels: Bools, rng: np.random.Generator) -> Floats:
    """Log-odds (pairs, labels) exchanged, label by label, among pairs of the same label.

    What remains is how sure the teacher is of each class, not of whom.

    >>> log_odds, labels = np.array([[1.0], [2.0], [3.0]]), np.array([[0], [1], [0]]) > 0
    >>> shuffled = shuffled_labels(log_odds, labels, np.random.default_rng(0))
    >>> float(shuffled[1, 0]), sorted(shuffled[[0, 2], 0].tolist())
    (2.0, [1.0, 3.0])
    """
    shuffled = log_odds.copy()
    for k in range(labels.shape[1]):
        for outcome in (False, True):
            rows = np.flatnonzero(labels[:, k] == outcome)
            shuffled[rows, k] = log_odds[rng.permutation(rows), k]
    return shuffled


def smoothed_labels(log_odds: Floats, labels: Bools) -> Floats:
    """Hard labels mixed with their prevalence, to the mean entropy of the teacher's soft labels.

    What remains is the softness alone. A label of one class keeps its smoothed prevalence.

    Args:
        log_odds: (pairs, labels), of the teacher. labels: (pairs, labels).
    """
    smoothed = np.empty_like(log_odds)
    prevalence = (labels.sum(0) + 0.5) / (len(labels) + 1)
    for k, base in enumerate(prevalence):
        wanted = _entropy(expit(log_odds[:, k]))
        mixed = _mix_of_entropy(labels[:, k], base, wanted)
        smoothed[:, k] = logit(mixed)
    return smoothed


def _mix_of_entropy(outcome: Bools, base: float, wanted: float) -> Floats:
    def excess(mix: float) -> float:
        return _entropy((1 - mix) * outcome + mix * base) - wanted

    mix = LARGEST_MIX
    if excess(SMALLEST_MIX) < 0 < excess(LARGEST_MIX):
        mix = float(brentq(excess, SMALLEST_MIX, LARGEST_MIX))
    return np.asarray((1 - mix) * outcome + mix * base)


def _entropy(probabilities: NDArray[np.floating]) -> float:
    return float((entr(probabilities) + entr(1 - probabilities)).mean())


def controlled_signal(
    signal: Signal, control: AttentionControl, rng: np.random.Generator
) -> Signal:
    """A pair's signal whose attention is exchanged among its concepts, or the same on all states.

    All rows of a pair are exchanged alike; the reading state keeps its attention.
    """
    shared = signal.shared
    if control == "uniform":
        readout = signal.readout
        return replace(
            signal,
            attention=_uniform(signal.attention, shared),
            readout=None if readout is None else _uniform(readout, shared[1:]),
        )
    concepts = np.flatnonzero(shared[1:])
    order = rng.permutation(concepts)
    attention = signal.attention.copy()
    attention[:, 1 + concepts] = signal.attention[:, 1 + order]
    readout = None if signal.readout is None else signal.readout.copy()
    if readout is not None and signal.readout is not None:
        readout[:, concepts] = signal.readout[:, order]
    return replace(signal, attention=attention, readout=readout)


def _uniform(masses: Masses, shared: NDArray[np.bool_]) -> Masses:
    """The same mass on each shared state.

    >>> _uniform(np.array([[0.1, 0.9, 0.0]]), np.array([True, True, False]))
    array([[0.5, 0.5, 0. ]])
    """
    weights = shared / max(int(shared.sum()), 1)
    return np.broadcast_to(weights.astype(masses.dtype), masses.shape).copy()
