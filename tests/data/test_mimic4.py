"""MIMIC-IV tables → MEDS events: versions, folders, two ICD revisions, ages, deaths."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hospital import Stage, Tables, hospital_tables, write_tables
from hospital_mimic4 import (
    VERSIONS,
    Version,
    in_icd10,
    mimic4_tables,
    read_events,
    renamed,
    rows_of,
    write_release,
)

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources import mimic4
from ckd_ehr.data.sources.extraction import status_lines

Event = tuple[str, str | None, float | None, str | None]
# Extract tables in the layout of a release, and return the dataset's folder.
Extract = Callable[..., Path]


@pytest.fixture
def extract(tmp_path: Path, make_events: Stage) -> Extract:
    def run(tables: Tables, version: Version = "3.1", **settings: object) -> Path:
        root = tmp_path / f"release{len(list(tmp_path.iterdir()))}"
        return make_events(write_release(tables, root, version), source="mimic4", **settings)

    return run


def events_of(dataset: Path, subject: int) -> list[Event]:
    """Code, time, numeric value and visit of each event of a patient."""
    return [
        (row["code"], row["time"] and str(row["time"]), row["numeric_value"], row["visit_id"])
        for row in read_events(dataset).to_pylist()
        if row["subject_id"] == subject
    ]


def codes_of(dataset: Path, visit: str, role: str) -> dict[str, float | None]:
    """The codes of a role in a stay, with their numeric values."""
    return {
        row["code"]: row["numeric_value"]
        for row in read_events(dataset).to_pylist()
        if row["visit_id"] == visit and row["code"].startswith(role)
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_each_table_becomes_events_of_its_kind_in_every_version(
    extract: Extract, version: Version
) -> None:
    tables = mimic4_tables(version)
    died = "" if version == "1.0" else "2051-02-03"
    tables["patients"][0] |= {"dod": died}
    events = events_of(extract(tables, version), 1)
    death: list[Event] = [("MEDS_DEATH", "2051-02-03 00:00:00", None, None)] if died else []
    assert [event for event in events if event[3] != "9012"] == [
        ("GENDER//F", None, None, None),
        ("AGE", "2050-01-01 10:00:00", 50.0, "9011"),
        ("ETHNICITY//WHITE", "2050-01-01 10:00:00", None, "9011"),
        ("HOSPITAL_ADMISSION//EW EMER.", "2050-01-01 10:00:00", None, "9011"),
        ("MEDICATION//NAME//furosemide", "2050-01-02 08:00:00", None, "9011"),
        ("DIAGNOSIS//ICD9CM//4019", "2050-01-05 12:00:00", 1.0, "9011"),
        ("HOSPITAL_DISCHARGE//HOME", "2050-01-05 12:00:00", None, "9011"),
        ("PROCEDURE//ICD9PROC//3722", "2050-01-05 12:00:00", 1.0, "9011"),
        *death,
    ]


@pytest.mark.parametrize(
    ("version", "icd10_stay"),
    [("1.0", ""), ("2.0", "1"), ("2.2", "2"), ("3.1", ""), ("3.1", "2")],
)
def test_the_same_patients_in_either_layout_have_the_same_pairs(
    tmp_path: Path,
    make_events: Stage,
    make_cohort: Stage,
    extract: Extract,
    version: Version,
    icd10_stay: str,
) -> None:
    tables = mimic4_tables(version)
    if icd10_stay:
        tables["diagnoses_icd"] = in_icd10(tables["diagnoses_icd"], stay=icd10_stay)
    old = make_events(write_tables(hospital_tables(), tmp_path / "mimic3"))
    old_pairs = pq.read_table(make_cohort(old) / "pairs.parquet")
    pairs = pq.read_table(make_cohort(extract(tables, version)) / "pairs.parquet")
    assert sum(labels is not None and any(labels) for labels in pairs["labels"].to_pylist()) == 40
    assert pairs == old_pairs


def test_tables_stand_in_the_root_too_and_hosp_may_be_the_root(
    tmp_path: Path, make_events: Stage
) -> None:
    expected = read_events(
        make_events(write_release(mimic4_tables(), tmp_path / "release"), source="mimic4")
    )
    flat = write_tables(mimic4_tables(), tmp_path / "flat")
    roots = [tmp_path / "release" / "hosp", flat]
    # Of 1.0 alone, hosp/ is not enough: the stays stand beside it.
    roots.append(write_release(mimic4_tables("1.0"), tmp_path / "old", "1.0") / "hosp")
    for root in roots:
        assert read_events(make_events(root, source="mimic4")) == expected


def test_the_found_table_names_folders_and_what_is_missing(tmp_path: Path) -> None:
    tables = mimic4_tables("1.0")
    del tables["d_icd_procedures"], tables["prescriptions"]
    tables["diagnoses_icd"] = [
        {name: value for name, value in row.items() if name != "icd_version"}
        for row in tables["diagnoses_icd"]
    ]
    root = write_release(tables, tmp_path / "release", "1.0", end="csv.gz")
    statuses = {
        status.name: status for status in mimic4.tables(DataConfig(source="mimic4", root=root))
    }
    assert {name: status.found for name, status in statuses.items()} == {
        "admissions": "core/admissions.csv.gz",
        "patients": "core/patients.csv.gz",
        "diagnoses_icd": "hosp/diagnoses_icd.csv.gz",
        "procedures_icd": "hosp/procedures_icd.csv.gz",
        "prescriptions": None,
        "d_icd_diagnoses": "hosp/d_icd_diagnoses.csv.gz",
        "d_icd_procedures": None,
    }
    assert statuses["diagnoses_icd"].lacking == ("icd_version",)
    lines = status_lines(list(statuses.values()))
    assert lines[5].split() == ["prescriptions", "MISSING", "drugs"]


def test_a_table_in_two_folders_is_refused(tmp_path: Path) -> None:
    root = write_release(mimic4_tables("1.0"), tmp_path / "release", "1.0")
    write_release({"patients": mimic4_tables()["patients"]}, root, "2.2")
    settings = DataConfig(source="mimic4", root=root)
    with pytest.raises(CkdEhrError, match=r"patients stands in several folders") as error:
        mimic4.digests(settings)
    assert "(core/patients.csv, hosp/patients.csv); keep one" in str(error.value)


def test_digests_name_files_by_folder_and_change_with_them(tmp_path: Path) -> None:
    root = write_release(mimic4_tables(), tmp_path / "release")
    settings = DataConfig(source="mimic4", root=root)
    before = mimic4.digests(settings)
    assert sorted(before) == [
        f"hosp/{name}.csv"
        for name in (
            "admissions", "d_icd_diagnoses", "d_icd_procedures", "diagnoses_icd", "patients",
            "prescriptions", "procedures_icd",
        )
    ]  # fmt: skip
    tables = mimic4_tables()
    tables["patients"][0]["gender"] = "M"
    write_release(tables, root)
    after = mimic4.digests(settings)
    assert {name for name in before if before[name] != after[name]} == {"hosp/patients.csv"}


def test_equal_input_gives_equal_bytes(extract: Extract) -> None:
    first, second = extract(mimic4_tables()), extract(mimic4_tables())
    for name in ("data/0000.parquet", "metadata/codes.parquet", "rows.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_both_revisions_of_one_code_keep_apart_in_one_stay(extract: Extract) -> None:
    tables = mimic4_tables()
    ids = {"subject_id": "1", "hadm_id": "9011"}
    # E882 is a fall from a building in ICD-9, lipomatosis in ICD-10.
    tables["diagnoses_icd"] = [
        ids | {"seq_num": "1", "icd_code": "E882", "icd_version": "9"},
        ids | {"seq_num": "2", "icd_code": "E882", "icd_version": "10"},
        ids | {"seq_num": "3", "icd_code": "I509", "icd_version": "10.0"},
    ]
    tables["procedures_icd"] = [
        ids | {"seq_num": "1", "icd_code": "3722", "icd_version": "9"},
        ids | {"seq_num": "2", "icd_code": "4A023N7", "icd_version": "10"},
    ]
    tables["d_icd_diagnoses"] = [
        {"icd_code": "E882", "icd_version": "9", "long_title": "Fall from building"},
        {"icd_code": "E882", "icd_version": "10", "long_title": "Lipomatosis"},
    ]
    dataset = extract(tables)
    assert codes_of(dataset, "9011", "DIAGNOSIS") == {
        "DIAGNOSIS//ICD9CM//E882": 1.0,
        "DIAGNOSIS//ICD10CM//E882": 2.0,
        "DIAGNOSIS//ICD10CM//I509": 3.0,
    }
    assert codes_of(dataset, "9011", "PROCEDURE") == {
        "PROCEDURE//ICD9PROC//3722": 1.0,
        "PROCEDURE//ICD10PCS//4A023N7": 2.0,
    }
    codes = pq.read_table(dataset / "metadata" / "codes.parquet").to_pylist()
    titles = {row["code"]: row["description"] for row in codes}
    assert titles["DIAGNOSIS//ICD9CM//E882"] == "Fall from building"
    assert titles["DIAGNOSIS//ICD10CM//E882"] == "Lipomatosis"
    assert titles["PROCEDURE//ICD9PROC//3722"] == "Left heart cardiac catheterization"


def test_padded_dotted_and_lower_case_codes_fold_and_zeros_stay(extract: Extract) -> None:
    tables = mimic4_tables()
    ids = {"subject_id": "1", "hadm_id": "9011", "icd_version": "9"}
    tables["diagnoses_icd"] = [
        ids | {"seq_num": "4", "icd_code": "4280   "},
        ids | {"seq_num": "2", "icd_code": "428.0"},
        ids | {"seq_num": "3", "icd_code": "042"},
        ids | {"seq_num": "1", "icd_code": " v45.81"},
    ]
    dataset = extract(tables)
    assert codes_of(dataset, "9011", "DIAGNOSIS") == {
        "DIAGNOSIS//ICD9CM//4280": 2.0,
        "DIAGNOSIS//ICD9CM//042": 3.0,
        "DIAGNOSIS//ICD9CM//V4581": 1.0,
    }
    assert rows_of(dataset)["diagnoses_icd.csv"] == {"read": 4, "used": 4, "left_out": {}}


@pytest.mark.parametrize(
    ("anchor_age", "anchor_year", "age"),
    [
        ("48", "2048", 50.0),
        ("91", "2050", 91.0),  # the cohort makes it 90
        ("0", "2050", 0.0),
        ("20", "2053", 17.0),  # admitted before the anchor
        ("0", "2051", None),
        ("48", "1753", None),
        ("", "2048", None),
        ("48", "", None),
    ],
)
def test_the_age_follows_from_the_anchor(
    extract: Extract, anchor_age: str, anchor_year: str, age: float | None
) -> None:
    tables = mimic4_tables()
    tables["patients"][0] |= {"anchor_age": anchor_age, "anchor_year": anchor_year}
    expected = {} if age is None else {"AGE": age}
    assert codes_of(extract(tables), "9011", "AGE") == expected


def test_stays_without_an_age_are_counted_and_said(extract: Extract, said: list[str]) -> None:
    tables = mimic4_tables()
    tables["patients"][0] |= {"anchor_age": "0", "anchor_year": "2051"}
    tables["patients"][1] |= {"anchor_age": ""}
    del tables["patients"][2]
    dataset = extract(tables)
    assert "patients.csv: 2 stays without an age: below 0 or above 120" in said
    missing = "patients.csv: 4 stays without an age: patient, anchor_age or anchor_year missing"
    assert missing in said
    codes = [row["code"] for row in read_events(dataset).to_pylist()]
    assert (codes.count("AGE"), codes.count("MEDS_BIRTH")) == (74, 0)


def test_ages_over_89_and_a_year_of_1753_reach_the_cohort_as_90_and_as_none(
    extract: Extract, make_cohort: Stage
) -> None:
    tables = mimic4_tables()
    tables["patients"][0] |= {"anchor_age": "91", "anchor_year": "2050"}
    tables["patients"][1] |= {"anchor_age": "60", "anchor_year": "2353"}
    visits = pq.read_table(make_cohort(extract(tables)) / "visits.parquet").to_pylist()
    ages = {row["visit_id"]: row["age_years"] for row in visits}
    assert (ages["9011"], ages["9021"], ages["9031"]) == (90.0, None, 50.0)


def test_a_death_in_hospital_has_its_hour_and_a_later_one_its_day(extract: Extract) -> None:
    tables = mimic4_tables()
    tables["admissions"][1] |= {"hospital_expire_flag": "1", "deathtime": "2050-03-05 11:00:00"}
    tables["patients"][0] |= {"dod": "2050-03-05"}
    tables["admissions"][3] |= {"hospital_expire_flag": "1"}
    tables["patients"][2] |= {"dod": "2050-10-06"}
    dataset = extract(tables)
    assert ("HOSPITAL_DISCHARGE//DIED", "2050-03-05 12:00:00", None, "9012") in events_of(
        dataset, 1
    )
    assert ("MEDS_DEATH", "2050-03-05 11:00:00", None, None) in events_of(dataset, 1)
    assert "HOSPITAL_DISCHARGE//DIED" in codes_of(dataset, "9022", "HOSPITAL_DISCHARGE")
    assert ("MEDS_DEATH", "2050-10-06 00:00:00", None, None) in events_of(dataset, 3)
    assert "HOSPITAL_DISCHARGE//HOME" in codes_of(dataset, "9032", "HOSPITAL_DISCHARGE")


@pytest.mark.parametrize(
    ("race", "group"),
    [
        ("BLACK/CAPE VERDEAN", "BLACK"),
        ("HISPANIC OR LATINO", "HISPANIC"),
        ("ASIAN - SOUTH EAST ASIAN", "ASIAN"),
        ("NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER", "OTHER"),
        ("PATIENT DECLINED TO ANSWER", "UNKNOWN"),
        ("UNABLE TO OBTAIN", "UNKNOWN"),
        ("", "UNKNOWN"),
    ],
)
def test_races_are_grouped(extract: Extract, race: str, group: str) -> None:
    tables = mimic4_tables()
    tables["admissions"][0] |= {"race": race}
    assert set(codes_of(extract(tables), "9011", "ETHNICITY")) == {f"ETHNICITY//{group}"}


def test_without_race_and_ethnicity_the_group_is_unknown(extract: Extract) -> None:
    tables = mimic4_tables()
    for row in tables["admissions"]:
        del row["race"]
    assert set(codes_of(extract(tables), "9011", "ETHNICITY")) == {"ETHNICITY//UNKNOWN"}


def test_a_drug_counts_once_a_stay_from_its_first_time(extract: Extract) -> None:
    tables = mimic4_tables()
    given = tables["prescriptions"][0]
    tables["prescriptions"] += [
        given | {"starttime": "2050-01-01 22:00:00", "pharmacy_id": "1"},
        given | {"starttime": "2050-01-04 01:00:00.000"},
        given | {"starttime": ""},
        given | {"drug": "FUROSEMIDE", "starttime": "2050-01-01 21:00:00"},
        given | {"drug": "Aspirin", "starttime": ""},
        given | {"drug": "Sodium Chloride 0.9%", "drug_type": "BASE"},
    ]
    dataset = extract(tables)
    drugs = [event for event in events_of(dataset, 1) if event[0].startswith("MEDICATION")]
    assert [event for event in drugs if event[3] == "9011"] == [
        ("MEDICATION//NAME//furosemide", "2050-01-01 21:00:00", None, "9011"),
        ("MEDICATION//NAME//aspirin", "2050-01-05 12:00:00", None, "9011"),
    ]
    counted = {"read": 86, "used": 85, "left_out": {"of no MAIN drug": 1}}
    assert rows_of(dataset)["prescriptions.csv"] == counted


def test_stays_that_overlap_are_kept(extract: Extract) -> None:
    tables = mimic4_tables()
    tables["admissions"][1] |= {"admittime": "2050-01-04 09:00:00"}
    assert {event[3] for event in events_of(extract(tables), 1)} == {None, "9011", "9012"}


def test_headers_in_upper_case_and_renamed_columns_are_read(extract: Extract) -> None:
    tables = mimic4_tables()
    expected = read_events(extract(tables))
    shouted = {
        name: [{key.upper(): value for key, value in row.items()} for row in rows]
        for name, rows in tables.items()
    }
    assert read_events(extract(shouted)) == expected
    tables["prescriptions"] = renamed(tables["prescriptions"], "drug", "drug_name")
    columns = {"prescriptions": {"drug": "drug_name"}}
    assert read_events(extract(tables, columns=columns)) == expected


def test_two_anchors_of_a_patient_are_said_and_the_lower_age_is_taken(
    extract: Extract, said: list[str]
) -> None:
    tables = mimic4_tables()
    tables["patients"] += [
        tables["patients"][0] | {"anchor_age": "40"},
        tables["patients"][1] | {"anchor_age": "49", "anchor_year": "2049"},  # the same birth
    ]
    events = read_events(extract(tables)).to_pylist()
    assert [line for line in said if "differ" in line] == [
        "patients.csv: 1 patients stand in several rows that differ: of each value the least was "
        "taken"
    ]
    ages = {row["visit_id"]: row["numeric_value"] for row in events if row["code"] == "AGE"}
    assert (ages["9011"], ages["9021"]) == (42, 50)


def test_a_procedure_of_icd10_may_be_all_letters_and_a_diagnosis_not(
    extract: Extract, said: list[str]
) -> None:
    tables = mimic4_tables()
    new = {"icd_code": "GZHZZZZ", "icd_version": "10"}
    tables["procedures_icd"] += [
        tables["procedures_icd"][0] | new,
        tables["procedures_icd"][0] | new | {"icd_code": "UNKNOWN"},
    ]
    tables["diagnoses_icd"].append(tables["diagnoses_icd"][0] | new | {"icd_code": "NoDx"})
    codes = set(read_events(extract(tables))["code"].to_pylist())
    assert "PROCEDURE//ICD10PCS//GZHZZZZ" in codes
    assert not [code for code in codes if code.endswith(("//UNKNOWN", "//NODX"))]
    for table in ("procedures_icd", "diagnoses_icd"):
        assert f"{table}.csv: 1 rows with a code that is none left out" in said
