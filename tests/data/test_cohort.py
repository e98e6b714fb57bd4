"""The cohort stage: what is left out and counted, what is refused, exact counts on real data."""

import datetime
import json
from pathlib import Path

import meds
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pytest
from hospital import (
    HEART_FAILURE,
    HYPERTENSION,
    Stage,
    Tables,
    default_split,
    write_csv,
    write_tables,
)

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table, sha256_of
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import PAIRS, VISITS, label_names

ROOT = Path(__file__).parent.parent.parent
TWO_LABELS = {"only_ccs": [108, 98]}


def counts_of(cohort: Path) -> dict[str, int]:
    counts = read_json(cohort / "flow.json")["counts"]
    assert isinstance(counts, dict)
    return counts


def visits_of(cohort: Path) -> dict[str, dict[str, object]]:
    rows = read_table(cohort / "visits.parquet", VISITS).to_pylist()
    return {row["visit_id"]: row for row in rows}


@pytest.fixture
def build(tmp_path: Path, make_events: Stage, make_cohort: Stage) -> Stage:
    """Tables → cohort folder, with two labels unless told otherwise."""

    def make(tables: Tables, **settings: object) -> Path:
        events = make_events(write_tables(tables, tmp_path / "tables"))
        return make_cohort(events, **({"labels": TWO_LABELS} | settings))

    return make


def test_visits_hold_what_their_stay_holds(tables: Tables, build: Stage) -> None:
    row = visits_of(build(tables))["9012"]
    assert row["subject_id"] == 1
    assert row["admit_time"] == datetime.datetime(2050, 3, 1, 10)
    assert row["discharge_time"] == datetime.datetime(2050, 3, 5, 12)
    assert row["age_years"] == pytest.approx(50.16, abs=0.01)
    assert (row["sex"], row["ethnicity"], row["admission_type"]) == ("F", "WHITE", "EMERGENCY")
    assert row["diagnoses"] == [
        {"system": "ICD9CM", "code": "4280", "title": "Congestive heart failure, unspecified"}
    ]
    assert row["medications"] == [{"system": "NAME", "code": "furosemide", "title": None}]
    assert [code["code"] for code in row["procedures"]] == ["3722"]


def test_next_visits_without_diagnoses_are_counted_and_label_nothing(
    tables: Tables, build: Stage
) -> None:
    whole = counts_of(build(tables))
    rows = tables["DIAGNOSES_ICD"]
    tables["DIAGNOSES_ICD"] = [row for row in rows if row["HADM_ID"] not in ("9012", "9022")]
    counts = counts_of(build(tables))
    assert whole["next_visits_without_diagnoses"] == 0
    assert counts["next_visits_without_diagnoses"] == 2
    assert counts["pairs_with_next_visit"] == whole["pairs_with_next_visit"]
    assert counts["pairs_labelled"] == whole["pairs_labelled"] - 2


def test_pairs_join_the_splits_by_patient(tables: Tables, build: Stage) -> None:
    pairs = read_table(build(tables) / "pairs.parquet", PAIRS)
    assert label_names(pairs.schema) == (
        "Congestive heart failure; nonhypertensive", "Essential hypertension",
    )  # fmt: skip
    for pair in pairs.to_pylist():
        split, fold = default_split(pair["subject_id"])
        assert pair["split"] == split
        assert pair["fold"] == (fold if split == "train" else -1)
        odd = pair["subject_id"] % 2 == 1
        assert pair["labels"] in ([odd, not odd], None)
        assert (pair["labels"] is None) == (len(pair["history"]) == 2)


def test_unlabelled_pairs_are_kept_for_train_patients_only(tables: Tables, build: Stage) -> None:
    cohort = build(tables)
    pairs = read_table(cohort / "pairs.parquet", PAIRS).to_pylist()
    unlabelled = [pair for pair in pairs if pair["labels"] is None]
    train = {pair["subject_id"] for pair in pairs if pair["split"] == "train"}
    assert {pair["subject_id"] for pair in unlabelled} == train
    counts = counts_of(cohort)
    assert counts["pairs_labelled"] == 40
    assert counts["pairs_unlabelled"] == len(train)
    assert counts["pairs_unlabelled_outside_train"] == 40 - len(train)


def test_discharge_before_admission_is_dropped_and_counted(tables: Tables, build: Stage) -> None:
    tables["ADMISSIONS"][1] |= {"DISCHTIME": "2050-02-01 00:00:00"}
    cohort = build(tables)
    assert counts_of(cohort)["visits_discharged_before_admission"] == 1
    assert counts_of(cohort)["visits_kept"] == 79
    assert "9012" not in visits_of(cohort)


@pytest.mark.parametrize(
    ("death", "dropped"),
    [
        ("2050-02-01 00:00:00", 1),
        ("2050-03-01 00:00:00", 0),  # a date: the whole day of admission
        ("2050-02-28 23:00:00", 1),
    ],
)
def test_admission_after_death_is_dropped_and_counted(
    tables: Tables, build: Stage, death: str, dropped: int
) -> None:
    tables["PATIENTS"][0] |= {"DOD": death}
    assert counts_of(build(tables))["visits_admitted_after_death"] == dropped


def test_a_stay_after_one_that_ended_in_death_is_dropped(tables: Tables, build: Stage) -> None:
    tables["ADMISSIONS"][0] |= {"HOSPITAL_EXPIRE_FLAG": "1"}
    cohort = build(tables)
    assert counts_of(cohort)["visits_admitted_after_death"] == 1
    assert visits_of(cohort)["9011"]["died"] is True
    pairs = read_table(cohort / "pairs.parquet", PAIRS)
    assert 1 not in pairs["subject_id"].to_pylist()


@pytest.mark.parametrize("recorded", ["", "2050-03-01 00:00:00", "2050-03-01 10:00:00"])
def test_a_stay_that_ends_in_death_the_minute_it_begins_is_kept(
    tables: Tables, build: Stage, recorded: str
) -> None:
    moment = "2050-03-01 10:00:00"
    tables["PATIENTS"][0] |= {"DOD": recorded}
    tables["ADMISSIONS"][1] |= {"ADMITTIME": moment, "DISCHTIME": moment}
    tables["ADMISSIONS"][1] |= {"HOSPITAL_EXPIRE_FLAG": "1"}
    cohort = build(tables)
    assert counts_of(cohort)["visits_admitted_after_death"] == 0
    assert visits_of(cohort)["9012"]["died"] is True
    pairs = read_table(cohort / "pairs.parquet", PAIRS).to_pylist()
    assert [pair["next_visit_id"] for pair in pairs if pair["subject_id"] == 1] == ["9012"]


def test_another_stay_that_begins_at_the_moment_of_death_is_dropped(
    tables: Tables, build: Stage
) -> None:
    tables["ADMISSIONS"][0] |= {"HOSPITAL_EXPIRE_FLAG": "1"}
    died = tables["ADMISSIONS"][0]["DISCHTIME"]
    tables["ADMISSIONS"][1] |= {"ADMITTIME": died, "DISCHTIME": died}
    assert counts_of(build(tables))["visits_admitted_after_death"] == 1


def test_a_code_after_discharge_is_dropped_and_counted(tables: Tables, build: Stage) -> None:
    tables["PRESCRIPTIONS"][0] |= {"STARTDATE": "2050-01-06 00:00:00"}
    tables["PRESCRIPTIONS"][1] |= {"STARTDATE": "2050-03-05 00:00:00"}
    cohort = build(tables)
    assert counts_of(cohort)["codes_after_discharge"] == 1
    assert visits_of(cohort)["9011"]["medications"] == []
    assert len(visits_of(cohort)["9012"]["medications"]) == 1


def test_ages_from_90_on_become_90(tables: Tables, build: Stage) -> None:
    tables["PATIENTS"][0] |= {"DOB": "1750-01-01 00:00:00"}
    tables["PATIENTS"][1] |= {"DOB": "1960-12-31 00:00:00"}
    visits = visits_of(build(tables))
    assert visits["9011"]["age_years"] == 90
    assert visits["9021"]["age_years"] == pytest.approx(89.0, abs=0.01)


def test_a_birth_after_admission_or_unknown_leaves_the_age_out(
    tables: Tables, build: Stage, said: list[str]
) -> None:
    tables["PATIENTS"][0] |= {"DOB": "2050-02-01 00:00:00"}
    tables["PATIENTS"][1] |= {"DOB": ""}
    tables["PATIENTS"][2] |= {"DOB": "2050-01-01 00:00:00"}
    cohort = build(tables)
    ages = {name: row["age_years"] for name, row in visits_of(cohort).items()}
    assert (ages["9011"], ages["9021"], ages["9031"]) == (None, None, 0)
    assert ages["9012"] == pytest.approx(28 / 365.25)
    assert counts_of(cohort)["visits_with_birth_after_admission"] == 1
    assert "1 visits before their patient's birth: age left out" in said


def test_a_sex_other_than_f_or_m_is_left_out_and_counted(
    tables: Tables, build: Stage, said: list[str]
) -> None:
    for row, sex in zip(tables["PATIENTS"], ("m", "1", "Female", ""), strict=False):
        row["GENDER"] = sex
    cohort = build(tables)
    visits = visits_of(cohort)
    assert [visits[f"90{n}1"]["sex"] for n in range(1, 6)] == ["M", None, "F", None, "F"]
    assert counts_of(cohort)["patients_with_sex_not_read"] == 1
    assert "1 patients with a sex other than F or M: sex left out" in said


def test_an_empty_cohort_is_refused(tables: Tables, build: Stage) -> None:
    for row in tables["ADMISSIONS"]:
        row["DISCHTIME"] = "2049-01-01 00:00:00"
    with pytest.raises(CkdEhrError, match="empty cohort: none of 80 visits has an admission") as e:
        build(tables)
    heading = str(e.value).split("'")[-2]
    assert f"\n## {heading}\n" in (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_patients_of_one_stay_each_are_refused(tables: Tables, build: Stage) -> None:
    tables["ADMISSIONS"] = tables["ADMISSIONS"][::2]
    with pytest.raises(CkdEhrError, match="empty cohort: 0 patients have a visit pair"):
        build(tables)


def test_a_split_without_pairs_names_seed_and_shares(tables: Tables, build: Stage) -> None:
    with pytest.raises(CkdEhrError) as error:
        build(tables, splits={"tuning": 0.0001, "seed": 5})
    message = str(error.value)
    assert message.startswith("no labelled pair in split 'tuning': 40 patients have pairs")
    assert "splits.seed (now 5)" in message
    assert "splits.tuning (0.0001)" in message


def test_a_fold_without_train_pairs_is_refused(tables: Tables, build: Stage) -> None:
    emptied = {subject for subject in range(1, 41) if default_split(subject) == ("train", 1)}
    tables["ADMISSIONS"] = [
        row for row in tables["ADMISSIONS"] if int(row["SUBJECT_ID"]) not in emptied
    ]
    with pytest.raises(CkdEhrError, match="no labelled train pair in fold 1 of 2"):
        build(tables)


def test_a_label_nobody_has_is_said_and_counted(
    tables: Tables, build: Stage, said: list[str]
) -> None:
    cohort = build(tables, labels={"only_ccs": [108, 249]})
    splits = read_json(cohort / "flow.json")["splits"]
    assert isinstance(splits, dict)
    assert [splits[name]["positives"]["Shock"] for name in splits] == [0, 0, 0]
    assert splits["train"]["prevalence"]["Shock"] == 0
    [warning] = [line for line in said if line.startswith("warning: ")]
    assert warning.startswith("warning: 1 of 2 labels have no positive train pair")
    assert warning.endswith(": Shock")


def test_labels_without_a_positive_in_train_are_joined_by_dots(
    tables: Tables, build: Stage, said: list[str]
) -> None:
    train = {str(subject) for subject in range(1, 41) if default_split(subject)[0] == "train"}
    for row in tables["DIAGNOSES_ICD"]:
        row["ICD9_CODE"] = HYPERTENSION if row["SUBJECT_ID"] in train else HEART_FAILURE
    build(tables, labels={"only_ccs": [108, 249, 98]})
    [warning] = [line for line in said if line.startswith("warning: ")]
    assert warning.startswith("warning: 2 of 3 labels")
    assert warning.endswith(": Congestive heart failure; nonhypertensive · Shock")


@pytest.mark.parametrize(
    ("code", "coverage"),
    [
        (None, "(the visits hold no diagnosis code)"),
        ("H99", "(ICD9CM: 80 codes, 0 with a CCS category, 0 of a label)"),
        ("78552", "(ICD9CM: 80 codes, 80 with a CCS category, 0 of a label)"),
    ],
)
def test_diagnoses_that_label_nothing_are_refused(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage,
    code: str | None, coverage: str,
) -> None:  # fmt: skip
    root = write_tables(tables, tmp_path / "tables")
    rows = [row | {"ICD9_CODE": code} for row in tables["DIAGNOSES_ICD"] if code is not None]
    header = list(tables["DIAGNOSES_ICD"][0])
    write_csv(rows, root / "DIAGNOSES_ICD.csv", header=header)
    with pytest.raises(CkdEhrError) as error:
        make_cohort(make_events(root), labels=TWO_LABELS)
    message = str(error.value)
    assert message.startswith("DIAGNOSES: no positive for any label among ")
    assert coverage in message
    assert "data.columns" in message


def test_diagnoses_only_outside_train_are_refused(tables: Tables, build: Stage) -> None:
    train = {str(subject) for subject in range(1, 41) if default_split(subject)[0] == "train"}
    for row in tables["DIAGNOSES_ICD"]:
        row["ICD9_CODE"] = "25000" if row["SUBJECT_ID"] in train else HEART_FAILURE
    found = rf"no positive for any label among {len(train)} labelled train pairs"
    with pytest.raises(CkdEhrError, match=found):
        build(tables)


def test_one_stay_under_two_patients_is_refused_whatever_the_source(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events = make_events(write_tables(tables, tmp_path / "tables"))
    path = events / "data" / "0000.parquet"
    data = pa.parquet.read_table(path)
    mixed = pc.if_else(pc.equal(data["visit_id"], "9021"), "9011", data["visit_id"])
    place = data.schema.get_field_index("visit_id")
    pa.parquet.write_table(data.set_column(place, "visit_id", mixed), path)
    with pytest.raises(CkdEhrError, match=r"1 stays \(column 'visit_id'\) stand under two"):
        make_cohort(events)


def test_sampling_never_splits_a_patient_and_is_counted(tables: Tables, build: Stage) -> None:
    limits = {"train": 10, "unlabelled": 5, "tuning": 1, "held_out": 2}
    cohort = build(tables, cohort={"sample": limits})
    pairs = read_table(cohort / "pairs.parquet", PAIRS)
    labelled = pairs.filter(pc.is_valid(pairs["labels"]))
    found = {row["values"]: row["counts"] for row in pc.value_counts(labelled["split"]).to_pylist()}
    assert found == {"train": 10, "tuning": 1, "held_out": 2}
    assert pairs["labels"].null_count == 5
    assert counts_of(cohort)["pairs_cut_by_sampling"] > 0


@pytest.mark.parametrize("split", ["train", "tuning"])
def test_a_split_emptied_by_sampling_names_the_limit(
    tables: Tables, build: Stage, split: str
) -> None:
    # Three stays a patient make two labelled pairs, of which a limit of one keeps none.
    for name in ("ADMISSIONS", "DIAGNOSES_ICD"):
        for row in tables[name][1::2]:
            later = {"ADMITTIME": "2050-05-01 10:00:00", "DISCHTIME": "2050-05-05 12:00:00"}
            third = row | {"HADM_ID": row["HADM_ID"] + "3"} | (later if "ADMITTIME" in row else {})
            tables[name].append(third)
    with pytest.raises(CkdEhrError) as error:
        build(tables, cohort={"sample": {split: 1}})
    message = str(error.value)
    assert message.startswith(f"no labelled pair in split '{split}': cohort.sample.{split} (1)")
    assert "splits.seed" not in message


def test_equal_events_give_equal_bytes(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events = make_events(write_tables(tables, tmp_path / "tables"))
    first, second = (make_cohort(events, labels=TWO_LABELS) for _ in range(2))
    names = sorted(path.name for path in first.iterdir() if path.is_file())
    assert names == [
        "coverage.json", "dataset.json", "flow.json", "pairs.parquet", "subject_splits.parquet",
        "visits.parquet",
    ]  # fmt: skip
    for name in names:
        assert sha256_of(first / name) == sha256_of(second / name)


def test_stays_of_other_admission_types_are_left_out_and_counted(
    tables: Tables, build: Stage
) -> None:
    for row in tables["ADMISSIONS"][:4]:
        row["ADMISSION_TYPE"] = "newborn"
    tables["ADMISSIONS"][4]["ADMISSION_TYPE"] = ""
    excluded = build(tables, cohort={"exclude_admission_types": ["Newborn"]})
    assert counts_of(excluded)["visits_of_other_admission_types"] == 4
    assert counts_of(excluded)["visits_kept"] == 76
    kept = build(tables, cohort={"admission_types": ["EMERGENCY"]})
    assert counts_of(kept)["visits_of_other_admission_types"] == 5


def test_admission_types_match_in_any_case_of_any_letters(tables: Tables, build: Stage) -> None:
    for row in tables["ADMISSIONS"][:3]:
        row["ADMISSION_TYPE"] = "Maßnahme"
    left_out = build(tables, cohort={"exclude_admission_types": ["MASSNAHME"]})
    assert counts_of(left_out)["visits_of_other_admission_types"] == 3


def test_nothing_is_admitted_after_a_death_in_hospital_recorded_as_a_date(
    tables: Tables, build: Stage
) -> None:
    # Died on 5 January at noon by the stay; the register knows the day alone.
    tables["PATIENTS"][0] |= {"DOD": "2050-01-05 00:00:00"}
    tables["ADMISSIONS"][0] |= {"HOSPITAL_EXPIRE_FLAG": "1"}
    tables["ADMISSIONS"][1] |= {
        "ADMITTIME": "2050-01-05 13:00:00", "DISCHTIME": "2050-01-05 20:00:00",
    }  # fmt: skip
    tables["PRESCRIPTIONS"][1] |= {"STARTDATE": ""}
    cohort = build(tables)
    assert counts_of(cohort)["visits_admitted_after_death"] == 1
    assert visits_of(cohort)["9011"]["died"] is True


def test_next_visits_that_do_not_count_are_counted_by_why(tables: Tables, build: Stage) -> None:
    for row in tables["ADMISSIONS"][1:11:2]:  # patients 1 to 5 come back a year later
        row["ADMITTIME"] = row["ADMITTIME"].replace("2050", "2051")
        row["DISCHTIME"] = row["DISCHTIME"].replace("2050", "2051")
    whole = {"next_visits_beyond_max_gap": 0, "next_visits_outside_label_window": 0}
    far = counts_of(build(tables, cohort={"max_gap_days": 100}))
    assert {name: far[name] for name in whole} == whole | {"next_visits_beyond_max_gap": 5}
    late = counts_of(build(tables, cohort={"label_window_days": 100}))
    assert {name: late[name] for name in whole} == whole | {"next_visits_outside_label_window": 5}
    assert far["next_visits_without_diagnoses"] == late["next_visits_without_diagnoses"] == 0


def test_ages_that_are_no_ages_are_left_out_and_counted(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events = make_events(write_tables(tables, tmp_path / "tables"))
    path, codes = events / "data" / "0000.parquet", events / meds.code_metadata_filepath
    data = pa.parquet.read_table(path)
    stays = data.filter(pc.equal(data["code"], "HOSPITAL_ADMISSION//EMERGENCY")).slice(0, 3)
    ages = stays.set_column(2, "code", pa.array(["AGE"] * 3)).set_column(
        3, "numeric_value", pa.array([float("nan"), -2.0, 40.0], pa.float32())
    )
    order = [("subject_id", "ascending"), ("time", "ascending")]
    pa.parquet.write_table(pa.concat_tables([data, ages.cast(data.schema)]).sort_by(order), path)
    known = pa.parquet.read_table(codes)
    row = pa.table({"code": ["AGE"], "description": [None], "parent_codes": [None]})
    pa.parquet.write_table(pa.concat_tables([known, row.cast(known.schema)]), codes)
    cohort = make_cohort(events, labels=TWO_LABELS)
    found = [visits_of(cohort)[name]["age_years"] for name in ("9011", "9012", "9021")]
    assert found == [pytest.approx(50, abs=0.01), pytest.approx(50.16, abs=0.01), 40]
    assert counts_of(cohort)["visits_with_age_below_zero"] == 1


def test_gap_limits_come_from_the_config(tables: Tables, build: Stage) -> None:
    # Stays of a patient are 54.9 days apart.
    counts = counts_of(build(tables, cohort={"min_gap_days": 54, "max_gap_days": 55}))
    assert counts["pairs_with_next_visit"] == 40
    with pytest.raises(CkdEhrError, match="empty cohort: 0 patients have a visit pair"):
        build(tables, cohort={"max_gap_days": 54})


def test_splits_of_a_file_are_taken_and_other_patients_counted(
    tables: Tables, tmp_path: Path, build: Stage
) -> None:
    names = ["train"] * 30 + ["tuning"] * 4 + ["held_out"] * 4
    listed = tmp_path / "splits.csv"
    lines = [f"{subject},{name}" for subject, name in enumerate(names, start=1)]
    listed.write_text("\n".join(["subject_id,split", *lines]))
    cohort = build(tables, splits={"method": "file", "file": str(listed)})
    pairs = read_table(cohort / "pairs.parquet", PAIRS).to_pylist()
    assert {pair["subject_id"]: pair["split"] for pair in pairs} == dict(enumerate(names, start=1))
    assert counts_of(cohort)["pairs_of_patients_without_split"] == 4
    written = pa.parquet.read_table(cohort / "subject_splits.parquet")
    meds.SubjectSplitSchema.validate(written)
    assert written["subject_id"].to_pylist() == list(range(1, 39))


def test_a_source_without_splits_cannot_give_them(tables: Tables, build: Stage) -> None:
    with pytest.raises(CkdEhrError, match="this source brings no splits"):
        build(tables, splits={"method": "source"})


def test_a_temporal_split_learns_only_from_what_was_known_before(
    tables: Tables, build: Stage, said: list[str]
) -> None:
    for row in tables["ADMISSIONS"]:
        # Patient n comes n days later than the first; the second stay follows after 59 days.
        shift = datetime.timedelta(days=int(row["SUBJECT_ID"]))
        for column in ("ADMITTIME", "DISCHTIME"):
            row[column] = str(datetime.datetime.fromisoformat(row[column]) + shift)
    for row in tables["PRESCRIPTIONS"]:
        row["STARTDATE"] = ""
    with pytest.raises(CkdEhrError, match="no labelled pair in split 'train'"):
        build(tables, splits={"method": "temporal"})
    for row in tables["ADMISSIONS"]:
        shift = datetime.timedelta(days=29 * int(row["SUBJECT_ID"]))
        for column in ("ADMITTIME", "DISCHTIME"):
            row[column] = str(datetime.datetime.fromisoformat(row[column]) + shift)
    cohort = build(tables, splits={"method": "temporal"})
    visits = visits_of(cohort)
    pairs = read_table(cohort / "pairs.parquet", PAIRS).to_pylist()
    assert any("no validation forward in time" in line for line in said)
    began = min(visits[p["history"][0]]["admit_time"] for p in pairs if p["split"] == "held_out")
    learned = [pair for pair in pairs if pair["split"] != "held_out"]
    assert {pair["subject_id"] for pair in pairs if pair["split"] == "held_out"} == set(
        range(33, 41)
    )
    for pair in learned:
        last = visits[pair["next_visit_id"]] if pair["next_visit_id"] else pair
        assert last.get("discharge_time", pair["prediction_time"]) <= began
    assert counts_of(cohort)["pairs_after_held_out_began"] > 0


def test_rules_in_days_are_refused_where_there_are_no_dates(
    real_data: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events = make_events(real_data / "uci-diabetes130", source="uci_diabetes")
    with pytest.raises(CkdEhrError, match="max_gap_days is set, but this source has no dates"):
        make_cohort(events, cohort={"max_gap_days": 30})
    with pytest.raises(CkdEhrError, match="method=temporal is set, but this source has no dates"):
        make_cohort(events, splits={"method": "temporal"})


def test_every_row_of_the_sources_tables_is_accounted_for(tables: Tables, build: Stage) -> None:
    tables["DIAGNOSES_ICD"][0] |= {"ICD9_CODE": ""}
    rows = read_json(build(tables) / "flow.json")["rows"]
    assert isinstance(rows, dict)
    assert rows["DIAGNOSES_ICD.csv"] == {
        "read": 80, "used": 79, "left_out": {"without patient, stay or code": 1},
    }  # fmt: skip


def test_mimic3_demo_has_129_stays_and_29_pairs(
    real_data: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events = make_events(real_data / "mimic3-demo-1.4")
    cohort = make_cohort(events)
    counts = counts_of(cohort)
    assert (counts["patients_read"], counts["visits_read"], counts["visits_kept"]) == (
        100, 129, 129,
    )  # fmt: skip
    assert counts["pairs_labelled"] == 29
    assert counts["next_visits_before_exclusions"] == 29
    assert counts["visits_ended_in_death"] == 40
    visits = read_table(cohort / "visits.parquet", VISITS)
    with_drugs = pc.greater(pc.list_value_length(visits["medications"]), 0)
    with_procedures = pc.greater(pc.list_value_length(visits["procedures"]), 0)
    assert (pc.sum(with_drugs).as_py(), pc.sum(with_procedures).as_py()) == (122, 113)
    pairs = read_table(cohort / "pairs.parquet", PAIRS)
    labelled = pairs.filter(pc.is_valid(pairs["labels"]))
    per_patient = [row["counts"] for row in pc.value_counts(labelled["subject_id"]).to_pylist()]
    assert (len(per_patient), max(per_patient)) == (14, 14)
    # The default seed is one for which even these 14 patients fill every split and fold.
    assert set(labelled["split"].to_pylist()) == {"train", "tuning", "held_out"}
    assert set(labelled["fold"].to_pylist()) == {-1, 0, 1}
    coverage = json.loads((cohort / "coverage.json").read_text())["ICD9CM"]["codes"]
    assert coverage == {
        "exact": 581, "prefix": 0, "majority": 0, "override": 0, "ambiguous": 0, "unmapped": 0,
    }  # fmt: skip


def test_uci_has_30248_pairs_before_and_30234_after_the_death_exclusion(
    real_data: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events = make_events(real_data / "uci-diabetes130", source="uci_diabetes")
    assert read_json(events / meds.dataset_metadata_filepath)["synthetic_times"] is True
    left_out = {131, 133, 134, 151, 153, 249}
    usable = [p.ccs[0] for p in PHENOTYPES_25 if p.ccs[0] not in left_out]
    cohort = make_cohort(events, labels={"only_ccs": usable})
    counts = counts_of(cohort)
    assert (counts["visits_read"], counts["patients_read"]) == (101_766, 71_518)
    assert counts["next_visits_before_exclusions"] == 30_248
    assert counts["visits_admitted_after_death"] == 14
    assert counts["pairs_labelled"] == 30_234
    pairs = read_table(cohort / "pairs.parquet", PAIRS)
    assert len(label_names(pairs.schema)) == 19
    assert pairs["gap_days"].null_count == pairs.num_rows
    coverage = json.loads((cohort / "coverage.json").read_text())["UCI_ICD9"]["codes"]
    assert (coverage["unmapped"], coverage["majority"], coverage["override"]) == (0, 179, 22)
    prevalence = pc.mean(pc.cast(pc.list_flatten(pairs["labels"]), "float64")).as_py()
    assert prevalence == pytest.approx(0.082, abs=0.001)
