"""What the command line shows of an audit: a row for each check, then what to do.

In: results. Out: Rich renderables. Ignores: how anything is checked.
"""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ckd_ehr.data.audit.findings import CheckResult, Status, findings_of

_STYLES: dict[Status, str] = {
    "passed": "green",
    "finding": "bold red",
    "accepted": "yellow",
    "not tested": "dim",
}


def show_results(results: Sequence[CheckResult]) -> RenderableType:
    """Every check with its result, each finding with count and remedy, those accepted."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "check", "result"):
        table.add_column(name, no_wrap=True)
    table.add_column("note", overflow="fold")
    for result in results:
        shown = Text(result.status, style=_STYLES[result.status])
        table.add_row(result.stage, result.check, shown, Text(result.note, style="dim"))
    details = [
        Text(
            f"\n{number}. {finding.stage}: {finding.check}: {finding.rows:,} {finding.problem}\n"
            f"   Remedy: {finding.remedy}"
        )
        for number, finding in enumerate(findings_of(results), start=1)
    ]
    known = [
        Text(f"\naccepted: {finding.stage}: {finding.check}: {finding.rows:,} {finding.problem}")
        for result in results
        for finding in result.accepted
    ]
    return Group(table, *details, *known, Text(f"\n{summary_of(results)}"))


def summary_of(results: Sequence[CheckResult]) -> str:
    """How many checks came to what.

    >>> summary_of([CheckResult("patient overlap", "cohort")])
    'checks: 1 passed, 0 with a finding, 0 not tested'
    """
    counted = Counter(result.status for result in results)
    accepted = f"{counted['accepted']} accepted, " if counted["accepted"] else ""
    return (
        f"checks: {counted['passed']} passed, {counted['finding']} with a finding, {accepted}"
        f"{counted['not tested']} not tested"
    )
