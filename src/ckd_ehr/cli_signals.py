"""The commands of `ckd-ehr signals`: what the teacher and the committee wrote down.

In: a finished signals stage. Out: text in the terminal. Ignores: how it was made.
"""

import json
from pathlib import Path

import click

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json
from ckd_ehr.pipeline import finished_run

RUN = click.argument("run", type=click.Path(path_type=Path), metavar="RUN")


@click.group(short_help="Check the teacher's signals, show the committee.")
def signals() -> None:
    """What teacher and committee wrote down for the student: soft labels and attention.

    \b
    Examples:
      ckd-ehr signals verify runs/demo
      ckd-ehr signals committee runs/demo
      ckd-ehr signals score runs/demo
    """


@signals.command(short_help="Check that signals are whole, and of this text and teacher.")
@RUN
def verify(run: Path) -> None:
    """Check every pair's signals: hashes, keys of text and teacher, sums, finite numbers.

    Reads all shards; the exit status is 2 at the first thing that is wrong.

    \b
    Example:
      ckd-ehr signals verify runs/demo
    """
    from ckd_ehr.learning.signal_loader import verify_signals

    directory = finished_run(run, "signals")
    folder = directory.require_intact("signals")
    stages = {name: directory.require(name) for name in ("teacher", "knowledge")}
    facts = verify_signals(folder, **stages, config=directory.config())
    click.echo(
        f"{folder}: {facts.pairs:,} pairs in {facts.shards:,} shards, whole; "
        f"{facts.bytes_per_pair / 1000:.1f} kB a pair"
    )


@signals.command(short_help="Show the committee's members and weights.")
@RUN
def committee(run: Path) -> None:
    """Show who gives soft labels, with which weights, and how good each is on tuning.

    Weights are fitted on train pairs by models that had not seen the patient, one a member and
    label; what each member is worth on held-out patients is in the report.

    \b
    Example:
      ckd-ehr signals committee runs/demo
    """
    from ckd_ehr.display import show, show_committee

    directory = finished_run(run, "committee")
    path = directory.require("committee") / "committee.json"
    facts = read_json(path)
    try:
        show(show_committee(facts))
    except (KeyError, TypeError, AttributeError):
        raise CkdEhrError(f"{path}: damaged; rerun stage committee") from None


@signals.command(short_help="Score teacher, members and committee on held-out patients.")
@RUN
@click.option("--draws", type=click.IntRange(0), default=2000, show_default=True, metavar="N",
              help="Bootstrap draws over patients.")  # fmt: skip
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the scores and draws there; no patient is in them.")  # fmt: skip
def score(run: Path, draws: int, out: Path | None) -> None:
    """Score every source of soft labels on the held-out pairs, before any student is trained.

    Beside them stand carry-forward and logistic regression fitted on all train pairs. Whoever
    looks at held-out scores and then changes settings has tuned on them.

    \b
    Example:
      ckd-ehr signals score runs/demo --json scores.json
    """
    from ckd_ehr.contracts.files import write_json
    from ckd_ehr.display import show, show_sources_scored
    from ckd_ehr.metrics.sources import score_sources

    directory = finished_run(run, "committee", refuse_stale=True)
    inputs = {name: directory.require(name) for name in ("cohort", "teacher", "committee")}
    scores = score_sources(inputs, directory.config(), draws=draws)
    if out is not None:
        write_json(out, json.loads(scores.model_dump_json()))
    show(show_sources_scored(scores))
