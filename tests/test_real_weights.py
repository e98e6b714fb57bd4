"""The user's path with the real embedded models: demo, MIMIC-III demo records, UCI records.

Smaller than the shipped settings in patients only, so that all of it fits into minutes.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckd_ehr.metrics.shown import format_table
from ckd_ehr.pipeline import STAGES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def ckd_ehr(*arguments: str) -> str:
    """Run the command line in a process of its own; its standard output."""
    command = [sys.executable, "-m", "ckd_ehr.cli", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo run with the embedded SmolLM2 and MiniLM on fewer simulated patients."""
    out = tmp_path_factory.mktemp("demo") / "run"
    ckd_ehr("demo", "data.simulator.patients=500", "--out", str(out))
    return out


def test_the_demo_learns_what_carrying_forward_cannot(demo: Path) -> None:
    metrics = json.loads((demo / "08_evaluation" / "metrics.json").read_text())
    auroc = {
        name: model["overall"]["macro_auroc"]["value"] for name, model in metrics["models"].items()
    }
    assert set(auroc) == {
        "carry_forward",
        "logistic_regression",
        "student_hard",
        "student_distilled",
        "teacher",
        "committee",
    }
    assert auroc["student_distilled"] > 0.55
    assert auroc["teacher"] > 0.52
    latency = metrics["latency"]
    assert latency["student_distilled"]["p50_ms"] < latency["teacher"]["p50_ms"]


def test_the_demo_again_skips_every_stage_quickly(demo: Path) -> None:
    started = time.monotonic()
    said = ckd_ehr("demo", "data.simulator.patients=500", "--out", str(demo))
    assert time.monotonic() - started < 20
    assert said.count("skipped") == len(STAGES)


def test_report_explain_and_predict_work_on_the_demo(demo: Path) -> None:
    metrics = json.loads((demo / "08_evaluation" / "metrics.json").read_text())
    assert format_table(metrics).splitlines()[0] in ckd_ehr("report", str(demo))
    lines = ckd_ehr("predict", str(demo), "--visits", "docs/examples/visits.jsonl").splitlines()
    patients = (ROOT / "docs" / "examples" / "visits.jsonl").read_text().splitlines()
    assert len(lines) == len(patients)
    for line in lines:
        risks = json.loads(line)["probabilities"]
        assert len(risks) == 25
        assert all(0 < risk < 1 for risk in risks.values())


def test_mimic3_records_end_in_a_report(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    root = f"data.root={real_data / 'mimic3-demo-1.4'}"
    short = ["knowledge.teacher.max_tokens=256", "knowledge.student.max_tokens=256"]
    ckd_ehr("run", "configs/mimic3.yaml", root, *short, "teacher.epochs=1", "--out", str(out))
    metrics = json.loads((out / "08_evaluation" / "metrics.json").read_text())
    assert len(metrics["models"]) == 6
    report = (out / "08_evaluation" / "report.html").read_text()
    assert "10006" not in report  # a subject of the demo


def test_uci_records_end_in_a_report_that_beats_carry_forward(
    real_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    root = f"data.root={real_data / 'uci-diabetes130' / 'dataset_diabetes.zip'}"
    sample = [
        f"cohort.sample.{name}={pairs}"
        for name, pairs in {"train": 400, "unlabelled": 50, "tuning": 150, "held_out": 300}.items()
    ]
    ckd_ehr("run", "configs/uci-diabetes.yaml", root, *sample, "--out", str(out))
    metrics = json.loads((out / "08_evaluation" / "metrics.json").read_text())
    auprc = {
        name: model["overall"]["macro_auprc"]["value"] for name, model in metrics["models"].items()
    }
    assert auprc["student_distilled"] > auprc["carry_forward"]
