"""Times of a MEDS dataset, of whichever type: as SQL, in which order, and why they cannot be read.

In: a column and its Parquet type, or files. Out: SQL of wall times, `STRANGE` ones apart; how many
files and patients are in disorder; the error for a unit that is not the one of its numbers.
Ignores: what happened at a time.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.tables import explain_unreadable, quoted

# Stands for every time outside the years 1 to 9999, which no calendar here can hold.
STRANGE = "TIMESTAMP 'infinity'"
_YEARS = "BETWEEN TIMESTAMP '0001-01-01' AND TIMESTAMP '9999-12-31 23:59:59.999999'"
# A day less at both ends, for the way into another zone.
_INSTANTS = "BETWEEN TIMESTAMPTZ '0001-01-02 00:00+00' AND TIMESTAMPTZ '9999-12-31 00:00+00'"
_FIXED_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})")


def is_time(kind: pa.DataType) -> bool:
    """Whether a column of this type holds times or dates."""
    return bool(types.is_timestamp(kind) or types.is_date(kind))


def wall_time(cell: str, kind: pa.DataType, timezone: str | None) -> str:
    """SQL of a column's wall times: null where it is null, `STRANGE` outside the years 1 to 9999.

    A time with a zone shows the clocks of `timezone` or, without one, of the zone it states.
    """
    zone = kind.tz if types.is_timestamp(kind) else None
    if zone is None:
        moved = f"try_cast({cell} AS TIMESTAMP)"
        known = f"{moved} {_YEARS}"
    else:
        instant = f"CAST({cell} AS TIMESTAMPTZ)"
        moved = _moved(instant, zone, timezone)
        known = f"{instant} {_INSTANTS}"
    return f"CASE WHEN {cell} IS NULL THEN NULL WHEN {known} THEN {moved} ELSE {STRANGE} END"


def count_disorder(files: Sequence[Path], subject: str, time: str) -> tuple[int, int]:
    """How many files are not in order of patient and time, and how many patients several hold."""
    unordered, subjects = 0, []
    for path in files:
        runs, backwards = _runs(path, [subject, time])
        distinct = np.unique(runs)
        unordered += backwards or len(distinct) < len(runs)
        subjects.append(distinct)
    _, files_of = np.unique(np.concatenate(subjects), return_counts=True)
    return unordered, int((files_of > 1).sum())


def refuse_other_units(batch: pa.RecordBatch, columns: Sequence[str], path: Path) -> None:
    """An error for numbers that are no time in the unit that their column states."""
    for name in set(columns) & set(batch.schema.names):
        kind = batch.schema.field(name).type
        if not types.is_timestamp(kind):
            continue
        try:
            batch.column(name).cast(pa.timestamp("us", kind.tz))
        except pa.ArrowInvalid:
            raise CkdEhrError(
                f"{path.name}: column '{name}' is of type {kind}, in which some of its numbers lie "
                "beyond every year; they may be of another unit: write times as timestamp[us]"
            ) from None


def _moved(instant: str, zone: str, timezone: str | None) -> str:
    fixed = _FIXED_OFFSET.fullmatch(zone)
    if timezone is None and fixed:
        sign, hours, minutes = fixed.groups()
        shift = int(f"{sign}1") * (60 * int(hours) + int(minutes))
        return f"timezone('UTC', {instant}) + INTERVAL ({shift}) MINUTE"
    return f"timezone({quoted(timezone or zone)}, {instant})"


def _runs(
    path: Path, columns: Sequence[str]
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], bool]:
    """The patient of each run of rows with one patient, and whether time goes back in a run."""
    runs, backwards = [np.empty(0, np.int64)], False
    last = np.empty((2, 0), np.int64)
    try:
        for batch in pq.ParquetFile(path).iter_batches(columns=list(dict.fromkeys(columns))):
            if not batch.num_rows:
                continue
            rows = np.concatenate([last, _subjects_and_times(batch, columns)], axis=1)
            same = rows[0, 1:] == rows[0, :-1]
            backwards = backwards or bool((same & (rows[1, 1:] < rows[1, :-1])).any())
            starts = rows[0, 1:][~same] if last.size else rows[0][np.append(True, ~same)]
            runs.append(starts)
            last = rows[:, -1:]
    except (pa.ArrowException, OSError):
        raise explain_unreadable(path) from None
    return np.concatenate(runs), backwards


def _subjects_and_times(
    batch: pa.RecordBatch, columns: Sequence[str]
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Both as whole numbers, (2, rows); a null is the least of all."""
    subjects, times = (batch.column(name) for name in columns)
    if types.is_date32(times.type):
        times = times.cast(pa.int32())
    numbers = [subjects.cast(pa.int64(), safe=False), times.cast(pa.int64())]
    least = np.iinfo(np.int64).min
    return np.stack([pc.fill_null(column, least).to_numpy(False) for column in numbers])
