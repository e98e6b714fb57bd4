"""What a source is given, what it says of its tables, and where each of their rows went.

In: settings and a folder. Out: `Extraction`, passed through a source; `TableStatus`, printed before
any work; the `Ledger`, written as `rows.json` beside the events. Ignores: what the tables mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import write_json

ROWS = "rows.json"


@dataclass(frozen=True)
class TableStatus:
    """A table that a source wants: what for, where it was found, which columns it lacks.

    `found` is None for an absent table. `lacking` names required columns that are not there.
    """

    name: str
    purpose: str
    required: bool
    found: str | None
    size_bytes: int | None = None
    lacking: tuple[str, ...] = ()


class Ledger:
    """Counts every row of every table: read, used, or left out for a reason.

    >>> ledger = Ledger(say=print)
    >>> ledger.read("PRESCRIPTIONS.csv", 10)
    >>> ledger.leave_out("PRESCRIPTIONS.csv", "without a drug", 3)
    PRESCRIPTIONS.csv: 3 rows without a drug left out
    >>> ledger.as_json()
    {'PRESCRIPTIONS.csv': {'read': 10, 'used': 7, 'left_out': {'without a drug': 3}}}
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._read: dict[str, int] = {}
        self._left_out: dict[str, dict[str, int]] = {}

    def read(self, table: str, rows: int) -> None:
        """Enter how many rows a table has."""
        self._read[table] = self._read.get(table, 0) + rows

    def leave_out(self, table: str, reason: str, rows: int) -> None:
        """Enter and say how many rows were left out; `reason` completes "3 rows …".

        Raises:
            CkdEhrError: fewer rows than none.
        """
        if rows < 0:
            raise CkdEhrError(f"{table}: {rows} rows {reason} left out; report this")
        if rows:
            reasons = self._left_out.setdefault(table, {})
            reasons[reason] = reasons.get(reason, 0) + rows
            self._say(f"{table}: {rows:,} rows {reason} left out")

    def as_json(self) -> dict[str, dict[str, object]]:
        """Table → rows read, rows used, rows left out by reason; equal rows are used alike.

        Raises:
            CkdEhrError: of a table, more rows were left out or used than were read.
        """
        described: dict[str, dict[str, object]] = {}
        for table in self._read | self._left_out:
            rows, reasons = self._read.get(table, 0), self._left_out.get(table, {})
            used = rows - sum(reasons.values())
            if not 0 <= used <= rows:
                raise CkdEhrError(
                    f"{table}: {rows} rows read, {used} used, {sum(reasons.values())} left out; "
                    "report this"
                )
            described[table] = {"read": rows, "used": used, "left_out": dict(reasons)}
        return described

    def write(self, folder: Path) -> None:
        """Write `rows.json`."""
        write_json(folder / ROWS, self.as_json())


@dataclass(frozen=True)
class Extraction:
    """What a source is given: settings, where to write, how to speak, how much memory to take."""

    settings: DataConfig
    folder: Path
    say: Callable[[str], None]
    memory_limit: str = "1GB"
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ledger", Ledger(self.say))


def status_lines(statuses: Sequence[TableStatus]) -> list[str]:
    """The found/missing table as text, a line a table.

    >>> status_lines([TableStatus("DRUGS", "drugs", True, "DRUGS.csv", 3_000_000)])
    ['table  found               needed for', 'DRUGS  DRUGS.csv (3.0 MB)  drugs']
    """
    if not statuses:
        return []
    rows = [("table", "found", "needed for")]
    rows += [(status.name, _found(status), _purpose(status)) for status in statuses]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}" for a, b, c in rows]


def _found(status: TableStatus) -> str:
    if status.found is None:
        return "MISSING" if status.required else "missing"
    size = "" if status.size_bytes is None else f" ({_megabytes(status.size_bytes)})"
    lacking = f", lacks {', '.join(status.lacking)}" if status.lacking else ""
    return f"{status.found}{size}{lacking}"


def _purpose(status: TableStatus) -> str:
    return status.purpose if status.required else f"{status.purpose} (optional)"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"
