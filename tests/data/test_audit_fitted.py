"""The audit of what was fitted: train fits, tuning chooses, held_out is seen by nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from audited import Rows, pairs, visits, write_cohort

from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.fitted import FittedOn, fitted_on, write_fitted
from ckd_ehr.data.audit.findings import Finding
from ckd_ehr.data.audit.fitted import STAGES, allowed_pairs, fitted_findings

PLACES = [("train", 0), ("train", 1), ("tuning", -1), ("held_out", -1)]
MEMBERS = ("teacher", "lightgbm", "site")
Records = dict[str, FittedOn]


def cohort_rows() -> Rows:
    """Three labelled pairs in each fold of train and later split, one unlabelled in each fold."""
    rows = []
    for split, fold in PLACES:
        for number in range(4 if split == "train" else 3):
            key = f"{split}{fold}-{number}"
            labels = [True] if number < 3 else None
            rows.append({**pairs()[0], "pair_id": key, "split": split, "fold": fold,
                         "labels": labels})  # fmt: skip
    return rows


def ids(split: str, *, fold: int | None = None, labelled: bool = True) -> list[str]:
    return [
        str(row["pair_id"])
        for row in cohort_rows()
        if row["split"] == split
        and (fold is None or row["fold"] == fold)
        and (row["labels"] is not None or not labelled)
    ]


def honest(stage: str) -> Records:
    records = {}
    for name, allowed in allowed_pairs(stage, [0, 1], MEMBERS).items():
        [fold] = allowed.folds or (None,)
        chosen = ids(allowed.split, fold=fold, labelled=not allowed.unlabelled_too)
        records[name] = fitted_on(name, chosen, split=allowed.split, folds=allowed.folds)
    return records


def findings_of(folder: Path, stage: str, records: Records) -> list[Finding]:
    write_cohort(folder, visits(), cohort_rows())
    write_fitted(folder / "fitted.json", list(records.values()))
    return fitted_findings(folder, {stage: folder / "fitted.json"})


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_fitted_as_it_should_passes(tmp_path: Path, stage: str) -> None:
    assert findings_of(tmp_path, stage, honest(stage)) == []


def test_a_distilled_student_may_do_without_unlabelled_pairs(tmp_path: Path) -> None:
    records = honest("student")
    name = "distilled/weights"
    records[name] = fitted_on(name, ids("train"), split="train")
    assert findings_of(tmp_path, "student", records) == []
    name = "hard/weights"
    records[name] = fitted_on(name, ids("train", labelled=False), split="train")
    assert len(findings_of(tmp_path, "student", records)) == 1


LEAKS: list[tuple[str, str, FittedOn, str]] = [
    (
        "teacher",
        "the teacher of fold 0 has seen fold 0",
        fitted_on("fold_0/weights", ids("train"), split="train", folds=[0, 1]),
        "fold_0/weights: 6 pairs of train",
    ),
    (
        "teacher",
        "as before, and the record hides it",
        fitted_on("fold_0/weights", ids("train"), split="train", folds=[1]),
        "fold_0/weights: 6 pairs of train",
    ),
    (
        "teacher",
        "stopped on held_out",
        fitted_on("fold_1/early_stopping", ids("held_out"), split="tuning"),
        "fold_1/early_stopping: 3 pairs of held_out",
    ),
    (
        "student",
        "an encoder that has read narratives of tuning",
        fitted_on("domain", ids("train", labelled=False) + ids("tuning"), split="train"),
        "domain: 11 pairs of no allowed set",
    ),
    (
        "committee",
        "calibrated on the pairs that its teacher has seen",
        fitted_on("teacher/fold_1/platt", ids("train", fold=0), split="train", folds=[0]),
        "teacher/fold_1/platt: 3 pairs of no allowed set",
    ),
    (
        "committee",
        "a member of the committee that has seen the fold it labels",
        fitted_on("lightgbm/fold_1/weights", ids("train"), split="train", folds=[0, 1]),
        "lightgbm/fold_1/weights: 6 pairs of",
    ),
    (
        "committee",
        "a committee stacked on tuning",
        fitted_on("committee_without_teacher/weights", ids("tuning"), split="tuning"),
        "committee_without_teacher/weights: 3 pairs of tuning",
    ),
    (
        "committee",
        "as before, under a number that no fold has",
        fitted_on("lightgbm/fold_9/weights", ids("train"), split="train", folds=[0, 1]),
        "lightgbm/fold_9/weights: fitted, and the audit does not know",
    ),
    (
        "committee",
        "as before, as one model of all folds",
        fitted_on("lightgbm/weights", ids("train"), split="train"),
        "lightgbm/weights: fitted, and the audit does not know",
    ),
    (
        "committee",
        "something nobody knows",
        fitted_on("a/b/c/weights", ids("train"), split="train"),
        "a/b/c/weights: fitted, and the audit does not know on what it may be",
    ),
    (
        "student",
        "prevalence of all splits",
        fitted_on("hard/prevalence", ids("train") + ids("tuning") + ids("held_out"), split="train"),
        "hard/prevalence: 12 pairs of all splits",
    ),
    (
        "student",
        "trained on tuning",
        fitted_on("distilled/weights", ids("tuning"), split="tuning"),
        "distilled/weights: 3 pairs of tuning",
    ),
    (
        "evaluation",
        "thresholds of held_out, which says so",
        fitted_on("thresholds", ids("held_out"), split="held_out"),
        "thresholds: 3 pairs of held_out",
    ),
    (
        "evaluation",
        "one pair too many",
        fitted_on("carry_forward", [*ids("train"), ids("held_out")[0]], split="train"),
        "carry_forward: 7 pairs of no allowed set",
    ),
    (
        "evaluation",
        "something nobody knows",
        fitted_on("stacking", ids("train"), split="train"),
        "stacking: fitted, and the audit does not know on what it may be",
    ),
]


@pytest.mark.parametrize(("stage", "what", "leak", "problem"), LEAKS)
def test_a_statistic_fitted_on_pairs_it_must_not_see_is_found(
    tmp_path: Path, stage: str, what: str, leak: FittedOn, problem: str
) -> None:
    [finding] = findings_of(tmp_path, stage, honest(stage) | {leak.name: leak})
    assert (finding.stage, finding.rows) == (stage, 1), what
    assert problem in finding.problem
    assert "fit weights on train" in finding.remedy


@pytest.mark.parametrize("lost", ["lightgbm/fold_1/weights", "site/platt"])
def test_a_member_without_a_record_of_a_fold_is_found(tmp_path: Path, lost: str) -> None:
    records = honest("committee")
    del records[lost]
    [finding] = findings_of(tmp_path, "committee", records)
    assert f"{lost}: not recorded" in finding.problem


def test_a_member_that_the_committee_names_and_no_record_is_found(tmp_path: Path) -> None:
    committee = {"committee": {"members": ["teacher", "logistic_regression"]}}
    write_json(tmp_path / "committee.json", committee)
    [finding] = findings_of(tmp_path, "committee", honest("committee"))
    assert "logistic_regression/fold_0/weights: not recorded" in finding.problem


def drop(records: Records) -> None:
    del records["fold_1/weights"]


def double(records: Records) -> None:
    records["again"] = records["fold_1/weights"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [(drop, "fold_1/weights: not recorded"), (double, "fold_1/weights: recorded 2 times")],
)
def test_every_fitted_thing_is_recorded_once(
    tmp_path: Path, change: Callable[[Records], None], problem: str
) -> None:
    records = honest("teacher")
    change(records)
    [finding] = findings_of(tmp_path, "teacher", records)
    assert problem in finding.problem


def test_a_stage_without_records_is_found(tmp_path: Path) -> None:
    write_cohort(tmp_path, visits(), cohort_rows())
    [finding] = fitted_findings(tmp_path, {"teacher": tmp_path / "fitted.json"})
    assert "fitted.json is missing or unreadable" in finding.problem


def test_several_problems_of_several_stages_are_found_together(tmp_path: Path) -> None:
    write_cohort(tmp_path, visits(), cohort_rows())
    records = honest("evaluation")
    for name in ("thresholds", "logistic_regression/platt"):
        records[name] = fitted_on(name, ids("held_out"), split="tuning")
    write_fitted(tmp_path / "evaluation.json", list(records.values()))
    write_fitted(tmp_path / "of_committee.json", list(honest("committee").values()))
    paths = {stage: tmp_path / f"{stage}.json" for stage in ("student", "evaluation")}
    paths["committee"] = tmp_path / "of_committee.json"
    found = fitted_findings(tmp_path, paths)
    assert [(finding.stage, finding.rows) for finding in found] == [
        ("student", 1),
        ("evaluation", 2),
    ]
