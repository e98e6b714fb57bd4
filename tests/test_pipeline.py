"""The whole path on tiny random models: simulated hospital in, report out; skip, rerun, resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from ckd_ehr.cli import main
from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.manifests import MANIFEST, read_manifest
from ckd_ehr.contracts.runs import fingerprint_of
from ckd_ehr.pipeline import STAGES, run_directory
from site_guidelines import STATEMENT, write_site
from small_hospital import FREQUENT
from tiny import tiny_bert, tiny_qwen2

ROOT = Path(__file__).parent.parent
STAGE_NAMES = [stage.name for stage in STAGES]
MODELS = {
    "carry_forward",
    "logistic_regression",
    "student_hard",
    "student_distilled",
    "teacher",
    "committee",
}


def tiny_settings(root: Path) -> dict[str, object]:
    """Settings of a run that takes seconds: few patients, tiny models, every stage real."""
    common = {"precision": "fp32", "epochs": 1, "batch_size": 16, "learning_rate": 1e-3}
    return {
        "name": "tiny",
        "device": "cpu",
        "data": {"source": "simulated", "simulator": {"patients": 150, **FREQUENT}},
        "knowledge": {
            "teacher": {"max_tokens": 200},
            "student": {"max_tokens": 500, "efficacy": True, "guidelines": True},
            "efficacy": {"min_support": 5},
            "guidelines": {
                "pack": None,
                "folder": write_site(root / "site"),
                "max_tokens": 200,
            },
        },
        "teacher": {"model": tiny_qwen2(root / "qwen2"), "checkpoint_steps": 1, **common},
        "student": {
            "model": tiny_bert(root / "bert"),
            "concept_vocabulary": {"enabled": True, "min_patients": 2},
            "terms": {"layer_map": "learned"},
            **common,
        },
        "evaluation": {
            "bootstrap_draws": 50,
            "latency_pairs": 3,
            "faithfulness": {"pairs": 3},
        },
    }


class Runner:
    """Runs the pipeline at `out` and remembers which stages were not skipped."""

    def __init__(self, root: Path) -> None:
        self.settings = tiny_settings(root)
        self.out = root / "run"
        self.said: list[str] = []

    def run(self, **student: object) -> list[str]:
        """Run with changed student settings; the names of the stages that ran."""
        settings = {**self.settings, "student": {**self.settings["student"], **student}}  # type: ignore[dict-item]
        self.said = []
        config = build_config(settings)
        run_directory(self.out).execute(config, command=["test"], say=self.said.append)
        return [name for name in STAGE_NAMES if any(f" {name}: done" in line for line in self.said)]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    runner = Runner(tmp_path_factory.mktemp("pipeline"))
    assert runner.run() == STAGE_NAMES
    return runner


def test_every_stage_publishes_what_the_stage_table_says(runner: Runner) -> None:
    directory = run_directory(runner.out)
    for stage in STAGES:
        folder = directory.folder(stage.name)
        manifest = read_manifest(folder)
        assert manifest is not None
        assert manifest.stage == stage.name
        for pattern in stage.writes:
            found = list(folder.glob(pattern.rstrip("/")))
            assert found, f"{stage.name} promises {pattern}"
    assert not list(runner.out.glob("*.partial"))


def test_the_models_stand_side_by_side(runner: Runner) -> None:
    metrics = json.loads(
        (run_directory(runner.out).folder("evaluation") / "metrics.json").read_text()
    )
    assert set(metrics["models"]) == MODELS
    report = (run_directory(runner.out).folder("evaluation") / "report.html").read_text()
    assert "<table" in report
    assert "https://cdn" not in report


def test_knowledge_is_shown_with_its_sources(
    runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, commands = str(runner.out), ["knowledge", "guidelines"]
    assert main([*commands, out, "--disease", "congestive"]) == 0
    assert f"{STATEMENT}\n    the site's own digest of Our own words" in capsys.readouterr().out
    table = pq.read_table(run_directory(runner.out).folder("knowledge") / "efficacy.parquet")
    label = table.filter(pc.equal(table["fold"], -1))["label"].to_pylist()[0]
    assert main(["knowledge", "efficacy", out, "--disease", label]) == 0
    shown = capsys.readouterr().out
    assert "odds ratio" in shown
    assert "not effects" in " ".join(shown.split())
    rows = pq.read_table(run_directory(runner.out).folder("knowledge") / "student.parquet")
    narrative = ["knowledge", "narrative", out, "--reader", "student"]
    told = [row for row in rows.to_pylist() if STATEMENT in row["text"]]
    assert main([*narrative, "--pair", told[0]["pair_id"]]) == 0
    assert "heart_failure.md, line 8" in " ".join(capsys.readouterr().out.split())
    assert main(["knowledge", "efficacy", out, "--disease", "gout"]) == 2
    assert main(["explain", out, "--pair", told[0]["pair_id"], "--top", "200"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "of all this, medical knowledge" in shown
    assert "heart_failure.md, line 8" in shown
    files = tmp_path / "files"
    assert main(["export-instructions", out, "--knowledge", "--out", str(files)]) == 0
    assert STATEMENT in (files / "train.jsonl").read_text(encoding="utf-8")


def test_a_second_run_skips_every_stage(runner: Runner) -> None:
    started = time.monotonic()
    assert runner.run() == []
    assert time.monotonic() - started < 20
    assert all("skipped" in line for line in runner.said)


def test_changing_the_student_reruns_it_and_what_follows_only(runner: Runner) -> None:
    assert runner.run(learning_rate=2e-3) == ["student", "evaluation"]
    runner.run()


def test_a_new_training_seed_keeps_data_and_narratives() -> None:
    config = build_config({"name": "tiny"})
    other = build_config({"name": "tiny", "seed": 9})
    changed = [
        stage.name
        for stage in STAGES
        if fingerprint_of(stage, config, {}) != fingerprint_of(stage, other, {})
    ]
    assert changed == ["teacher", "signals", "committee", "student", "evaluation"]


def test_another_concept_vocabulary_tells_anew_and_another_training_does_not() -> None:
    (knowledge,) = (stage for stage in STAGES if stage.name == "knowledge")
    changes = ({"epochs": 9}, {"concept_vocabulary": {"min_patients": 9}})
    before, trained, told = (
        fingerprint_of(knowledge, build_config({"name": "tiny", "student": student}), {})
        for student in ({}, *changes)
    )
    assert before == trained != told


def test_a_damaged_output_is_made_again(runner: Runner) -> None:
    path = run_directory(runner.out).folder("student") / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert runner.run()[0] == "student"


def test_no_narrative_or_prediction_names_the_next_visit(runner: Runner) -> None:
    directory = run_directory(runner.out)
    pairs = pq.read_table(directory.folder("cohort") / "pairs.parquet").to_pylist()
    next_visit = {row["pair_id"]: row["next_visit_id"] for row in pairs}
    for reader in ("teacher", "student"):
        rows = pq.read_table(directory.folder("knowledge") / f"{reader}.parquet").to_pylist()
        assert {row["pair_id"] for row in rows} == set(next_visit)
        for row in rows:
            wanted = next_visit[row["pair_id"]]
            assert wanted is None or wanted not in row["text"]


def test_the_commands_answer_for_a_finished_run(
    runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run()
    out, examples = str(runner.out), str(ROOT / "docs" / "examples" / "visits.jsonl")
    pairs = pq.read_table(run_directory(runner.out).folder("cohort") / "pairs.parquet")
    pair_id = pairs["pair_id"][0].as_py()
    capsys.readouterr()
    assert main(["report", out]) == 0
    shown = capsys.readouterr().out
    assert all(model in shown for model in MODELS)
    assert main(["audit", out]) == 0
    shown = capsys.readouterr().out
    assert "checks: " in shown
    assert ", 0 with a finding, " in shown
    assert "stage unfinished" not in shown
    assert main(["explain", out, "--pair", pair_id, "--label", "septicemia"]) == 0
    shown = capsys.readouterr().out
    assert f"Pair {pair_id}" in shown
    assert "Septicemia (except in labor)" in shown
    assert "given that there is one" in " ".join(shown.split())
    assert main(["explain", out, "--pair", pair_id, "--model", "teacher", "--risks", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Pair {pair_id} teacher of run" in shown
    assert "calibrated on train pairs it had not seen" in shown
    assert main(["signals", "verify", out]) == 0
    assert " kB a pair" in capsys.readouterr().out
    assert main(["signals", "committee", out]) == 0
    assert "lightgbm" in capsys.readouterr().out
    scores = tmp_path / "scores.json"
    assert main(["signals", "score", out, "--draws", "20", "--json", str(scores)]) == 0
    assert "committee less it" in capsys.readouterr().out
    written = json.loads(scores.read_text())
    assert set(written["sources"]) == {*written["committee_less"], "committee"}
    assert not any(value in scores.read_text() for value in pairs["pair_id"].to_pylist())
    assert main(["explain", out, "--pair", "unknown"]) == 2
    assert "02_cohort/pairs.parquet" in capsys.readouterr().err
    assert main(["predict", out, "--visits", examples]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["subject_id"] for line in lines] == [1, 2]
    assert all(0 < risk < 1 for line in lines for risk in line["probabilities"].values())


def test_after_kill_minus_9_in_the_teacher_the_run_resumes(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    settings["teacher"] = {**settings["teacher"], "epochs": 30}  # type: ignore[dict-item]
    config_file = tmp_path / "tiny.yaml"
    config_file.write_text(yaml.safe_dump(build_config(settings).model_dump(mode="json")))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ckd_ehr.cli", "run", str(config_file), "--out", str(out)]
    command += ["--until", "teacher"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    work = out / "04_teacher.partial" / "work"
    deadline = time.monotonic() + 120
    while not list(work.glob("checkpoints_0/checkpoint-*/trainer_state.json")):
        assert first.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (out / "04_teacher").exists()
    cohort_before = (out / "02_cohort" / MANIFEST).read_bytes()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "resuming from checkpoint-" in second.stdout + second.stderr
    assert (out / "04_teacher" / MANIFEST).is_file()
    assert (out / "02_cohort" / MANIFEST).read_bytes() == cohort_before


def test_two_processes_say_what_one_says(runner: Runner, tmp_path: Path) -> None:
    runner.run()
    config_file = tmp_path / "tiny.yaml"
    config = build_config(runner.settings)
    config_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    out = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "ckd_ehr.cli", "run", str(config_file), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for path in ("06_committee/soft_labels.parquet", "07_student/predictions.parquet"):
        alone, together = (pq.read_table(root / path) for root in (runner.out, out))
        column = "logits" if "soft" in path else "probabilities"
        keys = ["pair_id", "source" if "soft" in path else "model"]
        ordered = [
            table.sort_by([(key, "ascending") for key in keys]) for table in (alone, together)
        ]
        values = [np.array(table[column].to_pylist()) for table in ordered]
        np.testing.assert_allclose(*values, atol=0.02)
    assert done.stdout.count("[4/8] teacher: done") == 1


def test_the_shipped_configs_are_valid() -> None:
    from ckd_ehr.contracts.config import load_config

    root = Path(__file__).parent.parent
    configs = sorted([*root.glob("configs/*.yaml"), *root.glob("src/ckd_ehr/configs/*.yaml")])
    assert len(configs) >= 3
    assert all(isinstance(load_config(path), RunConfig) for path in configs)
