"""A made-up hospital in MIMIC-III's layout, small enough to reason about, and its stages."""

import csv
import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.cohort import write_cohort
from ckd_ehr.data.events import write_events

Row = dict[str, str]
Tables = dict[str, list[Row]]
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


@pytest.fixture
def tables() -> Tables:
    return hospital_tables()


@pytest.fixture
def said() -> list[str]:
    """What the stages say to the user."""
    return []


Settings = Mapping[str, object]
Stage = Callable[..., Path]


@pytest.fixture
def make_events(tmp_path: Path, said: list[str]) -> Stage:
    """Run the stage `events` on a folder of tables; returns the dataset's folder."""

    def make(root: Path | None, *, source: str = "mimic3", **settings: object) -> Path:
        out = tmp_path / f"events{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        data = {"source": source, "root": root and str(root), **settings}
        config = build_config({"name": "test", "data": data})
        write_events(StageContext(config=config, folder=out, inputs={}, say=said.append))
        return out

    return make


@pytest.fixture
def make_cohort(tmp_path: Path, said: list[str]) -> Stage:
    """Run the stage `cohort` on a dataset; returns its folder."""

    def make(events: Path, **settings: object) -> Path:
        out = tmp_path / f"cohort{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        config = build_config({"name": "test", **settings})
        inputs = {"events": events}
        write_cohort(StageContext(config=config, folder=out, inputs=inputs, say=said.append))
        return out

    return make
