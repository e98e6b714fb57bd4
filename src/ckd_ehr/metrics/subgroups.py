"""Does a model serve some patients worse? Scores by subgroup, and each group's gap to the rest.

In: visits and scored pairs, the models' probabilities, the shared bootstrap draws. Out: a part of
metrics.json. A group of few pairs is not shown, and never one that the others would give away.
Ignores: why a gap is there; AUPRC rises with prevalence, which stands beside it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ckd_ehr.learning.scoring import Bools, Floats, Weights, brier, label_ranking, macro
from ckd_ehr.metrics.calibration import both_classes
from ckd_ehr.metrics.compare import ScoredPairs, figure_of, figures_of
from ckd_ehr.metrics.results import FEWEST_PATIENTS, Group, GroupScores, Subgroups, number

AGE_BANDS = {18: "under 18", 45: "18–44", 65: "45–64", 80: "65–79"}
OLDEST = "80 and over"
UNKNOWN = "unknown"
Scores = dict[str, Floats]  # by name (draws, labels)


def groups_of(visits: pa.Table, pairs: pa.Table) -> dict[str, list[str]]:
    """Every kind of subgroup: the group of each pair, as its last history visit shows it."""
    history = pairs["history"].combine_chunks()
    ids = pa.array([visit_ids[-1] for visit_ids in history.to_pylist()], pa.string())
    place = pc.index_in(ids, value_set=visits["visit_id"].combine_chunks())
    last = visits.take(place)
    repeat = pc.greater(pc.list_value_length(history), 1).to_pylist()
    return {
        "sex": [value or UNKNOWN for value in last["sex"].to_pylist()],
        "age": [age_band(value) for value in last["age_years"].to_pylist()],
        "ethnicity": [value or UNKNOWN for value in last["ethnicity"].to_pylist()],
        "visit": ["repeat visit" if more else "first visit" for more in repeat],
        "coding": [coding_of(codes) for codes in last["diagnoses"].to_pylist()],
    }


def age_band(years: float | None) -> str:
    """The band of an age.

    >>> age_band(64.9), age_band(80.0), age_band(None)
    ('45–64', '80 and over', 'unknown')
    """
    if years is None:
        return UNKNOWN
    return next((band for end, band in AGE_BANDS.items() if years < end), OLDEST)


def coding_of(diagnoses: Sequence[Mapping[str, str]]) -> str:
    """The code system of a visit's diagnoses.

    >>> coding_of([{"system": "ICD9CM"}, {"system": "ICD10CM"}])
    'mixed'
    """
    systems = {code["system"] for code in diagnoses}
    return "mixed" if len(systems) > 1 else next(iter(systems), "no diagnosis")


def shown_groups(counts: Mapping[str, int], *, min_cell: int) -> list[str]:
    """The groups of at least `min_cell` pairs, less those that would give the others away.

    Totals are known, so what is hidden must be two groups at least and `min_cell` pairs together:
    until it is, the smallest of the others is hidden too.

    >>> shown_groups({"F": 60, "M": 50, "unknown": 3}, min_cell=20)
    ['F']
    """
    rising = sorted(counts, key=lambda name: (counts[name], name))
    hidden = [name for name in rising if counts[name] < min_cell]
    shown = rising[len(hidden) :]
    while hidden and shown and (len(hidden) < 2 or sum(map(counts.get, hidden)) < min_cell):  # type: ignore[arg-type]
        hidden.append(shown.pop(0))
    return sorted(shown)


def subgroup_results(
    groups: Mapping[str, Sequence[str]],
    probabilities: Mapping[str, Floats],
    pairs: ScoredPairs,
    *,
    subject_ids: NDArray[np.int64],
    min_cell: int,
) -> dict[str, Subgroups]:
    """Score the models in every group that may be shown, and in the rest of the pairs.

    Args:
        groups: by kind, the group of each pair.
        probabilities: by model, (pairs, labels).
        pairs: the scored pairs with their draws.
        subject_ids: (pairs,).
        min_cell: pairs below which a group is not shown.
    """
    results = {}
    for kind, values in groups.items():
        counts = Counter(values)
        members = {
            name: np.array([value == name for value in values])
            for name in shown_groups(counts, min_cell=min_cell)
        }
        results[kind] = Subgroups(
            groups={
                name: _group(rows, probabilities, pairs, subject_ids)
                for name, rows in members.items()
            },
            suppressed=len(counts) - len(members),
        )
    return results


def _group(
    rows: Bools,
    probabilities: Mapping[str, Floats],
    pairs: ScoredPairs,
    subject_ids: NDArray[np.int64],
) -> Group:
    inside, rest = pairs.take(rows), pairs.take(~rows)
    patients, others = (len(np.unique(subject_ids[some])) for some in (rows, ~rows))
    scored = both_classes(inside.labels)
    shared = scored & both_classes(rest.labels)
    models = {}
    for name, risks in probabilities.items():
        own = _by_label(risks[rows], inside, interval=patients >= FEWEST_PATIENTS)
        less = _by_label(risks[~rows], rest, interval=min(patients, others) >= FEWEST_PATIENTS)
        models[name] = GroupScores(
            overall=figures_of(*({n: macro(v[:, scored]) for n, v in one.items()} for one in own)),
            gap={
                score: figure_of(
                    *(_gap(a[score], b[score], shared) for a, b in zip(own, less, strict=True)),
                    bounds=(-1.0, 1.0),
                )
                for score in own[0]
            },
        )
    return Group(
        pairs=int(rows.sum()),
        patients=patients,
        labels_scored=int(scored.sum()),
        prevalence=number(float(macro(inside.labels.mean(axis=0)[scored]))),
        models=models,
    )


def _by_label(risks: Floats, pairs: ScoredPairs, *, interval: bool) -> tuple[Scores, Scores]:
    """Scores (draws, labels) of the pairs once as they are, and of the draws if there are any."""
    once = np.ones((1, len(pairs.labels)))
    draws = pairs.weights if interval else pairs.weights[:0]
    return _scores(risks, pairs.labels, once), _scores(risks, pairs.labels, draws)


def _scores(risks: Floats, labels: Bools, weights: Weights) -> Scores:
    ranked = label_ranking(risks, labels, weights)
    with np.errstate(invalid="ignore"):  # a draw may take none of the group's patients
        squared = brier(risks, labels, weights)
    return {"macro_auprc": ranked.auprc, "macro_auroc": ranked.auroc, "brier": squared}


def _gap(own: Floats, rest: Floats, shared: Bools) -> Floats:
    """The difference on the labels of both, for the draws of both."""
    return macro(own[: len(rest), shared]) - macro(rest[:, shared])
