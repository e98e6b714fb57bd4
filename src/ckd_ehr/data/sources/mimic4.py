"""MIMIC-IV 1.0 to 3.1 tables → MEDS.

In: the release's folder, whose tables stand in `hosp/` and, in 1.0, `core/`, or `hosp/` itself.
Out: a MEDS dataset whose events carry hadm_id as `visit_id`. Codes of ICD-9 and ICD-10 keep apart,
in one stay too; there is no birth, so that each stay has the AGE that the patient's anchor gives.
Ignores: labs, charts, ICU stays, transfers, the emergency department, drugs that are no MAIN drug,
NDCs.
"""

from pathlib import Path

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import AGE, DIAGNOSIS, ICD9CM, ICD9PROC, ICD10CM, ICD10PCS, PROCEDURE
from ckd_ehr.data.sources.dataset import open_events, write_dataset
from ckd_ehr.data.sources.extraction import Extraction, TableStatus
from ckd_ehr.data.sources.mimic_tables import (
    WHOLE_NUMBERS,
    add_billing_codes,
    add_drugs,
    add_patients,
    add_stays,
    add_titles,
)
from ckd_ehr.data.sources.stay_tables import (
    StayTables,
    WantedTable,
    table_files,
    table_statuses,
)
from ckd_ehr.data.sources.tables import connect, count, file_digests, find_table, read_header

HOSP, CORE = "hosp", "core"
FOLDERS = (HOSP, CORE)
TABLES = {
    "admissions": WantedTable(
        "stays",
        ("subject_id", "hadm_id", "admittime", "dischtime", "hospital_expire_flag"),
        ("deathtime", "admission_type", "discharge_location", "race", "ethnicity"),
        folders=FOLDERS,
    ),
    "patients": WantedTable(
        "sex, age, death",
        ("subject_id", "gender", "anchor_age", "anchor_year"),
        ("dod",),
        folders=FOLDERS,
    ),
    "diagnoses_icd": WantedTable(
        "diagnoses",
        ("subject_id", "hadm_id", "icd_code", "icd_version"),
        ("seq_num",),
        folders=FOLDERS,
    ),
    "procedures_icd": WantedTable(
        "procedures",
        ("subject_id", "hadm_id", "icd_code", "icd_version"),
        ("seq_num",),
        folders=FOLDERS,
    ),
    "prescriptions": WantedTable(
        "drugs", ("subject_id", "hadm_id", "drug_type", "drug", "starttime"), folders=FOLDERS
    ),
    "d_icd_diagnoses": WantedTable(
        "titles of diagnoses",
        ("icd_code", "icd_version", "long_title"),
        needed=False,
        folders=FOLDERS,
    ),
    "d_icd_procedures": WantedTable(
        "titles of procedures",
        ("icd_code", "icd_version", "long_title"),
        needed=False,
        folders=FOLDERS,
    ),
}
# Tables of bills, their dictionaries, what they code, and its system in ICD-9 and in ICD-10.
BILLED = (
    ("diagnoses_icd", "d_icd_diagnoses", DIAGNOSIS, ICD9CM, ICD10CM),
    ("procedures_icd", "d_icd_procedures", PROCEDURE, ICD9PROC, ICD10PCS),
)
ANCHORS = {
    "anchor_age": "write the age in years, as 64",
    "anchor_year": "write the year, as 2153",
}
# In a year y a patient is y + anchor years old.
ANCHOR = "CAST(anchor_age AS BIGINT) - CAST(anchor_year AS BIGINT)"
# 1.0 calls ethnicity what 2.0 and later call race.
STAYS = """
    SELECT * EXCLUDE (race, ethnicity), coalesce(race, ethnicity) AS ethnicity FROM source"""
VERSION = "try_cast(icd_version AS DOUBLE)"
KNOWN_VERSION = f"{VERSION} IN (9, 10)"
OLDEST = 120  # A greater age is a mistake in a year: nobody is in the data for 30 years after 91.


def tables(settings: DataConfig) -> list[TableStatus]:
    """Which tables are there, and in which folder."""
    return table_statuses(_root(settings), TABLES, settings.columns)


def digests(settings: DataConfig) -> dict[str, str]:
    """SHA-256 of the files that a run reads; a missing one is an error."""
    root = _root(settings)
    _refuse_other_layouts(root)
    return file_digests(table_files(root, TABLES, settings.columns), root)


def extract(extraction: Extraction) -> None:
    """Write the tables under `data.root` as a MEDS dataset."""
    root = _root(extraction.settings)
    _refuse_other_layouts(root)
    with connect(extraction.folder, extraction.memory_limit) as connection:
        open_events(connection)
        source = StayTables(
            connection,
            extraction,
            root,
            TABLES,
            whole_numbers=WHOLE_NUMBERS | ANCHORS,
            stays_table="admissions",
        )
        add_stays(source, STAYS)
        add_patients(source, "patients", anchor=ANCHOR)
        _add_ages(source)
        for bill, dictionary, role, icd9, icd10 in BILLED:
            system = f"CASE {VERSION} WHEN 9 THEN '{icd9}' ELSE '{icd10}' END"
            code = {"role": role, "code": "icd_code", "system": system}
            source.load(bill)
            _keep_known_versions(source, bill)
            add_billing_codes(source, bill, **code)
            if source.load(dictionary):
                _keep_known_versions(source, dictionary)
                add_titles(source, dictionary, **code)
        add_drugs(source, "prescriptions", time="starttime")
        write_dataset(connection, extraction, name="MIMIC-IV", shifted_times=True)


def _root(settings: DataConfig) -> Path:
    if settings.root is None:
        raise CkdEhrError(
            "data.root is not set; give the folder of the MIMIC-IV release, which has hosp/ in "
            "it, as data.root=PATH"
        )
    release = settings.root.absolute().parent
    # In 1.0 the stays stand beside hosp/, not in it.
    if settings.root.absolute().name.casefold() == HOSP and (release / CORE).is_dir():
        return release
    return settings.root


def _refuse_other_layouts(root: Path) -> None:
    """Say which source reads a folder that holds another database than MIMIC-IV."""
    bill = TABLES["diagnoses_icd"].find(root, "diagnoses_icd")
    if bill is not None:
        header = {column.strip().casefold() for column in read_header(bill)}
        if "icd9_code" in header and "icd_version" not in header:
            raise CkdEhrError(
                f"{bill.name}: has 'icd9_code' and no 'icd_version', as in MIMIC-III; read it "
                "with data.source=mimic3"
            )
    elif find_table(root, "visit_occurrence") is not None:
        raise CkdEhrError(f"{root}: holds OMOP tables; read them with data.source=omop")
    elif (root / "metadata" / "dataset.json").is_file():
        raise CkdEhrError(f"{root}: holds a MEDS dataset; read it with data.source=meds")


def _keep_known_versions(source: StayTables, name: str) -> None:
    """Leave out codes of other versions than ICD-9 and ICD-10; refuse a table of nothing else."""
    rows = count(source.connection, f"SELECT count(*) FROM {name}")
    known = count(source.connection, f"SELECT count(*) FROM {name} WHERE {KNOWN_VERSION}")
    if rows and not known:
        raise CkdEhrError(
            f"{source.path(name).name}: column 'icd_version': none of its {rows} rows has 9 or 10; "
            "write there which version of ICD a code is of"
        )
    source.leave_out(name, "of an icd_version other than 9 and 10", unless=KNOWN_VERSION)


def _add_ages(source: StayTables) -> None:
    """Add the age at each admission: a difference of years, one year off at most.

    The anchor is the patient's age in one of the shifted years; 91 stands for all above 89.
    """
    source.connection.execute("""
        CREATE TABLE ages AS
        SELECT subject_id, hadm_id, admit_time, year(admit_time) + anchor AS age
        FROM stays LEFT JOIN people USING (subject_id)""")
    source.connection.execute(
        f"INSERT INTO events SELECT subject_id, admit_time, '{AGE}', age, hadm_id FROM ages "
        f"WHERE age BETWEEN 0 AND {OLDEST}"
    )
    for problem, condition in (
        ("without an age: patient, anchor_age or anchor_year missing", "age IS NULL"),
        (f"without an age: below 0 or above {OLDEST}", f"age NOT BETWEEN 0 AND {OLDEST}"),
    ):
        stays = count(source.connection, f"SELECT count(*) FROM ages WHERE {condition}")
        if stays:
            source.extraction.say(f"{source.path('patients').name}: {stays:,} stays {problem}")
