"""How results read: the console table of a run's models, verdicts on differences, figures.

In: metrics.json's content. Out: text. Ignores: files, and how anything was computed.
"""

from collections.abc import Mapping

from ckd_ehr.metrics.results import (
    FEWEST_PATIENTS,
    PRIMARY,
    Ceiling,
    Difference,
    Figure,
    Metrics,
    Reference,
    parse_metrics,
)


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
    p_value = "" if difference.p_holm is None else f", p {difference.p_holm:.3f},"
    measured = f"macro-AUPRC {figure.value:+.3f}{p_value} [{figure.low:+.3f}, {figure.high:+.3f}]"
    if figure.low > 0:
        return f"{pair[0]} is better than {pair[1]}: {measured}."
    if figure.high < 0:
        return f"{pair[0]} is worse than {pair[1]}: {measured}."
    return f"{pair[0]} is not shown to differ from {pair[1]}: {measured} includes zero."


def format_table(metrics: Mapping[str, object]) -> str:
    """The models side by side, for the console, from the content of metrics.json."""
    read = parse_metrics(metrics)
    head = ["model", "macro-AUPRC [95 % CI]", "macro-AUROC", "macro-F1", "Brier", "ECE", "ms/pair"]
    models = [_table_row(read, model) for model in read.models]
    references = _reference_rows(read.ceiling)
    rows = [head, *models, *references]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(map(_aligned, row, widths, range(len(head)))).rstrip() for row in rows]
    rule = "  ".join("─" * width for width in widths)
    lines.insert(1, rule)
    if references:
        lines[-len(references) : -len(references)] = [rule]
    counts = read.counts[read.scored_split]
    title = (
        f"{_data_said(read)}: {counts.labelled_pairs:,} {read.scored_split} pairs of "
        f"{counts.patients:,} patients, {read.labels_scored} of {len(read.labels)} labels scored"
    )
    return "\n".join(
        [title, "", *lines, "", *_ceiling_lines(read), *map(verdict, read.differences)]
    )


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _data_said(metrics: Metrics) -> str:
    """The source; that its patients are simulated, where its name does not say so."""
    if not metrics.simulated or metrics.data_set == "simulated":
        return metrics.data_set
    return f"{metrics.data_set} (simulated patients)"


def _table_row(metrics: Metrics, model: str) -> list[str]:
    overall = metrics.models[model].overall
    primary = overall[PRIMARY]
    return [
        model,
        f"{show(primary.value)} {show_interval(primary)}".rstrip(),
        *(show(overall[name].value) for name in ("macro_auroc", "macro_f1", "brier", "ece")),
        show(metrics.latency.get(model, {}).get("p50_ms"), digits=1),
    ]


def _reference_rows(ceiling: Ceiling | None) -> list[list[str]]:
    """The best possible, as rows below the models."""
    if ceiling is None:
        return []
    named = {"best from record*": ceiling.record, "true risk**": ceiling.true_state}
    rows = []
    for name, reference in named.items():
        if reference is not None:
            figures = reference.overall
            primary = f"{show(figures[PRIMARY].value)} {show_interval(figures[PRIMARY])}".rstrip()
            auroc, brier = show(figures["macro_auroc"].value), show(figures["brier"].value)
            rows.append([name, primary, auroc, "", brier, "", ""])
    return rows


def _ceiling_lines(metrics: Metrics) -> list[str]:
    """What the rows of the best possible are, and how close the best model comes."""
    ceiling = metrics.ceiling
    if ceiling is None:
        return [f"no best possible: {metrics.no_ceiling}", ""] if metrics.no_ceiling else []
    lines = []
    if ceiling.record is not None:
        lines += [
            f"*  no model: the best that the record alone allows, estimated for "
            f"{ceiling.record.pairs:,} of the pairs",
            f"   {leader_said(ceiling.record)}",
        ]
    lines.append("** no model: the true risk of these simulated patients, their hidden state known")
    return [*lines, f"   {leader_said(ceiling.true_state)}", ""]


def leader(reference: Reference) -> str | None:
    """The model with the highest macro-AUPRC on a reference's pairs, if any has one."""
    scored = {
        name: value
        for name, model in reference.models.items()
        if (value := model.overall[PRIMARY].value) is not None
    }
    return max(scored, key=lambda name: scored[name]) if scored else None


def leader_said(reference: Reference, *, names: Mapping[str, str] | None = None) -> str:
    """How far the best model on a reference's pairs has come, in a sentence."""
    name = leader(reference)
    if name is None:
        return "No model can be compared with it: no label has both classes."
    behind, reached = (
        getattr(reference.models[name], part)[PRIMARY] for part in ("behind", "reached")
    )
    size = f"macro-AUPRC {0 - behind.value:+.3f}"
    if behind.low is not None and behind.high is not None:
        size += f" [{0 - behind.high:+.3f}, {0 - behind.low:+.3f}]"
    said = f"Best model there: {(names or {}).get(name, name)}, {size} against it"
    if reached.value is not None:
        said += f", {show_share(reached)} of the way from chance"
    return f"{said}."


def show_share(figure: Figure) -> str:
    """A share in per cent with its interval.

    >>> show_share(Figure(value=0.5, low=0.4, high=0.6))
    '50 % [40, 60]'
    """
    if figure.value is None:
        return "–"
    if figure.low is None or figure.high is None:
        return f"{100 * figure.value:.0f} %"
    return f"{100 * figure.value:.0f} % [{100 * figure.low:.0f}, {100 * figure.high:.0f}]"


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
