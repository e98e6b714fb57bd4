"""The files of a MEDS dataset, whichever version and column types it was written with.

In: a folder with `data/**/*.parquet` and perhaps `metadata/`. Out: SQL that reads all events with
one set of columns and types; titles, parent codes, splits and the dataset's description. Ignores:
what the codes mean. No error carries a cell's content.
"""

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import meds
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json
from ckd_ehr.data.sources.meds_times import is_time, refuse_other_units, wall_time
from ckd_ehr.data.sources.tables import (
    FULL_TEXT,
    check_renames,
    explain_unreadable,
    file_literal,
)

EVENTS_TABLE = "data"
# MEDS 0.3.0 calls subjects patients.
NAMES: Mapping[str, tuple[str, ...]] = {
    "subject_id": ("subject_id", "patient_id"),
    "time": ("time",),
    "code": ("code",),
    "numeric_value": ("numeric_value",),
    "visit_id": ("visit_id", "hadm_id", "visit_occurrence_id", "encounter_id"),
    "seq_num": ("seq_num",),
    "race": ("race", "ethnicity"),
    "end": ("end",),
}
REQUIRED = ("subject_id", "time", "code")
NO_VISITS = "none"
OLD_SPLITS = Path("metadata") / "patient_splits.parquet"
_NULLS: Mapping[str, str] = {
    "subject_id": "BIGINT",
    "time": "TIMESTAMP",
    "numeric_value": "FLOAT",
    "seq_num": "FLOAT",
    "end": "TIMESTAMP",
}


@dataclass(frozen=True)
class MedsFiles:
    """The event files, and under which name each column is read (None: the dataset has none)."""

    root: Path
    files: tuple[Path, ...]
    names: Mapping[str, str | None]
    schemas: tuple[pa.Schema, ...]
    timezone: str | None

    def type_of(self, column: str, schema: pa.Schema) -> pa.DataType | None:
        """The type that a file has for one of `NAMES`; None where the file lacks it."""
        name = self.names[column]
        return schema.field(name).type if name is not None and name in schema.names else None

    @property
    def zones(self) -> list[str | None]:
        """The time zones that the files' times state; None stands for times without one."""
        kinds = [self.type_of("time", schema) for schema in self.schemas]
        zones = {getattr(kind, "tz", None) for kind in kinds if kind and not types.is_null(kind)}
        return sorted(zones, key=lambda zone: zone or "")

    @property
    def time_columns(self) -> list[str]:
        """The names of the columns that hold times."""
        return [name for column in ("time", "end") if (name := self.names[column]) is not None]

    @property
    def rows(self) -> int:
        """How many events the files hold, by their footers."""
        return sum(pq.read_metadata(path).num_rows for path in self.files)

    def select(self, only: str | None = None) -> str:
        """SQL of all events with the columns of `NAMES`, in our types.

        `only` names a table: no other codes than its are read, and of other rows no other column.
        """
        groups: dict[str, list[Path]] = {}
        for path, schema in zip(self.files, self.schemas, strict=True):
            cells = {
                column: _expression(column, name, self.type_of(column, schema), self.timezone)
                for column, name in self.names.items()
            }
            columns = ", ".join(f"{cell} AS {_quoted(column)}" for column, cell in cells.items())
            groups.setdefault(columns, []).append(path)
        code = _quoted(str(self.names["code"]))
        rows = (
            "" if only is None else f" WHERE CAST({code} AS VARCHAR) IN (SELECT code FROM {only})"
        )
        return " UNION ALL ".join(
            f"SELECT {columns} FROM read_parquet([{', '.join(map(file_literal, paths))}], "
            f"hive_partitioning = false){rows}"
            for columns, paths in groups.items()
        )


def dataset_root(settings: DataConfig) -> Path:
    """The dataset's folder, which has to be given and to be one."""
    if settings.root is None:
        raise CkdEhrError(
            "data.root is not set; give the folder of the MEDS dataset (it has data/ and "
            "metadata/) as data.root=PATH"
        )
    if not settings.root.is_dir():
        raise CkdEhrError(f"{settings.root}: no such folder; give the MEDS dataset's as data.root")
    return settings.root


def event_paths(root: Path) -> list[Path]:
    """The dataset's Parquet files, in order of their names, hidden ones aside."""
    return sorted(
        path
        for path in (root / meds.data_subdirectory).rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def describe_files(settings: DataConfig) -> MedsFiles:
    """Match the columns of every event file; refuse what is no MEDS, with the remedy."""
    root = dataset_root(settings)
    files = event_paths(root)
    if not files:
        raise CkdEhrError(
            f"{root}: no .parquet file under {meds.data_subdirectory}/; data.root is the folder "
            "of a MEDS dataset, the one that has data/ and metadata/"
        )
    schemas = [_schema_of(path) for path in files]
    names = _names(settings, schemas)
    found = MedsFiles(root, tuple(files), names, tuple(schemas), settings.timezone)
    for path, schema in zip(files, schemas, strict=True):
        _refuse_other_formats(found, path, schema)
    if len(found.zones) > 1 and settings.timezone is None:
        zones = ", ".join(zone or "none" for zone in found.zones)
        raise CkdEhrError(
            f"{root}: column '{names['time']}': times are of several time zones ({zones}); say "
            "which zone the hospital's clocks show with data.timezone=Europe/Berlin"
        )
    return found


def lacking_columns(settings: DataConfig, path: Path) -> tuple[str, ...]:
    """The columns that one event file has to have and lacks, renamed ones under their own name."""
    present, given = _schema_of(path).names, _renames(settings)
    wanted = {column: (given[column],) if column in given else NAMES[column] for column in REQUIRED}
    return tuple(names[0] for names in wanted.values() if not set(names) & set(present))


def read_facts(root: Path) -> dict[str, object]:
    """What `metadata/dataset.json` says; nothing where it is absent."""
    path = root / meds.dataset_metadata_filepath
    return read_json(path) if path.is_file() else {}


def read_splits(root: Path) -> pa.Table | None:
    """The dataset's own splits as MEDS 0.4 wants them, by subject; None where it has none."""
    paths = [root / meds.subject_splits_filepath, root / OLD_SPLITS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        table = pq.read_table(path)
        renamed = ["subject_id" if name == "patient_id" else name for name in table.column_names]
        table = table.rename_columns(renamed).select(["subject_id", "split"])
        aligned = meds.SubjectSplitSchema.align(table)
    except Exception:
        raise CkdEhrError(
            f"{path.name}: no table of subject_id (64-bit integer) and split (text); write it so, "
            "or delete it and let splits.method divide the patients"
        ) from None
    if len(pc.unique(aligned["subject_id"])) != aligned.num_rows:
        raise CkdEhrError(f"{path.name}: a patient stands in it twice; keep one split for each")
    return aligned.sort_by("subject_id")


def load_code_metadata(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Make the tables `descriptions` (code, description) and `parents` (code, parent)."""
    connection.execute("CREATE TABLE descriptions (code VARCHAR, description VARCHAR)")
    connection.execute("CREATE TABLE parents (code VARCHAR, parent VARCHAR)")
    path = root / meds.code_metadata_filepath
    if not path.is_file():
        return
    schema = _schema_of(path)
    if "code" not in schema.names:
        raise CkdEhrError(
            f"{path.name}: column 'code' is missing (found: {', '.join(schema.names)}); write it "
            "as MEDS has it, or delete the file and do without titles"
        )
    source = f"read_parquet({file_literal(path)})"
    with readable_files([path]):
        if "description" in schema.names and _is_text(schema.field("description").type):
            # MEDS-Extract joins titles of several origins by line breaks.
            connection.execute(
                "INSERT INTO descriptions SELECT code, min(replace(trim(description), chr(10), "
                f"'; ')) FROM {source} WHERE trim(description) <> '' GROUP BY code"
            )
        kind = schema.field("parent_codes").type if "parent_codes" in schema.names else pa.null()
        if types.is_list(kind) or types.is_large_list(kind) or _is_text(kind):
            parent = "parent_codes" if _is_text(kind) else "unnest(parent_codes)"
            connection.execute(
                f"INSERT INTO parents SELECT DISTINCT code, {parent} FROM {source} "
                "WHERE parent_codes IS NOT NULL"
            )


@contextlib.contextmanager
def readable_files(files: Sequence[Path], times: Sequence[str] = ()) -> Iterator[None]:
    """Turn a failed read into an error that names the file which cannot be read.

    `times` names the columns of times, which may be of another unit than they say.
    """
    try:
        yield
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException) or FULL_TEXT in str(error):
            raise
        for path in files:
            try:
                for batch in pq.ParquetFile(path).iter_batches():
                    refuse_other_units(batch, times, path)
            except (pa.ArrowException, OSError):
                raise explain_unreadable(path) from None
        raise


def _schema_of(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError):
        raise explain_unreadable(path) from None


def _names(settings: DataConfig, schemas: Sequence[pa.Schema]) -> dict[str, str | None]:
    check_renames(settings.columns, {EVENTS_TABLE: list(NAMES)})
    renames = _renames(settings)
    present = sorted({name for schema in schemas for name in schema.names})
    names: dict[str, str | None] = {}
    for column, usual in NAMES.items():
        given = renames.get(column)
        candidates = usual if given is None else (given,)
        names[column] = next((name for name in candidates if name in present), None)
        if given is not None and names[column] is None and given != NO_VISITS:
            near = difflib.get_close_matches(given, present, n=1, cutoff=0.0)
            raise CkdEhrError(
                f"{EVENTS_TABLE}: no file has a column '{given}' for {column}; did you mean "
                f"'{near[0] if near else NO_VISITS}'?"
            )
    return names


def _renames(settings: DataConfig) -> dict[str, str]:
    renames = {
        wanted.casefold(): actual
        for columns in settings.columns.values()
        for wanted, actual in columns.items()
    }
    chosen = settings.meds.visit_id
    return renames if chosen is None else renames | {"visit_id": chosen}


def _refuse_other_formats(found: MedsFiles, path: Path, schema: pa.Schema) -> None:
    place = path.relative_to(found.root).as_posix()
    if "events" in schema.names and "code" not in schema.names:
        raise CkdEhrError(
            f"{place}: events stand nested in a column 'events', as in MEDS 0.2; make the dataset "
            "again with an ETL for MEDS 0.3 or 0.4"
        )
    for column in REQUIRED:
        if found.type_of(column, schema) is None:
            wanted = found.names[column] or column
            raise CkdEhrError(
                f"{place}: column '{wanted}' is missing (found: {', '.join(schema.names)}); every "
                f"file of MEDS events has it; map it with data.columns.{EVENTS_TABLE}.{column}=NAME"
            )
    checks = {
        "subject_id": (types.is_integer, "int64: number the patients first"),
        "time": (is_time, "timestamp[us]: write times as that"),
        "code": (_is_text, "string: write codes as text"),
        "numeric_value": (_is_number, "float32: write what is no number into text_value"),
    }
    for column, (fits, wanted) in checks.items():
        kind = found.type_of(column, schema)
        if kind is not None and not types.is_null(kind) and not fits(kind):
            raise CkdEhrError(
                f"{place}: column '{found.names[column]}' is of type {kind}; MEDS has {wanted}"
            )


def _expression(
    column: str, name: str | None, kind: pa.DataType | None, timezone: str | None
) -> str:
    if name is None or kind is None or types.is_null(kind):
        return f"CAST(NULL AS {_NULLS.get(column, 'VARCHAR')})"
    cell = _quoted(name)
    if column in ("time", "end"):
        return wall_time(cell, kind, timezone)
    if column in ("numeric_value", "seq_num"):
        # pandas writes NaN for what it does not know.
        number = f"try_cast({cell} AS {_NULLS[column]})"
        return f"if(isfinite({number}), {number}, NULL)"
    if column in _NULLS:
        return f"try_cast({cell} AS {_NULLS[column]})"
    plain = f"CAST({cell} AS VARCHAR)"
    if column == "code" or types.is_integer(kind):
        return plain
    text = f"nullif(trim({plain}), '')"
    if column != "visit_id":
        return text
    if types.is_floating(kind):
        text = f"if(isnan({cell}), NULL, {text})"
    return f"regexp_replace({text}, '^([0-9]+)[.]0*$', '\\1')"


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
