"""Training is followed where a config says so, by Trainer's own callbacks, and nowhere else."""

import os
from pathlib import Path

import pytest

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.learning.tracking import TENSORBOARD_FOLDER, Tracking, refuse_absent


def tracking(root: Path, *trackers: str) -> Tracking:
    config = build_config({"name": "followed", "trackers": trackers})
    folder = root / "07_student.partial"
    return Tracking.of(StageContext(config=config, folder=folder, inputs={}, say=print))


def test_nothing_is_reported_by_default(tmp_path: Path) -> None:
    assert tracking(tmp_path).arguments("x") == {"report_to": [], "logging_strategy": "no"}


def test_a_tracker_of_the_config_reaches_the_trainer(tmp_path: Path) -> None:
    arguments = tracking(tmp_path, "mlflow", "tensorboard").arguments("student (hard)")
    assert arguments["report_to"] == ["mlflow", "tensorboard"]
    assert arguments["run_name"] == "student (hard)"
    assert arguments["logging_strategy"] == "steps"


def test_tensorboards_files_outlive_the_stages_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TENSORBOARD_FOLDER, raising=False)
    with tracking(tmp_path, "tensorboard").place("student (hard)"):
        assert os.environ[TENSORBOARD_FOLDER] == str(tmp_path / "tensorboard" / "student_hard")
    assert TENSORBOARD_FOLDER not in os.environ


def test_the_users_own_folder_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TENSORBOARD_FOLDER, "elsewhere")
    with tracking(tmp_path, "tensorboard").place("student (hard)"):
        assert os.environ[TENSORBOARD_FOLDER] == "elsewhere"
    assert os.environ[TENSORBOARD_FOLDER] == "elsewhere"


def test_an_absent_tracker_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckd_ehr.learning.tracking.find_spec", lambda _: None)
    with pytest.raises(CkdEhrError, match=r"'wandb' is not installed.*pip install wandb"):
        refuse_absent(["wandb"])


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(CkdEhrError, match=r"trackers\.0"):
        build_config({"name": "followed", "trackers": ["abacus"]})
