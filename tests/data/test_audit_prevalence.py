"""Label prevalence across splits: chance passes at the promised rate, a shift is found."""

import numpy as np
import pytest
from audited import pairs, visits, write_cohort

from ckd_ehr.data.audit.cohort import cohort_findings
from ckd_ehr.data.audit.prevalence import (
    CHECK,
    PatientCounts,
    compare_splits,
    prevalence_shift,
    read_counts,
)

LABELS = 12


def honest_patients(seed: int, *, patients: int = 150, labels: int = LABELS) -> PatientCounts:
    """Patients of very different length, whose pairs nearly repeat each other; split by lot."""
    rng = np.random.default_rng(seed)
    pairs_ = rng.geometric(0.4, size=patients).astype(np.float64)
    pairs_[0] = 40
    ill = rng.random((patients, labels)) < np.linspace(0.05, 0.5, labels)
    positives = rng.binomial(pairs_[:, None].astype(int), np.where(ill, 0.9, 0.02))
    split = rng.choice(3, size=patients, p=[0.6, 0.2, 0.2])
    return PatientCounts(
        split, pairs_, positives.astype(np.float64), tuple(f"label {k}" for k in range(labels))
    )


def test_honest_splits_fail_no_more_often_than_promised() -> None:
    """Of 300 cohorts at 5 %: 15 expected, 27 or more once in 500 such tests."""
    alarms = sum(
        bool(compare_splits(honest_patients(seed), alpha=0.05, deals=199).findings)
        for seed in range(300)
    )
    assert alarms < 27


def test_honest_splits_pass_at_the_audit_s_own_rate() -> None:
    results = [compare_splits(honest_patients(seed)) for seed in range(20)]
    assert [result.status for result in results] == ["passed"] * 20


def test_a_shift_of_one_label_in_one_split_is_found() -> None:
    patients = honest_patients(1, patients=400)
    rng = np.random.default_rng(5)
    shifted = (patients.split == 2) & (rng.random(400) < 0.5)
    patients.positives[shifted, 3] = patients.pairs[shifted]
    [finding] = compare_splits(patients).findings
    assert finding.check == CHECK
    assert "label 3: " in finding.problem
    assert " in held_out, " in finding.problem
    assert finding.rows == finding.problem.count(" in all")


def test_labels_and_splits_of_few_patients_are_not_tested() -> None:
    patients = honest_patients(2, patients=60)
    rare = patients.positives.copy()
    rare[:, 0] = 0
    rare[:9, 0] = patients.pairs[:9]
    few = PatientCounts(patients.split, patients.pairs, rare, patients.label_names)
    result = compare_splits(few)
    assert "labels in fewer than 10 patients not tested" in result.note
    assert "fewer than 20 patients in" in result.note
    tiny = honest_patients(3, patients=20)
    assert compare_splits(tiny).status == "not tested"


def test_a_label_that_nobody_or_everybody_has_is_no_shift() -> None:
    patients = honest_patients(4)
    positives = patients.positives.copy()
    positives[:, 0], positives[:, 1] = 0, patients.pairs
    same = PatientCounts(patients.split, patients.pairs, positives, patients.label_names)
    assert compare_splits(same).status == "passed"


def test_pairs_are_counted_by_patient_and_unlabelled_ones_left_out(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cohort = write_cohort(tmp_path_factory.mktemp("cohort"), visits(), pairs())
    counts = read_counts(cohort)
    assert counts.split.tolist() == [0, 1]
    assert counts.pairs.tolist() == [2, 1]
    assert counts.positives.tolist() == [[2], [1]]


def test_a_split_by_time_may_shift(tmp_path_factory: pytest.TempPathFactory) -> None:
    """40 patients a split, and the label only in held_out."""
    folder = tmp_path_factory.mktemp("cohort")
    visit_rows, pair_rows = [], []
    for number in range(120):
        split = ("train", "tuning", "held_out")[number % 3]
        for visit in visits()[3:]:
            visit_rows.append(
                {**visit, "subject_id": number, "visit_id": f"{number}-{visit['visit_id']}"}
            )
        pair_rows.append(
            {
                **pairs()[3],
                "pair_id": f"p{number}",
                "subject_id": number,
                "history": [f"{number}-20001"],
                "next_visit_id": f"{number}-20002",
                "labels": [split == "held_out"],
                "split": split,
                "fold": number % 2 if split == "train" else -1,
            }
        )
    cohort = write_cohort(folder, visit_rows, pair_rows)
    assert [finding.check for finding in cohort_findings(cohort, None)] == [CHECK]
    assert cohort_findings(cohort, None, shift_expected=True) == []
    assert prevalence_shift(cohort, shift_expected=True).status == "not tested"
