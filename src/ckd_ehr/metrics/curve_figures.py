"""Curves of the report: reliability, precision–recall, ROC, net benefit, terms of the loss.

In: metrics.json's content. Out: SVG text. Ignores: the page around, and the tables behind.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure as Drawing

from ckd_ehr.metrics.figures import INK, LOOKS, NAMES, style, to_svg, unit_axes
from ckd_ehr.metrics.results import Decisions, ModelResult, TermPoint

TERM_LOOKS = ("#00936b", "#d55e00", "#2b86c5", "#b07a00", "#a85c98", "#808080", "#8a63c4")
TERM_MARKERS = "osD^vPX"


def calibration_figure(models: Mapping[str, ModelResult], shown: Sequence[str]) -> str:
    """Reliability diagram of some models over all (pair, label) cells; dots grow with counts."""
    with style("calibration"):
        drawing, axes = unit_axes("mean predicted probability", "observed share")
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, alpha=0.5)
        for name in shown:
            colour, dashes = LOOKS[name]
            bins = models[name].reliability
            total = sum(b.count for b in bins) or 1
            across = [b.mean_probability for b in bins]
            up = [b.observed for b in bins]
            axes.plot(across, up, color=colour, linestyle=dashes, label=NAMES[name])
            sizes = [8 + 300 * b.count / total for b in bins]
            axes.scatter(across, up, s=sizes, color=colour, alpha=0.55, linewidths=0)
        drawing.legend(loc="outside upper center", ncols=2)
        return to_svg(drawing, "calibration")


def precision_recall_figure(
    models: Mapping[str, ModelResult], shown: Sequence[str], *, prevalence: float
) -> str:
    """Precision–recall curves over all (pair, label) cells, with the prevalence as floor."""
    with style("precision-recall"):
        drawing, axes = unit_axes("recall", "precision")
        axes.axhline(prevalence, color=INK, linewidth=0.8, alpha=0.5)
        for name in shown:
            colour, dashes = LOOKS[name]
            curve = models[name].precision_recall
            axes.plot(
                curve.recall, curve.precision, color=colour, linestyle=dashes, label=NAMES[name]
            )
        drawing.legend(loc="outside upper center", ncols=2)
        return to_svg(drawing, "precision-recall")


def roc_figure(models: Mapping[str, ModelResult], shown: Sequence[str]) -> str:
    """ROC curves over all (pair, label) cells; the diagonal is chance."""
    with style("roc"):
        drawing, axes = unit_axes("false positive rate", "sensitivity (recall)")
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, alpha=0.5)
        for name in shown:
            colour, dashes = LOOKS[name]
            curve = models[name].roc
            axes.plot(
                curve.false_positive_rate,
                curve.sensitivity,
                color=colour,
                linestyle=dashes,
                label=NAMES[name],
            )
        drawing.legend(loc="outside upper center", ncols=2)
        return to_svg(drawing, "roc")


def decision_figure(
    models: Mapping[str, ModelResult], shown: Sequence[str], *, decisions: Decisions
) -> str:
    """Net benefit by threshold, a label; the finer lines are treating all, and nobody."""
    with style("decisions"):
        drawing = Drawing(figsize=(5.2, 4.2), layout="constrained")
        axes = drawing.add_subplot()
        thresholds, highest = decisions.thresholds, 0.0
        axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5)
        everyone = [value if value is not None else float("nan") for value in decisions.treat_all]
        axes.plot(thresholds, everyone, color=INK, linewidth=0.9, linestyle=":", label="treat all")
        for name in shown:
            colour, dashes = LOOKS[name]
            up = [float("nan") if f.value is None else f.value for f in models[name].net_benefit]
            highest = max([highest, *up])
            axes.plot(thresholds, up, color=colour, linestyle=dashes, label=NAMES[name])
        axes.set(xlabel="threshold probability", ylabel="net benefit, mean of labels")
        axes.set(xlim=(0, thresholds[-1]), ylim=(-0.25 * highest - 1e-3, 1.1 * highest + 1e-3))
        drawing.legend(loc="outside upper center", ncols=2)
        return to_svg(drawing, "decisions")


def terms_figure(terms: Mapping[str, Sequence[TermPoint]]) -> str:
    """How hard each term of the loss pulls (weight · gradient norm) as training goes on."""
    with style("terms"):
        drawing = Drawing(figsize=(6.4, 3.8), layout="constrained")
        axes = drawing.add_subplot()
        for n, (name, points) in enumerate(terms.items()):
            looks = n % len(TERM_LOOKS)
            axes.plot(
                [point.step for point in points],
                [point.weight * point.gradient for point in points],
                color=TERM_LOOKS[looks],
                marker=TERM_MARKERS[looks],
                markersize=4,
                label=name,
            )
        axes.set(xlabel="step", ylabel="weight · gradient norm")
        axes.set_ylim(bottom=0)
        drawing.legend(loc="outside upper center", ncols=4)
        return to_svg(drawing, "terms")
