"""Events in DuckDB → a MEDS 0.4 dataset on disk, validated by the `meds` schemas.

In: a connection with the tables that `open_events` makes, filled. Out: `data/*.parquet`,
`metadata/codes.parquet`, `metadata/dataset.json`, `rows.json`; equal events give equal bytes.
Ignores: what the codes mean. A patient's events are contiguous, in order of time, in one file.
"""

from pathlib import Path

import duckdb
import meds
import pyarrow as pa
import pyarrow.parquet as pq

from ckd_ehr import __version__
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, write_json
from ckd_ehr.contracts.records import EVENTS
from ckd_ehr.data.sources.extraction import Extraction
from ckd_ehr.data.sources.tables import count

SHARD_EVENTS = 1_000_000
MEDS_VERSION = "0.4"
# An extra key of dataset.json, where MEDS allows any: true if times only give the order of visits.
SYNTHETIC_TIMES = "synthetic_times"
# Another: true if each patient's times were moved by a distance of their own.
SHIFTED_TIMES = "shifted_times"


def open_events(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the empty tables `events` and `titles` (code, description)."""
    connection.execute(
        "CREATE TABLE events (subject_id BIGINT NOT NULL, time TIMESTAMP, code VARCHAR NOT NULL, "
        "numeric_value FLOAT, visit_id VARCHAR)"
    )
    connection.execute("CREATE TABLE titles (code VARCHAR, description VARCHAR)")


def write_dataset(
    connection: duckdb.DuckDBPyConnection,
    extraction: Extraction,
    *,
    name: str,
    synthetic_times: bool = False,
    shifted_times: bool = False,
) -> None:
    """Write `events` and `titles` as a MEDS dataset, and `rows.json` beside it.

    Args:
        name: the dataset's name in its metadata.
        synthetic_times: whether times are made up to give the order of visits, so that no
            distance between them means anything.
        shifted_times: whether each patient's times were moved by a distance of their own, so that
            the order of two patients means nothing.
    """
    if not count(connection, "SELECT count(*) FROM events"):
        raise CkdEhrError(f"{name}: the source's tables hold no usable row; check data.root")
    folder = extraction.folder
    extraction.ledger.write(folder)
    _write_shards(connection, folder)
    codes = connection.sql(
        "SELECT code, min(description) AS description, CAST(NULL AS VARCHAR[]) AS parent_codes "
        "FROM (SELECT DISTINCT code FROM events) LEFT JOIN titles USING (code) "
        "GROUP BY code ORDER BY code"
    ).to_arrow_table()
    aligned = meds.CodeMetadataSchema.align(codes)
    path = folder / meds.code_metadata_filepath
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(aligned, path, compression="zstd")
    facts: dict[str, object] = {
        "dataset_name": name,
        "etl_name": "ckd-ehr",
        "etl_version": __version__,
        "meds_version": MEDS_VERSION,
        "raw_source_id_columns": ["visit_id"],
        SYNTHETIC_TIMES: synthetic_times,
        SHIFTED_TIMES: shifted_times,
    }
    meds.DatasetMetadataSchema.validate(facts)
    write_json(folder / meds.dataset_metadata_filepath, facts)


def has_synthetic_times(folder: Path) -> bool:
    """Whether a dataset says that its times only give the order of visits."""
    return read_json(folder / meds.dataset_metadata_filepath).get(SYNTHETIC_TIMES) is True


def has_shifted_times(folder: Path) -> bool:
    """Whether a dataset says that each patient's times were moved by a distance of their own."""
    return read_json(folder / meds.dataset_metadata_filepath).get(SHIFTED_TIMES) is True


def event_files(folder: Path) -> list[Path]:
    """The dataset's event files, in order of their names."""
    return sorted((folder / meds.data_subdirectory).rglob("*.parquet"))


def _write_shards(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    connection.execute(
        "CREATE TEMP TABLE shards AS SELECT subject_id, CAST("
        f"(sum(n) OVER (ORDER BY subject_id) - n) // {SHARD_EVENTS} AS INTEGER) AS shard "
        "FROM (SELECT subject_id, count(*) AS n FROM events GROUP BY subject_id)"
    )
    data = folder / meds.data_subdirectory
    data.mkdir(parents=True, exist_ok=True)
    shards = connection.execute("SELECT DISTINCT shard FROM shards ORDER BY shard").fetchall()
    for number, (shard,) in enumerate(shards):
        table = connection.sql(
            f"SELECT {', '.join(EVENTS.names)} FROM events JOIN shards USING (subject_id) "
            f"WHERE shard = {shard} ORDER BY subject_id, time NULLS FIRST, visit_id NULLS FIRST, "
            "code, numeric_value NULLS FIRST"
        ).to_arrow_table()
        pq.write_table(_aligned(table), data / f"{number:04d}.parquet", compression="zstd")


def _aligned(table: pa.Table) -> pa.Table:
    aligned = meds.DataSchema.align(table)
    return aligned.select(EVENTS.names).cast(EVENTS)
