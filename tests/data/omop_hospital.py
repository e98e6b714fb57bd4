"""A made-up hospital as OMOP CDM tables, small enough to reason about, in every place."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest
from hospital import Row, Stage, Tables, write_csv
from test_mimic3 import Event, events_of

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json

PATIENTS = 20
HEART_FAILURE, HYPERTENSION, KIDNEY_FAILURE = "2000001", "2000002", "2000003"
FUROSEMIDE = "956874"
# The stays of person 1.
FIRST, SECOND = "9011", "9012"
SNOMED_KIDNEY, SNOMED_HEART, SNOMED_VAGUE, SNOMED_BARE = "197320", "319835", "4000001", "4000002"


def omop_tables(patients: int = PATIENTS) -> Tables:
    """Persons 1..n with stays `n1` and `n2`; the odd ones have heart failure at the second."""
    tables: Tables = {"person": [], "visit_occurrence": [], "condition_occurrence": [],
                      "procedure_occurrence": [], "drug_exposure": []}  # fmt: skip
    for number in range(1, patients + 1):
        tables["person"].append(
            {
                "person_id": str(number),
                "gender_concept_id": "8532",
                "year_of_birth": "2000",
                "month_of_birth": "1",
                "day_of_birth": "31",
                "birth_datetime": "",
                "race_concept_id": "8527",
                "ethnicity_concept_id": "0",
                "gender_source_value": "F",
                "race_source_value": "WHITE - RUSSIAN",
            }
        )
        for stay, month in (("1", "01"), ("2", "03")):
            _add_stay(tables, person=str(number), visit=f"{900 + number}{stay}", month=month)
    tables["death"] = [
        {
            "person_id": "1",
            "death_date": "2051-02-03",
            "death_datetime": "",
            "cause_concept_id": "0",
        }
    ]
    tables["concept"] = [
        _concept(HEART_FAILURE, "Congestive heart failure, unspecified", "ICD9CM", "428.0"),
        _concept(HYPERTENSION, "Essential hypertension", "ICD9CM", "401.9"),
        _concept(KIDNEY_FAILURE, "Acute kidney failure, unspecified", "ICD10CM", "N17.9"),
        _concept(FUROSEMIDE, "furosemide 20 MG", "RxNorm", "315970"),
    ]
    return tables


def _add_stay(tables: Tables, *, person: str, visit: str, month: str) -> None:
    ids = {"person_id": person, "visit_occurrence_id": visit}
    fails = visit.endswith("2") and int(person) % 2
    tables["visit_occurrence"].append(
        ids
        | {
            "visit_concept_id": "9201",
            "visit_start_date": f"2050-{month}-01",
            "visit_start_datetime": f"2050-{month}-01 10:00:00",
            "visit_end_date": f"2050-{month}-05",
            "visit_end_datetime": f"2050-{month}-05 12:00:00",
            "visit_source_value": "EMERGENCY",
            "discharged_to_concept_id": "0",
            "discharged_to_source_value": "Home",
        }
    )
    tables["condition_occurrence"].append(
        {"condition_occurrence_id": f"1{visit}"}
        | ids
        | {
            "condition_concept_id": "0",
            "condition_start_date": f"2050-{month}-02",
            "condition_start_datetime": "",
            "condition_source_value": "428.0" if fails else "401.9",
            "condition_source_concept_id": HEART_FAILURE if fails else HYPERTENSION,
            "condition_status_source_value": "1",
        }
    )
    _add_treatment(tables, ids, month)


def _add_treatment(tables: Tables, ids: Row, month: str) -> None:
    visit = ids["visit_occurrence_id"]
    tables["procedure_occurrence"].append(
        {"procedure_occurrence_id": f"2{visit}"}
        | ids
        | {
            "procedure_date": f"2050-{month}-02",
            "procedure_datetime": "",
            "procedure_source_value": "37.22",
            "procedure_source_concept_id": "0",
        }
    )
    tables["drug_exposure"].append(
        {"drug_exposure_id": f"3{visit}"}
        | ids
        | {
            "drug_concept_id": FUROSEMIDE,
            "drug_exposure_start_date": f"2050-{month}-02",
            "drug_exposure_start_datetime": f"2050-{month}-02 08:00:00",
            "drug_source_value": "Furosemide 20 mg Tab",
        }
    )


def _concept(number: str, name: str, vocabulary: str, code: str) -> Row:
    return {"concept_id": number, "concept_name": name, "vocabulary_id": vocabulary,
            "concept_code": code}  # fmt: skip


def sql_type(column: str) -> str:
    """A column's type in the CDM."""
    if column in ("vocabulary_id", "relationship_id"):
        return "varchar(20)"
    if column.endswith("_id") or column.startswith("concept_id_"):
        return "bigint"
    if column.endswith("_of_birth"):
        return "integer"
    if column.endswith("_datetime"):
        return "timestamp"
    return "date" if column.endswith("_date") else "varchar(255)"


def typed_rows(tables: Tables, name: str) -> str:
    """A table's rows as SQL values, empty cells as nulls; DuckDB and PostgreSQL read both."""
    return ", ".join(
        "(" + ", ".join(f"CAST({_literal(v)} AS {sql_type(c)})" for c, v in row.items()) + ")"
        for row in tables[name]
    )


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'" if value else "NULL"


def create_statements(tables: Tables, schema: str) -> list[str]:
    """SQL that makes the tables in a schema."""
    statements = [f"CREATE SCHEMA IF NOT EXISTS {schema}"]
    for name, rows in tables.items():
        columns = ", ".join(f"{column} {sql_type(column)}" for column in rows[0])
        statements.append(f"CREATE TABLE {schema}.{name} ({columns})")
        statements.append(f"INSERT INTO {schema}.{name} VALUES {typed_rows(tables, name)}")
    return statements


def write_duckdb(tables: Tables, path: Path, schema: str = "main") -> Path:
    with duckdb.connect(path) as connection:
        for statement in create_statements(tables, schema):
            connection.execute(statement)
    return path


def write_parquet(tables: Tables, folder: Path) -> Path:
    """Typed Parquet files: the first table in upper case, the last as a folder of part files."""
    folder.mkdir(parents=True, exist_ok=True)
    names: Sequence[str] = list(tables)
    with duckdb.connect() as connection:
        for statement in create_statements(tables, "main"):
            connection.execute(statement)
        for name in names:
            connection.execute(f"COPY {name} TO '{folder / name}.parquet'")
        first, last = names[0], "drug_exposure"
        (folder / f"{first}.parquet").rename(folder / f"{first.upper()}.parquet")
        (folder / f"{last}.parquet").unlink()
        parts = folder / last
        parts.mkdir()
        (parts / "_SUCCESS").touch()
        half = len(tables[last]) // 2
        for number, rows in enumerate((f"LIMIT {half}", f"OFFSET {half}")):
            connection.execute(
                f"COPY (FROM {last} {rows}) TO '{parts}/part-{number:05d}.snappy.parquet'"
            )
    return folder


def write_csvs(tables: Tables, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        write_csv(rows, folder / f"{name}.csv.gz")
    return folder


class OmopHospital:
    """Runs the source on tables, after a change."""

    def __init__(self, folder: Path, make_events: Stage) -> None:
        self.folder, self.make_events = folder, make_events

    def dataset(self, tables: Tables, **omop_settings: object) -> Path:
        root = write_csvs(tables, self.folder / f"tables{len(list(self.folder.iterdir()))}")
        return self.make_events(root, source="omop", omop=omop_settings)

    def events(self, tables: Tables, *, person: int = 1, **omop_settings: object) -> list[Event]:
        return events_of(self.dataset(tables, **omop_settings), person)

    def coded(self, tables: Tables, role: str, **omop_settings: object) -> list[str]:
        """The codes of a role in the first stay of person 1."""
        events = self.events(tables, **omop_settings)
        return [e[0].removeprefix(f"{role}//") for e in events if e[0].startswith(role)
                and e[3] == FIRST]  # fmt: skip

    def refusal(self, tables: Tables, **omop_settings: object) -> str:
        with pytest.raises(CkdEhrError) as error:
            self.dataset(tables, **omop_settings)
        return str(error.value)


def rows_of(dataset: Path, table: str) -> dict[str, object]:
    """What the ledger says of a table."""
    entry = read_json(dataset / "rows.json")[f"{table}.csv.gz"]
    assert isinstance(entry, dict)
    return entry


def condition(number: int, value: str, **cells: str) -> Row:
    """A condition of the first stay."""
    return {
        "condition_occurrence_id": str(number), "person_id": "1", "visit_occurrence_id": FIRST,
        "condition_concept_id": "0", "condition_start_date": "2050-01-02",
        "condition_start_datetime": "", "condition_source_value": value,
        "condition_source_concept_id": "0", "condition_status_source_value": "",
    } | cells  # fmt: skip


def add_standard_concepts(tables: Tables) -> None:
    """Kidney and heart failure lead to one category each, a vague concept to two, one to none."""
    relations = [
        ("Maps to", KIDNEY_FAILURE, SNOMED_KIDNEY),
        ("Mapped from", SNOMED_HEART, HEART_FAILURE),
        ("Mapped from", SNOMED_VAGUE, HEART_FAILURE),
        ("Mapped from", SNOMED_VAGUE, HYPERTENSION),
        ("Is a", SNOMED_BARE, HEART_FAILURE),
    ]
    tables["concept_relationship"] = [
        {"concept_id_1": one, "concept_id_2": two, "relationship_id": name, "invalid_reason": ""}
        for name, one, two in relations
    ]
    tables["concept_relationship"].append(
        {"concept_id_1": SNOMED_BARE, "concept_id_2": HEART_FAILURE,
         "relationship_id": "Mapped from", "invalid_reason": "D"}
    )  # fmt: skip
    tables["condition_occurrence"] = [
        condition(number, "local", condition_concept_id=concept)
        for number, concept in enumerate(
            (SNOMED_KIDNEY, SNOMED_HEART, SNOMED_VAGUE, SNOMED_BARE, "0"), start=1
        )
    ]
