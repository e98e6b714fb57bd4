"""The made-up hospital again, in the layout of a MIMIC-IV release."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from hospital import HEART_FAILURE, HYPERTENSION, Row, Tables, hospital_tables, write_csv

Version = Literal["1.0", "2.0", "2.2", "3.1"]
VERSIONS: tuple[Version, ...] = ("1.0", "2.0", "2.2", "3.1")
IN_ICD10 = {HEART_FAILURE: "I509", HYPERTENSION: "I10"}
# In 1.0, the tables that follow a patient through the hospital stand apart.
CORE = ("admissions", "patients")


def mimic4_tables(version: Version = "3.1", *, patients: int = 40) -> Tables:
    """The patients of `hospital_tables`, 48 years old in 2048, coded in ICD-9."""
    old = hospital_tables(patients)
    return {
        "admissions": [_admission(row, version) for row in old["ADMISSIONS"]],
        "patients": [_patient(row) for row in old["PATIENTS"]],
        "diagnoses_icd": [_billed(row) for row in old["DIAGNOSES_ICD"]],
        "procedures_icd": [
            _billed(row) | {"chartdate": "2050-01-03"} for row in old["PROCEDURES_ICD"]
        ],
        "prescriptions": [_prescription(row, version) for row in old["PRESCRIPTIONS"]],
        "d_icd_diagnoses": [
            _titled("4280", 9, "Congestive heart failure, unspecified"),
            _titled("I509", 10, "Heart failure, unspecified"),
        ],
        "d_icd_procedures": [_titled("3722", 9, "Left heart cardiac catheterization")],
    }


def in_icd10(rows: Sequence[Row], *, stay: str) -> list[Row]:
    """Diagnoses, with those of each patient's first ("1") or second ("2") stay in ICD-10."""
    return [
        row | {"icd_code": IN_ICD10[row["icd_code"]], "icd_version": "10"}
        if row["hadm_id"].endswith(stay)
        else row
        for row in rows
    ]


def write_release(
    tables: Tables, root: Path, version: Version = "3.1", *, end: str = "csv"
) -> Path:
    """Write the tables into the release's folders; returns the release's folder."""
    for name, rows in tables.items():
        folder = root / ("core" if version == "1.0" and name in CORE else "hosp")
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(rows, folder / f"{name}.{end}")
    return root


def read_events(dataset: Path) -> pa.Table:
    return pq.read_table(sorted((dataset / "data").iterdir()))


def rows_of(dataset: Path) -> dict[str, dict[str, object]]:
    counted: dict[str, dict[str, object]] = json.loads((dataset / "rows.json").read_text())
    return counted


def renamed(rows: list[Row], old: str, new: str) -> list[Row]:
    return [{(new if key == old else key): value for key, value in row.items()} for row in rows]


def _ids(row: Row) -> Row:
    return {"subject_id": row["SUBJECT_ID"], "hadm_id": row["HADM_ID"]}


def _admission(row: Row, version: Version) -> Row:
    provider = {} if version in ("1.0", "2.0") else {"admit_provider_id": "P00AB1"}
    group = "ethnicity" if version == "1.0" else "race"
    return _ids(row) | {
        "admittime": row["ADMITTIME"],
        "dischtime": row["DISCHTIME"],
        "deathtime": "",
        "admission_type": "EW EMER.",
        **provider,
        "admission_location": "EMERGENCY ROOM",
        "discharge_location": "HOME",
        group: "WHITE - RUSSIAN",
        "edregtime": "",
        "hospital_expire_flag": "0",
    }


def _patient(row: Row) -> Row:
    return {
        "subject_id": row["SUBJECT_ID"],
        "gender": row["GENDER"],
        "anchor_age": "48",
        "anchor_year": "2048",
        "anchor_year_group": "2011 - 2013",
        "dod": "",
    }


def _billed(row: Row) -> Row:
    code = {"icd_code": row["ICD9_CODE"], "icd_version": "9"}
    return _ids(row) | {"seq_num": row["SEQ_NUM"]} | code


def _prescription(row: Row, version: Version) -> Row:
    provider = {} if version in ("1.0", "2.0") else {"order_provider_id": "P00AB1"}
    return _ids(row) | {
        "pharmacy_id": "48770010",
        **provider,
        "starttime": row["STARTDATE"].replace("00:00:00", "08:00:00"),
        "stoptime": "",
        "drug_type": row["DRUG_TYPE"],
        "drug": row["DRUG"],
        "ndc": "0",
        "prod_strength": "20 mg Tab",
    }


def _titled(code: str, version: int, title: str) -> Row:
    return {"icd_code": code, "icd_version": str(version), "long_title": title}
