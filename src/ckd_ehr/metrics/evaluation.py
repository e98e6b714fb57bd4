"""The last stage: every model's predictions on one table, their scores, and the report.

In: the cohort, the teacher's calibrated logits, the students' calibrated probabilities, and of
simulated patients their true risks. Out: predictions.parquet (tuning and held_out, all models),
metrics.json, report.html, report.md, figures/. Baselines are fitted here, on train; thresholds come
from tuning; scores from held_out. Nothing is scored unless the audit knows what everything was
fitted on.
Ignores: how the teacher and the students were trained.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

from ckd_ehr.contracts.config import RunConfig, as_shared
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table, write_json, write_table
from ckd_ehr.contracts.fitted import FITTED, FittedOn, fitted_on, write_fitted
from ckd_ehr.contracts.machine import commit, machine_facts, package_versions
from ckd_ehr.contracts.records import (
    NARRATIVES,
    PAIRS,
    PREDICTIONS,
    Split,
    with_label_names,
)
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.audit.findings import refuse
from ckd_ehr.data.audit.fitted import fitted_findings
from ckd_ehr.learning.baselines import carry_forward, code_features, logistic_regression
from ckd_ehr.learning.scoring import (
    DEFAULT_THRESHOLD,
    Bools,
    Floats,
    best_f1_thresholds,
    checked_probabilities,
    patient_draws,
)
from ckd_ehr.metrics.ceiling import ScoredModels, ceiling_of_run, is_simulated
from ckd_ehr.metrics.compare import ScoredPairs, difference, measure, summarise, with_holm
from ckd_ehr.metrics.costs import data_fingerprint, stage_costs, training_terms
from ckd_ehr.metrics.dataset_facts import read_dataset, read_flow
from ckd_ehr.metrics.explained import explained_example, faithfulness_of_run
from ckd_ehr.metrics.label_facts import label_facts, prevalences, treat_all
from ckd_ehr.metrics.labelled_pairs import (
    LabelledPairs,
    joined,
    read_labelled_pairs,
    read_soft_labels,
)
from ckd_ehr.metrics.members import committee_result
from ckd_ehr.metrics.report import write_report
from ckd_ehr.metrics.results import (
    FEWEST_PATIENTS,
    MODELS,
    Ceiling,
    CommitteeResult,
    Difference,
    Metrics,
    ModelResult,
    SplitCounts,
    Subgroups,
    number,
)
from ckd_ehr.metrics.significance import degenerate
from ckd_ehr.metrics.subgroups import groups_of, subgroup_results

SCORED = "held_out"
STUDENTS = ("student_hard", "student_distilled")
COMPARED = (
    ("student_distilled", "student_hard"),
    ("student_distilled", "logistic_regression"),
    ("committee", "teacher"),
)
# What is released, the same without a teacher, and whom it learnt from.
BY_SUBGROUP = ("student_distilled", "student_hard", "teacher")
DIFFERENCES = ("macro_auprc", "macro_auroc", "micro_auprc", "macro_f1", "brier", "ece")


def write_evaluation(context: StageContext) -> None:
    """Score all models and write predictions.parquet, metrics.json and the report."""
    everything = read_table(context.inputs["cohort"] / "pairs.parquet", PAIRS)
    pairs = read_labelled_pairs(context.inputs["cohort"], everything, context.config)
    if not pairs.rows(SCORED).any():
        raise CkdEhrError(
            f"{context.inputs['cohort']}/pairs.parquet: no labelled {SCORED} pair to score; "
            "raise splits.held_out or take another splits.seed"
        )
    probabilities, notes, fitted = _all_models(context, pairs)
    _write_predictions(context, pairs, probabilities)
    context.say(f"scoring {len(MODELS)} models on {pairs.rows(SCORED).sum()} {SCORED} pairs")
    scored, models, thresholds = _score_models(pairs, probabilities, notes, context.config)
    _audit_fitted(context, [*fitted, *thresholds])
    ceiling = _ceiling(context, pairs, scored)
    metrics = _collect(context, everything, pairs, scored, models=models, ceiling=ceiling)
    write_json(context.folder / "metrics.json", metrics.model_dump(mode="json"))
    example = explained_example(context, pairs, probabilities["student_distilled"], scored=SCORED)
    write_report(context.folder, metrics, example)


def _all_models(
    context: StageContext, pairs: LabelledPairs
) -> tuple[dict[str, Floats], dict[str, str], list[FittedOn]]:
    """Per model probabilities (pairs, labels), NaN for train pairs; how they came about; what
    was fitted here on what."""
    train, tuning = pairs.rows("train"), pairs.rows("tuning")
    features = code_features(pairs.visits, pairs.table, fit_on=train)
    regression = logistic_regression(features, pairs.labels, train=train, tuning=tuning)
    carried = carry_forward(
        pairs.present_at_last[train], pairs.labels[train], pairs.present_at_last
    )
    weights, choices = "logistic_regression/weights", ("penalty", "platt")
    fitted = _fitted(pairs, train, "train", "carry_forward", "code_features", weights)
    fitted += _fitted(pairs, tuning, "tuning", *(f"logistic_regression/{n}" for n in choices))
    notes = {
        "carry_forward": "share of train pairs with the label, given whether the last visit had it",
        "logistic_regression": f"codes, age, sex, number of visits; L2, C = {regression.penalty} "
        "by tuning macro-AUPRC; Platt on tuning",
        "student_hard": "BERT on hard labels alone; Platt on tuning" + _effort(context, "hard"),
        "student_distilled": "the same BERT, with the teacher's soft labels and concept "
        "attention; Platt on tuning" + _effort(context, "distilled"),
        "teacher": "mean log-odds of the fold teachers; calibrated on out-of-fold train pairs",
        "committee": "members stacked on out-of-fold train pairs: "
        + ", ".join(_committee_facts(context)["mean_weights"]),
    }
    probabilities = {"carry_forward": carried, "logistic_regression": regression.probabilities}
    path = context.inputs["student"] / "predictions.parquet"
    students = read_table(path, PREDICTIONS)
    for model in STUDENTS:
        chosen = students.filter(pc.equal(students["model"], model))
        probabilities[model] = joined(pairs, chosen, "probabilities", f"{path} ({model})")
    soft = read_soft_labels(context.inputs["committee"], pairs)
    probabilities |= {name: expit(soft[name]) for name in ("teacher", "committee")}
    # Scored as predictions.parquet holds them, so that anyone can compute the figures again.
    rounded = {model: probabilities[model].astype(np.float32).astype(float) for model in MODELS}
    return rounded, notes, fitted


def _committee_facts(context: StageContext) -> dict[str, Any]:
    facts = read_json(context.inputs["committee"] / "committee.json")["committee"]
    assert isinstance(facts, dict)
    return facts


def _committee(
    context: StageContext, pairs: LabelledPairs, scored: ScoredModels
) -> CommitteeResult:
    rows = pairs.rows(SCORED)
    soft = read_soft_labels(context.inputs["committee"], pairs)
    log_odds = {source: values[rows] for source, values in soft.items()}
    return committee_result(log_odds, _committee_facts(context), scored.pairs)


def _fitted(pairs: LabelledPairs, rows: Bools, split: Split, *names: str) -> list[FittedOn]:
    """The record of what was fitted on these rows."""
    ids = pairs.ids.filter(pa.array(rows)).to_pylist()
    return [fitted_on(name, ids, split=split) for name in names]


def _audit_fitted(context: StageContext, fitted: list[FittedOn]) -> None:
    """Write what was fitted here, and refuse to report on anything fitted on other pairs."""
    write_fitted(context.folder / FITTED, fitted)
    stages = ("teacher", "committee", "student")
    records = {stage: context.inputs[stage] / FITTED for stage in stages}
    records["evaluation"] = context.folder / FITTED
    refuse(fitted_findings(context.inputs["cohort"], records), "evaluation")


def _effort(context: StageContext, variant: str) -> str:
    """How much a student trained on: unlabelled pairs make the distilled one's epochs longer."""
    training = read_json(context.inputs["student"] / variant / "training.json")
    return f"; {training['pairs']} train pairs, {training['steps']} steps"


def _write_predictions(
    context: StageContext, pairs: LabelledPairs, probabilities: Mapping[str, Floats]
) -> None:
    rows = ~pairs.rows("train")
    base = pairs.table.filter(pa.array(rows))
    tables = []
    for model, values in probabilities.items():
        columns = {
            **{name: base[name] for name in ("pair_id", "subject_id", "prediction_time", "split")},
            "model": pa.array([model] * base.num_rows, pa.string()),
            "seed": pa.array([context.config.seed] * base.num_rows, pa.int32()),
            "probabilities": pa.array(list(values[rows]), pa.list_(pa.float32())),
            "labels": base["labels"],
        }
        tables.append(pa.table(columns))
    schema = with_label_names(PREDICTIONS, pairs.label_names)
    write_table(pa.concat_tables(tables), context.folder / "predictions.parquet", schema)


def _score_models(
    pairs: LabelledPairs,
    probabilities: Mapping[str, Floats],
    notes: Mapping[str, str],
    config: RunConfig,
) -> tuple[ScoredModels, dict[str, ModelResult], list[FittedOn]]:
    held_out, tuning = pairs.rows(SCORED), pairs.rows("tuning")
    subjects = pairs.table["subject_id"].to_numpy()[held_out]
    scored = ScoredPairs(
        labels=pairs.labels[held_out],
        previously_present=pairs.previously_present[held_out],
        weights=patient_draws(subjects, draws=_bootstrap_draws(pairs, config), seed=config.seed),
        bins=config.evaluation.calibration_bins,
    )
    measured, results = {}, {}
    for model, values in probabilities.items():
        checked_probabilities(values[held_out | tuning], origin=f"model {model}")
        thresholds = best_f1_thresholds(
            values[tuning], pairs.labels[tuning], fallback=DEFAULT_THRESHOLD
        )
        measured[model] = measure(values[held_out], thresholds, scored)
        results[model] = summarise(
            measured[model],
            values[held_out],
            thresholds=thresholds,
            pairs=scored,
            label_names=pairs.label_names,
            note=notes[model],
        )
    models = ScoredModels(
        pairs=scored,
        subject_ids=subjects,
        probabilities={model: values[held_out] for model, values in probabilities.items()},
        measured=measured,
    )
    return models, results, _fitted(pairs, tuning, "tuning", "thresholds")


def _differences(scored: ScoredModels) -> list[Difference]:
    return with_holm(
        [
            difference(scored.measured[a], scored.measured[b], model=a, minus=b, names=DIFFERENCES)
            for a, b in COMPARED
        ]
    )


def _subgroups(
    pairs: LabelledPairs, scored: ScoredModels, config: RunConfig
) -> dict[str, Subgroups]:
    table = pairs.table.filter(pa.array(pairs.rows(SCORED)))
    return subgroup_results(
        groups_of(pairs.visits, table),
        {model: scored.probabilities[model] for model in BY_SUBGROUP},
        scored.pairs,
        subject_ids=scored.subject_ids,
        min_cell=config.evaluation.min_cell,
    )


def _ceiling(
    context: StageContext, pairs: LabelledPairs, scored: ScoredModels
) -> tuple[Ceiling | None, str | None]:
    """How close the models come to the best possible, or why nobody knows."""
    return ceiling_of_run(
        context.inputs["events"],
        pairs.table["history"].filter(pa.array(pairs.rows(SCORED))),
        scored,
        context.config,
        flow=read_flow(context.inputs["cohort"]),
    )


def _bootstrap_draws(pairs: LabelledPairs, config: RunConfig) -> int:
    """The configured draws; none where too few patients are scored for an interval."""
    patients = len(pc.unique(pairs.table["subject_id"].filter(pa.array(pairs.rows(SCORED)))))
    return config.evaluation.bootstrap_draws if patients >= FEWEST_PATIENTS else 0


def _collect(
    context: StageContext,
    everything: pa.Table,
    pairs: LabelledPairs,
    scored: ScoredModels,
    *,
    models: dict[str, ModelResult],
    ceiling: tuple[Ceiling | None, str | None],
) -> Metrics:
    from ckd_ehr.learning.latency import measure_latency

    config, inputs = context.config, context.inputs
    names, labels = pairs.label_names, scored.pairs.labels
    facts = label_facts(pairs.labels[pairs.rows("train")], scored.pairs, names)
    known = pairs.previously_present[pairs.rows(SCORED)]
    return Metrics(
        name=config.name,
        data_set=config.data.source,
        simulated=is_simulated(inputs["events"], config.data.source),
        scored_split=SCORED,
        seed=config.seed,
        split_seed=config.splits.seed,
        bootstrap_draws=_bootstrap_draws(pairs, config),
        calibration_bins=config.evaluation.calibration_bins,
        counts={split: _count(everything, split) for split in ("train", "tuning", SCORED)},
        labels=facts,
        labels_scored=sum(fact.scored for fact in facts.values()),
        degenerate_draws=degenerate(labels, scored.pairs.weights).draws,
        prevalence=prevalences(scored.pairs),
        onset_cells={"new_onset": int((~known).sum()), "persistent": int(known.sum())},
        models=models,
        differences=_differences(scored),
        decisions=treat_all(labels, names),
        subgroups=_subgroups(pairs, scored, config),
        min_cell=config.evaluation.min_cell,
        committee=_committee(context, pairs, scored),
        ceiling=ceiling[0],
        no_ceiling=ceiling[1],
        faithfulness=faithfulness_of_run(
            inputs, config, pairs.table.filter(pa.array(pairs.rows(SCORED)))
        ),
        latency=measure_latency(context),
        training_terms=training_terms(inputs["student"]),
        stages=stage_costs(inputs),
        data_fingerprint=data_fingerprint(inputs["cohort"]),
        flow=read_flow(inputs["cohort"]),
        dataset=read_dataset(inputs["cohort"]),
        knowledge=read_json(inputs["knowledge"] / "summary.json"),
        narratives_cut={
            reader: _share_cut(inputs["knowledge"] / f"{reader}.parquet")
            for reader in ("teacher", "student")
        },
        config=as_shared(config),
        commit=commit(),
        machine=machine_facts(),
        packages=package_versions(),
    )


def _count(pairs: pa.Table, split: str) -> SplitCounts:
    rows = pairs.filter(pc.equal(pairs["split"], split))
    labelled = rows.filter(pc.is_valid(rows["labels"]))
    counted = rows if split == "train" else labelled
    return SplitCounts(
        patients=len(pc.unique(counted["subject_id"])),
        labelled_pairs=labelled.num_rows,
        unlabelled_pairs=rows.num_rows - labelled.num_rows,
    )


def _share_cut(narratives: Path) -> float | None:
    """The share of narratives from which the token budget cut at least one concept."""
    cut = read_table(narratives, NARRATIVES)["concepts_cut"].to_numpy()
    return number(float(np.mean(cut > 0))) if len(cut) else None
