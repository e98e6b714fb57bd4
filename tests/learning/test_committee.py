"""Stacking: weights are never negative, good members get more, rare labels stay at equal ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.committee import (
    external_digests,
    fit_stack,
    read_external,
    stacked_sources,
)
from ckd_ehr.learning.examples import PairTable
from ckd_ehr.learning.scoring import label_ranking, macro


def members(pairs: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two members with independent errors, and one that knows nothing; two labels, one rare."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(pairs, 2)) * 2 - [0.0, 8.0]
    labels = rng.random(truth.shape) < expit(truth)
    seen = np.stack([truth + rng.normal(size=truth.shape) * s for s in (1.0, 1.5)])
    return np.concatenate([seen, rng.normal(size=(1, *truth.shape))]), labels


def test_weights_are_those_of_penalised_logistic_regression() -> None:
    log_odds, labels = members()
    stack = fit_stack(log_odds[:2], labels, ridge=1e-6)
    oracle = LogisticRegression(C=np.inf, tol=1e-8).fit(log_odds[:2, :, 0].T, labels[:, 0])
    np.testing.assert_allclose(stack.weights[:, 0], oracle.coef_[0], atol=1e-3)
    np.testing.assert_allclose(stack.intercept[0], oracle.intercept_[0], atol=1e-3)


def test_no_weight_is_negative_and_noise_weighs_nothing() -> None:
    log_odds, labels = members()
    stack = fit_stack(np.concatenate([log_odds, -log_odds[:1]]), labels, ridge=1.0)
    assert (stack.weights >= 0).all()
    assert stack.weights[2, 0] < 0.1
    assert stack.weights[3, 0] == 0
    assert stack.weights[0, 0] > stack.weights[1, 0] > 0.1


def test_a_label_of_one_class_keeps_equal_weights() -> None:
    log_odds, labels = members(pairs=50)
    labels[:, 1] = False
    stack = fit_stack(log_odds, labels, ridge=20.0)
    np.testing.assert_allclose(stack.weights[:, 1], 1 / 3)
    assert stack.intercept[1] == 0


def test_the_committee_beats_its_members_and_shows_who_is_missed() -> None:
    log_odds, labels = members()
    pairs = table(labels)
    named = dict(zip(("good", "fair", "noise"), log_odds, strict=True))
    stacked = stacked_sources(named, pairs, ridge=20.0)
    held_out = pairs.rows(split="held_out")

    def score(values: np.ndarray) -> float:
        return float(macro(label_ranking(values[held_out], labels[held_out]).auprc)[0])

    sources = {source: one.log_odds for source, one in stacked.items()}
    scores = {name: score(values) for name, values in {**named, **sources}.items()}
    assert scores["committee"] > max(scores["good"], scores["fair"], scores["noise"])
    assert scores["committee_without_good"] < scores["committee_without_noise"]
    assert set(stacked) == {"committee", *(f"committee_without_{name}" for name in named)}


def test_labels_outside_train_are_not_looked_at() -> None:
    log_odds, labels = members(pairs=300)
    named = dict(zip(("a", "b", "c"), log_odds, strict=True))
    before = stacked_sources(named, table(labels), ridge=20.0)["committee"].log_odds
    changed = labels.copy()
    changed[200:] = ~changed[200:]
    after, again = (
        stacked_sources(named, table(some, train=200), ridge=20.0)["committee"].log_odds
        for some in (changed, labels)
    )
    np.testing.assert_array_equal(after, again)
    assert not np.array_equal(before, again)


def test_the_spread_of_a_committee_is_that_of_its_own_members_by_weight() -> None:
    log_odds, labels = members()
    named = dict(zip(("good", "fair", "noise"), log_odds, strict=True))
    stacked = stacked_sources(named, table(labels), ridge=20.0)
    two = stacked["committee_without_noise"]
    shares = two.stack.weights / two.stack.weights.sum(0)
    mean = (log_odds[:2] * shares[:, None]).sum(0)
    variance = ((log_odds[:2] - mean) ** 2 * shares[:, None]).sum(0)
    np.testing.assert_allclose(two.spread, np.sqrt(variance), atol=1e-6)
    [alone] = stacked_sources({"good": log_odds[0]}, table(labels), ridge=20.0).values()
    assert np.isnan(alone.spread).all()


def table(labels: np.ndarray, *, train: int | None = None) -> PairTable:
    count = len(labels)
    split = np.repeat("held_out", count)
    split[: count // 2 if train is None else train] = "train"
    return PairTable(
        pair_ids=tuple(f"p{n}" for n in range(count)),
        subject_ids=np.arange(count, dtype=np.int64),
        split=split,
        fold=np.where(split == "train", np.arange(count) % 2, -1).astype(np.int8),
        labelled=np.ones(count, dtype=bool),
        labels=labels,
        label_names=("Shock", "Pneumonia"),
    )


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, PairTable]:
    pairs = table(np.zeros((6, 2), dtype=bool))
    rows = {"pair_id": list(pairs.pair_ids)[::-1], "Shock": [0.1] * 6, "Pneumonia": [0.2] * 6}
    pq.write_table(pa.table(rows), tmp_path / "site.parquet")
    return tmp_path / "site.parquet", pairs


def test_a_sites_own_model_is_joined_by_pair_id(site: tuple[Path, PairTable]) -> None:
    path, pairs = site
    values = expit(read_external(path, "site", pairs))
    np.testing.assert_allclose(values, [[0.1, 0.2]] * 6)
    assert list(external_digests({"site": path})) == ["committee.site"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["Shock"]), "column 'Shock' is missing"),
        (lambda t: t.slice(2), "2 of 6 pairs are missing"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "more than once"),
        (
            lambda t: t.set_column(1, "Shock", pa.array([2.0] * 6)),
            "'Shock' holds something outside",
        ),
        (lambda t: t.set_column(1, "Shock", pa.array([None] * 6, pa.float64())), "outside 0 to 1"),
        (lambda t: t.set_column(1, "Shock", pa.array(["high"] * 6)), "'Shock' holds no numbers"),
        (lambda t: t.set_column(1, "Shock", pa.array([True] * 6)), "nothing but 0 and 1"),
        (lambda t: t.append_column("Shock", t["Shock"]), "'Shock' stands there 2 times"),
        (lambda t: t.set_column(0, "pair_id", pa.array([["p"]] * 6)), "'pair_id' holds no text"),
    ],
)
def test_a_sites_damaged_file_is_refused_with_its_name(
    site: tuple[Path, PairTable], change: object, said: str
) -> None:
    path, pairs = site
    pq.write_table(change(pq.read_table(path)), path)  # type: ignore[operator]
    with pytest.raises(CkdEhrError, match=said) as error:
        read_external(path, "site", pairs)
    assert str(path) in str(error.value)


def test_zero_and_one_count_as_half_of_what_else_comes_nearest(
    site: tuple[Path, PairTable],
) -> None:
    path, pairs = site
    changed = pq.read_table(path).set_column(1, "Shock", pa.array([0.0, 0.01, 0.3, 0.5, 1.0, 1.0]))
    pq.write_table(changed, path)
    values = expit(read_external(path, "site", pairs))[::-1, 0]
    np.testing.assert_allclose(values, [0.005, 0.01, 0.3, 0.5, 0.995, 0.995])


def test_folds_of_another_split_are_refused(site: tuple[Path, PairTable]) -> None:
    path, pairs = site
    folds = pa.array(pairs.fold[::-1].tolist(), pa.int8())
    right = pq.read_table(path).append_column("fold", folds)
    pq.write_table(right, path)
    read_external(path, "site", pairs)
    pq.write_table(right.set_column(3, "fold", pa.array([0] * 6, pa.int8())), path)
    with pytest.raises(CkdEhrError, match="made for another cohort or split"):
        read_external(path, "site", pairs)


@pytest.mark.parametrize("name", ["committee", "committee_without_teacher", "lightgbm", "a/b"])
def test_a_site_s_member_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(CkdEhrError, match=f"'{name}'"):
        build_config({"name": "t", "committee": {"external": {name: "x.parquet"}}})


def test_a_member_stands_once() -> None:
    with pytest.raises(CkdEhrError, match="stands there twice"):
        build_config({"name": "t", "committee": {"members": ["lightgbm", "lightgbm"]}})


def test_a_file_that_is_absent_or_cut_short_is_refused(site: tuple[Path, PairTable]) -> None:
    path, pairs = site
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CkdEhrError, match="no Parquet file"):
        read_external(path, "site", pairs)
    path.unlink()
    with pytest.raises(CkdEhrError, match="no such file"):
        external_digests({"site": path})


def test_a_pair_that_a_member_has_not_read_is_left_to_the_others() -> None:
    log_odds, labels = members(pairs=600)
    names = ("teacher", "regression", "trees")
    pairs = table(labels, train=500)
    pairs.labelled[450:500] = False  # the teacher has not read these
    partly = dict(zip(names, log_odds.copy(), strict=True))
    partly["teacher"][450:500] = np.nan
    whole = stacked_sources(dict(zip(names, log_odds, strict=True)), pairs, ridge=20.0)
    found = stacked_sources(partly, pairs, ridge=20.0)
    unread = ~pairs.labelled
    for part in ("log_odds", "spread"):
        mine, full = getattr(found["committee"], part), getattr(whole["committee"], part)
        others = getattr(whole["committee_without_teacher"], part)
        np.testing.assert_allclose(mine[unread], others[unread])
        np.testing.assert_allclose(mine[~unread], full[~unread])
    alone = stacked_sources({"teacher": partly["teacher"]}, pairs, ridge=20.0)["committee"]
    assert np.isnan(alone.log_odds[unread]).all()
    assert np.isfinite(alone.log_odds[~unread]).all()
