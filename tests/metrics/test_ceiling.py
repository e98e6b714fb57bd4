"""The distance to planted true risks is what it was made to be; without truth there is none."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import synthetic_run
from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table, write_json, write_table
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.contracts.truth import HOSPITAL, RISKS, RISKS_SCHEMA, TRUTH
from ckd_ehr.learning.scoring import patient_draws
from ckd_ehr.metrics.ceiling import (
    ScoredModels,
    Truth,
    find_ceiling,
    groups_of_risk,
    is_simulated,
    read_truth,
    why_no_ceiling,
)
from ckd_ehr.metrics.compare import ScoredPairs, measure
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.metrics.figures import RECORD, TRUE_STATE, ceiling_figure
from ckd_ehr.metrics.report import render_report
from ckd_ehr.metrics.results import MODELS, Metrics
from ckd_ehr.metrics.shown import format_table, leader_said

PAIRS, LABELS = 600, 4
SHOCK = synthetic_run.LABELS[2]


def planted(*, pairs: int = PAIRS, draws: int = 80) -> tuple[np.ndarray, ScoredPairs]:
    """Risks, and labels drawn from them; two pairs a patient."""
    rng = np.random.default_rng(7)
    risks = rng.beta(0.8, 3.0, size=(pairs, LABELS))
    scored = ScoredPairs(
        labels=rng.random(risks.shape) < risks,
        previously_present=rng.random(risks.shape) < 0.3,
        weights=patient_draws(np.arange(pairs) // 2, draws=draws, seed=0),
        bins=10,
    )
    return risks, scored


def models_of(scored: ScoredPairs, probabilities: dict[str, np.ndarray]) -> ScoredModels:
    thresholds = np.full(LABELS, 0.5)
    measured = {name: measure(p, thresholds, scored) for name, p in probabilities.items()}
    subjects = np.arange(len(scored.labels)) // 2
    return ScoredModels(scored, subjects, probabilities, measured)


def noisy(risks: np.ndarray, scale: float) -> np.ndarray:
    noise = np.random.default_rng(8).normal(size=risks.shape) * scale
    log_odds = np.log(risks / (1 - risks)) + noise
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def truth_of(risks: np.ndarray, known: np.ndarray) -> Truth:
    """A truth whose estimates from the record, where known, are somewhat off."""
    record = np.where(known[:, None], noisy(risks, 0.4), np.nan)
    particles = np.where(known, np.arange(len(risks), dtype=float), np.nan)
    return Truth(true_state=risks, record=record, effective_particles=particles)


def test_the_true_risk_is_no_distance_from_itself_and_a_noisy_model_is_behind() -> None:
    risks, scored = planted()
    constant = np.tile(scored.labels.mean(axis=0), (PAIRS, 1))
    models = {"oracle": risks, "noisy": noisy(risks, 1.5), "constant": constant}
    ceiling = find_ceiling(
        truth_of(risks, np.zeros(PAIRS, dtype=bool)), models_of(scored, models)
    ).true_state
    oracle, behind, chance = (ceiling.models[name] for name in models)
    assert {figure.value for figure in oracle.behind.values()} == {0.0}
    assert {(f.low, f.high) for f in oracle.behind.values()} == {(0.0, 0.0)}
    assert {figure.value for figure in oracle.reached.values()} == {1.0}
    assert oracle.overall == ceiling.overall
    for name in ("macro_auprc", "macro_auroc", "brier"):
        figure = behind.behind[name]
        assert figure.low is not None
        assert figure.low > 0
    assert 0 < behind.reached["macro_auprc"].value < 1  # type: ignore[operator]
    assert chance.reached["macro_auroc"].value == 0.0
    assert chance.reached["macro_auprc"].value == pytest.approx(0.0, abs=1e-6)


def test_references_equal_scikit_learn_and_what_they_are_made_of() -> None:
    risks, scored = planted()
    known = np.arange(PAIRS) % 3 == 0
    truth, model = truth_of(risks, known), noisy(risks, 1.5)
    ceiling = find_ceiling(truth, models_of(scored, {"noisy": model}))
    record = ceiling.record
    assert record is not None
    assert (ceiling.true_state.pairs, ceiling.true_state.patients) == (PAIRS, PAIRS // 2)
    assert (record.pairs, record.patients) == (PAIRS // 3, PAIRS // 3)
    assert record.effective_particles == np.median(np.arange(PAIRS)[known])
    assert ceiling.true_state.effective_particles is None
    labels, best = scored.labels[known], truth.record[known]
    auprc = average_precision_score(labels, best, average="macro")
    auroc = roc_auc_score(labels, best, average="macro")
    theirs = average_precision_score(labels, model[known], average="macro")
    distance = record.models["noisy"]
    assert record.overall["macro_auprc"].value == pytest.approx(auprc, abs=2e-6)
    assert record.overall["macro_auroc"].value == pytest.approx(auroc, abs=2e-6)
    assert record.overall["brier"].value == pytest.approx(np.mean((best - labels) ** 2), abs=2e-6)
    assert distance.overall["macro_auprc"].value == pytest.approx(theirs, abs=2e-6)
    assert distance.behind["macro_auprc"].value == pytest.approx(auprc - theirs, abs=2e-6)
    chance = labels.mean()
    assert record.chance["macro_auprc"] == pytest.approx(chance, abs=2e-6)
    way = (theirs - chance) / (auprc - chance)
    assert distance.reached["macro_auprc"].value == pytest.approx(way, abs=2e-5)


def test_the_record_is_compared_on_its_own_pairs_and_the_same_draws() -> None:
    risks, scored = planted()
    known = np.arange(PAIRS) % 2 == 0
    some, all_pairs = (
        find_ceiling(
            Truth(risks, np.where(mask[:, None], risks, np.nan), mask.astype(float)),
            models_of(scored, {"noisy": noisy(risks, 1.5)}),
        )
        for mask in (known, np.ones(PAIRS, dtype=bool))
    )
    assert some.record is not None
    assert all_pairs.record is not None
    there = some.true_state_there
    assert there is not None
    assert there.behind["macro_auprc"].value == 0.0
    assert there.overall == some.record.overall
    assert all_pairs.record.models == all_pairs.true_state.models
    assert some.record.models != some.true_state.models


def test_a_few_replayed_patients_get_figures_without_intervals() -> None:
    risks, scored = planted()
    ceiling = find_ceiling(
        truth_of(risks, np.arange(PAIRS) < 30), models_of(scored, {"noisy": noisy(risks, 1.5)})
    )
    assert ceiling.record is not None
    assert ceiling.record.patients == 15
    for figure in (
        ceiling.record.overall["macro_auprc"],
        ceiling.record.models["noisy"].behind["brier"],
        ceiling.record.models["noisy"].reached["macro_auroc"],
    ):
        assert figure.value is not None
        assert figure.low is None
    assert ceiling.true_state.overall["macro_auprc"].low is not None


def test_groups_show_whether_risks_are_right() -> None:
    rng = np.random.default_rng(3)
    risks = rng.beta(0.8, 3.0, size=(5_000, 4))
    labels = rng.random(risks.shape) < risks
    groups = groups_of_risk(risks, labels)
    assert [group.count for group in groups] == [400] * 50
    assert sum(group.is_within for group in groups) >= 44
    assert np.mean([group.z**2 for group in groups]) == pytest.approx(1.0, abs=0.6)
    assert [g.mean_probability for g in groups] == sorted(g.mean_probability for g in groups)
    assert np.mean([group.observed for group in groups]) == pytest.approx(labels.mean())
    wrong = groups_of_risk(np.sqrt(risks), labels)
    assert sum(group.is_within for group in wrong) < 10
    assert np.median([group.z for group in wrong]) < -3


def test_groups_of_few_or_certain_cells() -> None:
    assert groups_of_risk(np.zeros((0, 2)), np.zeros((0, 2))) == []
    certain = groups_of_risk([[0.0, 1.0, 0.0]], [[False, True, True]], groups=5)
    assert [group.count for group in certain] == [1, 1, 1]
    assert [group.z for group in certain] == [0.0, np.inf, 0.0]
    assert [group.is_within for group in certain] == [True, False, True]


def config_with(**settings: object) -> RunConfig:
    return build_config({"name": "x", "data": {"source": "simulated"}, **settings})


@pytest.mark.parametrize(
    ("settings", "stays_left_out", "says"),
    [
        ({}, 0, None),
        ({"labels": {"only_ccs": [108, 98]}}, 0, None),
        ({"cohort": {"max_history_visits": 3, "min_age_years": 18}}, 0, None),
        ({"cohort": {"exclude_admission_types": ["NEWBORN"]}}, 0, None),
        ({"cohort": {"exclude_admission_types": ["ELECTIVE"]}}, 5, "exclude_admission_types asks"),
        ({"cohort": {"admission_types": ["EMERGENCY"]}}, 5, "cohort.admission_types asks"),
        ({"cohort": {"label_window_days": 365}}, 0, "cohort.label_window_days asks for another"),
        ({"cohort": {"max_gap_days": 365}}, 0, "cohort.max_gap_days asks for another"),
        ({"cohort": {"min_gap_days": 1}}, 0, "cohort.min_gap_days asks for another"),
        ({"labels": {"phenotypes": [{"name": "Gout", "ccs": [54]}]}}, 0, "'Gout' is none of them"),
        (
            {"labels": {"phenotypes": [{"name": SHOCK, "icd9cm": ["785.5*"]}]}},
            0,
            f"'{SHOCK}' is defined otherwise",
        ),
    ],
)
def test_the_truth_holds_only_for_its_own_labels(
    settings: dict[str, object], stays_left_out: int, says: str | None
) -> None:
    reason = why_no_ceiling(config_with(**settings), stays_left_out=stays_left_out)
    assert (reason is None) == (says is None)
    assert (says or "") in (reason or "")


def written_truth(folder: Path, rows: list[dict[str, object]]) -> Path:
    names = [phenotype.name for phenotype in PHENOTYPES_25]
    table = pa.Table.from_pylist(rows, RISKS_SCHEMA)
    write_table(table, folder / RISKS, with_label_names(RISKS_SCHEMA, names))
    return folder / RISKS


def risk_row(visit: str, *, first: float, record: float | None) -> dict[str, object]:
    """A visit's truth: a label's risk is `first`, the next one's half of it, and so on."""
    halves = [first / 2**k for k in range(25)]
    return {
        "visit_id": visit,
        "subject_id": 1,
        "true_probabilities": halves,
        "record_probabilities": None if record is None else [record] * 25,
        "effective_particles": None if record is None else 32.0,
    }


def test_the_truth_is_joined_by_visit_and_label_name(tmp_path: Path) -> None:
    path = written_truth(
        tmp_path,
        [risk_row("a", first=0.5, record=0.25), risk_row("b", first=1.0, record=None)],
    )
    names = [PHENOTYPES_25[2].name, PHENOTYPES_25[0].name]
    truth = read_truth(path, pa.array(["b", "a", "b"]), names)
    np.testing.assert_allclose(truth.true_state, [[0.25, 1.0], [0.125, 0.5], [0.25, 1.0]])
    np.testing.assert_allclose(truth.record, [[np.nan] * 2, [0.25] * 2, [np.nan] * 2])
    np.testing.assert_allclose(truth.effective_particles, [np.nan, 32.0, np.nan])


def test_a_truth_without_the_visits_or_with_impossible_risks_is_refused(tmp_path: Path) -> None:
    names = [PHENOTYPES_25[0].name]
    path = written_truth(tmp_path, [risk_row("a", first=0.5, record=None)])
    with pytest.raises(CkdEhrError, match=r"risks.parquet: 2 of 3 visits .* are missing") as error:
        read_truth(path, pa.array(["a", "7340001", "7340002"]), names)
    assert "734000" not in str(error.value)
    with pytest.raises(CkdEhrError, match=r"risks.parquet: label 'Gout' is missing"):
        read_truth(path, pa.array(["a"]), ["Gout"])
    written_truth(tmp_path, [risk_row("a", first=1.5, record=None)])
    with pytest.raises(CkdEhrError, match="not every row holds 25 probabilities"):
        read_truth(path, pa.array(["a"]), names)


def test_data_are_simulated_if_their_hospital_says_so(tmp_path: Path) -> None:
    assert is_simulated(tmp_path, "simulated")
    assert not is_simulated(tmp_path, "omop")
    write_json(tmp_path / TRUTH / HOSPITAL, {"seed": 1})
    assert not is_simulated(tmp_path, "omop")
    write_json(tmp_path / TRUTH / HOSPITAL, {"simulated": True})
    assert is_simulated(tmp_path, "omop")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """An evaluated run on simulated patients that were read as OMOP."""
    patch = pytest.MonkeyPatch()
    synthetic_run.stub_models(patch)
    context = synthetic_run.write_run(
        tmp_path_factory.mktemp("run"),
        synthetic_run.config_of("omop"),
        held_out=80,
        truth=True,
    )
    write_evaluation(context)
    patch.undo()
    return context


@pytest.fixture(scope="module")
def metrics(context: StageContext) -> Metrics:
    return Metrics.model_validate(read_json(context.folder / "metrics.json"))


def test_metrics_hold_both_references_and_every_models_distance(metrics: Metrics) -> None:
    assert metrics.simulated
    assert metrics.no_ceiling is None
    ceiling = metrics.ceiling
    assert ceiling is not None
    assert ceiling.record is not None
    assert ceiling.true_state.pairs == 80
    assert ceiling.record.pairs == 40  # of pairs 110 to 189, those whose number ends below 50
    assert ceiling.record.effective_particles == 64
    for reference in (ceiling.true_state, ceiling.record):
        assert tuple(reference.models) == MODELS
    for model in MODELS:
        there, alone = ceiling.true_state.models[model], metrics.models[model]
        assert there.overall["macro_auprc"] == alone.overall["macro_auprc"]
        assert there.new_onset["macro_auroc"] == alone.new_onset["macro_auroc"]
    # Carry-forward knows all that the truth knows here; the synthetic teacher knows the outcome.
    carried = ceiling.true_state.models["carry_forward"]
    assert carried.reached["macro_auroc"].value == pytest.approx(1.0)
    assert ceiling.true_state.models["teacher"].behind["macro_auprc"].high < 0  # type: ignore[operator]
    assert ceiling.true_state.models["student_hard"].behind["macro_auprc"].low > 0  # type: ignore[operator]
    assert ceiling.true_state.check.groups == 50
    assert ceiling.true_state.check.within >= 45


def test_the_console_says_simulated_and_that_the_best_possible_is_no_model(
    metrics: Metrics,
) -> None:
    said = format_table(metrics.model_dump(mode="json"))
    lines = said.splitlines()
    assert lines[0].startswith("omop (simulated patients): 80 held_out pairs")
    rows = [line.split()[0] for line in lines[4:13]]
    assert rows[: len(MODELS)] == list(MODELS)
    assert set(rows[6]) == {"─"}
    assert lines[11].startswith("best from record*")
    assert lines[12].startswith("true risk**")
    assert "*  no model: the best that the record alone allows, estimated for 40" in said
    assert "** no model: the true risk of these simulated patients" in said
    assert "of the way from chance" in said
    assert max(map(len, lines)) <= 130


def test_metrics_of_another_version_are_refused_with_a_remedy(metrics: Metrics) -> None:
    older = metrics.model_dump(mode="json")
    del older["simulated"]
    with pytest.raises(CkdEhrError, match=r"another version \(simulated\); rerun the stage"):
        format_table(older)


def test_the_report_shows_the_best_possible_and_says_simulated_everywhere(
    metrics: Metrics, context: StageContext
) -> None:
    text = (context.folder / "report.html").read_text()
    assert "One prediction, explained" in text
    assert "How close to the best possible (simulated patients)" in text
    assert text.count("<svg") == 11
    ceiling = metrics.ceiling
    assert ceiling is not None
    behind = ceiling.true_state.models["student_hard"].behind["macro_auprc"]
    assert (
        f"<td>{behind.value:.3f}<small>[{behind.low:.3f}, {behind.high:.3f}]</small></td>" in text
    )
    for name in (RECORD, TRUE_STATE):
        assert f'<th scope="row"><b>{name}</b></th>' in text
    for pattern in (
        r"<title>.*?</title>",
        r"<h1>.*?</h1>",
        r"<caption>.*?</caption>",
        r"<figcaption>.*?</figcaption>",
        r"<footer>.*?</footer>",
    ):
        found = re.findall(pattern, text, re.DOTALL)
        assert found
        assert all("simulated patients" in part.lower() for part in found)
    prose = {"Before you believe it", "Limits", "To run it again"}
    headings = set(re.findall(r"<h2[^>]*>(.*?)</h2>", text)) - prose
    assert len(headings) == 11
    assert all("simulated" in heading for heading in headings)


def test_the_report_of_simulated_patients_without_a_ceiling_says_why(metrics: Metrics) -> None:
    other = metrics.model_copy(update={"ceiling": None, "no_ceiling": "the truth is of other"})
    text = render_report(other)
    assert "Not known here: the truth is of other." in text
    assert text.count("<svg") == 10
    shown = format_table(other.model_dump(mode="json"))
    assert "no best possible: the truth is of other" in shown
    assert "best from record" not in shown


def evaluated(root: Path, config: RunConfig, **settings: object) -> Metrics:
    context = synthetic_run.write_run(root, config, **settings)  # type: ignore[arg-type]
    write_evaluation(context)
    return Metrics.model_validate(read_json(context.folder / "metrics.json"))


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic_run.stub_models(monkeypatch)


@pytest.mark.usefixtures("stubbed")
def test_real_patients_have_no_ceiling_and_are_not_called_simulated(tmp_path: Path) -> None:
    metrics = evaluated(tmp_path, synthetic_run.config_of())
    assert (metrics.simulated, metrics.ceiling, metrics.no_ceiling) == (False, None, None)
    text = (tmp_path / "08_evaluation.partial/report.html").read_text()
    assert "simulated" not in text.lower()
    assert "best possible" not in text
    assert "simulated" not in format_table(metrics.model_dump(mode="json"))


@pytest.mark.usefixtures("stubbed")
def test_a_run_with_other_labels_says_why_it_has_no_ceiling(tmp_path: Path) -> None:
    config = synthetic_run.config_of("simulated")
    windowed = config.model_copy(
        update={"cohort": config.cohort.model_copy(update={"label_window_days": 30.0})}
    )
    metrics = evaluated(tmp_path / "window", windowed, truth=True)
    assert metrics.ceiling is None
    assert "cohort.label_window_days" in (metrics.no_ceiling or "")
    without = evaluated(tmp_path / "without", config)
    assert without.simulated
    assert without.no_ceiling == "the simulated data came without truth/risks.parquet"


@pytest.mark.usefixtures("stubbed")
@pytest.mark.parametrize("replayed", [0.0, 1.0])
def test_runs_with_no_or_every_record_replayed(tmp_path: Path, replayed: float) -> None:
    config = synthetic_run.config_of("simulated")
    metrics = evaluated(tmp_path, config, truth=True, replayed=replayed, held_out=25)
    ceiling = metrics.ceiling
    assert ceiling is not None
    assert (ceiling.record is None) == (replayed == 0)
    text = (tmp_path / "08_evaluation.partial/report.html").read_text()
    assert "Hollow" not in text
    assert (f"<b>{RECORD}</b>" in text) == (replayed == 1)
    assert ("best from record*" in format_table(metrics.model_dump(mode="json"))) == (replayed == 1)


@pytest.mark.usefixtures("stubbed")
@pytest.mark.parametrize("held_out", [1, 2])
def test_a_handful_of_pairs_gives_nulls(tmp_path: Path, held_out: int) -> None:
    config = synthetic_run.config_of("simulated")
    metrics = evaluated(tmp_path, config, truth=True, replayed=1.0, held_out=held_out)
    assert metrics.ceiling is not None
    text = (tmp_path / "08_evaluation.partial/report.html").read_text()
    assert "nan" not in text.lower().split("</style>")[1]
    assert "inf" not in re.sub(r"info\w*", "", format_table(metrics.model_dump(mode="json")))
    if held_out == 1:
        assert "No model can be compared" in leader_said(metrics.ceiling.true_state)


@pytest.mark.usefixtures("stubbed")
def test_a_truth_of_another_hospital_is_an_error(tmp_path: Path) -> None:
    context = synthetic_run.write_run(tmp_path, synthetic_run.config_of("simulated"), truth=True)
    path = context.inputs["events"] / TRUTH / RISKS
    table = read_table(path, RISKS_SCHEMA)
    write_table(table.slice(20), path, table.schema)
    with pytest.raises(CkdEhrError, match=r"risks.parquet: 10 of 40 visits"):
        write_evaluation(context)
    assert not (context.folder / "metrics.json").exists()


def test_the_drawing_holds_a_mark_for_each_figure(metrics: Metrics) -> None:
    assert metrics.ceiling is not None
    drawn = ceiling_figure(metrics.ceiling, MODELS, chance=0.2)
    for name in (RECORD, TRUE_STATE, "student, distilled"):
        assert f">{name}</text>" in drawn
    alone = ceiling_figure(metrics.ceiling.model_copy(update={"record": None}), MODELS, chance=None)
    marks = [len(re.findall(r"PathCollection", text)) for text in (drawn, alone)]
    assert marks == [2 * len(MODELS) + 3, len(MODELS) + 1]
