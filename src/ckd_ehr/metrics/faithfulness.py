"""Is what an explanation names what the prediction rests on? Concepts are erased to find out.

In: narratives of pairs, a function that predicts, one that explains. Out: a part of metrics.json:
how far a risk falls without the concepts named first (comprehensiveness), and without all others
(sufficiency; DeYoung et al. 2020), beside orders by chance and by erasing each concept in turn.
Ignores: files, models, and whether what a model uses is true.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from ckd_ehr.contracts.records import Narrative
from ckd_ehr.learning.scoring import Floats, Weights, patient_draws
from ckd_ehr.metrics.compare import figure_of
from ckd_ehr.metrics.results import FEWEST_PATIENTS, ErasedOrder, Faithfulness, Figure

FRACTIONS = (0.1, 0.2, 0.5)
ORDERS = ("evidence", "random", "occlusion")
FEWEST_CONCEPTS = 2
Predict = Callable[[Sequence[Narrative]], Floats]  # probabilities (narratives, labels)
Explain = Callable[[Narrative], Floats]  # evidence (labels, 1 + concepts), the reading state first


def without(narrative: Narrative, erased: Collection[int]) -> Narrative:
    """The narrative less these concepts (by place), and the semicolon behind each.

    >>> from ckd_ehr.contracts.records import Span
    >>> gout, flu = (Span(s, s + n, "", "diagnosis", "", "", 0) for s, n in ((9, 4), (15, 3)))
    >>> less = without(Narrative("Visit 1: Gout; Flu.", (gout, flu), 0), {0})
    >>> less.text, less.text[less.spans[0].start : less.spans[0].end]
    ('Visit 1: Flu.', 'Flu')
    """
    text, kept, length, position = narrative.text, [], 0, 0
    pieces = []
    for place, span in enumerate(narrative.spans):
        if place in erased:
            pieces.append(text[position : span.start])
            length += len(pieces[-1])
            position = span.end + (2 if text.startswith("; ", span.end) else 0)
        else:
            moved = length - position
            kept.append(span._replace(start=span.start + moved, end=span.end + moved))
    return Narrative("".join([*pieces, text[position:]]), tuple(kept), narrative.concepts_cut)


def measure_faithfulness(
    narratives: Sequence[Narrative],
    *,
    predict: Predict,
    explain: Explain,
    random_orders: int,
    draws: int,
    gate: float,
    seed: int,
) -> Faithfulness | None:
    """Erase concepts of each narrative, for its highest risk; None if none has two concepts.

    Args:
        narratives: one a patient, so that patients are resampled with them.
        predict: probabilities (narratives, labels).
        explain: evidence (labels, 1 + concepts) of one narrative, the reading state first.
        random_orders: orders by chance, averaged.
        draws: of the bootstrap; none are made of fewer than 20 patients.
        gate: what the gain over chance has to exceed, in probability, with its whole interval.
        seed: of the orders by chance and of the bootstrap.
    """
    chosen = [one for one in narratives if len(one.spans) >= FEWEST_CONCEPTS]
    if not chosen:
        return None
    rng = np.random.default_rng(seed)
    falls, shares = [], []
    for narrative in chosen:
        evidence = explain(narrative)
        fall, label = _falls(narrative, evidence, predict, rng, random_orders)
        falls.append(fall)
        size = np.abs(evidence[label])
        shares.append(float(size[0] / max(size.sum(), 1e-12)))
    by_order = np.stack(falls, axis=1)  # (orders, pairs, 2, fractions)
    draws = draws if len(chosen) >= FEWEST_PATIENTS else 0
    weights = patient_draws(np.arange(len(chosen)), draws=draws, seed=seed)
    return _summary(by_order, weights, reading_share=float(np.mean(shares)), gate=gate)


def _summary(
    by_order: Floats, weights: Weights, *, reading_share: float, gate: float
) -> Faithfulness:
    """Means with intervals of falls (orders, pairs, 2, fractions)."""
    gain = _gains(by_order, weights)
    return Faithfulness(
        pairs=by_order.shape[1],
        fractions=list(FRACTIONS),
        reading_share=round(reading_share, 6),
        orders={
            name: ErasedOrder(
                comprehensiveness=_figures(values[:, 0], weights),
                sufficiency=_figures(values[:, 1], weights),
            )
            for name, values in zip(ORDERS, by_order, strict=True)
        },
        gain=gain,
        gate=gate,
        passed=_passed(gain, gate),
    )


def _falls(
    narrative: Narrative,
    evidence: Floats,
    predict: Predict,
    rng: np.random.Generator,
    random_orders: int,
) -> tuple[Floats, int]:
    """How far the highest risk falls, (orders, 2, fractions), and which label it is of."""
    places = range(len(narrative.spans))
    risks = predict([narrative, *(without(narrative, {place}) for place in places)])
    label = int(np.argmax(risks[0]))
    full, singly = risks[0, label], risks[1:, label]
    by_chance = [rng.permutation(len(places)) for _ in range(random_orders)]
    orders = [np.argsort(-evidence[label, 1:], kind="stable"), *by_chance]
    orders.append(np.argsort(singly, kind="stable"))  # the lower without it, the more it matters
    erased = [text for order in orders for text in _erased(narrative, order)]
    falls = full - predict(erased)[:, label].reshape(len(orders), len(FRACTIONS), 2)
    falls = falls.transpose(0, 2, 1)
    return np.stack([falls[0], falls[1:-1].mean(axis=0), falls[-1]]), label


def _erased(narrative: Narrative, order: NDArray[np.intp]) -> list[Narrative]:
    """For each fraction: the narrative without the first of an order, and with these alone."""
    texts = []
    for fraction in FRACTIONS:
        first = max(1, round(fraction * len(order)))
        named, others = order[:first].tolist(), order[first:].tolist()
        texts += [without(narrative, set(named)), without(narrative, set(others))]
    return texts


def _figures(values: Floats, weights: Weights) -> list[Figure]:
    """The mean of each column (pairs, columns) with its interval."""
    return [_mean(column, weights) for column in values.T]


def _mean(values: Floats, weights: Weights) -> Figure:
    resampled = (weights @ values) / weights.sum(axis=1)
    return figure_of(values.mean(keepdims=True), resampled, bounds=(-1.0, 1.0))


def _gains(by_order: Floats, weights: Weights) -> dict[str, Figure]:
    """Evidence over chance, mean of the fractions; above zero is better, of both."""
    evidence, chance, _ = by_order.mean(axis=3)
    return {
        "comprehensiveness": _mean(evidence[:, 0] - chance[:, 0], weights),
        "sufficiency": _mean(chance[:, 1] - evidence[:, 1], weights),
    }


def _passed(gain: dict[str, Figure], gate: float) -> bool | None:
    """None where there are too few patients to say."""
    lows = [figure.low for figure in gain.values()]
    known = [low for low in lows if low is not None]
    return all(low > gate for low in known) if len(known) == len(lows) else None
