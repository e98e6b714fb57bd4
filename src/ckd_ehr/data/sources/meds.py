"""A MEDS 0.3 or 0.4 dataset, made by whichever ETL → our MEDS.

In: a folder with `data/**/*.parquet` and, where it has them, `metadata/codes.parquet` (titles),
`metadata/dataset.json` and `metadata/subject_splits.parquet`. Out: a MEDS dataset in our codes,
whose events carry `visit_id`, and the splits as they were. Ignores: every event whose code no rule
of meds_roles.py or `data.meds.roles` names, such as labs and vital signs; they are counted. A stay
is what the visit id says or, without one, an admission with the next discharge.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import meds
import pyarrow.parquet as pq

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import ADMISSION, AGE, BIRTH, DEATH, DISCHARGE, ETHNICITY, SEX
from ckd_ehr.data.sources.dataset import SHIFTED_TIMES, SYNTHETIC_TIMES, open_events, write_dataset
from ckd_ehr.data.sources.extraction import Extraction, TableStatus
from ckd_ehr.data.sources.meds_files import (
    EVENTS_TABLE,
    MedsFiles,
    dataset_root,
    describe_files,
    event_paths,
    lacking_columns,
    load_code_metadata,
    read_facts,
    read_splits,
    readable_files,
)
from ckd_ehr.data.sources.meds_roles import add_roles
from ckd_ehr.data.sources.meds_stays import add_stays, place_events
from ckd_ehr.data.sources.meds_times import STRANGE, count_disorder
from ckd_ehr.data.sources.stay_tables import ETHNICITY_GROUP
from ckd_ehr.data.sources.tables import connect, count, file_digests

METADATA = {
    meds.code_metadata_filepath: "titles",
    meds.dataset_metadata_filepath: "name, version",
    meds.subject_splits_filepath: "splits.method=source",
}
CODED = ("diagnosis", "medication", "procedure")
SHOWN_PREFIXES = 8
# What may be shown of a code: the rule by which it is not read, or its first part if that is a word
# and of several patients. Anything else could be an identifier or free text.
SHOWN_PATIENTS = 5
_WORD = "^[A-Za-z][A-Za-z_ ]{1,39}$"
# A bit for each of 61 groups of patients: where some are set, at least as many patients are. That
# is known in one pass, without a row for each patient of a code.
_PATIENTS = "bit_or(CAST(1 AS BIGINT) << (((subject_id % 61) + 61) % 61))"
# One row for equal events; one for all times at which a stay had the same drug.
_GATHER = f"""
    CREATE TABLE raw AS
    SELECT subject_id, id, role, min(time) AS time, visit_id AS visit,
        coalesce(time = {STRANGE}, false) AS strange,
        min(coalesce(seq_num, if(ranked, numeric_value, NULL))) AS place,
        max(numeric_value) AS number, min(race) AS race,
        max(nullif("end", {STRANGE})) AS ended, count(*) AS copies
    FROM ({{events}}) JOIN kept USING (code)
    WHERE subject_id IS NOT NULL
    GROUP BY subject_id, id, role, visit_id, time IS NULL, strange,
        if(role = 'medication' AND visit_id IS NOT NULL, NULL, time)"""
_USABLE = f"NOT refused AND (value IS NOT NULL OR role NOT IN {(*CODED, 'sex')})"


def tables(settings: DataConfig) -> list[TableStatus]:
    """Which parts of the dataset are there."""
    root = dataset_root(settings)
    files = event_paths(root)
    events = TableStatus(
        name=EVENTS_TABLE,
        purpose="events",
        required=True,
        found=f"{meds.data_subdirectory}/ ({len(files):,} files)" if files else None,
        size_bytes=sum(path.stat().st_size for path in files) if files else None,
        lacking=lacking_columns(settings, files[0]) if files else (),
    )
    return [events, *(_about(root, name, purpose) for name, purpose in METADATA.items())]


def digests(settings: DataConfig) -> dict[str, str]:
    """SHA-256 of the dataset's files; what is no MEDS is an error."""
    found = describe_files(settings)
    about = [found.root / name for name in METADATA]
    return file_digests([*found.files, *filter(Path.is_file, about)], found.root)


def extract(extraction: Extraction) -> None:
    """Write the dataset under `data.root` in our codes, with stays."""
    found = describe_files(extraction.settings)
    facts, splits = read_facts(found.root), read_splits(found.root)
    _introduce(extraction, found, facts)
    with connect(extraction.folder, extraction.memory_limit) as connection:
        open_events(connection)
        load_code_metadata(connection, found.root)
        with readable_files(found.files, found.time_columns):
            _gather(connection, extraction, found)
        _leave_out_strange_times(connection, extraction, found)
        _refuse_without_diagnoses(connection, found)
        add_stays(connection, extraction, found)
        _refuse_without_stays(connection, found)
        place_events(connection, extraction)
        _add_patients(connection, extraction)
        _add_stay_facts(connection, has_race=found.names["race"] is not None)
        _say_contradictions(connection, extraction)
        _add_coded(connection)
        write_dataset(
            connection,
            extraction,
            name=str(facts.get("dataset_name") or "MEDS"),
            synthetic_times=facts.get(SYNTHETIC_TIMES) is True,
            shifted_times=facts.get(SHIFTED_TIMES) is True,
        )
    if splits is not None:
        pq.write_table(splits, extraction.folder / meds.subject_splits_filepath)


def _about(root: Path, name: str, purpose: str) -> TableStatus:
    size = (root / name).stat().st_size if (root / name).is_file() else None
    return TableStatus(Path(name).stem, purpose, False, None if size is None else name, size)


def _introduce(extraction: Extraction, found: MedsFiles, facts: dict[str, object]) -> None:
    name = facts.get("dataset_name") or "a dataset without a name"
    version = facts.get("dataset_version") or "not stated"
    made_by = " ".join(str(facts[key]) for key in ("etl_name", "etl_version") if facts.get(key))
    extraction.say(f"{name}, version {version}, made by {made_by or 'an unnamed ETL'}")
    for zone in filter(None, found.zones):
        where = found.timezone or f"{zone}, as written (data.timezone moves them)"
        extraction.say(f"times state the time zone {zone}; their wall time is kept in {where}")
    subject, time = (str(found.names[column]) for column in ("subject_id", "time"))
    unordered, spread = count_disorder(found.files, subject, time)
    if unordered:
        extraction.say(f"note: {unordered:,} files are not in order of patient and time; sorted")
    if spread:
        extraction.say(f"note: {spread:,} patients stand in several files; put together")


def _gather(
    connection: duckdb.DuckDBPyConnection, extraction: Extraction, found: MedsFiles
) -> None:
    """`roles` of all codes, and the events of those that have one as `raw`, equal ones folded."""
    rows = found.rows
    extraction.ledger.read(EVENTS_TABLE, rows)
    if not rows:
        raise CkdEhrError(f"{found.root}: the dataset has no events; make it again")
    connection.execute(f"CREATE VIEW source AS {found.select()}")
    connection.execute(
        "CREATE TABLE codes AS SELECT row_number() OVER (ORDER BY code) AS id, * "
        f"FROM (SELECT code, count(*) AS rows, {_PATIENTS} AS patients FROM source "
        "WHERE subject_id IS NOT NULL AND trim(code) <> '' GROUP BY code)"
    )
    usable = count(connection, "SELECT sum(rows) FROM codes")
    extraction.ledger.leave_out(EVENTS_TABLE, "without patient or code", rows - usable)
    for prefix in add_roles(connection, extraction.settings.meds.roles):
        extraction.say(
            f"note: the rule {prefix} of data.meds.roles reads no code: none begins so, or a "
            "longer rule reads it"
        )
    _leave_out_codes(connection, extraction)
    connection.execute(
        f"CREATE TABLE kept AS SELECT * FROM roles WHERE role IS NOT NULL AND {_USABLE}"
    )
    connection.execute(_GATHER.format(events=found.select("kept")))


def _leave_out_codes(connection: duckdb.DuckDBPyConnection, extraction: Extraction) -> None:
    unread = _unread_parts(connection)[:SHOWN_PREFIXES]
    left_out = {f"of codes {part}, which are not read,": rows for part, rows in unread}
    others = _rows_of_codes(connection, "role IS NULL") - sum(left_out.values())
    left_out |= {
        "of other codes, which are not read,": others,
        "of drugs that were not given": _rows_of_codes(connection, "refused"),
        "without a code after the prefix": _rows_of_codes(
            connection, f"role IS NOT NULL AND NOT refused AND NOT ({_USABLE})"
        ),
    }
    for reason, rows in left_out.items():
        extraction.ledger.leave_out(EVENTS_TABLE, reason, rows)


def _leave_out_strange_times(
    connection: duckdb.DuckDBPyConnection, extraction: Extraction, found: MedsFiles
) -> None:
    """Drop and count events outside the years 1 to 9999; refuse a column without any inside."""
    rows = count(connection, "SELECT sum(copies) FROM raw WHERE strange")
    if rows and not count(connection, "SELECT count(time) FROM raw WHERE NOT strange"):
        kinds = {str(found.type_of("time", schema)) for schema in found.schemas}
        raise CkdEhrError(
            f"{EVENTS_TABLE}: column '{found.names['time']}' is of type "
            f"{', '.join(sorted(kinds))}, in which none of its numbers lies in the years 1 to "
            "9999; they may be of another unit: write times as timestamp[us]"
        )
    extraction.ledger.leave_out(EVENTS_TABLE, "with a time outside the years 1 to 9999", rows)
    connection.execute("DELETE FROM raw WHERE strange")


def _rows_of_codes(connection: duckdb.DuckDBPyConnection, condition: str) -> int:
    return count(connection, f"SELECT sum(rows) FROM codes JOIN roles USING (id) WHERE {condition}")


def _unread_parts(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int]]:
    """First parts of codes without a role and their events, the most frequent first."""
    found = connection.execute(
        "SELECT coalesce(skipped, split_part(code, '/', 1)) AS part, sum(rows) AS rows "
        "FROM codes JOIN roles USING (id, code) WHERE role IS NULL GROUP BY part "
        f"HAVING bool_or(skipped IS NOT NULL) OR (regexp_matches(part, '{_WORD}') "
        f"AND bit_count(bit_or(patients)) >= {SHOWN_PATIENTS}) ORDER BY rows DESC, part"
    ).fetchall()
    return [(part, int(rows)) for part, rows in found]


def _refuse_without_diagnoses(connection: duckdb.DuckDBPyConnection, found: MedsFiles) -> None:
    if not count(connection, "SELECT count(*) FROM raw WHERE role = 'diagnosis'"):
        raise CkdEhrError(
            f"{found.root}: no event is a diagnosis ({_frequent(_unread_parts(connection))}); map "
            "the codes that are with data.meds.roles, as {DX//: {role: diagnosis, system: "
            "ICD10CM}} (see docs/sources/meds.md)"
        )


def _refuse_without_stays(connection: duckdb.DuckDBPyConnection, found: MedsFiles) -> None:
    whole = "admit_time IS NOT NULL AND discharge_time IS NOT NULL"
    if not count(connection, f"SELECT count(*) FROM stays WHERE {whole}"):
        visit = found.names["visit_id"]
        told = f"column '{visit}'" if visit else "no column of visit ids"
        raise CkdEhrError(
            f"{found.root}: no stay: no admission has a discharge ({told}; "
            f"{_frequent(_unread_parts(connection))}); map the codes of both with data.meds.roles, "
            "as {ADMIT//: {role: admission}, LEAVE//: {role: discharge}} (see docs/sources/meds.md)"
        )


def _frequent(parts: Sequence[tuple[str, int]]) -> str:
    shown = ", ".join(f"{part} × {rows:,}" for part, rows in parts[:SHOWN_PREFIXES])
    return f"codes that are not read: {shown}" if shown else "all codes are read"


def _add_patients(connection: duckdb.DuckDBPyConnection, extraction: Extraction) -> None:
    timeless = "role IN ('birth', 'death') AND time IS NULL"
    rows = count(connection, f"SELECT sum(copies) FROM raw WHERE {timeless}")
    extraction.ledger.leave_out(EVENTS_TABLE, "of births or deaths without a time", rows)
    connection.execute(f"""
        INSERT INTO events
        SELECT subject_id, NULL, '{SEX}//' || min(value), NULL, NULL
        FROM raw JOIN roles USING (id) WHERE raw.role = 'sex' GROUP BY subject_id
        UNION ALL
        SELECT subject_id, min(time), if(role = 'birth', '{BIRTH}', '{DEATH}'), NULL, NULL
        FROM raw WHERE role IN ('birth', 'death') AND time IS NOT NULL GROUP BY subject_id, role
        UNION ALL
        SELECT subject_id, min(time), '{ETHNICITY}//' || value, NULL, NULL
        FROM raw JOIN roles USING (id)
        WHERE raw.role = 'ethnicity' AND visit IS NULL GROUP BY subject_id, value""")


def _add_stay_facts(connection: duckdb.DuckDBPyConnection, *, has_race: bool) -> None:
    """Admission, discharge, ethnicity and age of each stay.

    Where admissions have a column of ethnicity, an empty cell of it is an unknown one.
    """
    connection.execute(f"""
        INSERT INTO events
        SELECT subject_id, admit_time, concat_ws('//', '{ADMISSION}', kind), NULL, visit
        FROM stays WHERE admit_time IS NOT NULL
        UNION ALL
        SELECT subject_id, discharge_time,
            concat_ws('//', '{DISCHARGE}', if(died, 'DIED', place)), NULL, visit
        FROM stays WHERE discharge_time IS NOT NULL
        UNION ALL
        SELECT stays.subject_id, min(coalesce(time, admit_time)), '{AGE}', max(age), visit
        FROM placed JOIN stays USING (visit) WHERE role = 'age' GROUP BY ALL""")
    unknown = "'UNKNOWN'" if has_race else "NULL"
    connection.execute(f"""
        INSERT INTO events
        WITH stated AS (
            SELECT visit, min(value) FILTER (value <> 'UNKNOWN') AS known, count(*) AS times
            FROM raw JOIN roles USING (id)
            WHERE raw.role = 'ethnicity' AND visit IS NOT NULL GROUP BY visit),
        persons AS (
            SELECT DISTINCT subject_id, true AS of_person
            FROM raw WHERE role = 'ethnicity' AND visit IS NULL),
        cells AS (SELECT *, upper(race) AS ethnicity FROM stays),
        groups AS (
            SELECT subject_id, visit, admit_time, coalesce(known,
                if(race IS NOT NULL, {ETHNICITY_GROUP}, NULL),
                if(times IS NOT NULL, 'UNKNOWN', NULL),
                if(of_person, NULL, {unknown})) AS ethnicity
            FROM cells LEFT JOIN stated USING (visit) LEFT JOIN persons USING (subject_id))
        SELECT subject_id, admit_time, '{ETHNICITY}//' || ethnicity, NULL, visit
        FROM groups WHERE ethnicity IS NOT NULL""")


def _say_contradictions(connection: duckdb.DuckDBPyConnection, extraction: Extraction) -> None:
    """How many patients are said to be several things that a person is one of."""
    facts = {
        "sex; the first in the alphabet is taken": "SELECT subject_id, value AS fact "
        "FROM raw JOIN roles USING (id) WHERE raw.role = 'sex' AND value <> 'UNKNOWN'",
        "day of birth; the earliest is taken": "SELECT subject_id, CAST(time AS DATE) AS fact "
        "FROM raw WHERE role = 'birth' AND time IS NOT NULL",
        "ethnicity; a stay keeps its own": "SELECT subject_id, code AS fact FROM events WHERE "
        f"starts_with(code, '{ETHNICITY}//') AND code <> '{ETHNICITY}//UNKNOWN'",
    }
    for fact, query in facts.items():
        patients = count(
            connection,
            f"SELECT count(*) FROM (SELECT subject_id FROM ({query}) GROUP BY subject_id "
            "HAVING count(DISTINCT fact) > 1)",
        )
        if patients:
            extraction.say(f"note: {patients:,} patients have more than one {fact}")


def _add_coded(connection: duckdb.DuckDBPyConnection) -> None:
    """Codes at the times when they are first known: what is billed, by discharge."""
    connection.execute("""
        INSERT INTO events
        SELECT stays.subject_id, min(CASE placed.role
                WHEN 'diagnosis' THEN coalesce(discharge_time, time)
                WHEN 'procedure' THEN least(time, discharge_time)
                ELSE coalesce(time, discharge_time) END),
            ours, min(if(placed.role = 'medication', NULL, placed.place)), visit
        FROM placed JOIN stays USING (visit) JOIN roles USING (id)
        WHERE ours IS NOT NULL GROUP BY stays.subject_id, ours, visit""")
    connection.execute("""
        INSERT INTO titles
        SELECT ours, min(description) FROM roles JOIN descriptions USING (code)
        WHERE ours IS NOT NULL AND system <> 'NAME' GROUP BY ours""")
