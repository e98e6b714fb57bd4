"""Splits: stable per patient, independent of the fold, near the wanted shares."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckd_ehr.contracts.config import SplitsConfig
from ckd_ehr.data.splits import SPLIT_NAMES, assign_splits, fold_of, split_of, unit_hash

SUBJECTS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=50, unique=True)


def test_place_is_the_first_eight_hex_digits_of_sha256() -> None:
    digits = hashlib.sha256(b"7:fold:42").hexdigest()[:8]
    assert unit_hash(42, seed=7, salt="fold") == int(digits, 16) / 16**8


@given(SUBJECTS, st.integers(0, 1000))
def test_a_patients_split_and_fold_do_not_depend_on_the_others(
    subjects: list[int], seed: int
) -> None:
    splits = SplitsConfig(seed=seed)
    together = assign_splits(subjects, splits).to_pylist()
    alone = [assign_splits([subject], splits).to_pylist()[0] for subject in subjects]
    assert together == alone


@given(SUBJECTS, st.integers(2, 5))
def test_every_patient_has_one_split_and_one_fold(subjects: list[int], folds: int) -> None:
    table = assign_splits(subjects, SplitsConfig(folds=folds))
    assert table["subject_id"].to_pylist() == subjects
    assert set(table["split"].to_pylist()) <= set(SPLIT_NAMES)
    assert all(0 <= fold < folds for fold in table["fold"].to_pylist())


@given(st.floats(0, 1, exclude_max=True), st.integers(2, 5))
def test_every_place_has_a_fold_within_range(place: float, folds: int) -> None:
    assert 0 <= fold_of(place, folds=folds) < folds


def test_edges_belong_to_the_later_split() -> None:
    places = [0.5, 0.75, np.nextafter(0.75, 0), 0.999]
    assert split_of(places, tuning=0.25, held_out=0.25).tolist() == [
        "tuning",
        "held_out",
        "tuning",
        "held_out",
    ]


def test_shares_of_many_patients_are_near_the_wanted_ones() -> None:
    table = assign_splits(range(100_000), SplitsConfig(seed=3))
    split = np.array(table["split"].to_pylist())
    fold = np.array(table["fold"].to_pylist())
    shares = [float(np.mean(split == name)) for name in SPLIT_NAMES]
    assert np.allclose(shares, [0.7, 0.1, 0.2], atol=0.005)
    # Independent salts: each fold holds half of each split.
    for name in SPLIT_NAMES:
        assert abs(float(np.mean(fold[split == name])) - 0.5) < 0.02


def test_another_seed_divides_otherwise() -> None:
    first, second = (assign_splits(range(1000), SplitsConfig(seed=seed)) for seed in (0, 1))
    assert not first["split"].equals(second["split"])
