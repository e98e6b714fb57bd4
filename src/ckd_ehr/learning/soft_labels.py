"""Soft labels: what a source thinks of every pair, calibrated on pairs it has not learnt from.

In: of each fold the raw log-odds by a model that has not seen its patients. Out: one row a pair,
calibrated, with a spread where there is more than one opinion. Ignores: what the source is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from ckd_ehr.contracts.fitted import FittedOn, fitted_on
from ckd_ehr.contracts.records import SOFT_LABELS
from ckd_ehr.learning.examples import PairTable
from ckd_ehr.learning.scoring import (
    Bools,
    Floats,
    PlattScaling,
    brier,
    calibration_error,
    fit_platt,
    label_ranking,
    macro,
    safe_logit,
)

MEAN_OF_FOLDS = -1


@dataclass(frozen=True)
class FoldOpinion:
    """Raw log-odds by a model that has not seen fold `fold`, of some rows of the pairs.

    `logits` (opinions, rows, labels): more than one where the codes were read in several orders.
    """

    fold: int
    rows: NDArray[np.intp]
    logits: Floats


@dataclass(frozen=True)
class SoftLabels:
    """Calibrated log-odds (pairs, labels) of a source; spread NaN where there is one opinion."""

    source: str
    logits: Floats
    spread: Floats


@dataclass(frozen=True)
class Calibration:
    """Platt scaling of one fold's model, and isotonic curves behind it if they were asked for."""

    platt: PlattScaling
    curves: tuple[IsotonicRegression | None, ...] = ()

    def apply(self, logits: Floats) -> Floats:
        """Calibrated log-odds of the same shape (…, labels)."""
        scaled = self.platt.apply(logits)
        for k, curve in enumerate(self.curves):
            if curve is not None:
                scaled[..., k] = safe_logit(curve.predict(expit(scaled[..., k]).ravel()).reshape(
                    scaled.shape[:-1]), floor=1e-4)  # fmt: skip
        return scaled


def rows_to_label(pairs: PairTable, fold: int) -> NDArray[np.intp]:
    """Rows that the model without a fold labels: the fold's train pairs, and all later splits."""
    return np.nonzero((pairs.fold == fold) | (pairs.split != "train"))[0]


def own_rows(pairs: PairTable, opinion: FoldOpinion) -> Bools:
    """Which of the opinion's rows are labelled train pairs, all of the model's unseen fold."""
    return np.asarray((pairs.split[opinion.rows] == "train") & pairs.labelled[opinion.rows])


def calibrate(
    opinion: FoldOpinion, pairs: PairTable, *, source: str, ridge: float, isotonic: bool = False
) -> tuple[Calibration, FittedOn]:
    """Calibrate a fold's model on the fold's own labelled train pairs, which it has not seen.

    Isotonic curves are fitted behind Platt scaling; a label of one class has none.
    """
    mine = own_rows(pairs, opinion)
    rows = opinion.rows[mine]
    logits, labels = opinion.logits.mean(0)[mine], pairs.labels[rows]
    platt = fit_platt(logits, labels, ridge=ridge)
    curves = _curves(platt.apply(logits), labels) if isotonic else ()
    ids = [pairs.pair_ids[row] for row in rows]
    name = f"{source}/fold_{opinion.fold}/platt"
    return Calibration(platt, curves), fitted_on(name, ids, split="train", folds=[opinion.fold])


def _curves(logits: Floats, labels: Bools) -> tuple[IsotonicRegression | None, ...]:
    curves: list[IsotonicRegression | None] = []
    for k in range(labels.shape[1]):
        outcome = labels[:, k]
        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        two = outcome.any() and not outcome.all()
        curves.append(curve.fit(expit(logits[:, k]), outcome) if two else None)
    return tuple(curves)


def soft_labels_of(
    opinions: Sequence[FoldOpinion],
    calibrations: Sequence[Calibration],
    pairs: PairTable,
    *,
    source: str,
) -> SoftLabels:
    """Train pairs: their own fold's model. Later splits: mean and spread over the models."""
    shape = len(pairs.pair_ids), len(pairs.label_names)
    total, squares = np.zeros(shape), np.zeros(shape)
    counts = np.zeros(len(pairs.pair_ids))
    for opinion, calibration in zip(opinions, calibrations, strict=True):
        calibrated = calibration.apply(opinion.logits)
        total[opinion.rows] += calibrated.sum(0)
        squares[opinion.rows] += (calibrated**2).sum(0)
        counts[opinion.rows] += len(calibrated)
    mean = total / counts[:, None]
    variance = squares / counts[:, None] - mean**2
    spread = np.where(counts[:, None] > 1, np.sqrt(np.maximum(variance, 0.0)), np.nan)
    return SoftLabels(source, mean, spread)


def reliability(
    opinions: Sequence[FoldOpinion], soft: SoftLabels, pairs: PairTable
) -> dict[str, dict[str, float | None]]:
    """On tuning, before calibration (mean of raw log-odds) and after: ECE, Brier, ranking."""
    rows = pairs.rows(split="tuning", labelled=True)
    labels = pairs.labels[rows]
    raw = np.zeros((len(opinions), *labels.shape))
    for number, opinion in enumerate(opinions):
        raw[number] = opinion.logits.mean(0)[np.searchsorted(opinion.rows, rows)]
    before, after = expit(raw.mean(0)), expit(soft.logits[rows])
    return {"before": _scores(before, labels), "after": _scores(after, labels)}


def _scores(probabilities: Floats, labels: Bools) -> dict[str, float | None]:
    if not len(labels):
        return {}
    ranked = label_ranking(probabilities, labels)
    scores = {
        "ece": calibration_error(probabilities, labels, bins=15).micro,
        "brier": macro(brier(probabilities, labels)),
        "macro_auprc": macro(ranked.auprc),
        "macro_auroc": macro(ranked.auroc),
    }
    values = {name: float(np.ravel(value)[0]) for name, value in scores.items()}
    return {name: round(value, 5) if np.isfinite(value) else None for name, value in values.items()}


def soft_label_table(soft: SoftLabels, pairs: PairTable) -> pa.Table:
    """The source's rows of the table `soft_labels`."""
    train = pairs.split == "train"
    spread = [None if np.isnan(row).any() else row for row in soft.spread.astype(np.float32)]
    return pa.table(
        {
            "pair_id": pa.array(pairs.pair_ids, pa.string()),
            "source": pa.array([soft.source] * len(pairs.pair_ids), pa.string()),
            "logits": pa.array(list(soft.logits.astype(np.float32)), pa.list_(pa.float32())),
            "spread": pa.array(spread, pa.list_(pa.float32())),
            "fold": pa.array(np.where(train, pairs.fold, MEAN_OF_FOLDS), pa.int8()),
        },
        schema=SOFT_LABELS,
    )
