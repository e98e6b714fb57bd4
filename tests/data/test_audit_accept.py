"""Findings of statistical checks can be accepted; those of others never."""

import pytest

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.config_data import ACCEPTABLE_CHECKS
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.audit import duplicates, predictors, prevalence, structure
from ckd_ehr.data.audit.findings import CheckResult, Finding, accept, refuse
from ckd_ehr.data.audit.shown import summary_of


def finding(check: str) -> Finding:
    return Finding(check, "cohort", 2, "rows are wrong", "mend them")


def test_the_acceptable_checks_are_the_statistical_ones() -> None:
    assert set(ACCEPTABLE_CHECKS) == {duplicates.CHECK, prevalence.CHECK, predictors.CHECK}
    assert not set(ACCEPTABLE_CHECKS) & {check.check for check in structure.CHECKS}


def test_an_accepted_finding_is_said_and_ends_nothing() -> None:
    said: list[str] = []
    refuse([finding(predictors.CHECK)], "cohort", (predictors.CHECK,), said.append)
    assert said == ["warning: accepted finding: one feature tells a label: 2 rows are wrong"]


def test_other_findings_still_end_the_run() -> None:
    said: list[str] = []
    found = [finding(predictors.CHECK), finding(duplicates.CHECK)]
    with pytest.raises(CkdEhrError, match="1 finding; this run must not be used") as error:
        refuse(found, "cohort", (predictors.CHECK,), said.append)
    assert duplicates.CHECK in str(error.value)
    assert predictors.CHECK not in str(error.value)
    assert len(said) == 1


def test_a_structural_finding_is_never_accepted() -> None:
    check = "patient overlap across splits"
    with pytest.raises(CkdEhrError, match=check):
        refuse([finding(check)], "cohort", (check,))
    [result] = accept([CheckResult(check, "cohort", (finding(check),))], (check,))
    assert result.status == "finding"


def test_accepted_results_are_shown_as_such() -> None:
    found = CheckResult(predictors.CHECK, "cohort", (finding(predictors.CHECK),))
    results = accept([found], (predictors.CHECK,))
    assert [result.status for result in results] == ["accepted"]
    assert summary_of(results) == ("checks: 0 passed, 0 with a finding, 1 accepted, 0 not tested")
    assert accept([found], ()) == [found]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("one feature tells the label", predictors.CHECK),
        ("patient overlap across splits", prevalence.CHECK),
    ],
)
def test_a_name_that_cannot_be_accepted_is_refused_with_the_nearest(
    name: str, nearest: str
) -> None:
    with pytest.raises(CkdEhrError, match=rf"audit\.accept.*did you mean '{nearest}'"):
        build_config({"name": "audited", "audit": {"accept": [name]}})


def test_names_of_statistical_checks_are_taken() -> None:
    config = build_config({"name": "audited", "audit": {"accept": list(ACCEPTABLE_CHECKS)}})
    assert config.audit.accept == ACCEPTABLE_CHECKS
