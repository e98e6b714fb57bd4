"""Faults planted in a run's models are flagged at the top of its report."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit

import synthetic_run
from ckd_ehr.contracts.files import read_json, read_table, write_table
from ckd_ehr.contracts.records import PAIRS, PREDICTIONS, VISITS, with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.metrics.flags import Flag, flags_of
from ckd_ehr.metrics.results import Metrics

STUDENT = "student, distilled"


@pytest.fixture(autouse=True)
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic_run.stub_models(monkeypatch)


def written(root: Path) -> StageContext:
    return synthetic_run.write_run(root, synthetic_run.config_of(bootstrap_draws=200), held_out=160)


def evaluated(context: StageContext) -> tuple[list[Flag], str]:
    """The flags, and the report's text before the first table."""
    write_evaluation(context)
    metrics = Metrics.model_validate(read_json(context.folder / "metrics.json"))
    page = (context.folder / "report.html").read_text(encoding="utf-8")
    return flags_of(metrics), page[: page.index('<h2 id="models">')]


def true_chances(context: StageContext) -> dict[str, np.ndarray]:
    """By pair, the chances that the synthetic hospital draws its labels from."""
    visits = read_table(context.inputs["cohort"] / "visits.parquet", VISITS).to_pylist()
    codes = {row["visit_id"]: {code["code"] for code in row["diagnoses"]} for row in visits}
    pairs = read_table(context.inputs["cohort"] / "pairs.parquet", PAIRS).to_pylist()
    chances = {}
    for pair in pairs:
        before = np.array([code in codes[pair["history"][-1]] for code in synthetic_run.CODES])
        chances[pair["pair_id"]] = 0.8 * before + 0.2 * 0.4
    return chances


def let_the_student_say(context: StageContext, risks: dict[str, np.ndarray]) -> None:
    path = context.inputs["student"] / "predictions.parquet"
    rows = read_table(path, PREDICTIONS).to_pylist()
    for row in rows:
        if row["model"] == "student_distilled":
            row["probabilities"] = risks[row["pair_id"]].tolist()
    schema = with_label_names(PREDICTIONS, synthetic_run.LABELS)
    write_table(pa.Table.from_pylist(rows, PREDICTIONS), path, schema)


@pytest.mark.parametrize("sharpened", [1.0, 4.0])
def test_a_miscalibrated_model_is_flagged_and_a_calibrated_one_is_not(
    tmp_path: Path, sharpened: float
) -> None:
    context = written(tmp_path)
    chances = true_chances(context)
    said = {pair: expit(sharpened * logit(risk)) for pair, risk in chances.items()}
    let_the_student_say(context, said)
    flags, top = evaluated(context)
    mine = [flag.said for flag in flags if flag.said.startswith(STUDENT)]
    assert len(mine) == (1 if sharpened > 1 else 0)
    assert ("<b>Miscalibrated.</b> student, distilled: ECE" in top) == (sharpened > 1)
    if mine:
        assert "too extreme" in mine[0]


@pytest.mark.parametrize("planted", [True, False])
def test_a_subgroup_that_is_served_worse_is_flagged(tmp_path: Path, planted: bool) -> None:
    """Every second patient is a man; where a gap is planted, men's risks are drawn by chance."""
    context = written(tmp_path)
    path = context.inputs["cohort"] / "visits.parquet"
    rows = read_table(path, VISITS).to_pylist()
    men = {row["subject_id"] for row in rows if row["subject_id"] % 2}
    for row in rows:
        row["sex"] = "M" if row["subject_id"] in men else "F"
    schema = with_label_names(VISITS, synthetic_run.LABELS)
    write_table(pa.Table.from_pylist(rows, VISITS), path, schema)
    pairs = read_table(context.inputs["cohort"] / "pairs.parquet", PAIRS).to_pylist()
    rng, risks = np.random.default_rng(0), true_chances(context)
    for pair in pairs:
        if planted and pair["subject_id"] in men:
            risks[pair["pair_id"]] = rng.random(3)
    let_the_student_say(context, risks)
    flags, top = evaluated(context)
    gaps = [flag.said for flag in flags if flag.kind == "Subgroup gap"]
    assert [gap.split(":")[0] for gap in gaps] == (["Sex M"] if planted else [])
    assert ("<b>Subgroup gap.</b> Sex M: student, distilled ranks these 80 pairs" in top) == planted


@pytest.mark.parametrize("faithful", [True, False])
def test_unfaithful_explanations_are_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faithful: bool
) -> None:
    monkeypatch.setattr(synthetic_run.StubStudent, "faithful", faithful)
    flags, top = evaluated(written(tmp_path))
    unfaithful = [flag.said for flag in flags if flag.kind == "Unfaithful explanations"]
    assert len(unfaithful) == (0 if faithful else 2)
    assert ("<b>Unfaithful explanations.</b> student, distilled: the concepts" in top) != faithful
