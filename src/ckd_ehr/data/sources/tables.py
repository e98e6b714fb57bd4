"""A source's CSV or Parquet tables as DuckDB tables of trimmed text, or one clear error.

In: a folder and the table and column names wanted. Out: tables in a DuckDB connection, every
column text. Ignores: what the columns mean. No error carries a cell's content: where a value must
be shown, its shape is (digits as 9, letters as a).
"""

import contextlib
import csv
import difflib
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import sha256_of

EXTENSIONS = (".csv", ".csv.gz", ".parquet")
MEMORY_LIMIT = "1GB"
COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_ ]*")
NUMBER = re.compile(r"[-+]?[0-9.]+")
NUMBER_IDS = "MEDS needs 64-bit integer ids: number them first"
FULL_TEXT = "No space left"
# A cast alone would let words pass behind a time, 'infinity', and years of five digits.
TIME = (
    r"\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?"
    r"(?: *(?:Z|z|UTC|GMT|[+-](?:0\d|1[0-5])(?::?[0-5]\d)?))?)?"
)


@dataclass(frozen=True)
class SourceTable:
    """A file, how many columns it has, and where each wanted one stands (None: absent)."""

    path: Path
    positions: Mapping[str, int | None]
    width: int


def connect(folder: Path, memory_limit: str = MEMORY_LIMIT) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that spills into `folder/work` beyond its memory limit."""
    connection = duckdb.connect()
    spill = folder / "work" / "spill"
    spill.parent.mkdir(parents=True, exist_ok=True)
    connection.execute(f"SET temp_directory = {quoted(str(spill))}")
    connection.execute(f"SET memory_limit = {quoted(memory_limit)}")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute(f"SET enable_progress_bar = {sys.stdout.isatty()}")
    return connection


def quoted(text: str) -> str:
    """A SQL string literal.

    >>> quoted("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def file_literal(path: Path) -> str:
    """A file's path in SQL; DuckDB would take `*`, `?` and `[` in it for patterns.

    >>> file_literal(Path("runs/a[1]/x.csv"))
    "'runs/a[[]1]/x.csv'"
    """
    return quoted(re.sub(r"([*?\[])", r"[\1]", str(path)))


def find_table(root: Path, name: str) -> Path | None:
    """The file of a table (`EXTENSIONS`), upper or lower case; None where absent."""
    if root.is_file():
        raise CkdEhrError(f"{root}: is a file; give its folder as data.root=PATH")
    if not root.is_dir():
        raise CkdEhrError(f"{root}: no such folder; give the tables' folder as data.root=PATH")
    wanted = {f"{name}{extension}".casefold() for extension in EXTENSIONS}
    found = sorted(path for path in root.iterdir() if path.name.casefold() in wanted)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CkdEhrError(f"{root}: table {name} stands in several files ({names}); keep one")
    return found[0] if found else None


def require_table(root: Path, name: str) -> Path:
    """As `find_table`; an absent table is an error."""
    path = find_table(root, name)
    if path is None:
        present = sorted(path.name for path in root.iterdir() if path.is_file())
        near = difflib.get_close_matches(f"{name}.csv", present, n=1, cutoff=0.5)
        hint = f" (nearest file: {near[0]})" if near else ""
        raise CkdEhrError(
            f"{root}: table {name} is missing: no {name}.csv, .csv.gz or .parquet{hint}; "
            "put it there, or point data.root at the folder that has it"
        )
    return path


def describe_table(
    path: Path,
    name: str,
    *,
    required: Sequence[str],
    renames: Mapping[str, Mapping[str, str]],
    optional: Sequence[str] = (),
) -> SourceTable:
    """Match the wanted columns against the file's header, without regard to case."""
    header = read_header(path)
    columns = [column.strip().casefold() for column in header]
    place = {column: index for index, column in enumerate(columns)}
    given = _renames_of(name, renames)
    positions = {}
    for wanted in (*required, *optional):
        actual = given.get(wanted.casefold(), wanted)
        positions[wanted] = place.get(actual.casefold())
        if columns.count(actual.casefold()) > 1:
            raise CkdEhrError(
                f"{path.name}: column '{actual}' stands twice in the header; keep one of them, or "
                f"rename both and map the right one with data.columns.{name}.{wanted}=NAME"
            )
        if positions[wanted] is None and (wanted in required or wanted.casefold() in given):
            if not looks_like_header(header):
                raise CkdEhrError(
                    f"{path.name}: column '{actual}' is missing: the first line does not look "
                    "like a header; export the table with its header row"
                )
            raise CkdEhrError(
                f"{path.name}: column '{actual}' is missing (found: {', '.join(header)}); "
                f"map it with data.columns.{name}.{wanted}=NAME"
            )
    return SourceTable(path=path, positions=positions, width=len(header))


def lacking_columns(
    path: Path, name: str, required: Sequence[str], renames: Mapping[str, Mapping[str, str]]
) -> tuple[str, ...]:
    """The required columns, under the names that the file should have, which it lacks."""
    present = {column.strip().casefold() for column in read_header(path)}
    given = _renames_of(name, renames)
    names = [given.get(wanted.casefold(), wanted) for wanted in required]
    return tuple(actual for actual in names if actual.casefold() not in present)


def check_renames(
    renames: Mapping[str, Mapping[str, str]], known: Mapping[str, Sequence[str]]
) -> None:
    """Refuse `data.columns` that name no table or column which the source reads."""
    columns_of = {table.casefold(): columns for table, columns in known.items()}
    for table, columns in renames.items():
        if table.casefold() not in columns_of:
            raise CkdEhrError(f"data.columns.{table}: no such table; {_nearest(table, [*known])}")
        wanted = {column.casefold() for column in columns_of[table.casefold()]}
        for column in columns:
            if column.casefold() not in wanted:
                near = _nearest(column, columns_of[table.casefold()])
                raise CkdEhrError(f"data.columns.{table}.{column}: no column in use; {near}")


def read_header(path: Path) -> tuple[str, ...]:
    """The column names of a Parquet file, or in a CSV file's first line."""
    if is_parquet(path):
        try:
            return tuple(pq.read_schema(path).names)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            raise explain_unreadable(path) from None
    try:
        with open_bytes(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            header = next(csv.reader(text), None)
    except (UnicodeDecodeError, OSError, EOFError, zlib.error):
        raise explain_unreadable(path) from None
    if not header:
        raise CkdEhrError(f"{path.name}: the file is empty; export the table again with its header")
    return tuple(header)


def looks_like_header(cells: Sequence[str]) -> bool:
    """Whether a first line holds names of columns rather than a patient's row.

    >>> looks_like_header(["row_id", "subject_id", "glyburide-metformin"])
    True
    >>> looks_like_header(["10006", "Smith", "F", "WHITE"])
    False
    """
    written = [cell.strip() for cell in cells if cell.strip()]
    names = sum(bool(COLUMN_NAME.fullmatch(cell)) for cell in written)
    return 2 * names > len(written) and not any(NUMBER.fullmatch(cell) for cell in written)


def load(
    connection: duckdb.DuckDBPyConnection,
    table: SourceTable,
    *,
    into: str,
    query: str = "SELECT * FROM source",
    missing: str = "",
) -> None:
    """Run `query` over the file's rows (as `source`; null where blank or `missing`)."""
    cleaned = ", ".join(
        f'CAST(NULL AS VARCHAR) AS "{wanted}"'
        if index is None
        else f"nullif(nullif(trim(c{index}), ''), {quoted(missing)}) AS \"{wanted}\""
        for wanted, index in table.positions.items()
    )
    with readable(table.path):
        connection.execute(
            f"CREATE TABLE {into} AS WITH source AS (SELECT {cleaned} FROM {_rows_of(table)}) "
            f"{query}"
        )


def _rows_of(table: SourceTable) -> str:
    """A file's rows in SQL, its columns as text under the names c0, c1, …"""
    file = file_literal(table.path)
    if is_parquet(table.path):
        names = ", ".join(f"c{index}" for index in range(table.width))
        return f"(SELECT CAST(COLUMNS(*) AS VARCHAR) FROM read_parquet({file}) AS t({names}))"
    columns = ", ".join(f"'c{index}': 'VARCHAR'" for index in range(table.width))
    compression = "gzip" if _is_gzip(table.path) else "none"
    return (
        f"read_csv({file}, auto_detect = false, header = true, delim = ',', quote = '\"', "
        f"escape = '\"', compression = '{compression}', columns = {{{columns}}})"
    )


def file_digests(files: Sequence[Path], root: Path) -> dict[str, str]:
    """SHA-256 of every file, keyed by its place under `root`."""
    folder = root if root.is_dir() else root.parent
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a failed read into an error that names the file and never quotes its rows.

    Damaged Parquet fails in as many ways as DuckDB has errors, a plain RuntimeError among them. A
    lack of memory or of disk, and an interruption, are no fault of the file: those errors pass.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except (duckdb.Error, RuntimeError) as error:
        if FULL_TEXT in str(error):
            raise
        raise explain_unreadable(path) from None


def explain_unreadable(path: Path) -> CkdEhrError:
    """Why a file cannot be read: looked up only after a read has failed."""
    if is_parquet(path):
        return CkdEhrError(f"{path.name}: not a whole Parquet file; copy or export it again")
    try:
        with open_bytes(path) as file:
            reader = io.TextIOWrapper(file, "utf-8", newline="")
            while reader.read(1 << 20):
                pass
    except UnicodeDecodeError as error:
        return CkdEhrError(
            f"{path.name}: not UTF-8 (byte 0x{error.object[error.start]:02x}); "
            f"convert it: iconv -f LATIN1 -t UTF-8"
        )
    except EOFError:
        return CkdEhrError(f"{path.name}: the gzip file is cut off; copy or download it again")
    except (gzip.BadGzipFile, zlib.error):
        return CkdEhrError(f"{path.name}: not an intact gzip file; copy or download it again")
    except OSError as error:
        return CkdEhrError(f"{path.name}: cannot be read ({error.strerror}); check it")
    return CkdEhrError(
        f"{path.name}: rows of unequal length or broken quotes; export it again as CSV with a "
        "header, commas, and double quotes around text that holds commas"
    )


def require_whole_numbers(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    column: str,
    path: Path,
    *,
    remedy: str = NUMBER_IDS,
) -> None:
    """Refuse what is no 64-bit integer (nulls pass); `142345.0` becomes `142345`."""
    digits = f"regexp_extract({column}, '^([0-9]+)([.]0*)?$', 1)"
    _refuse(
        connection, table, column, path,
        holds=f"try_cast({digits} AS BIGINT) IS NOT NULL",
        problem=f"no whole number; {remedy}",
    )  # fmt: skip
    connection.execute(f"UPDATE {table} SET {column} = {digits} WHERE contains({column}, '.')")


def require_times(
    connection: duckdb.DuckDBPyConnection, table: str, column: str, path: Path
) -> None:
    """Refuse text that is no time (nulls pass); offsets from UTC become `Z` or `+01:00`, no blank.

    A date alone passes; so does a time without seconds. Years are 1 to 9999.
    """
    _refuse(
        connection, table, column, path,
        holds=_is_time_sql(column),
        problem="no time; write times as 2164-10-23 21:09:00",
    )  # fmt: skip
    zulu = f"regexp_replace({column}, '(z|UTC|GMT)$', 'Z')"
    connection.execute(
        f"UPDATE {table} SET {column} = regexp_replace({zulu}, ' +(Z|[+-][0-9:]+)$', '\\1') "
        f"WHERE right({column}, 1) IN ('z', 'C', 'T') OR contains(substr({column}, 17), ' ')"
    )


def wall_time_sql(column: str) -> str:
    """The time that a text shows, to the second and without its offset, in SQL; null if none."""
    return f"if({_is_time_sql(column)}, {_wall_sql(column)}, NULL)"


def _is_time_sql(column: str) -> str:
    """Whether a text is a time or a date, in SQL."""
    return (
        f"regexp_full_match({column}, '{TIME}') AND {_wall_sql(column)} "
        "BETWEEN TIMESTAMP '0001-01-01' AND TIMESTAMP '9999-12-31 23:59:59'"
    )


def _wall_sql(column: str) -> str:
    return f"try_cast(left({column}, if(substr({column}, 17, 1) = ':', 19, 16)) AS TIMESTAMP)"


def count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The single number a query gives."""
    [(number,)] = connection.execute(query).fetchall()
    return int(number or 0)


def _refuse(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    column: str,
    path: Path,
    *,
    holds: str,
    problem: str,
) -> None:
    shape = f"regexp_replace(regexp_replace({column}, '\\p{{N}}', '9', 'g'), '\\p{{L}}', 'a', 'g')"
    [(wrong, example)] = connection.execute(
        f"SELECT count(*), min(left({shape}, 24)) FROM {table} "
        f"WHERE {column} IS NOT NULL AND ({holds}) IS NOT TRUE"
    ).fetchall()
    if wrong:
        raise CkdEhrError(
            f"{path.name}: column '{column}': {wrong} values of the form '{example}' are {problem}"
        )


def _renames_of(name: str, renames: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    for table, columns in renames.items():
        if table.casefold() == name.casefold():
            return {wanted.casefold(): actual for wanted, actual in columns.items()}
    return {}


def _nearest(name: str, known: Sequence[str]) -> str:
    folded = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(name.casefold(), [*folded], n=1, cutoff=0.0)
    return f"did you mean '{folded[near[0]]}'?"


def is_parquet(path: Path) -> bool:
    """Whether a file's name says that it is Parquet."""
    return path.name.casefold().endswith(".parquet")


def _is_gzip(path: Path) -> bool:
    return path.name.casefold().endswith(".gz")


def open_bytes(path: Path) -> BinaryIO:
    """A file's bytes, unzipped where its name ends in .gz."""
    if _is_gzip(path):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")
