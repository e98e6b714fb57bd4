"""Records of what was fitted on what: written, read back, and refused when broken."""

import hashlib
from pathlib import Path

import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.fitted import digest_of, fitted_on, read_fitted, write_fitted


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = [
        fitted_on("fold_0/weights", ["b", "a"], split="train", folds=[1]),
        fitted_on("thresholds", [], split="tuning"),
    ]
    write_fitted(tmp_path / "fitted.json", records)
    assert read_fitted(tmp_path / "fitted.json") == records
    assert records[0].folds == (1,)
    assert records[0].pairs == 2
    assert records[1].folds is None


def test_the_digest_is_sha_256_over_the_sorted_ids() -> None:
    assert digest_of(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()
    assert digest_of(["a", "b"]) == digest_of(["b", "a"])
    assert digest_of(["a"]) != digest_of(["a", "a"])


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "x"}]', '{"a": 1}', "3"])
def test_a_broken_file_is_an_error_with_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "fitted.json").write_text(text)
    with pytest.raises(CkdEhrError, match="delete this stage's folder and run again"):
        read_fitted(tmp_path / "fitted.json")


def test_a_missing_file_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match=r"fitted\.json: missing; delete this stage's folder"):
        read_fitted(tmp_path / "fitted.json")
