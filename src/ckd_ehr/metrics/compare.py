"""Scores of each model with intervals, and paired differences, by bootstrap over patients.

In: probabilities and labels of the scored pairs, thresholds from tuning, bootstrap weights shared
by all models (so that differences are paired). Out: figures for metrics.json. Ignores: files, and
how the models were made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from ckd_ehr.learning.scoring import (
    Bools,
    Floats,
    Weights,
    basic_interval,
    brier,
    calibration_error,
    f1_scores,
    label_ranking,
    macro,
    micro_ranking,
)
from ckd_ehr.metrics.calibration import (
    both_classes,
    brier_parts,
    no_ranking,
    recalibration,
    reliability_bins,
)
from ckd_ehr.metrics.decisions import accuracies, mean_net_benefit, net_benefit
from ckd_ehr.metrics.results import (
    PRIMARY,
    Curve,
    Difference,
    Figure,
    LabelResult,
    ModelResult,
    RocCurve,
    number,
)
from ckd_ehr.metrics.significance import bootstrap_p, holm

UNBOUNDED = (-np.inf, np.inf)
CURVE_POINTS = 200


@dataclass(frozen=True)
class ScoredPairs:
    """What every model is scored on; `weights` (draws, pairs) are the shared bootstrap draws.

    Without `previously_present`, new-onset and persistent labels are not scored apart.
    """

    labels: Bools  # (pairs, labels)
    previously_present: Bools | None  # (pairs, labels)
    weights: Weights  # (draws, pairs)
    bins: int

    def take(self, rows: Bools) -> "ScoredPairs":
        """Some of the pairs, on the same draws."""
        known = self.previously_present
        return ScoredPairs(
            labels=self.labels[rows],
            previously_present=None if known is None else known[rows],
            weights=self.weights[:, rows],
            bins=self.bins,
        )


@dataclass(frozen=True)
class Draws:
    """One model's scores for each draw: by name (draws,), and by name (draws, labels)."""

    overall: dict[str, Floats]
    new_onset: dict[str, Floats]
    persistent: dict[str, Floats]
    per_label: dict[str, Floats]


@dataclass(frozen=True)
class Measured:
    """A model's scores on the pairs themselves (one draw) and on the bootstrap draws."""

    point: Draws
    resampled: Draws


def measure(probabilities: Floats, thresholds: Floats, pairs: ScoredPairs) -> Measured:
    """Score one model on the pairs and on every bootstrap draw."""
    once = np.ones((1, len(pairs.labels)))
    return Measured(
        point=_score(probabilities, thresholds, pairs, once),
        resampled=_score(probabilities, thresholds, pairs, pairs.weights),
    )


def _score(
    probabilities: Floats, thresholds: Floats, pairs: ScoredPairs, weights: Weights
) -> Draws:
    by_label = label_ranking(probabilities, pairs.labels, weights)
    pooled = micro_ranking(probabilities, pairs.labels, weights)
    decided = accuracies(probabilities >= thresholds, pairs.labels, weights)
    f1 = f1_scores(probabilities >= thresholds, pairs.labels, weights)
    squared = brier(probabilities, pairs.labels, weights)
    error = calibration_error(probabilities, pairs.labels, weights, bins=pairs.bins)
    overall = {
        "macro_auprc": macro(by_label.auprc),
        "macro_auroc": macro(by_label.auroc),
        "micro_auprc": pooled.auprc,
        "micro_auroc": pooled.auroc,
        "macro_f1": macro(f1.per_label),
        "micro_f1": f1.micro,
        "hamming_accuracy": decided.hamming,
        "subset_accuracy": decided.subset,
        "brier": macro(squared),
        "ece": error.micro,
        "macro_ece": macro(error.per_label),
    }
    per_label = {
        "auroc": by_label.auroc,
        "auprc": by_label.auprc,
        "f1": f1.per_label,
        "brier": squared,
        "ece": error.per_label,
    }
    known = pairs.previously_present
    masks = {} if known is None else {"new_onset": ~known, "persistent": known}
    parts = {part: _masked(probabilities, pairs.labels, weights, m) for part, m in masks.items()}
    return Draws(
        overall=overall,
        new_onset=parts.get("new_onset", {}),
        persistent=parts.get("persistent", {}),
        per_label=per_label,
    )


def _masked(
    probabilities: Floats, labels: Bools, weights: Weights, mask: Bools
) -> dict[str, Floats]:
    by_label = label_ranking(probabilities, labels, weights, mask=mask)
    pooled = micro_ranking(probabilities, labels, weights, mask=mask)
    return {
        "macro_auprc": macro(by_label.auprc),
        "macro_auroc": macro(by_label.auroc),
        "micro_auprc": pooled.auprc,
        "micro_auroc": pooled.auroc,
    }


def summarise(
    measured: Measured,
    probabilities: Floats,
    *,
    thresholds: Floats,
    pairs: ScoredPairs,
    label_names: Sequence[str],
    note: str,
) -> ModelResult:
    """A model's part of metrics.json."""
    point, resampled = measured.point, measured.resampled
    return ModelResult(
        overall=figures_of(point.overall, resampled.overall),
        new_onset=figures_of(point.new_onset, resampled.new_onset),
        persistent=figures_of(point.persistent, resampled.persistent),
        labels={
            name: _label_result(measured, probabilities, pairs, k, threshold=float(thresholds[k]))
            for k, name in enumerate(label_names)
        },
        brier_parts=brier_parts(probabilities, pairs.labels, bins=pairs.bins),
        recalibration=recalibration(probabilities, pairs.labels),
        net_benefit=_net_benefit_figures(probabilities, pairs),
        reliability=reliability_bins(probabilities, pairs.labels, bins=pairs.bins),
        precision_recall=micro_curve(probabilities, pairs.labels),
        roc=micro_roc(probabilities, pairs.labels),
        note=note,
    )


def _net_benefit_figures(probabilities: Floats, pairs: ScoredPairs) -> list[Figure]:
    scored = both_classes(pairs.labels)
    once = np.ones((1, len(pairs.labels)))
    point, resampled = (
        mean_net_benefit(probabilities, pairs.labels, weights, scored=scored)
        for weights in (once, pairs.weights)
    )
    return [
        figure_of(point[:, t], resampled[:, t], bounds=UNBOUNDED) for t in range(point.shape[1])
    ]


def difference(
    first: Measured, second: Measured, *, model: str, minus: str, names: Sequence[str]
) -> Difference:
    """Paired differences: each draw takes the same patients for both models."""
    figures = {
        name: figure_of(
            first.point.overall[name] - second.point.overall[name],
            first.resampled.overall[name] - second.resampled.overall[name],
            bounds=(-1.0, 1.0),
        )
        for name in names
    }
    p_value = None
    if PRIMARY in names:
        gain = float(first.point.overall[PRIMARY][0] - second.point.overall[PRIMARY][0])
        draws = first.resampled.overall[PRIMARY] - second.resampled.overall[PRIMARY]
        p_value = bootstrap_p(gain, draws)
    return Difference(model=model, minus=minus, figures=figures, p_value=p_value)


def with_holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences, with p-values corrected for how many there are."""
    corrected = holm([one.p_value for one in differences])
    return [
        one.model_copy(update={"p_holm": p}) for one, p in zip(differences, corrected, strict=True)
    ]


def figures_of(point: dict[str, Floats], resampled: dict[str, Floats]) -> dict[str, Figure]:
    """Each score with its interval, from one draw of the pairs themselves and the bootstrap's."""
    return {name: figure_of(values, resampled[name]) for name, values in point.items()}


def figure_of(
    point: Floats, resampled: Floats, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """The estimate with its interval; no interval where there is no estimate."""
    value = number(point[0])
    interval = basic_interval(value, resampled, bounds=bounds) if value is not None else None
    if interval is None:
        return Figure(value=value)
    return Figure(value=value, low=number(interval[0]), high=number(interval[1]))


def _label_result(
    measured: Measured, probabilities: Floats, pairs: ScoredPairs, k: int, *, threshold: float
) -> LabelResult:
    risks, labels = probabilities[:, k], pairs.labels[:, k]
    point, resampled = measured.point.per_label, measured.resampled.per_label
    return LabelResult(
        auroc=figure_of(point["auroc"][:, k], resampled["auroc"][:, k]),
        auprc=figure_of(point["auprc"][:, k], resampled["auprc"][:, k]),
        f1=number(point["f1"][0, k]),
        brier=number(point["brier"][0, k]),
        brier_parts=brier_parts(risks, labels, bins=pairs.bins),
        ece=number(point["ece"][0, k]),
        recalibration=recalibration(risks, labels),
        net_benefit=[number(value) for value in net_benefit(risks, labels).mean(axis=0)],
        threshold=round(threshold, 6),
        remark=no_ranking(risks, labels),
    )


def micro_curve(probabilities: Floats, labels: Bools, *, points: int = CURVE_POINTS) -> Curve:
    """Precision and recall over all (pair, label) cells, at evenly spaced steps of recall.

    >>> micro_curve(np.array([[0.9, 0.1]]), np.array([[True, False]])).precision[:2]
    [1.0, 1.0]
    """
    if not labels.any():
        return Curve(recall=[], precision=[])
    precision, recall, _ = precision_recall_curve(labels.ravel(), probabilities.ravel())
    precision, recall = precision[::-1], recall[::-1]
    targets = np.linspace(0, 1, min(points, len(recall)))
    kept = np.unique(np.clip(np.searchsorted(recall, targets), 0, len(recall) - 1))
    return Curve(
        recall=np.round(recall[kept], 4).tolist(), precision=np.round(precision[kept], 4).tolist()
    )


def micro_roc(probabilities: Floats, labels: Bools, *, points: int = CURVE_POINTS) -> RocCurve:
    """False positives and sensitivity over all cells, at evenly spaced rates of the former.

    >>> micro_roc(np.array([[0.9, 0.1]]), np.array([[True, False]])).sensitivity
    [0.0, 1.0, 1.0]
    """
    if labels.all() or not labels.any():
        return RocCurve(false_positive_rate=[], sensitivity=[])
    false, true, _ = roc_curve(labels.ravel(), probabilities.ravel())
    targets = np.linspace(0, 1, min(points, len(false)))
    last = np.searchsorted(false, targets, side="right") - 1
    kept = np.unique([0, *last, len(false) - 1])
    return RocCurve(
        false_positive_rate=np.round(false[kept], 4).tolist(),
        sensitivity=np.round(true[kept], 4).tolist(),
    )
