"""What the audit says: the result of each check, its findings, and the error that ends a run.

In: counts. Out: `CheckResult`s and one `CkdEhrError` for all findings. Ignores: how anything is
checked. A finding counts rows and never shows one.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import duckdb

from ckd_ehr.contracts.config_data import ACCEPTABLE_CHECKS
from ckd_ehr.contracts.errors import CkdEhrError

Status = Literal["passed", "finding", "accepted", "not tested"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: `rows` counts what `problem` speaks of."""

    check: str
    stage: str
    rows: int
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check came to; `note` says what it could not test, and why.

    `accepted` holds findings that the run's settings name as known: they end nothing.
    """

    check: str
    stage: str
    findings: tuple[Finding, ...] = ()
    accepted: tuple[Finding, ...] = ()
    note: str = ""
    tested: bool = True

    @property
    def status(self) -> Status:
        """Whether the check passed, found something, known or not, or had nothing to test.

        >>> CheckResult("patient overlap", "cohort").status
        'passed'
        """
        if self.findings:
            return "finding"
        if self.accepted:
            return "accepted"
        return "passed" if self.tested else "not tested"


@dataclass(frozen=True, slots=True)
class SqlCheck:
    """A check whose `query` selects the offending rows."""

    check: str
    problem: str
    remedy: str
    query: str


def run_checks(
    connection: duckdb.DuckDBPyConnection, checks: Sequence[SqlCheck], stage: str
) -> list[CheckResult]:
    """Run every check, whatever the others find."""
    return [_run(connection, check, stage) for check in checks]


def _run(connection: duckdb.DuckDBPyConnection, check: SqlCheck, stage: str) -> CheckResult:
    [(rows,)] = connection.execute(f"SELECT count(*) FROM ({check.query})").fetchall()
    return result_of(check.check, stage, rows=int(rows), problem=check.problem, remedy=check.remedy)


def result_of(
    check: str, stage: str, *, rows: int, problem: str, remedy: str, note: str = ""
) -> CheckResult:
    """The result of a check that counts what is wrong."""
    found = (Finding(check, stage, rows, problem, remedy),) if rows else ()
    return CheckResult(check, stage, found, note=note)


def findings_of(results: Iterable[CheckResult]) -> list[Finding]:
    """All findings, in the order of the checks."""
    return [finding for result in results for finding in result.findings]


def accept(results: Iterable[CheckResult], accepted: Collection[str]) -> list[CheckResult]:
    """The same results, with the findings of accepted checks set apart.

    Args:
        accepted: names of checks; those that are not of `ACCEPTABLE_CHECKS` accept nothing.
    """
    return [
        replace(result, findings=(), accepted=result.findings)
        if _is_accepted(result.check, accepted)
        else result
        for result in results
    ]


def refuse(
    findings: Sequence[Finding],
    stage: str,
    accepted: Collection[str] = (),
    say: Callable[[str], None] | None = None,
) -> None:
    """End the stage if there is any finding that is not accepted.

    Args:
        accepted: as in `accept`.
        say: is told a warning for each finding that is accepted.

    Raises:
        CkdEhrError: lists every finding that is not accepted, with its count and its remedy.
    """
    known = [finding for finding in findings if _is_accepted(finding.check, accepted)]
    if say is not None:
        for finding in known:
            say(f"warning: accepted finding: {_told(finding)}")
    refused = [finding for finding in findings if finding not in known]
    if not refused:
        return
    lines = [
        f"{number}. {_told(finding)}; {finding.remedy}"
        for number, finding in enumerate(refused, start=1)
    ]
    count = "1 finding" if len(refused) == 1 else f"{len(refused)} findings"
    raise CkdEhrError(
        "\n".join([f"leak audit of stage '{stage}': {count}; this run must not be used", *lines])
    )


def _is_accepted(check: str, accepted: Collection[str]) -> bool:
    return check in accepted and check in ACCEPTABLE_CHECKS


def _told(finding: Finding) -> str:
    return f"{finding.check}: {finding.rows:,} {finding.problem}"
