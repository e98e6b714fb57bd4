"""The simulated hospital: one seed, the same bytes; real codes; whole or not at all."""

import csv
import errno
import gzip
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import sha256_of
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.data.ccs import icd9_ccs_of
from ckd_ehr.data.simulator import tables
from ckd_ehr.data.simulator.hospital import simulate
from ckd_ehr.data.simulator.layouts import Layout
from ckd_ehr.data.simulator.titles import titles
from small_hospital import FREQUENT

PHENOTYPES = sorted(ccs for phenotype in PHENOTYPES_25 for ccs in phenotype.ccs)
SMALL = SimulatorConfig(patients=20, replayed_patients=0)
FEW = SimulatorConfig(patients=370, **FREQUENT)
TABLES = (
    "ADMISSIONS.csv.gz",
    "DIAGNOSES_ICD.csv.gz",
    "D_ICD_DIAGNOSES.csv.gz",
    "D_ICD_PROCEDURES.csv.gz",
    "PATIENTS.csv.gz",
    "PRESCRIPTIONS.csv.gz",
    "PROCEDURES_ICD.csv.gz",
)

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    simulate(FEW, folder)
    return folder


def rows_of(folder: Path, name: str) -> Rows:
    with gzip.open(folder / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def whole_stays(folder: Path) -> dict[str, Rows]:
    """Subject → stays in order of admission, without those that end before they start."""
    stays: dict[str, Rows] = defaultdict(list)
    for row in sorted(rows_of(folder, "ADMISSIONS"), key=lambda row: row["ADMITTIME"]):
        if row["DISCHTIME"] >= row["ADMITTIME"]:
            stays[row["SUBJECT_ID"]].append(row)
    return stays


def categories(folder: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for row in rows_of(folder, "DIAGNOSES_ICD"):
        if row["ICD9_CODE"]:
            found[row["HADM_ID"]].add(icd9_ccs_of(row["ICD9_CODE"]).ccs or 0)
    return found


@pytest.mark.parametrize("layout", ["mimic3", "omop", "meds"])
def test_same_seed_same_bytes_and_another_seed_differs(tmp_path: Path, layout: Layout) -> None:
    digests = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = SimulatorConfig(
            patients=40, visits_per_patient=3, replayed_patients=3, seed=seed
        )
        simulate(settings, tmp_path / name, layout=layout)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests[name] = {str(path.relative_to(tmp_path / name)): sha256_of(path) for path in files}
    assert digests["a"] == digests["b"]
    assert digests["a"].keys() == digests["c"].keys()
    records = [name for name in digests["a"] if "D_ICD" not in name and "concept" not in name]
    same = [name for name in records if digests["a"][name] == digests["c"][name]]
    described = ["metadata/dataset.json", "metadata/subject_splits.parquet"]
    described = described if layout == "meds" else []
    assert sorted(same) == [*described, "truth/effects.csv"]


def test_a_hospital_is_its_tables_and_its_truth(hospital: Path) -> None:
    assert sorted(path.name for path in hospital.glob("*.gz")) == list(TABLES)
    names = sorted(path.name for path in (hospital / "truth").iterdir())
    assert names == ["effects.csv", "hospital.json", "risks.parquet"]


def test_tables_have_the_columns_of_mimic3(hospital: Path, real_data: Path) -> None:
    for path in hospital.glob("*.gz"):
        name = path.name.removesuffix(".csv.gz")
        real = real_data / "mimic3-demo-1.4" / f"{name}.csv"
        expected = real.read_text(encoding="utf-8").partition("\n")[0].upper().split(",")
        assert list(rows_of(hospital, name)[0]) == expected


def test_every_code_is_real_and_outdated_ones_have_no_title(hospital: Path) -> None:
    written = {row["ICD9_CODE"] for row in rows_of(hospital, "DIAGNOSES_ICD")} - {""}
    titled = {row["ICD9_CODE"] for row in rows_of(hospital, "D_ICD_DIAGNOSES")}
    assert titled == set(titles("icd9", "diagnosis"))
    outdated = written - titled
    assert outdated  # real tables hold some
    assert all(icd9_ccs_of(code).ccs for code in outdated)
    done = {row["ICD9_CODE"] for row in rows_of(hospital, "PROCEDURES_ICD")}
    assert done <= {row["ICD9_CODE"] for row in rows_of(hospital, "D_ICD_PROCEDURES")}


def test_every_phenotype_occurs_at_next_visits_with_a_useful_frequency(hospital: Path) -> None:
    found = categories(hospital)
    following = [stay["HADM_ID"] for stays in whole_stays(hospital).values() for stay in stays[1:]]
    for ccs in PHENOTYPES:
        assert 0.015 <= np.mean([ccs in found[hadm] for hadm in following]) <= 0.55, ccs


def test_the_small_hospital_has_pairs_to_learn_from(hospital: Path) -> None:
    stays = whole_stays(hospital)
    labelled = sum(len(visits) - 1 for visits in stays.values())
    unlabelled = sum(visits[-1]["HOSPITAL_EXPIRE_FLAG"] == "0" for visits in stays.values())
    assert 500 <= labelled <= 750
    assert 200 <= unlabelled <= 330
    per_stay = len(rows_of(hospital, "DIAGNOSES_ICD")) / sum(map(len, stays.values()))
    assert 5 <= per_stay <= 7.5


def test_drugs_come_in_the_stay_and_under_several_spellings(hospital: Path) -> None:
    stays = {row["HADM_ID"]: row for visits in whole_stays(hospital).values() for row in visits}
    spelt = defaultdict(set)
    for row in rows_of(hospital, "PRESCRIPTIONS"):
        stay = stays[row["HADM_ID"]]
        assert stay["ADMITTIME"][:10] <= row["STARTDATE"][:10] <= row["ENDDATE"][:10]
        assert row["ENDDATE"][:10] <= stay["DISCHTIME"][:10]
        spelt[row["DRUG_NAME_GENERIC"]].add(row["DRUG"])
    strong = {name for name in spelt["Furosemide"] if name.lower() != "furosemide"}
    assert spelt["Furosemide"] - strong == {"Furosemide", "furosemide", "FUROSEMIDE"}
    assert len(strong) == 1


def test_ids_say_nothing_of_time(hospital: Path) -> None:
    stays = [stay for visits in whole_stays(hospital).values() for stay in visits]
    ids = np.array([int(stay["HADM_ID"]) for stay in stays])
    times = np.array([stay["ADMITTIME"] for stay in stays]).argsort().argsort()
    assert len(set(ids)) == len(ids)
    assert abs(np.corrcoef(ids, times)[0, 1]) < 0.1


def test_broken_rows_are_there_only_when_wanted(hospital: Path, tmp_path: Path) -> None:
    settings = SimulatorConfig(patients=40, broken_rows=False, replayed_patients=0)
    simulate(settings, tmp_path)
    for folder, broken in ((hospital, True), (tmp_path, False)):
        admissions = rows_of(folder, "ADMISSIONS")
        diagnoses = rows_of(folder, "DIAGNOSES_ICD")
        keys = [(row["HADM_ID"], row["SEQ_NUM"], row["ICD9_CODE"]) for row in diagnoses]
        assert any(row["DISCHTIME"] < row["ADMITTIME"] for row in admissions) is broken
        assert any(row["ICD9_CODE"] == "" for row in diagnoses) is broken
        assert (len(set(keys)) < len(keys)) is broken


def test_deaths_end_a_patient_s_stays(hospital: Path) -> None:
    stays = whole_stays(hospital)
    dead = {row["SUBJECT_ID"] for row in rows_of(hospital, "PATIENTS") if row["DOD_HOSP"]}
    assert dead
    for subject, visits in stays.items():
        flags = [stay["HOSPITAL_EXPIRE_FLAG"] == "1" for stay in visits]
        assert not any(flags[:-1])
        assert flags[-1] is (subject in dead)


def test_paperwork_goes_on_where_the_patients_before_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SimulatorConfig(patients=90, broken_rows=True, replayed_patients=0)
    whole = {}
    for together in (4_096, 40):
        monkeypatch.setattr(tables, "PATIENTS_TOGETHER", together)
        folder = tmp_path / str(together)
        simulate(settings, folder)
        for name in ("ADMISSIONS", "DIAGNOSES_ICD", "PRESCRIPTIONS"):
            ids = [int(row["ROW_ID"]) for row in rows_of(folder, name)]
            assert ids == list(range(1, len(ids) + 1))
        stays = rows_of(folder, "ADMISSIONS")
        assert len({row["HADM_ID"] for row in stays}) == len(stays)
        whole[together] = {
            row["HADM_ID"]: row["ADMITTIME"]
            for row in stays
            if row["DISCHTIME"] >= row["ADMITTIME"]
        }
    assert whole[40] == whole[4_096]


def test_hospital_b_has_other_names_habits_and_prevalences(tmp_path: Path) -> None:
    drugs, shares, frequent = {}, {}, {}
    for name in ("a", "b"):
        settings = SimulatorConfig(patients=800, hospital=name, replayed_patients=0)
        simulate(settings, tmp_path / name)
        drugs[name] = {
            row["DRUG_NAME_GENERIC"] for row in rows_of(tmp_path / name, "PRESCRIPTIONS")
        }
        found = categories(tmp_path / name)
        frequent[name] = np.array([np.mean([c in f for f in found.values()]) for c in PHENOTYPES])
        codes = Counter(row["ICD9_CODE"] for row in rows_of(tmp_path / name, "DIAGNOSES_ICD"))
        failing = {code: n for code, n in codes.items() if code and icd9_ccs_of(code).ccs == 108}
        shares[name] = failing["4280"] / sum(failing.values())
    assert drugs["a"] & drugs["b"] == set(tables.BASE_DRUGS)
    assert np.abs(frequent["a"] - frequent["b"]).max() > 0.04
    # Heart failure without further words is hospital a's usual code, and the rarest of b's.
    assert shares["a"] > 0.4
    assert shares["b"] < 0.2


def test_icd10_is_refused_where_it_has_no_place(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match="no column for ICD-10; take layout omop or meds"):
        simulate(SimulatorConfig(coding="icd10"), tmp_path / "hospital")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("visits", [1.0, 14.0])
def test_extreme_settings_make_a_hospital(tmp_path: Path, visits: float) -> None:
    settings = SimulatorConfig(
        patients=2, visits_per_patient=visits, detail=0, broken_rows=False, replayed_patients=5
    )
    simulate(settings, tmp_path / "hospital")
    stays = whole_stays(tmp_path / "hospital")
    assert len(stays) == 2
    if visits == 1:
        assert all(len(visits) == 1 for visits in stays.values())


def test_a_folder_with_anything_in_it_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CkdEhrError, match="not empty; take a new folder"):
        simulate(SMALL, tmp_path, layout="omop")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_where_one_stands_is_refused_because_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CkdEhrError, match="take a new folder in it"):
        simulate(SMALL, Path())
    assert not any(tmp_path.iterdir())


def test_a_place_where_no_folder_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CkdEhrError, match="file/hospital: no folder can be made in"):
        simulate(SMALL, tmp_path / "file" / "hospital")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "hospital").symlink_to(tmp_path / "disk")
    simulate(SMALL, tmp_path / "hospital")
    assert (tmp_path / "disk" / "PATIENTS.csv.gz").is_file()
    assert (tmp_path / "hospital").is_symlink()


@pytest.mark.parametrize("module", [pa_csv, pq])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interruption_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, error: BaseException
) -> None:
    name = "write_csv" if module is pa_csv else "write_table"
    write, calls = getattr(module, name), []

    def fail_at_the_third(*arguments: object, **options: object) -> None:
        calls.append(name)
        if len(calls) == 3:
            raise error
        write(*arguments, **options)

    monkeypatch.setattr(module, name, fail_at_the_third)
    layout: Layout = "omop" if module is pa_csv else "meds"
    with pytest.raises(type(error)):
        simulate(SMALL, tmp_path / "hospital", layout=layout)
    assert not any(tmp_path.iterdir())
    monkeypatch.undo()
    simulate(SMALL, tmp_path / "hospital", layout=layout)
    assert [path.name for path in tmp_path.iterdir()] == ["hospital"]


def test_the_folder_has_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    simulate(SMALL, tmp_path / "hospital")
    assert (tmp_path / "hospital").stat().st_mode == (tmp_path / "usual").stat().st_mode
