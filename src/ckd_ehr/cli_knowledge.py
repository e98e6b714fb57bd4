"""The commands of `ckd-ehr knowledge`: what a run knows, and where each piece is from.

In: a finished knowledge stage. Out: text in the terminal. Ignores: how it became known.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.contracts.records import EFFICACY, GUIDELINES, Reader
from ckd_ehr.pipeline import example_pair, finished_run

RUN = click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
DISEASE = click.option(
    "--disease",
    required=True,
    metavar="NAME",
    help="A disease of the run: its name, a part of it, or its CCS category.",
)
TOP = click.option("--top", type=click.IntRange(1), default=15, show_default=True, metavar="N",
                   help="So many, at most.")  # fmt: skip


@click.group(short_help="Show what a run knows of treatments and guidelines.")
def knowledge() -> None:
    """What a run knows of medicine besides its records, and where each piece is from.

    A narrative can be told three things: the categories of the last diagnoses, treatments after
    which the diseases are coded less often, and statements of guideline digests. Which reader is
    told which is set by knowledge.teacher and knowledge.student; docs/knowledge.md says how they
    come about.

    \b
    Example:
      ckd-ehr knowledge efficacy runs/demo --disease "Congestive heart failure"
    """


@knowledge.command(short_help="After which treatments a disease is coded less often.")
@RUN
@DISEASE
@TOP
@click.option("--fold", type=click.IntRange(0), metavar="N",
              help="As train pairs of this fold are told.  [default: as new patients]")  # fmt: skip
def efficacy(run: Path, disease: str, top: int, fold: int | None) -> None:
    """After which treatments a disease is coded less often, in the train patients of a run.

    An association in past records, not an effect.

    \b
    Example:
      ckd-ehr knowledge efficacy runs/demo --disease "Congestive heart failure"
    """
    from ckd_ehr.contracts.files import read_table
    from ckd_ehr.display import show, show_efficacy
    from ckd_ehr.knowledge.efficacy import ALL_TRAIN
    from ckd_ehr.knowledge.facts import EFFICACY_FILE

    directory = finished_run(run, "knowledge")
    label = _label(directory.config().labels.selected, disease)
    folds = directory.config().splits.folds
    if fold is not None and fold >= folds:
        raise CkdEhrError(f"--fold {fold}: this run has folds 0 to {folds - 1}")
    table = read_table(directory.require_intact("knowledge") / EFFICACY_FILE, EFFICACY)
    wanted = ALL_TRAIN if fold is None else fold
    rows = [row for row in table.to_pylist() if (row["label"], row["fold"]) == (label, wanted)]
    if not rows:
        least = directory.config().knowledge.efficacy.min_support
        raise CkdEhrError(
            f"{run}: no treatment of '{label}' could be compared: of the train patients with the "
            f"disease at least {least} must have had it and {least} not, and {least} must be rid "
            f"of the disease at the next visit and {least} not "
            f"(knowledge.efficacy.min_support={least}); it takes more patients"
        )
    show(show_efficacy(rows, label, top=top))


@knowledge.command(short_help="What guideline digests say for a disease.")
@RUN
@DISEASE
@TOP
def guidelines(run: Path, disease: str, top: int) -> None:
    """What guideline digests say for a disease, in the order for a patient who has it alone.

    \b
    Example:
      ckd-ehr knowledge guidelines runs/demo --disease "Chronic kidney disease"
    """
    from ckd_ehr.contracts.files import read_table
    from ckd_ehr.display import show, show_statements
    from ckd_ehr.knowledge.facts import GUIDELINES_FILE, cite_snippet, snippets_from_table
    from ckd_ehr.knowledge.guidelines import choose

    directory = finished_run(run, "knowledge")
    phenotypes = directory.config().labels.selected
    label = _label(phenotypes, disease)
    table = read_table(directory.require_intact("knowledge") / GUIDELINES_FILE, GUIDELINES)
    chosen = choose(
        snippets_from_table(table),
        present={
            ccs for phenotype in phenotypes if phenotype.name == label for ccs in phenotype.ccs
        },
        at_stake={ccs for phenotype in phenotypes for ccs in phenotype.ccs},
    )
    if not directory.config().knowledge.uses_guidelines:
        raise CkdEhrError(
            f"{run}: no reader of this run is told of guidelines; run it again with "
            "knowledge.teacher.guidelines=true"
        )
    if not chosen:
        raise CkdEhrError(f"{run}: no guideline digest of this run is for '{label}'")
    show(show_statements([(s.text, cite_snippet(s)) for s in chosen[:top]], of=len(chosen)))


@knowledge.command(short_help="One pair's narrative, each piece of knowledge with its source.")
@RUN
@click.option("--pair", metavar="ID", help="A pair_id of the run.  [default: a held_out one]")
@click.option("--reader", type=click.Choice(get_args(Reader)), default="teacher",
              show_default=True, help="Whose narrative.")  # fmt: skip
def narrative(run: Path, pair: str | None, reader: Reader) -> None:
    """What a reader is told of one pair, and the source of every piece of knowledge in it.

    Prints this patient's history. Pair ids are in RUN/02_cohort/pairs.parquet.

    \b
    Example:
      ckd-ehr knowledge narrative runs/demo --pair 0123456789abcdef
    """
    from ckd_ehr.display import show, show_sources
    from ckd_ehr.knowledge.sources import cite_narrative, pairs_told_knowledge

    directory = finished_run(run, "knowledge")
    if reason := directory.out_of_date("knowledge"):
        raise CkdEhrError(
            f"{run}: its narratives are older than its pairs or settings ({reason}), and would be "
            f"cited wrongly; finish it with: ckd-ehr run CONFIG --out {run}"
        )
    folders = {name: directory.require_intact(name) for name in ("cohort", "knowledge")}
    config, pair_id = directory.config(), (pair or "").strip()
    if not pair_id:
        pair_id = example_pair(directory, pairs_told_knowledge(folders["knowledge"], reader))
    show(show_sources(*cite_narrative(folders, config, pair_id=pair_id, reader=reader)))


def _label(phenotypes: Sequence[Phenotype], wanted: str) -> str:
    from ckd_ehr.display import find_label

    by_category = {str(p.ccs[0]): p.name for p in phenotypes if len(p.ccs) == 1}
    return by_category.get(wanted.strip()) or find_label(wanted, [p.name for p in phenotypes])
