"""The tables of a hospital in DuckDB, checked alike for every source that has a table of stays.

In: which tables and columns a source wants, and where they are. Out: tables of text in a
connection, without the rows that cannot be used, each of which the ledger counts under a reason;
times in one time zone. Ignores: what a table means. The table of stays is called `stays` and has
`subject_id` and `hadm_id`, as every table that is checked against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.drug_names import drug_name
from ckd_ehr.data.sources.extraction import Extraction, TableStatus
from ckd_ehr.data.sources.tables import (
    NUMBER_IDS,
    check_renames,
    count,
    describe_table,
    find_table,
    lacking_columns,
    load,
    quoted,
    require_table,
    require_times,
    require_whole_numbers,
)

# A time of day with its offset from UTC, as `tables.require_times` leaves it; a date has none.
OFFSET = r":\d{2}(?:\.\d+)?(Z|[+-]\d{2}(?::?\d{2})?)$"
NO_OFFSET = "none"
KNOWN_STAY = "hadm_id IN (SELECT hadm_id FROM stays)"
# Coarse, because finer groups have too few patients to report on.
ETHNICITY_GROUP = """CASE
    WHEN ethnicity IS NULL OR regexp_matches(ethnicity, 'UNKNOWN|UNABLE|DECLINED|NOT SPECIFIED')
        THEN 'UNKNOWN'
    WHEN starts_with(ethnicity, 'WHITE') THEN 'WHITE'
    WHEN contains(ethnicity, 'BLACK') THEN 'BLACK'
    WHEN regexp_matches(ethnicity, 'HISPANIC|LATINO') THEN 'HISPANIC'
    WHEN starts_with(ethnicity, 'ASIAN') THEN 'ASIAN'
    ELSE 'OTHER' END"""


@dataclass(frozen=True)
class WantedTable:
    """A table that a source reads: what for, and which columns it must and may have.

    `folders` are the folders under the root, in lower case, in which it may stand as well.
    """

    purpose: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    needed: bool = True
    folders: tuple[str, ...] = ()

    def find(self, root: Path, name: str) -> Path | None:
        """The table's file, in whichever folder; None where absent, an error where doubled."""
        found = [path for folder in self._places(root) if (path := find_table(folder, name))]
        if len(found) > 1:
            places = ", ".join(path.relative_to(root).as_posix() for path in found)
            raise CkdEhrError(
                f"{root}: table {name} stands in several folders ({places}); keep one"
            )
        return found[0] if found else None

    def require(self, root: Path, name: str) -> Path | None:
        """As `find`; an absent table is an error if it is needed."""
        path = self.find(root, name)
        if path is None and self.needed:
            return require_table(self._places(root)[-1], name)
        return path

    def _places(self, root: Path) -> list[Path]:
        below = sorted(root.iterdir()) if self.folders and root.is_dir() else []
        return [root, *(p for p in below if p.is_dir() and p.name.casefold() in self.folders)]


def table_statuses(
    root: Path, wanted: Mapping[str, WantedTable], renames: Mapping[str, Mapping[str, str]]
) -> list[TableStatus]:
    """Which tables are there, without reading more of them than their headers."""
    statuses = []
    for name, table in wanted.items():
        path = table.find(root, name)
        statuses.append(
            TableStatus(
                name=name,
                purpose=table.purpose,
                required=table.needed,
                found=path.relative_to(root).as_posix() if path else None,
                size_bytes=path.stat().st_size if path else None,
                lacking=lacking_columns(path, name, table.required, renames) if path else (),
            )
        )
    return statuses


def table_files(
    root: Path, wanted: Mapping[str, WantedTable], renames: Mapping[str, Mapping[str, str]]
) -> list[Path]:
    """The files of the wanted tables; an absent one that is needed is an error."""
    check_renames(renames, {name: (*t.required, *t.optional) for name, t in wanted.items()})
    files = []
    for name, table in wanted.items():
        path = table.require(root, name)
        if path is not None:
            describe_table(path, name, required=table.required, renames=renames)
            files.append(path)
    return files


@dataclass
class StayTables:
    """The tables of one extraction.

    `whole_numbers` says of a column of whole numbers what to do about a value that is none. A
    table loaded with `rows` other than `count(*)` holds equal rows folded, with their number.
    """

    connection: duckdb.DuckDBPyConnection
    extraction: Extraction
    root: Path
    wanted: Mapping[str, WantedTable]
    whole_numbers: Mapping[str, str] = field(
        default_factory=lambda: {"subject_id": NUMBER_IDS, "hadm_id": NUMBER_IDS}
    )
    stays_table: str = "ADMISSIONS"
    _paths: dict[str, Path] = field(default_factory=dict)
    _rows: dict[str, str] = field(default_factory=dict)
    _offsets: dict[str, str] = field(default_factory=dict)

    def load(
        self, name: str, query: str = "SELECT * FROM source", *, rows: str = "count(*)"
    ) -> bool:
        """Load a table under its name in lower case; False where an optional one is absent."""
        wanted, table = self.wanted[name], name.lower()
        path = wanted.require(self.root, name)
        if path is None:
            return False
        described = describe_table(
            path,
            name,
            required=wanted.required,
            optional=wanted.optional,
            renames=self.extraction.settings.columns,
        )
        load(self.connection, described, into=table, query=query)
        self.enter(name, path, rows=rows)
        for column, remedy in self.whole_numbers.items():
            if column in wanted.required:
                require_whole_numbers(self.connection, table, column, path, remedy=remedy)
        return True

    def enter(self, name: str, path: Path, *, rows: str = "count(*)") -> None:
        """Have the ledger count the rows of a table that is loaded; `path` names it in errors."""
        self._paths[name], self._rows[name] = path, rows
        total = count(self.connection, f"SELECT {rows} FROM {name.lower()}")
        self.extraction.ledger.read(path.name, total)
        if not total:
            self.extraction.say(f"{path.name}: has no rows")

    def path(self, name: str) -> Path:
        """The file of a table that is loaded."""
        return self._paths[name]

    def leave_out(self, name: str, reason: str, *, unless: str) -> None:
        """Delete and count the rows for which the condition `unless` is not true."""
        table, strange = name.lower(), f"({unless}) IS NOT TRUE"
        rows = count(self.connection, f"SELECT {self._rows[name]} FROM {table} WHERE {strange}")
        if rows:
            self.connection.execute(f"DELETE FROM {table} WHERE {strange}")
            self.extraction.ledger.leave_out(self._paths[name].name, reason, rows)

    def refuse_no_rows(self, name: str) -> None:
        """An error for a table of which nothing is left."""
        if not count(self.connection, f"SELECT count(*) FROM {name.lower()}"):
            raise CkdEhrError(
                f"{self._paths[name].name}: no rows with a patient, a stay and its times; export "
                "the table again, with its rows"
            )

    def refuse_shared_stays(self) -> None:
        """An error for a stay of two patients in the table of stays itself."""
        shared = count(
            self.connection,
            "SELECT count(*) FROM (SELECT hadm_id FROM stays GROUP BY hadm_id "
            "HAVING count(DISTINCT subject_id) > 1)",
        )
        if shared:
            raise self._shared(self.stays_table, shared)

    def refuse_foreign_table(self, name: str) -> None:
        """An error for a table with rows, none of which belongs to a stay.

        It comes before any row is left out: a column of ids that is empty is no reason to go on.
        """
        table, rows = name.lower(), self._rows[name]
        total = count(self.connection, f"SELECT {rows} FROM {table}")
        if total and not count(self.connection, f"SELECT {rows} FROM {table} WHERE {KNOWN_STAY}"):
            stays = count(self.connection, "SELECT count(*) FROM stays")
            raise CkdEhrError(
                f"{self._paths[name].name}: none of its {total} rows belongs to one of the "
                f"{stays} stays of {self.stays_table} (column 'hadm_id'); export both tables from "
                "the same database, with ids written alike"
            )

    def match_stays(self, name: str) -> None:
        """Leave out rows of unknown stays; refuse a stay under another patient."""
        table = name.lower()
        shared = count(
            self.connection,
            f"SELECT count(DISTINCT hadm_id) FROM {table} JOIN stays USING (hadm_id) "
            f"WHERE try_cast({table}.subject_id AS BIGINT) <> stays.subject_id",
        )
        if shared:
            raise self._shared(name, shared)
        self.leave_out(name, f"without a stay in {self.stays_table}", unless=KNOWN_STAY)

    def require_times(self, name: str, columns: Sequence[str]) -> None:
        """Refuse text that is no time, and offsets that differ; leave one local time.

        A time with an offset is moved into `data.timezone`, if that is set; otherwise the offset
        must be the same everywhere and is dropped, which leaves the time on the wall. A column
        of midnights only holds dates: they stay as they are, whatever offset they state.
        """
        for column in columns:
            require_times(self.connection, name.lower(), column, self._paths[name])
            self._settle_offsets(name, column)

    def name_drugs(self, name: str, column: str) -> None:
        """Make the table `drug_names`: what `column` has as `drug`, and the drug's own `name`."""
        ordered = self.connection.execute(
            f"SELECT DISTINCT {column} FROM {name.lower()} WHERE {column} IS NOT NULL ORDER BY 1"
        ).fetchall()
        names = pa.table(
            {
                "drug": pa.array([drug for (drug,) in ordered], pa.string()),
                "name": pa.array([drug_name(drug) for (drug,) in ordered], pa.string()),
            }
        )
        self.connection.register("named_drugs", names)
        self.connection.execute("CREATE TABLE drug_names AS SELECT * FROM named_drugs")
        self.connection.unregister("named_drugs")

    def _settle_offsets(self, name: str, column: str) -> None:
        table, zone = name.lower(), self.extraction.settings.timezone
        offset = f"regexp_extract({column}, '{OFFSET}', 1)"
        time = f"CAST({column} AS TIMESTAMP)"
        found = self.connection.execute(
            f"SELECT DISTINCT {offset}, {time} = date_trunc('day', {time}) FROM {table} "
            f"WHERE {column} IS NOT NULL ORDER BY ALL"
        ).fetchall()
        if all(midnight for _, midnight in found):
            return
        stated = [text or NO_OFFSET for text, midnight in found if text or not midnight]
        offsets = list(dict.fromkeys(stated))
        if zone is None:
            self._refuse_mixed(name, column, offsets)
        elif offsets != [NO_OFFSET]:
            moved = f"timezone({quoted(zone)}, CAST({column} AS TIMESTAMPTZ))"
            self.connection.execute(
                f"UPDATE {table} SET {column} = CAST({moved} AS VARCHAR) WHERE {offset} <> ''"
            )
            # The last hours of the year 9999 may have been moved beyond it.
            require_times(self.connection, table, column, self._paths[name])

    def _refuse_mixed(self, name: str, column: str, offsets: Sequence[str]) -> None:
        place = f"{self._paths[name].name}: column '{column}'"
        for offset in offsets:
            self._offsets.setdefault(offset, place)
        if len(self._offsets) > 1:
            found = "; ".join(f"{offset} in {where}" for offset, where in self._offsets.items())
            raise CkdEhrError(
                f"{place}: times are of several time zones (offsets from UTC: {found}); say which "
                "zone the hospital's clocks show with data.timezone=Europe/Berlin"
            )

    def _shared(self, name: str, stays: int) -> CkdEhrError:
        return CkdEhrError(
            f"{self._paths[name].name}: {stays} stays (column 'hadm_id') stand under two patients "
            "(column 'subject_id'); a stay belongs to one patient: correct the ids in the table"
        )
