"""Diabetes 130-US Hospitals 1999–2008 (Strack et al. 2014, doi 10.24432/C5230J) → MEDS.

In: the zip as published, `diabetic_data.csv`, or a folder with either; `IDs_mapping.csv` beside it
names admission types; both may be gzipped. Out: a MEDS dataset with `encounter_id` as `visit_id`
and synthetic times. Ignores: laboratory summaries, counts of earlier visits, payer, specialty, and
`readmitted`, which says whether there is a next visit. Visits are ordered by encounter_id, an
assumption: the data have no dates. Diagnoses keep their truncated codes, under their own system.
"""

import csv
import io
import re
import zipfile
import zlib
from pathlib import Path

import duckdb
import pyarrow as pa

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import (
    ADMISSION,
    AGE,
    DEATH,
    DIAGNOSIS,
    DISCHARGE,
    DRUG_NAME,
    ETHNICITY,
    MEDICATION,
    SEX,
    UCI_ICD9,
    normal_form,
)
from ckd_ehr.data.sources.dataset import open_events, write_dataset
from ckd_ehr.data.sources.extraction import Extraction, Ledger, TableStatus
from ckd_ehr.data.sources.tables import (
    NUMBER_IDS,
    check_renames,
    connect,
    count,
    describe_table,
    explain_unreadable,
    file_digests,
    find_table,
    load,
    open_bytes,
    require_whole_numbers,
)
from ckd_ehr.data.truncated_icd9 import truncated_title_of

TABLE = "diabetic_data"
MAPPING = "IDs_mapping"
NAME = "Diabetes 130-US Hospitals"
DIAGNOSES = ("diag_1", "diag_2", "diag_3")
_DRUG_COLUMNS = (
    "metformin repaglinide nateglinide chlorpropamide glimepiride acetohexamide glipizide "
    "glyburide tolbutamide pioglitazone rosiglitazone acarbose miglitol troglitazone tolazamide "
    "examide citoglipton insulin glyburide-metformin glipizide-metformin "
    "glimepiride-pioglitazone metformin-rosiglitazone metformin-pioglitazone"
)
DRUGS = tuple(_DRUG_COLUMNS.split())
COLUMNS = (
    "encounter_id", "patient_nbr", "race", "gender", "age", "admission_type_id",
    "discharge_disposition_id", "time_in_hospital", *DIAGNOSES, *DRUGS,
)  # fmt: skip
# Columns of whole numbers, each with what to do about a value that is none.
WHOLE_NUMBERS = {
    "encounter_id": NUMBER_IDS,
    "patient_nbr": NUMBER_IDS,
    "time_in_hospital": "write whole days",
    "admission_type_id": f"write its number in {MAPPING}",
    "discharge_disposition_id": f"write its number in {MAPPING}",
}
CODE = re.compile(r"[0-9A-Z]*[0-9][0-9A-Z]*")
# IDs_mapping.csv: expired; expired at home, in a medical facility, place unknown (hospice).
DEATHS = ("11", "19", "20", "21")
UNKNOWN_TYPES = ("NULL", "NOT AVAILABLE", "NOT MAPPED")
_STAYS = f"""
    CREATE TABLE stays AS
    SELECT CAST(patient_nbr AS BIGINT) AS subject_id, encounter_id,
        TIMESTAMP '2000-01-01' + INTERVAL 100 DAY * (row_number() OVER (
            PARTITION BY patient_nbr ORDER BY CAST(encounter_id AS BIGINT)) - 1) AS admit_time,
        admit_time + INTERVAL 1 DAY * CAST(time_in_hospital AS INTEGER) AS discharge_time,
        coalesce(discharge_disposition_id IN {DEATHS}, false) AS died,
        CASE race WHEN 'Caucasian' THEN 'WHITE' WHEN 'AfricanAmerican' THEN 'BLACK'
            WHEN 'Hispanic' THEN 'HISPANIC' WHEN 'Asian' THEN 'ASIAN' WHEN 'Other' THEN 'OTHER'
            ELSE 'UNKNOWN' END AS ethnicity,
        CASE gender WHEN 'Female' THEN 'F' WHEN 'Male' THEN 'M' END AS sex,
        (try_cast(regexp_extract(age, '(\\d+)-', 1) AS FLOAT)
            + try_cast(regexp_extract(age, '-(\\d+)', 1) AS FLOAT)) / 2 AS age_years,
        admission_types.description AS admission_type
    FROM {TABLE} LEFT JOIN admission_types USING (admission_type_id)"""


def tables(settings: DataConfig) -> list[TableStatus]:
    """The zip, or the CSV with the mapping beside it."""
    try:
        files = _files(settings)
    except CkdEhrError:
        files = []
    names = [path.name for path in files]
    whole = len(files) == 1 and _is_zip(files[0])
    mapping = names[0] if whole else next(iter(names[1:]), None)
    size = files[0].stat().st_size if files else None
    return [
        TableStatus(TABLE, "encounters, diagnoses, drugs", True, next(iter(names), None), size),
        TableStatus(MAPPING, "names of admission types", False, mapping),
    ]


def digests(settings: DataConfig) -> dict[str, str]:
    """SHA-256 of the zip, or of the CSV and the mapping beside it."""
    check_renames(settings.columns, {TABLE: COLUMNS})
    files = _files(settings)
    return file_digests(files, files[0].parent)


def extract(extraction: Extraction) -> None:
    """Write the encounters as a MEDS dataset."""
    settings, folder = extraction.settings, extraction.folder
    table, mapping = _unpack(_find(settings), folder / "work")
    with connect(folder, extraction.memory_limit) as connection:
        open_events(connection)
        connection.register("admission_types", _admission_types(mapping))
        described = describe_table(table, TABLE, required=COLUMNS, renames=settings.columns)
        load(connection, described, into=TABLE, missing="?")
        _check_rows(connection, table, extraction.ledger)
        connection.execute(_STAYS)
        _add_stays(connection)
        strange = _add_diagnoses(connection)
        if strange:
            extraction.say(f"{table.name}: {strange:,} diagnoses with a code that is none left out")
        _add_drugs(connection)
        write_dataset(connection, extraction, name=NAME, synthetic_times=True)


def _files(settings: DataConfig) -> list[Path]:
    source = _find(settings)
    mapping = None if _is_zip(source) else find_table(source.parent, MAPPING)
    return [source] if mapping is None else [source, mapping]


def _find(settings: DataConfig) -> Path:
    root = settings.root
    if root is None:
        raise CkdEhrError(
            "data.root is not set; give the zip, the CSV or their folder as data.root=PATH"
        )
    if root.is_file():
        return root
    if not root.is_dir():
        raise CkdEhrError(f"{root}: no such file or folder; give the data as data.root=PATH")
    table = find_table(root, TABLE)
    zips = [path for path in sorted(root.iterdir()) if _is_zip(path)]
    found = [table] if table else zips
    if len(found) != 1:
        raise CkdEhrError(
            f"{root}: found {len(found)} of {TABLE}.csv, .csv.gz, .parquet or *.zip, need one; "
            "name the file itself as data.root=PATH"
        )
    return found[0]


def _is_zip(path: Path) -> bool:
    return path.suffix.casefold() == ".zip"


def _unpack(source: Path, work: Path) -> tuple[Path, str | None]:
    """The table's path, unpacked if need be, and the text of the mapping, if there is one."""
    if not _is_zip(source):
        mapping = find_table(source.parent, MAPPING)
        return source, None if mapping is None else _read_mapping(mapping)
    try:
        with zipfile.ZipFile(source) as archive:
            members = {Path(name).name.casefold(): name for name in archive.namelist()}
            if f"{TABLE}.csv" not in members:
                raise CkdEhrError(
                    f"{source.name}: holds no {TABLE}.csv; download the data set again (UCI 296)"
                )
            work.mkdir(parents=True, exist_ok=True)
            table = work / f"{TABLE}.csv"
            table.write_bytes(archive.read(members[table.name]))
            mapping_name = members.get(f"{MAPPING}.csv".casefold())
            return table, _text_of(archive, mapping_name)
    except (zipfile.BadZipFile, EOFError):
        raise CkdEhrError(
            f"{source.name}: not an intact zip; download the data set again (UCI 296)"
        ) from None


def _read_mapping(path: Path) -> str:
    try:
        with open_bytes(path) as file:
            return file.read().decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error):
        raise explain_unreadable(path) from None


def _text_of(archive: zipfile.ZipFile, name: str | None) -> str | None:
    return None if name is None else archive.read(name).decode("utf-8", "replace")


def _admission_types(mapping: str | None) -> pa.Table:
    """admission_type_id → description in upper case, null where it says nothing."""
    types: dict[str, str | None] = {}
    for row in csv.reader(io.StringIO(mapping or "")):
        if len(row) < 2 or not row[0]:
            break
        description = row[1].strip().upper()
        types[row[0].strip()] = None if description in UNKNOWN_TYPES else description
    types.pop("admission_type_id", None)
    return pa.table(
        {
            "admission_type_id": pa.array(list(types), pa.string()),
            "description": pa.array(list(types.values()), pa.string()),
        }
    )


def _check_rows(connection: duckdb.DuckDBPyConnection, path: Path, ledger: Ledger) -> None:
    ledger.read(path.name, count(connection, f"SELECT count(*) FROM {TABLE}"))
    for column, remedy in WHOLE_NUMBERS.items():
        require_whole_numbers(connection, TABLE, column, path, remedy=remedy)
    unusable = "encounter_id IS NULL OR patient_nbr IS NULL OR time_in_hospital IS NULL"
    dropped = count(connection, f"SELECT count(*) FROM {TABLE} WHERE {unusable}")
    if dropped:
        connection.execute(f"DELETE FROM {TABLE} WHERE {unusable}")
        ledger.leave_out(path.name, "without patient, encounter or length of stay", dropped)
    shared = count(
        connection,
        f"SELECT count(*) - count(DISTINCT encounter_id) FROM {TABLE}",
    )
    if shared:
        raise CkdEhrError(
            f"{path.name}: {shared} stays (column 'encounter_id') stand twice, in the worst case "
            "under two patients (column 'patient_nbr'); a stay is one row: correct the ids"
        )


def _add_stays(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(f"""
        INSERT INTO events
        SELECT subject_id, admit_time, concat_ws('//', '{ADMISSION}', admission_type), NULL,
            encounter_id FROM stays
        UNION ALL
        SELECT subject_id, discharge_time,
            if(died, '{DISCHARGE}//DIED', '{DISCHARGE}'), NULL, encounter_id FROM stays
        UNION ALL
        SELECT subject_id, admit_time, '{ETHNICITY}//' || ethnicity, NULL, encounter_id FROM stays
        UNION ALL
        SELECT subject_id, admit_time, '{AGE}', age_years, encounter_id FROM stays
        WHERE age_years IS NOT NULL
        UNION ALL
        SELECT subject_id, NULL, '{SEX}//' || min_by(sex, admit_time), NULL, NULL
        FROM stays WHERE sex IS NOT NULL GROUP BY subject_id
        UNION ALL
        SELECT subject_id, min(discharge_time), '{DEATH}', NULL, NULL
        FROM stays WHERE died GROUP BY subject_id""")


def _add_diagnoses(connection: duckdb.DuckDBPyConnection) -> int:
    """Add the diagnoses whose codes can be such; how many others there are is returned."""
    positions = " UNION ALL ".join(
        f"SELECT encounter_id, {column} AS written, {position} AS position FROM {TABLE}"
        for position, column in enumerate(DIAGNOSES, start=1)
    )
    connection.execute(f"CREATE TABLE written AS {positions}")
    distinct = connection.execute(
        "SELECT DISTINCT written FROM written WHERE written IS NOT NULL ORDER BY written"
    ).fetchall()
    normal = {written: normal_form(written) for (written,) in distinct}
    codes = {written: code for written, code in normal.items() if CODE.fullmatch(code)}
    keys = [f"{DIAGNOSIS}//{UCI_ICD9}//{code}" for code in codes.values()]
    titles = [truncated_title_of(code) for code in codes.values()]
    names = pa.table(
        {
            "written": pa.array(list(codes), pa.string()),
            "code": pa.array(keys, pa.string()),
            "description": pa.array(titles, pa.string()),
        }
    )
    connection.register("code_names", names)
    connection.execute("""
        INSERT INTO events
        SELECT subject_id, discharge_time, code, min(position), encounter_id
        FROM written JOIN code_names USING (written) JOIN stays USING (encounter_id)
        GROUP BY ALL""")
    connection.execute("INSERT INTO titles SELECT DISTINCT code, description FROM code_names")
    strange = count(
        connection,
        "SELECT count(*) FROM written ANTI JOIN code_names USING (written) "
        "WHERE written IS NOT NULL",
    )
    connection.unregister("code_names")
    return strange


def _add_drugs(connection: duckdb.DuckDBPyConnection) -> None:
    """A drug given at all during the stay: steady, up or down."""
    given = " UNION ALL ".join(
        f"SELECT encounter_id, '{drug}' AS drug FROM {TABLE} "
        f"WHERE lower(coalesce(\"{drug}\", 'no')) <> 'no'"
        for drug in DRUGS
    )
    connection.execute(f"""
        INSERT INTO events
        SELECT subject_id, discharge_time, '{MEDICATION}//{DRUG_NAME}//' || drug, NULL, encounter_id
        FROM ({given}) JOIN stays USING (encounter_id)""")
