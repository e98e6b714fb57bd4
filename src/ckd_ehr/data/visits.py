"""MEDS events → one row per hospital stay, with counts of what was left out.

In: a MEDS dataset whose events carry `visit_id`. Out: the `visits` table in the order of
admission within patients, and exclusion counts. Ignores: labels, pairs, splits. A code later than
its stay's discharge is dropped: it was not known at prediction time.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import (
    ADMISSION,
    AGE,
    BIRTH,
    DEATH,
    DIAGNOSIS,
    DISCHARGE,
    ETHNICITY,
    MEDICATION,
    PROCEDURE,
    SEX,
    VISITS,
)
from ckd_ehr.data.sources.tables import connect, count, quoted

CODED = (DIAGNOSIS, MEDICATION, PROCEDURE)
STAY_FACTS = (ADMISSION, DISCHARGE, AGE, ETHNICITY)
DIED = f"{DISCHARGE}//DIED"
# Privacy law calls ages above 89 identifying; MIMIC-III moves those births 300 years back.
HIGHEST_AGE = 90
SEXES = ("F", "M")
EXCLUSIONS = (
    "visits_without_admission_or_discharge",
    "visits_discharged_before_admission",
    "visits_admitted_after_death",
)
_AGE_DAYS = "date_diff('day', birth, admit_time)"
_BORN_LATER = f"coalesce(stated_age IS NULL AND {_AGE_DAYS} < 0, false)"
# Each stay with the first reason to leave it out. A death at midnight is a date: the whole day.
_MARK = """
    CREATE TABLE marked AS
    SELECT stays.*, sex, coalesce(stays.ethnicity, people.ethnicity) AS group_, birth,
        discharged_dead OR coalesce(death > admit_time AND death <= discharge_time
            AND death <> date_trunc('day', death), false) AS died,
        CASE
            WHEN admit_time IS NULL OR discharge_time IS NULL
                THEN 'visits_without_admission_or_discharge'
            WHEN discharge_time < admit_time THEN 'visits_discharged_before_admission'
            WHEN admit_time >= CASE WHEN death = date_trunc('day', death)
                THEN death + INTERVAL 1 DAY ELSE death END THEN 'visits_admitted_after_death'
        END AS reason
    FROM stays LEFT JOIN people USING (subject_id)"""


def read_visits(
    event_files: Sequence[Path], codes_file: Path, scratch: Path
) -> tuple[pa.Table, dict[str, int]]:
    """The `visits` table of a MEDS dataset, and how many visits and events were left out.

    Args:
        event_files: the Parquet files of the dataset's events.
        codes_file: its `metadata/codes.parquet`.
        scratch: a folder where DuckDB may spill.
    """
    with connect(scratch) as connection:
        files = ", ".join(quoted(str(path)) for path in event_files)
        connection.execute(f"CREATE VIEW events AS SELECT * FROM read_parquet([{files}])")
        _read_roles(connection, codes_file)
        _refuse_shared_visits(connection)
        _gather_stays(connection)
        counts = _exclude(connection)
        counts |= _gather_items(connection)
        visits = _assemble(connection)
    return visits.cast(VISITS), counts


def _read_roles(connection: duckdb.DuckDBPyConnection, codes_file: Path) -> None:
    """`ROLE//SYSTEM//CODE` or `ROLE//DETAIL`, split once per distinct code."""
    connection.execute(f"""
        CREATE TABLE roles AS
        SELECT code, description AS title, split_part(code, '//', 1) AS role,
            nullif(split_part(code, '//', 2), '') AS detail,
            nullif(regexp_extract(code, '^[^/]+//[^/]+//(.+)$', 1), '') AS value
        FROM read_parquet({quoted(str(codes_file))})""")


def _refuse_shared_visits(connection: duckdb.DuckDBPyConnection) -> None:
    shared = count(
        connection,
        "SELECT count(*) FROM (SELECT visit_id FROM (SELECT DISTINCT visit_id, subject_id "
        "FROM events WHERE visit_id IS NOT NULL) GROUP BY visit_id HAVING count(*) > 1)",
    )
    if shared:
        raise CkdEhrError(
            f"events: {shared} stays (column 'visit_id') stand under two patients (column "
            "'subject_id'); a stay belongs to one patient: correct the ids in the source's tables"
        )


def _gather_stays(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(f"""
        CREATE TABLE stays AS
        SELECT visit_id, subject_id,
            min(time) FILTER (role = '{ADMISSION}') AS admit_time,
            max(time) FILTER (role = '{DISCHARGE}') AS discharge_time,
            min(detail) FILTER (role = '{ADMISSION}') AS admission_type,
            coalesce(bool_or(code = '{DIED}'), false) AS discharged_dead,
            max(numeric_value) FILTER (role = '{AGE}') AS stated_age,
            min(detail) FILTER (role = '{ETHNICITY}') AS ethnicity
        FROM events JOIN roles USING (code)
        WHERE visit_id IS NOT NULL AND role IN {STAY_FACTS}
        GROUP BY ALL""")
    connection.execute(f"""
        CREATE TABLE people AS
        WITH facts AS (
            SELECT subject_id,
                min(CASE upper(detail) WHEN 'MALE' THEN 'M' WHEN 'FEMALE' THEN 'F'
                    ELSE upper(detail) END) FILTER (role = '{SEX}') AS stated_sex,
                if(stated_sex IN {SEXES}, stated_sex, NULL) AS sex,
                min(detail) FILTER (role = '{ETHNICITY}' AND visit_id IS NULL) AS ethnicity,
                min(time) FILTER (role = '{BIRTH}') AS birth,
                min(time) FILTER (role = '{DEATH}') AS recorded
            FROM events JOIN roles USING (code)
            WHERE role IN {(SEX, ETHNICITY, BIRTH, DEATH)} GROUP BY subject_id),
        deaths AS (
            SELECT subject_id, min(discharge_time) AS in_hospital
            FROM stays WHERE discharged_dead GROUP BY subject_id)
        SELECT subject_id, stated_sex, sex, ethnicity, birth, least(recorded, in_hospital) AS death
        FROM facts FULL JOIN deaths USING (subject_id)""")


def _exclude(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Mark the stays to leave out, and count them by reason."""
    connection.execute(_MARK)
    reasons = dict(
        connection.execute(
            "SELECT reason, count(*) FROM marked WHERE reason IS NOT NULL GROUP BY reason"
        ).fetchall()
    )
    read = count(
        connection, "SELECT count(DISTINCT visit_id) FROM events WHERE visit_id IS NOT NULL"
    )
    stays = count(connection, "SELECT count(*) FROM stays")
    counts = {
        "visits_read": read,
        "patients_read": count(connection, "SELECT count(DISTINCT subject_id) FROM events"),
        "patients_with_visits": count(
            connection, "SELECT count(DISTINCT subject_id) FROM events WHERE visit_id IS NOT NULL"
        ),
        **{name: int(reasons.get(name, 0)) for name in EXCLUSIONS},
    }
    counts |= {
        "visits_with_birth_after_admission": count(
            connection,
            f"SELECT count(*) FROM marked WHERE reason IS NULL AND {_BORN_LATER}",
        ),
        "patients_with_sex_not_read": count(
            connection, "SELECT count(*) FROM people WHERE stated_sex IS NOT NULL AND sex IS NULL"
        ),
    }
    # A visit whose events name neither admission nor discharge never became a stay.
    counts["visits_without_admission_or_discharge"] += read - stays
    return counts


def _gather_items(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    connection.execute(f"""
        CREATE TABLE coded AS
        SELECT visit_id, role, detail AS system, value, title, numeric_value,
            coalesce(time > discharge_time, false) AS late
        FROM events JOIN roles USING (code) JOIN marked USING (visit_id)
        WHERE reason IS NULL AND role IN {CODED} AND value IS NOT NULL""")
    connection.execute("""
        CREATE TABLE items AS
        SELECT visit_id, role, system, value, title, min(numeric_value) AS place
        FROM coded WHERE NOT late GROUP BY ALL""")
    return {
        "codes_read": count(connection, "SELECT count(*) FROM coded"),
        "codes_after_discharge": count(connection, "SELECT count(*) FROM coded WHERE late"),
    }


def _assemble(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    lists = ", ".join(
        f"list({{'system': system, 'code': value, 'title': title}} "
        f"ORDER BY place NULLS LAST, system, value) FILTER (role = '{role}') AS {role.lower()}"
        for role in CODED
    )
    age = f"coalesce(stated_age, if({_BORN_LATER}, NULL, {_AGE_DAYS} / 365.25))"
    return connection.sql(f"""
        WITH gathered AS (SELECT visit_id, {lists} FROM items GROUP BY visit_id)
        SELECT visit_id, subject_id, admit_time, discharge_time,
            CAST(CASE WHEN {age} IS NOT NULL THEN least(greatest({age}, 0), {HIGHEST_AGE}) END
                AS FLOAT) AS age_years,
            sex, group_ AS ethnicity, admission_type, died,
            coalesce(diagnosis, []) AS diagnoses, coalesce(medication, []) AS medications,
            coalesce(procedure, []) AS procedures
        FROM marked LEFT JOIN gathered USING (visit_id)
        WHERE reason IS NULL
        ORDER BY subject_id, admit_time, discharge_time, visit_id""").to_arrow_table()
