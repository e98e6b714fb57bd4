"""OMOP visits, persons and deaths: which are stays, and what they say of people."""

from pathlib import Path

import pytest
from hospital import Row, Stage, Tables
from omop_hospital import (
    FIRST,
    SECOND,
    OmopHospital,
    omop_tables,
    rows_of,
)
from test_mimic3 import events_of


@pytest.fixture
def tables() -> Tables:
    return omop_tables()


@pytest.fixture
def hospital(tmp_path: Path, make_events: Stage) -> OmopHospital:
    return OmopHospital(tmp_path, make_events)


def test_columns_of_cdm_5_3_name_the_discharge(tables: Tables, hospital: OmopHospital) -> None:
    for row in tables["visit_occurrence"]:
        for part in ("concept_id", "source_value"):
            row[f"discharge_to_{part}"] = row.pop(f"discharged_to_{part}")
    tables["visit_occurrence"][0]["discharge_to_concept_id"] = "4216643"
    events = {event[0]: event[3] for event in hospital.events(tables)}
    assert events["HOSPITAL_DISCHARGE//DIED"] == FIRST
    assert events["HOSPITAL_DISCHARGE//HOME"] == SECOND


@pytest.mark.parametrize(
    ("value", "concept", "code"),
    [
        ("elective", "9201", "HOSPITAL_ADMISSION//ELECTIVE"),
        ("elective", "262", "HOSPITAL_ADMISSION//ELECTIVE"),
        # What may be an id of the visit is not kept.
        ("10006|142345", "262", "HOSPITAL_ADMISSION//EMERGENCY"),
        ("10006|142345", "9201", "HOSPITAL_ADMISSION"),
        ("", "8717", "HOSPITAL_ADMISSION"),
    ],
)
def test_the_admission_type_is_a_known_word_or_the_concepts(
    tables: Tables, hospital: OmopHospital, value: str, concept: str, code: str
) -> None:
    tables["visit_occurrence"][0] |= {"visit_source_value": value, "visit_concept_id": concept}
    codes = [e[0] for e in hospital.events(tables) if e[0].startswith("HOSPITAL_ADMISSION")]
    assert codes[0] == code


def test_visits_without_hours_last_from_the_first_to_the_last_second_of_their_days(
    tables: Tables, hospital: OmopHospital, said: list[str]
) -> None:
    timed = ("visit_start_datetime", "visit_end_datetime")
    tables["visit_occurrence"][0] |= dict.fromkeys(timed, "")
    events = {e[0]: e[1] for e in hospital.events(tables) if e[3] == FIRST}
    assert events["HOSPITAL_ADMISSION//EMERGENCY"] == "2050-01-01 00:00:00"
    assert events["HOSPITAL_DISCHARGE//HOME"] == "2050-01-05 23:59:59"
    assert not any("without hours" in line for line in said)
    # A datetime that is always midnight is a date.
    for row in tables["visit_occurrence"]:
        row["visit_end_datetime"] = f"{row['visit_end_date']} 00:00:00"
    events = {e[0]: e[1] for e in hospital.events(tables) if e[3] == SECOND}
    assert events["HOSPITAL_DISCHARGE//HOME"] == "2050-03-05 23:59:59"
    assert "visit_occurrence.csv.gz: visits end on dates without hours: read as 23:59:59" in said


@pytest.mark.parametrize(
    ("death", "died"),
    [
        ({"death_date": "2050-01-04", "death_datetime": ""}, True),
        ({"death_date": "2050-01-05", "death_datetime": "2050-01-05 12:00:00"}, True),
        ({"death_date": "2050-01-05", "death_datetime": "2050-01-05 12:00:01"}, False),
        # On the day of discharge, without an hour: before or after it.
        ({"death_date": "2050-01-05", "death_datetime": "2050-01-05 00:00:00"}, False),
        ({"death_date": "2049-12-31", "death_datetime": ""}, False),
    ],
)
def test_a_stay_during_which_its_person_dies_ended_in_death(
    tables: Tables, hospital: OmopHospital, death: Row, died: bool
) -> None:
    tables["death"][0] |= death
    events = {e[0]: e[1] for e in hospital.events(tables) if e[3] in (FIRST, None)}
    assert ("HOSPITAL_DISCHARGE//DIED" in events) == died
    written = death["death_datetime"] or f"{death['death_date']} 00:00:00"
    assert events["MEDS_DEATH"] == written


@pytest.mark.parametrize("place", ["DEAD/EXPIRED", "Patient died", "deceased"])
def test_a_discharge_in_words_of_death_is_death(
    tables: Tables, hospital: OmopHospital, place: str
) -> None:
    tables["visit_occurrence"][0]["discharged_to_source_value"] = place
    codes = {e[0] for e in hospital.events(tables) if e[3] == FIRST}
    assert "HOSPITAL_DISCHARGE//DIED" in codes


def test_other_visits_are_counted_by_their_concept(tables: Tables, hospital: OmopHospital) -> None:
    tables["visit_occurrence"][2]["visit_concept_id"] = "9202"
    tables["visit_occurrence"][3]["visit_concept_id"] = "9202.0"
    tables["visit_occurrence"][4]["visit_concept_id"] = ""
    dataset = hospital.dataset(tables)
    assert rows_of(dataset, "visit_occurrence") == {
        "read": 40,
        "used": 37,
        "left_out": {"of visit_concept_id 9202": 2, "without a visit_concept_id": 1},
    }
    assert rows_of(dataset, "drug_exposure")["left_out"] == {"of no stay in visit_occurrence": 3}
    # Nothing of person 2 is left.
    assert not events_of(dataset, 2)
    assert rows_of(dataset, "person")["left_out"] == {"of persons without a stay": 1}
    assert events_of(hospital.dataset(tables, visit_concepts=[9201, 9202]), 2)


def test_a_database_without_stays_says_which_visits_it_has(
    tables: Tables, hospital: OmopHospital
) -> None:
    for row in tables["visit_occurrence"]:
        row["visit_concept_id"] = "9202"
    assert hospital.refusal(tables) == (
        "visit_occurrence.csv.gz: no visit has one of data.omop.visit_concepts (9201, 262, 8717); "
        "visit_concept_id and rows are 9202: 40; name those that are stays with "
        "data.omop.visit_concepts=[…]"
    )


@pytest.mark.parametrize(
    ("concept", "value", "sex"),
    [
        ("8507", "F", "M"),
        ("8532", "", "F"),
        ("0", "female", "F"),
        ("0", "m", "M"),
        ("8551", "U", "U"),
    ],
)
def test_sex_is_the_concepts_or_else_the_sources(
    tables: Tables, hospital: OmopHospital, concept: str, value: str, sex: str
) -> None:
    tables["person"][0] |= {"gender_concept_id": concept, "gender_source_value": value}
    assert hospital.events(tables)[0][0] == f"GENDER//{sex}"


@pytest.mark.parametrize(
    ("cells", "birth"),
    [
        ({"birth_datetime": "1753-03-04 05:06:07"}, "1753-03-04 05:06:07"),
        ({"day_of_birth": ""}, "2000-01-15 00:00:00"),
        ({"month_of_birth": "", "day_of_birth": ""}, "2000-07-01 00:00:00"),
        ({"month_of_birth": "2.0"}, "2000-02-15 00:00:00"),  # there is no 31 February
        ({"year_of_birth": ""}, None),
    ],
)
def test_births_without_a_day_are_in_the_middle(
    tables: Tables, hospital: OmopHospital, cells: Row, birth: str | None
) -> None:
    tables["person"][0] |= cells
    births = [event[1] for event in hospital.events(tables) if event[0] == "MEDS_BIRTH"]
    assert births == ([birth] if birth else [])


@pytest.mark.parametrize(
    ("source", "race", "ethnicity", "group"),
    [
        ("Black/African American", "0", "0", "BLACK"),
        ("WHITE", "8527", "38003563", "HISPANIC"),
        ("5", "8515", "0", "ASIAN"),
        ("", "8516", "0", "BLACK"),
        ("UNKNOWN", "8527", "38003564", "WHITE"),
        ("native", "0", "0", "OTHER"),
        ("", "8657", "0", "OTHER"),
        ("5", "0", "0", "UNKNOWN"),
        ("", "", "", "UNKNOWN"),
    ],
)
def test_ethnicity_is_the_sources_group_or_else_the_concepts(
    tables: Tables, hospital: OmopHospital, source: str, race: str, ethnicity: str, group: str
) -> None:
    tables["person"][0] |= {
        "race_source_value": source, "race_concept_id": race, "ethnicity_concept_id": ethnicity,
    }  # fmt: skip
    groups = {e[0] for e in hospital.events(tables) if e[0].startswith("ETHNICITY")}
    assert groups == {f"ETHNICITY//{group}"}


def test_a_stay_of_a_person_not_in_person_is_kept_and_said(
    tables: Tables, hospital: OmopHospital, said: list[str]
) -> None:
    del tables["person"][0]
    codes = {event[0] for event in hospital.events(tables)}
    assert "ETHNICITY//UNKNOWN" in codes
    assert not codes & {"GENDER//F", "MEDS_BIRTH"}
    assert "person.csv.gz: lacks 1 persons with a stay: their sex and age are unknown" in said


def test_persons_of_another_database_are_refused(tables: Tables, hospital: OmopHospital) -> None:
    for row in tables["person"]:
        row["person_id"] = f"7{row['person_id']}00"
    message = hospital.refusal(tables)
    assert message.startswith("person.csv.gz: no row is a person with a stay")


def test_a_visit_in_rows_of_different_times_lasts_from_first_to_last_and_is_said(
    tables: Tables, hospital: OmopHospital, said: list[str]
) -> None:
    visits = tables["visit_occurrence"]
    visits += [
        dict(visits[1]),  # entered twice, alike
        visits[0] | {"visit_start_date": "2050-01-02", "visit_start_datetime": "",
                     "visit_end_date": "2050-01-06", "visit_end_datetime": "2050-01-06 08:00:00"},
    ]  # fmt: skip
    times = {e[0]: e[1] for e in hospital.events(tables) if e[3] == FIRST}
    assert times["HOSPITAL_ADMISSION//EMERGENCY"] == "2050-01-01 10:00:00"
    assert times["HOSPITAL_DISCHARGE//HOME"] == "2050-01-06 08:00:00"
    assert (
        "visit_occurrence.csv.gz: 1 visits stand in several rows that differ: first start and last "
        "end were taken"
    ) in said
    assert not any(FIRST in line for line in said)


@pytest.mark.parametrize("cells", [{"gender_concept_id": "8507"}, {"year_of_birth": "2001"}])
def test_a_person_in_rows_of_different_sex_or_birth_is_said(
    tables: Tables, hospital: OmopHospital, said: list[str], cells: Row
) -> None:
    told = (
        "person.csv.gz: 1 persons stand in several rows that differ in sex or birth: the first "
        "sex by the alphabet and the earliest birth were taken"
    )
    unlike = "gender_source_value"
    tables["person"].append(tables["person"][0] | {unlike: "f"})
    before = hospital.events(tables)
    assert told not in said
    tables["person"].append(tables["person"][0] | cells)
    assert hospital.events(tables) == before
    assert told in said
