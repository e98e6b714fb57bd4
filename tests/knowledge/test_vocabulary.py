"""The concept vocabulary: what enough train patients have, and nothing of others."""

import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from ckd_ehr.contracts.config import ConceptVocabularyConfig, build_config
from ckd_ehr.contracts.files import read_table, write_table
from ckd_ehr.contracts.fitted import FITTED, fitted_on, read_fitted, write_fitted
from ckd_ehr.contracts.records import NARRATIVES, PAIRS, VISITS
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.audit.fitted import fitted_findings
from ckd_ehr.knowledge.stage import write_knowledge
from ckd_ehr.knowledge.vocabulary import STUDENT_TOKENIZER, ConceptVocabulary, fit_vocabulary
from ckd_ehr.learning.concept_tokens import write_extended
from ckd_ehr.learning.weights import token_counter
from small_tables import pairs_table, visits_table
from tiny import tiny_bert

FAILURE, SHOCK, GOUT = "4280", "78551", "2749"
FAILURE_WORDS = "Congestive heart failure, unspecified"


def hospital() -> tuple[pa.Table, pa.Table]:
    """Six train patients, the first with two visits, and nine of tuning."""
    rows = [(f"r{n}", n, [FAILURE, *[SHOCK] * (n < 3)], ["aspirin"] * (n < 2)) for n in range(6)]
    rows.append(("s0", 0, [SHOCK], []))
    rows += [(f"u{n}", n + 6, [GOUT], ["colchicine"]) for n in range(9)]
    train = pairs_table([["r0", "s0"], *([f"r{n}"] for n in range(1, 6))])
    tuning = pairs_table([[f"u{n}"] for n in range(9)], split="tuning")
    return visits_table(rows), pa.concat_tables([train, tuning])


def fit(**limits: int) -> ConceptVocabulary:
    return fit_vocabulary(*hospital(), ConceptVocabularyConfig(**limits))


def test_concepts_of_enough_train_patients_are_in_it_most_frequent_first() -> None:
    assert fit(min_patients=6).concepts == (FAILURE_WORDS,)
    assert fit(min_patients=3).concepts == (FAILURE_WORDS, "Cardiogenic shock", "woman")
    assert fit(min_patients=2).concepts == (FAILURE_WORDS, "Cardiogenic shock", "woman", "aspirin")
    assert fit(min_patients=2, max_concepts=1).concepts == (FAILURE_WORDS,)


def test_a_patient_counts_once_however_many_visits_have_it() -> None:
    assert "Cardiogenic shock" not in fit(min_patients=4).concepts  # told at four visits


def test_a_concept_of_tuning_alone_is_not_in_it_however_many_have_it() -> None:
    everything = fit(min_patients=1).texts
    assert "aspirin" in everything
    assert not any("gout" in text.lower() or text == "colchicine" for text in everything)


def test_markers_are_what_opens_sentences_as_it_stands_in_the_text() -> None:
    headings = (
        "Kinds of disease:",
        "Associated with the disease no longer being coded:",
        "Guideline digests:",
    )
    assert fit(min_patients=2).markers == (*headings, "Visit 1:", "Drugs:")
    assert fit(min_patients=1).markers == (*headings, "Visit 1:", "Drugs:", "Visit 2:")


def test_its_share_is_that_of_all_that_train_histories_tell() -> None:
    assert fit(min_patients=1).share == 1
    # Besides: shock 4, aspirin 2, ages 6, women 3.
    assert fit(min_patients=6).share == pytest.approx(6 / (6 + 4 + 2 + 6 + 3))


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    vocabulary = {"enabled": True, "min_patients": 2}
    config = build_config(
        {
            "name": "t",
            "labels": {"phenotypes": [{"name": "Kidney failure", "ccs": [157]}]},
            "knowledge": {"student": {"max_tokens": 16}, "guidelines": {"pack": None}},
            "student": {"model": tiny_bert(tmp_path / "bert"), "concept_vocabulary": vocabulary},
        }
    )
    visits, pairs = hospital()
    write_table(visits, tmp_path / "cohort" / "visits.parquet", VISITS)
    write_table(pairs, tmp_path / "cohort" / "pairs.parquet", PAIRS)
    (tmp_path / "knowledge").mkdir()
    return StageContext(config, tmp_path / "knowledge", {"cohort": tmp_path / "cohort"}, print)


def test_the_stage_tells_the_student_within_a_budget_of_concepts(
    context: StageContext, capsys: pytest.CaptureFixture[str]
) -> None:
    model = context.config.student.model
    pieces = token_counter(model)
    write_knowledge(context, {"teacher": pieces, "student": pieces}, partial(write_extended, model))
    texts = read_table(context.folder / "student.parquet", NARRATIVES)["text"].to_pylist()
    tokenizer = Tokenizer.from_file(str(context.folder / STUDENT_TOKENIZER))
    tokens = [len(tokenizer.encode(text)) + 1 for text in texts]
    summary = json.loads((context.folder / "summary.json").read_text())
    facts = summary["student"]
    assert facts["max_tokens"] == max(tokens) <= 16
    assert facts["mean_tokens"] == round(sum(tokens) / len(tokens), 1)
    assert facts["mean_word_pieces"] == round(sum(map(pieces, texts)) / len(texts), 1)
    assert facts["mean_word_pieces"] > facts["mean_tokens"]
    assert summary["concept_vocabulary"] == {
        "markers": 5,
        "concepts": 4,
        "share_of_train_concepts": round(15 / 21, 4),
    }
    said = capsys.readouterr().out
    assert "student: 4 concepts are one token each, 71.4% of all" in said
    assert (
        f"{facts['mean_tokens']} tokens on average (word pieces: {facts['mean_word_pieces']})"
        in said
    )
    assert "mean_word_pieces" not in summary["teacher"]


def test_it_is_recorded_as_fitted_on_all_train_pairs_and_audited(context: StageContext) -> None:
    model = context.config.student.model
    pieces = token_counter(model)
    write_knowledge(context, {"teacher": pieces, "student": pieces}, partial(write_extended, model))
    path = context.folder / FITTED
    record = next(one for one in read_fitted(path) if one.name == "concept_vocabulary")
    assert (record.splits, record.folds, record.pairs) == (("train",), None, 6)
    paths = {"knowledge": path}
    assert fitted_findings(context.inputs["cohort"], paths) == []
    told = [one for one in read_fitted(path) if one != record]
    everything = hospital()[1]["pair_id"].to_pylist()
    write_fitted(path, [*told, fitted_on("concept_vocabulary", everything, split="train")])
    [found] = fitted_findings(context.inputs["cohort"], paths)
    assert "concept_vocabulary: 15 pairs of all splits" in found.problem
