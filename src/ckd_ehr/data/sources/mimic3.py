"""MIMIC-III 1.4 tables → MEDS.

In: a folder with ADMISSIONS, PATIENTS, DIAGNOSES_ICD, PROCEDURES_ICD, PRESCRIPTIONS and, for
titles, D_ICD_DIAGNOSES and D_ICD_PROCEDURES, as `.csv` or `.csv.gz`. Out: a MEDS dataset whose
events carry HADM_ID as `visit_id`. Ignores: labs, notes, charts, ICU stays, drugs that are no MAIN
drug. Billing codes get the time of discharge, when they are first known; a stay that ended in
death is discharged as `HOSPITAL_DISCHARGE//DIED`.
"""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import (
    ADMISSION,
    BIRTH,
    DEATH,
    DIAGNOSIS,
    DISCHARGE,
    DRUG_NAME,
    ETHNICITY,
    ICD9CM,
    ICD9PROC,
    MEDICATION,
    PROCEDURE,
    SEX,
)
from ckd_ehr.data.sources.dataset import open_events, write_dataset
from ckd_ehr.data.sources.drug_names import drug_name
from ckd_ehr.data.sources.tables import (
    NUMBER_IDS,
    check_renames,
    connect,
    count,
    describe_table,
    find_table,
    load,
    require_table,
    require_times,
    require_whole_numbers,
)

REQUIRED = {
    "ADMISSIONS": ("subject_id", "hadm_id", "admittime", "dischtime", "hospital_expire_flag"),
    "PATIENTS": ("subject_id", "gender", "dob"),
    "DIAGNOSES_ICD": ("subject_id", "hadm_id", "icd9_code"),
    "PROCEDURES_ICD": ("subject_id", "hadm_id", "icd9_code"),
    "PRESCRIPTIONS": ("subject_id", "hadm_id", "drug_type", "drug", "startdate"),
}
TITLES = {
    "D_ICD_DIAGNOSES": ("icd9_code", "long_title"),
    "D_ICD_PROCEDURES": ("icd9_code", "long_title"),
}
OPTIONAL_COLUMNS = {
    "ADMISSIONS": ("deathtime", "admission_type", "discharge_location", "ethnicity"),
    "PATIENTS": ("dod",),
    "DIAGNOSES_ICD": ("seq_num",),
    "PROCEDURES_ICD": ("seq_num",),
}
# Columns of whole numbers, each with what to do about a value that is none.
WHOLE_NUMBERS = {
    "subject_id": NUMBER_IDS,
    "hadm_id": NUMBER_IDS,
    "hospital_expire_flag": "write 0 or 1 (1: the stay ended in death)",
}
ICD_CODE = r"upper(regexp_replace(icd9_code, '[\s.]', '', 'g'))"
# Coarse, because finer groups have too few patients to report on.
ETHNICITY_GROUP = """CASE
    WHEN ethnicity IS NULL OR regexp_matches(ethnicity, 'UNKNOWN|UNABLE|DECLINED|NOT SPECIFIED')
        THEN 'UNKNOWN'
    WHEN starts_with(ethnicity, 'WHITE') THEN 'WHITE'
    WHEN contains(ethnicity, 'BLACK') THEN 'BLACK'
    WHEN regexp_matches(ethnicity, 'HISPANIC|LATINO') THEN 'HISPANIC'
    WHEN starts_with(ethnicity, 'ASIAN') THEN 'ASIAN'
    ELSE 'OTHER' END"""

_STAYS = f"""
    CREATE TABLE stays AS
    SELECT CAST(subject_id AS BIGINT) AS subject_id, hadm_id,
        min(CAST(admittime AS TIMESTAMP)) AS admit_time,
        max(CAST(dischtime AS TIMESTAMP)) AS discharge_time,
        min(CAST(deathtime AS TIMESTAMP)) AS death_time,
        bool_or(coalesce(hospital_expire_flag, '0') = '1' OR deathtime IS NOT NULL) AS died,
        min(upper(admission_type)) AS admission_type,
        min(upper(discharge_location)) AS discharge_location,
        min({ETHNICITY_GROUP}) AS ethnicity
    FROM (SELECT * REPLACE (upper(ethnicity) AS ethnicity) FROM admissions) GROUP BY ALL"""


def files(settings: DataConfig) -> list[Path]:
    """The files that a run reads."""
    columns = {
        table: (*wanted, *OPTIONAL_COLUMNS.get(table, ()))
        for table, wanted in (REQUIRED | TITLES).items()
    }
    check_renames(settings.columns, columns)
    root = _root(settings)
    required = [require_table(root, name) for name in REQUIRED]
    titles = [find_table(root, name) for name in TITLES]
    return [*required, *(path for path in titles if path is not None)]


def extract(settings: DataConfig, folder: Path, say: Callable[[str], None]) -> None:
    """Write the tables under `data.root` as a MEDS dataset into `folder`."""
    files(settings)
    extract_tables(settings, _root(settings), folder, say, name="MIMIC-III")


def extract_tables(
    settings: DataConfig, root: Path, folder: Path, say: Callable[[str], None], *, name: str
) -> None:
    """Write tables of MIMIC-III's layout as a MEDS dataset called `name`."""
    with connect(folder) as connection:
        open_events(connection)
        _add_stays(connection, settings, root, say)
        _add_patients(connection, settings, root, say)
        for table, role, system in (
            ("DIAGNOSES_ICD", DIAGNOSIS, ICD9CM),
            ("PROCEDURES_ICD", PROCEDURE, ICD9PROC),
        ):
            _add_billing_codes(
                connection, settings, root, say, table=table, role=role + "//" + system
            )
        _add_drugs(connection, settings, root, say)
        _add_titles(connection, settings, root, "D_ICD_DIAGNOSES", f"{DIAGNOSIS}//{ICD9CM}")
        _add_titles(connection, settings, root, "D_ICD_PROCEDURES", f"{PROCEDURE}//{ICD9PROC}")
        write_dataset(connection, folder, name=name)


def _root(settings: DataConfig) -> Path:
    if settings.root is None:
        raise CkdEhrError(
            "data.root is not set; give the folder with the MIMIC-III tables as data.root=PATH"
        )
    return settings.root


def _load(
    connection: duckdb.DuckDBPyConnection,
    settings: DataConfig,
    root: Path,
    name: str,
    query: str = "SELECT * FROM source",
) -> Path:
    """Load a table under its own name in lower case; ids are checked to be whole numbers."""
    path = require_table(root, name)
    required = (REQUIRED | TITLES)[name]
    table = describe_table(
        path,
        name,
        required=required,
        optional=OPTIONAL_COLUMNS.get(name, ()),
        renames=settings.columns,
    )
    load(connection, table, into=name.lower(), query=query)
    for column, remedy in WHOLE_NUMBERS.items():
        if column in required:
            require_whole_numbers(connection, name.lower(), column, path, remedy=remedy)
    return path


def _add_stays(
    connection: duckdb.DuckDBPyConnection,
    settings: DataConfig,
    root: Path,
    say: Callable[[str], None],
) -> None:
    path = _load(connection, settings, root, "ADMISSIONS")
    for column in ("admittime", "dischtime", "deathtime"):
        require_times(connection, "admissions", column, path)
    _say_dropped(
        connection, "admissions", path, say,
        usable="subject_id IS NOT NULL AND hadm_id IS NOT NULL "
        "AND admittime IS NOT NULL AND dischtime IS NOT NULL",
        lacking="patient, stay or time",
    )  # fmt: skip
    _refuse_no_rows(connection, "admissions", path)
    connection.execute(_STAYS)
    shared = count(
        connection,
        "SELECT count(*) FROM (SELECT hadm_id FROM stays GROUP BY hadm_id HAVING count(*) > 1)",
    )
    if shared:
        raise CkdEhrError(_shared_stay(path, shared))
    connection.execute(f"""
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


def _add_patients(
    connection: duckdb.DuckDBPyConnection,
    settings: DataConfig,
    root: Path,
    say: Callable[[str], None],
) -> None:
    path = _load(connection, settings, root, "PATIENTS")
    for column in ("dob", "dod"):
        require_times(connection, "patients", column, path)
    _say_dropped(
        connection, "patients", path, say, usable="subject_id IS NOT NULL", lacking="patient"
    )
    connection.execute(f"""
        INSERT INTO events
        WITH people AS (
            SELECT CAST(subject_id AS BIGINT) AS subject_id, min(upper(gender)) AS sex,
                min(CAST(dob AS TIMESTAMP)) AS birth, min(CAST(dod AS TIMESTAMP)) AS death
            FROM patients GROUP BY ALL),
        deaths AS (SELECT subject_id, min(death_time) AS in_hospital FROM stays GROUP BY subject_id)
        SELECT subject_id, NULL, '{SEX}//' || sex, NULL, NULL FROM people WHERE sex IS NOT NULL
        UNION ALL
        SELECT subject_id, birth, '{BIRTH}', NULL, NULL FROM people WHERE birth IS NOT NULL
        UNION ALL
        SELECT subject_id, coalesce(in_hospital, death), '{DEATH}', NULL, NULL
        FROM people FULL JOIN deaths USING (subject_id)
        WHERE coalesce(in_hospital, death) IS NOT NULL""")


def _add_billing_codes(
    connection: duckdb.DuckDBPyConnection,
    settings: DataConfig,
    root: Path,
    say: Callable[[str], None],
    *,
    table: str,
    role: str,
) -> None:
    path = _load(connection, settings, root, table)
    name = table.lower()
    _refuse_foreign_table(connection, name, path)
    _say_dropped(
        connection, name, path, say,
        usable=f"subject_id IS NOT NULL AND hadm_id IS NOT NULL AND {ICD_CODE} <> ''",
        lacking="patient, stay or code",
    )  # fmt: skip
    _refuse_strange_stays(connection, name, path, say)
    connection.execute(f"""
        INSERT INTO events
        SELECT stays.subject_id, discharge_time, '{role}//' || {ICD_CODE},
            min(try_cast(seq_num AS FLOAT)), hadm_id
        FROM {name} JOIN stays USING (hadm_id) GROUP BY ALL""")


def _add_drugs(
    connection: duckdb.DuckDBPyConnection,
    settings: DataConfig,
    root: Path,
    say: Callable[[str], None],
) -> None:
    path = _load(
        connection, settings, root, "PRESCRIPTIONS",
        query="SELECT subject_id, hadm_id, drug, startdate, count(*) AS copies FROM source "
        "WHERE upper(drug_type) = 'MAIN' GROUP BY ALL",
    )  # fmt: skip
    require_times(connection, "prescriptions", "startdate", path)
    _refuse_foreign_table(connection, "prescriptions", path, rows="sum(copies)")
    _say_dropped(
        connection, "prescriptions", path, say, rows="sum(copies)",
        usable="subject_id IS NOT NULL AND hadm_id IS NOT NULL AND drug IS NOT NULL",
        lacking="patient, stay or drug",
    )  # fmt: skip
    _refuse_strange_stays(connection, "prescriptions", path, say, rows="sum(copies)")
    ordered = connection.execute("SELECT DISTINCT drug FROM prescriptions ORDER BY drug").fetchall()
    names = pa.table(
        {
            "drug": pa.array([drug for (drug,) in ordered], pa.string()),
            "name": pa.array([drug_name(drug) for (drug,) in ordered], pa.string()),
        }
    )
    connection.register("drug_names", names)
    # A drug without a date was given by the end of the stay at the latest.
    connection.execute(f"""
        INSERT INTO events
        SELECT stays.subject_id, min(coalesce(CAST(startdate AS TIMESTAMP), discharge_time)),
            '{MEDICATION}//{DRUG_NAME}//' || name, NULL, hadm_id
        FROM prescriptions JOIN stays USING (hadm_id) JOIN drug_names USING (drug) GROUP BY ALL""")
    connection.unregister("drug_names")


def _add_titles(
    connection: duckdb.DuckDBPyConnection, settings: DataConfig, root: Path, table: str, role: str
) -> None:
    if find_table(root, table) is None:
        return
    _load(connection, settings, root, table)
    connection.execute(
        f"INSERT INTO titles SELECT '{role}//' || {ICD_CODE}, min(long_title) "
        f"FROM {table.lower()} WHERE {ICD_CODE} <> '' AND long_title IS NOT NULL GROUP BY ALL"
    )


def _say_dropped(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    path: Path,
    say: Callable[[str], None],
    *,
    usable: str,
    lacking: str,
    rows: str = "count(*)",
) -> None:
    """Drop the rows that are not usable, and say how many."""
    dropped = count(connection, f"SELECT {rows} FROM {table} WHERE ({usable}) IS NOT TRUE")
    if dropped:
        connection.execute(f"DELETE FROM {table} WHERE ({usable}) IS NOT TRUE")
        say(f"{path.name}: {dropped} rows without {lacking} dropped")


def _refuse_no_rows(connection: duckdb.DuckDBPyConnection, table: str, path: Path) -> None:
    if not count(connection, f"SELECT count(*) FROM {table}"):
        raise CkdEhrError(
            f"{path.name}: no rows with a patient, a stay and its times; export the table again, "
            "with its rows"
        )


def _refuse_foreign_table(
    connection: duckdb.DuckDBPyConnection, table: str, path: Path, *, rows: str = "count(*)"
) -> None:
    """Refuse a table of which no row at all belongs to a stay: dropping it would pass unseen."""
    total = count(connection, f"SELECT {rows} FROM {table}")
    known = "hadm_id IN (SELECT hadm_id FROM stays)"
    if total and not count(connection, f"SELECT {rows} FROM {table} WHERE {known}"):
        stays = count(connection, "SELECT count(*) FROM stays")
        raise CkdEhrError(
            f"{path.name}: none of its {total} rows belongs to one of the {stays} stays of "
            "ADMISSIONS (column 'hadm_id'); export both tables from the same database, with ids "
            "written alike"
        )


def _refuse_strange_stays(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    path: Path,
    say: Callable[[str], None],
    *,
    rows: str = "count(*)",
) -> None:
    """Refuse a stay under another patient than in ADMISSIONS; drop rows of unknown stays."""
    shared = count(
        connection,
        f"SELECT count(DISTINCT hadm_id) FROM {table} JOIN stays USING (hadm_id) "
        f"WHERE CAST({table}.subject_id AS BIGINT) <> stays.subject_id",
    )
    if shared:
        raise CkdEhrError(_shared_stay(path, shared))
    _say_dropped(
        connection, table, path, say, rows=rows,
        usable="hadm_id IN (SELECT hadm_id FROM stays)", lacking="a stay in ADMISSIONS",
    )  # fmt: skip


def _shared_stay(path: Path, stays: int) -> str:
    return (
        f"{path.name}: {stays} stays (column 'hadm_id') stand under two patients (column "
        "'subject_id'); a stay belongs to one patient: correct the ids in the table"
    )
