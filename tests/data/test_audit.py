"""The audit of a cohort's tables: a clean one passes, every planted leak is found and told."""

from collections.abc import Callable
from pathlib import Path

import pytest
from audited import DAY, HEART, START, Rows, pairs, visits, write_cohort

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.audit.cohort import cohort_checks, cohort_findings
from ckd_ehr.data.audit.findings import Finding, refuse

Change = Callable[[Rows, Rows], object]


def findings_after(folder: Path, change: Change) -> list[Finding]:
    visit_rows, pair_rows = visits(), pairs()
    change(visit_rows, pair_rows)
    return cohort_findings(write_cohort(folder, visit_rows, pair_rows), None)


def test_a_clean_cohort_passes(tmp_path: Path) -> None:
    assert findings_after(tmp_path, lambda v, p: None) == []


COHORT_LEAKS: list[tuple[str, str, Change]] = [
    (
        "patient overlap across splits",
        "patients stand in two splits",
        lambda v, p: p[0].update(split="held_out", fold=-1),
    ),
    (
        "patient overlap across folds",
        "patients stand in two folds",
        lambda v, p: p[0].update(fold=1),
    ),
    ("folds of train only", "train pairs have no fold", lambda v, p: p[3].update(fold=1)),
    ("duplicate pairs", "pairs have the same pair_id", lambda v, p: p[0].update(pair_id="p2")),
    (
        "duplicate visits",
        "visits have the same visit_id",
        lambda v, p: v.append({**v[4], "discharge_time": START + 23 * DAY}),
    ),
    (
        "visits of pairs exist",
        "history or next visits are not among",
        lambda v, p: p[3].update(next_visit_id="20009"),
    ),
    (
        "visits after prediction_time",
        "history visits were discharged after prediction_time",
        lambda v, p: p[0].update(history=["10002", "10001"]),
    ),
    (
        "prediction at discharge",
        "histories do not end with the discharge",
        lambda v, p: p[3].update(prediction_time=START + 13 * DAY),
    ),
    (
        "next visit after prediction_time",
        "next visits were admitted before prediction_time",
        lambda v, p: v[4].update(admit_time=START + 11 * DAY),
    ),
    (
        "labels from later visits",
        "pairs have labels without a next visit",
        lambda v, p: p[2].update(labels=[True]),
    ),
    (
        "labels from later visits",
        "pairs have labels without a next visit",
        lambda v, p: v[2].update(diagnoses=[]),
    ),
    (
        "visits of one patient",
        "pairs mix visits of several patients",
        lambda v, p: v[4].update(subject_id=3),
    ),
    (
        "no prediction after death",
        "histories end with the patient's death",
        lambda v, p: v[2].update(died=True),
    ),
    (
        "no prediction after death",
        "histories end with the patient's death",
        lambda v, p: v[3].update(died=True),
    ),
    (
        "unlabelled pairs in train",
        "unlabelled pairs stand outside train",
        lambda v, p: p[3].update(next_visit_id=None, labels=None),
    ),
]


@pytest.mark.parametrize(("check", "problem", "change"), COHORT_LEAKS)
def test_a_leak_planted_in_the_cohort_is_found(
    tmp_path: Path, check: str, problem: str, change: Change
) -> None:
    found = {finding.check: finding for finding in findings_after(tmp_path, change)}
    assert found[check].rows == 1
    assert found[check].problem.startswith(problem)
    assert found[check].remedy


def test_a_next_visit_of_no_length_in_its_own_history_is_found(tmp_path: Path) -> None:
    def plant(visit_rows: Rows, pair_rows: Rows) -> None:
        visit_rows[2]["admit_time"] = visit_rows[2]["discharge_time"]
        pair_rows[2] |= {"next_visit_id": "10003", "labels": [True]}

    found = {finding.check: finding.rows for finding in findings_after(tmp_path, plant)}
    assert found["next visit outside the history"] == 1


def test_a_next_visit_that_was_not_coded_has_no_labels(tmp_path: Path) -> None:
    def uncoded(visit_rows: Rows, pair_rows: Rows) -> None:
        visit_rows[2]["diagnoses"] = []
        pair_rows[1]["labels"] = None

    assert findings_after(tmp_path, uncoded) == []


def test_labels_may_come_from_a_later_visit_than_an_uncoded_next_one(tmp_path: Path) -> None:
    def uncoded(visit_rows: Rows, pair_rows: Rows) -> None:
        visit_rows[1]["diagnoses"] = []

    assert findings_after(tmp_path, uncoded) == []


def test_all_findings_are_told_together_with_count_and_remedy(tmp_path: Path) -> None:
    def plant(visit_rows: Rows, pair_rows: Rows) -> None:
        pair_rows[0] |= {"split": "held_out", "fold": -1}
        pair_rows[2]["labels"] = [True]

    findings = findings_after(tmp_path, plant)
    with pytest.raises(CkdEhrError, match="leak audit of stage 'cohort': 3 findings") as error:
        refuse(findings, "cohort")
    message = str(error.value)
    for finding in findings:
        assert f"{finding.rows} {finding.problem}" in message
        assert finding.remedy in message
    told = [line.split(":")[0] for line in message.splitlines()[1:]]
    assert told == [
        "1. patient overlap across splits",
        "2. patient overlap across folds",
        "3. labels from later visits",
    ]


def test_no_finding_shows_a_patient_or_a_visit(tmp_path: Path) -> None:
    def plant(visit_rows: Rows, pair_rows: Rows) -> None:
        for row in (*visit_rows, *pair_rows):
            row["subject_id"] = 987654321
        visit_rows[0]["discharge_time"] = START + 99 * DAY
        pair_rows[1]["next_visit_id"] = "10009"

    told = " ".join(f"{f.problem} {f.remedy}" for f in findings_after(tmp_path, plant))
    assert told
    assert not any(secret in told for secret in ("987654321", "1000", str(HEART["code"])))


def test_no_finding_refuses_nothing() -> None:
    refuse([], "cohort")


def test_a_small_cohort_says_what_it_could_not_test(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, visits(), pairs())
    results = cohort_checks(
        cohort, None, shift_expected=False, synthetic_times=False, phenotypes=()
    )
    untested = {result.check: result.note for result in results if result.status == "not tested"}
    assert set(untested) == {"label prevalence across splits", "one feature tells a label"}
    assert "fewer than 20 patients" in untested["label prevalence across splits"]


def test_folders_may_have_names_like_patterns(tmp_path: Path) -> None:
    folder, decoy = tmp_path / "a[1]*", tmp_path / "a1"
    folder.mkdir()
    decoy.mkdir()
    write_cohort(decoy, [], [])
    pair_rows = pairs()
    pair_rows[0].update(split="held_out", fold=-1)
    found = cohort_findings(write_cohort(folder, visits(), pair_rows), None)
    assert "patient overlap across splits" in {finding.check for finding in found}


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match=r"visits\.parquet: missing"):
        cohort_findings(tmp_path, None)
