"""OMOP tables in PostgreSQL: read as a stream of Arrow batches, never a table at once.

In: `data.omop.url` and the columns wanted. Out: tables of trimmed text in DuckDB; a digest of each
table, computed on the server. Ignores: columns nobody reads. Passwords come from PGPASSWORD or
~/.pgpass, never from a setting; no error repeats the url. All tables of one extraction are read in
one transaction, so that they belong together even while others write.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import duckdb

from ckd_ehr.contracts.database_url import split_url
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.omop_tables import (
    KEY_TABLE,
    Columns,
    Found,
    choose_schema,
    cleaned,
    identifier,
    missing_of,
)
from ckd_ehr.data.sources.tables import FULL_TEXT

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Connection

CONNECT_SECONDS = 10
# So that a value's text does not depend on how the server is set up.
_SETTINGS = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    "SET LOCAL TIME ZONE 'UTC'",
    "SET LOCAL datestyle = 'ISO, YMD'",
    "SET LOCAL extra_float_digits = 1",
)
# Tables, partitioned and foreign ones, views; also those one may not read, to say so.
_COLUMNS = """
    SELECT n.nspname, c.relname, string_agg(a.attname, chr(10) ORDER BY a.attnum)
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')
        AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
    GROUP BY 1, 2 ORDER BY 1, 2"""
# What a failed connection's message holds → what to tell.
_REFUSALS = (
    (("password", "authentication", "pg_hba", "role "), "the server refused the login; set "
     "PGPASSWORD or ~/.pgpass, and check the user in data.omop.url"),
    (("refused", "no such file", "could not translate", "timeout", "timed out", "unreachable",
      "no route", "name or service"), "no PostgreSQL server answers; start it, or correct host "
     "and port in data.omop.url"),
    (("ssl",), "the server refused the connection without or with SSL; add ?sslmode=require (or "
     "disable) to data.omop.url"),
    (("too many",), "the server has no connection left; try again later"),
)  # fmt: skip


@contextmanager
def open_postgres(url: str, schema: str | None) -> Iterator["Postgres"]:
    """The database behind an url, in one read-only transaction.

    Raises:
        CkdEhrError: the driver is not installed, no server answers, the login or the database is
            refused.
    """
    try:
        from adbc_driver_manager import Error
        from adbc_driver_postgresql import dbapi
    except ImportError:
        raise CkdEhrError(
            "data.omop.url: reading PostgreSQL needs its driver; pip install 'ckd-ehr[postgres]'"
        ) from None
    parts = split_url(url)
    if "connect_timeout" not in parts.query:
        url += f"{'&' if '?' in url else '?'}connect_timeout={CONNECT_SECONDS}"
    database = parts.query.get("dbname", parts.database)
    try:
        connection = dbapi.connect(url)
    except Error as error:
        raise _refused(str(error), _host_of(url), database) from None
    with connection:
        place = Postgres(connection, f"PostgreSQL database '{database}'", schema)
        place.prepare()
        yield place


@dataclass
class Postgres:
    """The CDM tables of one schema."""

    connection: "Connection"
    name: str
    stated_schema: str | None
    _schema: str = ""
    _tables: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Settle how values are written, and look up the tables."""
        for setting in _SETTINGS:
            self._ask(setting)
        rows = [(str(s), str(t), str(c).split("\n")) for s, t, c in self._ask(_COLUMNS)]
        self._schema = choose_schema(
            [schema for schema, table, _ in rows if table.casefold() == KEY_TABLE],
            self.stated_schema,
            place=self.name,
            known=sorted({schema for schema, _, _ in rows}),
        )
        self._tables = {
            table.casefold(): (table, tuple(columns))
            for schema, table, columns in rows
            if schema == self._schema
        }

    def find(self, name: str) -> Found | None:
        """A table or view of the schema."""
        there = self._tables.get(name)
        return there and Found(f"{self._schema}.{there[0]}", there[1])

    def missing(self, name: str) -> CkdEhrError:
        """Names the nearest table."""
        return missing_of([*self._tables], name, f"{self.name} (schema {self._schema})")

    def digests(self, wanted: Mapping[str, Columns]) -> dict[str, str]:
        """Per table, the digest of its columns' names, number of rows, and two sums of row hashes.

        The sums do not depend on the order of rows. They are no proof against forgery, only
        against working with results of older tables.
        """
        digests = {}
        for name, columns in wanted.items():
            read = sorted(actual for actual in columns.values() if actual is not None)
            row = f"ROW({', '.join(map(identifier, read))})::text"
            sums = ", ".join(
                f"coalesce(sum(hashtextextended({row}, {seed})::numeric), 0)::text"
                for seed in (0, 1)
            )
            [counted] = self._ask(f"SELECT count(*)::text, {sums} FROM {self._sql(name)}", name)
            content = "\n".join([*read, *map(str, counted)])
            digests[f"{self._schema}.{name}"] = hashlib.sha256(content.encode()).hexdigest()
        return digests

    def load(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        columns: Columns,
        *,
        into: str,
        query: str,
    ) -> None:
        """Stream the table's columns, cast to text by the server."""
        from adbc_driver_manager import Error

        actual = dict.fromkeys(column for column in columns.values() if column is not None)
        texts = ", ".join(f"{identifier(c)}::text AS {identifier(c)}" for c in actual)
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(f"SELECT {texts} FROM {self._sql(name)}")
                connection.register("incoming", cursor.fetch_record_batch())
                connection.execute(
                    f"CREATE TABLE {into} AS WITH source AS (SELECT {cleaned(columns)} "
                    f"FROM incoming) {query}"
                )
                connection.unregister("incoming")
        except Error as error:
            raise self._failed(str(error), name) from None
        except (duckdb.InvalidInputException, duckdb.IOException) as error:
            if FULL_TEXT in str(error):
                raise
            raise self._failed("", name) from None

    def _sql(self, name: str) -> str:
        return f"{identifier(self._schema)}.{identifier(self._tables[name][0])}"

    def _ask(self, query: str, name: str | None = None) -> list[tuple[object, ...]]:
        from adbc_driver_manager import Error

        try:
            with self.connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall() if cursor.description else []
        except Error as error:
            raise self._failed(str(error), name) from None

    def _failed(self, text: str, name: str | None) -> CkdEhrError:
        what = f"{self.name}: {self._schema}.{name}" if name else self.name
        if "permission denied" in text:
            return CkdEhrError(
                f"{what}: no permission to read; have the owner GRANT USAGE ON SCHEMA and GRANT "
                "SELECT ON the tables to the user of data.omop.url"
            )
        return CkdEhrError(f"{what}: reading broke off; look into the server's log and run again")


def _refused(text: str, host: str, database: str) -> CkdEhrError:
    folded = text.casefold()
    if "database" in folded and "does not exist" in folded:
        return CkdEhrError(
            f"PostgreSQL at {host}: no database '{database}'; correct its name in data.omop.url"
        )
    for words, told in _REFUSALS:
        if any(word in folded for word in words):
            return CkdEhrError(f"PostgreSQL at {host}: {told}")
    return CkdEhrError(
        f"PostgreSQL at {host}: the connection failed; check that psql connects with data.omop.url"
    )


def _host_of(url: str) -> str:
    """Host and port of an url, without user and password.

    >>> _host_of("postgresql://jo@db.example.org:5433/cdm"), _host_of("postgresql:///cdm?host=/tmp")
    ('db.example.org:5433', '/tmp')
    >>> _host_of("postgresql://jo:a/b?c#d@db.example.org/cdm")
    'db.example.org'
    """
    parts = split_url(url)
    return parts.hosts or parts.query.get("host") or "the local socket"
