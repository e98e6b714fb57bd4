"""The places of OMOP tables that are files: a folder of CSV or Parquet files, or a DuckDB file.

In: `data.root`. Out: a `Place`, as omop_tables.py has it; omop_postgres.py has the one on a server.
Ignores: which tables are wanted. A table of a folder is one file, or a folder of part files as
Spark writes them. A file whose header has tabs and no comma is read with tabs and without quotes.
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.omop_tables import (
    KEY_TABLE,
    Columns,
    Found,
    Place,
    choose_schema,
    cleaned,
    identifier,
    missing_of,
)
from ckd_ehr.data.sources.tables import (
    EXTENSIONS,
    FULL_TEXT,
    SourceTable,
    file_digests,
    file_literal,
    load,
    quoted,
    read_header,
    readable,
)

DUCKDB_MAGIC = b"DUCK"


@contextmanager
def open_place(settings: DataConfig) -> Iterator[Place]:
    """The place that the settings name.

    Raises:
        CkdEhrError: none or two are named, or it cannot be reached.
    """
    url, schema = settings.omop.url, settings.omop.table_schema
    if (settings.root is None) == (url is None):
        raise CkdEhrError(
            "source omop: give either data.root=PATH (a folder of CSV or Parquet files, or a "
            "DuckDB file) or data.omop.url=postgresql://USER@HOST/DATABASE"
        )
    if url is not None:
        from ckd_ehr.data.sources.omop_postgres import open_postgres

        with open_postgres(url, schema) as place:
            yield place
    elif settings.root is not None:
        yield (
            DuckDbFile(settings.root, schema) if settings.root.is_file() else Folder(settings.root)
        )


@dataclass
class Folder:
    """A folder of `NAME.csv`, `.csv.gz` or `.parquet`, or of folders NAME with such files."""

    root: Path
    _found: dict[str, tuple[Found, list[Path]] | None] = field(default_factory=dict)

    def find(self, name: str) -> Found | None:
        """The table's file or files; headers of part files must be alike."""
        if name not in self._found:
            self._found[name] = self._look(name)
        there = self._found[name]
        return there and there[0]

    def missing(self, name: str) -> CkdEhrError:
        """Names the nearest file."""
        present = sorted(path.name for path in self.root.iterdir())
        near = difflib.get_close_matches(f"{name}.csv", present, n=1, cutoff=0.5)
        hint = f" (nearest: {near[0]})" if near else ""
        return CkdEhrError(
            f"{self.root}: table {name} is missing: no {name}.csv, {name}.csv.gz, {name}.parquet "
            f"or folder {name}{hint}; put it there, or point data.root at the folder that has it"
        )

    def digests(self, wanted: Mapping[str, Columns]) -> dict[str, str]:
        """SHA-256 of every file."""
        files = [path for name in wanted for path in self._files(name)]
        return file_digests(files, self.root)

    def load(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        columns: Columns,
        *,
        into: str,
        query: str,
    ) -> None:
        """One file after another."""
        for number, path in enumerate(self._files(name)):
            header = _header_of(path)
            positions = {
                wanted: None if actual is None else header.index(actual)
                for wanted, actual in columns.items()
            }
            table = SourceTable(path=path, positions=positions, width=len(header))
            part = f"{into}_part" if number else into
            load_file = _load_tabs if _has_tabs(read_header(path)) else load
            load_file(connection, table, into=part, query=query)
            if number:
                connection.execute(f"INSERT INTO {into} BY NAME SELECT * FROM {part}")
                connection.execute(f"DROP TABLE {part}")

    def _files(self, name: str) -> list[Path]:
        there = self._found.get(name)
        return there[1] if there else []

    def _look(self, name: str) -> tuple[Found, list[Path]] | None:
        if not self.root.is_dir():
            raise CkdEhrError(
                f"{self.root}: no such file or folder; give the tables' folder, or a DuckDB file, "
                "as data.root=PATH"
            )
        wanted = {name, *(f"{name}{extension}" for extension in EXTENSIONS)}
        there = sorted(path for path in self.root.iterdir() if path.name.casefold() in wanted)
        if len(there) > 1:
            names = ", ".join(path.name for path in there)
            raise CkdEhrError(
                f"{self.root}: table {name} stands in several files ({names}); keep one"
            )
        if not there:
            return None
        files = _parts(there[0]) if there[0].is_dir() else there
        headers = {_header_of(path) for path in files}
        if len(headers) > 1:
            raise CkdEhrError(
                f"{there[0].name}: its files have different columns; write the table again at once"
            )
        size = sum(path.stat().st_size for path in files)
        return Found(there[0].name, headers.pop(), size), files


def _has_tabs(header: tuple[str, ...]) -> bool:
    """Whether a header that was read with commas is one of tabs alone."""
    return len(header) == 1 and "\t" in header[0]


def _header_of(path: Path) -> tuple[str, ...]:
    header = read_header(path)
    return tuple(header[0].split("\t")) if _has_tabs(header) else header


def _load_tabs(
    connection: duckdb.DuckDBPyConnection, table: SourceTable, *, into: str, query: str
) -> None:
    """As `load`, from columns parted by tabs, where a quote is a sign like any other.

    So come the vocabulary files of Athena, and titles such as `"Blue" baby` in them.
    """
    compression = "gzip" if table.path.name.casefold().endswith(".gz") else "none"
    types = ", ".join(f"'c{index}': 'VARCHAR'" for index in range(table.width))
    places = {
        wanted: None if index is None else f"c{index}" for wanted, index in table.positions.items()
    }
    with readable(table.path):
        connection.execute(
            f"CREATE TABLE {into} AS WITH source AS (SELECT {cleaned(places)} FROM read_csv("
            f"{file_literal(table.path)}, auto_detect = false, header = true, delim = '\t', "
            f"quote = '', escape = '', compression = '{compression}', columns = {{{types}}})) "
            f"{query}"
        )


def _parts(folder: Path) -> list[Path]:
    """The data files of a folder; `_SUCCESS` and checksums are none."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.name.casefold().endswith(EXTENSIONS) and path.name[0] not in "._"
    )
    if not files:
        raise CkdEhrError(
            f"{folder.name}: the folder has no {', '.join(EXTENSIONS)} file; write the table again"
        )
    return files


@dataclass
class DuckDbFile:
    """A DuckDB database, opened to read only."""

    path: Path
    stated_schema: str | None
    _schema: str = ""
    _tables: dict[str, tuple[str, tuple[str, ...]]] | None = None

    def find(self, name: str) -> Found | None:
        """A table or view of the schema."""
        there = self._read().get(name)
        return there and Found(f"{self.path.name}:{there[0]}", there[1])

    def missing(self, name: str) -> CkdEhrError:
        """Names the nearest table."""
        return missing_of([*self._read()], name, f"{self.path.name} (schema {self._schema})")

    def digests(self, wanted: Mapping[str, Columns]) -> dict[str, str]:  # noqa: ARG002
        """SHA-256 of the file."""
        return file_digests([self.path], self.path.parent)

    def load(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        columns: Columns,
        *,
        into: str,
        query: str,
    ) -> None:
        """Attach the file for as long as the table is read."""
        table = f"cdm.{identifier(self._schema)}.{identifier(self._read()[name][0])}"
        try:
            connection.execute(f"ATTACH {quoted(str(self.path))} AS cdm (READ_ONLY)")
            connection.execute(
                f"CREATE TABLE {into} AS WITH source AS (SELECT {cleaned(columns)} FROM {table}) "
                f"{query}"
            )
            connection.execute("DETACH cdm")
        except (duckdb.OutOfMemoryException, duckdb.InterruptException):
            raise
        except duckdb.Error as error:
            if FULL_TEXT in str(error):
                raise
            # Its text may quote a cell.
            raise self._unreadable(str(error), name) from None

    def _read(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        if self._tables is None:
            if self.path.open("rb").read(12)[8:] != DUCKDB_MAGIC:
                raise CkdEhrError(
                    f"{self.path.name}: no DuckDB file; give a folder of CSV or Parquet files, or "
                    "a DuckDB file, as data.root=PATH"
                )
            try:
                with duckdb.connect() as connection:
                    connection.execute(f"ATTACH {quoted(str(self.path))} AS cdm (READ_ONLY)")
                    rows = connection.execute(
                        "SELECT schema_name, table_name, list(column_name ORDER BY column_index) "
                        "FROM duckdb_columns() WHERE database_name = 'cdm' AND NOT internal "
                        "GROUP BY ALL ORDER BY ALL"
                    ).fetchall()
            except duckdb.Error as error:
                raise self._unreadable(str(error)) from None
            having = [schema for schema, table, _ in rows if table.casefold() == KEY_TABLE]
            known = sorted({schema for schema, _, _ in rows})
            place = self.path.name
            self._schema = choose_schema(having, self.stated_schema, place=place, known=known)
            self._tables = {
                table.casefold(): (table, tuple(columns))
                for schema, table, columns in rows
                if schema == self._schema
            }
        return self._tables

    def _unreadable(self, text: str, name: str | None = None) -> CkdEhrError:
        if "set lock" in text:
            return CkdEhrError(
                f"{self.path.name}: another program has the database open for writing; close it"
            )
        if name is not None:
            return CkdEhrError(
                f"{self.path.name}:{name}: the table or view cannot be read; if SELECT * FROM "
                f"{name} fails in DuckDB itself, mend it there: the view's query or the files it "
                "reads, or a damaged database"
            )
        return CkdEhrError(
            f"{self.path.name}: cannot be read as a DuckDB database; copy it again, or write it "
            f"with a version of DuckDB up to {duckdb.__version__}"
        )
