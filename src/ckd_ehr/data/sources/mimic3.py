"""MIMIC-III 1.4 tables → MEDS.

In: a folder with ADMISSIONS, PATIENTS, DIAGNOSES_ICD, PROCEDURES_ICD, PRESCRIPTIONS and, for
titles, D_ICD_DIAGNOSES and D_ICD_PROCEDURES, as CSV (gzipped or not) or Parquet. Out: a MEDS
dataset whose events carry HADM_ID as `visit_id`. Ignores: labs, notes, charts, ICU stays, drugs
that are no MAIN drug. Billing codes get the time of discharge, when they are first known; a stay
that ended in death is discharged as `HOSPITAL_DISCHARGE//DIED`.
"""

from pathlib import Path

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import BIRTH, DIAGNOSIS, ICD9CM, ICD9PROC, PROCEDURE
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
from ckd_ehr.data.sources.tables import connect, file_digests, quoted

TABLES = {
    "ADMISSIONS": WantedTable(
        "stays",
        ("subject_id", "hadm_id", "admittime", "dischtime", "hospital_expire_flag"),
        ("deathtime", "admission_type", "discharge_location", "ethnicity"),
    ),
    "PATIENTS": WantedTable("sex, birth, death", ("subject_id", "gender", "dob"), ("dod",)),
    "DIAGNOSES_ICD": WantedTable("diagnoses", ("subject_id", "hadm_id", "icd9_code"), ("seq_num",)),
    "PROCEDURES_ICD": WantedTable(
        "procedures", ("subject_id", "hadm_id", "icd9_code"), ("seq_num",)
    ),
    "PRESCRIPTIONS": WantedTable(
        "drugs", ("subject_id", "hadm_id", "drug_type", "drug", "startdate")
    ),
    "D_ICD_DIAGNOSES": WantedTable(
        "titles of diagnoses", ("icd9_code", "long_title"), needed=False
    ),
    "D_ICD_PROCEDURES": WantedTable(
        "titles of procedures", ("icd9_code", "long_title"), needed=False
    ),
}
# Tables of bills, their dictionaries, and what and how they code.
BILLED = (
    ("DIAGNOSES_ICD", "D_ICD_DIAGNOSES", DIAGNOSIS, ICD9CM),
    ("PROCEDURES_ICD", "D_ICD_PROCEDURES", PROCEDURE, ICD9PROC),
)


def tables(settings: DataConfig) -> list[TableStatus]:
    """Which tables are there."""
    return table_statuses(_root(settings), TABLES, settings.columns)


def digests(settings: DataConfig) -> dict[str, str]:
    """SHA-256 of the files that a run reads; a missing one is an error."""
    root = _root(settings)
    return file_digests(table_files(root, TABLES, settings.columns), root)


def extract(extraction: Extraction) -> None:
    """Write the tables under `data.root` as a MEDS dataset."""
    extract_tables(extraction, _root(extraction.settings), name="MIMIC-III", shifted_times=True)


def extract_tables(
    extraction: Extraction, root: Path, *, name: str, shifted_times: bool = False
) -> None:
    """Write tables of MIMIC-III's layout as a MEDS dataset called `name`."""
    with connect(extraction.folder, extraction.memory_limit) as connection:
        open_events(connection)
        source = StayTables(connection, extraction, root, TABLES, whole_numbers=WHOLE_NUMBERS)
        add_stays(source)
        add_patients(source, "PATIENTS", anchor="CAST(dob AS TIMESTAMP)", times=("dob", "dod"))
        _add_births(source)
        for bill, dictionary, role, system in BILLED:
            code = {"role": role, "code": "icd9_code", "system": quoted(system)}
            source.load(bill)
            add_billing_codes(source, bill, **code)
            if source.load(dictionary):
                add_titles(source, dictionary, **code)
        add_drugs(source, "PRESCRIPTIONS", time="startdate")
        write_dataset(connection, extraction, name=name, shifted_times=shifted_times)


def _root(settings: DataConfig) -> Path:
    if settings.root is None:
        raise CkdEhrError(
            "data.root is not set; give the folder with the MIMIC-III tables as data.root=PATH"
        )
    return settings.root


def _add_births(source: StayTables) -> None:
    source.connection.execute(f"""
        INSERT INTO events
        SELECT subject_id, anchor, '{BIRTH}', NULL, NULL FROM people WHERE anchor IS NOT NULL""")
