"""The figure of docs/simulator.md: the calibration benchmark's file in, SVG out.

Ignores: the page around it.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FIGURE = "img/simulator_calibration.svg"
INK, SIMULATED, ALIKE = "#333333", "#009e73", "#d55e00"  # Okabe–Ito
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "calibration", "font.size": 10, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


def calibration_figure(result: Mapping[str, Any]) -> str:
    """SVG: prevalence against the published one; P(next | now) against UCI's."""
    report = result["report"]
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(8.4, 4.2), layout="constrained")
        left, right = drawing.subplots(1, 2)
        ours = report["data_sets"]["simulated"]["phenotypes"]
        published = {n: sum(pair) / 2 for n, pair in report["published_prevalence"].items()}
        shares = [ours[name]["stays"]["share"] for name in published]
        _against(left, list(zip(published.values(), shares, strict=True)), SIMULATED, "o")
        left.set(
            xlim=(0, 0.5),
            ylim=(0, 0.5),
            xlabel="published: share of ICU stays",
            ylabel="simulated: share of stays",
        )
        uci = report["data_sets"]["uci"]["phenotypes"]
        for key, colour, marker, said in (
            ("simulated", SIMULATED, "o", "all diagnoses"),
            ("simulated_as_uci", ALIKE, "^", "seen as UCI"),
        ):
            mine = report["data_sets"][key]["phenotypes"]
            both = [
                (rates["persistence"]["share"], mine[name]["persistence"]["share"])
                for name, rates in uci.items()
                if rates["persistence"] and mine[name]["persistence"]
            ]
            _against(right, both, colour, marker, label=said)
        right.set(
            xlim=(0, 1), ylim=(0, 1), xlabel="UCI: P(next | now)", ylabel="simulated: P(next | now)"
        )
        right.legend(loc="lower right")
        return _svg(drawing)


def _against(
    axes: Axes,
    dots: Sequence[tuple[float, float]],
    colour: str,
    marker: str,
    label: str | None = None,
) -> None:
    """Dots (real, simulated) and the line on which both are equal."""
    across, up = zip(*dots, strict=True)
    axes.scatter(
        across, up, s=26, color=colour, marker=marker, alpha=0.8, linewidths=0, label=label
    )
    axes.axline((0, 0), slope=1, color=INK, linewidth=0.6, alpha=0.5)


def _svg(drawing: Figure) -> str:
    """The drawing as a file that stands alone; equal bytes for equal figures."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^\";]*sans-serif", "sans-serif", text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
