"""Soft labels: calibrated on the fold's own pairs, averaged, with the spread of the opinions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import write_table
from ckd_ehr.contracts.records import SOFT_LABELS
from ckd_ehr.learning.examples import PairTable
from ckd_ehr.learning.scoring import fit_platt, label_ranking, macro
from ckd_ehr.learning.soft_labels import (
    FoldOpinion,
    SoftLabels,
    calibrate,
    own_rows,
    read_soft_labels,
    reliability,
    rows_to_label,
    soft_label_table,
    soft_labels_of,
)


def cohort(count: int = 3000) -> tuple[PairTable, np.ndarray]:
    """Two labels with known risks; the last 30 train pairs are unlabelled."""
    rng = np.random.default_rng(3)
    risks = expit(rng.normal(size=(count, 2)) - 1)
    split = np.where(np.arange(count) % 5 == 4, "tuning", "train")
    labelled = (split != "train") | (np.arange(count) < count - 30)
    pairs = PairTable(
        pair_ids=tuple(f"p{n}" for n in range(count)),
        subject_ids=np.arange(count, dtype=np.int64),
        split=split,
        fold=np.where(split == "train", np.arange(count) % 2, -1).astype(np.int8),
        labelled=labelled,
        labels=(rng.random(risks.shape) < risks) & labelled[:, None],
        label_names=("Shock", "Pneumonia"),
    )
    return pairs, risks


def opinions_of(pairs: PairTable, risks: np.ndarray, *, orders: int) -> list[FoldOpinion]:
    """Twice too sure and shifted, with noise from order to order."""
    rng = np.random.default_rng(4)
    opinions = []
    for fold in (0, 1):
        rows = rows_to_label(pairs, fold)
        raw = 2 * logit(risks[rows]) + 1 + fold
        noise = rng.normal(size=(orders, *raw.shape)) * 0.5
        opinions.append(FoldOpinion(fold, rows, raw + noise))
    return opinions


def test_calibration_undoes_over_confidence_and_says_so_on_tuning() -> None:
    pairs, risks = cohort()
    opinions = opinions_of(pairs, risks, orders=3)
    for isotonic in (False, True):
        calibration, fitted = calibrate(
            opinions, pairs, source="teacher", ridge=1.0, isotonic=isotonic
        )
        soft = soft_labels_of(opinions, calibration, pairs, source="teacher")
        assert np.abs(expit(soft.logits) - risks).mean() < 0.04
        scores = reliability(opinions, soft, pairs)
        before, after = scores["before"]["ece"], scores["after"]["ece"]
        assert before is not None and after is not None
        assert before > 0.1
        assert after < 0.05
        assert calibration.one_class == 0
        assert [record.name for record in fitted] == [
            "teacher/platt",
            "teacher/fold_0/platt",
            "teacher/fold_1/platt",
        ]


def test_spread_is_that_of_the_calibrated_opinions() -> None:
    pairs, risks = cohort(100)
    opinions = opinions_of(pairs, risks, orders=3)
    calibration, _ = calibrate(opinions, pairs, source="t", ridge=1.0)
    soft = soft_labels_of(opinions, calibration, pairs, source="t")
    train = int(pairs.rows(split="train")[1])
    fold = int(pairs.fold[train])
    place = int(np.searchsorted(opinions[fold].rows, train))
    mine = calibration.platt[fold].apply(opinions[fold].logits)[:, place]
    np.testing.assert_allclose(soft.logits[train], mine.mean(0))
    np.testing.assert_allclose(soft.spread[train], mine.std(0))
    tuning = int(pairs.rows(split="tuning")[0])
    both = np.concatenate(
        [
            line.apply(opinion.logits)[:, int(np.searchsorted(opinion.rows, tuning))]
            for opinion, line in zip(opinions, calibration.platt, strict=True)
        ]
    )
    np.testing.assert_allclose(soft.spread[tuning], both.std(0))


def test_one_opinion_has_no_spread_and_later_splits_have_no_fold() -> None:
    pairs, risks = cohort(100)
    opinions = opinions_of(pairs, risks, orders=1)
    calibration, _ = calibrate(opinions, pairs, source="t", ridge=1.0)
    rows = soft_label_table(
        soft_labels_of(opinions, calibration, pairs, source="t"), pairs
    ).to_pylist()
    for row, split, fold in zip(rows, pairs.split, pairs.fold, strict=True):
        assert (row["spread"] is None) == (split == "train")
        assert row["fold"] == (fold if split == "train" else -1)


def test_calibration_is_fitted_on_labelled_train_pairs_alone() -> None:
    pairs, risks = cohort(200)
    opinions = opinions_of(pairs, risks, orders=1)
    before, _ = calibrate(opinions, pairs, source="t", ridge=1.0)
    elsewhere = (pairs.split != "train") | ~pairs.labelled
    pairs.labels[elsewhere] = ~pairs.labels[elsewhere]
    after, _ = calibrate(opinions, pairs, source="t", ridge=1.0)
    for one, other in zip(before.platt, after.platt, strict=True):
        np.testing.assert_array_equal(one.slope, other.slope)


def test_a_label_of_one_class_in_a_fold_takes_the_line_of_all_folds() -> None:
    pairs, risks = cohort()
    pairs.labels[(pairs.fold == 1), 0] = False
    opinions = opinions_of(pairs, risks, orders=1)
    calibration, _ = calibrate(opinions, pairs, source="t", ridge=1.0)
    assert calibration.one_class == 1
    first, second = calibration.platt
    assert abs(first.slope[0] - 0.5) < 0.1
    assert second.slope[0] != 1
    together = fit_platt(
        np.concatenate([o.logits[0][own_rows(pairs, o)] for o in opinions]),
        np.concatenate([pairs.labels[o.rows[own_rows(pairs, o)]] for o in opinions]),
    )
    assert second.slope[0] == together.slope[0]
    assert second.intercept[0] == together.intercept[0]


def test_a_curve_tells_no_pair_its_own_label() -> None:
    """Of log-odds that are pure chance, a curve fitted on the pairs themselves makes a score."""
    rng = np.random.default_rng(0)
    pairs, _ = cohort(2000)
    pairs.labels[:] = (rng.random(pairs.labels.shape) < 0.05) & pairs.labelled[:, None]
    opinions = [
        FoldOpinion(fold, rows, rng.normal(size=(1, len(rows), 2)))
        for fold in (0, 1)
        for rows in [rows_to_label(pairs, fold)]
    ]
    calibration, _ = calibrate(opinions, pairs, source="t", ridge=1.0, isotonic=True)
    soft = soft_labels_of(opinions, calibration, pairs, source="t")
    train = pairs.rows(split="train", labelled=True)
    own = label_ranking(soft.logits[train], pairs.labels[train]).auroc
    assert float(macro(own)[0]) < 0.53
    assert np.isfinite(soft.logits).all()
    assert np.abs(soft.logits).max() < 8


def test_soft_labels_are_read_in_the_order_of_the_pairs(tmp_path: Path) -> None:
    pairs, risks = cohort(20)
    pairs.labelled[4] = False
    logits = logit(risks)
    logits[4] = np.nan  # unlabelled, and nobody has read it
    spread = np.where(np.arange(20)[:, None] % 3 == 0, np.nan, risks)
    tables = [
        soft_label_table(SoftLabels(source, values, spread), pairs).take(list(range(18, -1, -1)))
        for source, values in (("teacher", logits), ("committee", -logits))
    ]
    path = tmp_path / "soft_labels.parquet"
    write_table(pa.concat_tables(tables[::-1]), path, SOFT_LABELS)
    soft = read_soft_labels(tmp_path, "teacher", pairs)
    read = np.arange(20) != 4
    np.testing.assert_array_equal(soft.logits, logits.astype(np.float32))
    np.testing.assert_array_equal(soft.spread[read], spread[read].astype(np.float32))
    with pytest.raises(CkdEhrError, match="no source 'lightgbm'"):
        read_soft_labels(tmp_path, "lightgbm", pairs)
    write_table(tables[0].slice(1), path, SOFT_LABELS)
    with pytest.raises(CkdEhrError, match="lacks 1 labelled pairs; rerun stage committee"):
        read_soft_labels(tmp_path, "teacher", pairs)
    write_table(pa.concat_tables([tables[0], tables[0].slice(3, 1)]), path, SOFT_LABELS)
    with pytest.raises(CkdEhrError, match="source 'teacher' names a pair twice"):
        read_soft_labels(tmp_path, "teacher", pairs)


def test_a_source_of_one_opinion_has_no_spread_when_read(tmp_path: Path) -> None:
    pairs, risks = cohort(5)
    table = soft_label_table(
        SoftLabels("teacher", logit(risks), np.full(risks.shape, np.nan)), pairs
    )
    write_table(table, tmp_path / "soft_labels.parquet", SOFT_LABELS)
    soft = read_soft_labels(tmp_path, "teacher", pairs)
    assert np.isnan(soft.spread).all()
    assert soft.spread.shape == (5, 2)
