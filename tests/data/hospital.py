"""A made-up hospital in MIMIC-III's layout, small enough to reason about."""

import csv
import gzip
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Row = dict[str, str]
Tables = dict[str, list[Row]]
# A fixture that runs a stage and returns the folder of its outputs.
Stage = Callable[..., Path]
PATIENTS = 40
HEART_FAILURE, HYPERTENSION = "4280", "4019"


def hospital_tables(patients: int = PATIENTS) -> Tables:
    """Patients 1..n with stays `n1` and `n2`; the odd ones have heart failure at the second."""
    tables: Tables = {
        name: []
        for name in (
            "ADMISSIONS", "PATIENTS", "DIAGNOSES_ICD", "PROCEDURES_ICD", "PRESCRIPTIONS",
            "D_ICD_DIAGNOSES", "D_ICD_PROCEDURES",
        )
    }  # fmt: skip
    for number in range(1, patients + 1):
        subject = str(number)
        tables["PATIENTS"].append(
            {"SUBJECT_ID": subject, "GENDER": "F", "DOB": "2000-01-01 00:00:00", "DOD": ""}
        )
        for stay, month in (("1", "01"), ("2", "03")):
            ids = {"SUBJECT_ID": subject, "HADM_ID": f"{900 + number}{stay}"}
            tables["ADMISSIONS"].append(
                ids
                | {
                    "ADMITTIME": f"2050-{month}-01 10:00:00",
                    "DISCHTIME": f"2050-{month}-05 12:00:00",
                    "DEATHTIME": "",
                    "ADMISSION_TYPE": "EMERGENCY",
                    "DISCHARGE_LOCATION": "HOME",
                    "ETHNICITY": "WHITE - RUSSIAN",
                    "HOSPITAL_EXPIRE_FLAG": "0",
                }
            )
            code = HEART_FAILURE if stay == "2" and number % 2 else HYPERTENSION
            tables["DIAGNOSES_ICD"].append(ids | {"SEQ_NUM": "1", "ICD9_CODE": code})
            tables["PROCEDURES_ICD"].append(ids | {"SEQ_NUM": "1", "ICD9_CODE": "3722"})
            tables["PRESCRIPTIONS"].append(
                ids
                | {
                    "DRUG_TYPE": "MAIN",
                    "DRUG": "Furosemide 20 mg Tab",
                    "STARTDATE": f"2050-{month}-02 00:00:00",
                }
            )
    tables["D_ICD_DIAGNOSES"] = [
        {"ICD9_CODE": HEART_FAILURE, "LONG_TITLE": "Congestive heart failure, unspecified"}
    ]
    tables["D_ICD_PROCEDURES"] = [
        {"ICD9_CODE": "3722", "LONG_TITLE": "Left heart cardiac catheterization"}
    ]
    return tables


def write_csv(rows: Sequence[Row], path: Path, header: Sequence[str] | None = None) -> None:
    """Write rows as CSV, gzipped where the name ends in .gz."""
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tables(tables: Mapping[str, Sequence[Row]], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        write_csv(rows, folder / f"{name}.csv")
    return folder


def default_split(subject: int, *, seed: int = 0) -> tuple[str, int]:
    """A patient's split and fold under the default settings, by the published rule."""

    def place(salt: str) -> float:
        digits = hashlib.sha256(f"{seed}:{salt}:{subject}".encode()).hexdigest()[:8]
        return int(digits, 16) / 16**8

    at = place("split")
    split = "train" if at < 0.7 else "tuning" if at < 0.8 else "held_out"
    return split, int(place("fold") * 2)
