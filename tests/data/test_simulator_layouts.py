"""The simulated hospital as OMOP and as MEDS: the same patients, in valid files."""

import csv
import gzip
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

import meds
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hospital import Stage

from ckd_ehr.cli import main
from ckd_ehr.contracts.config import DataConfig, SimulatorConfig
from ckd_ehr.contracts.files import read_json
from ckd_ehr.data.simulator.hospital import simulate
from ckd_ehr.data.simulator.layouts import Layout
from ckd_ehr.data.sources import meds as meds_source
from ckd_ehr.data.sources import mimic3
from ckd_ehr.data.sources import omop as omop_source
from ckd_ehr.data.sources.dataset import event_files
from ckd_ehr.data.sources.extraction import Extraction
from small_hospital import FREQUENT

SETTINGS = SimulatorConfig(patients=500, seed=5, **FREQUENT)
# The official CDM 5.4 headers; a star marks what may not be empty.
OMOP = {
    "person": "*person_id *gender_concept_id *year_of_birth month_of_birth day_of_birth "
    "birth_datetime *race_concept_id *ethnicity_concept_id location_id provider_id care_site_id "
    "person_source_value gender_source_value gender_source_concept_id race_source_value "
    "race_source_concept_id ethnicity_source_value ethnicity_source_concept_id",
    "visit_occurrence": "*visit_occurrence_id *person_id *visit_concept_id *visit_start_date "
    "visit_start_datetime *visit_end_date visit_end_datetime *visit_type_concept_id provider_id "
    "care_site_id visit_source_value visit_source_concept_id admitted_from_concept_id "
    "admitted_from_source_value discharged_to_concept_id discharged_to_source_value "
    "preceding_visit_occurrence_id",
    "condition_occurrence": "*condition_occurrence_id *person_id *condition_concept_id "
    "*condition_start_date condition_start_datetime condition_end_date condition_end_datetime "
    "*condition_type_concept_id condition_status_concept_id stop_reason provider_id "
    "visit_occurrence_id visit_detail_id condition_source_value condition_source_concept_id "
    "condition_status_source_value",
    "drug_exposure": "*drug_exposure_id *person_id *drug_concept_id *drug_exposure_start_date "
    "drug_exposure_start_datetime *drug_exposure_end_date drug_exposure_end_datetime "
    "verbatim_end_date *drug_type_concept_id stop_reason refills quantity days_supply sig "
    "route_concept_id lot_number provider_id visit_occurrence_id visit_detail_id "
    "drug_source_value drug_source_concept_id route_source_value dose_unit_source_value",
    "procedure_occurrence": "*procedure_occurrence_id *person_id *procedure_concept_id "
    "*procedure_date procedure_datetime procedure_end_date procedure_end_datetime "
    "*procedure_type_concept_id modifier_concept_id quantity provider_id visit_occurrence_id "
    "visit_detail_id procedure_source_value procedure_source_concept_id modifier_source_value",
    "death": "*person_id *death_date death_datetime death_type_concept_id cause_concept_id "
    "cause_source_value cause_source_concept_id",
    "concept": "*concept_id *concept_name *domain_id *vocabulary_id *concept_class_id "
    "standard_concept *concept_code *valid_start_date *valid_end_date invalid_reason",
}

Rows = list[dict[str, str]]
Read = Callable[[str], Rows]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same hospital in each layout."""
    folder = tmp_path_factory.mktemp("hospitals")
    for layout in get_args(Layout):
        simulate(SETTINGS, folder / layout, layout=layout)
    return folder


@pytest.fixture(scope="module")
def mimic(hospitals: Path) -> Read:
    return lambda name: rows_of(hospitals / "mimic3" / f"{name}.csv.gz")


@pytest.fixture(scope="module")
def omop(hospitals: Path) -> Read:
    return lambda name: rows_of(hospitals / "omop" / f"{name}.csv.gz")


@pytest.fixture(scope="module")
def events(hospitals: Path) -> pa.Table:
    files = sorted((hospitals / "meds" / "data").rglob("*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in files])


def rows_of(path: Path) -> Rows:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def counted(rows: Rows, *columns: str) -> Counter[tuple[str, ...]]:
    """How often each combination of values stands in the columns."""
    return Counter(tuple(row[column] for column in columns) for row in rows)


def without_dots(rows: Rows, column: str) -> Rows:
    return [{**row, column: row[column].replace(".", "")} for row in rows]


def main_drugs(prescriptions: Rows) -> Rows:
    return [row for row in prescriptions if row["DRUG_TYPE"] == "MAIN"]


def discharge_of(admissions: Rows) -> dict[str, str]:
    return {row["HADM_ID"]: row["DISCHTIME"] for row in admissions}


def deaths_of(mimic: Read) -> Counter[tuple[str, ...]]:
    """Patients and when they died: in hospital to the second, else on the day."""
    times = {row["SUBJECT_ID"]: row["DOD"] for row in mimic("PATIENTS") if row["DOD"]}
    in_hospital = {r["SUBJECT_ID"]: r["DEATHTIME"] for r in mimic("ADMISSIONS") if r["DEATHTIME"]}
    return Counter((times | in_hospital).items())


def with_role(events: pa.Table, role: str) -> pa.Table:
    return events.filter(pc.starts_with(events["code"], role))


def told(events: pa.Table, *columns: str) -> Counter[tuple[str, ...]]:
    """How often each combination stands in the columns, written as in a CSV file."""
    listed: Iterable[list[object]] = (events[column].to_pylist() for column in columns)
    return Counter(
        tuple("" if value is None else str(value) for value in row)
        for row in zip(*listed, strict=True)
    )


def test_omop_tables_have_the_official_columns_and_nothing_required_is_empty(
    hospitals: Path, omop: Read
) -> None:
    names = {path.name for path in (hospitals / "omop").glob("*.gz")}
    assert names == {f"{name}.csv.gz" for name in OMOP}
    for name, official in OMOP.items():
        rows = omop(name)
        assert list(rows[0]) == official.replace("*", "").split(), name
        for column in official.split():
            if column.startswith("*"):
                assert all(row[column[1:]] for row in rows), column


def test_omop_stays_and_patients_are_those_of_mimic3(mimic: Read, omop: Read) -> None:
    admissions, visits = mimic("ADMISSIONS"), omop("visit_occurrence")
    assert counted(
        visits, "visit_occurrence_id", "person_id", "visit_start_datetime", "visit_end_datetime",
        "visit_source_value", "discharged_to_source_value", "admitted_from_source_value",
    ) == counted(
        admissions, "HADM_ID", "SUBJECT_ID", "ADMITTIME", "DISCHTIME",
        "ADMISSION_TYPE", "DISCHARGE_LOCATION", "ADMISSION_LOCATION",
    )  # fmt: skip
    emergencies = sum(row["EDREGTIME"] != "" for row in admissions)
    assert counted(visits, "visit_concept_id") == {
        ("262",): emergencies,
        ("9201",): len(admissions) - emergencies,
    }
    died = sum(row["HOSPITAL_EXPIRE_FLAG"] == "1" for row in admissions)
    assert sum(row["discharged_to_concept_id"] == "4216643" for row in visits) == died > 0
    people, patients = omop("person"), mimic("PATIENTS")
    assert counted(
        people, "person_id", "birth_datetime", "gender_source_value"
    ) == counted(patients, "SUBJECT_ID", "DOB", "GENDER")  # fmt: skip
    stated = counted(admissions, "SUBJECT_ID", "ETHNICITY").keys()
    assert counted(people, "person_id", "race_source_value").keys() == stated


def test_omop_persons_have_the_concepts_of_their_sex_and_race(omop: Read) -> None:
    people = omop("person")
    assert counted(people, "gender_source_value", "gender_concept_id").keys() == {
        ("F", "8532"),
        ("M", "8507"),
    }
    concepts = counted(people, "race_source_value", "race_concept_id", "ethnicity_concept_id")
    assert concepts.keys() == {
        ("WHITE", "8527", "0"),
        ("BLACK/AFRICAN AMERICAN", "8516", "0"),
        ("ASIAN", "8515", "0"),
        ("HISPANIC OR LATINO", "0", "38003563"),
        ("OTHER", "0", "0"),
        ("UNKNOWN/NOT SPECIFIED", "0", "0"),
    }
    for person in people:
        born = [person[f"{part}_of_birth"] for part in ("year", "month", "day")]
        assert person["birth_datetime"] == "{:0>4}-{:0>2}-{:0>2} 00:00:00".format(*born)


def test_omop_codes_drugs_and_deaths_are_those_of_mimic3_row_by_row(
    mimic: Read, omop: Read
) -> None:
    conditions, diagnoses = omop("condition_occurrence"), mimic("DIAGNOSES_ICD")
    assert counted(
        without_dots(conditions, "condition_source_value"),
        "person_id", "visit_occurrence_id", "condition_source_value",
        "condition_status_source_value",
    ) == counted(diagnoses, "SUBJECT_ID", "HADM_ID", "ICD9_CODE", "SEQ_NUM")  # fmt: skip
    procedures = omop("procedure_occurrence")
    assert [
        (row["visit_occurrence_id"], row["procedure_source_value"].replace(".", ""))
        for row in sorted(procedures, key=lambda row: int(row["procedure_occurrence_id"]))
    ] == [(row["HADM_ID"], row["ICD9_CODE"]) for row in mimic("PROCEDURES_ICD")]
    left = discharge_of(mimic("ADMISSIONS"))
    for rows, time in (
        (conditions, "condition_start_datetime"),
        (procedures, "procedure_datetime"),
    ):
        assert all(row[time] == left[row["visit_occurrence_id"]] for row in rows)
    drugs = main_drugs(mimic("PRESCRIPTIONS"))
    assert 0 < len(drugs) < len(mimic("PRESCRIPTIONS"))
    assert counted(
        omop("drug_exposure"), "visit_occurrence_id", "drug_source_value",
        "drug_exposure_start_datetime", "drug_exposure_end_datetime",
    ) == counted(drugs, "HADM_ID", "DRUG", "STARTDATE", "ENDDATE")  # fmt: skip
    assert counted(omop("death"), "person_id", "death_datetime") == deaths_of(mimic)


def test_omop_concepts_give_each_titled_code_its_title(mimic: Read, omop: Read) -> None:
    concepts = {row["concept_id"]: row for row in omop("concept")}
    titles = {
        "ICD9CM": counted(mimic("D_ICD_DIAGNOSES"), "ICD9_CODE", "LONG_TITLE"),
        "ICD9Proc": counted(mimic("D_ICD_PROCEDURES"), "ICD9_CODE", "LONG_TITLE"),
    }
    assert len(concepts) == len(titles["ICD9CM"]) + len(titles["ICD9Proc"])
    for row in concepts.values():
        code = row["concept_code"].replace(".", "")
        assert (code, row["concept_name"]) in titles[row["vocabulary_id"]]
        assert int(row["concept_id"]) > 2_000_000_000
    untitled = set()
    for row in omop("condition_occurrence"):
        if row["condition_source_concept_id"] == "0":
            untitled.add(row["condition_source_value"])
        else:
            concept = concepts[row["condition_source_concept_id"]]
            assert concept["concept_code"] == row["condition_source_value"]
            assert concept["vocabulary_id"] == "ICD9CM"
    assert "" in untitled
    assert {len(code) for code in untitled} > {0}  # outdated codes
    assert not untitled & {row["concept_code"] for row in concepts.values()}
    assert {row["concept_code"] for row in concepts.values()} >= {"428.0", "V45.81", "311", "37.22"}


def test_meds_dataset_satisfies_the_meds_schemas_and_its_order(hospitals: Path) -> None:
    root = hospitals / "meds"
    meds.DatasetMetadataSchema.validate(read_json(root / meds.dataset_metadata_filepath))
    codes = pq.read_table(root / meds.code_metadata_filepath)
    meds.CodeMetadataSchema.validate(codes)
    splits = pq.read_table(root / meds.subject_splits_filepath)
    meds.SubjectSplitSchema.validate(splits)
    split_of = dict(zip(splits["subject_id"].to_pylist(), splits["split"].to_pylist(), strict=True))
    seen: list[int] = []
    used: set[str] = set()
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        meds.DataSchema.validate(table)
        used |= set(table["code"].to_pylist())
        keys = [
            (subject, time is not None, time)
            for subject, time in zip(
                table["subject_id"].to_pylist(), table["time"].to_pylist(), strict=True
            )
        ]
        assert keys == sorted(keys, key=lambda key: (key[0], key[1], str(key[2])))
        inside = sorted({subject for subject, *_ in keys})
        assert {split_of[subject] for subject in inside} == {path.parent.name}
        seen += inside
    assert sorted(seen) == sorted(split_of)  # a patient is in one file
    assert set(codes["code"].to_pylist()) == used
    assert len(set(codes["code"].to_pylist())) == codes.num_rows


def test_meds_dataset_has_several_files_and_splits_of_its_own(hospitals: Path) -> None:
    data = hospitals / "meds" / "data"
    files = sorted(str(path.relative_to(data)) for path in data.rglob("*.parquet"))
    assert files == [
        "held_out/0.parquet", "train/0.parquet", "train/1.parquet", "tuning/0.parquet",
    ]  # fmt: skip
    table = pq.read_table(hospitals / "meds" / meds.subject_splits_filepath)
    split_of = dict(zip(table["subject_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    shares = {name: count / len(split_of) for name, count in Counter(split_of.values()).items()}
    assert shares == pytest.approx({"train": 0.8, "tuning": 0.1, "held_out": 0.1}, abs=0.05)
    held_out_here = [subject for subject, split in split_of.items() if split == "held_out"]
    places = [
        hashlib.sha256(f"0:split:{subject}".encode()).hexdigest() for subject in held_out_here
    ]
    # A run's default holds out the places from 0.8 on.
    assert sum(place >= "cccccccd" for place in places) < 0.5 * len(places)


def test_meds_stays_codes_and_drugs_are_those_of_mimic3(mimic: Read, events: pa.Table) -> None:
    admissions = mimic("ADMISSIONS")
    for row in admissions:
        row["CODE"] = f"HOSPITAL_ADMISSION//{row['ADMISSION_TYPE']}//{row['ADMISSION_LOCATION']}"
        place = "DIED" if row["HOSPITAL_EXPIRE_FLAG"] == "1" else row["DISCHARGE_LOCATION"]
        row["LEFT"] = f"HOSPITAL_DISCHARGE//{place}"
    came = told(with_role(events, "HOSPITAL_ADMISSION"), "hadm_id", "time", "code", "race")
    assert came == counted(admissions, "HADM_ID", "ADMITTIME", "CODE", "ETHNICITY")
    discharged = told(with_role(events, "HOSPITAL_DISCHARGE"), "subject_id", "time", "code")
    assert discharged == counted(admissions, "SUBJECT_ID", "DISCHTIME", "LEFT")
    left = discharge_of(admissions)
    for role, name in (("DIAGNOSIS", "DIAGNOSES_ICD"), ("PROCEDURE", "PROCEDURES_ICD")):
        rows = mimic(name)
        for row in rows:
            row["CODE"] = f"{role}//ICD//9//{row['ICD9_CODE'] or 'UNK'}"
            row["TIME"] = left[row["HADM_ID"]]
        coded = told(with_role(events, role), "hadm_id", "seq_num", "code", "time")
        assert coded == counted(rows, "HADM_ID", "SEQ_NUM", "CODE", "TIME")
    drugs = main_drugs(mimic("PRESCRIPTIONS"))
    for row in drugs:
        row["CODE"] = f"MEDICATION//START//{row['DRUG']}"
        row["END"] = f"MEDICATION//STOP//{row['DRUG']}"
    started = told(with_role(events, "MEDICATION//START//"), "hadm_id", "code", "time")
    assert started == counted(drugs, "HADM_ID", "CODE", "STARTDATE")
    stopped = told(with_role(events, "MEDICATION//STOP//"), "subject_id", "code", "time")
    assert stopped == counted(drugs, "SUBJECT_ID", "END", "ENDDATE")


def test_meds_patients_are_born_and_die_as_in_mimic3(mimic: Read, events: pa.Table) -> None:
    patients = mimic("PATIENTS")
    born = told(with_role(events, meds.birth_code), "subject_id", "time")
    assert born == counted(patients, "SUBJECT_ID", "DOB")
    assert told(with_role(events, meds.death_code), "subject_id", "time") == deaths_of(mimic)
    sexes = told(with_role(events, "GENDER"), "subject_id", "code", "time")
    assert sexes == Counter((row["SUBJECT_ID"], f"GENDER//{row['GENDER']}", "") for row in patients)


def test_meds_codes_have_titles_and_dotted_parents(hospitals: Path, mimic: Read) -> None:
    codes = pq.read_table(hospitals / "meds" / meds.code_metadata_filepath).to_pylist()
    described = {row["code"]: row for row in codes}
    titles = {row["ICD9_CODE"]: row["LONG_TITLE"] for row in mimic("D_ICD_DIAGNOSES")}
    written = {row["ICD9_CODE"] for row in mimic("DIAGNOSES_ICD")} - {""}
    for code in written:
        assert described[f"DIAGNOSIS//ICD//9//{code}"]["description"] == titles.get(code)
    assert described["DIAGNOSIS//ICD//9//4280"]["parent_codes"] == ["ICD9CM/428.0"]
    assert described["PROCEDURE//ICD//9//3722"]["parent_codes"] == ["ICD9Proc/37.22"]
    assert described["DIAGNOSIS//ICD//9//UNK"]["description"] is None


def test_broken_rows_survive_in_every_layout(mimic: Read, omop: Read, events: pa.Table) -> None:
    backward = {r["HADM_ID"] for r in mimic("ADMISSIONS") if r["DISCHTIME"] < r["ADMITTIME"]}
    assert backward
    assert backward == {
        row["visit_occurrence_id"]
        for row in omop("visit_occurrence")
        if row["visit_end_datetime"] < row["visit_start_datetime"]
    }
    came = with_role(events, "HOSPITAL_ADMISSION")
    assert backward <= {str(stay) for stay in came["hadm_id"].to_pylist()}
    empty = sum(row["ICD9_CODE"] == "" for row in mimic("DIAGNOSES_ICD"))
    conditions = omop("condition_occurrence")
    assert sum(row["condition_source_value"] == "" for row in conditions) == empty > 0
    copies = counted(conditions, "visit_occurrence_id", "condition_source_value")
    assert max(copies.values()) > 1


def test_every_layout_is_read_as_the_same_events(hospitals: Path, tmp_path: Path) -> None:
    read = {}
    for layout, source in (("mimic3", mimic3), ("omop", omop_source), ("meds", meds_source)):
        settings = DataConfig(source=layout, root=hospitals / layout)
        folder = tmp_path / layout
        folder.mkdir()
        source.extract(Extraction(settings=settings, folder=folder, say=lambda _: None))
        codes = pq.read_table(folder / meds.code_metadata_filepath)
        read[layout] = [*map(pq.read_table, event_files(folder)), codes]
    assert read["mimic3"][0].num_rows > 10 * SETTINGS.patients
    assert read["omop"] == read["mimic3"]
    assert read["meds"] == read["mimic3"]


@pytest.mark.parametrize("layout", get_args(Layout))
def test_same_seed_same_bytes_in_every_layout(
    hospitals: Path, tmp_path: Path, layout: Layout
) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    simulate(SETTINGS, again, layout=layout)
    simulate(SETTINGS.model_copy(update={"seed": 6}), other, layout=layout)
    once = hospitals / layout
    files = [path.relative_to(once) for path in sorted(once.rglob("*")) if path.is_file()]
    assert files == [p.relative_to(again) for p in sorted(again.rglob("*")) if p.is_file()]
    assert all((once / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert any((once / file).read_bytes() != (other / file).read_bytes() for file in files)


@pytest.mark.parametrize("layout", get_args(Layout))
def test_the_command_writes_every_layout_into_an_empty_folder(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hospital"
    out.mkdir()
    arguments = ["simulate", str(out), "--patients", "20", "--layout", layout]
    assert main(arguments) == 0
    assert "20 simulated patients in" in capsys.readouterr().out
    wanted = {"mimic3": "PATIENTS.csv.gz", "omop": "person.csv.gz", "meds": "metadata/dataset.json"}
    assert (out / wanted[layout]).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["hospital"]


@pytest.mark.parametrize("layout", ["omop", "meds"])
def test_both_code_systems_give_the_same_labels_from_different_codes(
    hospitals: Path, make_events: Stage, make_cohort: Stage, tmp_path: Path, layout: Layout
) -> None:
    simulate(SETTINGS.model_copy(update={"coding": "icd10"}), tmp_path / "ten", layout=layout)
    nine, ten = (
        make_cohort(make_events(root, source=layout))
        for root in (hospitals / layout, tmp_path / "ten")
    )
    pairs = [pq.read_table(cohort / "pairs.parquet").sort_by("pair_id") for cohort in (nine, ten)]
    assert pairs[0].equals(pairs[1])
    assert pc.sum(pc.list_flatten(pairs[0]["labels"])).as_py() > 1_000
    systems = []
    for cohort in (nine, ten):
        visits = pq.read_table(cohort / "visits.parquet")
        coded = pc.list_flatten(visits["diagnoses"]).combine_chunks()
        done = pc.list_flatten(visits["procedures"]).combine_chunks()
        systems.append({*coded.field("system").to_pylist(), *done.field("system").to_pylist()})
    assert systems == [{"ICD9CM", "ICD9PROC"}, {"ICD10CM", "ICD10PCS"}]


def test_the_simulated_source_speaks_icd10_too(make_events: Stage, make_cohort: Stage) -> None:
    few = {"patients": 60, **FREQUENT}
    found = []
    for coding in ("icd9", "icd10"):
        events = make_events(None, source="simulated", simulator={**few, "coding": coding})
        assert (events / "truth" / "risks.parquet").is_file()
        pairs = pq.read_table(make_cohort(events) / "pairs.parquet")
        found.append(pairs.sort_by("pair_id"))
    assert found[0].equals(found[1])
    assert found[0].num_rows > 60


@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_run_on_a_simulated_folder_takes_its_truth_along(
    hospitals: Path, make_events: Stage, layout: Layout
) -> None:
    events = make_events(hospitals / layout, source=layout)
    for name in ("effects.csv", "hospital.json", "risks.parquet"):
        given = hospitals / layout / "truth" / name
        assert (events / "truth" / name).read_bytes() == given.read_bytes()
