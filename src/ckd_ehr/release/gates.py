"""Is a released graph as good as the student it came from? One row a label, and a verdict.

In: probabilities of both on the same pairs, labels, thresholds. Out: differences, and what is
beyond the limits. Ignores: how good the student is.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.alignment import Encoded
from ckd_ehr.learning.scoring import Bools, Floats, calibration_error, label_ranking
from ckd_ehr.release.session import Output, Session

LIMITS = {"auroc": 0.002, "auprc": 0.005, "ece": 0.005, "p99_shift": 0.01, "flips": 0.005}
INVARIANCE = 1e-5  # of probabilities, alone or with others of its bucket
PADDING = {"fp32": 1e-5, "int8": 2e-3}  # of probabilities, from bucket to bucket
TITLES = {
    "auroc": "|ΔAUROC|",
    "auprc": "|ΔAUPRC|",
    "ece": "|ΔECE|",
    "p99_shift": "p99 |Δp|",
    "flips": "flips",
}


class LabelGate(BaseModel):
    """How far a graph is from its student on one label.

    `auroc` and `auprc` are None where the pairs show one class only; `flips` is the share of pairs
    on the other side of the threshold.
    """

    model_config = ConfigDict(frozen=True)

    label: str
    auroc: float | None
    auprc: float | None
    ece: float
    p99_shift: float
    flips: float

    @property
    def beyond(self) -> tuple[str, ...]:
        """The figures beyond their limits."""
        values = self.model_dump(exclude={"label"})
        return tuple(
            name
            for name, limit in LIMITS.items()
            if values[name] is not None and values[name] > limit
        )


def compare_with_student(
    student: Floats,
    graph: Floats,
    labels: Bools,
    *,
    names: Sequence[str],
    thresholds: Floats,
) -> tuple[LabelGate, ...]:
    """The differences, label by label.

    Args:
        student: probabilities (pairs, labels) by fp32 PyTorch.
        graph: the same by the graph.
        labels: (pairs, labels).
        names: of the labels.
        thresholds: (labels,), positive from there upwards.

    >>> p = np.array([[0.2], [0.8]])
    >>> [gate] = compare_with_student(p, p + 0.02, p > 0.5, names=["Shock"], thresholds=p[1])
    >>> gate.auroc, round(gate.p99_shift, 6), gate.beyond
    (0.0, 0.02, ('p99_shift',))
    """
    one, other = label_ranking(student, labels), label_ranking(graph, labels)
    errors = [calibration_error(p, labels).per_label[0] for p in (student, graph)]
    shifts = np.quantile(np.abs(student - graph), 0.99, axis=0)
    flips = ((student >= thresholds) != (graph >= thresholds)).mean(axis=0)
    return tuple(
        LabelGate(
            label=name,
            auroc=_difference(one.auroc[0, k], other.auroc[0, k]),
            auprc=_difference(one.auprc[0, k], other.auprc[0, k]),
            ece=float(abs(errors[0][k] - errors[1][k])),
            p99_shift=float(shifts[k]),
            flips=float(flips[k]),
        )
        for k, name in enumerate(names)
    )


def _difference(one: float, other: float) -> float | None:
    return None if np.isnan(one) or np.isnan(other) else float(abs(one - other))


def refuse_failing(graph: str, gates: Sequence[LabelGate]) -> None:
    """Refuse a graph with a figure beyond its limit.

    Raises:
        CkdEhrError: with the table.
    """
    if failing := failures(gates):
        remedy = "publish fp32 alone: --precision fp32"
        raise CkdEhrError(
            f"{graph}: {failing} of {len(gates)} labels are further from the student than a "
            f"release may be, so nothing is published\n{gate_table(gates)}\n"
            f"{remedy if graph == 'int8' else 'report this as a bug of the export'}"
        )


def failures(gates: Sequence[LabelGate]) -> int:
    """How many labels have a figure beyond its limit."""
    return sum(bool(gate.beyond) for gate in gates)


def gate_table(gates: Sequence[LabelGate]) -> str:
    """The differences as text, those beyond their limits marked."""
    head = f"{'label':<40.40}" + "".join(f"{TITLES[name]:>12}" for name in LIMITS)
    limits = f"{'limit':<40}" + "".join(f"{limit:>11g} " for limit in LIMITS.values())
    return "\n".join([head, limits, *(_row(gate) for gate in gates)])


def _row(gate: LabelGate) -> str:
    values = gate.model_dump(exclude={"label"})
    cells = (
        f"{'–' if values[name] is None else format(values[name], '.5f'):>11}"
        + ("!" if name in gate.beyond else " ")
        for name in LIMITS
    )
    return f"{gate.label:<40.40}" + "".join(cells)


def thresholds_between(probabilities: Floats, thresholds: Floats) -> Floats:
    """The thresholds moved halfway to the next lower probability: the same decisions, with room.

    A threshold that is a pair's own probability would flip with the last digit.

    >>> thresholds_between(np.array([[0.2], [0.4], [0.9]]), np.array([0.4]))
    array([0.3])
    """
    below = np.where(probabilities < thresholds, probabilities, -np.inf).max(axis=0)
    return np.where(np.isfinite(below), (thresholds + below) / 2, thresholds)


def refuse_variance(graph: str, session: Session, texts: Sequence[Encoded]) -> None:
    """Refuse a graph whose answer for a text depends on who is in its batch, or on its padding.

    Raises:
        CkdEhrError: says by how much.
    """

    def shift(others: Sequence[Output]) -> float:
        pairs = zip(together, others, strict=True)
        return max(float(np.abs(a.probabilities - b.probabilities).max()) for a, b in pairs)

    together = session.run(texts)
    alone = shift([session.run([text])[0] for text in texts])
    padded = shift(session.run(texts, padded_to=session.most_tokens))
    for what, found, limit in (
        ("who shares the batch", alone, INVARIANCE),
        ("padding", padded, PADDING[graph]),
    ):
        if found > limit:
            raise CkdEhrError(
                f"{graph}: a risk changes by up to {found:.2g} with {what} (at most {limit:g}), so "
                "nothing is published; report this as a bug of the export"
            )
