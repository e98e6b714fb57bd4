"""The evaluation audits what everything was fitted on before it reports anything."""

from pathlib import Path

import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.fitted import FITTED, fitted_on, read_fitted, write_fitted
from ckd_ehr.contracts.records import PAIRS
from ckd_ehr.data.audit.fitted import allowed_pairs
from ckd_ehr.metrics.evaluation import write_evaluation
from synthetic_run import config_of, stub_models, write_run


def test_what_was_fitted_here_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_models(monkeypatch)
    context = write_run(tmp_path, config_of())
    write_evaluation(context)
    records = {record.name: record for record in read_fitted(context.folder / FITTED)}
    assert set(records) == set(allowed_pairs("evaluation", [0, 1]))
    assert records["carry_forward"].splits == ("train",)
    assert records["carry_forward"].pairs == 80
    assert records["thresholds"].splits == ("tuning",)
    assert records["thresholds"].pairs == 30


def test_a_student_calibrated_on_held_out_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_models(monkeypatch)
    context = write_run(tmp_path, config_of())
    pairs = read_table(context.inputs["cohort"] / "pairs.parquet", PAIRS).to_pylist()
    held_out = [pair["pair_id"] for pair in pairs if pair["split"] == "held_out"]
    path = context.inputs["student"] / FITTED
    kept = [record for record in read_fitted(path) if record.name != "distilled/platt"]
    write_fitted(path, [*kept, fitted_on("distilled/platt", held_out, split="tuning")])
    with pytest.raises(CkdEhrError, match="stage 'evaluation': 1 finding") as error:
        write_evaluation(context)
    assert "distilled/platt: 40 pairs of held_out" in str(error.value)
    assert not (context.folder / "metrics.json").exists()
    assert not (context.folder / "report.html").exists()
