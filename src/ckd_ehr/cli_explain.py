"""The command `ckd-ehr explain`: what one pair's risks rest on.

In: a finished run and a pair. Out: text in the terminal, the patient's history in it: it is shown
because a user has asked for this pair. Ignores: how evidence is computed.
"""

from collections.abc import Mapping
from pathlib import Path

import click

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.files import read_json
from ckd_ehr.contracts.runs import RunDirectory
from ckd_ehr.pipeline import example_pair, finished_run

STAGE_OF = {"student": "student", "teacher": "committee"}
RUN = click.argument("run", type=click.Path(path_type=Path), metavar="RUN")


@click.command(short_help="Show what one pair's risks rest on.")
@RUN
@click.option("--pair", metavar="ID", help="A pair_id of the run.  [default: its first held_out]")
@click.option("--model", type=click.Choice(["student", "teacher"]), default="student",
              show_default=True, help="The distilled student, or its teacher.")  # fmt: skip
@click.option("--label", metavar="NAME", help="One disease.  [default: the highest risks]")
@click.option("--risks", type=click.IntRange(1), default=3, show_default=True, metavar="N")
@click.option("--top", type=click.IntRange(1), default=8, show_default=True, metavar="N",
              help="Concepts shown for each risk.")  # fmt: skip
def explain(
    run: Path, *, pair: str | None, model: str, label: str | None, risks: int, top: int
) -> None:
    """Show what a model's risks for one pair rest on. Prints this patient's history.

    A pair is a history together with the next visit; pair ids are in RUN/02_cohort/pairs.parquet.

    \b
    Examples:
      ckd-ehr explain runs/demo --pair 0123456789abcdef
      ckd-ehr explain runs/demo --pair 0123456789abcdef --label pneumonia --top 20
      ckd-ehr explain runs/demo --pair 0123456789abcdef --model teacher
    """
    directory = finished_run(run, STAGE_OF[model], refuse_stale=True)
    pair_id = (pair or "").strip() or example_pair(directory)
    print_explanation(directory, pair_id, model=model, label=label, risks=risks, top=top)


def print_explanation(
    directory: RunDirectory,
    pair_id: str,
    *,
    model: str = "student",
    label: str | None = None,
    risks: int,
    top: int,
) -> None:
    """Show the explanation of one pair in the terminal."""
    from ckd_ehr.display import find_label, highest_risks, show, show_explanation
    from ckd_ehr.learning.explain import explain_by_teacher
    from ckd_ehr.learning.inference import explain_by_student

    config = directory.config()
    by_teacher = model == "teacher"
    names = ("cohort", "knowledge", *(("teacher", "committee") if by_teacher else ("student",)))
    inputs = {name: directory.require(name) for name in names}
    directory.require_intact("knowledge")
    known = [phenotype.name for phenotype in config.labels.selected]
    wanted = None if label is None else find_label(label, known)
    explanation = (explain_by_teacher if by_teacher else explain_by_student)(
        inputs, pair_id, config
    )
    facts = {**_facts_of(inputs, config, by_teacher=by_teacher), "run": config.name}
    facts["data_source"] = config.data.source
    chosen = [wanted] if wanted else highest_risks(explanation, risks)
    show(show_explanation(explanation, facts, chosen, top=top))


def _facts_of(
    inputs: Mapping[str, Path], config: RunConfig, *, by_teacher: bool
) -> dict[str, object]:
    """What the explained model was trained and calibrated on."""
    if by_teacher:
        history = read_json(inputs["teacher"] / "training.json")
        pairs = [fold["pairs"] for fold in history.values() if isinstance(fold, dict)]
        trained = f"{min(pairs):,}" if len(set(pairs)) == 1 else f"{min(pairs):,} to {max(pairs):,}"
        scaled = "train pairs it had not seen"
        if config.committee.calibration == "isotonic":
            scaled += " (Platt; the soft labels' curve, which has no parts, is not in it)"
        return {"train_pairs": trained, "calibrated_on": scaled}
    facts = read_json(inputs["student"] / "distilled" / "predictor.json")
    return {**facts, "calibrated_on": f"{facts.get('calibration_pairs', '?')} tuning pairs"}
