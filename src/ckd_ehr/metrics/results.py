"""What metrics.json holds: the one source of every figure in the console table and the report.

A figure is None where it cannot be computed (a label with one class, no bootstrap draws); NaN
never enters. Counts and aggregates only: no identifier, no date, no patient text.
"""

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

PRIMARY = "macro_auprc"
# A bootstrap over fewer clusters knows too few samples: its intervals would be far too narrow.
FEWEST_PATIENTS = 20
MODELS = (
    "carry_forward",
    "logistic_regression",
    "student_hard",
    "student_distilled",
    "teacher",
)


class Record(BaseModel):
    """A frozen part of metrics.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Record):
    """An estimate with its 95 % interval over patients."""

    value: float | None
    low: float | None = None
    high: float | None = None


class LabelResult(Record):
    """One model's figures for one label."""

    auroc: Figure
    auprc: Figure
    f1: float | None
    brier: float | None
    ece: float | None
    threshold: float


class Bin(Record):
    """One bin of a reliability diagram."""

    lower: float
    upper: float
    count: int
    mean_probability: float
    observed: float


class Curve(Record):
    """A precision–recall curve, thinned for drawing."""

    recall: list[float]
    precision: list[float]


class ModelResult(Record):
    """Everything measured of one model on the scored split."""

    overall: dict[str, Figure]
    new_onset: dict[str, Figure]
    persistent: dict[str, Figure]
    labels: dict[str, LabelResult]
    reliability: list[Bin]
    precision_recall: Curve
    note: str


class LabelFacts(Record):
    """How often a label occurs; `scored` if the scored split shows both classes."""

    train_prevalence: float | None
    prevalence: float | None
    positives: int
    new_onset_positives: int
    scored: bool


class Difference(Record):
    """Paired differences of two models on the same patients: `model` − `minus`."""

    model: str
    minus: str
    figures: dict[str, Figure]


class SplitCounts(Record):
    """Size of a split."""

    patients: int
    labelled_pairs: int
    unlabelled_pairs: int


class Rate(Record):
    """How many of how many."""

    count: int
    of: int
    share: float | None


class NumberFacts(Record):
    """A quantity over pairs; None where fewer than five patients have it."""

    mean: float | None
    sd: float | None
    q1: float | None
    median: float | None
    q3: float | None
    missing: int


class CategoryFacts(Record):
    """Counts by category, small ones pooled under "other"."""

    counts: dict[str, int]
    missing: int


class TableOneColumn(Record):
    """One column of Table 1; a number is None where it has no meaning (synthetic times)."""

    patients: int
    pairs: int
    numbers: dict[str, NumberFacts | None]
    women: Rate | None
    sex_missing: int
    ethnicity: CategoryFacts
    admission_type: CategoryFacts


class PhenotypeFacts(Record):
    """How often a label is set: at the last visit of the history, at the next one, newly."""

    now: Rate
    next: Rate
    new_onset: Rate
    persistence: Rate
    next_by_split: dict[str, Rate | None]


class Tally(Record):
    """How many distinct codes, and how many occurrences of codes."""

    codes: int
    occurrences: int


class MissedCode(Record):
    """A code without a category."""

    code: str
    occurrences: int


class SystemCoverage(Record):
    """What became of the diagnosis codes of one system, by how they were mapped."""

    codes: dict[str, int]
    occurrences: dict[str, int]
    most_frequent_unmapped: list[MissedCode]
    most_frequent_ambiguous: list[MissedCode]
    labelling: Tally
    phenotypes: dict[str, Tally]


class SourceRows(Record):
    """What became of the rows of a source table."""

    read: int
    used: int
    left_out: dict[str, int]


class Dataset(Record):
    """What the cohort holds: its dataset.json, its coverage.json, and the source's rows."""

    table_one: dict[str, TableOneColumn]
    visits_per_patient: dict[str, int]
    phenotypes: dict[str, PhenotypeFacts]
    coverage: dict[str, SystemCoverage]
    source_rows: dict[str, SourceRows]


class Metrics(Record):
    """metrics.json."""

    name: str
    data_set: str
    scored_split: str
    seed: int
    split_seed: int
    bootstrap_draws: int
    calibration_bins: int
    counts: dict[str, SplitCounts]
    labels: dict[str, LabelFacts]
    labels_scored: int
    onset_cells: dict[str, int]
    models: dict[str, ModelResult]
    differences: list[Difference]
    latency: dict[str, dict[str, float]]
    flow: dict[str, int]
    dataset: Dataset
    knowledge: dict[str, object]
    narratives_cut: dict[str, float | None]
    config: dict[str, object]
    commit: str | None
    machine: dict[str, object]
    packages: dict[str, str]


def number(value: float) -> float | None:
    """A JSON number: NaN and infinities become None, the rest keep six decimals.

    >>> number(float("nan")), number(0.12345678)
    (None, 0.123457)
    """
    value = float(value)
    return round(value, 6) if math.isfinite(value) else None


def verdict(difference: Difference, *, names: Mapping[str, str] | None = None) -> str:
    """One honest sentence on a paired difference of the primary score, macro-AUPRC.

    `names` are what the models are called in it, by default their keys.

    >>> better = {"macro_auprc": Figure(value=0.02, low=0.01, high=0.03)}
    >>> verdict(Difference(model="student_distilled", minus="student_hard", figures=better))
    'student_distilled is better than student_hard: macro-AUPRC +0.020 [+0.010, +0.030].'
    """
    figure = difference.figures.get(PRIMARY, Figure(value=None))
    pair = [(names or {}).get(key, key) for key in (difference.model, difference.minus)]
    if figure.value is None:
        return f"{pair[0]} and {pair[1]} cannot be compared: no label has both classes."
    if figure.low is None or figure.high is None:
        return (
            f"{pair[0]} − {pair[1]}: macro-AUPRC {figure.value:+.3f}; no interval (it takes "
            f"{FEWEST_PATIENTS} patients and bootstrap draws), so this shows nothing."
        )
    measured = f"macro-AUPRC {figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"
    if figure.low > 0:
        return f"{pair[0]} is better than {pair[1]}: {measured}."
    if figure.high < 0:
        return f"{pair[0]} is worse than {pair[1]}: {measured}."
    return f"{pair[0]} is not shown to differ from {pair[1]}: {measured} includes zero."


def format_table(metrics: Mapping[str, object]) -> str:
    """The models side by side, for the console, from the content of metrics.json."""
    read = Metrics.model_validate(metrics)
    head = ["model", "macro-AUPRC [95 % CI]", "macro-AUROC", "macro-F1", "Brier", "ECE", "ms/pair"]
    rows = [head, *(_table_row(read, model) for model in read.models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    counts = read.counts[read.scored_split]
    title = (
        f"{read.data_set}: {counts.labelled_pairs:,} {read.scored_split} pairs of "
        f"{counts.patients:,} patients, {read.labels_scored} of {len(read.labels)} labels scored"
    )
    return "\n".join([title, "", *lines, "", *map(verdict, read.differences)])


def _table_row(metrics: Metrics, model: str) -> list[str]:
    overall = metrics.models[model].overall
    primary = overall[PRIMARY]
    return [
        model,
        f"{show(primary.value)} {show_interval(primary)}".rstrip(),
        *(show(overall[name].value) for name in ("macro_auroc", "macro_f1", "brier", "ece")),
        show(metrics.latency.get(model, {}).get("p50_ms"), digits=1),
    ]


def show(value: float | None, *, digits: int = 3) -> str:
    """A figure for people; "–" where there is none.

    >>> show(0.5), show(None)
    ('0.500', '–')
    """
    return "–" if value is None else f"{value:,.{digits}f}"


def show_interval(figure: Figure) -> str:
    """The 95 % interval in brackets, or nothing.

    >>> show_interval(Figure(value=0.5, low=0.4, high=0.6))
    '[0.400, 0.600]'
    """
    if figure.low is None or figure.high is None:
        return ""
    return f"[{figure.low:.3f}, {figure.high:.3f}]"
