"""Files: whole or the old one, equal bytes for equal rows, a broken one named."""

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ckd_ehr.contracts import files
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import (
    ROW_GROUP,
    ROWS_AT_ONCE,
    read_batches,
    read_json,
    read_table,
    write_batches,
    write_json,
    write_table,
)

SCHEMA = pa.schema([pa.field("pair_id", pa.string(), nullable=False)])


def test_a_full_disk_while_writing_json_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_broken_table_is_named_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    with pytest.raises(CkdEhrError, match=r"pairs\.parquet: missing"):
        read_table(path, SCHEMA)
    write_table(pa.table({"pair_id": ["a"] * 1000}), path, SCHEMA)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CkdEhrError, match="not a whole Parquet file"):
        read_table(path, SCHEMA)
    wide = pa.schema([*SCHEMA, pa.field("fold", pa.int8())])
    write_table(pa.table({"pair_id": ["a"]}), path, SCHEMA)
    with pytest.raises(CkdEhrError, match="columns missing: fold"):
        read_table(path, wide)


def test_a_table_is_read_a_few_rows_at_a_time_in_the_wanted_columns(tmp_path: Path) -> None:
    path, rows = tmp_path / "pairs.parquet", ROWS_AT_ONCE + 3
    pq.write_table(pa.table({"unused": [0] * rows, "pair_id": map(str, range(rows))}), path)
    batches = list(read_batches(path, SCHEMA))
    assert [batch.num_rows for batch in batches] == [ROWS_AT_ONCE, 3]
    assert batches[1].to_pylist() == [{"pair_id": str(ROWS_AT_ONCE + n)} for n in range(3)]
    wide = pa.schema([*SCHEMA, pa.field("fold", pa.int8())])
    with pytest.raises(CkdEhrError, match="columns missing: fold"):
        next(read_batches(path, wide))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CkdEhrError, match=r"pairs\.parquet: not a whole Parquet file"):
        next(read_batches(path, SCHEMA))
    path.unlink()
    with pytest.raises(CkdEhrError, match=r"pairs\.parquet: missing"):
        next(read_batches(path, SCHEMA))


def test_batches_of_any_size_give_the_same_bytes(tmp_path: Path) -> None:
    table = pa.table(
        {"pair_id": [str(n) for n in range(2 * ROW_GROUP + 5)], "unused": [1] * (2 * ROW_GROUP + 5)}
    )
    schema = SCHEMA.with_metadata({"label_names": "[]"})
    for name, size in (("small", 999), ("large", ROW_GROUP * 2)):
        write_batches(table.to_batches(max_chunksize=size), tmp_path / name, schema)
    assert (tmp_path / "small").read_bytes() == (tmp_path / "large").read_bytes()
    read = read_table(tmp_path / "small", SCHEMA)
    assert read["pair_id"].equals(table["pair_id"])
    assert read.schema.metadata == {b"label_names": b"[]"}
    assert pq.read_metadata(tmp_path / "small").num_row_groups == 3


def test_no_batch_at_all_is_an_empty_table(tmp_path: Path) -> None:
    write_batches([], tmp_path / "none.parquet", SCHEMA)
    assert read_table(tmp_path / "none.parquet", SCHEMA).num_rows == 0
