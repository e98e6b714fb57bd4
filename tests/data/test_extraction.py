"""The ledger's own sums: a fault in them is refused, never written."""

import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.extraction import Ledger


def test_fewer_rows_than_none_are_no_reason() -> None:
    ledger = Ledger(say=lambda line: None)
    ledger.read("DRUGS.csv", 3)
    with pytest.raises(CkdEhrError, match=r"^DRUGS\.csv: -2 rows without a drug .*; report this$"):
        ledger.leave_out("DRUGS.csv", "without a drug", -2)


@pytest.mark.parametrize(
    ("read", "left_out", "message"),
    [
        (3, 4, "3 rows read, -1 used, 4 left out; report this"),
        (-3, 0, "-3 rows read, -3 used, 0 left out; report this"),
        (None, 4, "0 rows read, -4 used, 4 left out; report this"),
    ],
)
def test_sums_that_cannot_be_are_refused(read: int | None, left_out: int, message: str) -> None:
    ledger = Ledger(say=lambda line: None)
    if read is not None:
        ledger.read("DRUGS.csv", read)
    ledger.leave_out("DRUGS.csv", "without a drug", left_out)
    with pytest.raises(CkdEhrError, match=message):
        ledger.as_json()
