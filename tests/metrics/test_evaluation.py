"""The stage's figures equal scikit-learn's on the same rows, and hold no patient."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
)

import synthetic_run
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table, write_table
from ckd_ehr.contracts.records import PREDICTIONS, SOFT_LABELS, label_names, with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.metrics.results import FEWEST_PATIENTS, MODELS, Metrics
from ckd_ehr.metrics.shown import format_table, verdict


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return synthetic_run.stub_models(monkeypatch)


def evaluated(root: Path, *, held_out: int = 40, **settings: object) -> StageContext:
    context = synthetic_run.write_run(
        root,
        synthetic_run.config_of(**settings),
        held_out=held_out,  # type: ignore[arg-type]
    )
    write_evaluation(context)
    return context


def matrix(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].to_pylist())


def metrics_of(context: StageContext) -> Metrics:
    return Metrics.model_validate(read_json(context.folder / "metrics.json"))


def test_predictions_hold_every_model_on_tuning_and_held_out(tmp_path: Path) -> None:
    context = evaluated(tmp_path)
    table = read_table(context.folder / "predictions.parquet", PREDICTIONS)
    assert label_names(table.schema) == synthetic_run.LABELS
    assert table.num_rows == len(MODELS) * 70
    assert set(table["split"].to_pylist()) == {"tuning", "held_out"}
    assert list(dict.fromkeys(table["model"].to_pylist())) == list(MODELS)
    assert np.isfinite(matrix(table, "probabilities")).all()
    teacher = table.filter(pc.equal(table["model"], "teacher"))
    expected = np.where(matrix(teacher, "labels"), 0.9, 0.1)
    np.testing.assert_allclose(matrix(teacher, "probabilities"), expected, atol=1e-6)


def test_figures_equal_scikit_learn(tmp_path: Path) -> None:
    context = evaluated(tmp_path)
    metrics = metrics_of(context)
    table = read_table(context.folder / "predictions.parquet", PREDICTIONS)
    for model in MODELS:
        mine = table.filter(pc.equal(table["model"], model))
        held_out = mine.filter(pc.equal(mine["split"], "held_out"))
        labels, risks = matrix(held_out, "labels"), matrix(held_out, "probabilities")
        overall = metrics.models[model].overall
        scored = labels[:, :2], risks[:, :2]  # no held-out pair has shock
        expected = average_precision_score(*scored, average="macro")
        assert overall["macro_auprc"].value == pytest.approx(expected, abs=2e-6)
        expected = roc_auc_score(*scored, average="macro")
        assert overall["macro_auroc"].value == pytest.approx(expected, abs=2e-6)
        expected = average_precision_score(labels.ravel(), risks.ravel())
        assert overall["micro_auprc"].value == pytest.approx(expected, abs=2e-6)
        expected = brier_score_loss(labels.ravel(), risks.ravel())
        assert overall["brier"].value == pytest.approx(expected, abs=2e-6)
        assert overall["macro_auprc"].low is not None
        assert overall["macro_auprc"].high is not None
        assert overall["macro_auprc"].low <= overall["macro_auprc"].value  # type: ignore[operator]
        assert overall["macro_auprc"].value <= overall["macro_auprc"].high  # type: ignore[operator]


def test_chance_stands_beside_every_auprc(tmp_path: Path) -> None:
    context = evaluated(tmp_path)
    metrics = metrics_of(context)
    table = read_table(context.folder / "predictions.parquet", PREDICTIONS)
    mine = pc.and_(pc.equal(table["model"], "teacher"), pc.equal(table["split"], "held_out"))
    labels = matrix(table.filter(mine), "labels")
    overall = metrics.prevalence["overall"]
    assert overall["macro_auprc"] == pytest.approx(labels[:, :2].mean(), abs=1e-6)
    assert overall["micro_auprc"] == pytest.approx(labels.mean(), abs=1e-6)
    carried = metrics.models["carry_forward"]
    for part in ("new_onset", "persistent"):
        assert (
            getattr(carried, part)["micro_auprc"].value >= metrics.prevalence[part]["micro_auprc"]
        )


def test_a_label_that_cannot_be_ranked_says_why(tmp_path: Path) -> None:
    models = metrics_of(evaluated(tmp_path)).models
    shock = models["teacher"].labels["Shock"]
    assert shock.remark == "one class only"
    assert shock.recalibration.undefined == "one class only"
    assert models["teacher"].labels[synthetic_run.LABELS[0]].remark is None
    separated = models["teacher"].labels[synthetic_run.LABELS[0]].recalibration
    assert str(separated.undefined).startswith("the prediction separates the classes")


def test_p_values_are_corrected_for_the_models_compared(tmp_path: Path) -> None:
    context = evaluated(tmp_path, held_out=80, bootstrap_draws=400)
    differences = metrics_of(context).differences
    raw = [one.p_value for one in differences]
    assert min(raw) == pytest.approx(2 / 401)  # type: ignore[type-var]
    smallest = differences[raw.index(min(raw))]  # type: ignore[type-var]
    assert smallest.p_holm == pytest.approx(6 / 401)
    assert all(one.p_holm >= one.p_value for one in differences)  # type: ignore[operator]


def test_subgroups_stand_in_the_metrics(tmp_path: Path) -> None:
    metrics = metrics_of(evaluated(tmp_path, held_out=40))
    assert metrics.min_cell == 20
    assert set(metrics.subgroups) == {"sex", "age", "ethnicity", "visit", "coding"}
    women = metrics.subgroups["sex"].groups["F"]
    assert (women.pairs, women.patients) == (40, 40)
    whole = metrics.models["student_distilled"].overall["macro_auprc"]
    assert women.models["student_distilled"].overall["macro_auprc"] == whole


def test_a_model_that_gives_no_probabilities_is_named(tmp_path: Path) -> None:
    context = synthetic_run.write_run(tmp_path, synthetic_run.config_of())
    path = context.inputs["student"] / "predictions.parquet"
    table = read_table(path, PREDICTIONS)
    values = matrix(table, "probabilities")
    values[table["model"].to_pylist().index("student_hard")] = np.nan
    place = table.schema.get_field_index("probabilities")
    table = table.set_column(place, "probabilities", pa.array(list(values), pa.list_(pa.float32())))
    write_table(table, path, with_label_names(PREDICTIONS, synthetic_run.LABELS))
    with pytest.raises(CkdEhrError, match="model student_hard: 3 of 210 are not probabilities"):
        write_evaluation(context)


def test_thresholds_come_from_tuning(tmp_path: Path) -> None:
    context = evaluated(tmp_path)
    table = read_table(context.folder / "predictions.parquet", PREDICTIONS)
    mine = table.filter(pc.equal(table["model"], "student_distilled"))
    result = metrics_of(context).models["student_distilled"].labels[synthetic_run.LABELS[0]]
    by_split = {
        split: mine.filter(pc.equal(mine["split"], split)) for split in ("tuning", "held_out")
    }
    tuning = by_split["tuning"]
    candidates = np.unique(matrix(tuning, "probabilities")[:, 0])
    scores = [
        f1_score(matrix(tuning, "labels")[:, 0], matrix(tuning, "probabilities")[:, 0] >= t)
        for t in candidates
    ]
    best = candidates[np.flatnonzero(np.isclose(scores, max(scores)))[-1]]
    assert result.threshold == pytest.approx(best, abs=1e-6)
    held_out = by_split["held_out"]
    decided = matrix(held_out, "probabilities")[:, 0] >= best
    assert result.f1 == pytest.approx(f1_score(matrix(held_out, "labels")[:, 0], decided), abs=1e-6)


def test_models_come_out_in_the_order_they_were_made_to_have(tmp_path: Path) -> None:
    metrics = metrics_of(evaluated(tmp_path, held_out=80))
    primary = {name: model.overall["macro_auprc"].value for name, model in metrics.models.items()}
    assert primary["teacher"] == 1.0
    assert primary["student_distilled"] > primary["student_hard"]  # type: ignore[operator]
    assert primary["logistic_regression"] > primary["student_hard"]  # type: ignore[operator]
    paired = metrics.differences[0]
    assert (paired.model, paired.minus) == ("student_distilled", "student_hard")
    gain = primary["student_distilled"] - primary["student_hard"]  # type: ignore[operator]
    assert paired.figures["macro_auprc"].value == pytest.approx(gain, abs=2e-6)
    assert paired.figures["macro_auprc"].low > 0  # type: ignore[operator]
    new_onset = metrics.models["carry_forward"].new_onset["macro_auroc"]
    assert new_onset.value == 0.5


def test_counts_and_facts_of_the_cohort(tmp_path: Path) -> None:
    metrics = metrics_of(evaluated(tmp_path))
    assert metrics.counts["train"].model_dump() == {
        "patients": 80,
        "labelled_pairs": 80,
        "unlabelled_pairs": 80,
    }
    assert metrics.counts["held_out"].labelled_pairs == 40
    assert metrics.labels_scored == 2
    shock = metrics.labels["Shock"]
    assert (shock.scored, shock.positives, shock.prevalence) == (False, 0, 0.0)
    assert metrics.models["teacher"].labels["Shock"].auprc.value is None
    assert sum(metrics.onset_cells.values()) == 40 * 3
    assert metrics.narratives_cut == {"teacher": pytest.approx(58 / 230, abs=0.01), "student": 0.0}
    assert metrics.latency == synthetic_run.LATENCY


@pytest.mark.parametrize("held_out", [1, 2, 8])
def test_a_handful_of_held_out_pairs_gives_nulls_not_nan(tmp_path: Path, held_out: int) -> None:
    context = evaluated(tmp_path, held_out=held_out)
    text = (context.folder / "metrics.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    shown = format_table(json.loads(text))
    assert "nan" not in shown
    if held_out == 1:
        assert metrics_of(context).models["teacher"].overall["macro_auprc"].value is None
        assert "–" in shown
        assert "cannot be compared" in shown
    assert "nan" not in (context.folder / "report.html").read_text().lower().split("</style>")[1]


def test_no_bootstrap_draws_means_no_intervals(tmp_path: Path) -> None:
    metrics = metrics_of(evaluated(tmp_path, bootstrap_draws=0))
    figure = metrics.models["teacher"].overall["macro_auprc"]
    assert (figure.value, figure.low, figure.high) == (1.0, None, None)


def test_too_few_patients_get_no_interval(tmp_path: Path) -> None:
    few = metrics_of(evaluated(tmp_path / "few", held_out=FEWEST_PATIENTS - 1))
    enough = metrics_of(evaluated(tmp_path / "enough", held_out=FEWEST_PATIENTS))
    assert few.models["teacher"].overall["brier"].low is None
    assert "so this shows nothing" in verdict(few.differences[0])
    assert enough.models["teacher"].overall["brier"].low is not None


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    names = ("metrics.json", "predictions.parquet", "report.html")
    first, second = evaluated(tmp_path / "a"), evaluated(tmp_path / "b")
    for name in names:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_no_patient_in_metrics_or_report(tmp_path: Path, asked: list[str]) -> None:
    context = evaluated(tmp_path)
    pairs = read_table(context.folder / "predictions.parquet", PREDICTIONS)
    for name in ("metrics.json", "report.html"):
        text = (context.folder / name).read_text()
        assert str(synthetic_run.FIRST_SUBJECT)[:4] not in text
        assert synthetic_run.HIDDEN_TEXT not in text
        assert not any(pair_id in text for pair_id in pairs["pair_id"].to_pylist())
    assert asked == []


def test_simulated_runs_explain_a_new_onset_risk(tmp_path: Path, asked: list[str]) -> None:
    context = evaluated(tmp_path, source="simulated")
    table = read_table(context.folder / "predictions.parquet", PREDICTIONS)
    held_out = table.filter(pc.equal(table["split"], "held_out"))
    assert len(asked) == 1
    assert asked[0] in held_out["pair_id"].to_pylist()
    assert "One prediction, explained" in (context.folder / "report.html").read_text()


def test_console_table_shows_the_models_side_by_side(tmp_path: Path) -> None:
    context = synthetic_run.write_run(tmp_path, synthetic_run.config_of())
    write_evaluation(context)
    said = format_table(read_json(context.folder / "metrics.json")).splitlines()
    rows = [line.split()[0] for line in said if line and line.split()[0] in MODELS]
    assert rows[: len(MODELS)] == list(MODELS)
    teacher = next(line for line in said if line.startswith("teacher"))
    assert "1.000 [1.000, 1.000]" in teacher
    assert teacher.endswith("120.0")
    assert max(map(len, said)) <= 130


def test_missing_predictions_name_file_count_and_remedy(tmp_path: Path) -> None:
    context = synthetic_run.write_run(tmp_path, synthetic_run.config_of())
    path = context.inputs["committee"] / "soft_labels.parquet"
    table = read_table(path, SOFT_LABELS)
    write_table(table.slice(2), path, with_label_names(SOFT_LABELS, synthetic_run.LABELS))
    with pytest.raises(CkdEhrError, match=r"soft_labels.parquet: 2 tuning or held_out pairs"):
        write_evaluation(context)


def test_predictions_of_other_labels_are_refused(tmp_path: Path) -> None:
    context = synthetic_run.write_run(tmp_path, synthetic_run.config_of())
    path = context.inputs["committee"] / "soft_labels.parquet"
    table = read_table(path, SOFT_LABELS)
    write_table(table, path, with_label_names(SOFT_LABELS, ["a", "b", "c"]))
    with pytest.raises(CkdEhrError, match="labels are not those of the cohort"):
        write_evaluation(context)


def test_no_held_out_pair_is_a_clear_error(tmp_path: Path) -> None:
    context = synthetic_run.write_run(tmp_path, synthetic_run.config_of(), held_out=0)
    with pytest.raises(CkdEhrError, match="no labelled held_out pair"):
        write_evaluation(context)


def test_metrics_hold_only_finite_numbers(tmp_path: Path) -> None:
    def numbers(value: object) -> list[float]:
        if isinstance(value, dict):
            return [n for part in value.values() for n in numbers(part)]
        if isinstance(value, list):
            return [n for part in value for n in numbers(part)]
        return [value] if isinstance(value, float) else []

    found = numbers(read_json(evaluated(tmp_path, held_out=8).folder / "metrics.json"))
    assert len(found) > 100
    assert all(map(math.isfinite, found))


def test_evaluation_itself_never_loads_torch() -> None:
    import subprocess

    code = "import sys, ckd_ehr.metrics.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
