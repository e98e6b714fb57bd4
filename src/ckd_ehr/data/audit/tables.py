"""The cohort's files as DuckDB tables for the audit, within a bounded memory.

In: a folder with visits.parquet and pairs.parquet. Out: a connection with the views `visits` and
`pairs` and the narrow tables `stays`, `histories`, `items` and `codes`. Ignores: how the files
were made.

`items` holds one row per stay and coded item, as a row number and a 64-bit key: a hospital has
millions. Two of a million codes have the same key with a probability of 3e-8.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.tables import file_literal, quoted

MEMORY_LIMIT = "1GB"
MOST_THREADS = 4  # each needs a share of the memory
ITEM_KEY = "hash(kind, system, code)"

_TABLES = f"""
    CREATE TABLE stays AS
        SELECT file_row_number AS visit_no, visit_id, subject_id, admit_time, discharge_time, died,
            len(diagnoses) AS coded
        FROM visits;
    CREATE TABLE histories AS
        SELECT pair_no, pair_id, subject_id, prediction_time, unnest(history) AS visit_id,
            unnest(range(len(history))) AS visit_index, len(history) AS visits
        FROM pairs;
    CREATE VIEW coded AS
        SELECT visit_no, 'diagnosis' AS kind, unnest(diagnoses, recursive := true)
            FROM (SELECT file_row_number AS visit_no, diagnoses FROM visits)
        UNION ALL SELECT visit_no, 'medication', unnest(medications, recursive := true)
            FROM (SELECT file_row_number AS visit_no, medications FROM visits)
        UNION ALL SELECT visit_no, 'procedure', unnest(procedures, recursive := true)
            FROM (SELECT file_row_number AS visit_no, procedures FROM visits);
    CREATE TABLE items AS SELECT DISTINCT visit_no, {ITEM_KEY} AS item FROM coded;
    CREATE TABLE codes AS
        SELECT {ITEM_KEY} AS item, any_value(kind) AS kind, any_value(system) AS system,
            any_value(code) AS code, any_value(title) AS title
        FROM coded GROUP BY ALL;"""


@contextmanager
def open_cohort(
    cohort: Path, *, memory_limit: str = MEMORY_LIMIT
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection on the cohort's tables; what does not fit in memory spills beside them.

    Raises:
        CkdEhrError: a file is missing.
    """
    # Hidden, and gone at the end: a run's folder is where its user has room for its data.
    with (
        tempfile.TemporaryDirectory(prefix=".audit.", dir=cohort.parent) as spill,
        duckdb.connect() as connection,
    ):
        connection.execute(f"SET temp_directory = {quoted(spill)}")
        connection.execute(f"SET memory_limit = {quoted(memory_limit)}")
        connection.execute(f"SET threads = {min(MOST_THREADS, os.cpu_count() or 1)}")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(f"CREATE VIEW visits AS {scan([cohort / 'visits.parquet'])}")
        connection.execute(
            "CREATE VIEW pairs AS SELECT * EXCLUDE (file_row_number), file_row_number AS pair_no "
            f"FROM ({scan([cohort / 'pairs.parquet'])})"
        )
        connection.execute(_TABLES)
        yield connection


def scan(files: list[Path]) -> str:
    """A query that reads Parquet files, with their row numbers."""
    for path in files:
        if not path.is_file():
            raise CkdEhrError(f"{path}: missing; run the stage that writes it")
    listed = ", ".join(file_literal(path) for path in files)
    return f"SELECT * FROM read_parquet([{listed}], file_row_number = true)"
