"""OMOP tables in DuckDB, their rows checked against the stays, each counted.

In: a place that has the tables. Out: tables of text under OMOP's names in a connection, with only
the rows that belong to a stay. Ignores: what codes and concepts mean. Rows that can never belong to
one (an outpatient's, by far the most in many databases) are folded while they are read, so that the
memory needed grows with the stays. The stays are a table `stays` (subject_id, visit_id, …).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.extraction import Extraction
from ckd_ehr.data.sources.omop_tables import OmopTable, Place, columns_of
from ckd_ehr.data.sources.stay_tables import StayTables
from ckd_ehr.data.sources.tables import NUMBER_IDS, count

COPIES = "sum(copies)"
# Ids may be negative: some databases number by hashes.
WHOLE = "-?[0-9]+"
_TEXT_IDS = ("vocabulary_id", "relationship_id")
_BIRTH_PARTS = ("year_of_birth", "month_of_birth", "day_of_birth")
_RELATED = ("concept_id_1", "concept_id_2")
_CONCEPT_IDS = "write OMOP's concept ids, 0 where there is none"


def time_of(kind: str) -> str:
    """A time in SQL: the datetime, or else the date's midnight.

    >>> time_of("drug_exposure_start")[:46]
    'CAST(coalesce(drug_exposure_start_datetime, dr'
    """
    return f"CAST(coalesce({kind}_datetime, {kind}_date) AS TIMESTAMP)"


def whole_number_columns(table: OmopTable) -> list[str]:
    """The columns of a table that hold whole numbers."""
    return [
        column
        for column in table.columns
        if (column.endswith("_id") and column not in _TEXT_IDS)
        or column in (*_BIRTH_PARTS, *_RELATED)
    ]


@dataclass
class Cdm:
    """The tables of one extraction."""

    connection: duckdb.DuckDBPyConnection
    extraction: Extraction
    place: Place
    wanted: Mapping[str, OmopTable]
    rows: StayTables = field(init=False)

    def __post_init__(self) -> None:
        # For its checks and counts; where the tables are, the place knows.
        self.rows = StayTables(self.connection, self.extraction, Path(), self.wanted)

    def label(self, name: str) -> str:
        """How errors call a table."""
        found = self.place.find(name)
        return found.label if found else name

    def say(self, name: str, text: str) -> None:
        """Tell something about a table."""
        self.extraction.say(f"{self.label(name)}: {text}")

    def count(self, query: str) -> int:
        """The single number a query gives."""
        return count(self.connection, query)

    def load(
        self, name: str, query: str = "SELECT *, 1 AS copies FROM plain", *, check: bool = True
    ) -> bool:
        """Load a table under its name; False where an optional one is absent.

        Args:
            name: the table.
            query: makes the rows to keep of `plain`, the table's own, where whole numbers have
                lost their `.0`; its column `copies` says how many of those a row stands for.
            check: refuse values of whole-number columns that are none, among those rows.
        """
        table = self.wanted[name]
        columns = columns_of(self.place, name, table, self.extraction.settings.columns)
        if columns is None:
            return False
        whole = whole_number_columns(table)
        plain = ", ".join(f"regexp_replace({c}, '^({WHOLE})[.]0*$', '\\1') AS {c}" for c in whole)
        with_plain = f", plain AS (SELECT * REPLACE ({plain}) FROM source) {query}"
        self.place.load(self.connection, name, columns, into=name, query=with_plain)
        self.rows.enter(name, Path(self.label(name)), rows=COPIES)
        if check:
            self._require_whole(name, whole)
        return True

    def load_of_stays(self, name: str, kind: str) -> None:
        """Load a table of events, and leave only what belongs to a stay.

        Args:
            name: the table.
            kind: its time's columns are `{kind}_date` and `{kind}_datetime`.
        """
        self.load(name, self._folded(name))
        total = self.count(f"SELECT {COPIES} FROM {name}")
        self.rows.leave_out(
            name, "of no stay in visit_occurrence", unless="fate IS DISTINCT FROM 'elsewhere'"
        )
        self.rows.require_times(name, (f"{kind}_datetime", f"{kind}_date"))
        self._attach(name, time_of(kind))
        if total and not self.count(
            f"SELECT count(*) FROM {name} WHERE visit_occurrence_id IS NOT NULL"
        ):
            stays = self.count("SELECT count(*) FROM stays")
            raise CkdEhrError(
                f"{self.label(name)}: none of its {total} rows belongs to one of the {stays} stays "
                "of visit_occurrence (column 'visit_occurrence_id'); export both tables from the "
                "same database, or name the stays' concepts with data.omop.visit_concepts"
            )
        self.rows.leave_out(
            name,
            "without a visit and within no stay, or within several",
            unless="visit_occurrence_id IS NOT NULL",
        )
        self.rows.leave_out(name, "without a person", unless="person_id IS NOT NULL")
        shared = self.count(
            f"SELECT count(DISTINCT visit_id) FROM {name} JOIN stays "
            "ON visit_id = visit_occurrence_id WHERE CAST(person_id AS BIGINT) <> subject_id"
        )
        if shared:
            raise self.shared(name, shared)

    def shared(self, name: str, stays: int) -> CkdEhrError:
        """The error for stays under two persons."""
        return CkdEhrError(
            f"{self.label(name)}: {stays} stays (column 'visit_occurrence_id') stand under two "
            "persons (column 'person_id'); a stay belongs to one: correct the ids in the table"
        )

    def _folded(self, name: str) -> str:
        """Folds rows of other visits, and rows without a visit of persons without a stay."""
        kept = ", ".join(
            f"CASE WHEN fate IS NULL THEN {column} END AS {column}"
            for column in self.wanted[name].columns
        )
        # An id that is no number is kept, so that it is refused.
        return f"""
            SELECT {kept}, fate, count(*) AS copies FROM (SELECT *, CASE
                WHEN regexp_full_match(visit_occurrence_id, '{WHOLE}')
                    AND visit_occurrence_id NOT IN (SELECT visit_id FROM stays) THEN 'elsewhere'
                WHEN visit_occurrence_id IS NULL AND regexp_full_match(person_id, '{WHOLE}')
                    AND person_id NOT IN (SELECT CAST(subject_id AS VARCHAR) FROM stays)
                    THEN 'nowhere' END AS fate FROM plain)
            GROUP BY ALL"""

    def _attach(self, name: str, start: str) -> None:
        """Give rows without a visit the only stay of their person that holds their start.

        A start at midnight is a date, which the day of admission holds, too.
        """
        attached = self.count(f"""
            UPDATE {name} SET visit_occurrence_id = around.visit_id
            FROM (
                SELECT unplaced.row, min(visit_id) AS visit_id
                FROM (SELECT rowid AS row, person_id, {start} AS start FROM {name}
                    WHERE visit_occurrence_id IS NULL AND fate IS NULL) AS unplaced
                JOIN stays ON stays.subject_id = CAST(unplaced.person_id AS BIGINT)
                    AND start <= discharge_time
                    AND start >= CASE WHEN start = date_trunc('day', start)
                        THEN date_trunc('day', admit_time) ELSE admit_time END
                GROUP BY unplaced.row HAVING count(*) = 1) AS around
            WHERE {name}.rowid = around.row""")
        if attached:
            self.say(name, f"{attached:,} rows without a visit belong to the stay around them")

    def _require_whole(self, name: str, columns: Sequence[str]) -> None:
        """Refuse what is no 64-bit integer (nulls pass); shows the shape of one."""
        bad = [
            f"({c} IS NOT NULL AND (NOT regexp_full_match({c}, '{WHOLE}') "
            f"OR try_cast({c} AS BIGINT) IS NULL))"
            for c in columns
        ]
        counts = ", ".join(f"sum(copies) FILTER (WHERE {strange})" for strange in bad)
        [found] = self.connection.execute(f"SELECT {counts} FROM {name}").fetchall()
        for column, strange, wrong in zip(columns, bad, found, strict=True):
            if wrong:
                shape = f"regexp_replace({column}, '\\p{{N}}', '9', 'g')"
                shape = f"min(left(regexp_replace({shape}, '\\p{{L}}', 'a', 'g'), 24))"
                [(example,)] = self.connection.execute(
                    f"SELECT {shape} FROM {name} WHERE {strange}"
                ).fetchall()
                raise CkdEhrError(
                    f"{self.label(name)}: column '{column}': {wrong} values of the form "
                    f"'{example}' are no whole number; {_remedy(column)}"
                )


def _remedy(column: str) -> str:
    if column in _BIRTH_PARTS:
        return "write year, month and day as numbers"
    return _CONCEPT_IDS if column.endswith("concept_id") else NUMBER_IDS
