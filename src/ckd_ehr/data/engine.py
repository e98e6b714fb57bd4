"""Where the cohort's expressions are computed: DuckDB in this process, or Spark.

In: `engine` settings and a scratch folder. Out: an `Engine`: Ibis tables from files, kept
intermediate tables, results as Arrow tables or batches. Ignores: what is computed. Results
never pass through pandas, whose nanoseconds end in the year 2262.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from ibis.backends import BaseBackend
from ibis.backends.duckdb import Backend as DuckDb

from ckd_ehr.contracts.config import EngineConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.tables import file_literal, quoted

SPARK_REMEDY = (
    "install Java 17 or 21 and `pip install 'ckd-ehr[spark]'`, or set engine.backend=duckdb"
)
BATCH_ROWS = 8_192
# UTC, so that times without a zone stay as they are; microseconds, as MEDS has them.
SPARK_PROPERTIES = {
    "spark.master": "local[*]",
    "spark.driver.host": "localhost",
    "spark.driver.memory": "2g",
    "spark.app.name": "ckd-ehr",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_NTZ",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.shuffle.partitions": "4",
    "spark.log.level": "ERROR",
}


class Engine(Protocol):
    """What the cohort needs of a place that computes; any Ibis backend can be dressed as one."""

    def read(self, files: Sequence[Path]) -> ir.Table:
        """Parquet files of one schema as one table."""
        ...

    def upload(self, table: pa.Table) -> ir.Table:
        """A small Arrow table (code lists, splits of a file)."""
        ...

    def keep(self, expression: ir.Table) -> ir.Table:
        """Compute once, to be used several times."""
        ...

    def batches(self, expression: ir.Table) -> Iterator[pa.RecordBatch]:
        """Compute batch by batch, in the expression's order."""
        ...

    def fetch(self, expression: ir.Table) -> pa.Table:
        """Compute into memory."""
        ...


@contextmanager
def open_engine(settings: EngineConfig, scratch: Path) -> Iterator[Engine]:
    """The engine of the settings; its scratch files are gone at the end.

    Raises:
        CkdEhrError: Spark is asked for and cannot start.
    """
    folder = scratch / "engine"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        refuse_absent(settings)
        if settings.backend == "spark":
            with _spark_session(settings.spark, folder) as session:
                yield SparkEngine(ibis.pyspark.connect(session), folder)
        else:
            backend = _open_duckdb(settings.memory_limit, folder)
            try:
                yield DuckDbEngine(backend, folder)
            finally:
                backend.disconnect()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class DuckDbEngine:
    """DuckDB in this process; beyond its memory limit it spills into the scratch folder."""

    backend: DuckDb
    folder: Path

    def read(self, files: Sequence[Path]) -> ir.Table:
        """Parquet files of one schema as one table."""
        # DuckDB would take `*`, `?` and `[` in a path for patterns.
        listed = ", ".join(map(file_literal, files))
        name = ibis.util.gen_name("files")
        self.backend.raw_sql(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{listed}])")
        return self.backend.table(name)

    def upload(self, table: pa.Table) -> ir.Table:
        """A small Arrow table."""
        return self.backend.create_table(ibis.util.gen_name("uploaded"), table)

    def keep(self, expression: ir.Table) -> ir.Table:
        """Compute into a table that spills like any other."""
        return self.backend.create_table(ibis.util.gen_name("kept"), expression)

    def batches(self, expression: ir.Table) -> Iterator[pa.RecordBatch]:
        """Compute batch by batch."""
        yield from self._relation(expression).to_arrow_reader(BATCH_ROWS)

    def fetch(self, expression: ir.Table) -> pa.Table:
        """Compute into memory."""
        return self._relation(expression).to_arrow_table()

    def _relation(self, expression: ir.Table) -> duckdb.DuckDBPyRelation:
        # Not by Ibis' own way to Arrow, which calls what DuckDB 2 no longer has.
        return self.backend.con.sql(self.backend.compile(expression))


@dataclass
class SparkEngine:
    """A Spark session; tables travel as Parquet files in the scratch folder."""

    backend: BaseBackend
    folder: Path
    _files: int = field(default=0)

    def read(self, files: Sequence[Path]) -> ir.Table:
        """Parquet files of one schema as one table."""
        tables = [self.backend.read_parquet(file.absolute().as_uri()) for file in files]
        return ibis.union(*tables) if len(tables) > 1 else tables[0]

    def upload(self, table: pa.Table) -> ir.Table:
        """A small Arrow table."""
        file = self._next()
        pq.write_table(table, file)
        return self.read([file])

    def keep(self, expression: ir.Table) -> ir.Table:
        """Compute into Parquet files."""
        return self.read([self._compute(expression)])

    def batches(self, expression: ir.Table) -> Iterator[pa.RecordBatch]:
        """Compute into part files, which Spark numbers in the rows' order, and read them."""
        for part in sorted(self._compute(expression).glob("part-*.parquet")):
            yield from pq.ParquetFile(part).iter_batches(BATCH_ROWS)

    def fetch(self, expression: ir.Table) -> pa.Table:
        """Compute into memory."""
        parts = sorted(self._compute(expression).glob("part-*.parquet"))
        return ds.dataset(parts).to_table()

    def _compute(self, expression: ir.Table) -> Path:
        folder = self._next()
        self.backend.to_parquet(expression, folder.absolute().as_uri())
        return folder

    def _next(self) -> Path:
        self._files += 1
        return self.folder / f"{self._files:04d}.parquet"


def _open_duckdb(memory_limit: str, folder: Path) -> DuckDb:
    backend = ibis.duckdb.connect()
    for setting in (
        f"temp_directory = {quoted(str(folder / 'spill'))}",
        f"memory_limit = {quoted(memory_limit)}",
        "preserve_insertion_order = false",
        f"enable_progress_bar = {sys.stdout.isatty()}",
        # Ibis 12 writes lambdas with an arrow, which DuckDB 2 reads only when told to.
        "lambda_syntax = 'ENABLE_SINGLE_ARROW'",
    ):
        backend.raw_sql(f"SET {setting}")
    return backend


def refuse_absent(settings: EngineConfig) -> None:
    """An error for an engine that is not installed here; looks, and starts nothing."""
    if settings.backend != "spark":
        return
    if importlib.util.find_spec("pyspark") is None:
        raise CkdEhrError(f"engine.backend=spark: pyspark is not installed; {SPARK_REMEDY}")
    if "JAVA_HOME" not in os.environ and shutil.which("java") is None:
        raise CkdEhrError(f"engine.backend=spark: no Java was found; {SPARK_REMEDY}")


@contextmanager
def _spark_session(properties: Mapping[str, str], folder: Path) -> "Iterator[object]":
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    given = {"spark.local.dir": str(folder.absolute()), **SPARK_PROPERTIES, **properties}
    for key, value in given.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except Exception as error:
        raise CkdEhrError(
            f"engine.backend=spark: Spark did not start ({type(error).__name__}); {SPARK_REMEDY}"
        ) from None
    try:
        yield session
    finally:
        session.stop()
