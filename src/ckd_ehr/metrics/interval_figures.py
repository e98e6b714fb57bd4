"""Figures with their intervals as dots and lines: models, diseases, subgroups, erased concepts.

In: metrics.json's content. Out: SVG text. Ignores: the page around, and the tables behind.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from ckd_ehr.metrics.figures import BEST, INK, LOOKS, NAMES, shortened, style, to_svg
from ckd_ehr.metrics.results import PRIMARY, Faithfulness, Figure, LabelFacts, ModelResult

MARKERS = {"student_distilled": "o", "student_hard": "s"}
ORDER_LOOKS = {
    "evidence": ("#00936b", "o", "-"),
    "random": ("#808080", "s", ":"),
    "occlusion": (BEST, "D", "--"),
}


def models_figure(models: Mapping[str, ModelResult], *, chance: float | None) -> str:
    """Macro-AUPRC of every model with its interval; dotted: chance."""
    with style("models"):
        drawing = Drawing(figsize=(5.6, 1.0 + 0.36 * len(models)), layout="constrained")
        axes = drawing.add_subplot()
        if chance is not None:
            axes.axvline(chance, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)
        names = list(models)[::-1]
        for row, name in enumerate(names):
            result = models[name]
            interval(axes, result.overall[PRIMARY], row, colour=LOOKS[name][0])
        axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
        axes.set(xlabel="macro-AUPRC", ylim=(-0.6, len(models) - 0.4))
        axes.tick_params(axis="y", length=0)
        return to_svg(drawing, "models")


def interval(
    axes: Axes, figure: Figure, up: float, *, colour: str, marker: str = "o", label: str = ""
) -> None:
    """A dot with its interval as a line, if there is a figure."""
    if figure.value is None:
        return
    if figure.low is not None and figure.high is not None:
        axes.hlines(up, figure.low, figure.high, color=colour, linewidth=1.6, alpha=0.7)
    axes.scatter(figure.value, up, s=26, color=colour, marker=marker, label=label or None)


def diseases_figure(
    models: Mapping[str, ModelResult], facts: Mapping[str, LabelFacts], shown: Sequence[str]
) -> str:
    """A row a disease: AUROC and AUPRC of some models with intervals, ticks at chance."""
    with style("diseases"):
        drawing = Drawing(figsize=(9.2, 1.4 + 0.36 * len(facts)), layout="constrained")
        left, right = drawing.subplots(1, 2, sharey=True)
        rows = {name: len(facts) - 1 - n for n, name in enumerate(facts)}
        left.axvline(0.5, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)
        for label, row in rows.items():
            if facts[label].scored:
                chance = facts[label].prevalence or 0.0
                right.vlines(chance, row - 0.35, row + 0.35, color=INK, linewidth=1.2, alpha=0.7)
            for n, name in enumerate(shown):
                place = row + 0.16 - 0.32 * n
                result = models[name].labels[label]
                looks = {"colour": LOOKS[name][0], "marker": MARKERS[name]}
                interval(left, result.auroc, place, **looks)
                interval(right, result.auprc, place, **looks)
        left.set_yticks(list(rows.values()), [shortened(name) for name in rows])
        left.set(xlabel="AUROC (dotted: chance)", ylim=(-0.7, len(rows) - 0.3))
        right.set(xlabel="AUPRC (tick: prevalence)")
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.hlines(list(rows.values()), *axes.get_xlim(), color=INK, linewidth=0.4, alpha=0.15)
        for name in shown:
            left.scatter([], [], color=LOOKS[name][0], marker=MARKERS[name], label=NAMES[name])
        drawing.legend(loc="outside upper center", ncols=len(shown))
        return to_svg(drawing, "diseases")


def gaps_figure(gaps: Mapping[str, Figure], *, score: str) -> str:
    """A row a subgroup: how far it lies above or below all others."""
    with style("gaps"):
        drawing = Drawing(figsize=(6.8, 1.0 + 0.34 * max(len(gaps), 1)), layout="constrained")
        axes = drawing.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
        colour = LOOKS["student_distilled"][0]
        names = list(gaps)[::-1]
        for row, name in enumerate(names):
            interval(axes, gaps[name], row, colour=colour)
        axes.set_yticks(range(len(names)), [shortened(name) for name in names])
        axes.set(xlabel=f"gap in {score}: the group less all others", ylim=(-0.6, len(gaps) - 0.4))
        axes.tick_params(axis="y", length=0)
        return to_svg(drawing, "gaps")


def faithfulness_figure(result: Faithfulness) -> str:
    """How far the risk falls without the concepts named first, and with these alone."""
    with style("faithfulness"):
        drawing = Drawing(figsize=(8.4, 3.6), layout="constrained")
        panels = drawing.subplots(1, 2, sharey=True)
        titles = {
            "comprehensiveness": "without the first named (more is better)",
            "sufficiency": "with these alone (less is better)",
        }
        for axes, (part, title) in zip(panels, titles.items(), strict=True):
            axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
            for n, (name, order) in enumerate(result.orders.items()):
                colour, marker, dashes = ORDER_LOOKS[name]
                figures: list[Figure] = getattr(order, part)
                across = [100 * f + (n - 1) * 0.7 for f in result.fractions]
                up = [figure.value or 0.0 for figure in figures]
                axes.plot(across, up, color=colour, linestyle=dashes, marker=marker, label=name)
                bounds = [
                    (x, f.low, f.high)
                    for x, f in zip(across, figures, strict=True)
                    if f.low is not None and f.high is not None
                ]
                for x, low, high in bounds:
                    axes.vlines(x, low, high, color=colour, alpha=0.5)
            axes.set(title=title, xlabel="% of the concepts", xticks=[10, 20, 50])
        panels[0].set_ylabel("fall of the highest risk")
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside upper center", ncols=3)
        return to_svg(drawing, "faithfulness")
