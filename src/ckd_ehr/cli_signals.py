"""The commands of `ckd-ehr signals`: what the teacher and the committee wrote down.

In: a finished signals stage. Out: text in the terminal. Ignores: how it was made.
"""

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
    from ckd_ehr.knowledge.sources import read_narratives
    from ckd_ehr.learning.signal_store import SignalStore

    directory = finished_run(run, "signals")
    folder = directory.require_intact("signals")
    store = SignalStore(folder, teacher=directory.require("teacher"), config=directory.config())
    facts = store.verify(read_narratives(directory.require("knowledge"), "teacher"))
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

    directory = finished_run(run, "signals")
    path = directory.require("signals") / "committee.json"
    facts = read_json(path)
    try:
        show(show_committee(facts))
    except (KeyError, TypeError, AttributeError):
        raise CkdEhrError(f"{path}: damaged; rerun stage signals") from None
