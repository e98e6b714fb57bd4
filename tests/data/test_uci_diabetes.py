"""UCI Diabetes-130 → MEDS: order, synthetic times, truncated codes, what is never read."""

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hospital import Row, Stage, write_csv

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.uci_diabetes import COLUMNS, DEATHS, DRUGS, TABLE

MAPPING = (
    "admission_type_id,description\n1,Emergency\n6,NULL\n,\n"
    "discharge_disposition_id,description\n1,Discharged to home\n11,Expired\n"
)


def encounter(encounter_id: str, patient: str, **changes: str) -> Row:
    row = dict.fromkeys(COLUMNS, "No") | {
        "encounter_id": encounter_id,
        "patient_nbr": patient,
        "race": "Caucasian",
        "gender": "Female",
        "age": "[70-80)",
        "admission_type_id": "1",
        "discharge_disposition_id": "1",
        "time_in_hospital": "3",
        "diag_1": "428",
        "diag_2": "?",
        "diag_3": "?",
        "readmitted": ">30",
    }
    return row | changes


def events_of(dataset: Path) -> list[tuple[str, str | None, float | None, str | None]]:
    return [
        (row["code"], row["time"] and str(row["time"])[:10], row["numeric_value"], row["visit_id"])
        for row in pq.read_table(dataset / "data" / "0000.parquet").to_pylist()
    ]


@pytest.fixture
def read(tmp_path: Path, make_events: Stage) -> Stage:
    """Encounters → dataset, from a folder with the CSV and its mapping."""

    def make(*rows: Row) -> Path:
        root = tmp_path / "uci"
        root.mkdir(exist_ok=True)
        write_csv(rows, root / f"{TABLE}.csv")
        (root / "IDs_mapping.csv").write_text(MAPPING)
        return make_events(root, source="uci_diabetes")

    return make


def test_an_encounter_becomes_events_at_synthetic_times(read: Stage) -> None:
    row = encounter("7", "1", diag_2="250.83", diag_3="8", metformin="Steady", insulin="Up")
    assert events_of(read(row)) == [
        ("GENDER//F", None, None, None),
        ("AGE", "2000-01-01", 75.0, "7"),
        ("ETHNICITY//WHITE", "2000-01-01", None, "7"),
        ("HOSPITAL_ADMISSION//EMERGENCY", "2000-01-01", None, "7"),
        ("DIAGNOSIS//UCI_ICD9//008", "2000-01-04", 3.0, "7"),
        ("DIAGNOSIS//UCI_ICD9//25083", "2000-01-04", 2.0, "7"),
        ("DIAGNOSIS//UCI_ICD9//428", "2000-01-04", 1.0, "7"),
        ("HOSPITAL_DISCHARGE", "2000-01-04", None, "7"),
        ("MEDICATION//NAME//insulin", "2000-01-04", None, "7"),
        ("MEDICATION//NAME//metformin", "2000-01-04", None, "7"),
    ]


def test_encounters_are_ordered_by_number_not_by_text(read: Stage) -> None:
    dataset = read(encounter("100", "1"), encounter("9", "1"), encounter("50", "1"))
    admissions = [e for e in events_of(dataset) if e[0].startswith("HOSPITAL_ADMISSION")]
    assert [(time, visit) for _, time, _, visit in admissions] == [
        ("2000-01-01", "9"),
        ("2000-04-10", "50"),
        ("2000-07-19", "100"),
    ]


@pytest.mark.parametrize("disposition", DEATHS)
def test_dispositions_of_death_end_the_stay_as_died(read: Stage, disposition: str) -> None:
    codes = {
        e[0] for e in events_of(read(encounter("1", "1", discharge_disposition_id=disposition)))
    }
    assert {"HOSPITAL_DISCHARGE//DIED", "MEDS_DEATH"} <= codes


def test_question_marks_and_words_for_nothing_are_null(read: Stage) -> None:
    row = encounter("1", "1", race="?", gender="Unknown/Invalid", admission_type_id="6", diag_1="?")
    codes = {event[0] for event in events_of(read(row))}
    assert codes == {"AGE", "ETHNICITY//UNKNOWN", "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE"}


def test_readmitted_and_other_columns_change_nothing(read: Stage) -> None:
    first = events_of(read(encounter("1", "1", readmitted="NO", payer_code="MC")))
    assert first == events_of(read(encounter("1", "1", readmitted="<30", payer_code="HM")))


def test_codes_that_cannot_be_such_are_said_and_left_out(read: Stage, said: list[str]) -> None:
    dataset = read(
        encounter("1", "1", diag_1="NULL", diag_2="250.83", diag_3="428//1"),
        encounter("2", "2", diag_1="NULL"),
    )
    codes = [event[0] for event in events_of(dataset) if event[0].startswith("DIAGNOSIS")]
    assert codes == ["DIAGNOSIS//UCI_ICD9//25083"]
    assert "diabetic_data.csv: 3 diagnoses with a code that is none left out" in said


def test_truncated_codes_carry_general_titles_and_times_are_marked(read: Stage) -> None:
    dataset = read(encounter("1", "1"))
    codes = pq.read_table(dataset / "metadata" / "codes.parquet").to_pylist()
    titles = {row["code"]: row["description"] for row in codes}
    assert titles["DIAGNOSIS//UCI_ICD9//428"] == "Heart failure, unspecified"
    facts = json.loads((dataset / "metadata" / "dataset.json").read_text())
    assert facts["synthetic_times"] is True


def test_zip_csv_and_folder_give_the_same_events(
    read: Stage, tmp_path: Path, make_events: Stage
) -> None:
    expected = events_of(read(encounter("1", "1"), encounter("2", "5")))
    csv_file = tmp_path / "uci" / f"{TABLE}.csv"
    archive = tmp_path / "zipped" / "dataset_diabetes.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in csv_file.parent.iterdir():
            file.write(path, f"dataset_diabetes/{path.name}")
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in csv_file.parent.iterdir():
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    for root in (csv_file, archive, archive.parent, packed, packed / f"{TABLE}.csv.gz"):
        assert events_of(make_events(root, source="uci_diabetes")) == expected


def test_every_drug_column_is_read(read: Stage) -> None:
    row = encounter("1", "1", **dict.fromkeys(DRUGS, "Down"))
    names = {e[0].split("//")[-1] for e in events_of(read(row)) if e[0].startswith("MEDICATION")}
    assert names == set(DRUGS)
    assert len(names) == 23


def test_a_stay_that_stands_twice_is_refused(read: Stage) -> None:
    with pytest.raises(CkdEhrError, match=r"diabetic_data\.csv: 1 stays \(column 'encounter_id'\)"):
        read(encounter("1", "1"), encounter("1", "2"))


def test_numbers_with_a_decimal_point_lose_it_and_others_are_refused(read: Stage) -> None:
    ids = {"admission_type_id": "1.0", "discharge_disposition_id": "11.0"}
    events = events_of(read(encounter("7.0", "1.0", time_in_hospital="3.0", **ids)))
    assert ("HOSPITAL_ADMISSION//EMERGENCY", "2000-01-01", None, "7") in events
    assert ("HOSPITAL_DISCHARGE//DIED", "2000-01-04", None, "7") in events
    with pytest.raises(CkdEhrError, match=r"'encounter_id': 1 values of the form '9\.9' are no"):
        read(encounter("7.6", "1"))
    with pytest.raises(CkdEhrError, match=r"'time_in_hospital': .*; write whole days"):
        read(encounter("7", "1", time_in_hospital="three"))


def test_a_mapping_cut_off_is_refused(read: Stage, tmp_path: Path, make_events: Stage) -> None:
    read(encounter("1", "1"))
    mapping = tmp_path / "uci" / "IDs_mapping.csv"
    mapping.with_name("IDs_mapping.csv.gz").write_bytes(gzip.compress(MAPPING.encode())[:-9])
    mapping.unlink()
    with pytest.raises(CkdEhrError, match=r"IDs_mapping\.csv\.gz: the gzip file is cut off"):
        make_events(tmp_path / "uci", source="uci_diabetes")


def test_a_missing_column_is_refused(read: Stage) -> None:
    row = encounter("1", "1")
    del row["diag_2"]
    with pytest.raises(CkdEhrError, match=r"column 'diag_2' is missing .*diabetic_data\.diag_2"):
        read(row)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PK\x03\x04 cut off", "not an intact zip"), (None, r"holds no diabetic_data\.csv")],
)
def test_a_broken_or_foreign_zip_is_refused(
    tmp_path: Path, make_events: Stage, content: bytes | None, message: str
) -> None:
    path = tmp_path / "data.zip"
    if content is None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("other.csv", "a\n1\n")
    else:
        path.write_bytes(content)
    with pytest.raises(CkdEhrError, match=rf"data\.zip: {message}"):
        make_events(path, source="uci_diabetes")


def test_a_folder_without_the_data_is_refused(tmp_path: Path, make_events: Stage) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CkdEhrError, match=r"found 0 of diabetic_data\.csv, .* or \*\.zip"):
        make_events(tmp_path / "empty", source="uci_diabetes")
