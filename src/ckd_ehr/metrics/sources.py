"""Soft labels scored before any student is trained: teacher, members and committee.

In: a run whose signals have finished. Out: scores on held_out with intervals beside those of
carry-forward and logistic regression on the same pairs, paired differences to the committee, and
the bootstrap draws, so that runs of other seeds and settings can be compared later. No patient is
in it. Ignores: the student.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.special import expit

from ckd_ehr.contracts.config import RunConfig, as_shared
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table
from ckd_ehr.contracts.fitted import FITTED
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.contracts.records import PAIRS
from ckd_ehr.data.audit.findings import refuse
from ckd_ehr.data.audit.fitted import fitted_findings
from ckd_ehr.learning.baselines import carry_forward, code_features, logistic_regression
from ckd_ehr.learning.scoring import Bools, Floats, best_f1_thresholds, patient_draws
from ckd_ehr.metrics.compare import Measured, ScoredPairs, difference, figures_of, measure
from ckd_ehr.metrics.dataset_facts import Record
from ckd_ehr.metrics.evaluation import SCORED
from ckd_ehr.metrics.labelled_pairs import LabelledPairs, read_labelled_pairs, read_soft_labels
from ckd_ehr.metrics.members import COMMITTEE, SCORES
from ckd_ehr.metrics.results import FEWEST_PATIENTS, Figure

DRAWN = ("macro_auprc", "macro_auroc")


class SourceScores(Record):
    """What `ckd-ehr signals score --json` writes."""

    name: str
    data_set: str
    commit: str | None
    machine: dict[str, object]
    seed: int
    split_seed: int
    draw_seed: int
    bootstrap_draws: int
    pairs: dict[str, int]
    labels: int
    teacher: dict[str, object]
    mean_weights: dict[str, float]
    sources: dict[str, dict[str, Figure]]
    committee_less: dict[str, dict[str, Figure]]
    draws: dict[str, dict[str, list[float | None]]]


def score_sources(
    inputs: Mapping[str, Path], config: RunConfig, *, draws: int, draw_seed: int = 0
) -> SourceScores:
    """Score every source of soft labels of a run on its held-out pairs.

    Args:
        inputs: folders of the stages `cohort`, `teacher` and `committee`.
        config: of the run.
        draws: bootstrap draws over patients; none are made of fewer than 20 patients.
        draw_seed: equal for all runs whose draws are to be paired.

    Raises:
        CkdEhrError: there is nothing to score, or something was fitted on pairs it must not see.
    """
    records = {stage: inputs[stage] / FITTED for stage in ("teacher", "committee")}
    refuse(fitted_findings(inputs["cohort"], records), "signals score")
    table = read_table(inputs["cohort"] / "pairs.parquet", PAIRS)
    pairs = read_labelled_pairs(inputs["cohort"], table, config)
    held_out, tuning = pairs.rows(SCORED), pairs.rows("tuning")
    if not held_out.any():
        raise CkdEhrError(f"{inputs['cohort']}/pairs.parquet: no labelled {SCORED} pair to score")
    subjects = pairs.table["subject_id"].to_numpy()[held_out]
    draws = draws if len(np.unique(subjects)) >= FEWEST_PATIENTS else 0
    scored = ScoredPairs(
        labels=pairs.labels[held_out],
        previously_present=pairs.previously_present[held_out],
        weights=patient_draws(subjects, draws=draws, seed=draw_seed),
        bins=config.evaluation.calibration_bins,
    )
    measured = {
        source: _measure(values, pairs, scored, tuning=tuning, held_out=held_out)
        for source, values in _probabilities(inputs, pairs).items()
    }
    facts = read_json(inputs["committee"] / "committee.json")[COMMITTEE]
    assert isinstance(facts, dict)
    return SourceScores(
        name=config.name,
        data_set=config.data.source,
        commit=commit(),
        machine=machine_facts(),
        seed=config.seed,
        split_seed=config.splits.seed,
        draw_seed=draw_seed,
        bootstrap_draws=draws,
        pairs={name: int(pairs.rows(name).sum()) for name in ("train", "tuning", SCORED)},
        labels=len(pairs.label_names),
        teacher=_teacher_facts(inputs, config),
        mean_weights=facts["mean_weights"],
        sources={name: _figures(one) for name, one in measured.items()},
        committee_less={
            name: difference(
                measured[COMMITTEE], one, model=COMMITTEE, minus=name, names=SCORES
            ).figures
            for name, one in measured.items()
            if name != COMMITTEE
        },
        draws={name: _draws(one) for name, one in measured.items()},
    )


def _probabilities(inputs: Mapping[str, Path], pairs: LabelledPairs) -> dict[str, Floats]:
    """Per source (pairs, labels); the code members stand beside baselines of all of train."""
    train, tuning = pairs.rows("train"), pairs.rows("tuning")
    features = code_features(pairs.visits, pairs.table, fit_on=train)
    regression = logistic_regression(features, pairs.labels, train=train, tuning=tuning)
    present = pairs.present_at_last
    soft = read_soft_labels(inputs["committee"], pairs)
    return {
        "baseline: carry_forward": carry_forward(present[train], pairs.labels[train], present),
        "baseline: logistic_regression": regression.probabilities,
        **{source: expit(values) for source, values in soft.items()},
    }


def _measure(
    values: Floats, pairs: LabelledPairs, scored: ScoredPairs, *, tuning: Bools, held_out: Bools
) -> Measured:
    thresholds = best_f1_thresholds(values[tuning], pairs.labels[tuning], fallback=0.5)
    return measure(values[held_out], thresholds, scored)


def _figures(one: Measured) -> dict[str, Figure]:
    figures = figures_of(one.point.overall, one.resampled.overall)
    return {name: figures[name] for name in (*SCORES, "macro_f1")}


def _draws(one: Measured) -> dict[str, list[float | None]]:
    return {
        name: [round(v, 5) if np.isfinite(v) else None for v in one.resampled.overall[name]]
        for name in DRAWN
    }


def _teacher_facts(inputs: Mapping[str, Path], config: RunConfig) -> dict[str, object]:
    """How the teacher was trained: its settings, and each fold's pairs, steps and seconds."""
    settings = as_shared(config)["teacher"]
    history = read_json(inputs["teacher"] / "training.json")
    tokens = config.knowledge.teacher.model_dump(mode="json")
    return {"settings": settings, "reads": tokens, "training": history}
