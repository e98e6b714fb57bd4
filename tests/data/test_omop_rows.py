"""OMOP rows against the stays: which belong to one, which are refused, which are counted."""

import json
from pathlib import Path

import pytest
from hospital import Row, Stage, Tables
from omop_hospital import (
    FIRST,
    SECOND,
    OmopHospital,
    add_standard_concepts,
    omop_tables,
    rows_of,
)
from test_mimic3 import events_of, read_events


@pytest.fixture
def tables() -> Tables:
    return omop_tables()


@pytest.fixture
def hospital(tmp_path: Path, make_events: Stage) -> OmopHospital:
    return OmopHospital(tmp_path, make_events)


def test_rows_without_a_visit_belong_to_the_only_stay_around_their_start(
    tables: Tables, hospital: OmopHospital, said: list[str]
) -> None:
    lost = {"visit_occurrence_id": ""}
    tables["drug_exposure"][0] |= lost | {"drug_source_value": "Heparin"}
    # A date alone is anywhere in its day, an hour before admission is not in the stay.
    tables["condition_occurrence"][0] |= lost | {"condition_start_date": "2050-01-01"}
    tables["procedure_occurrence"][0] |= lost | {"procedure_datetime": "2050-01-01 09:59:59"}
    dataset = hospital.dataset(tables)
    codes = {event[0] for event in events_of(dataset, 1) if event[3] == FIRST}
    assert "MEDICATION//NAME//heparin" in codes
    assert "DIAGNOSIS//ICD9CM//4019" in codes
    assert "PROCEDURE//ICD9PROC//3722" not in codes
    assert rows_of(dataset, "procedure_occurrence")["left_out"] == {
        "without a visit and within no stay, or within several": 1
    }
    assert "drug_exposure.csv.gz: 1 rows without a visit belong to the stay around them" in said


def test_a_row_within_two_stays_belongs_to_neither(tables: Tables, hospital: OmopHospital) -> None:
    visits = tables["visit_occurrence"]
    visits[1] |= {key: visits[0][key] for key in visits[0] if "_end_" in key or "_start_" in key}
    tables["condition_occurrence"][0]["visit_occurrence_id"] = ""
    dataset = hospital.dataset(tables)
    assert rows_of(dataset, "condition_occurrence")["used"] == 39
    # The two stays overlap; the cohort decides about them.
    assert {event[3] for event in events_of(dataset, 1)} == {FIRST, SECOND, None}


def test_numbers_may_be_hashes_or_written_with_a_point(
    tables: Tables, hospital: OmopHospital
) -> None:
    plain = read_events(hospital.dataset(tables))
    ids = ("person_id", "visit_occurrence_id", "condition_concept_id", "visit_concept_id")
    for rows in tables.values():
        for row in rows:
            row.update({key: f"{row[key]}.0" for key in ids if key in row})
    assert read_events(hospital.dataset(tables)) == plain
    for rows in tables.values():
        for row in rows:
            if row.get("person_id") == "1.0":
                row["person_id"] = "-8970844422700220177"
    assert len(hospital.events(tables, person=-8970844422700220177)) == 15


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("visit_occurrence", "person_id", "P1", "'a9' are no whole number; MEDS needs 64-bit"),
        ("visit_occurrence", "visit_concept_id", "IP", "'aa' are no whole number; write OMOP's"),
        ("visit_occurrence", "visit_end_datetime", "5.1.50", "'9.9.99' are no time"),
        ("person", "person_id", "x-1", "'a-9' are no whole number"),
        ("person", "year_of_birth", "MM", "'aa' are no whole number; write year, month and day"),
        ("person", "birth_datetime", "old", "'aaa' are no time"),
        ("death", "death_date", "May", "'aaa' are no time"),
        ("condition_occurrence", "visit_occurrence_id", "V9", "'a9' are no whole number"),
        ("condition_occurrence", "condition_concept_id", "I10", "'a99' are no whole number"),
        ("procedure_occurrence", "person_id", "1e5", "'9a9' are no whole number"),
        ("drug_exposure", "drug_exposure_start_date", "soon", "'aaaa' are no time"),
    ],
)
def test_values_that_do_not_parse_are_refused_by_their_shape(
    tables: Tables, hospital: OmopHospital, table: str, column: str, value: str, message: str
) -> None:
    tables[table][0] |= {column: value}
    expected = f"{table}.csv.gz: column '{column}': 1 values of the form {message}"
    assert hospital.refusal(tables).startswith(expected)


@pytest.mark.parametrize("table", ["visit_occurrence", "condition_occurrence", "drug_exposure"])
def test_a_stay_under_two_persons_is_refused(
    tables: Tables, hospital: OmopHospital, table: str
) -> None:
    tables[table].append(tables[table][0] | {"person_id": "2"})
    message = hospital.refusal(tables)
    assert message.startswith(
        f"{table}.csv.gz: 1 stays (column 'visit_occurrence_id') stand under two persons"
    )
    assert FIRST not in message


@pytest.mark.parametrize("table", ["condition_occurrence", "procedure_occurrence", "drug_exposure"])
def test_a_table_without_a_row_of_any_stay_is_refused(
    tables: Tables, hospital: OmopHospital, table: str
) -> None:
    for row in tables[table]:
        row["visit_occurrence_id"] = "7"
    assert hospital.refusal(tables).startswith(
        f"{table}.csv.gz: none of its 40 rows belongs to one of the 40 stays of visit_occurrence"
    )


def test_mixed_time_zones_ask_for_the_hospitals(tables: Tables, hospital: OmopHospital) -> None:
    tables["visit_occurrence"][0]["visit_start_datetime"] += "+01"
    tables["visit_occurrence"][1]["visit_start_datetime"] += "+02"
    assert "times are of several time zones" in hospital.refusal(tables)


def test_no_row_of_any_table_disappears_uncounted(tables: Tables, hospital: OmopHospital) -> None:
    add_standard_concepts(tables)
    tables["condition_occurrence"] = omop_tables()["condition_occurrence"]
    breaks: dict[str, list[Row]] = {
        "visit_occurrence": [
            {"person_id": ""}, {"visit_occurrence_id": ""}, {"visit_concept_id": "9202"},
            {"visit_end_datetime": "", "visit_end_date": ""},
        ],
        "person": [{"person_id": ""}, {"person_id": "777"}],
        "death": [{"person_id": ""}, {"person_id": "777"}, {"death_date": ""}],
        "condition_occurrence": [
            {"person_id": ""}, {"visit_occurrence_id": "555"}, {"condition_source_value": "?",
             "condition_source_concept_id": "0"}, {"condition_source_value": "",
             "condition_source_concept_id": "0"}, {"visit_occurrence_id": "", "person_id": ""},
            {"visit_occurrence_id": "", "condition_start_date": "2049-01-01"},
        ],
        "procedure_occurrence": [
            {"person_id": ""}, {"visit_occurrence_id": "555"}, {"procedure_source_value": ""},
            {"visit_occurrence_id": "", "person_id": "777"},
        ],
        "drug_exposure": [
            {"person_id": ""}, {"visit_occurrence_id": "555"},
            {"drug_source_value": "", "drug_concept_id": "0"},
        ],
        "concept": [{"concept_id": "9", "vocabulary_id": "RxNorm"}],
    }  # fmt: skip
    for name, changes in breaks.items():
        tables[name] += [tables[name][0] | cells for cells in changes]
        tables[name].append(dict(tables[name][0]))  # entered twice: used twice
    dataset = hospital.dataset(tables, codes="auto")
    ledger = json.loads((dataset / "rows.json").read_text())
    for name, changes in breaks.items():
        entry = ledger[f"{name}.csv.gz"]
        assert entry["read"] == len(tables[name])
        assert sum(entry["left_out"].values()) == len(changes), (name, entry)
        assert entry["used"] == len(tables[name]) - len(changes)
    assert read_events(dataset) == read_events(hospital.dataset(omop_tables()))
