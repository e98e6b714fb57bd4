"""MIMIC-III tables → MEDS events: what becomes of each row."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hospital import Stage, Tables, hospital_tables, write_csv, write_tables

from ckd_ehr.contracts.errors import CkdEhrError

Event = tuple[str, str | None, float | None, str | None]


def read_events(dataset: Path) -> pa.Table:
    return pq.read_table(sorted((dataset / "data").iterdir()))


def events_of(dataset: Path, subject: int) -> list[Event]:
    """Code, time, numeric value and visit of each event of a patient."""
    return [
        (row["code"], row["time"] and str(row["time"]), row["numeric_value"], row["visit_id"])
        for row in read_events(dataset).to_pylist()
        if row["subject_id"] == subject
    ]


def test_each_table_becomes_events_of_its_kind(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    tables["PATIENTS"][0] |= {"DOD": "2051-02-03 00:00:00"}
    dataset = make_events(write_tables(tables, tmp_path / "tables"))
    first_stay = [
        event for event in events_of(dataset, 1) if event[3] == "9011" or event[3] is None
    ]
    assert first_stay == [
        ("GENDER//F", None, None, None),
        ("MEDS_BIRTH", "2000-01-01 00:00:00", None, None),
        ("ETHNICITY//WHITE", "2050-01-01 10:00:00", None, "9011"),
        ("HOSPITAL_ADMISSION//EMERGENCY", "2050-01-01 10:00:00", None, "9011"),
        ("MEDICATION//NAME//furosemide", "2050-01-02 00:00:00", None, "9011"),
        ("DIAGNOSIS//ICD9CM//4019", "2050-01-05 12:00:00", 1.0, "9011"),
        ("HOSPITAL_DISCHARGE//HOME", "2050-01-05 12:00:00", None, "9011"),
        ("PROCEDURE//ICD9PROC//3722", "2050-01-05 12:00:00", 1.0, "9011"),
        ("MEDS_DEATH", "2051-02-03 00:00:00", None, None),
    ]


def test_codes_carry_the_titles_of_the_dictionaries(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    dataset = make_events(write_tables(tables, tmp_path / "tables"))
    codes = pq.read_table(dataset / "metadata" / "codes.parquet").to_pylist()
    titles = {row["code"]: row["description"] for row in codes}
    assert titles["DIAGNOSIS//ICD9CM//4280"] == "Congestive heart failure, unspecified"
    assert titles["PROCEDURE//ICD9PROC//3722"] == "Left heart cardiac catheterization"
    assert titles["DIAGNOSIS//ICD9CM//4019"] is None


def test_dictionaries_may_be_absent(tables: Tables, tmp_path: Path, make_events: Stage) -> None:
    del tables["D_ICD_DIAGNOSES"], tables["D_ICD_PROCEDURES"]
    dataset = make_events(write_tables(tables, tmp_path / "tables"))
    assert read_events(dataset).num_rows > 0


def test_a_stay_that_ends_in_death_is_discharged_as_died(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    tables["ADMISSIONS"][1] |= {"HOSPITAL_EXPIRE_FLAG": "1", "DEATHTIME": "2050-03-05 11:00:00"}
    tables["PATIENTS"][0] |= {"DOD": "2050-03-05 00:00:00"}
    events = events_of(make_events(write_tables(tables, tmp_path / "tables")), 1)
    assert ("HOSPITAL_DISCHARGE//DIED", "2050-03-05 12:00:00", None, "9012") in events
    # The hour of death, where a stay has it, not the day.
    assert [event for event in events if event[0] == "MEDS_DEATH"] == [
        ("MEDS_DEATH", "2050-03-05 11:00:00", None, None)
    ]


def test_main_drugs_only_and_one_name_per_stay(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    same = {"SUBJECT_ID": "1", "HADM_ID": "9011", "DRUG_TYPE": "MAIN"}
    tables["PRESCRIPTIONS"] = [
        same | {"DRUG": "FUROSEMIDE", "STARTDATE": "2050-01-03 00:00:00"},
        same | {"DRUG": "Furosemide (10 mg/mL)", "STARTDATE": "2050-01-02 00:00:00"},
        same | {"DRUG": "Furosemide 20 mg Tab", "STARTDATE": ""},
        same | {"DRUG": "D5W", "DRUG_TYPE": "BASE", "STARTDATE": "2050-01-02 00:00:00"},
        same | {"DRUG": "Aspirin", "STARTDATE": ""},
    ]
    events = events_of(make_events(write_tables(tables, tmp_path / "tables")), 1)
    drugs = [event for event in events if event[0].startswith("MEDICATION")]
    assert drugs == [
        ("MEDICATION//NAME//furosemide", "2050-01-02 00:00:00", None, "9011"),
        # Without a date, known at discharge at the latest.
        ("MEDICATION//NAME//aspirin", "2050-01-05 12:00:00", None, "9011"),
    ]


def test_codes_lose_dots_and_blanks_but_no_leading_zero_and_doubles_fold(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    ids = {"SUBJECT_ID": "1", "HADM_ID": "9011"}
    tables["DIAGNOSES_ICD"] = [
        ids | {"SEQ_NUM": "3", "ICD9_CODE": "042"},
        ids | {"SEQ_NUM": "2", "ICD9_CODE": " v45.81 "},
        ids | {"SEQ_NUM": "1", "ICD9_CODE": "V4581"},
    ]
    events = events_of(make_events(write_tables(tables, tmp_path / "tables")), 1)
    assert {event[:3:2] for event in events if event[0].startswith("DIAGNOSIS")} == {
        ("DIAGNOSIS//ICD9CM//042", 3.0),
        ("DIAGNOSIS//ICD9CM//V4581", 1.0),
    }


def test_unusable_rows_are_counted_and_dropped(
    tables: Tables, tmp_path: Path, make_events: Stage, said: list[str]
) -> None:
    tables["DIAGNOSES_ICD"][0] |= {"ICD9_CODE": ""}
    tables["DIAGNOSES_ICD"][1] |= {"ICD9_CODE": "."}
    tables["PRESCRIPTIONS"][0] |= {"HADM_ID": ""}
    tables["PRESCRIPTIONS"].append(dict(tables["PRESCRIPTIONS"][0]))
    tables["PROCEDURES_ICD"][0] |= {"HADM_ID": "123456"}
    tables["ADMISSIONS"][9] |= {"DISCHTIME": ""}
    make_events(write_tables(tables, tmp_path / "tables"))
    assert "DIAGNOSES_ICD.csv: 2 rows without patient, stay or code left out" in said
    assert "PRESCRIPTIONS.csv: 2 rows without patient, stay or drug left out" in said
    assert "ADMISSIONS.csv: 1 rows without patient, stay or time left out" in said
    # One of a stay that never was, one of the stay just dropped.
    assert "PROCEDURES_ICD.csv: 2 rows without a stay in ADMISSIONS left out" in said


@pytest.mark.parametrize("code", ["NULL", "-", "NA", "4280//1", "428\u00e9", "UNKNOWN"])
@pytest.mark.parametrize(
    ("table", "role"), [("DIAGNOSES_ICD", "DIAGNOSIS"), ("PROCEDURES_ICD", "PROCEDURE")]
)
def test_codes_that_cannot_be_such_are_counted_and_left_out(
    tmp_path: Path, make_events: Stage, said: list[str], code: str, table: str, role: str
) -> None:
    tables = hospital_tables(2)
    tables[table][0] |= {"ICD9_CODE": code}
    dataset = make_events(write_tables(tables, tmp_path / "tables"))
    assert f"{table}.csv: 1 rows with a code that is none left out" in said
    stays = [event[3] for event in events_of(dataset, 1) if event[0].startswith(role)]
    assert stays == ["9012"]


def test_stays_and_patients_whose_rows_differ_are_counted_and_said(
    tables: Tables, tmp_path: Path, make_events: Stage, said: list[str]
) -> None:
    stay, patient = tables["ADMISSIONS"][0], tables["PATIENTS"][0]
    tables["ADMISSIONS"] += [
        stay | {"ADMITTIME": "2050-01-01 09:00:00"},
        stay | {"DISCHTIME": "2050-01-06 12:00:00"},
        tables["ADMISSIONS"][2] | {"ADMISSION_TYPE": "URGENT"},
    ]
    tables["PATIENTS"] += [
        patient | {"GENDER": "M"},
        tables["PATIENTS"][1] | {"DOB": "1999-01-01 00:00:00"},
        tables["PATIENTS"][2] | {"DOD": "2090-01-01 00:00:00"},
    ]
    dataset = make_events(write_tables(tables, tmp_path / "tables"))
    assert (
        "ADMISSIONS.csv: 2 stays stand in several rows that differ: first admission and last "
        "discharge were taken"
    ) in said
    assert (
        "PATIENTS.csv: 3 patients stand in several rows that differ: of each value the least was "
        "taken"
    ) in said
    events = {event[:2] for event in events_of(dataset, 1) if event[3] in ("9011", None)}
    assert events >= {
        ("GENDER//F", None),
        ("HOSPITAL_ADMISSION//EMERGENCY", "2050-01-01 09:00:00"),
        ("HOSPITAL_DISCHARGE//HOME", "2050-01-06 12:00:00"),
    }
    assert ("MEDS_BIRTH", "1999-01-01 00:00:00") in {e[:2] for e in events_of(dataset, 2)}


def test_rows_that_say_the_same_are_not_said_to_differ(
    tables: Tables, tmp_path: Path, make_events: Stage, said: list[str]
) -> None:
    tables["ADMISSIONS"].append(
        tables["ADMISSIONS"][0] | {"ADMISSION_TYPE": "emergency", "ETHNICITY": "WHITE"}
    )
    tables["PATIENTS"].append(tables["PATIENTS"][0] | {"GENDER": "f", "DOB": "2000-01-01"})
    make_events(write_tables(tables, tmp_path / "tables"))
    assert not [line for line in said if "differ" in line]


@pytest.mark.parametrize(
    ("ethnicity", "group"),
    [
        ("WHITE - BRAZILIAN", "WHITE"),
        ("BLACK/AFRICAN AMERICAN", "BLACK"),
        ("HISPANIC/LATINO - PUERTO RICAN", "HISPANIC"),
        ("Asian - Chinese", "ASIAN"),
        ("MIDDLE EASTERN", "OTHER"),
        ("UNABLE TO OBTAIN", "UNKNOWN"),
        ("UNKNOWN/NOT SPECIFIED", "UNKNOWN"),
        ("", "UNKNOWN"),
    ],
)
def test_ethnicities_are_grouped(
    tables: Tables, tmp_path: Path, make_events: Stage, ethnicity: str, group: str
) -> None:
    tables["ADMISSIONS"][0] |= {"ETHNICITY": ethnicity}
    events = events_of(make_events(write_tables(tables, tmp_path / "tables")), 1)
    assert f"ETHNICITY//{group}" in {event[0] for event in events if event[3] == "9011"}


@pytest.mark.parametrize("table", ["ADMISSIONS", "DIAGNOSES_ICD", "PRESCRIPTIONS"])
def test_one_stay_under_two_patients_is_refused_with_table_and_columns(
    tables: Tables, tmp_path: Path, make_events: Stage, table: str
) -> None:
    tables[table].append(tables[table][0] | {"SUBJECT_ID": "2"})
    with pytest.raises(CkdEhrError) as error:
        make_events(write_tables(tables, tmp_path / "tables"))
    assert str(error.value).startswith(f"{table}.csv: 1 stays (column 'hadm_id') stand under two")
    assert "9011" not in str(error.value)


def test_a_missing_table_is_refused(tables: Tables, tmp_path: Path, make_events: Stage) -> None:
    del tables["PRESCRIPTIONS"]
    with pytest.raises(CkdEhrError, match="table PRESCRIPTIONS is missing"):
        make_events(write_tables(tables, tmp_path / "tables"))


def test_a_renamed_column_is_mapped(tables: Tables, tmp_path: Path, make_events: Stage) -> None:
    renamed = [{("DRUGNAME" if k == "DRUG" else k): v for k, v in row.items()}
               for row in tables["PRESCRIPTIONS"]]  # fmt: skip
    root = write_tables(tables | {"PRESCRIPTIONS": renamed}, tmp_path / "tables")
    with pytest.raises(CkdEhrError, match=r"map it with data\.columns\.PRESCRIPTIONS\.drug=NAME"):
        make_events(root)
    dataset = make_events(root, columns={"PRESCRIPTIONS": {"drug": "drugname"}})
    assert "MEDICATION//NAME//furosemide" in {event[0] for event in events_of(dataset, 1)}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("ADMISSIONS", "ADMITTIME"), "01.02.2050", "'99.99.9999' are no time"),
        (("PATIENTS", "DOB"), "unknown", "'aaaaaaa' are no time"),
        (("PRESCRIPTIONS", "STARTDATE"), "soon", "'aaaa' are no time"),
        (("DIAGNOSES_ICD", "SUBJECT_ID"), "P01", "'a99' are no whole number"),
        (("PATIENTS", "SUBJECT_ID"), "10006.6", "'99999.9' are no whole number"),
        (("ADMISSIONS", "HADM_ID"), "1e5", "'9a9' are no whole number"),
        (("PRESCRIPTIONS", "HADM_ID"), "H-01", "'a-99' are no whole number"),
    ],
)
def test_values_that_do_not_parse_are_refused(
    tmp_path: Path, make_events: Stage, place: tuple[str, str], value: str, message: str
) -> None:
    table, column = place
    tables = hospital_tables()
    tables[table][0] |= {column: value}
    with pytest.raises(CkdEhrError) as error:
        make_events(write_tables(tables, tmp_path / "tables"))
    expected = f"{table}.csv: column '{column.lower()}': 1 values of the form {message}"
    assert str(error.value).startswith(expected)


@pytest.mark.parametrize("table", ["ADMISSIONS", "DIAGNOSES_ICD", "PRESCRIPTIONS", "PATIENTS"])
def test_whole_numbers_with_a_decimal_point_lose_it(
    tables: Tables, tmp_path: Path, make_events: Stage, table: str
) -> None:
    plain = make_events(write_tables(tables, tmp_path / "plain"))
    expected = read_events(plain)
    for row in tables[table]:
        row.update({key: f"{row[key]}.0" for key in ("SUBJECT_ID", "HADM_ID") if key in row})
    assert read_events(make_events(write_tables(tables, tmp_path / "floats"))) == expected


@pytest.mark.parametrize("hadm_id", ["9011999", ""])
@pytest.mark.parametrize("table", ["DIAGNOSES_ICD", "PROCEDURES_ICD", "PRESCRIPTIONS"])
def test_a_table_without_a_row_of_any_stay_is_refused(
    tables: Tables, tmp_path: Path, make_events: Stage, table: str, hadm_id: str
) -> None:
    for row in tables[table]:
        row["HADM_ID"] = hadm_id
    with pytest.raises(CkdEhrError) as error:
        make_events(write_tables(tables, tmp_path / "tables"))
    assert str(error.value).startswith(
        f"{table}.csv: none of its 80 rows belongs to one of the 80 stays of ADMISSIONS"
    )
    assert "9011" not in str(error.value)


def test_tables_without_rows_are_refused(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    root = write_tables(tables, tmp_path / "tables")
    for name, rows in tables.items():
        write_csv([], root / f"{name}.csv", header=list(rows[0]))
    with pytest.raises(CkdEhrError, match=r"^ADMISSIONS\.csv: no rows .*export the table again"):
        make_events(root)


def test_admissions_without_rows_are_blamed_before_any_other_table(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    root = write_tables(tables, tmp_path / "tables")
    write_csv([], root / "ADMISSIONS.csv", header=list(tables["ADMISSIONS"][0]))
    with pytest.raises(CkdEhrError, match=r"^ADMISSIONS\.csv: no rows") as error:
        make_events(root)
    assert "DIAGNOSES_ICD" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "remedy"),
    [("HOSPITAL_EXPIRE_FLAG", "Y", "write 0 or 1"), ("HADM_ID", "H1", "MEDS needs 64-bit")],
)
def test_a_value_that_is_no_number_has_the_remedy_of_its_column(
    tables: Tables, tmp_path: Path, make_events: Stage, column: str, value: str, remedy: str
) -> None:
    tables["ADMISSIONS"][0] |= {column: value}
    with pytest.raises(CkdEhrError, match=rf"are no whole number; {remedy}"):
        make_events(write_tables(tables, tmp_path / "tables"))


def test_without_data_root_the_error_names_it(make_events: Stage) -> None:
    with pytest.raises(CkdEhrError, match=r"data\.root is not set"):
        make_events(None)
