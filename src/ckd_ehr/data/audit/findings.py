"""What the audit says: the result of each check, its findings, and the error that ends a run.

In: counts. Out: `CheckResult`s and one `CkdEhrError` for all findings. Ignores: how anything is
checked. A finding counts rows and never shows one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import duckdb

from ckd_ehr.contracts.errors import CkdEhrError

Status = Literal["passed", "finding", "not tested"]


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
    """What a check came to; `note` says what it could not test, and why."""

    check: str
    stage: str
    findings: tuple[Finding, ...] = ()
    note: str = ""
    tested: bool = True

    @property
    def status(self) -> Status:
        """Whether the check passed, found something, or had nothing it could test.

        >>> CheckResult("patient overlap", "cohort").status
        'passed'
        """
        if self.findings:
            return "finding"
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
    return CheckResult(check, stage, found, note)


def findings_of(results: Iterable[CheckResult]) -> list[Finding]:
    """All findings, in the order of the checks."""
    return [finding for result in results for finding in result.findings]


def refuse(findings: Sequence[Finding], stage: str) -> None:
    """End the stage if there is any finding.

    Raises:
        CkdEhrError: lists every finding with its count and its remedy.
    """
    if not findings:
        return
    lines = [
        f"{number}. {finding.check}: {finding.rows:,} {finding.problem}; {finding.remedy}"
        for number, finding in enumerate(findings, start=1)
    ]
    count = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
    raise CkdEhrError(
        "\n".join([f"leak audit of stage '{stage}': {count}; this run must not be used", *lines])
    )
