"""What is read of an OMOP database, whatever holds it: the seam between tables and their place.

In: the tables and columns wanted, and a `Place` that has some. Out: which of its columns are meant,
or one clear error. Ignores: what a table means. The places are in omop_places.py (files) and
omop_postgres.py.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import duckdb

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.extraction import TableStatus
from ckd_ehr.data.sources.stay_tables import WantedTable
from ckd_ehr.data.sources.tables import check_renames, looks_like_header

# Wanted column → the name it has; None: absent.
Columns = Mapping[str, str | None]
Renames = Mapping[str, Mapping[str, str]]
# A table every CDM has, by which the schema is found.
KEY_TABLE = "visit_occurrence"


@dataclass(frozen=True)
class OmopTable(WantedTable):
    """As `WantedTable`; of each group in `one_of`, one column at least must be there."""

    one_of: tuple[tuple[str, ...], ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.required, *self.optional, *chain.from_iterable(self.one_of))


@dataclass(frozen=True)
class Found:
    """A table that is there: how errors call it, its columns, its size if files have one."""

    label: str
    header: tuple[str, ...]
    size_bytes: int | None = None


class Place(Protocol):
    """Where the tables are."""

    def find(self, name: str) -> Found | None:
        """A table, whatever the case of its name; None where absent."""
        ...

    def missing(self, name: str) -> CkdEhrError:
        """The error for an absent table."""
        ...

    def digests(self, wanted: Mapping[str, Columns]) -> dict[str, str]:
        """A digest of the content of the wanted tables, named."""
        ...

    def load(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        columns: Columns,
        *,
        into: str,
        query: str,
    ) -> None:
        """Run `query` over the table's rows (as `source`), every column trimmed text."""
        ...


def statuses(place: Place, wanted: Mapping[str, OmopTable], renames: Renames) -> list[TableStatus]:
    """Which tables are there, and which required columns they lack."""
    return [_status(place.find(name), name, table, renames) for name, table in wanted.items()]


def present_columns(
    place: Place, wanted: Mapping[str, OmopTable], renames: Renames
) -> dict[str, Columns]:
    """The columns of every wanted table that is there.

    Raises:
        CkdEhrError: a needed table or column is absent, or `data.columns` names an unknown one.
    """
    check_renames(renames, {name: table.columns for name, table in wanted.items()})
    columns = {name: columns_of(place, name, table, renames) for name, table in wanted.items()}
    return {name: having for name, having in columns.items() if having is not None}


def columns_of(place: Place, name: str, table: OmopTable, renames: Renames) -> Columns | None:
    """Match the wanted columns against a table's own; None where an optional table is absent."""
    found = place.find(name)
    if found is None:
        if table.needed:
            raise place.missing(name)
        return None
    given = _renamed(name, renames)
    actual: dict[str, str | None] = {}
    for wanted in table.columns:
        called = given.get(wanted, wanted)
        named = [
            column for column in found.header if column.strip().casefold() == called.casefold()
        ]
        if len(named) > 1:
            raise CkdEhrError(
                f"{found.label}: column '{called}' stands twice in the header; keep one of them, "
                f"or rename both and map the right one with data.columns.{name}.{wanted}=NAME"
            )
        if not named and wanted in given:
            raise _no_column(found, name, called, wanted)
        actual[wanted] = named[0] if named else None
    for lacking in _lacking(found, table, given):
        raise _no_column(found, name, lacking, lacking)
    return actual


def cleaned(columns: Columns) -> str:
    """The wanted columns in SQL, from columns of the names they have: trimmed text or null."""
    return ", ".join(
        f'CAST(NULL AS VARCHAR) AS "{wanted}"'
        if actual is None
        else f"nullif(trim(CAST({identifier(actual)} AS VARCHAR)), '') AS \"{wanted}\""
        for wanted, actual in columns.items()
    )


def identifier(name: str) -> str:
    """A quoted SQL identifier.

    >>> identifier('a"b')
    '"a""b"'
    """
    return '"' + name.replace('"', '""') + '"'


def choose_schema(
    having: Sequence[str], stated: str | None, *, place: str, known: Sequence[str]
) -> str:
    """The schema of the CDM tables: the stated one, or the only one `having` the key table."""
    if stated is not None:
        for schema in known:
            if schema.casefold() == stated.casefold():
                return schema
        raise CkdEhrError(
            f"{place}: no schema '{stated}' (found: {', '.join(known) or 'none'}); correct "
            "data.omop.table_schema"
        )
    if len(having) != 1:
        several = f"stands in several schemas ({', '.join(having)})" if having else "is missing"
        raise CkdEhrError(
            f"{place}: table {KEY_TABLE} {several}; name the schema of the CDM tables with "
            "data.omop.table_schema=NAME"
        )
    return having[0]


def missing_of(tables: Sequence[str], name: str, place: str) -> CkdEhrError:
    """The error for a table that a database lacks."""
    near = difflib.get_close_matches(name, [table.casefold() for table in tables], n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]})" if near else ""
    return CkdEhrError(
        f"{place}: table {name} is missing{hint}; name the schema that has it with "
        "data.omop.table_schema=NAME, or create it there (an empty one will do)"
    )


def _status(found: Found | None, name: str, table: OmopTable, renames: Renames) -> TableStatus:
    return TableStatus(
        name=name,
        purpose=table.purpose,
        required=table.needed,
        found=found.label if found else None,
        size_bytes=found.size_bytes if found else None,
        lacking=_lacking(found, table, _renamed(name, renames)) if found else (),
    )


def _lacking(found: Found, table: OmopTable, given: Mapping[str, str]) -> tuple[str, ...]:
    present = {column.strip().casefold() for column in found.header}
    groups = [*((column,) for column in table.required), *table.one_of]
    names = [[given.get(column, column) for column in group] for group in groups]
    return tuple(group[0] for group in names if not present & {name.casefold() for name in group})


def _no_column(found: Found, name: str, called: str, wanted: str) -> CkdEhrError:
    if not looks_like_header(found.header):
        return CkdEhrError(
            f"{found.label}: column '{called}' is missing: the first line does not look like a "
            "header; export the table with its header row"
        )
    near = difflib.get_close_matches(called, found.header, n=1, cutoff=0.6)
    hint = f"nearest: {near[0]}; " if near else ""
    return CkdEhrError(
        f"{found.label}: column '{called}' is missing ({hint}found: {', '.join(found.header)}); "
        f"map it with data.columns.{name}.{wanted}=NAME"
    )


def _renamed(name: str, renames: Renames) -> dict[str, str]:
    return {
        wanted.casefold(): actual
        for table, columns in renames.items()
        if table.casefold() == name.casefold()
        for wanted, actual in columns.items()
    }
