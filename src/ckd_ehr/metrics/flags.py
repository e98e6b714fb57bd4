"""What a reader has to know before believing a run: bad calibration, gaps, unfaithful evidence.

In: metrics.json's content. Out: sentences, worst first. Ignores: why it is so.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ckd_ehr.metrics.figures import NAMES
from ckd_ehr.metrics.results import MODELS, Figure, Metrics
from ckd_ehr.metrics.shown import show, show_interval

# A quarter of the log-odds too few or too many, or five points off on average.
SLOPES = (0.75, 1.33)
LARGEST_ECE = 0.05
# With some fifteen groups, an interval below zero alone would flag one in every other run.
LARGEST_GAP = 0.05
GAP_SCORE = "macro_auroc"
STUDENT = "student_distilled"


@dataclass(frozen=True)
class Flag:
    """Something is wrong: of which kind, and what in words."""

    kind: str
    said: str


def flags_of(metrics: Metrics) -> list[Flag]:
    """Everything that the figures show to be wrong."""
    return [
        *_miscalibrated(metrics),
        *_gaps(metrics),
        *_unfaithful(metrics),
    ]


def _miscalibrated(metrics: Metrics) -> Iterator[Flag]:
    for name in MODELS:
        result = metrics.models[name]
        ece, slope = result.overall["ece"], result.recalibration.slope
        off = _surely(ece) > LARGEST_ECE
        if off or (slope is not None and not SLOPES[0] <= slope <= SLOPES[1]):
            way = "too extreme" if slope is not None and slope < 1 else "too timid"
            said = "" if slope is None else f", slope {show(slope, digits=2)} ({way}; 1 is right)"
            yield Flag(
                "Miscalibrated",
                f"{NAMES[name]}: ECE {show(ece.value)} {show_interval(ece)}".rstrip()
                + f"{said}. Its probabilities cannot be taken at their word.",
            )


def _surely(figure: Figure) -> float:
    """What a figure is at least."""
    return next((value for value in (figure.low, figure.value) if value is not None), 0.0)


def _gaps(metrics: Metrics) -> Iterator[Flag]:
    for kind, part in metrics.subgroups.items():
        for name, group in part.groups.items():
            gap = group.models[STUDENT].gap[GAP_SCORE]
            if gap.value is not None and gap.high is not None and gap.high < 0:
                if gap.value > -LARGEST_GAP:
                    continue
                size = f"macro-AUROC {gap.value:+.3f} {show_interval(gap)}"
                yield Flag(
                    "Subgroup gap",
                    f"{kind.capitalize()} {name}: {NAMES[STUDENT]} ranks these {group.pairs:,} "
                    f"pairs worse than all others, {size}.",
                )


def _unfaithful(metrics: Metrics) -> Iterator[Flag]:
    for name, result in metrics.faithfulness.items():
        if result.passed is False:
            gains = ", ".join(
                f"{part} {figure.value:+.3f} {show_interval(figure)}"
                for part, figure in result.gain.items()
            )
            yield Flag(
                "Unfaithful explanations",
                f"{NAMES[name]}: the concepts it names are not shown to matter more than concepts "
                f"by chance ({gains}, in risk; above {result.gate:g} is required). Do not show "
                "them to anybody as its reasons.",
            )
