"""The report's drawings, as SVG that stands inside the page and follows its light or dark colours.

Here: how all of them look, and those of the data and the best possible. In: metrics.json's
content. Out: SVG text without identifiers that clash, fonts or outside references. Ignores: the
page around them; curves and intervals (curve_figures.py, interval_figures.py).
"""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from ckd_ehr.metrics.dataset_facts import PhenotypeFacts, Rate
from ckd_ehr.metrics.results import PRIMARY, Ceiling, Figure, Reference

INK = "#010203"  # replaced by the page's own text colour
NAMES = {
    "carry_forward": "carry-forward",
    "logistic_regression": "logistic regression",
    "student_hard": "student, hard labels",
    "student_distilled": "student, distilled",
    "teacher": "teacher",
    "committee": "committee",
}
# After Okabe and Ito (distinguishable without red–green vision), each 3 : 1 or more on light and
# on dark pages, and a line style each.
LOOKS = {
    "carry_forward": ("#808080", ":"),
    "logistic_regression": ("#b07a00", "-."),
    "student_hard": ("#2b86c5", "--"),
    "student_distilled": ("#00936b", "-"),
    "teacher": ("#d55e00", (0, (5, 1))),
    "committee": ("#a85c98", (0, (3, 1, 1, 1))),
}

# The references that simulated patients allow: no models, so another colour than any of these.
BEST = "#8a63c4"
TRUE_STATE, RECORD = "true risk, hidden state known", "best from the record alone"
BAR = "#00936b"
# How a disease's shares are drawn: colour, marker, what it is called.
SHARES = {
    "now": ("#808080", "o", "at the last visit"),
    "next": ("#00936b", "D", "at the next visit"),
    "new_onset": ("#d55e00", "^", "new at the next visit, of those who never had it"),
}
LONGEST_NAME = 46


def ceiling_figure(ceiling: Ceiling, shown: Sequence[str], *, chance: float | None) -> str:
    """Macro-AUPRC with intervals: the models, and the best possible below them.

    Filled: all scored pairs. Hollow: the pairs whose record was replayed, each row a little lower.
    """
    with style("ceiling"):
        rows = [*shown, RECORD, TRUE_STATE]
        drawing = Drawing(figsize=(8.4, 1.2 + 0.42 * len(rows)), layout="constrained")
        axes = drawing.add_subplot()
        axes.axhline(1.5, color=INK, linewidth=0.6, alpha=0.4)
        if chance is not None:
            axes.axvline(chance, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)
        true_state, record = ceiling.true_state, ceiling.record
        alone = record is None or record.pairs == true_state.pairs
        _dots(axes, rows, _primaries(true_state, TRUE_STATE), hollow=False, shift=0.0)
        if record is not None:
            figures = _primaries(record, RECORD)
            if ceiling.true_state_there is not None:
                figures[TRUE_STATE] = ceiling.true_state_there.overall[PRIMARY]
            # On the same pairs, the models and the true risk stand there already.
            figures = {RECORD: figures[RECORD]} if alone else figures
            _dots(axes, rows, figures, hollow=not alone, shift=0.0 if alone else 0.26)
        axes.set_yticks(range(len(rows) - 1, -1, -1), [NAMES.get(row, row) for row in rows])
        axes.set(xlabel="macro-AUPRC")
        axes.set_ylim(-0.7, len(rows) - 0.5)
        axes.tick_params(axis="y", length=0)
        return to_svg(drawing, "ceiling")


def _primaries(reference: Reference, name: str) -> dict[str, Figure]:
    """The macro-AUPRC of every model on a reference's pairs, and its own."""
    models = {model: distance.overall[PRIMARY] for model, distance in reference.models.items()}
    return {**models, name: reference.overall[PRIMARY]}


def _dots(
    axes: Axes, rows: Sequence[str], figures: Mapping[str, Figure], *, hollow: bool, shift: float
) -> None:
    for name, figure in figures.items():
        if figure.value is None:
            continue
        up = len(rows) - 1 - rows.index(name) - shift
        colour = LOOKS[name][0] if name in LOOKS else BEST
        marker = "o" if name in LOOKS else "D"
        if figure.low is not None and figure.high is not None:
            axes.hlines(up, figure.low, figure.high, color=colour, linewidth=1.6, alpha=0.7)
        face = "none" if hollow else colour
        axes.scatter(figure.value, up, s=38, marker=marker, facecolors=face, edgecolors=colour)


def visits_figure(patients: Mapping[str, int]) -> str:
    """Bars: how many patients have so many visits, each with its number above."""
    with style("visits"):
        drawing = Drawing(figsize=(5.2, 3.0), layout="constrained")
        axes = drawing.add_subplot()
        bars = axes.bar(list(patients), list(patients.values()), color=BAR, width=0.7)
        axes.bar_label(bars, [f"{count:,}" for count in patients.values()], padding=2, fontsize=9)
        axes.set(xlabel="visits kept", ylabel="patients")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.margins(y=0.12)
        return to_svg(drawing, "visits")


def prevalence_figure(phenotypes: Mapping[str, PhenotypeFacts]) -> str:
    """Dots: each disease's share now, next, and newly at the next visit, most frequent on top."""
    with style("prevalence"):
        drawing = Drawing(figsize=(8.4, 1.3 + 0.27 * len(phenotypes)), layout="constrained")
        axes = drawing.add_subplot()
        places = range(len(phenotypes), 0, -1)
        axes.hlines(list(places), 0, 100, color=INK, linewidth=0.5, alpha=0.15)
        highest = 0.0
        for kind, (colour, marker, said) in SHARES.items():
            rates: list[Rate] = [getattr(facts, kind) for facts in phenotypes.values()]
            shares = [100 * (rate.share or 0.0) for rate in rates]
            highest = max([highest, *shares])
            axes.scatter(shares, list(places), s=34, color=colour, marker=marker, label=said)
        names = [shortened(name) for name in phenotypes]
        axes.set_yticks(list(places), names)
        axes.set(xlabel="% of pairs", xlim=(-0.01 * highest, 1.05 * highest + 0.1))
        axes.set_ylim(0.3, len(phenotypes) + 0.7)
        axes.tick_params(axis="y", length=0)
        drawing.legend(loc="outside upper left", ncols=3)
        return to_svg(drawing, "prevalence")


def shortened(name: str) -> str:
    """A name that leaves room for the drawing.

    >>> shortened("Complications of surgical procedures or medical care")
    'Complications of surgical procedures or medic…'
    """
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def style(salt: str) -> AbstractContextManager[None]:
    """Transparent, in the page's ink, text as text; `salt` makes ids equal on every run."""
    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "text.parse_math": False,
            "svg.hashsalt": salt,
            "font.family": "sans-serif",
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.facecolor": "none",
            "figure.facecolor": "none",
            "legend.frameon": False,
        }
    )


def unit_axes(across: str, up: str) -> tuple[Drawing, Axes]:
    """A square from 0 to 1, for curves."""
    drawing = Drawing(figsize=(5.2, 4.2), layout="constrained")
    axes = drawing.add_subplot()
    axes.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return drawing, axes


def to_svg(drawing: Drawing, name: str) -> str:
    """The drawing as an inline element: no prolog or metadata, ids of its own, the page's ink."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("xlink:href", "href")
    text = re.sub(r"<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>", r'<svg aria-hidden="true" \1>', text)
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^\";]*sans-serif", "system-ui, sans-serif", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace(INK, "currentColor")


def as_file(svg: str) -> str:
    """An inline drawing as a file of its own: dark on white, in whatever page it is shown.

    >>> as_file('<svg aria-hidden="true" viewBox="0 0 2 1"><path fill="currentColor"/></svg>')
    '<svg xmlns="http://www.w3.org/2000/svg" style="color: #1c2430; background: #fff" \
viewBox="0 0 2 1"><path fill="currentColor"/></svg>'
    """
    opening = '<svg xmlns="http://www.w3.org/2000/svg" style="color: #1c2430; background: #fff"'
    return svg.replace('<svg aria-hidden="true"', opening, 1)
