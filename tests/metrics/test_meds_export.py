"""An export is MEDS, leaves out what cannot be scored, and scores elsewhere as it does here."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from meds import LabelSchema

import synthetic_run
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.metrics.export import export_predictions
from ckd_ehr.metrics.results import parse_metrics

MODEL = "student_distilled"
TOOL = shutil.which("meds-evaluation-cli") or shutil.which(
    "meds-evaluation-cli", path=str(Path(sys.executable).parent)
)
THEIRS = {
    "auroc": "roc_auc_score",
    "auprc": "average_precision_score",
    "f1": "f1_score",
    "brier": "brier_score",
}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        synthetic_run.stub_models(patch)
        context = synthetic_run.write_run(
            tmp_path_factory.mktemp("run"), synthetic_run.config_of(), held_out=60
        )
        write_evaluation(context)
    yield context.folder


def test_an_export_is_meds_and_says_what_is_left_out(evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = export_predictions(evaluation / "predictions.parquet", out, model=MODEL)
    assert exported.one_class == ["Shock"]
    assert exported.pairs == 60
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == [
        "01_congestive_heart_failure_nonhypertensive",
        "02_essential_hypertension",
    ]
    about = read_json(out / "export.json")
    assert (about["model"], about["split"]) == (MODEL, "held_out")
    assert about["left_out_one_class"] == ["Shock"]
    for name, folder in exported.folders.items():
        labels = pq.read_table(out / folder / "labels.parquet")
        LabelSchema.validate(labels)
        assert labels.num_rows == 60
        predictions = pq.read_table(out / folder / "predictions.parquet")
        assert predictions.select(labels.schema.names).equals(labels)
        threshold = about["folders"][folder]["threshold"]  # type: ignore[index]
        risks = predictions["predicted_boolean_probability"].to_numpy()
        decided = predictions["predicted_boolean_value"].to_numpy()
        assert (decided == (risks.astype(float) >= threshold)).all()
        assert about["folders"][folder]["disease"] == name  # type: ignore[index]


def test_a_model_or_folder_that_cannot_be_is_refused(evaluation: Path, tmp_path: Path) -> None:
    predictions = evaluation / "predictions.parquet"
    with pytest.raises(CkdEhrError, match="no model 'gru'; it has carry_forward, "):
        export_predictions(predictions, tmp_path / "out", model="gru")
    with pytest.raises(CkdEhrError, match="no train pair"):
        export_predictions(predictions, tmp_path / "out", model=MODEL, split="train")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("")
    with pytest.raises(CkdEhrError, match="not empty"):
        export_predictions(predictions, tmp_path / "used", model=MODEL)


@pytest.mark.skipif(TOOL is None, reason="meds-evaluation is not installed (extra `tests`)")
@pytest.mark.parametrize("model", [MODEL, "carry_forward"])
def test_meds_evaluation_finds_the_same_scores(
    evaluation: Path, tmp_path: Path, model: str
) -> None:
    out = tmp_path / "out"
    exported = export_predictions(evaluation / "predictions.parquet", out, model=model)
    metrics = parse_metrics(read_json(evaluation / "metrics.json"))
    for name, folder in exported.folders.items():
        found = tmp_path / f"{folder}.json"
        files = [f"predictions_path={out / folder}/predictions.parquet", f"output_file={found}"]
        subprocess.run([str(TOOL), *files], check=True, capture_output=True, cwd=tmp_path)
        theirs = json.loads(found.read_text())["samples_equally_weighted"]
        ours = metrics.models[model].labels[name].model_dump()
        ours |= {score: ours[score]["value"] for score in ("auroc", "auprc")}
        for mine, other in THEIRS.items():
            assert ours[mine] == pytest.approx(theirs[other], abs=1e-6), (name, mine)
