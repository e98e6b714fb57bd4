"""Every drawing of the report with its words and the table that says the same.

In: metrics.json's content. Out: drawings by name, each ready for the page and for a file of its
own. Ignores: where on the page they stand, and how they are drawn.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ckd_ehr.metrics.curve_figures import (
    calibration_figure,
    decision_figure,
    precision_recall_figure,
    roc_figure,
    terms_figure,
)
from ckd_ehr.metrics.dataset_page import Cell, Row, Table
from ckd_ehr.metrics.figures import NAMES
from ckd_ehr.metrics.flags import GAP_SCORE, STUDENT
from ckd_ehr.metrics.interval_figures import (
    diseases_figure,
    faithfulness_figure,
    gaps_figure,
    models_figure,
)
from ckd_ehr.metrics.label_facts import cell_prevalence
from ckd_ehr.metrics.results import MODELS, PRIMARY, Figure, Metrics
from ckd_ehr.metrics.shown import show, show_interval

CALIBRATED = ("teacher", "committee", "student_hard", "student_distilled")
STUDENTS = ("student_distilled", "student_hard")
STEPS = [n / 10 for n in range(11)]
SHOWN_THRESHOLDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
ERASED = {"evidence": "by the evidence", "random": "by chance", "occlusion": "by occlusion"}


@dataclass(frozen=True)
class Drawn:
    """A drawing: what it shows in a sentence, how to read it, and its figures."""

    name: str
    said: str
    caption: str
    svg: Markup
    table: Table
    broad: bool = False


def drawings(metrics: Metrics) -> dict[str, Drawn]:
    """The drawings that these metrics allow, in the order of the page."""
    makers: Iterable[Callable[[Metrics], Drawn | None]] = (
        _models, _calibration, _precision_recall, _roc, _decisions, _gaps, _diseases,
        _faithfulness, _terms,
    )  # fmt: skip
    made = [maker(metrics) for maker in makers]
    return {drawn.name: drawn for drawn in made if drawn is not None}


def _figure_cell(figure: Figure, digits: int = 3) -> Cell:
    return Cell(show(figure.value, digits=digits), show_interval(figure))


def _models(metrics: Metrics) -> Drawn:
    models = {name: metrics.models[name] for name in MODELS}
    chance = metrics.prevalence["overall"][PRIMARY]
    return Drawn(
        name="models",
        said="Macro-AUPRC of each model with its 95 % interval.",
        caption=f"Macro-AUPRC with 95 % intervals. Dotted: chance, {show(chance)}.",
        svg=Markup(models_figure(models, chance=chance)),
        table=Table(
            ["macro-AUPRC"],
            [
                Row(NAMES[name], [_figure_cell(one.overall[PRIMARY])])
                for name, one in models.items()
            ],
        ),
    )


def _calibration(metrics: Metrics) -> Drawn:
    eces = ", ".join(
        f"{NAMES[name]} {show(metrics.models[name].overall['ece'].value)}" for name in CALIBRATED
    )
    rows = []
    for name in CALIBRATED:
        rows.append(Row(NAMES[name], [Cell(""), Cell(""), Cell("")]))
        rows += [
            Row(
                f"{b.lower:.2f} to {b.upper:.2f}",
                [Cell(f"{b.count:,}"), Cell(show(b.mean_probability)), Cell(show(b.observed))],
                part=True,
            )
            for b in metrics.models[name].reliability
        ]
    return Drawn(
        name="calibration",
        said=f"Reliability: observed share against mean predicted probability. ECE: {eces}.",
        caption="Reliability over all pairs and labels. On the diagonal, 30 % means 3 in 10. "
        "Larger dots hold more predictions; small ones are noisy.",
        svg=Markup(calibration_figure(metrics.models, CALIBRATED)),
        table=Table(["predictions", "mean probability", "observed share"], rows),
    )


def _precision_recall(metrics: Metrics) -> Drawn:
    prevalence = cell_prevalence(metrics.labels, _pairs(metrics))
    curves = {
        name: (one.precision_recall.recall, one.precision_recall.precision)
        for name, one in metrics.models.items()
    }
    return Drawn(
        name="precision-recall",
        said=f"Precision and recall over all pairs and labels. Micro-AUPRC: "
        f"{_listed(metrics, 'micro_auprc')}.",
        caption="Precision and recall over all pairs and labels. The level line is the prevalence, "
        f"{show(prevalence)}: what chance reaches.",
        svg=Markup(precision_recall_figure(metrics.models, MODELS, prevalence=prevalence)),
        table=_curve_table("precision at recall", curves),
    )


def _roc(metrics: Metrics) -> Drawn:
    curves = {
        name: (one.roc.false_positive_rate, one.roc.sensitivity)
        for name, one in metrics.models.items()
    }
    return Drawn(
        name="roc",
        said=f"ROC curves over all pairs and labels. Micro-AUROC: "
        f"{_listed(metrics, 'micro_auroc')}.",
        caption="ROC over all pairs and labels; the diagonal is chance. Where a disease is rare, "
        "few false positives in a hundred are many: see precision.",
        svg=Markup(roc_figure(metrics.models, MODELS)),
        table=_curve_table("sensitivity at a false positive rate of", curves),
    )


def _pairs(metrics: Metrics) -> int:
    return metrics.counts[metrics.scored_split].labelled_pairs


def _listed(metrics: Metrics, score: str) -> str:
    return ", ".join(
        f"{NAMES[name]} {show(metrics.models[name].overall[score].value)}" for name in MODELS
    )


def _curve_table(head: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Table:
    """A row a step of the first axis: the curves' values at the nearest point from there on."""
    rows = []
    for step in STEPS:
        cells = []
        for name in MODELS:
            across, up = curves[name]
            cells.append(Cell(show(next((y for x, y in zip(across, up, strict=True)
                                         if x >= step - 1e-9), None))))  # fmt: skip
        rows.append(Row(f"{head} {step:.1f}", cells))
    return Table([NAMES[name] for name in MODELS], rows)


def _decisions(metrics: Metrics) -> Drawn:
    decisions = metrics.decisions
    places = [
        n
        for n, threshold in enumerate(decisions.thresholds)
        if any(abs(threshold - one) < 1e-9 for one in SHOWN_THRESHOLDS)
    ]
    rows = [
        Row(NAMES[name], [Cell(show(one.net_benefit[n].value, digits=4),
                               _interval(one.net_benefit[n])) for n in places])
        for name, one in ((name, metrics.models[name]) for name in MODELS)
    ]  # fmt: skip
    rows.append(Row("treat all", [Cell(show(decisions.treat_all[n], digits=4)) for n in places]))
    return Drawn(
        name="decisions",
        said="Decision curves: net benefit of each model by threshold probability, beside treating "
        "everybody and nobody.",
        caption="Decision curve: right alarms a pair, less false ones weighed by the odds of the "
        "threshold, mean of the scored labels. Above both the dotted line (treat all) and zero "
        "(treat nobody), a model is worth using at that threshold.",
        svg=Markup(decision_figure(metrics.models, MODELS, decisions=decisions)),
        table=Table([f"at {decisions.thresholds[n]:.2f}" for n in places], rows),
    )


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"[{figure.low:.4f}, {figure.high:.4f}]"


def _gaps(metrics: Metrics) -> Drawn | None:
    gaps = {
        f"{kind}: {name} ({group.pairs:,})": group.models[STUDENT].gap[GAP_SCORE]
        for kind, part in metrics.subgroups.items()
        for name, group in part.groups.items()
        if group.models[STUDENT].gap[GAP_SCORE].value is not None
    }
    if not gaps:
        return None
    return Drawn(
        name="gaps",
        said="Gap in macro-AUROC of each subgroup to all other pairs, distilled student.",
        caption="The distilled student: macro-AUROC of a group less that of all other pairs, with "
        "95 % intervals; pairs in brackets. Left of zero, the group is served worse.",
        svg=Markup(gaps_figure(gaps, score="macro-AUROC")),
        table=Table(["gap"], [Row(name, [_figure_cell(gap)]) for name, gap in gaps.items()]),
    )


def _diseases(metrics: Metrics) -> Drawn:
    facts = dict(sorted(metrics.labels.items(), key=lambda item: -(item[1].prevalence or 0)))
    heads = [f"{NAMES[name]}, {score}" for name in STUDENTS for score in ("AUROC", "AUPRC")]
    rows = [
        Row(label, [Cell(f"{fact.positives:,}"), *(
            _figure_cell(figure)
            for name in STUDENTS
            for figure in (metrics.models[name].labels[label].auroc,
                           metrics.models[name].labels[label].auprc))])
        for label, fact in facts.items()
    ]  # fmt: skip
    return Drawn(
        name="diseases",
        said="AUROC and AUPRC of both students for each disease, with 95 % intervals.",
        caption="Both students, disease by disease, the most frequent on top, with 95 % intervals. "
        "A wide line: too few positives to say much.",
        svg=Markup(diseases_figure(metrics.models, facts, STUDENTS)),
        table=Table(["positives", *heads], rows),
        broad=True,
    )


def _faithfulness(metrics: Metrics) -> Drawn | None:
    results = metrics.faithfulness
    if not results:
        return None
    shown = STUDENT if STUDENT in results else next(iter(results))
    fractions = results[shown].fractions
    rows = []
    for name, result in results.items():
        rows.append(Row(NAMES[name], [Cell("")] * (2 * len(fractions))))
        rows += [
            Row(ERASED[order], [_figure_cell(figure) for figure in
                                (*one.comprehensiveness, *one.sufficiency)], part=True)
            for order, one in result.orders.items()
        ]  # fmt: skip
    heads = [f"{part} {100 * f:.0f} %" for part in ("without", "only") for f in fractions]
    return Drawn(
        name="faithfulness",
        said=f"How far the highest risk of the {NAMES[shown]} model falls without the concepts "
        "named first, and with these alone, beside chance and occlusion.",
        caption=f"{NAMES[shown].capitalize()}: how far a patient’s highest risk falls when the "
        "concepts named first are erased from the text (left) and when all others are (right). By "
        "the evidence shown to people, by chance, and by occlusion (each concept erased alone), "
        f"the reference. {results[shown].pairs} pairs, one a patient.",
        svg=Markup(faithfulness_figure(results[shown])),
        table=Table(heads, rows),
        broad=True,
    )


def _terms(metrics: Metrics) -> Drawn | None:
    terms = {name: points for name, points in metrics.training_terms.items() if points}
    if not terms:
        return None
    rows = [
        Row(name, [Cell(show(point.value)), Cell(show(point.weight * point.gradient))])
        for name, points in terms.items()
        for point in (points[0], points[-1])
    ]
    steps = [f" (step {point.step})" for points in terms.values() for point in
             (points[0], points[-1])]  # fmt: skip
    named = [Row(row.heading + step, row.cells) for row, step in zip(rows, steps, strict=True)]
    return Drawn(
        name="terms",
        said="Weight times gradient norm of each term of the distilled student's loss, by step.",
        caption="What pulls at the distilled student: each term’s weight times the norm of its "
        "gradient, as training goes on. A term at zero teaches nothing.",
        svg=Markup(terms_figure(terms)),
        table=Table(["value of the term", "weight · gradient norm"], named),
    )
