"""One patient registered twice, in two splits: found where chance is excluded, only there."""

import datetime
import random
from pathlib import Path

import pytest
from audited import DAY, START, Rows, read_rows, simulated_cohort, write_cohort
from audited import pairs as a_pair
from audited import visits as a_visit

from ckd_ehr.data.audit.cohort import cohort_findings
from ckd_ehr.data.audit.duplicates import CHECK

Cohort = tuple[Rows, Rows, tuple[str, ...]]
TWIN = 10**9


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_cohort(tmp_path_factory.mktemp("simulated"), patients=200)[1]


def register_again(cohort: Cohort, subject: int, *, split: str = "held_out") -> Cohort:
    """The same patient under another subject_id and other visit ids, in another split."""
    visits, pairs, names = cohort
    more_visits = [
        {**visit, "subject_id": TWIN, "visit_id": f"again-{visit['visit_id']}"}
        for visit in visits
        if visit["subject_id"] == subject
    ]
    more_pairs = [
        {
            **pair,
            "subject_id": TWIN,
            "pair_id": f"again-{pair['pair_id']}",
            "history": [f"again-{visit_id}" for visit_id in pair["history"]],  # type: ignore[attr-defined]
            "next_visit_id": f"again-{pair['next_visit_id']}",
            "split": split,
            "fold": -1,
        }
        for pair in pairs
        if pair["subject_id"] == subject and pair["labels"] is not None
    ]
    assert more_pairs
    return visits + more_visits, pairs + more_pairs, names


def train_patient(cohort: Cohort, *, richest: bool) -> int:
    """Of the train patients with a labelled pair, the one with the most or fewest codes."""
    visits, pairs, _ = cohort
    known = {pair["subject_id"] for pair in pairs if pair["split"] == "train" and pair["labels"]}
    codes: dict[int, set[str]] = {}
    for visit in visits:
        if visit["subject_id"] in known:
            for kind in ("diagnoses", "medications", "procedures"):
                found = {item["code"] for item in visit[kind]}  # type: ignore[attr-defined]
                codes.setdefault(int(str(visit["subject_id"])), set()).update(found)
    order = sorted(codes, key=lambda subject: (len(codes[subject]), subject))
    return order[-1] if richest else order[0]


def found(
    folder: Path, cohort: Cohort, *, synthetic_times: bool = False, shifted_times: bool = False
) -> list[int]:
    write_cohort(folder, *cohort)
    findings = cohort_findings(
        folder, None, synthetic_times=synthetic_times, shifted_times=shifted_times
    )
    return [finding.rows for finding in findings if finding.check == CHECK]


@pytest.mark.parametrize("synthetic_times", [False, True])
@pytest.mark.parametrize("shifted_times", [False, True])
def test_different_patients_pass(
    cohort: Path, tmp_path: Path, synthetic_times: bool, shifted_times: bool
) -> None:
    times = {"synthetic_times": synthetic_times, "shifted_times": shifted_times}
    assert found(tmp_path, read_rows(cohort), **times) == []


@pytest.mark.parametrize("richest", [True, False])
def test_a_patient_registered_twice_is_found_by_times_and_codes(
    cohort: Path, tmp_path: Path, richest: bool
) -> None:
    rows = read_rows(cohort)
    subject = train_patient(rows, richest=richest)
    assert found(tmp_path, register_again(rows, subject)) == [2]


def test_without_dates_only_rich_histories_prove_it(cohort: Path, tmp_path: Path) -> None:
    rows = read_rows(cohort)
    rich, poor = (train_patient(rows, richest=richest) for richest in (True, False))
    twice = register_again(rows, rich)
    assert found(tmp_path / "rich", twice, synthetic_times=True) == [2]
    for visit in rows[0]:
        if visit["subject_id"] == poor:
            visit |= {"diagnoses": visit["diagnoses"][:2], "medications": [], "procedures": []}  # type: ignore[index]
    assert found(tmp_path / "poor", register_again(rows, poor), synthetic_times=True) == []


def test_twins_within_one_split_leak_nothing(cohort: Path, tmp_path: Path) -> None:
    rows = read_rows(cohort)
    subject = next(
        pair["subject_id"] for pair in rows[1] if pair["split"] == "held_out" and pair["labels"]
    )
    assert found(tmp_path, register_again(rows, int(str(subject)))) == []


def test_patients_of_equal_appointments_are_not_the_same(cohort: Path, tmp_path: Path) -> None:
    """Every patient comes on the same days, for the same reason."""
    visits, pairs, names = read_rows(cohort)
    first = datetime.datetime(2100, 1, 1)
    number: dict[object, int] = {}
    for visit in visits:
        place = number[visit["subject_id"]] = number.get(visit["subject_id"], -1) + 1
        start = first + datetime.timedelta(days=10 * place)
        visit |= {"admit_time": start, "discharge_time": start, "procedures": []}
        visit["diagnoses"] = [{"system": "ICD9CM", "code": "V560", "title": None}]
        visit["medications"] = []
    assert found(tmp_path, (visits, pairs, names)) == []


def moved(rows: Rows, subject: int, days: int, keys: tuple[str, ...]) -> Rows:
    """The same rows, with the times of one patient moved."""
    found = []
    for row in rows:
        new = dict(row)
        for key in keys if row["subject_id"] == subject else ():
            time = row[key]
            assert isinstance(time, datetime.datetime)
            new[key] = time + days * DAY
        found.append(new)
    return found


@pytest.mark.parametrize("richest", [True, False])
def test_shifted_times_leave_lengths_of_stay_as_proof(
    cohort: Path, tmp_path: Path, richest: bool
) -> None:
    rows = read_rows(cohort)
    visits, pairs, names = register_again(rows, train_patient(rows, richest=richest))
    visits = moved(visits, TWIN, 1234, ("admit_time", "discharge_time"))
    pairs = moved(pairs, TWIN, 1234, ("prediction_time",))
    assert found(tmp_path / "unsaid", (visits, pairs, names)) == []
    assert found(tmp_path / "said", (visits, pairs, names), shifted_times=True) == [2]


def day_clinic(patients: int = 1500, treated: int = 300, protocols: int = 6) -> Cohort:
    """Patients of a day clinic get one of few protocols of 12 drugs, 21 days apart; only dates."""
    rng = random.Random(0)
    visits, pairs = [], []
    for subject in range(patients):
        protocol, first = rng.randrange(protocols), rng.randrange(3 * 365)
        nights = 0 if subject < treated else rng.randint(1, 9)
        for number in range(2):
            if subject < treated:
                diagnoses = ["V5811", f"174{protocol}"]
                drugs = [f"drug {protocol}.{place}" for place in range(12)]
            else:
                diagnoses = [f"4{rng.randrange(300):03d}" for _ in range(6)]
                drugs = [f"drug {place}" for place in rng.sample(range(300), 10)]
            admitted = START + (first + 21 * number) * DAY
            visit = {
                **a_visit()[0],
                "visit_id": f"{subject}-{number}",
                "subject_id": subject,
                "admit_time": admitted,
                "discharge_time": admitted + nights * DAY,
                "diagnoses": [{"system": "ICD9CM", "code": c, "title": None} for c in diagnoses],
                "medications": [{"system": "NAME", "code": c, "title": None} for c in drugs],
            }
            visits.append(visit)
        held_out = rng.random() < 0.3
        pair = {
            **a_pair()[0],
            "pair_id": f"p{subject}",
            "subject_id": subject,
            "history": [f"{subject}-0"],
            "prediction_time": visits[-2]["discharge_time"],
            "next_visit_id": f"{subject}-1",
            "split": "held_out" if held_out else "train",
            "fold": -1 if held_out else rng.randrange(2),
        }
        pairs.append(pair)
    return visits, pairs, ("Shock",)


@pytest.mark.parametrize("times", ["real", "shifted_times", "synthetic_times"])
def test_patients_of_one_protocol_are_not_the_same(tmp_path: Path, times: str) -> None:
    said = {} if times == "real" else {times: True}
    assert found(tmp_path, day_clinic(), **said) == []


def test_dates_alone_prove_it_with_two_stays_of_rare_codes(tmp_path: Path) -> None:
    visits, pairs, names = day_clinic()
    subject = next(int(str(pair["subject_id"])) for pair in pairs[300:] if pair["split"] == "train")
    twice = register_again((visits, pairs, names), subject)
    assert found(tmp_path / "two", twice) == [2]
    last = twice[0][-1]
    last["diagnoses"] = []
    assert found(tmp_path / "one", twice) == []
