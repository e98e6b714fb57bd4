"""The commands that use what was trained: predict, make a bundle, check one.

In: finished runs, bundles, visits. Out: risks, folders, text in the terminal. Ignores: how anything
is computed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckd_ehr.pipeline import finished_run

if TYPE_CHECKING:
    from ckd_ehr.contracts.records import Visit
    from ckd_ehr.learning.scoring import Floats
    from ckd_ehr.release.manifest import Precision

FOLDER = click.Path(file_okay=False, path_type=Path)
STAGES_READ = ("cohort", "knowledge", "student", "evaluation")


@click.group(short_help="Make and check what a hospital installs.")
def bundle() -> None:
    """Make and check bundles: one folder each with all that it takes to predict, and no patient.

    A bundle needs `pip install ckd-ehr[serve]`, not PyTorch. The server and `ckd-ehr predict` take
    one; in Python: ckd_ehr.serving.engine.Predictor.load(FOLDER).predict(HISTORIES).

    \b
    Example:
      ckd-ehr bundle build runs/demo --out bundle
      ckd-ehr bundle verify bundle
    """


@bundle.command(short_help="Make a bundle of a run's student.")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--out", type=FOLDER, required=True, help="A new or empty folder.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp32", "int8"]),
              help="Graphs that must pass.  [default: fp32, and int8 if it does]")  # fmt: skip
def build(run: Path, out: Path, precisions: tuple["Precision", ...]) -> None:
    """Export the distilled student of RUN as ONNX graphs, and publish them if they are as good.

    Each graph is compared with the student in PyTorch on the run's tuning and held-out pairs,
    label by label. Where fp32 is further off than a release may be, or a graph that was asked for,
    nothing is written and the table of differences is shown; int8 is else left out.

    \b
    Examples:
      ckd-ehr bundle build runs/demo --out bundle
      ckd-ehr bundle build runs/demo --out bundle --precision fp32
    """
    from ckd_ehr.contracts.errors import CkdEhrError
    from ckd_ehr.release.bundle import build_bundle
    from ckd_ehr.release.gates import gate_table

    if precisions and "fp32" not in precisions:
        raise CkdEhrError("--precision: fp32 must be among them, to fall back on; add it")
    directory = finished_run(run, "evaluation", refuse_stale=True)
    gates = build_bundle(
        {name: directory.require_intact(name) for name in STAGES_READ},
        directory.config(),
        out,
        answer=_answer,
        precisions=precisions,
        say=click.echo,
    )
    for name, table in gates.items():
        click.echo(f"\n{name} against the student in PyTorch\n{gate_table(table)}")
    click.echo(f"\nBundle: {out}")


@bundle.command(short_help="Check a bundle on this machine.")
@click.argument("folder", type=FOLDER, metavar="BUNDLE")
def verify(folder: Path) -> None:
    """Check every byte of BUNDLE, and what each of its graphs says of invented patients.

    Exit status 2 where a file is not as it was published, or a graph says something else here than
    where it was published. A server falls back to fp32 where int8 alone does.

    \b
    Example:
      ckd-ehr bundle verify bundle
    """
    from ckd_ehr.serving.engine import Predictor

    predictor = Predictor(folder, say=lambda note: click.echo(f"note: {note}", err=True))
    click.echo(f"{folder}: every file as published, golden set reproduced by {predictor.precision}")


@click.command(short_help="Predict for new patients.")
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN_OR_BUNDLE")
@click.option("--visits", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="visits.jsonl, one patient a line, or .parquet, one visit a row.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where to write, .parquet for many.  [default: standard output]")  # fmt: skip
def predict(source: Path, visits: Path, out: Path | None) -> None:
    """Predict the diseases of each patient's next visit, by a run's student or a bundle.

    Past visits stand oldest first (docs/visits.schema.json); in Parquet each row is a visit with
    the patient's subject_id, and a patient's rows stand together. The output has the calibrated
    probability of every disease, given that there is a next visit. A bundle says besides which
    share of a history's codes was not in training, and tells no risk where none should be told.
    The file is checked as a whole before anything is predicted.

    A bundle writes Parquet in parts: memory stays small, and after an interruption the same command
    goes on where it was.

    \b
    Example:
      ckd-ehr predict runs/demo --visits docs/examples/visits.jsonl --out risks.jsonl
      ckd-ehr predict bundle --visits big.parquet --out risks.parquet
    """
    from ckd_ehr.contracts.errors import CkdEhrError
    from ckd_ehr.contracts.visit_files import PARQUET
    from ckd_ehr.predictions import bundle_lines, predict_lines, write_lines, write_risks
    from ckd_ehr.release.manifest import is_bundle

    of_bundle = is_bundle(source)
    if out is not None and out.suffix == PARQUET and of_bundle:
        write_risks(source, visits, out)
    elif PARQUET in {visits.suffix, out.suffix if out else ""}:
        raise CkdEhrError(
            "Parquet is read and written by a bundle, into --out FILE.parquet; make one with: "
            f"ckd-ehr bundle build RUN --out BUNDLE (given: {source})"
        )
    elif of_bundle:
        write_lines(bundle_lines(source, visits), out)
    else:
        write_lines(predict_lines(finished_run(source, "student"), visits), out)


def _answer(
    folder: Path, precision: "Precision", histories: "Sequence[Sequence[Visit]]"
) -> "Floats":
    import numpy as np

    from ckd_ehr.serving.engine import Predictor

    predictions = Predictor(folder, precision=precision).predict(histories)
    return np.array([prediction.probabilities for prediction in predictions])
