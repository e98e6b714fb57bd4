"""The command line: exit status, what help teaches, what an error says."""

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ckd_ehr import cli, doctor, pipeline
from ckd_ehr.cli import main
from ckd_ehr.contracts.config import EMBEDDED_TEACHER, RunConfig, build_config
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.inputs import read_histories
from ckd_ehr.contracts.records import Code, Visit
from ckd_ehr.contracts.runs import RunDirectory, StageContext
from ckd_ehr.data.sources.drug_names import fold_drugs
from ckd_ehr.doctor import Finding, Speed
from ckd_ehr.learning import inference, weights
from ckd_ehr.pipeline import STAGES
from small_hospital import FREQUENT

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples" / "visits.jsonl"
SIMULATED = {"name": "trial", "data": {"simulator": {"patients": 20, **FREQUENT}}}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(json.dumps(SIMULATED))
    return path


def fake_stages(
    fail_in: str = "", error: BaseException | None = None
) -> tuple[pipeline.Stage, ...]:
    """The real stage table, with stages that write a line instead of training."""

    def fake(name: str) -> Callable[[StageContext], None]:
        def function(context: StageContext) -> None:
            if name == fail_in and error is not None:
                raise error
            (context.folder / "result.txt").write_text("done")
            if name == "cohort":
                for table in ("pairs", "visits"):
                    pq.write_table(pa.table({"a": [1]}), context.folder / f"{table}.parquet")
            if name == "knowledge":
                pq.write_table(pa.table({"a": [1]}), context.folder / "teacher.parquet")

        return function

    return tuple(replace(stage, function=fake(stage.name)) for stage in STAGES)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the stages by fakes, one of which may fail."""

    def use(fail_in: str = "", error: BaseException | None = None) -> None:
        stages = fake_stages(fail_in, error)
        monkeypatch.setattr(cli, "run_directory", lambda root: RunDirectory(root, stages))

    return use


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faked: Callable[..., None]) -> Path:
    """A finished fake run whose student gives every label one half."""
    faked()
    run = tmp_path / "run"
    config = build_config(SIMULATED)
    cli.run_directory(run).execute(config, command=["t"], say=lambda _: None)

    class Half:
        labels = ("Shock", "Pneumonia")
        facts: ClassVar = {
            "variant": "distilled",
            "run": "trial",
            "train_pairs": 9,
            "data_source": "x",
        }

        @classmethod
        def load(cls, run: Path) -> "Half":
            return cls()

        def predict(self, histories: list[tuple[Visit, ...]]) -> np.ndarray:
            return np.full((len(histories), 2), 0.5)

    monkeypatch.setattr(inference, "StudentPredictor", Half)
    return run


def test_help_lists_every_stage_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    stages = shown[shown.index("Stages, in order") :]
    places = [stages.index(f"  {stage.name} ") for stage in STAGES]
    assert places == sorted(places)
    assert all(stage.summary in shown for stage in STAGES)


def test_help_is_quick() -> None:
    command = [sys.executable, "-m", "ckd_ehr.cli", "--help"]
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 2.0  # 0.4 s on an idle machine


def test_a_mistyped_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rnu"]) == 2
    assert "Did you mean 'run'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["demo", "student.epoch=2"],
            "unknown key 'student.epoch'; did you mean 'student.epochs'?",
        ),
        (["run", "absent.yaml"], "absent.yaml: no such config file"),
        (["report", "absent"], "absent: no run here"),
        (["explain", "absent", "--pair", "x"], "absent: no run here"),
        (["audit", "absent"], "absent: no run here"),
        (["predict", "absent", "--visits", "x"], "absent: no run here"),
        (["simulate", "h", "--patients", "0"], "patients = 0"),
        (["simulate", "h", "--visits", "0.5"], "visits_per_patient = 0.5"),
        (["simulate", "h", "--detail", "1.5"], "detail = 1.5"),
        (["simulate", "h", "--coding", "icd10"], "no column for ICD-10"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_exit_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_config_error_leaves_an_earlier_run_alone(
    config_file: Path, tmp_path: Path, faked: Callable[..., None]
) -> None:
    faked()
    out = tmp_path / "run"
    assert main(["run", str(config_file), "--out", str(out), "--until", "student"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["run", str(config_file), "studnet.epochs=3", "--out", str(out)]) == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/file"), 2, "/disk/file: no space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "no space left"),
        (
            PermissionError(errno.EACCES, "denied", "/disk/file"),
            2,
            "/disk/file: denied; change its",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/disk/x"), 2, "cannot be written to"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "a/b: Not a directory"),
        (ModuleNotFoundError("no torch", name="torch"), 2, "pip install 'ckd-ehr[train]'"),
        (ModuleNotFoundError("no ort", name="onnxruntime"), 2, "pip install 'ckd-ehr[serve]'"),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
    ],
)
def test_trouble_in_a_stage_is_one_message(
    config_file: Path,
    tmp_path: Path,
    faked: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    words: str,
) -> None:
    faked("teacher", error)
    assert main(["run", str(config_file), "--out", str(tmp_path / "run")]) == status
    assert words in capsys.readouterr().err
    assert (tmp_path / "run" / "03_knowledge" / "manifest.json").is_file()
    assert not (tmp_path / "run" / "04_teacher").exists()


def test_a_bug_keeps_its_traceback(
    config_file: Path, tmp_path: Path, faked: Callable[..., None]
) -> None:
    faked("teacher", ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["run", str(config_file), "--out", str(tmp_path / "run")])


def test_a_run_goes_to_a_folder_of_its_name_and_stops_where_told(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faked: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    faked()
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(config_file), "--until", "cohort", "name=mine"]) == 0
    assert sorted(path.name for path in Path("runs/mine").glob("0*")) == ["01_events", "02_cohort"]
    assert "Stopped after stage 'cohort'" in capsys.readouterr().out
    assert main(["run", str(config_file), "--until", "cohrt"]) == 2


def test_a_run_that_is_current_does_not_load_torch(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = build_config(SIMULATED)
    stages = fake_stages()
    RunDirectory(out, stages).execute(config, command=["t"], say=lambda _: None)
    arguments = ["run", str(config_file), "--out", str(out), "--until", "student"]
    code = (
        f"import sys; from ckd_ehr.cli import main; status = main({arguments!r});"
        "print(status, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert sum("unchanged, skipped" in line for line in lines) == len(STAGES) - 1
    assert lines[-1] == "0 False False"


def test_predictions_are_one_json_line_a_patient(
    student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(student), "--visits", str(EXAMPLES)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["subject_id"] for line in lines] == [1, 2]
    assert lines[0]["prediction_time"] == "2023-11-28T11:30:00"
    assert lines[0]["probabilities"] == {"Shock": 0.5, "Pneumonia": 0.5}
    assert lines[0]["about"]["condition"] == "given a next hospital visit, at any later time"
    assert lines[0]["about"]["trained_on"] == "9 train pairs of x"


def test_predictions_are_written_whole_or_not_at_all(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "risks.jsonl"
    arguments = ["predict", str(student), "--visits", str(EXAMPLES), "--out", str(out)]
    assert main(arguments) == 0
    before = out.read_text()
    assert before.count("\n") == 2

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(inference.StudentPredictor, "predict", full)
    assert main(arguments) == 2
    assert out.read_text() == before
    assert [path.name for path in out.parent.iterdir()] == ["risks.jsonl"]


def test_bad_lines_are_refused_before_the_model_is_loaded(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(inference.StudentPredictor, "load", None)
    visits = tmp_path / "visits.jsonl"
    visits.write_text('{"subject_id": 1, "visits": []}')
    assert main(["predict", str(student), "--visits", str(visits)]) == 2
    assert "visits.jsonl:1: visits: empty" in capsys.readouterr().err


def test_drugs_of_new_patients_are_folded_as_in_training() -> None:
    history = read_histories(EXAMPLES)[0]
    drugs = (Code("NAME", "Warfarin 2.5 mg Tab"), Code("NAME", "WARFARIN"), Code("NAME", "Heparin"))
    [*_, last] = fold_drugs([*history[:-1], replace(history[-1], medications=drugs)])
    assert last.medications == (Code("NAME", "warfarin"), Code("NAME", "heparin"))
    assert last.diagnoses == history[-1].diagnoses


def test_results_of_earlier_settings_are_shown_with_a_note(
    student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((student / "run.json").read_text())
    about["config"]["student"]["epochs"] = 9
    write_json(student / "run.json", about)
    assert main(["predict", str(student), "--visits", str(EXAMPLES)]) == 0
    captured = capsys.readouterr()
    assert "note: " in captured.err
    assert "the settings of stage 'student' have changed since it ran" in captured.err
    assert captured.out.count("\n") == 2


def test_simulate_writes_tables_and_refuses_a_folder_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hospital"
    assert main(["simulate", str(out), "--patients", "20", "--seed", "3"]) == 0
    tables = {path.name.lower() for path in out.iterdir()}
    assert {"admissions.csv.gz", "patients.csv.gz", "diagnoses_icd.csv.gz"} <= tables
    assert main(["simulate", str(out)]) == 2
    assert "not empty; take a new folder" in capsys.readouterr().err


def demo_config() -> RunConfig:
    return build_config({"name": "demo"})


def test_the_forecast_follows_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "download_bytes", lambda _: 0)
    fast, slow = Speed(1000, 100), Speed(100, 10)
    cost = doctor.DEMO
    expected = cost.fixed_seconds + cost.bf16_gigaflop / 100 + cost.fp32_gigaflop / 10
    assert doctor.forecast_demo(demo_config(), slow).seconds == pytest.approx(expected)
    assert doctor.forecast_demo(demo_config(), fast).seconds < expected
    assert doctor.forecast_demo(demo_config(), fast).disk_bytes == cost.run_bytes


def test_the_forecast_adds_up_what_is_to_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, int | None] = {EMBEDDED_TEACHER: 90}
    monkeypatch.setattr(doctor, "download_bytes", lambda name: sizes.get(name, 10))
    assert doctor.forecast_demo(demo_config(), None).download_bytes == 110
    sizes[EMBEDDED_TEACHER] = None
    assert doctor.forecast_demo(demo_config(), None).download_bytes is None


def test_doctor_says_what_is_missing_with_a_remedy_and_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = Finding("packages", "missing", "torch is not installed", "pip install it")
    monkeypatch.setattr(doctor, "examine", lambda config, runs: [missing])
    assert main(["doctor"]) == 1
    assert "torch is not installed" in (shown := capsys.readouterr().out)
    assert "→ pip install it" in shown


def test_doctor_finds_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil._ntuple_diskusage(100, 99, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    findings = doctor.examine(demo_config(), runs=tmp_path / "not" / "yet" / "there")
    disk = next(finding for finding in findings if finding.topic == "disk (runs)")
    assert disk.status == "missing"
    assert "--out" in disk.remedy


def test_doctor_names_weights_that_are_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKD_EHR_CACHE", str(tmp_path))
    assert not weights.is_cached(EMBEDDED_TEACHER)
    findings = {f.topic: f for f in doctor.examine(demo_config(), runs=tmp_path)}
    assert findings["teacher weights"].status == "note"
    assert "93 MB to download" in findings["teacher weights"].found
    assert "1 MB to download" in findings["guideline digests"].found
    untold = build_config({"name": "demo", "knowledge": {"teacher": {"guidelines": False}}})
    assert "guideline digests" not in {f.topic for f in doctor.examine(untold, runs=tmp_path)}


def test_unmet_requirements_are_found() -> None:
    wanted = ["numpy>=999", "numpy>=1; extra == 'train'", "absent; extra == 'other'"]
    found = [finding.found for finding in doctor.unmet_requirements(wanted, extra="train")]
    assert len(found) == 1
    assert "(wanted: >=999)" in found[0]
