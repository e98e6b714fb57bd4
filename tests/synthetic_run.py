"""A finished run up to evaluation, written by hand: a cohort with known answers, no model."""

import datetime
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit

from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.files import write_json, write_table
from ckd_ehr.contracts.fitted import FITTED, fitted_on, write_fitted
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import (
    NARRATIVES,
    PAIRS,
    PREDICTIONS,
    SOFT_LABELS,
    VISITS,
    ConceptEvidence,
    Explanation,
    LabelExplanation,
    Narrative,
    Span,
    pair_id_of,
    with_label_names,
)
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.contracts.truth import HOSPITAL, RISKS, RISKS_SCHEMA, TRUTH
from ckd_ehr.data.audit.fitted import allowed_pairs
from ckd_ehr.data.description import describe_cohort
from ckd_ehr.data.pairs import labels_of_codes
from ckd_ehr.data.phenotypes import coverage_report, match_codes

LABELS = ("Congestive heart failure; nonhypertensive", "Essential hypertension", "Shock")
CODES = ("4280", "4019", "78552")
LATENCY = {
    "teacher": {"p50_ms": 120.0, "p95_ms": 150.0, "pairs": 8.0, "tokens_mean": 110.0},
    "student_distilled": {"p50_ms": 10.0, "p95_ms": 12.5, "pairs": 8.0, "tokens_mean": 130.0},
}
# Soft labels by source: 1 always knows, -1 is always wrong, 0 knows nothing.
SOURCES = {
    "logistic_regression": -1.0,
    "teacher": 1.0,
    "site": 0.0,
    "committee": 0.9,
    "committee_without_logistic_regression": 1.0,
    "committee_without_teacher": -1.0,
    "committee_without_site": 0.9,
}
TERMS = {
    name: [
        {"step": step, "value": 0.5, "weight": 1.0 - step / 50, "gradient": gradient}
        for step in (0, 25)
    ]
    for name, gradient in (("hard", 0.4), ("soft", 0.3), ("concept", 0.1))
}
WEIGHTS = {"teacher": 0.8, "logistic_regression": 0.0, "site": 0.1}
FIRST_SUBJECT = 7_340_000
HIDDEN_TEXT = "a narrative that must not be shown"


def config_of(source: str = "mimic3", **evaluation: int) -> RunConfig:
    """Three phenotypes, few draws."""
    return build_config(
        {
            "name": "synthetic",
            "data": {"source": source},
            "labels": {"only_ccs": [108, 98, 249]},
            "evaluation": {"bootstrap_draws": 40, **evaluation},
        }
    )


def write_run(
    root: Path,
    config: RunConfig,
    *,
    held_out: int = 40,
    seed: int = 0,
    truth: bool = False,
    replayed: float = 0.5,
) -> StageContext:
    """Two visits a patient: what the second one has follows the first, except shock, which is rare.

    Shock occurs in train and tuning only, so no held-out pair has it. With `truth` the patients are
    simulated ones, and that share of them (`replayed`) has an estimate from the record.
    """
    rng = np.random.default_rng(seed)
    splits = ["train"] * 80 + ["tuning"] * 30 + ["held_out"] * held_out
    visits, pairs, risks = [], [], []
    for number, split in enumerate(splits):
        subject = FIRST_SUBJECT + number
        before = rng.random(3) < [0.5, 0.4, 0.1]
        after = np.where(rng.random(3) < 0.8, before, rng.random(3) < 0.4)
        after[2] &= split != "held_out"
        known = number % 100 < 100 * replayed
        chances = 0.8 * np.array([before, after]) + 0.2 * 0.4
        chances[:, 2] *= split != "held_out"
        risks += [_risk(subject, n, chance, known) for n, chance in enumerate(chances)]
        visits += [_visit(subject, 0, before), _visit(subject, 1, after)]
        pairs.append(_pair(subject, 0, split, after.tolist()))
        if split == "train":
            pairs.append(_pair(subject, 1, split, None))
    labels = np.array([pair["labels"] for pair in pairs if pair["split"] != "train"])
    folders = {name: root / name for name in ("events", "cohort", "knowledge")}
    folders |= {name: root / name for name in ("teacher", "committee")}
    folders["student"] = root / "student"
    write_table(
        pa.Table.from_pylist(visits, VISITS),
        folders["cohort"] / "visits.parquet",
        with_label_names(VISITS, LABELS),
    )
    write_table(
        pa.Table.from_pylist(pairs, PAIRS),
        folders["cohort"] / "pairs.parquet",
        with_label_names(PAIRS, LABELS),
    )
    if truth:
        write_truth(folders["events"], risks)
    counts = {"visits_read": len(visits) + 3, "visits_admitted_after_death": 3}
    counts |= {"visits_discharged_before_admission": 0, "visits_kept": len(visits)}
    rows = {"ADMISSIONS.csv": {"read": len(visits) + 5, "used": len(visits) + 3}}
    rows["ADMISSIONS.csv"]["left_out"] = {"without a patient": 2, "equal to another": 0}
    flow = {"counts": counts, "splits": {}, "rows": rows}
    write_json(folders["cohort"] / "flow.json", flow)
    _describe(folders["cohort"], visits, config)
    _write_knowledge(folders["knowledge"], pairs)
    scored = [pair for pair in pairs if pair["split"] != "train"]
    _write_models(folders, scored, labels, rng)
    _write_fitted(folders, pairs)
    folder = root / "08_evaluation.partial"
    folder.mkdir(parents=True)
    return StageContext(config=config, folder=folder, inputs=folders, say=lambda _: None)


def _risk(subject: int, number: int, chances: np.ndarray, known: bool) -> dict[str, Any]:
    """A row of the truth: the three labels' chances at the next visit, none for the others."""
    risks = dict.fromkeys((phenotype.name for phenotype in PHENOTYPES_25), 0.0)
    risks |= dict(zip(LABELS, chances.tolist(), strict=True))
    return {
        "visit_id": f"v{subject}-{number}",
        "subject_id": subject,
        "true_probabilities": list(risks.values()),
        "record_probabilities": list(risks.values()) if known else None,
        "effective_particles": 64.0 if known else None,
    }


def write_truth(events: Path, risks: list[dict[str, Any]]) -> None:
    """The folder `truth` of a simulated hospital."""
    names = [phenotype.name for phenotype in PHENOTYPES_25]
    write_table(
        pa.Table.from_pylist(risks[::-1], RISKS_SCHEMA),
        events / TRUTH / RISKS,
        with_label_names(RISKS_SCHEMA, names),
    )
    write_json(events / TRUTH / HOSPITAL, {"simulated": True, "seed": 1})


def _describe(cohort: Path, visits: list[dict[str, Any]], config: RunConfig) -> None:
    """Write dataset.json and coverage.json as the stage `cohort` does."""
    codes = Counter(
        (item["system"], item["code"]) for visit in visits for item in visit["diagnoses"]
    )
    matches = match_codes(codes, config.labels.selected)
    facts = describe_cohort(
        cohort, labels_of_codes(matches), label_names=LABELS, synthetic_times=False
    )
    write_json(cohort / "dataset.json", facts)
    write_json(cohort / "coverage.json", coverage_report(matches, LABELS))


def _write_fitted(folders: dict[str, Path], pairs: list[dict[str, Any]]) -> None:
    """Say of each model that it was fitted on the pairs it may be fitted on."""
    for stage in ("teacher", "committee", "student"):
        records = []
        for name, allowed in allowed_pairs(stage, [0, 1], WEIGHTS).items():
            ids = [
                pair["pair_id"]
                for pair in pairs
                if pair["split"] == allowed.split
                and pair["labels"] is not None
                and (allowed.folds is None or pair["fold"] in allowed.folds)
            ]
            records.append(fitted_on(name, ids, split=allowed.split, folds=allowed.folds))
        write_fitted(folders[stage] / FITTED, records)


def _visit(subject: int, number: int, present: np.ndarray) -> dict[str, object]:
    day = datetime.datetime(2150 + number, 1, 1)
    codes = [code for code, on in zip(CODES, present, strict=True) if on] + ["V1000"]
    return {
        "visit_id": f"v{subject}-{number}",
        "subject_id": subject,
        "admit_time": day,
        "discharge_time": day + datetime.timedelta(days=3),
        "age_years": 60.0,
        "sex": "F",
        "ethnicity": None,
        "admission_type": None,
        "died": False,
        "diagnoses": [{"system": "ICD9CM", "code": code, "title": None} for code in codes],
        "medications": [],
        "procedures": [],
    }


def _pair(subject: int, number: int, split: str, labels: list[bool] | None) -> dict[str, object]:
    history = [f"v{subject}-{n}" for n in range(number + 1)]
    return {
        "pair_id": pair_id_of(subject, history[-1]),
        "subject_id": subject,
        "history": history,
        "prediction_time": datetime.datetime(2150 + number, 1, 4),
        "next_visit_id": None if labels is None else f"v{subject}-{number + 1}",
        "gap_days": None,
        "labels": labels,
        "split": split,
        "fold": subject % 2 if split == "train" else -1,
    }


def hidden_spans() -> list[Span]:
    """A concept for each word of the hidden text."""
    starts = [0, *(n + 1 for n, letter in enumerate(HIDDEN_TEXT) if letter == " ")]
    words = HIDDEN_TEXT.split()
    return [
        Span(start, start + len(word), f"0/{word}", "diagnosis", "S", word, 0)
        for start, word in zip(starts, words, strict=True)
    ]


class StubStudent:
    """Its risk rises with the letters of the concepts that are left; it says so, or the reverse."""

    faithful = True

    def __init__(self, folder: Path, *, device: str) -> None:
        pass

    def risks(self, narratives: list[Narrative]) -> np.ndarray:
        letters = [sum(span.end - span.start for span in one.spans) for one in narratives]
        return expit(np.outer(letters, [0.1, 0.05, 0.01]))

    def explain(self, pair_id: str, narrative: Narrative) -> Explanation:
        sign = 1 if self.faithful else -1
        concepts = tuple(
            ConceptEvidence(span.concept_id, "", "diagnosis", 0, sign * (span.end - span.start))
            for span in narrative.spans
        )
        labels = tuple(LabelExplanation(name, 0.5, 0.3, 0.0, 1.0, concepts) for name in LABELS)
        return Explanation(pair_id, "student", narrative, labels)


def _write_knowledge(folder: Path, pairs: list[dict[str, object]]) -> None:
    for reader in ("teacher", "student"):
        rows = [
            {
                "pair_id": pair["pair_id"],
                "reader": reader,
                "text": HIDDEN_TEXT,
                "spans": [span._asdict() for span in hidden_spans()],
                "concepts_cut": 1 if reader == "teacher" and number % 4 == 0 else 0,
                "knowledge_cut": 0,
            }
            for number, pair in enumerate(pairs)
        ]
        table = pa.Table.from_pylist(rows, NARRATIVES)
        write_table(table, folder / f"{reader}.parquet", NARRATIVES)
    write_json(folder / "summary.json", {"titles_by_origin": {"ccs_table": 4}})


def _write_models(
    folders: dict[str, Path],
    pairs: list[dict[str, object]],
    labels: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Hard student: noise. Distilled student: good. Teacher: better. Rows in shuffled order."""
    rows = []
    noise = {"student_hard": 3.0, "student_distilled": 0.8}
    for model, scale in noise.items():
        scores = 1 / (1 + np.exp(-(2.0 * labels - 1 + rng.normal(size=labels.shape) * scale)))
        keys = ("pair_id", "subject_id", "prediction_time", "split", "labels")
        for pair, values in zip(pairs, scores, strict=True):
            row = {key: pair[key] for key in keys}
            rows.append({**row, "model": model, "seed": 0, "probabilities": values.tolist()})
    order = rng.permutation(len(rows))
    write_table(
        pa.Table.from_pylist([rows[n] for n in order], PREDICTIONS),
        folders["student"] / "predictions.parquet",
        with_label_names(PREDICTIONS, LABELS),
    )
    weights = dict.fromkeys(LABELS, WEIGHTS)
    facts = {"members": list(WEIGHTS), "mean_weights": WEIGHTS, "weights": weights}
    write_json(folders["committee"] / "committee.json", {"committee": facts})
    for variant in ("hard", "distilled"):
        training = {"pairs": 40, "steps": 9, "terms": TERMS if variant == "distilled" else {}}
        write_json(folders["student"] / variant / "training.json", training)
    soft = [
        {
            "pair_id": pair["pair_id"],
            "source": source,
            "logits": (logit(0.9) * (2.0 * row - 1) * sign).tolist(),
            "spread": None,
            "fold": -1,
        }
        for source, sign in SOURCES.items()
        for pair, row in zip(pairs, labels, strict=True)
    ]
    write_table(
        pa.Table.from_pylist(soft[::-1], SOFT_LABELS),
        folders["committee"] / "soft_labels.parquet",
        with_label_names(SOFT_LABELS, LABELS),
    )


def example_of(pair_id: str = "0123456789abcdef") -> Explanation:
    """An explanation with evidence for and against."""
    text = "Woman, 60 years. Visit 1: Heart <failure>; Diabetes; Gout."
    titles = ("Heart <failure>", "Diabetes", "Gout")
    spans = tuple(
        Span(text.index(title), text.index(title) + len(title), f"c{n}", "diagnosis", "S", title, 0)
        for n, title in enumerate(titles)
    )
    concepts = tuple(
        ConceptEvidence(f"c{n}", title, "diagnosis", 0, value)
        for n, (title, value) in enumerate(zip(titles, (1.5, -0.75, 0.0), strict=True))
    )
    risks = (0.6, 0.2, 0.1)
    labels = tuple(
        LabelExplanation(name, risk, 0.3, -0.5, 0.1 if n == 0 else 5.0, concepts)
        for n, (name, risk) in enumerate(zip(LABELS, risks, strict=True))
    )
    return Explanation(pair_id, "student_distilled", Narrative(text, spans, 0), labels)


def stub_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for what needs torch; returns the list of pairs that were asked to be explained."""
    asked: list[str] = []

    def explain_by_student(inputs: object, pair_id: str, config: object) -> Explanation:
        asked.append(pair_id)
        return example_of(pair_id)

    latency, inference = ModuleType("latency"), ModuleType("inference")
    latency.measure_latency = lambda context: LATENCY  # type: ignore[attr-defined]
    inference.explain_by_student = explain_by_student  # type: ignore[attr-defined]
    inference.StudentPredictor = StubStudent  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "ckd_ehr.learning.latency", latency)
    monkeypatch.setitem(__import__("sys").modules, "ckd_ehr.learning.inference", inference)
    return asked
