"""The command line: arguments in, one run of the pipeline or one answer out.

Every command is a thin edge over a room's functions, which it imports when it is called, so that
`--help` costs nothing. Whatever a user can mend is one message on stderr and exit status 2.
Ignores: how anything is computed.
"""

import os
import secrets
import sys
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import click

from ckd_ehr.cli_explain import explain, print_explanation
from ckd_ehr.cli_knowledge import knowledge
from ckd_ehr.cli_release import bundle, predict
from ckd_ehr.cli_scores import compare, export_predictions
from ckd_ehr.cli_signals import signals
from ckd_ehr.contracts.config import RunConfig, load_config
from ckd_ehr.contracts.files import read_json
from ckd_ehr.contracts.processes import Gang, is_leader, world_size
from ckd_ehr.contracts.runs import RunDirectory
from ckd_ehr.pipeline import STAGES, example_pair, finished_run, run_directory
from ckd_ehr.trouble import exit_status_of

if TYPE_CHECKING:
    from ckd_ehr.knowledge.instructions import FactsOf

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
STAGE_HELP = "\b\nStages, in order; each is skipped when nothing it depends on has changed:\n" + (
    "\n".join(f"  {stage.name:<11} {stage.summary}" for stage in STAGES)
)
START = """\b
Start with:
  ckd-ehr doctor          is this machine ready, and how long will the demo take?
  ckd-ehr demo            the whole path on simulated patients
  ckd-ehr COMMAND --help  what a command does, with examples"""
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
RUN = click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
STAGE_NAME = click.Choice([stage.name for stage in STAGES])
NEW_FOLDER = click.Path(file_okay=False, path_type=Path)
Layout = Literal["mimic3", "omop", "meds"]
LabelStyle = Literal["ours", "paper"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"{STAGE_HELP}\n\n{START}",
)
@click.version_option(package_name="ckd-ehr", prog_name="ckd-ehr")
def commands() -> None:
    """Predict the diseases of a patient's next hospital visit: distil a large language model,
    taught on visit records, into a small, calibrated model that shows what its risks rest on.
    """


@commands.command(short_help="Run the whole path on simulated patients.")
@OVERRIDES
@click.option("--out", type=NEW_FOLDER, default=Path("runs/demo"), show_default=True)
def demo(overrides: tuple[str, ...], out: Path) -> None:
    """The whole path on a simulated hospital: tables in; teacher, student and report out.

    Run it again and finished stages are skipped; change a setting and only what depends on it
    runs again. After an interruption the same command resumes.

    \b
    Examples:
      ckd-ehr demo
      ckd-ehr demo student.epochs=2
      ckd-ehr demo data.simulator.patients=2000 --out runs/larger
    """
    shipped = resources.files("ckd_ehr") / "configs" / "demo.yaml"
    with resources.as_file(shipped) as path:
        config = load_config(path, overrides)
    directory = _execute(config, out)
    _show_report(directory)
    if config.data.source == "simulated":
        click.echo("\nOne held-out patient, explained:\n")
        print_explanation(directory, example_pair(directory), label=None, risks=1, top=5)
    click.echo(f"\nReport: {_report_file(directory)}")


@commands.command(short_help="Run the pipeline on your records.", epilog=STAGE_HELP)
@click.argument("config", type=click.Path(dir_okay=False, path_type=Path))
@OVERRIDES
@click.option(
    "--out", type=NEW_FOLDER, help="The run's folder.  [default: runs/NAME of the config]"
)
@click.option("--from", "first", type=STAGE_NAME, metavar="STAGE",
              help="Start here; keep what comes before, its sources unseen.")  # fmt: skip
@click.option("--until", type=STAGE_NAME, metavar="STAGE", help="Stop after this stage.")
def run(
    config: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    first: str | None,
    until: str | None,
) -> None:
    """Bring a run up to date: every stage of CONFIG, skipping those that are current.

    Any setting of the YAML file can be overridden as KEY=VALUE; docs/config.md lists them all.

    \b
    Examples:
      ckd-ehr run configs/mimic3.yaml data.root=PATH
      ckd-ehr run configs/uci-diabetes.yaml data.root=PATH cohort.sample.train=1000
      ckd-ehr run configs/mimic3.yaml data.root=PATH --until cohort
      ckd-ehr run configs/mimic3.yaml data.root=PATH --from knowledge
    """
    settings = load_config(config, overrides)
    directory = _execute(settings, out or Path("runs") / settings.name, first=first, until=until)
    if until in (None, STAGES[-1].name):
        _show_report(directory)
        click.echo(f"\nReport: {_report_file(directory)}")
    else:
        click.echo(f"Stopped after stage '{until}': {directory.folder(str(until))}")


@commands.command(short_help="Show a run's models side by side.")
@RUN
@click.option("--open", "open_it", is_flag=True, help="Open report.html in the browser.")
def report(run: Path, open_it: bool) -> None:
    """Show a finished run's models side by side, and where its report.html is.

    \b
    Example:
      ckd-ehr report runs/demo --open
    """
    directory = finished_run(run, "evaluation")
    _show_report(directory)
    click.echo(f"\nReport: {_report_file(directory)}")
    if open_it:
        click.launch(str(_report_file(directory).absolute()))


@commands.command(short_help="Write a run's pairs as instruction files.")
@RUN
@click.option("--out", type=NEW_FOLDER, required=True, help="A new or empty folder.")
@click.option("--label-names", type=click.Choice(get_args(LabelStyle)), default="ours",
              show_default=True, help="Names of the diseases: ours, or the paper's.")  # fmt: skip
@click.option("--subject-key", is_flag=True,
              help="Name each line's patient by a hash, whose key is then forgotten.")  # fmt: skip
@click.option("--knowledge/--no-knowledge", "with_knowledge", default=False, show_default=True,
              help="End each input with what the teacher is told besides.")  # fmt: skip
def export_instructions(
    run: Path, out: Path, label_names: LabelStyle, subject_key: bool, with_knowledge: bool
) -> None:
    """Write a run's labelled pairs for LLaMA-Factory. The files are patient data.

    One JSON object a line with instruction, input and output, in the phrases of the paper, in
    train.jsonl, tuning.jsonl and held_out.jsonl, with a dataset_info.json. They hold whole
    histories of patients, without ids and times: keep them where the records may be kept, and out
    of any repository. Unlabelled pairs are left out. The source `instructions` reads them back.

    With --knowledge each input ends with what the run's teacher is told besides the history:
    treatments after which diseases are coded less often, counted without the pair's own fold, and
    statements of guideline digests (settings knowledge.teacher and knowledge.guidelines).

    \b
    Example:
      ckd-ehr export-instructions runs/demo --out pairs --subject-key
      ckd-ehr export-instructions runs/demo --out enriched --knowledge
      ckd-ehr run configs/instructions.yaml data.root=pairs splits.method=source
    """
    from ckd_ehr.contracts.folders import work_tree_of
    from ckd_ehr.knowledge.instructions import export_instructions as export

    stage = "knowledge" if with_knowledge else "cohort"
    directory = finished_run(run, stage, refuse_stale=with_knowledge)
    cohort = directory.require_intact("cohort")
    if (tree := work_tree_of(out)) is not None:
        click.echo(f"WARNING: {out} is in the git work tree {tree}: never commit it", err=True)
    secret = secrets.token_bytes(32) if subject_key else None
    facts_of = _facts_for_the_teacher(directory) if with_knowledge else None
    exported = export(
        cohort, out, label_style=label_names, subject_secret=secret, facts_of=facts_of
    )
    for split, rows in exported.pairs.items():
        click.echo(f"{split}: {rows:,} pairs")
    click.echo(f"{exported.unlabelled:,} unlabelled pairs left out")
    click.echo(f"{out} holds patient data: histories of the run's patients, one a line")


@commands.command(short_help="Write a simulated hospital's tables.")
@click.argument("out", type=NEW_FOLDER)
@click.option("--patients", type=int, help="Number of patients.  [default: 1000]")
@click.option("--seed", type=int, help="The same seed gives the same bytes.  [default: 2026]")
@click.option("--layout", type=click.Choice(get_args(Layout)), default="mimic3",
              show_default=True, help="MIMIC-III, OMOP CDM 5.4 or MEDS 0.4.")  # fmt: skip
@click.option("--coding", type=click.Choice(["icd9", "icd10"]), default="icd9",
              show_default=True, help="Code system; MIMIC-III has ICD-9 only.")  # fmt: skip
@click.option("--hospital", type=click.Choice(["a", "b"]), default="a", show_default=True,
              help="b: other prevalences, habits of coding, names of drugs.")  # fmt: skip
@click.option("--visits", "visits_per_patient", type=float,
              help="Mean stays a patient, without deaths.  [default: 1.4]")  # fmt: skip
@click.option("--detail", type=float,
              help="0 to 1: less leaves out what bears on no label.  [default: 1]")  # fmt: skip
@click.option("--replayed", "replayed_patients", type=int,
              help="Patients whose best possible risk is estimated.  [default: 400]")  # fmt: skip
@click.option("--broken-rows/--no-broken-rows", default=None,
              help="A few broken rows, as real tables have.  [default: yes]")  # fmt: skip
def simulate(out: Path, layout: Layout, **given: object) -> None:
    """Write a simulated hospital into OUT. Its patients are invented; their true risks are known.

    By default its patients come and come back as in MIMIC-III. They are the same in every layout
    and both code systems. MIMIC-III and OMOP are tables as .csv.gz, MEDS is a folder of Parquet
    files with splits of its own. Beside the records stands truth/: the true risk of every label
    after every stay, the best that could be known of it from the record alone for some patients,
    and the drugs' true effects. A run on such a folder reports how close its models come. OUT
    appears with all its files, or not at all.

    \b
    Example:
      ckd-ehr simulate hospital --patients 2000 --visits 3
      ckd-ehr run configs/mimic3.yaml data.root=hospital --until cohort
      ckd-ehr simulate warehouse --layout omop --coding icd10
      ckd-ehr simulate elsewhere --hospital b
    """
    from ckd_ehr.contracts.config import build_config
    from ckd_ehr.data.simulator.hospital import simulate as write_hospital

    settings = {key: value for key, value in given.items() if value is not None}
    config = build_config({"name": "simulate", "data": {"simulator": settings}}, origin="simulate")
    write_hospital(config.data.simulator, out, layout=layout, say=click.echo)
    click.echo(f"{config.data.simulator.patients:,} simulated patients in {out}")


@commands.command(short_help="Check a run's files for leaks.")
@RUN
def audit(run: Path) -> None:
    """Check a run's files again for leaks of the future into histories and across splits.

    Shows every check that the finished stages allow, and for each finding what to do about it;
    exit status 1 when there is one. docs/audit.md says what each check looks at.

    \b
    Example:
      ckd-ehr audit runs/demo
    """
    from ckd_ehr.data.audit.run import audit_run
    from ckd_ehr.data.audit.shown import show_results
    from ckd_ehr.display import show
    from ckd_ehr.knowledge.ontology import words_of

    results = audit_run(finished_run(run, "cohort"), words_of=words_of)
    show(show_results(results))
    if any(result.findings for result in results):
        click.get_current_context().exit(1)


commands.add_command(bundle)
commands.add_command(compare)
commands.add_command(explain)
commands.add_command(export_predictions)
commands.add_command(knowledge)
commands.add_command(predict)
commands.add_command(signals)


@commands.command(short_help="Check this machine; forecast the demo.")
def doctor() -> None:
    """Is this machine ready, and how long will the demo take here?

    Looks at Python, packages, processor, memory, disk and cached weights, and times a matrix
    product. Changes nothing; exit status 1 when something needed is missing.
    """
    from ckd_ehr.display import show, show_findings, show_forecast
    from ckd_ehr.doctor import examine, forecast_demo, measure_speed

    with resources.as_file(resources.files("ckd_ehr") / "configs" / "demo.yaml") as path:
        config = load_config(path)
    findings = examine(config, runs=Path("runs"))
    show(show_findings(findings))
    if any(finding.status == "missing" for finding in findings):
        click.get_current_context().exit(1)
    speed = measure_speed()
    show(show_forecast(forecast_demo(config, speed), speed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. 2: a user can mend it, 130: interrupted."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    try:
        status = commands.main(arguments, prog_name="ckd-ehr", standalone_mode=False)
    except Exception as error:
        return exit_status_of(error)
    return status if isinstance(status, int) else 0


def _execute(
    config: RunConfig, out: Path, *, first: str | None = None, until: str | None = None
) -> RunDirectory:
    directory = run_directory(out)
    gang = _gang(config.device)
    if gang is not None and not is_leader():
        directory.follow(gang)
        sys.exit(0)
    directory.execute(
        config, command=sys.argv[:], say=click.echo, first=first, until=until, gang=gang
    )
    return directory


def _gang(device: str) -> Gang | None:
    """The processes that torchrun started with this one, if it did."""
    if world_size() == 1:
        return None
    from ckd_ehr.learning.gang import TorchGang

    return TorchGang(device)


def _facts_for_the_teacher(directory: RunDirectory) -> "FactsOf":
    from ckd_ehr.knowledge.facts import KnowledgeBase
    from ckd_ehr.knowledge.pieces import PieceCounter
    from ckd_ehr.learning.weights import token_counter

    config = directory.config()
    base = KnowledgeBase.load(
        directory.require_intact("knowledge"),
        phenotypes=config.labels.selected,
        settings=config.knowledge,
    )
    counter = PieceCounter(token_counter(config.teacher.model))
    reader = config.knowledge.teacher
    return lambda history, fold: base.facts(history, fold=fold, reader=reader, counter=counter)


def _report_file(directory: RunDirectory) -> Path:
    return directory.require("evaluation") / "report.html"


def _show_report(directory: RunDirectory) -> None:
    from ckd_ehr.metrics.shown import format_table

    metrics = read_json(directory.require("evaluation") / "metrics.json")
    click.echo("\n" + format_table(metrics))


if __name__ == "__main__":
    sys.exit(main())
