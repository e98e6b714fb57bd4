"""The source `meds`: what becomes of the events of other ETLs, and of our own."""

from importlib import resources
from pathlib import Path

import pyarrow as pa
import pytest
from foreign_meds import (
    Event,
    event,
    events_of,
    left_out,
    of_kind,
    stay,
    table_of,
    titles_of,
    write_meds,
)
from hospital import Stage, hospital_tables, write_tables
from meds_testing_helpers.dataset import MEDSDataset

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.files import read_json
from ckd_ehr.data.simulator.hospital import simulate
from small_hospital import FREQUENT

THEIR_SUBJECTS = (239684, 1195293, 68729, 814703, 754281, 1500733)


def test_the_events_of_mimic_iv_meds_become_ours(
    tmp_path: Path, make_events: Stage, said: list[str]
) -> None:
    ids = {"hadm_id": 77}
    last = "2150-01-05T12:00"
    root = write_meds(
        tmp_path,
        [
            event(1, None, "GENDER//F"),
            event(1, "2100-01-01", "MEDS_BIRTH"),
            event(1, "2150-01-01T08:00", "ED_REGISTRATION"),
            *stay(1, 1, race="WHITE - RUSSIAN", **ids),
            event(1, last, "DIAGNOSIS//ICD//9//4280", **ids),
            event(1, last, "PROCEDURE//ICD//9//3722", **ids),
            event(1, last, "PROCEDURE//ICD//10//4A023N7", **ids),
            event(1, "2150-01-02", "MEDICATION//START//Furosemide 20 mg Tab"),
            event(1, "2150-01-03", "LAB//RESULT//50912//mg/dL", numeric_value=1.5, **ids),
            event(1, "2150-01-03", "LAB//RESULT//50971//mEq/L", numeric_value=4, **ids),
            event(1, "2151-02-03", "MEDS_DEATH"),
            *(event(s, "2150-01-03", "LAB//RESULT//50971//mEq/L") for s in range(2, 6)),
        ],
        codes=[{"code": "DIAGNOSIS//ICD//9//4280", "description": "Congestive heart failure"}],
        facts={"dataset_name": "MIMIC-IV", "dataset_version": "3.1:0.1.1", "etl_name": "MEDS"},
    )
    dataset = make_events(root, source="meds")
    discharge = "2150-01-05 12:00:00"
    assert events_of(dataset) == [
        ("GENDER//F", None, None, None),
        ("MEDS_BIRTH", "2100-01-01 00:00:00", None, None),
        ("ETHNICITY//WHITE", "2150-01-01 10:00:00", None, "77"),
        ("HOSPITAL_ADMISSION//URGENT", "2150-01-01 10:00:00", None, "77"),
        ("MEDICATION//NAME//furosemide", "2150-01-02 00:00:00", None, "77"),
        ("DIAGNOSIS//ICD10CM//I509", discharge, None, "77"),
        ("DIAGNOSIS//ICD9CM//4280", discharge, None, "77"),
        ("HOSPITAL_DISCHARGE//HOME", discharge, None, "77"),
        ("PROCEDURE//ICD10PCS//4A023N7", discharge, None, "77"),
        ("PROCEDURE//ICD9PROC//3722", discharge, None, "77"),
        ("MEDS_DEATH", "2151-02-03 00:00:00", None, None),
    ]
    assert titles_of(dataset) == {"DIAGNOSIS//ICD9CM//4280": "Congestive heart failure"}
    assert read_json(dataset / "metadata" / "dataset.json")["dataset_name"] == "MIMIC-IV"
    assert "MIMIC-IV, version 3.1:0.1.1, made by MEDS" in said
    assert left_out(dataset) == {
        "of codes LAB, which are not read,": 6,
        "of other codes, which are not read,": 1,
    }


def test_what_is_billed_after_discharge_is_known_at_discharge_and_drugs_keep_their_time(
    tmp_path: Path, make_events: Stage
) -> None:
    ids = {"hadm_id": 7}
    root = write_meds(
        tmp_path,
        [
            *stay(1, 1, **ids),
            event(1, "2150-02-01", "DIAGNOSIS//ICD//10//N179", **ids),
            event(1, "2150-02-01", "PROCEDURE//ICD//10//4A023N7", **ids),
            event(1, "2150-01-02", "PROCEDURE//ICD//10//02703ZZ", **ids),
            event(1, "2150-02-01", "MEDICATION//START//Aspirin", **ids),
        ],
    )
    times = {
        read[0].rpartition("//")[2]: read[1] for read in events_of(make_events(root, source="meds"))
    }
    discharge = "2150-01-05 12:00:00"
    assert times["N179"] == times["4A023N7"] == discharge
    assert times["02703ZZ"] == "2150-01-02 00:00:00"
    assert times["aspirin"] == "2150-02-01 00:00:00"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event(1, "2150-01-01T10:00", "RACE//ASIAN - CHINESE", hadm_id=7)], "7 ASIAN"),
        ([event(1, "2150-01-01T10:00", "RACE//UNK", hadm_id=7)], "7 UNKNOWN"),
        ([event(1, None, "RACE//Caucasian")], "None WHITE"),
        ([event(1, None, "GENDER//F", race=None)], "7 UNKNOWN"),
        ([event(1, None, "Ethnicity/Hispanic", race=None)], "None HISPANIC"),
        ([], ""),
    ],
)
def test_ethnicity_comes_from_events_of_stay_or_person_or_from_a_column(
    tmp_path: Path, make_events: Stage, events: list[Event], expected: str
) -> None:
    dataset = make_events(write_meds(tmp_path, [*events, *stay(1, 1, hadm_id=7)]), source="meds")
    found = [f"{read[3]} {read[0][11:]}" for read in of_kind(dataset, "ETHNICITY")]
    assert " ".join(found) == expected


@pytest.mark.parametrize(("code", "number"), [("AGE", 61.5), ("AGE//72", None)])
def test_an_age_is_kept_with_its_stay(
    tmp_path: Path, make_events: Stage, code: str, number: float | None
) -> None:
    events = [*stay(1, 1, hadm_id=7), event(1, "2150-01-01T10:00", code, numeric_value=number)]
    dataset = make_events(
        write_meds(tmp_path, [*events, event(1, "2150-01-02", "AGE//old")]), source="meds"
    )
    assert of_kind(dataset, "AGE") == [("AGE", "2150-01-01 10:00:00", number or 72.0, "7")]
    assert left_out(dataset) == {"of ages without a number": 1}


@pytest.mark.parametrize("column", ["numeric_value", "seq_num"])
@pytest.mark.parametrize("nothing", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_no_number(
    tmp_path: Path, make_events: Stage, column: str, nothing: float
) -> None:
    events = [event(1, "2150-01-01T10:00", "AGE", hadm_id=7), *stay(1, 1, hadm_id=7)]
    cells = pa.array([nothing] * len(events), pa.float64(), from_pandas=False)
    root = write_meds(tmp_path, table_of(events).append_column(column, cells))
    dataset = make_events(root, source="meds")
    assert of_kind(dataset, "AGE") == []
    assert [read[2] for read in of_kind(dataset, "DIAGNOSIS")] == [None]
    assert left_out(dataset) == {"of ages without a number": 1}


def test_an_age_that_nobody_has_is_left_out(tmp_path: Path, make_events: Stage) -> None:
    events = [
        event(s, "2150-01-01T10:00", code, numeric_value=number, hadm_id=s)
        for s, (code, number) in enumerate(
            [("AGE", 130.0), ("AGE", 0.0), ("AGE", 130.5), ("AGE", -1.0), ("AGE//-5", None)], 1
        )
    ]
    stays = [row for s in range(1, 6) for row in stay(s, 1, hadm_id=s)]
    dataset = make_events(write_meds(tmp_path, [*events, *stays]), source="meds")
    ages = [[read[2] for read in of_kind(dataset, "AGE", s)] for s in range(1, 6)]
    assert ages == [[130.0], [0.0], [], [], []]
    assert left_out(dataset) == {"of ages below 0 or above 130": 3}


def test_facts_of_a_person_that_contradict_each_other_are_counted_and_said(
    tmp_path: Path, make_events: Stage, said: list[str]
) -> None:
    codes = [
        *(("GENDER//M", None), ("GENDER//F", None), ("GENDER//UNKNOWN", None)),
        *(("MEDS_BIRTH", "2100-01-02"), ("MEDS_BIRTH", "2100-01-01")),
        *(("RACE//WHITE", None), ("RACE//ASIAN", None)),
    ]
    same = [
        *(("GENDER//F", None), ("GENDER//UNKNOWN", None)),
        *(("MEDS_BIRTH", "2100-01-01"), ("MEDS_BIRTH", "2100-01-01T09:00")),
        *(("RACE//WHITE", None), ("RACE//UNK", None)),
    ]
    rows = [event(77712345, time, code) for code, time in codes]
    rows += [event(2, time, code) for code, time in same]
    dataset = make_events(write_meds(tmp_path, [*rows, *stay(77712345, 1)]), source="meds")
    assert [read[:2] for read in events_of(dataset, 77712345)][:4] == [
        ("ETHNICITY//ASIAN", None),
        ("ETHNICITY//WHITE", None),
        ("GENDER//F", None),
        ("MEDS_BIRTH", "2100-01-01 00:00:00"),
    ]
    assert [line for line in said if "more than one" in line] == [
        "note: 1 patients have more than one sex; the first in the alphabet is taken",
        "note: 1 patients have more than one day of birth; the earliest is taken",
        "note: 1 patients have more than one ethnicity; a stay keeps its own",
    ]
    assert not any("77712345" in line for line in said)


def test_no_broken_event_disappears_uncounted(tmp_path: Path, make_events: Stage) -> None:
    broken = [
        {"subject_id": None, "time": None, "code": "GENDER//F"},
        {"subject_id": 1, "time": None, "code": None},
        {"subject_id": 1, "time": None, "code": " "},
        event(1, None, "GENDER//"),
        event(1, None, "MEDS_BIRTH"),
        event(1, "2150-01-05T12:00", "DIAGNOSIS//ICD//10//. "),
        event(1, "2150-01-02", "a nurse wrote this"),
        event(1, "2150-01-02", "and this"),
    ]
    dataset = make_events(write_meds(tmp_path, [*broken, *stay(1, 1), *stay(1, 1)]), source="meds")
    assert left_out(dataset) == {
        "without patient or code": 3,
        "without a code after the prefix": 2,
        "of births or deaths without a time": 1,
        "of other codes, which are not read,": 2,
    }
    # Equal events fold and count as used.
    assert read_json(dataset / "rows.json")["data"] == {
        "read": 14, "used": 6, "left_out": left_out(dataset)
    }  # fmt: skip


@pytest.mark.parametrize("synthetic", [False, True])
def test_our_own_dataset_comes_back_as_it_was(
    tmp_path: Path, make_events: Stage, synthetic: bool
) -> None:
    tables = hospital_tables()
    tables["DIAGNOSES_ICD"][0] |= {"SEQ_NUM": "3"}
    tables["ADMISSIONS"][1] |= {"HOSPITAL_EXPIRE_FLAG": "1", "DEATHTIME": "2050-03-05 11:00:00"}
    tables["ADMISSIONS"][5] |= {"ETHNICITY": "", "ADMISSION_TYPE": ""}
    first = make_events(write_tables(tables, tmp_path / "tables"))
    facts = first / "metadata" / "dataset.json"
    facts.write_text(
        facts.read_text().replace(
            '"synthetic_times": false', f'"synthetic_times": {str(synthetic).lower()}'
        )
    )
    second = make_events(first, source="meds")
    for name in ("data/0000.parquet", "metadata/codes.parquet", "metadata/dataset.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
    assert left_out(second) == {}


def test_simulated_patients_are_the_same_in_mimic_iii_tables_and_in_meds(
    tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    settings = SimulatorConfig(patients=330, seed=5, **FREQUENT)
    simulate(settings, tmp_path / "tables")
    simulate(settings, tmp_path / "foreign", layout="meds")
    of_tables = make_cohort(make_events(tmp_path / "tables"))
    of_meds = make_cohort(make_events(tmp_path / "foreign", source="meds"))
    for name in ("visits.parquet", "pairs.parquet"):
        assert (of_meds / name).read_bytes() == (of_tables / name).read_bytes()


def test_the_mimic_iii_demo_comes_back_as_it_was(real_data: Path, make_events: Stage) -> None:
    first = make_events(real_data / "mimic3-demo-1.4")
    second = make_events(first, source="meds")
    for name in ("data/0000.parquet", "metadata/codes.parquet"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
    assert left_out(second) == {}


def test_a_dataset_written_by_other_peoples_package_is_read(
    tmp_path: Path, make_events: Stage
) -> None:
    # The package's own sample: stays without an id, told by admissions and discharges alone. It
    # has no diagnosis, so its heart rates stand in for one.
    samples = resources.files("meds_testing_helpers.static_sample_data")
    text = samples.joinpath("simple_static_sharded_by_split.yaml").read_text(encoding="utf-8")
    MEDSDataset.from_yaml(text.replace(",HR,", ",ICD10CM/I49.9,")).write(tmp_path / "theirs")
    roles = {"ADMISSION//": {"role": "admission"}, "DISCHARGE": {"role": "discharge"}}
    dataset = make_events(tmp_path / "theirs", source="meds", meds={"roles": roles})
    rows = [row for subject in THEIR_SUBJECTS for row in events_of(dataset, subject)]
    stays = [row for row in rows if row[0].startswith("HOSPITAL_")]
    assert (len(stays), len({row[3] for row in stays})) == (12, 6)
    assert stays[:2] == [
        ("HOSPITAL_ADMISSION//CARDIAC", "2010-05-11 17:41:51", None, "239684@2010-05-11 17:41:51"),
        ("HOSPITAL_DISCHARGE", "2010-05-11 19:27:19", None, "239684@2010-05-11 17:41:51"),
    ]
    diagnoses = [row for row in rows if row[0] == "DIAGNOSIS//ICD10CM//I499"]
    discharges = [row for row in stays if row[0] == "HOSPITAL_DISCHARGE"]
    assert [row[1:] for row in diagnoses] == [row[1:] for row in discharges]
    assert (dataset / "metadata" / "subject_splits.parquet").is_file()
