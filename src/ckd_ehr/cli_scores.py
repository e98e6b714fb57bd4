"""The commands on scored runs: compare two of them, hand out predictions.

In: finished evaluations. Out: text in the terminal, files where asked. Ignores: how anything is
scored.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckd_ehr.pipeline import finished_run

if TYPE_CHECKING:
    from ckd_ehr.metrics.run_comparison import EvaluatedRun

FOLDER = click.Path(path_type=Path)


@click.command(short_help="Compare two runs on the pairs both have held out.")
@click.argument("run_a", type=FOLDER, metavar="RUN_A")
@click.argument("run_b", type=FOLDER, metavar="RUN_B")
@click.option("--also", type=(FOLDER, FOLDER), multiple=True, metavar="RUN_A RUN_B",
              help="The same two with another training seed; may be given again.")  # fmt: skip
@click.option("--model", metavar="NAME", help="One model.  [default: all that both have]")
@click.option("--draws", type=click.IntRange(0), default=2000, show_default=True, metavar="N",
              help="Bootstrap draws over patients.")  # fmt: skip
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write all figures there, label by label; no patient is in them.")  # fmt: skip
def compare(
    run_a: Path,
    run_b: Path,
    *,
    also: tuple[tuple[Path, Path], ...],
    model: str | None,
    draws: int,
    out: Path | None,
) -> None:
    """Compare two runs: RUN_A less RUN_B, with intervals, on the pairs both have held out.

    Each draw takes the same patients for both runs. Labels that one run does not have are left
    out, and named. With --also, differences are means over training seeds and intervals hold the
    variance between seeds too. p-values are of macro-AUPRC, corrected for the models compared.

    \b
    Examples:
      ckd-ehr compare runs/with-knowledge runs/demo --model student_distilled
      ckd-ehr compare runs/new-1 runs/old-1 --also runs/new-2 runs/old-2 --json new-less-old.json
    """
    from ckd_ehr.contracts.files import write_json
    from ckd_ehr.display import show, show_comparison
    from ckd_ehr.metrics.run_comparison import compare_runs

    runs = [(_evaluated(a), _evaluated(b)) for a, b in [(run_a, run_b), *also]]
    comparison = compare_runs(runs, model=model, draws=draws)
    if out is not None:
        write_json(out, json.loads(comparison.model_dump_json()))
    show(show_comparison(comparison, names=(str(run_a), str(run_b))))


def _evaluated(run: Path) -> "EvaluatedRun":
    from ckd_ehr.metrics.run_comparison import EvaluatedRun

    directory = finished_run(run, "evaluation")
    folders = {name: directory.require(name) for name in ("evaluation", "cohort")}
    return EvaluatedRun.read(str(run), **folders)


@click.command(short_help="Write a run's predictions as MEDS labels and predictions.")
@click.argument("run", type=FOLDER, metavar="RUN")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="A new or empty folder.")  # fmt: skip
@click.option("--model", default="student_distilled", show_default=True, metavar="NAME",
              help="Whose predictions.")  # fmt: skip
def export_predictions(run: Path, out: Path, model: str) -> None:
    """Write a model's held-out predictions, a folder a disease. The files are patient data.

    Each folder has labels.parquet and predictions.parquet, in MEDS 0.4's schema of labels; the
    tool meds-evaluation reads the latter. A disease that no held-out pair has, or every one, is
    left out and named.

    \b
    Example:
      ckd-ehr export-predictions runs/demo --out predictions
    """
    from ckd_ehr.contracts.folders import work_tree_of
    from ckd_ehr.metrics.export import export_predictions as export

    evaluation = finished_run(run, "evaluation").require_intact("evaluation")
    if (tree := work_tree_of(out)) is not None:
        click.echo(f"WARNING: {out} is in the git work tree {tree}: never commit it", err=True)
    exported = export(evaluation / "predictions.parquet", out, model=model)
    click.echo(f"{len(exported.folders)} diseases, {exported.pairs:,} pairs each, by {model}")
    for name in exported.one_class:
        click.echo(f"left out, its pairs show one class only: {name}")
    click.echo(f"{out} holds patient data: a patient's id, time and diseases, one a line")
