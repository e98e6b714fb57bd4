"""Events of a MEDS dataset → stays, and which stay each event belongs to.

In: the tables `raw` (events with a role, equal ones folded) and `roles`. Out: the tables `stays`
(a row a stay) and `placed` (codes and ages with their stay). Ignores: what the codes mean. Events
that belong to no stay are entered in the ledger.
"""

import duckdb

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.extraction import Extraction
from ckd_ehr.data.sources.meds_files import EVENTS_TABLE, MedsFiles
from ckd_ehr.data.sources.tables import count

BOUNDS = ("admission", "discharge")
OLDEST = 130  # years; nobody was ever older than 122
PLACED = ("diagnosis", "medication", "procedure", "age")
_STAYS_BY_ID = f"""
    CREATE TABLE stays AS
    SELECT visit, min(subject_id) AS subject_id,
        min(time) FILTER (raw.role = 'admission') AS admit_time,
        coalesce(max(time) FILTER (raw.role = 'discharge'),
            max(ended) FILTER (raw.role = 'admission')) AS discharge_time,
        min(value) FILTER (raw.role = 'admission') AS kind,
        min(value) FILTER (raw.role = 'discharge') AS place,
        coalesce(bool_or(raw.role = 'discharge' AND value = 'DIED'), false) AS died,
        min(race) AS race
    FROM raw JOIN roles USING (id)
    WHERE raw.role IN {BOUNDS} AND visit IS NOT NULL GROUP BY visit"""
# Admissions and discharges without an id, in order; at one time the discharge comes first.
_BOUNDS_BY_TIME = f"""
    CREATE TABLE bounds AS
    WITH folded AS (
        SELECT subject_id, time, raw.role AS role, min(value) AS value, max(ended) AS ended,
            coalesce(bool_or(value = 'DIED'), false) AS died, min(race) AS race,
            sum(copies) AS copies
        FROM raw JOIN roles USING (id)
        WHERE raw.role IN {BOUNDS} AND visit IS NULL AND time IS NOT NULL GROUP BY ALL)
    SELECT *, lag(role) OVER stays AS before, lead(role) OVER stays AS after,
        lead(time) OVER stays AS after_time, lead(value) OVER stays AS after_value,
        lead(died) OVER stays AS after_died
    FROM folded
    WINDOW stays AS (PARTITION BY subject_id ORDER BY time, role = 'admission')"""
_STAYS_BY_TIME = """
    INSERT INTO stays
    SELECT subject_id || '@' || time, subject_id, time,
        if(after = 'discharge', after_time, ended), value,
        if(after = 'discharge', after_value, NULL),
        after = 'discharge' AND after_died, race
    FROM bounds
    WHERE role = 'admission' AND (after = 'discharge' OR ended IS NOT NULL)"""
# The stay that holds a time: of several, the one that ends first. A date without an hour belongs
# to the stays of that whole day.
_PLACES = """
    CREATE TABLE places AS
    WITH moments AS (
        SELECT DISTINCT subject_id, time FROM raw
        WHERE visit IS NULL AND time IS NOT NULL AND role IN {roles})
    SELECT subject_id, time,
        first(visit ORDER BY discharge_time, admit_time DESC, visit) AS visit
    FROM moments JOIN stays USING (subject_id)
    WHERE time <= discharge_time
        AND time >= if(time = date_trunc('day', time), date_trunc('day', admit_time), admit_time)
    GROUP BY subject_id, time"""
_PLACED = """
    CREATE TABLE placed AS
    SELECT raw.id, raw.role, raw.time, raw.place, copies,
        CASE WHEN raw.visit IS NOT NULL THEN stays.visit ELSE places.visit END AS visit,
        coalesce(number, try_cast(regexp_extract(value, '^-?[0-9]+|[0-9]+') AS FLOAT)) AS age,
        raw.visit IS NOT NULL AS named
    FROM raw JOIN roles USING (id) LEFT JOIN stays USING (visit)
        LEFT JOIN places ON places.subject_id = raw.subject_id AND places.time = raw.time
    WHERE raw.role IN {roles}"""


def add_stays(
    connection: duckdb.DuckDBPyConnection, extraction: Extraction, found: MedsFiles
) -> None:
    """Make the table `stays`: first those that an id names, then those that time tells."""
    _refuse_shared(connection, found)
    connection.execute(_STAYS_BY_ID)
    connection.execute(_BOUNDS_BY_TIME)
    connection.execute(_STAYS_BY_TIME)
    lone = {
        "of admissions without a discharge before the next one": "role = 'admission' "
        "AND after IS DISTINCT FROM 'discharge' AND ended IS NULL",
        "of discharges without an admission": "role = 'discharge' "
        "AND before IS DISTINCT FROM 'admission'",
    }
    for reason, condition in lone.items():
        rows = count(connection, f"SELECT sum(copies) FROM bounds WHERE {condition}")
        extraction.ledger.leave_out(EVENTS_TABLE, reason, rows)
    rows = count(
        connection,
        f"SELECT sum(copies) FROM raw WHERE role IN {BOUNDS} AND visit IS NULL AND time IS NULL",
    )
    extraction.ledger.leave_out(
        EVENTS_TABLE, "of admissions or discharges without stay and time", rows
    )


def place_events(connection: duckdb.DuckDBPyConnection, extraction: Extraction) -> None:
    """Make the table `placed`; count and leave out what belongs to no stay."""
    connection.execute(_PLACES.format(roles=PLACED))
    connection.execute(_PLACED.format(roles=PLACED))
    reasons = {
        "of visits without an admission or a discharge": "named",
        "without a visit and outside every stay": "NOT named AND time IS NOT NULL",
        "without visit and time": "NOT named AND time IS NULL",
    }
    for reason, condition in reasons.items():
        rows = count(
            connection, f"SELECT sum(copies) FROM placed WHERE visit IS NULL AND {condition}"
        )
        extraction.ledger.leave_out(EVENTS_TABLE, reason, rows)
    connection.execute("DELETE FROM placed WHERE visit IS NULL")
    no_ages = {
        "of ages without a number": "age IS NULL",
        f"of ages below 0 or above {OLDEST}": f"age NOT BETWEEN 0 AND {OLDEST}",
    }
    for reason, condition in no_ages.items():
        strange = f"role = 'age' AND {condition}"
        rows = count(connection, f"SELECT sum(copies) FROM placed WHERE {strange}")
        extraction.ledger.leave_out(EVENTS_TABLE, reason, rows)
        connection.execute(f"DELETE FROM placed WHERE {strange}")
    rows = count(
        connection,
        "SELECT sum(copies) FROM raw ANTI JOIN stays USING (visit) "
        "WHERE role = 'ethnicity' AND visit IS NOT NULL",
    )
    extraction.ledger.leave_out(
        EVENTS_TABLE, "of ethnicities of visits without an admission or a discharge", rows
    )


def _refuse_shared(connection: duckdb.DuckDBPyConnection, found: MedsFiles) -> None:
    shared = count(
        connection,
        "SELECT count(*) FROM (SELECT visit FROM raw WHERE visit IS NOT NULL GROUP BY visit "
        "HAVING min(subject_id) <> max(subject_id))",
    )
    if shared:
        raise CkdEhrError(
            f"{EVENTS_TABLE}: {shared} stays (column '{found.names['visit_id']}') stand under two "
            "patients; correct the ids or, if the column does not name stays, name the one that "
            "does with data.meds.visit_id (none: stays by time alone)"
        )
