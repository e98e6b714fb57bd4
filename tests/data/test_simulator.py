"""The simulated hospital: one seed, the same bytes; real codes; a task to learn; whole or not."""

import csv
import errno
import gzip
import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.data.simulator import simulate
from ckd_ehr.data.simulator_catalogue import (
    BACKGROUND_CODES,
    CONDITIONS,
    EFFECTIVE,
    PROGRESSIONS,
    TRAITS,
)
from ckd_ehr.data.simulator_layouts import Layout
from ckd_ehr.data.simulator_tables import diagnosis_titles

CATEGORY_OF = {code: condition.ccs for condition in CONDITIONS for code, _ in condition.codes}
PHENOTYPES = sorted(ccs for phenotype in PHENOTYPES_25 for ccs in phenotype.ccs)
SMALL = SimulatorConfig(patients=20)
OUTDATED = {"585", "5185", "2765", "5128"}

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    simulate(SimulatorConfig(), folder)
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
        if row["ICD9_CODE"] in CATEGORY_OF:
            found[row["HADM_ID"]].add(CATEGORY_OF[row["ICD9_CODE"]])
    return found


def test_same_seed_same_bytes_and_another_seed_differs(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(SimulatorConfig(patients=40, seed=seed), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [
        "ADMISSIONS.csv.gz",
        "DIAGNOSES_ICD.csv.gz",
        "D_ICD_DIAGNOSES.csv.gz",
        "D_ICD_PROCEDURES.csv.gz",
        "PATIENTS.csv.gz",
        "PRESCRIPTIONS.csv.gz",
        "PROCEDURES_ICD.csv.gz",
    ]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    changed = (tmp_path / "a" / "DIAGNOSES_ICD.csv.gz").read_bytes()
    assert changed != (tmp_path / "c" / "DIAGNOSES_ICD.csv.gz").read_bytes()


def test_tables_have_the_columns_of_mimic3(hospital: Path, real_data: Path) -> None:
    for path in hospital.iterdir():
        name = path.name.removesuffix(".csv.gz")
        real = real_data / "mimic3-demo-1.4" / f"{name}.csv"
        expected = real.read_text(encoding="utf-8").partition("\n")[0].upper().split(",")
        assert list(rows_of(hospital, name)[0]) == expected


def test_every_code_is_real_and_outdated_ones_have_no_title(hospital: Path) -> None:
    real = diagnosis_titles()
    written = {row["ICD9_CODE"] for row in rows_of(hospital, "DIAGNOSES_ICD")} - {""}
    titled = {row["ICD9_CODE"] for row in rows_of(hospital, "D_ICD_DIAGNOSES")}
    assert written - set(real) <= OUTDATED
    assert written - titled == written - set(real)
    catalogue = set(CATEGORY_OF) | {c for t in TRAITS for c in t.codes} | set(BACKGROUND_CODES)
    assert catalogue - set(real) == OUTDATED
    done = {row["ICD9_CODE"] for row in rows_of(hospital, "PROCEDURES_ICD")}
    assert done <= {row["ICD9_CODE"] for row in rows_of(hospital, "D_ICD_PROCEDURES")}


def test_catalogue_speaks_only_of_the_25_phenotypes() -> None:
    assert sorted(condition.ccs for condition in CONDITIONS) == PHENOTYPES
    named = {ccs for before, after, _ in PROGRESSIONS for ccs in (before, after)}
    assert named | {ccs for _, ccs, _ in EFFECTIVE} <= set(PHENOTYPES)


def test_every_phenotype_occurs_at_next_visits_with_a_useful_frequency(hospital: Path) -> None:
    found = categories(hospital)
    following = [stay["HADM_ID"] for stays in whole_stays(hospital).values() for stay in stays[1:]]
    for ccs in PHENOTYPES:
        assert 0.03 <= np.mean([ccs in found[hadm] for hadm in following]) <= 0.45, ccs


def test_default_hospital_has_the_demo_s_size(hospital: Path) -> None:
    stays = whole_stays(hospital)
    labelled = sum(len(visits) - 1 for visits in stays.values())
    unlabelled = sum(visits[-1]["HOSPITAL_EXPIRE_FLAG"] == "0" for visits in stays.values())
    assert 1450 <= labelled <= 1650  # 70 % of the patients are for training
    assert 300 <= unlabelled <= 380
    per_stay = len(rows_of(hospital, "DIAGNOSES_ICD")) / sum(map(len, stays.values()))
    assert 2.8 <= per_stay <= 3.6


def test_broken_rows_are_there_only_when_wanted(hospital: Path, tmp_path: Path) -> None:
    simulate(SimulatorConfig(patients=40, broken_rows=False), tmp_path)
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


def test_history_predicts_better_than_carrying_the_last_visit_forward(tmp_path: Path) -> None:
    simulate(SimulatorConfig(patients=600), tmp_path)
    codes = defaultdict(set)
    for row in rows_of(tmp_path, "DIAGNOSES_ICD"):
        codes[row["HADM_ID"]].add(row["ICD9_CODE"])
    vocabulary = sorted({code for found in codes.values() for code in found})
    found = categories(tmp_path)
    pairs = [
        (int(subject), before["HADM_ID"], after["HADM_ID"])
        for subject, stays in whole_stays(tmp_path).items()
        for before, after in itertools.pairwise(stays)
    ]
    history = np.array([[code in codes[before] for code in vocabulary] for _, before, _ in pairs])
    carried = np.array([[ccs in found[before] for ccs in PHENOTYPES] for _, before, _ in pairs])
    labels = np.array([[ccs in found[after] for ccs in PHENOTYPES] for *_, after in pairs])
    train = np.array([subject % 3 != 0 for subject, *_ in pairs])
    learned, forward = [], []
    for label, last in zip(labels.T, carried.T, strict=True):
        model = LogisticRegression(C=0.1).fit(history[train], label[train])
        risks = model.predict_proba(history[~train])[:, 1]
        learned.append(average_precision_score(label[~train], risks))
        forward.append(average_precision_score(label[~train], last[~train]))
    assert np.mean(learned) > np.mean(forward) + 0.05


def test_a_folder_with_anything_in_it_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CkdEhrError, match="not empty; give --out a new folder"):
        simulate(SMALL, tmp_path, layout="omop")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_where_one_stands_is_refused_because_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CkdEhrError, match="give --out a new folder in it"):
        simulate(SMALL, Path())
    assert not any(tmp_path.iterdir())


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
