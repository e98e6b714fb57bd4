"""Files as the stages write and read them: JSON, Parquet in a fixed schema, hashes.

In: values, tables, schemas. Out: whole files in place of older ones, equal bytes for equal rows.
Ignores: what is in them.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ckd_ehr.contracts.errors import CkdEhrError

ROW_GROUP = 16_384
ROWS_AT_ONCE = 1024


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        respect_umask(Path(temporary))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def respect_umask(path: Path) -> None:
    """Give a temporary file (readable by its owner only) the mode a plain new file would have."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; a broken file is an error that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CkdEhrError(f"{path}: not valid JSON ({error}); delete it and run again") from None
    if not isinstance(value, dict):
        raise CkdEhrError(f"{path}: expected a JSON object")
    return value


def write_table(table: pa.Table, path: Path, schema: pa.Schema) -> None:
    """Write a table as Parquet in exactly this schema (metadata included)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = table.select(schema.names).cast(schema.remove_metadata())
    pq.write_table(plain.replace_schema_metadata(schema.metadata), path, compression="zstd")


def write_batches(batches: Iterable[pa.RecordBatch], path: Path, schema: pa.Schema) -> None:
    """Write batches as one Parquet file in this schema; equal rows give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = schema.remove_metadata()
    waiting: list[pa.Table] = []
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            waiting.append(pa.Table.from_batches([batch]).select(schema.names).cast(plain))
            rows += batch.num_rows
            while rows >= ROW_GROUP:
                table = pa.concat_tables(waiting)
                writer.write_table(_under(schema, table.slice(0, ROW_GROUP)), ROW_GROUP)
                waiting, rows = [table.slice(ROW_GROUP)], rows - ROW_GROUP
        if rows:
            writer.write_table(_under(schema, pa.concat_tables(waiting)), ROW_GROUP)


def _under(schema: pa.Schema, table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(schema.metadata)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a Parquet table and check its columns against the contract."""
    with _named(path):
        table = pq.read_table(path)
    _check_columns(path, table.schema, schema)
    plain = table.select(schema.names).cast(schema.remove_metadata())
    return plain.replace_schema_metadata(table.schema.metadata)


def read_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A table's rows a few at a time, of the columns in the schema: for tables beyond memory."""
    with _named(path), pq.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow, schema)
        yield from file.iter_batches(ROWS_AT_ONCE, columns=schema.names)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A table that cannot be read is an error that names it."""
    try:
        yield
    except FileNotFoundError:
        raise CkdEhrError(f"{path}: missing; run the stage that writes it") from None
    except (pa.ArrowInvalid, OSError):
        raise CkdEhrError(f"{path}: not a whole Parquet file; rerun its stage") from None


def _check_columns(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    missing = [name for name in wanted.names if name not in found.names]
    if missing:
        raise CkdEhrError(f"{path}: columns missing: {', '.join(missing)}")
