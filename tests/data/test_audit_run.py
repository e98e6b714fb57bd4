"""`ckd-ehr audit`: every check that the finished stages allow, in one table, with remedies."""

import json
from collections import Counter
from pathlib import Path

import pytest
from audited import read_rows, write_cohort

from ckd_ehr.cli import main
from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.files import sha256_of
from ckd_ehr.data.audit import duplicates
from ckd_ehr.data.audit.findings import CheckResult, Finding
from ckd_ehr.data.audit.run import audit_run
from ckd_ehr.knowledge.ontology import words_of
from ckd_ehr.pipeline import run_directory
from small_hospital import FREQUENT


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A simulated run up to its cohort."""
    config = build_config({"name": "audited", "data": {"simulator": {"patients": 150, **FREQUENT}}})
    directory = run_directory(tmp_path / "run")
    directory.execute(config, command=["test"], say=lambda _: None, until="cohort")
    return directory.root


def shown_by(capsys: pytest.CaptureFixture[str], run: Path) -> tuple[int, str]:
    status = main(["audit", str(run)])
    return status, " ".join(capsys.readouterr().out.split())


def publish_again(cohort: Path) -> None:
    """Make the manifest believe in what the files are now."""
    manifest = json.loads((cohort / "manifest.json").read_text())
    for name, record in manifest["outputs"].items():
        path = cohort / name
        record |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (cohort / "manifest.json").write_text(json.dumps(manifest))


def test_a_cohort_alone_can_be_audited(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = audit_run(run_directory(run), words_of=words_of)
    by_stage = {stage: [r for r in results if r.stage == stage] for stage in ("cohort", "teacher")}
    assert {r.status for r in by_stage["cohort"]} <= {"passed", "not tested"}
    assert "events after prediction_time" in {r.check for r in by_stage["cohort"]}
    assert [r.note for r in by_stage["teacher"]] == ["stage unfinished"]
    assert {r.stage for r in results} == {
        "cohort", "knowledge", "teacher", "committee", "student", "evaluation",
    }  # fmt: skip
    status, shown = shown_by(capsys, run)
    assert status == 0
    passed = sum(result.status == "passed" for result in results)
    untested = len(results) - passed
    assert f"checks: {passed} passed, 0 with a finding, {untested} not tested" in shown
    assert all(result.check in shown for result in by_stage["cohort"])


def test_findings_are_shown_with_count_and_remedy(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = run / "02_cohort"
    visits, pairs, names = read_rows(cohort)
    often = Counter(pair["subject_id"] for pair in pairs if pair["split"] == "train")
    moved = next(pair for pair in pairs if often[pair["subject_id"]] > 1)
    moved |= {"split": "held_out", "fold": -1}
    write_cohort(cohort, visits, pairs, names)
    publish_again(cohort)
    status, shown = shown_by(capsys, run)
    assert status == 1
    assert "cohort: patient overlap across splits: 1 patients stand in two splits" in shown
    assert "Remedy: divide by patient" in shown
    assert str(moved["subject_id"]) not in shown


def test_accepted_findings_are_shown_and_do_not_fail(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding(duplicates.CHECK, "cohort", 2, "patients are alike", "merge them")
    monkeypatch.setattr(
        "ckd_ehr.data.audit.cohort.duplicate_patients",
        lambda *_, **__: CheckResult(duplicates.CHECK, "cohort", (finding,)),
    )
    assert shown_by(capsys, run)[0] == 1
    record = json.loads((run / "run.json").read_text())
    record["config"]["audit"] = {"accept": [duplicates.CHECK]}
    (run / "run.json").write_text(json.dumps(record))
    status, shown = shown_by(capsys, run)
    assert status == 0
    assert "accepted: cohort: one patient under two ids: 2 patients are alike" in shown
    assert "0 with a finding, 1 accepted," in shown


def test_a_file_changed_since_its_stage_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "02_cohort" / "pairs.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert main(["audit", str(run)]) == 2
    assert "changed since its stage finished" in capsys.readouterr().err
