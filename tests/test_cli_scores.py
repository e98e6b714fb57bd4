"""`compare` and `export-predictions` on a finished run: what they print, write and refuse."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import synthetic_run
from ckd_ehr.cli import main
from ckd_ehr.contracts.runs import RunDirectory, StageContext
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.pipeline import STAGES


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages were filled from a synthetic one."""
    root = tmp_path_factory.mktemp("run")
    config = synthetic_run.config_of()
    with pytest.MonkeyPatch.context() as patch:
        synthetic_run.stub_models(patch)
        context = synthetic_run.write_run(root / "made", config)
        write_evaluation(context)
    made = {**context.inputs, "evaluation": context.folder}

    def filling(name: str) -> Callable[[StageContext], None]:
        def fill(stage: StageContext) -> None:
            if name in made and made[name].exists():
                shutil.copytree(made[name], stage.folder, dirs_exist_ok=True)

        return fill

    stages = tuple(
        replace(stage, function=filling(stage.name), externals=lambda _: {}, preview=lambda _: [])
        for stage in STAGES
    )
    RunDirectory(root / "run", stages).execute(config, command=["t"], say=lambda _: None)
    return root / "run"


def test_compare_prints_and_writes_paired_differences(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert main(["compare", str(run), str(run), "--draws", "50", "--json", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "40 pairs of 40 patients held out in every run (0 more in A, 0 in B)" in said
    assert "1 training seed; a claim needs three" in said
    found = json.loads(out.read_text())
    assert found["models"]["teacher"]["difference"]["macro_auprc"]["value"] == 0.0
    assert main(["compare", str(run), str(run), "--model", "gru"]) == 2
    assert "no model 'gru' in all" in capsys.readouterr().err


def test_export_writes_folders_and_names_what_is_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export-predictions", str(run), "--out", str(out), "--model", "teacher"]) == 0
    said = capsys.readouterr().out
    assert "2 diseases, 40 pairs each, by teacher" in said
    assert "left out, its pairs show one class only: Shock" in said
    assert len(list(out.glob("*/predictions.parquet"))) == 2
    assert main(["export-predictions", str(run), "--out", str(out)]) == 2


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err
