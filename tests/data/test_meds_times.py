"""Times of MEDS that no calendar holds, or that are of another unit than their column says."""

from pathlib import Path

import pyarrow as pa
import pytest
from foreign_meds import event, events_of, left_out, stay, table_of, write_meds
from hospital import Stage

from ckd_ehr.contracts.errors import CkdEhrError

OUTSIDE = "with a time outside the years 1 to 9999"
LEAST, LARGEST = -(2**63), 2**63 - 1
YEAR_1, YEAR_10000 = -62_135_596_800_000_000, 253_402_300_800_000_000
DAY = 86_400_000_000


def with_times(kind: pa.DataType, numbers: list[int]) -> pa.Table:
    """A stay, and a drug at each of the times."""
    drugs = [
        event(1, None, f"MEDICATION//START//drug{n}", hadm_id=7) for n, _ in enumerate(numbers)
    ]
    table = table_of([*stay(1, 1, hadm_id=7), *drugs], {"time": kind})
    storage = pa.int32() if pa.types.is_date(kind) else pa.int64()
    own = table["time"].cast(storage).to_pylist()[:3]
    return table.set_column(1, "time", pa.array([*own, *numbers], storage).cast(kind))


@pytest.mark.parametrize(
    ("kind", "outside", "inside"),
    [
        (pa.timestamp("us"), [LEAST, LEAST + 1, LARGEST - 1, LARGEST], []),
        (pa.timestamp("us"), [YEAR_1 - 1, YEAR_10000], [YEAR_1, YEAR_10000 - 1]),
        (pa.timestamp("us", "Europe/Berlin"), [LEAST, LARGEST - 1, LARGEST], [YEAR_1 + DAY]),
        (pa.timestamp("us", "-05:00"), [LEAST, LARGEST - 1, YEAR_1], [YEAR_10000 - DAY - 1]),
        (pa.timestamp("ms"), [YEAR_10000 // 1000, LARGEST // 1000 - 1], [YEAR_1 // 1000]),
        (pa.date32(), [2**31 - 1, -(2**31), YEAR_10000 // DAY], [YEAR_1 // DAY]),
    ],
)  # fmt: skip
def test_times_that_no_calendar_holds_are_counted_and_left_out(
    tmp_path: Path, make_events: Stage, kind: pa.DataType, outside: list[int], inside: list[int]
) -> None:
    dataset = make_events(
        write_meds(tmp_path, with_times(kind, [*outside, *inside])), source="meds"
    )
    assert left_out(dataset) == {OUTSIDE: len(outside)}
    drugs = {read[0] for read in events_of(dataset) if read[0].startswith("MEDICATION")}
    assert len(drugs) == len(inside)


@pytest.mark.parametrize(
    ("unit", "number", "message"),
    [
        ("s", 2_524_608_000_000_000, "some of its numbers lie beyond every year"),
        ("ms", 2_524_608_000_000_000, "none of its numbers lies in the years 1 to 9999"),
    ],
)
def test_a_column_of_another_unit_than_it_says_is_refused(
    tmp_path: Path, make_events: Stage, unit: str, number: int, message: str
) -> None:
    table = table_of(stay(1, 1))
    wrong = pa.array([number] * table.num_rows, pa.int64()).cast(pa.timestamp(unit))
    root = write_meds(tmp_path, table.set_column(1, "time", wrong))
    with pytest.raises(CkdEhrError, match=message) as error:
        make_events(root, source="meds")
    assert "column 'time' is of type timestamp[ms]" in str(error.value)
    assert "write times as timestamp[us]" in str(error.value)
    assert "2524608" not in str(error.value)


def test_an_end_that_no_calendar_holds_is_no_end(tmp_path: Path, make_events: Stage) -> None:
    stays = table_of([event(2, "2150-01-01", "HOSPITAL_ADMISSION", hadm_id=8)])
    ends = pa.array([LARGEST - 1], pa.int64()).cast(pa.timestamp("us"))
    rows = {"0": table_of(stay(1, 1, hadm_id=7)), "1": stays.append_column("end", ends)}
    dataset = make_events(write_meds(tmp_path, rows), source="meds")
    assert [read[0] for read in events_of(dataset, 2)] == ["HOSPITAL_ADMISSION"]
