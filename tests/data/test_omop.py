"""OMOP tables → MEDS events: what becomes of each table's rows."""

from pathlib import Path
from typing import cast

import pytest
from hospital import Stage, Tables
from omop_hospital import (
    FIRST,
    OmopHospital,
    condition,
    omop_tables,
    rows_of,
)

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.data.simulator.hospital import simulate
from ckd_ehr.data.simulator.layouts import Layout
from small_hospital import FREQUENT


@pytest.fixture
def tables() -> Tables:
    return omop_tables()


@pytest.fixture
def hospital(tmp_path: Path, make_events: Stage) -> OmopHospital:
    return OmopHospital(tmp_path, make_events)


def test_each_table_becomes_events_of_its_kind(tables: Tables, hospital: OmopHospital) -> None:
    first_stay = [event for event in hospital.events(tables) if event[3] in (FIRST, None)]
    assert first_stay == [
        ("GENDER//F", None, None, None),
        ("MEDS_BIRTH", "2000-01-31 00:00:00", None, None),
        ("ETHNICITY//WHITE", "2050-01-01 10:00:00", None, FIRST),
        ("HOSPITAL_ADMISSION//EMERGENCY", "2050-01-01 10:00:00", None, FIRST),
        ("MEDICATION//NAME//furosemide", "2050-01-02 08:00:00", None, FIRST),
        ("DIAGNOSIS//ICD9CM//4019", "2050-01-05 12:00:00", 1.0, FIRST),
        ("HOSPITAL_DISCHARGE//HOME", "2050-01-05 12:00:00", None, FIRST),
        ("PROCEDURE//ICD9PROC//3722", "2050-01-05 12:00:00", 1.0, FIRST),
        ("MEDS_DEATH", "2051-02-03 00:00:00", None, None),
    ]


def test_a_simulated_hospital_gives_the_same_pairs_as_omop_and_as_mimic_iii(
    tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    made: dict[str, dict[str, bytes]] = {}
    for source in ("mimic3", "omop"):
        layout = cast(Layout, source)
        simulate(SimulatorConfig(patients=300, **FREQUENT), tmp_path / source, layout=layout)
        cohort = make_cohort(make_events(tmp_path / source, source=source))
        made[source] = {
            name: (cohort / name).read_bytes() for name in ("visits.parquet", "pairs.parquet")
        }
    assert made["omop"] == made["mimic3"]


def test_vocabulary_tables_and_deaths_may_be_absent(tables: Tables, hospital: OmopHospital) -> None:
    del tables["concept"], tables["death"]
    events = hospital.events(tables)
    assert ("DIAGNOSIS//ICD9CM//4019", "2050-01-05 12:00:00", 1.0, FIRST) in events
    assert "MEDS_DEATH" not in {event[0] for event in events}


def test_conditions_stand_in_the_order_of_their_status_or_else_of_their_ids(
    tables: Tables, hospital: OmopHospital
) -> None:
    tables["condition_occurrence"] = [
        condition(7, "401.9", condition_status_source_value="2"),
        condition(10, "585.9", condition_status_source_value="1.0"),
        condition(9, "428.0", condition_status_source_value=""),
    ]

    def positions() -> dict[str, float | None]:
        events = hospital.events(tables)
        return {e[0].split("//")[2]: e[2] for e in events if e[0].startswith("DIAG")}

    assert positions() == {"4019": 2.0, "5859": 1.0, "4280": None}
    tables["condition_occurrence"][2]["condition_status_source_value"] = "Final"
    assert positions() == {"4019": 1.0, "5859": 3.0, "4280": 2.0}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("Heparin Flush (10 units/ml)", "heparin flush"),
        ("D5W", "d5w"),
        ("Insulin70/30", "insulin70/30"),
        # Codes and nothing: the concept's name.
        ("00378-0208-01", "furosemide"),
        ("C03CA01", "furosemide"),
        ("RxNorm:315970", "furosemide"),
        ("", "furosemide"),
    ],
)
def test_a_drug_is_what_the_source_calls_it_or_else_its_concept(
    tables: Tables, hospital: OmopHospital, value: str, name: str
) -> None:
    tables["drug_exposure"][0]["drug_source_value"] = value
    assert hospital.coded(tables, "MEDICATION") == [f"NAME//{name}"]


def test_a_drug_without_a_name_is_counted(tables: Tables, hospital: OmopHospital) -> None:
    tables["drug_exposure"][0] |= {"drug_source_value": "00378020801", "drug_concept_id": "0"}
    dataset = hospital.dataset(tables)
    assert rows_of(dataset, "drug_exposure")["left_out"] == {"without a drug's name": 1}


def test_a_drug_is_given_first_at_its_earliest_start_and_without_one_at_the_end(
    tables: Tables, hospital: OmopHospital
) -> None:
    undated = {"drug_exposure_start_date": "", "drug_exposure_start_datetime": ""}
    tables["drug_exposure"] += [
        tables["drug_exposure"][0]
        | {"drug_source_value": "FUROSEMIDE", "drug_exposure_start_datetime": "",
           "drug_exposure_start_date": "2050-01-01"},
        tables["drug_exposure"][0] | undated | {"drug_source_value": "Aspirin"},
    ]  # fmt: skip
    given = {e[0]: e[1] for e in hospital.events(tables) if e[3] == FIRST and "NAME" in e[0]}
    assert given == {
        "MEDICATION//NAME//furosemide": "2050-01-01 00:00:00",
        "MEDICATION//NAME//aspirin": "2050-01-05 12:00:00",
    }


def test_equal_tables_give_equal_bytes_in_any_order_of_rows(
    tables: Tables, hospital: OmopHospital
) -> None:
    def written(dataset: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted((dataset / "data").iterdir())]

    first = written(hospital.dataset(tables))
    assert written(hospital.dataset({name: rows[::-1] for name, rows in tables.items()})) == first
