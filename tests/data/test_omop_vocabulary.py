"""ICD codes of OMOP rows: by source concept, by form, by the stay, by standard concept."""

from pathlib import Path

import duckdb
import pytest
from hospital import Stage, Tables
from omop_hospital import (
    HEART_FAILURE,
    KIDNEY_FAILURE,
    OmopHospital,
    add_standard_concepts,
    condition,
    omop_tables,
    rows_of,
)
from test_mimic3 import events_of

from ckd_ehr.contracts.files import read_json


@pytest.fixture
def tables() -> Tables:
    return omop_tables()


@pytest.fixture
def hospital(tmp_path: Path, make_events: Stage) -> OmopHospital:
    return OmopHospital(tmp_path, make_events)


def test_source_concepts_say_the_version_and_the_title(
    tables: Tables, hospital: OmopHospital
) -> None:
    # The source value may hold anything where the concept holds the code.
    tables["condition_occurrence"] = [
        condition(1, "AKI", condition_source_concept_id=KIDNEY_FAILURE),
        condition(2, "42800", condition_source_concept_id=HEART_FAILURE),
    ]
    dataset = hospital.dataset(tables)
    codes = {event[0] for event in events_of(dataset, 1) if event[0].startswith("DIAG")}
    assert codes == {"DIAGNOSIS//ICD10CM//N179", "DIAGNOSIS//ICD9CM//4280"}
    titles = duckdb.sql(f"FROM '{dataset}/metadata/codes.parquet'").fetchall()
    assert ("DIAGNOSIS//ICD10CM//N179", "Acute kidney failure, unspecified", None) in titles


def test_the_who_and_countries_versions_count_as_icd_10_cm(
    tables: Tables, hospital: OmopHospital
) -> None:
    tables["concept"][2] |= {"vocabulary_id": "ICD10GM", "concept_code": "n17.9 "}
    tables["condition_occurrence"] = [
        condition(1, "AKI", condition_source_concept_id=KIDNEY_FAILURE),
        condition(2, "I50.9†"),
    ]
    assert hospital.coded(tables, "DIAGNOSIS") == ["ICD10CM//I509", "ICD10CM//N179"]


@pytest.mark.parametrize(
    ("others", "version"), [(["428.0", "E87.1"], None), (["428.0"], "ICD9CM"), (["I10"], "ICD10CM")]
)
def test_a_code_of_both_versions_is_what_the_stays_other_codes_are(
    tables: Tables, hospital: OmopHospital, others: list[str], version: str | None
) -> None:
    # V00.0 and E802.9 / E80.29 exist in both; other stays have both versions, too.
    rows = [condition(number, value) for number, value in enumerate(["e8029 ", *others])]
    elsewhere = {"person_id": "2", "visit_occurrence_id": "9021"}
    rows += [condition(10, "I10", **elsewhere), condition(11, "401.9", **elsewhere)]
    tables["condition_occurrence"] = rows
    dataset = hospital.dataset(tables)
    systems = {event[0].split("//")[1] for event in events_of(dataset, 1) if "E8029" in event[0]}
    assert systems == ({version} if version else set())
    left_out = rows_of(dataset, "condition_occurrence")["left_out"]
    reason = "whose code may be ICD-9 or ICD-10 (see data.omop.icd_version)"
    assert left_out == ({} if version else {reason: 1})


def test_without_help_of_its_stay_a_code_is_what_has_it_in_full_or_what_all_others_are(
    tables: Tables, hospital: OmopHospital, said: list[str]
) -> None:
    elsewhere = {"person_id": "2", "visit_occurrence_id": "9021"}
    tables["condition_occurrence"] = [
        condition(1, "V45.81"), condition(2, "E8029"), condition(3, "I10", **elsewhere),
    ]  # fmt: skip
    assert hospital.coded(tables, "DIAGNOSIS") == ["ICD10CM//E8029", "ICD9CM//V4581"]
    assert said[0] == (
        "condition_occurrence.csv.gz: ICD version of codes: 1 by their form; 1 (in ICD-9 and "
        "ICD-10 alike) by being a full code in one of them; 1 (in ICD-9 and ICD-10 alike) by all "
        "other codes"
    )


@pytest.mark.parametrize("version", [9, 10])
def test_the_setting_decides_codes_of_both_versions_alone(
    tables: Tables, hospital: OmopHospital, version: int
) -> None:
    tables["condition_occurrence"] = [condition(1, "V45.81"), condition(2, "I10")]
    coded = hospital.coded(tables, "DIAGNOSIS", icd_version=version)
    assert sorted(coded) == ["ICD10CM//I10", f"ICD{'9' if version == 9 else '10'}CM//V4581"]


def test_codes_of_other_kinds_are_counted(tables: Tables, hospital: OmopHospital) -> None:
    tables["condition_occurrence"] += [condition(1, "see note"), condition(2, " . ")]
    tables["procedure_occurrence"][0]["procedure_source_value"] = "99213"
    tables["procedure_occurrence"][1]["procedure_source_value"] = "02hv33z"
    dataset = hospital.dataset(tables)
    other = "whose code is of another kind than ICD"
    assert rows_of(dataset, "condition_occurrence")["left_out"] == {other: 1, "without a code": 1}
    assert rows_of(dataset, "procedure_occurrence")["left_out"] == {other: 1}
    assert "PROCEDURE//ICD10PCS//02HV33Z" in {event[0] for event in events_of(dataset, 1)}


@pytest.mark.parametrize("codes", ["standard", "auto"])
def test_standard_concepts_lead_back_to_icd_codes_of_one_category(
    tables: Tables, hospital: OmopHospital, codes: str, said: list[str]
) -> None:
    add_standard_concepts(tables)
    dataset = hospital.dataset(tables, codes=codes)
    diagnoses = [e[0] for e in events_of(dataset, 1) if e[0].startswith("DIAGNOSIS")]
    assert diagnoses == ["DIAGNOSIS//ICD10CM//N179", "DIAGNOSIS//ICD9CM//4280"]
    assert rows_of(dataset, "condition_occurrence")["left_out"] == {
        "without a standard concept": 1,
        "whose standard concept has no ICD code": 1,
        "whose standard concept has ICD codes of several CCS categories": 1,
    }
    assert rows_of(dataset, "concept_relationship") == {
        "read": 6, "used": 4, "left_out": {"that no condition needs": 2},
    }  # fmt: skip
    chosen = any("taken from standard concepts" in line for line in said)
    assert chosen == (codes == "auto")


def test_half_of_the_codes_are_enough_for_the_source_columns(
    tables: Tables, hospital: OmopHospital
) -> None:
    add_standard_concepts(tables)
    for row, code in zip(tables["condition_occurrence"], ("I10", "I48.91", "J18.9"), strict=False):
        row["condition_source_value"] = code
    dataset = hospital.dataset(tables)
    assert rows_of(dataset, "condition_occurrence")["used"] == 3
    assert "concept_relationship.csv.gz" not in read_json(dataset / "rows.json")


def test_without_icd_codes_and_vocabulary_there_is_nothing_to_learn(
    tables: Tables, hospital: OmopHospital, said: list[str]
) -> None:
    add_standard_concepts(tables)
    del tables["concept_relationship"]
    message = hospital.refusal(tables)
    assert (
        "0 of 5 rows have an ICD code in the source's columns, and there are no tables" in message
    )
    tables["condition_occurrence"][0]["condition_source_value"] = "I10"
    assert hospital.coded(tables, "DIAGNOSIS") == ["ICD10CM//I10"]
    assert any("only 1 of 5 rows have an ICD code" in line for line in said)


def test_standard_codes_need_the_vocabulary_tables(tables: Tables, hospital: OmopHospital) -> None:
    message = hospital.refusal(tables, codes="standard")
    assert "table concept_relationship is missing" in message
