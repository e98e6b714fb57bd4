"""What the labels alone say: how often each occurs, what chance reaches, what treating all gains.

In: the labelled pairs, and the bootstrap draws. Out: parts of metrics.json that no model changes.
Ignores: probabilities.
"""

from collections.abc import Mapping

import numpy as np

from ckd_ehr.learning.scoring import Bools, macro
from ckd_ehr.metrics.calibration import both_classes
from ckd_ehr.metrics.compare import ScoredPairs
from ckd_ehr.metrics.decisions import DECISION_THRESHOLDS, mean_net_benefit, net_benefit
from ckd_ehr.metrics.results import Decisions, LabelFacts, number
from ckd_ehr.metrics.significance import degenerate


def label_facts(train: Bools, scored: ScoredPairs, names: tuple[str, ...]) -> dict[str, LabelFacts]:
    """Each label's frequency; `train` (pairs, labels) are the train pairs' labels."""
    labels, known = scored.labels, scored.previously_present
    new = labels if known is None else labels & ~known
    positives = labels.sum(axis=0)
    lost = degenerate(labels, scored.weights).by_label
    return {
        name: LabelFacts(
            train_prevalence=number(train[:, k].mean()) if len(train) else None,
            prevalence=number(labels[:, k].mean()),
            positives=int(positives[k]),
            new_onset_positives=int(new[:, k].sum()),
            scored=bool(0 < positives[k] < len(labels)),
            degenerate_draws=int(lost[k]),
        )
        for k, name in enumerate(names)
    }


def prevalences(scored: ScoredPairs) -> dict[str, dict[str, float | None]]:
    """What chance reaches of each AUPRC: the share of positives, mean over labels and of cells."""
    known = scored.previously_present
    everything = np.ones(scored.labels.shape, dtype=bool)
    masks = {"overall": everything}
    if known is not None:
        masks |= {"new_onset": ~known, "persistent": known}
    return {name: _chance(scored.labels, mask) for name, mask in masks.items()}


def _chance(labels: Bools, mask: Bools) -> dict[str, float | None]:
    cells, positives = mask.sum(axis=0), (labels & mask).sum(axis=0)
    both = (positives > 0) & (positives < cells)
    shares = np.where(both, positives / np.maximum(cells, 1), np.nan)
    total = cells.sum()
    return {
        "macro_auprc": number(float(macro(shares))),
        "micro_auprc": number(positives.sum() / total) if total else None,
    }


def cell_prevalence(facts: Mapping[str, LabelFacts], pairs: int) -> float:
    """The share of positive (pair, label) cells: the precision of chance."""
    return sum(fact.positives for fact in facts.values()) / max(pairs * len(facts), 1)


def treat_all(labels: Bools, names: tuple[str, ...]) -> Decisions:
    """The net benefit of treating everybody, by label and on average over the scored ones."""
    certain, once = np.ones(labels.shape), np.ones((1, len(labels)))
    scored = both_classes(labels)
    mean = mean_net_benefit(certain, labels, once, scored=scored)[0]
    return Decisions(
        thresholds=DECISION_THRESHOLDS.tolist(),
        treat_all=[number(value) for value in mean],
        labels={
            name: [number(v) for v in net_benefit(certain[:, k], labels[:, k]).mean(axis=0)]
            for k, name in enumerate(names)
        },
    )
