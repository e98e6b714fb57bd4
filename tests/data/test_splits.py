"""Splits: stable per patient, independent of the fold, near the wanted shares."""

import datetime
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd_ehr.contracts.config import EngineConfig, SplitsConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.engine import Engine, open_engine
from ckd_ehr.data.splits import SPLIT_NAMES, assign_splits, hash_edge, read_splits

SUBJECTS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=50, unique=True)
START = datetime.datetime(2100, 1, 1)
OPENED: list[Engine] = []


@pytest.fixture(scope="module", autouse=True)
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with open_engine(EngineConfig(), tmp_path_factory.mktemp("engine")) as opened:
        OPENED.append(opened)
        yield
    OPENED.clear()


def assigned(
    subjects: Iterable[int], splits: SplitsConfig, listed: pa.Table | None = None
) -> list[dict[str, object]]:
    """A row per patient, in the order of ids; patient n came on day n."""
    [engine] = OPENED
    ids = sorted(subjects)
    times = [START + min(n, 10_000) * datetime.timedelta(days=1) for n in ids]
    columns = {
        "subject_id": pa.array(ids, pa.int64()),
        "first_admit_time": pa.array(times, pa.timestamp("us")),
    }
    given_splits = None if listed is None else engine.upload(listed)
    table = assign_splits(engine.upload(pa.table(columns)), splits, given_splits)
    rows: list[dict[str, object]] = engine.fetch(table.order_by("subject_id")).to_pylist()
    return rows


def place_of(subject: int, *, seed: int, salt: str) -> float:
    """DESIGN section 4, written once more and otherwise."""
    digits = hashlib.sha256(f"{seed}:{salt}:{subject}".encode()).hexdigest()[:8]
    return int(digits, 16) / 16**8


def test_splits_and_folds_follow_the_published_rule() -> None:
    splits = SplitsConfig(seed=7, tuning=0.15, held_out=0.25, folds=3)
    for row in assigned(range(2000), splits):
        subject = row["subject_id"]
        assert isinstance(subject, int)
        place = place_of(subject, seed=7, salt="split")
        expected = "train" if place < 0.6 else "tuning" if place < 0.75 else "held_out"
        assert row["split"] == expected
        assert row["fold"] == int(place_of(subject, seed=7, salt="fold") * 3)


@settings(deadline=None, max_examples=15)
@given(SUBJECTS, st.integers(0, 1000))
def test_a_patients_split_and_fold_do_not_depend_on_the_others(
    subjects: list[int], seed: int
) -> None:
    splits = SplitsConfig(seed=seed)
    together = assigned(subjects, splits)
    assert together[:1] == assigned([min(subjects)], splits)
    assert together[-1:] == assigned([max(subjects)], splits)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 2**32 - 1))
def test_keys_compare_as_the_numbers_they_write(share: float, place: int) -> None:
    assert (f"{place:08x}" < hash_edge(share)) == (place / 2**32 < share)


def test_shares_of_many_patients_are_near_the_wanted_ones() -> None:
    rows = assigned(range(100_000), SplitsConfig(seed=3))
    split = np.array([row["split"] for row in rows])
    fold = np.array([row["fold"] for row in rows])
    shares = [float(np.mean(split == name)) for name in SPLIT_NAMES]
    assert np.allclose(shares, [0.7, 0.1, 0.2], atol=0.005)
    # Independent salts: each fold holds half of each split.
    for name in SPLIT_NAMES:
        assert abs(float(np.mean(fold[split == name])) - 0.5) < 0.02


def test_another_seed_divides_otherwise() -> None:
    first, second = (assigned(range(1000), SplitsConfig(seed=seed)) for seed in (0, 1))
    assert [row["split"] for row in first] != [row["split"] for row in second]


def test_a_temporal_split_holds_out_those_who_came_last() -> None:
    rows = assigned(range(100), SplitsConfig(method="temporal"))
    assert [row["split"] for row in rows] == ["train"] * 70 + ["tuning"] * 10 + ["held_out"] * 20


def test_listed_splits_are_taken_and_others_have_none(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text("subject_id,split,note\n1,held_out,a\n2,train,b\n")
    rows = assigned([1, 2, 3], SplitsConfig(method="file", file=path), read_splits(path))
    assert [row["split"] for row in rows] == ["held_out", "train", None]


def test_a_parquet_file_of_splits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "subject_splits.parquet"
    pq.write_table(pa.table({"subject_id": [5], "split": ["tuning"]}), path)
    assert read_splits(path).to_pylist() == [{"subject_id": 5, "split": "tuning"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,split\n1,train\n", "column 'subject_id' is missing .found: subject, split"),
        ("subject_id,split\n1,test\n", "1 values of column 'split' are none of train, tuning"),
        ("subject_id,split\n1,train\n1,tuning\n", "1 patients stand in it more than once"),
        ("subject_id,split\nx,train\n", "subject_id must be whole numbers"),
        ("", "neither a CSV nor a whole Parquet file"),
    ],
)
def test_a_bad_file_of_splits_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(CkdEhrError, match=message):
        read_splits(path)
