"""How close models come to the best possible, which simulated patients allow to know.

In: the truth that a simulated hospital wrote beside its records, the scored pairs and what was
measured of each model on them. Out: the references of metrics.json: the scores of the true risk
given the patient's hidden state, those of the best that the record alone allows, and each model's
paired distance to both. Ignores: how the truth came about (data/simulator), and real hospitals,
which have none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import label_names
from ckd_ehr.contracts.truth import HOSPITAL, RISKS, RISKS_SCHEMA, TRUTH
from ckd_ehr.learning.scoring import DEFAULT_THRESHOLD, Bools, Floats, Weights, macro
from ckd_ehr.metrics.compare import (
    Measured,
    ScoredPairs,
    difference,
    figure_of,
    figures_of,
    measure,
)
from ckd_ehr.metrics.results import (
    FEWEST_PATIENTS,
    Ceiling,
    Distance,
    Figure,
    Reference,
    RiskCheck,
    number,
)

HIGHER_IS_BETTER = ("macro_auprc", "macro_auroc")
OVERALL = (*HIGHER_IS_BETTER, "micro_auprc", "micro_auroc", "brier")
NEW_ONSET = HIGHER_IS_BETTER
GROUPS = 50
UNBOUNDED = (-np.inf, np.inf)


@dataclass(frozen=True)
class Truth:
    """The true risks of some pairs, in their order; NaN where the record's were not estimated."""

    true_state: Floats  # (pairs, labels)
    record: Floats  # (pairs, labels)
    effective_particles: Floats  # (pairs,)


@dataclass(frozen=True)
class ScoredModels:
    """The scored pairs with every model's probabilities (pairs, labels) and measured scores."""

    pairs: ScoredPairs
    subject_ids: NDArray[np.int64]  # (pairs,)
    probabilities: Mapping[str, Floats]
    measured: Mapping[str, Measured]


@dataclass(frozen=True)
class RiskGroup:
    """Cells of similar risk: how many, expected and observed share, and how far apart these are.

    `z` counts standard errors of independent cells; `low` and `high` are what the observed share
    stays within in 95 of 100 samples of so many cells (binomial).
    """

    count: int
    mean_probability: float
    observed: float
    z: float
    low: float
    high: float

    @property
    def is_within(self) -> bool:
        """Whether the observed share lies within the bounds."""
        return self.low <= self.observed <= self.high


def is_simulated(events: Path, source: str) -> bool:
    """Whether the patients of an events stage's folder are simulated, whatever their source."""
    hospital = events / TRUTH / HOSPITAL
    return source == "simulated" or (
        hospital.is_file() and read_json(hospital).get("simulated") is True
    )


def ceiling_of_run(
    events: Path,
    histories: pa.ChunkedArray,
    models: ScoredModels,
    config: RunConfig,
    *,
    flow: Mapping[str, int],
) -> tuple[Ceiling | None, str | None]:
    """The references of a run, or why simulated data have none; neither for real patients.

    Args:
        events: the stage's folder.
        histories: visit_ids of each scored pair, in order of time.
        models: on the same pairs.
        config: of the run.
        flow: the cohort's counts.
    """
    if not is_simulated(events, config.data.source):
        return None, None
    path = events / TRUTH / RISKS
    if not path.is_file():
        return None, f"the simulated data came without {TRUTH}/{RISKS}"
    left_out = flow.get("visits_of_other_admission_types", 0)
    reason = why_no_ceiling(config, stays_left_out=left_out)
    if reason is not None:
        return None, reason
    histories = histories.combine_chunks()
    last = np.cumsum(pc.list_value_length(histories).to_numpy()) - 1
    names = [phenotype.name for phenotype in config.labels.selected]
    truth = read_truth(path, histories.flatten().take(pa.array(last)), names)
    return find_ceiling(truth, models), None


def why_no_ceiling(config: RunConfig, *, stays_left_out: int = 0) -> str | None:
    """Why the truth of a simulated hospital does not hold for the labels of a run; None if it does.

    The truth is of the 25 phenotypes at the very next stay, whenever that is.

    Args:
        config: of the run.
        stays_left_out: because of their admission type.
    """
    known = {phenotype.name for phenotype in PHENOTYPES_25}
    other = [label.name for label in config.labels.selected if label not in PHENOTYPES_25]
    if other:
        said = "is defined otherwise" if other[0] in known else "is none of them"
        return (
            f"the truth is of the 25 phenotypes as they stand in contracts/phenotype.py, and "
            f"'{other[0]}' {said}"
        )
    cohort = config.cohort
    limits = {
        "cohort.label_window_days": cohort.label_window_days is not None,
        "cohort.max_gap_days": cohort.max_gap_days is not None,
        "cohort.min_gap_days": cohort.min_gap_days > 0,
        "cohort.admission_types": stays_left_out > 0 and cohort.admission_types is not None,
        "cohort.exclude_admission_types": stays_left_out > 0,
    }
    given = next((name for name, is_given in limits.items() if is_given), None)
    if given is None:
        return None
    return f"the truth is of the very next stay, whenever that is, and {given} asks for another"


def read_truth(path: Path, visit_ids: pa.Array, names: Sequence[str]) -> Truth:
    """The true risks after these visits, joined by key.

    Args:
        path: a risks.parquet.
        visit_ids: the last visit of each pair's history.
        names: the labels wanted, in order.

    Raises:
        CkdEhrError: a visit or a label is missing, or a risk is none.
    """
    table = read_table(path, RISKS_SCHEMA)
    known = label_names(table.schema)
    absent = [name for name in names if name not in known]
    if absent:
        raise CkdEhrError(f"{path}: label '{absent[0]}' is missing; rerun the stage events")
    place = pc.index_in(visit_ids, value_set=table["visit_id"].combine_chunks())
    missing = place.null_count
    if missing:
        raise CkdEhrError(
            f"{path}: {missing} of {len(visit_ids)} visits that end a scored history are missing; "
            "rerun the stage events"
        )
    rows = table.take(place)
    columns = [known.index(name) for name in names]
    true_state = _risks(rows["true_probabilities"], len(known), path)[:, columns]
    if np.isnan(true_state).any():
        raise CkdEhrError(f"{path}: a true probability is missing; rerun the stage events")
    return Truth(
        true_state=true_state,
        record=_risks(rows["record_probabilities"], len(known), path)[:, columns],
        effective_particles=np.asarray(
            rows["effective_particles"].to_numpy(zero_copy_only=False), dtype=np.float64
        ),
    )


def _risks(column: pa.ChunkedArray, width: int, path: Path) -> Floats:
    """A list column as (rows, width), NaN where it is null."""
    given = pc.is_valid(column).to_numpy(zero_copy_only=False)
    flat = column.drop_null().combine_chunks().flatten()
    values = np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float64)
    if len(values) != given.sum() * width or not ((values >= 0) & (values <= 1)).all():
        raise CkdEhrError(
            f"{path}: not every row holds {width} probabilities; rerun the stage events"
        )
    risks = np.full((len(given), width), np.nan)
    risks[given] = values.reshape(-1, width)
    return risks


def find_ceiling(truth: Truth, models: ScoredModels) -> Ceiling:
    """The references with every model's distance to them.

    The second stands on the pairs whose record was replayed; every model is scored anew on these,
    and all of it on the same bootstrap draws.
    """
    true_state, _ = _refer(truth.true_state, models)
    replayed = np.asarray(~np.isnan(truth.record).any(axis=1))
    if not replayed.any():
        return Ceiling(true_state=true_state, record=None, true_state_there=None)
    some = _replayed(models, replayed)
    particles = float(np.median(truth.effective_particles[replayed]))
    record, best = _refer(truth.record[replayed], some, effective_particles=particles)
    hidden = _measure(truth.true_state[replayed], some.pairs)
    return Ceiling(
        true_state=true_state,
        record=record,
        true_state_there=_distance(hidden, best, chance=_chance(some.pairs, best)),
    )


def _replayed(models: ScoredModels, rows: Bools) -> ScoredModels:
    """The models on some pairs; without draws where these are of too few patients."""
    if rows.all():
        return models
    pairs, subjects = models.pairs.take(rows), models.subject_ids[rows]
    if len(np.unique(subjects)) < FEWEST_PATIENTS:
        pairs = ScoredPairs(
            labels=pairs.labels,
            previously_present=pairs.previously_present,
            weights=pairs.weights[:0],
            bins=pairs.bins,
        )
    probabilities = {name: values[rows] for name, values in models.probabilities.items()}
    return ScoredModels(
        pairs=pairs,
        subject_ids=subjects,
        probabilities=probabilities,
        measured={name: _measure(values, pairs) for name, values in probabilities.items()},
    )


def _measure(probabilities: Floats, pairs: ScoredPairs) -> Measured:
    """Scores for which no threshold matters."""
    return measure(probabilities, np.full(probabilities.shape[1], DEFAULT_THRESHOLD), pairs)


def _refer(
    risks: Floats, models: ScoredModels, *, effective_particles: float | None = None
) -> tuple[Reference, Measured]:
    best = _measure(risks, models.pairs)
    chance = _chance(models.pairs, best)
    groups = groups_of_risk(risks, models.pairs.labels)
    reference = Reference(
        pairs=len(risks),
        patients=len(np.unique(models.subject_ids)),
        effective_particles=None if effective_particles is None else number(effective_particles),
        chance={name: number(point[0]) for name, (point, _) in chance.items()},
        overall=_chosen(best, OVERALL),
        new_onset=_chosen(best, NEW_ONSET, part="new_onset"),
        check=RiskCheck(groups=len(groups), within=sum(group.is_within for group in groups)),
        models={
            name: _distance(measured, best, chance=chance)
            for name, measured in models.measured.items()
        },
    )
    return reference, best


def _chosen(measured: Measured, names: Sequence[str], part: str = "overall") -> dict[str, Figure]:
    point, resampled = (getattr(draws, part) for draws in (measured.point, measured.resampled))
    return figures_of({name: point[name] for name in names}, resampled)


def _chance(pairs: ScoredPairs, measured: Measured) -> dict[str, tuple[Floats, Floats]]:
    """What the prevalence alone reaches, on the pairs and on each draw: macro-AUPRC, -AUROC."""
    once = np.ones((1, len(pairs.labels)))
    parts = ((once, measured.point), (pairs.weights, measured.resampled))
    auprc = [
        macro(np.where(np.isnan(draws.per_label["auprc"]), np.nan, _prevalence(pairs, weights)))
        for weights, draws in parts
    ]
    return {
        "macro_auprc": (auprc[0], auprc[1]),
        "macro_auroc": (np.full(1, 0.5), np.full(len(pairs.weights), 0.5)),
    }


def _prevalence(pairs: ScoredPairs, weights: Weights) -> Floats:
    """Of each label in each draw, (draws, labels)."""
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(weights @ pairs.labels / total, dtype=np.float64)


def _distance(
    model: Measured, best: Measured, *, chance: Mapping[str, tuple[Floats, Floats]]
) -> Distance:
    said = {"model": "", "minus": ""}
    behind = difference(best, model, **said, names=HIGHER_IS_BETTER).figures
    behind |= difference(model, best, **said, names=("brier",)).figures
    reached = {
        name: figure_of(
            _share_of_way(model.point.overall[name], best.point.overall[name], point),
            _share_of_way(model.resampled.overall[name], best.resampled.overall[name], draws),
            bounds=UNBOUNDED,
        )
        for name, (point, draws) in chance.items()
    }
    return Distance(
        overall=_chosen(model, OVERALL),
        new_onset=_chosen(model, NEW_ONSET, part="new_onset"),
        behind=behind,
        reached=reached,
    )


def _share_of_way(model: Floats, best: Floats, chance: Floats) -> Floats:
    """How much of best − chance a model reaches, (draws,); NaN where there is no way to go."""
    way = best - chance
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(way > 0, (model - chance) / way, np.nan)


def groups_of_risk(
    probabilities: ArrayLike, labels: ArrayLike, groups: int = GROUPS
) -> list[RiskGroup]:
    """All (pair, label) cells in groups of equal size, by rising probability.

    Right probabilities leave about one group in twenty outside its bounds, if cells are
    independent; fewer where risks are so low that the bounds are wider than 95 %.

    >>> [g.observed for g in groups_of_risk([[0.1, 0.9]], [[False, True]], groups=2)]
    [0.0, 1.0]
    """
    flat = np.asarray(probabilities, dtype=np.float64).ravel()
    outcome = np.asarray(labels, dtype=bool).ravel()
    order = np.argsort(flat, kind="stable")
    parts = [part for part in np.array_split(order, groups) if len(part)]
    return [_risk_group(flat[part], outcome[part]) for part in parts]


def _risk_group(probabilities: Floats, outcome: Bools) -> RiskGroup:
    count, mean = len(outcome), float(probabilities.mean())
    surplus = float(outcome.sum() - probabilities.sum())
    spread = float(np.sqrt((probabilities * (1 - probabilities)).sum()))
    return RiskGroup(
        count=count,
        mean_probability=mean,
        observed=float(outcome.mean()),
        z=surplus / spread if spread > 0 else float(np.copysign(np.inf, surplus) if surplus else 0),
        low=float(binom.ppf(0.025, count, mean)) / count,
        high=float(binom.ppf(0.975, count, mean)) / count,
    )
