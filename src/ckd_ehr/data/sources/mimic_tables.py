"""What MIMIC-III and MIMIC-IV have in common: stays, patients, bills and prescriptions → events.

In: `StayTables`, and how a release calls its columns. Out: rows in `events` and `titles`; billing
codes at discharge, when they are first known; a stay that ended in death is discharged as
`HOSPITAL_DISCHARGE//DIED`. Ignores: where the tables are, and how old a patient is.
"""

from collections.abc import Sequence

from ckd_ehr.contracts.records import (
    ADMISSION,
    DEATH,
    DISCHARGE,
    DRUG_NAME,
    ETHNICITY,
    MEDICATION,
    PROCEDURE,
    SEX,
)
from ckd_ehr.data.sources.stay_tables import ETHNICITY_GROUP, StayTables
from ckd_ehr.data.sources.tables import NUMBER_IDS, count, wall_time_sql

# Columns of whole numbers, each with what to do about a value that is none.
WHOLE_NUMBERS = {
    "subject_id": NUMBER_IDS,
    "hadm_id": NUMBER_IDS,
    "hospital_expire_flag": "write 0 or 1 (1: the stay ended in death)",
}


def add_stays(source: StayTables, query: str = "SELECT * FROM source") -> None:
    """Make `stays` of the table of stays, and its events.

    `query` gives the columns that MIMIC-III has, the patient's group as `ethnicity`.
    """
    name = source.stays_table
    source.load(name, query)
    source.require_times(name, ("admittime", "dischtime", "deathtime"))
    source.leave_out(
        name,
        "without patient, stay or time",
        unless="subject_id IS NOT NULL AND hadm_id IS NOT NULL "
        "AND admittime IS NOT NULL AND dischtime IS NOT NULL",
    )
    source.refuse_no_rows(name)
    source.connection.execute(f"""
        CREATE TABLE read_stays AS
        SELECT DISTINCT CAST(subject_id AS BIGINT) AS subject_id, hadm_id,
            CAST(admittime AS TIMESTAMP) AS admit_time,
            CAST(dischtime AS TIMESTAMP) AS discharge_time,
            CAST(deathtime AS TIMESTAMP) AS death_time,
            coalesce(hospital_expire_flag, '0') = '1' OR deathtime IS NOT NULL AS died,
            upper(admission_type) AS admission_type,
            upper(discharge_location) AS discharge_location,
            {ETHNICITY_GROUP} AS ethnicity
        FROM (SELECT * REPLACE (upper(ethnicity) AS ethnicity) FROM {name.lower()})""")
    source.connection.execute("""
        CREATE TABLE stays AS
        SELECT subject_id, hadm_id, min(admit_time) AS admit_time,
            max(discharge_time) AS discharge_time, min(death_time) AS death_time,
            bool_or(died) AS died, min(admission_type) AS admission_type,
            min(discharge_location) AS discharge_location, min(ethnicity) AS ethnicity
        FROM read_stays GROUP BY ALL""")
    source.refuse_shared_stays()
    _say_differing(
        source, name, "read_stays", "hadm_id",
        "stays stand in several rows that differ: first admission and last discharge were taken",
    )  # fmt: skip
    source.connection.execute(f"""
        INSERT INTO events
        SELECT subject_id, admit_time, concat_ws('//', '{ADMISSION}', admission_type), NULL, hadm_id
        FROM stays
        UNION ALL
        SELECT subject_id, discharge_time,
            concat_ws('//', '{DISCHARGE}', CASE WHEN died THEN 'DIED' ELSE discharge_location END),
            NULL, hadm_id
        FROM stays
        UNION ALL
        SELECT subject_id, admit_time, '{ETHNICITY}//' || ethnicity, NULL, hadm_id FROM stays""")


def add_patients(
    source: StayTables, name: str, *, anchor: str, times: Sequence[str] = ("dod",)
) -> None:
    """Load the table of patients, and add their sex and death; make `people`, with `anchor`.

    The hour of a death in hospital, where a stay has it, is preferred to the day.

    Args:
        anchor: what tells the age, in SQL; the least of several becomes `people.anchor`.
        times: the columns of times.
    """
    source.load(name)
    source.require_times(name, times)
    source.leave_out(name, "without patient", unless="subject_id IS NOT NULL")
    source.connection.execute(f"""
        CREATE TABLE read_people AS
        SELECT DISTINCT CAST(subject_id AS BIGINT) AS subject_id, upper(gender) AS sex,
            CAST(dod AS TIMESTAMP) AS death, {anchor} AS anchor
        FROM {name.lower()}""")
    _say_differing(
        source, name, "read_people", "subject_id",
        "patients stand in several rows that differ: of each value the least was taken",
    )  # fmt: skip
    source.connection.execute("""
        CREATE TABLE people AS
        SELECT subject_id, min(sex) AS sex, min(death) AS death, min(anchor) AS anchor
        FROM read_people GROUP BY ALL""")
    source.connection.execute(f"""
        INSERT INTO events
        WITH deaths AS (
            SELECT subject_id, min(death_time) AS in_hospital FROM stays GROUP BY subject_id)
        SELECT subject_id, NULL, '{SEX}//' || sex, NULL, NULL FROM people WHERE sex IS NOT NULL
        UNION ALL
        SELECT subject_id, coalesce(in_hospital, death), '{DEATH}', NULL, NULL
        FROM people FULL JOIN deaths USING (subject_id)
        WHERE coalesce(in_hospital, death) IS NOT NULL""")


def _say_differing(source: StayTables, name: str, rows: str, key: str, problem: str) -> None:
    """Say how many keys have several of the distinct `rows` read of a table."""
    differing = count(
        source.connection,
        f"SELECT count(*) FROM (SELECT {key} FROM {rows} GROUP BY {key} HAVING count(*) > 1)",
    )
    if differing:
        source.extraction.say(f"{source.path(name).name}: {differing:,} {problem}")


def plain_sql(column: str) -> str:
    """`plain_code` of a column in SQL: without dots and blanks, in upper case."""
    return rf"upper(regexp_replace({column}, '[\s.]', '', 'g'))"


def add_billing_codes(source: StayTables, name: str, *, role: str, code: str, system: str) -> None:
    """Add the codes of a loaded table, each once a stay, with its first place on the bill.

    Args:
        role: what is coded, `DIAGNOSIS` or `PROCEDURE`.
        code: the column with the code.
        system: the code's system, in SQL.
    """
    table = name.lower()
    source.refuse_foreign_table(name)
    source.leave_out(
        name,
        "without patient, stay or code",
        unless=f"subject_id IS NOT NULL AND hadm_id IS NOT NULL AND {plain_sql(code)} <> ''",
    )
    source.leave_out(name, "with a code that is none", unless=_code_sql(role, code))
    source.match_stays(name)
    source.connection.execute(f"""
        INSERT INTO events
        SELECT stays.subject_id, discharge_time,
            concat('{role}//', {system}, '//', {plain_sql(code)}),
            min(try_cast(seq_num AS FLOAT)), hadm_id
        FROM {table} JOIN stays USING (hadm_id) GROUP BY ALL""")
    source.connection.execute(f"DROP TABLE {table}")


def _code_sql(role: str, column: str) -> str:
    """Whether a code may be one of ICD, in SQL: letters and digits, and among them a digit.

    A procedure of ICD-10 may do without one (GZHZZZZ, group psychotherapy); it never has I or O.
    """
    digit = "[0-9A-Z]*[0-9][0-9A-Z]*"
    shape = f"{digit}|[A-HJ-NP-Z]{{7}}" if role == PROCEDURE else digit
    return f"regexp_full_match({plain_sql(column)}, '{shape}')"


def add_titles(source: StayTables, name: str, *, role: str, code: str, system: str) -> None:
    """Add the titles of a loaded dictionary; arguments as of `add_billing_codes`."""
    source.leave_out(
        name,
        "without code or title",
        unless=f"{plain_sql(code)} <> '' AND long_title IS NOT NULL",
    )
    source.connection.execute(
        f"INSERT INTO titles SELECT concat('{role}//', {system}, '//', {plain_sql(code)}), "
        f"min(long_title) FROM {name.lower()} GROUP BY ALL"
    )


def add_drugs(source: StayTables, name: str, *, time: str) -> None:
    """Add the MAIN drugs, one name a stay, at the first time given in the column `time`."""
    source.load(name, _first_given(time), rows="sum(copies)")
    source.leave_out(name, "of no MAIN drug", unless="is_main")
    source.require_times(name, (time,))
    source.refuse_foreign_table(name)
    source.leave_out(
        name,
        "without patient, stay or drug",
        unless="subject_id IS NOT NULL AND hadm_id IS NOT NULL AND drug IS NOT NULL",
    )
    source.match_stays(name)
    source.name_drugs(name, "drug")
    # A drug without a date was given by the end of the stay at the latest.
    source.connection.execute(f"""
        INSERT INTO events
        SELECT stays.subject_id, min(coalesce(CAST({time} AS TIMESTAMP), discharge_time)),
            '{MEDICATION}//{DRUG_NAME}//' || name, NULL, hadm_id
        FROM {name.lower()} JOIN stays USING (hadm_id) JOIN drug_names USING (drug) GROUP BY ALL""")
    source.connection.execute(f"DROP TABLE {name.lower()}")


def _first_given(time: str) -> str:
    """Prescriptions folded while they are read: millions become a fraction.

    Only times that are written alike are folded, so that no other offset from UTC, no text that
    is no time and no hour of a day is lost behind a drug's first time: what follows the time of
    day is kept apart, and so are midnights, of which dates are made.
    """
    offset = "substr(written, if(substr(written, 17, 1) = ':', 20, 17))"
    return f"""
        SELECT if(is_main, subject_id, NULL) AS subject_id, if(is_main, hadm_id, NULL) AS hadm_id,
            if(is_main, drug, NULL) AS drug, is_main,
            coalesce(arg_min(written, read), min(written)) AS {time}, count(*) AS copies
        FROM (
            SELECT subject_id, hadm_id, drug, {time} AS written,
                {wall_time_sql(time)} AS read,
                upper(drug_type) IS NOT DISTINCT FROM 'MAIN' AS is_main
            FROM source)
        GROUP BY 1, 2, 3, is_main, length(written), {offset}, read = date_trunc('day', read)"""
