"""The study of distillation as a part of docs/results.md.

In: what `benchmarks/studies/distillation.py` wrote, a file an arm and seed. Out: lines of Markdown:
each arm's scores over its seeds, and its paired difference to the student on hard labels.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckd_ehr.learning.scoring import basic_interval
from ckd_ehr.metrics.significance import across_seeds

Result = Mapping[str, Any]
HARD = "hard"
SCORES = ("macro_auprc", "macro_auroc")
HEAD = ("student", "seeds", "macro-AUPRC", "less hard", "macro-AUROC", "less hard", "gate closed")


def distillation_part(results: Sequence[Result]) -> list[str]:
    """A heading, what was done, and a row an arm; one table a run."""
    runs: defaultdict[str, list[Result]] = defaultdict(list)
    for result in results:
        runs[result["run"]].append(result)
    return [line for name, found in sorted(runs.items()) for line in _table(name, found)]


def _table(name: str, results: Sequence[Result]) -> list[str]:
    arms: defaultdict[str, dict[int, Result]] = defaultdict(dict)
    for result in results:
        arms[result["arm"]][result["student_seed"]] = result
    first = results[0]
    about = (
        f"{first['pairs']['train']:,} labelled train, {first['pairs']['tuning']:,} tuning, "
        f"{first['pairs']['held_out']:,} held_out pairs; one teacher and committee for all "
        f"(seed {first['seed']}), students of several seeds. Intervals: 95 %, over patients and "
        f"seeds, {len(first['draws'][SCORES[0]]):,} draws; differences paired by patient and seed. "
        f"Commits {', '.join(sorted({str(r['commit'])[:12] for r in results}))}, "
        f"{first['machine']['processor']}."
    )
    order = sorted(arms, key=lambda arm: (arm != HARD, arm))
    rows = [f"| {' | '.join(_row(arm, arms[arm], arms.get(HARD, {})))} |" for arm in order]
    head = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return [f"## Distillation: {name}", "", about, "", *head, *rows, ""]


def _row(arm: str, seeds: Mapping[int, Result], hard: Mapping[int, Result]) -> list[str]:
    shared = [seed for seed in sorted(seeds) if seed in hard]
    cells = [arm, str(len(seeds))]
    for score in SCORES:
        cells.append(_interval([_values(seeds[seed], score) for seed in sorted(seeds)]))
        gains = [_values(seeds[s], score) - _values(hard[s], score) for s in shared]
        cells.append("" if arm == HARD or not gains else _interval(gains, signed=True))
    closed = [r["training"].get("gate_closed") for r in seeds.values()]
    labels = [len(r["training"].get("gate", [])) for r in seeds.values()]
    known = [f"{100 * c / n:.0f} %" for c, n in zip(closed, labels, strict=True) if c is not None]
    return [*cells, ", ".join(known)]


def _values(result: Result, score: str) -> NDArray[np.float64]:
    """The estimate, and its value in each bootstrap draw: (1 + draws,)."""
    return np.array([result["scores"][score]["value"], *result["draws"][score]], dtype=float)


def _interval(values: Sequence[NDArray[np.float64]], *, signed: bool = False) -> str:
    """The mean over seeds, with an interval over patients and seeds, both drawn anew."""
    table = np.stack(values)  # (seeds, 1 + draws)
    [estimate], drawn = across_seeds(table[:, 0], table[:, 1:], seed=0)
    bounds = (-1.0, 1.0) if signed else (0.0, 1.0)
    interval = basic_interval(float(estimate), drawn, bounds=bounds)
    sign = "+" if signed else ""
    shown = [f"{value:{sign}.3f}" for value in (estimate, *(interval or ()))]
    text = f"{shown[0]} [{shown[1]}, {shown[2]}]" if interval else shown[0]
    return text.replace("-", "−")
