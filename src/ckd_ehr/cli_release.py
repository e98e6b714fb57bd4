"""The commands on bundles: make one, check one.

In: finished runs, bundles. Out: text in the terminal, a folder. Ignores: how anything is exported.
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


def _answer(
    folder: Path, precision: "Precision", histories: "Sequence[Sequence[Visit]]"
) -> "Floats":
    import numpy as np

    from ckd_ehr.serving.engine import Predictor

    predictions = Predictor(folder, precision=precision).predict(histories)
    return np.array([prediction.probabilities for prediction in predictions])
