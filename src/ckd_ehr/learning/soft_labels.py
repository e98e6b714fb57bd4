"""Soft labels: what a source thinks of every pair, calibrated on pairs it has not learnt from.

In: of each fold the raw log-odds by a model that has not seen its patients. Out: one row a pair,
calibrated, with a spread where there is more than one opinion. Ignores: what the source is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table
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
)

MEAN_OF_FOLDS = -1
CURVE_PARTS = 5


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
    """Calibrated log-odds (pairs, labels) of a source; spread NaN where there is one opinion.

    Log-odds are NaN of unlabelled pairs that the source has not read.
    """

    source: str
    logits: Floats
    spread: Floats


@dataclass(frozen=True)
class Calibration:
    """A Platt line for each fold's model, and whether isotonic curves follow.

    `one_class` counts the folds and labels that had to take the line of all folds.
    """

    platt: tuple[PlattScaling, ...]
    one_class: int
    isotonic: bool


def rows_to_label(pairs: PairTable, fold: int, *, unlabelled: bool = True) -> NDArray[np.intp]:
    """Rows that the model without a fold labels: the fold's train pairs, and all later splits.

    With `unlabelled=False` without the unlabelled ones.
    """
    wanted = pairs.labelled | unlabelled
    return np.nonzero(((pairs.fold == fold) | (pairs.split != "train")) & wanted)[0]


def own_rows(pairs: PairTable, opinion: FoldOpinion) -> Bools:
    """Which of the opinion's rows are labelled train pairs, all of the model's unseen fold."""
    return np.asarray((pairs.split[opinion.rows] == "train") & pairs.labelled[opinion.rows])


def calibrate(
    opinions: Sequence[FoldOpinion],
    pairs: PairTable,
    *,
    source: str,
    ridge: float,
    isotonic: bool = False,
) -> tuple[Calibration, list[FittedOn]]:
    """Calibrate each fold's model on the fold's own labelled train pairs, which it has not seen.

    Each line is pulled to that of all folds together, which a label of one class in a fold takes
    as it is: left as they were, raw log-odds of one fold would spoil the mean on later splits.
    """
    own = [own_rows(pairs, opinion) for opinion in opinions]
    rows = [opinion.rows[mine] for opinion, mine in zip(opinions, own, strict=True)]
    logits = [o.logits.mean(0)[mine] for o, mine in zip(opinions, own, strict=True)]
    every = np.concatenate(rows)
    together = fit_platt(np.concatenate(logits), pairs.labels[every], ridge=ridge)
    lines, one_class = [], 0
    two = _has_both(pairs.labels[every])
    fitted = [fitted_on(f"{source}/platt", _ids(pairs, every), split="train")]
    for opinion, mine, seen in zip(opinions, rows, logits, strict=True):
        labels = pairs.labels[mine]
        lines.append(fit_platt(seen, labels, ridge=ridge, towards=together))
        one_class += int((two & ~_has_both(labels)).sum())
        name = f"{source}/fold_{opinion.fold}/platt"
        fitted.append(fitted_on(name, _ids(pairs, mine), split="train", folds=[opinion.fold]))
    return Calibration(tuple(lines), one_class, isotonic), fitted


def _has_both(labels: Bools) -> Bools:
    """Which labels have both classes."""
    return np.asarray(labels.any(0) & ~labels.all(0))


def _ids(pairs: PairTable, rows: NDArray[np.intp]) -> list[str]:
    return [pairs.pair_ids[row] for row in rows]


def soft_labels_of(
    opinions: Sequence[FoldOpinion], calibration: Calibration, pairs: PairTable, *, source: str
) -> SoftLabels:
    """Train pairs: their own fold's model. Later splits: the mean over the models.

    The spread is over models and orders, before any curve.
    """
    shape = len(pairs.pair_ids), len(pairs.label_names)
    soft, total, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    models, counts = np.zeros((len(pairs.pair_ids), 1)), np.zeros((len(pairs.pair_ids), 1))
    for opinion, line in zip(opinions, calibration.platt, strict=True):
        calibrated, rows = line.apply(opinion.logits), opinion.rows
        mean = calibrated.mean(0)
        soft[rows] += _curved(mean, opinion, pairs) if calibration.isotonic else mean
        models[rows] += 1
        total[rows] += calibrated.sum(0)
        squares[rows] += (calibrated**2).sum(0)
        counts[rows] += len(calibrated)
    variance = squares / np.maximum(counts, 1) - (total / np.maximum(counts, 1)) ** 2
    spread = np.where(counts > 1, np.sqrt(np.maximum(variance, 0.0)), np.nan)
    with np.errstate(invalid="ignore"):  # 0 / 0 where nobody has read the pair
        return SoftLabels(source, soft / models, spread)


def _curved(log_odds: Floats, opinion: FoldOpinion, pairs: PairTable) -> Floats:
    """Log-odds (rows, labels) after a monotone curve, which no pair's own label has shaped.

    A curve has as many steps as the data want, so it would tell a pair its own label: the fold's
    labelled train pairs are curved by those of other patients of the fold, in five parts.
    """
    own = np.flatnonzero(own_rows(pairs, opinion))
    curved = _by_curves(log_odds[own], pairs.labels[opinion.rows[own]], log_odds)
    parts = pairs.subject_ids[opinion.rows[own]] % CURVE_PARTS
    for part in np.unique(parts):
        mine, others = own[parts == part], own[parts != part]
        curved[mine] = _by_curves(
            log_odds[others], pairs.labels[opinion.rows[others]], log_odds[mine]
        )
    return curved


def _by_curves(known: Floats, labels: Bools, wanted: Floats) -> Floats:
    """`wanted` log-odds after curves fitted on `known` ones; of a one-class label unchanged."""
    curved = wanted.copy()
    for k in np.flatnonzero(_has_both(labels)):
        curved[:, k] = logit(_curve(expit(known[:, k]), labels[:, k]).predict(expit(wanted[:, k])))
    return curved


def _curve(probabilities: Floats, outcome: Bools) -> IsotonicRegression:
    """Isotonic regression whose steps of n pairs, k of them positive, are at (k + ½) / (n + 1)."""
    plain = IsotonicRegression(out_of_bounds="clip").fit(probabilities, outcome)
    _, step = np.unique(plain.predict(probabilities), return_inverse=True)
    level = (np.bincount(step, outcome) + 0.5) / (np.bincount(step) + 1)
    return IsotonicRegression(out_of_bounds="clip").fit(probabilities, level[step])


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
    """The source's rows of the table `soft_labels`: of the pairs that it has read."""
    train = pairs.split == "train"
    spread = [None if np.isnan(row).any() else row for row in soft.spread.astype(np.float32)]
    table = pa.table(
        {
            "pair_id": pa.array(pairs.pair_ids, pa.string()),
            "source": pa.array([soft.source] * len(pairs.pair_ids), pa.string()),
            "logits": pa.array(list(soft.logits.astype(np.float32)), pa.list_(pa.float32())),
            "spread": pa.array(spread, pa.list_(pa.float32())),
            "fold": pa.array(np.where(train, pairs.fold, MEAN_OF_FOLDS), pa.int8()),
        },
        schema=SOFT_LABELS,
    )
    return table.filter(pa.array(~np.isnan(soft.logits).any(axis=1)))


def read_soft_labels(committee: Path, source: str, pairs: PairTable) -> SoftLabels:
    """A source's soft labels of all pairs, in their order, from the committee stage's folder.

    Raises:
        CkdEhrError: the source, or a labelled pair, is not there, or a pair is there twice.
    """
    path = committee / "soft_labels.parquet"
    table = read_table(path, SOFT_LABELS)
    mine = table.filter(pc.equal(table["source"], source))
    if not mine.num_rows:
        raise CkdEhrError(f"{path}: no source '{source}'; see student.soft_labels")
    if pc.count_distinct(mine["pair_id"]).as_py() != mine.num_rows:
        raise CkdEhrError(f"{path}: source '{source}' names a pair twice; rerun stage committee")
    rows = pc.index_in(pa.array(pairs.pair_ids, pa.string()), value_set=mine["pair_id"])
    if lacking := int(np.sum(pairs.labelled & rows.is_null().to_numpy(zero_copy_only=False))):
        raise CkdEhrError(
            f"{path}: source '{source}' lacks {lacking:,} labelled pairs; rerun stage committee"
        )
    mine = mine.take(rows)
    logits, spread = (
        _as_array(mine[name], len(pairs.label_names)) for name in ("logits", "spread")
    )
    return SoftLabels(source, logits, spread)


def _as_array(lists: pa.ChunkedArray, labels: int) -> Floats:
    """A column of lists as (rows, labels), NaN where a row has none."""
    values = np.full((len(lists), labels), np.nan)
    values[lists.is_valid().to_numpy()] = pc.list_flatten(lists).to_numpy().reshape(-1, labels)
    return values
