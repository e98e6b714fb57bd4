"""Patients into train, tuning and held_out, and into folds, by hash.

In: subject ids and the seed. Out: a split and a fold per patient. The two use different salts, so
that they are independent. Ignores: visits, dates and diseases; a patient's split never changes
when others come or go.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ckd_ehr.contracts.config import SplitsConfig

SPLIT_NAMES = ("train", "tuning", "held_out")


def unit_hash(subject_id: int, *, seed: int, salt: str) -> float:
    """A patient's place in [0, 1): the first 8 hex digits of SHA-256(`seed:salt:subject_id`).

    >>> unit_hash(10006, seed=0, salt="split")
    0.7547407599631697
    """
    digest = hashlib.sha256(f"{seed}:{salt}:{subject_id}".encode()).hexdigest()
    return int(digest[:8], 16) / 2**32


def unit_hashes(
    subject_ids: Sequence[int], *, seed: int, salt: str
) -> npt.NDArray[np.float64]:  # (subjects,)
    """`unit_hash` of many patients."""
    places = (unit_hash(subject, seed=seed, salt=salt) for subject in subject_ids)
    return np.fromiter(places, dtype=np.float64, count=len(subject_ids))


def split_of(place: npt.ArrayLike, *, tuning: float, held_out: float) -> npt.NDArray[np.str_]:
    """The split at each place: train first, then tuning, then held_out.

    >>> split_of([0.0, 0.69, 0.71, 0.81], tuning=0.1, held_out=0.2).tolist()
    ['train', 'train', 'tuning', 'held_out']
    """
    edges = [1 - tuning - held_out, 1 - held_out]
    return np.array(SPLIT_NAMES)[np.searchsorted(edges, np.asarray(place), side="right")]


def fold_of(place: npt.ArrayLike, *, folds: int) -> npt.NDArray[np.int8]:
    """The fold at each place.

    >>> fold_of([0.0, 0.49, 0.5, 0.99], folds=2).tolist()
    [0, 0, 1, 1]
    """
    positions = np.asarray(place, dtype=np.float64)
    return np.floor(positions * folds).astype(np.int8)


def assign_splits(subject_ids: Sequence[int], splits: SplitsConfig) -> pa.Table:
    """A row per patient: subject_id, split, fold, and `sample_place`, the order of sampling.

    Every patient has a fold, whatever the split; pairs outside train are given fold -1 later.

    >>> assign_splits([7, 3], SplitsConfig(seed=1)).column_names
    ['subject_id', 'split', 'fold', 'sample_place']
    """
    seed = splits.seed
    split = split_of(
        unit_hashes(subject_ids, seed=seed, salt="split"),
        tuning=splits.tuning,
        held_out=splits.held_out,
    )
    fold = fold_of(unit_hashes(subject_ids, seed=seed, salt="fold"), folds=splits.folds)
    return pa.table(
        {
            "subject_id": pa.array(subject_ids, pa.int64()),
            "split": pa.array(split.tolist(), pa.string()),
            "fold": pa.array(fold, pa.int8()),
            "sample_place": unit_hashes(subject_ids, seed=seed, salt="sample"),
        }
    )
